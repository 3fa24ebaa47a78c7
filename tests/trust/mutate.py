"""Damaged inputs, in numbers: ``python -m trust.mutate --cases 20000 --seed 0``.

Programs in every form that hlo-opt reads are mutated and truncated. Two doors:

* ``bindings``: mutated text into ``farrier._core``, passes, print. It must end in a result or an exception.
* ``front``: any form into what hlo-opt runs in its child. jaxlib's own readers may abort there; nothing may hang,
  or take more than 4 GB.

Each case runs in a fork of a warm process, with limits; so a death is seen, and costs one case.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

SECONDS = 10
MEMORY = 4 << 30
# Small programs that between them have loops, branches, calls, callbacks, shardings, odd types and constants.
PROGRAMS = ("scans", "branches", "nested_calls", "barriers", "donated", "decoder_step_scanned")
PIPELINE = (
    "builtin.module(cse,canonicalize,farrier-simplify-collectives,farrier-fusion{min-bytes=0},"
    "farrier-remat{stress=1 small-bytes=1},farrier-remat-loops{save=0.5 sink-bytes=1})"
)
_TOKENS = (
    b"f32", b"bf16", b"i1", b"i32", b"ui8", b"complex<f32>", b"0", b"-1", b"9223372036854775807", b"4", b"x", b"?",
    b"tensor<", b">", b"[", b"]", b"(", b")", b"{", b"}", b"%0", b"%arg0", b"^bb0", b"dense<", b"stablehlo.add",
    b"stablehlo.while", b"stablehlo.reduce", b"stablehlo.dot_general", b"stablehlo.return", b"array<i64: 7>", b"@main",
)  # fmt: skip


def corpus() -> dict[str, list[bytes]]:
    """Every form of a few programs."""
    import jax
    import programs
    from farrier._src import interchange
    from farrier._src.cli import hlo_opt_child as child
    from jax import export

    result: dict[str, list[bytes]] = collections.defaultdict(list)
    for name in PROGRAMS:
        program = programs.get(name)
        module = program.module()
        source = child.Input("mlir-text", module=module)
        result["generic text"].append(interchange.print_module(module, locations=True))
        for form in ("stablehlo", "bytecode", "artifact", "hlo-text", "hlo-proto"):
            result[form].append(child.emit(source, form, locations=False))
        function, arguments = program.build()
        jitted = function if hasattr(function, "trace") else jax.jit(function)
        result["export"].append(bytes(export.export(jitted)(*arguments).serialize()))
    return dict(result)


def mutated(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """A damaged copy."""
    data = bytearray(data)
    for _ in range(1 + draw.randrange(4)):
        at = draw.randrange(len(data) + 1)
        size = 1 + draw.randrange(draw.choice((1, 8, 64, 1024)))
        kind = draw.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            del data[max(at, 1) :]
        elif kind == 5:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            data[at : at + size] = other[start : start + size]
        else:
            token = draw.choice(_TOKENS)
            spot = data.find(draw.choice(_TOKENS), at)
            spot = at if spot < 0 else spot
            data[spot : spot + len(token) * (kind - 6)] = token
        if not data:
            return b""
    return bytes(data)


def bindings(data: bytes) -> str:
    from farrier import _core

    try:
        module = _core.Module.parse(data)
        module.run(PIPELINE)
        module.print()
    except (_core.DiagnosticError, UnicodeDecodeError, ValueError):
        return "refused"
    return "accepted"


def front(data: bytes) -> str:
    from farrier._src import errors
    from farrier._src.cli import hlo_opt_child as child

    request = {"name": "input", "passes": [], "emit": None, "stage": "stablehlo", "platform": "cpu"}
    try:
        child.convert(request, data, 2)
    except (child.Failed, errors.Error):
        return "refused"
    return "accepted"


def _elsewhere(work: Any) -> Any:
    """What ``work()`` returns, bytes in lists in an object, made in a fork."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            with os.fdopen(write, "w") as file:
                json.dump({name: [data.hex() for data in group] for name, group in work().items()}, file)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as file:
        made = json.load(file)
    os.waitpid(pid, 0)
    return {name: [bytes.fromhex(data) for data in group] for name, group in made.items()}


OUTCOMES = ("accepted", "refused", "raised")


def case(door: Any, data: bytes) -> tuple[str, int]:
    """What became of one input, and the child's peak memory in bytes."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            # Address space, of which jaxlib alone maps gigabytes.
            resource.setrlimit(resource.RLIMIT_AS, (3 * MEMORY, 3 * MEMORY))
            # Processor time: other work on the machine is no hang. A wait for ever shows by the clock.
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(12 * SECONDS)
            code = OUTCOMES.index(door(data))
        finally:
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    memory = usage.ru_maxrss * 1024
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGALRM or (number == signal.SIGPROF and door is bindings):
            return "hang", memory
        # hlo-opt's own limit on a reader ends it in the same way.
        return ("stopped" if number == signal.SIGPROF else signal.Signals(number).name), memory
    return OUTCOMES[os.WEXITSTATUS(status)] if os.WEXITSTATUS(status) < 3 else "ended", memory


def cases(seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Door, form and bytes of each case."""
    forms = _elsewhere(corpus)
    everything = [data for group in forms.values() for data in group]
    names = sorted(forms)
    for number in range(count):
        draw = random.Random(seed * 1_000_003 + number)
        form = draw.choice(("generic text", "generic text", "stablehlo", *names))
        door = "bindings" if form in ("generic text", "stablehlo") and draw.randrange(4) else "front"
        yield door, form, mutated(draw.choice(forms[form]), draw, everything)


def run(seed: int, count: int, keep: pathlib.Path | None = None) -> dict[str, Any]:
    """Counts by door and outcome; what must not happen is listed under "bad"."""
    counts: collections.Counter[str] = collections.Counter()
    bad, most, start = [], 0, time.monotonic()
    # Loaded before the forks; but no MLIR context is made here: its threads would be missing in a fork.
    from farrier._src.cli import hlo_opt_child  # noqa: F401

    doors = {"bindings": bindings, "front": front}
    for number, (door, form, data) in enumerate(cases(seed, count)):
        outcome, memory = case(doors[door], data)
        counts[f"{door}: {outcome}"] += 1
        most = max(most, memory)
        died = outcome not in ("accepted", "refused")
        if outcome == "hang" or memory > MEMORY or (died and door == "bindings"):
            bad.append({"case": number, "door": door, "form": form, "outcome": outcome, "memory": memory})
            if keep:
                (keep / f"bad-{seed}-{number}").write_bytes(data)
        if number % 1000 == 999:
            print(f"{number + 1}: {dict(counts)}, {len(bad)} bad", file=sys.stderr, flush=True)
    return {
        "seed": seed, "cases": count, **dict(sorted(counts.items())), "peak_bytes": most,
        "seconds": round(time.monotonic() - start), "bad": bad,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the inputs of bad cases")
    arguments = parser.parse_args()
    result = run(arguments.seed, arguments.cases, arguments.keep)
    print(json.dumps(result, indent=1))
    return 1 if result["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
