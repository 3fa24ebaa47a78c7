"""Time and memory against the size of a program: ``python benchmarks/trust/scale.py -o results.json``.

Each size runs in a process of its own, whose peak memory is its own. The program is what a train step looks like
unrolled: a chain of layers forward, and a backward chain that reads what each layer left.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

SIZES = (10_000, 100_000, 1_000_000)
STEPS = ("parse", "print", "clone", "cse", "farrier-fusion", "memory.estimate", "farrier-remat{budget=0}")
_T = "tensor<256x256xf32>"


def program(operations: int) -> str:
    """Text of a step of about ``operations`` operations: five forward and five backward a layer."""
    lines = [
        f'"func.func"() <{{function_type = ({_T}, {_T}) -> {_T}, sym_name = "main"}}> ({{',
        f"^bb0(%h0: {_T}, %w: {_T}):",
    ]
    layers = max(1, operations // 10)
    dot = "<{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [0]>}>"
    two, one = f"({_T}, {_T}) -> {_T}", f"({_T}) -> {_T}"
    for i in range(layers):
        lines += [
            f'%a{i} = "stablehlo.dot_general"(%h{i}, %w) {dot} : {two}',
            f'%t{i} = "stablehlo.tanh"(%a{i}) : {one}',
            f'%s{i} = "stablehlo.logistic"(%a{i}) : {one}',
            f'%m{i} = "stablehlo.multiply"(%t{i}, %s{i}) : {two}',
            f'%h{i + 1} = "stablehlo.add"(%m{i}, %h{i}) : {two}',
        ]
    lines.append(f'%g{layers} = "stablehlo.cosine"(%h{layers}) : {one}')
    for i in reversed(range(layers)):
        lines += [
            f'%p{i} = "stablehlo.multiply"(%g{i + 1}, %t{i}) : {two}',
            f'%q{i} = "stablehlo.multiply"(%p{i}, %s{i}) : {two}',
            f'%r{i} = "stablehlo.subtract"(%q{i}, %a{i}) : {two}',
            f'%d{i} = "stablehlo.dot_general"(%r{i}, %w) {dot} : {two}',
            f'%g{i} = "stablehlo.add"(%d{i}, %g{i + 1}) : {two}',
        ]
    lines += [f'"func.return"(%g0) : ({_T}) -> ()', "}) : () -> ()"]
    return "\n".join(lines)


def peak() -> int:
    """This process's peak resident memory, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(operations: int, steps: tuple[str, ...]) -> dict:
    """Seconds (processor time) of each step and peak memory, for one size."""
    from farrier import _core

    text = program(operations)
    base = peak()
    seconds = {}
    start = time.process_time()
    module = _core.Module.parse(text)
    seconds["parse"] = time.process_time() - start
    for step in steps:
        if step == "parse":
            continue
        copy = module.clone() if "{" in step or step in ("cse", "farrier-fusion") else module
        start = time.process_time()
        if step == "print":
            copy.print()
        elif step == "clone":
            copy.clone()
        elif "." in step:
            copy.query(step)
        else:
            copy.run(f"builtin.module({step})")
        seconds[step] = time.process_time() - start
        del copy
    return {
        "operations": module.num_ops,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "text_bytes": len(text),
        "peak_bytes": peak() - base,
    }


def constants(total: int) -> dict:
    """A program with constants of ``total`` bytes to farrier's MLIR and back."""
    import jax
    import numpy as np
    from farrier._src import interchange

    count = total // 8 // (1 << 20)
    arrays = [np.arange(2 << 20, dtype=np.float32) + i for i in range(count)]
    module = jax.jit(lambda x: [x + a for a in arrays]).lower(np.float32(1)).compiler_ir("stablehlo")
    base, start = peak(), time.process_time()
    back = interchange.to_jaxlib(interchange.to_core(module), module.context)
    seconds = time.process_time() - start
    assert len(list(back.body.operations)) == len(list(module.body.operations))
    return {"constant_bytes": total, "seconds": round(seconds, 2), "extra_peak_bytes": peak() - base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", dest="output", type=pathlib.Path)
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--steps", nargs="*", default=STEPS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--constants", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=900, help="seconds for one size")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, tuple(arguments.steps))))
        return
    if arguments.constants:
        print(json.dumps(constants(arguments.constants)))
        return
    rows = []
    requests = [["--one", str(size), "--steps", *arguments.steps] for size in arguments.sizes]
    for request in [*requests, ["--constants", str(1 << 30)]]:
        command = [sys.executable, __file__, *request]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=arguments.limit, check=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        except subprocess.TimeoutExpired:
            rows.append({"request": request, "over": arguments.limit})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
