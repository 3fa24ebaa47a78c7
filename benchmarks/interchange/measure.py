"""Cost of the interchange: time per operation and memory, import time, size of the extension.

`python benchmarks/interchange/measure.py` prints a Markdown table; `--write` also puts it into results.md
beside this file. Times are processor time, the best of a few runs: the least disturbed one.
"""

import argparse
import os
import pathlib
import platform
import subprocess
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxlib
from farrier import _core
from farrier._src import interchange
from jax.interpreters import mlir

SIZES = (5_000, 50_000, 200_000)
LIMIT_US = 30.0
"""What the whole circle may cost per operation, in microseconds."""


def module(ops: int):
    """A module of about `ops` operations, with locations and attributes in a train step's proportions."""
    lines = ["func.func public @main(%x: tensor<64x64xf32>) -> tensor<64x64xf32> {"]
    value, count = "%x", 2
    while count < ops:
        where = f'loc("layer/{count}"("model.py":{count % 997}:{count % 71}))'
        kind = "tensor<64x64xf32>"
        body = (
            f"%a{count} = stablehlo.dot_general {value}, %x, contracting_dims = [1] x [0], "
            f"precision = [DEFAULT, DEFAULT] : ({kind}, {kind}) -> {kind} {where}",
            f"%b{count} = stablehlo.tanh %a{count} : {kind} {where}",
            f"%c{count} = stablehlo.transpose %b{count}, dims = [1, 0] : ({kind}) -> {kind} {where}",
            f"%d{count} = stablehlo.add %c{count}, %b{count} : {kind} {where}",
            f"%e{count} = stablehlo.constant dense<{count}.0> : {kind} {where}",
            f"%f{count} = stablehlo.multiply %d{count}, %e{count} : {kind} {where}",
        )
        lines += body
        value, count = f"%f{count}", count + len(body)
    lines.append(f"return {value} : tensor<64x64xf32>\n}}")
    with mlir.make_ir_context():
        return mlir.ir.Module.parse("\n".join(lines)), count


def best(action, repeats: int) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def circle(ops: int) -> dict[str, float]:
    """Microseconds per operation of each part of the circle."""
    source, count = module(ops)
    repeats = 3 if ops <= 50_000 else 2
    core = interchange.to_core(source)
    text = core.print()
    parts = {
        "print in jaxlib": lambda: interchange.print_module(source, locations=True, limit=interchange.LARGE),
        "parse here": lambda: _core.Module.parse(text),
        "print here": core.print,
        "parse in jaxlib": lambda: interchange.text_to_jaxlib(text, core.constants, source.context),
        "whole circle": lambda: interchange.to_jaxlib(interchange.to_core(source), source.context),
    }
    return {"operations": count, **{name: best(run, repeats) / count * 1e6 for name, run in parts.items()}}


def import_seconds() -> float:
    """What importing the extension adds to a process that has jax."""
    script = (
        "import importlib.machinery, importlib.util, sys, time, jax\n"
        "loader = importlib.machinery.ExtensionFileLoader('farrier._core', sys.argv[1])\n"
        "spec = importlib.util.spec_from_loader('farrier._core', loader)\n"
        "start = time.process_time()\n"
        "loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(time.process_time() - start)\n"
    )
    command = [sys.executable, "-c", script, _core.__file__]
    return min(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3))


def table() -> str:
    rows = [circle(ops) for ops in SIZES]
    names = list(rows[0])
    lines = [
        "# Interchange",
        "",
        f"Processor time in microseconds per operation; jax {jax.__version__}, jaxlib {jaxlib.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}.",
        "",
        f"| {' | '.join(names)} |",
        f"|{'---:|' * len(names)}",
    ]
    lines += [
        f"| {row['operations']} | {' | '.join(f'{row[name]:.1f}' for name in names[1:])} |" for row in rows
    ]
    size = pathlib.Path(_core.__file__).stat().st_size / 1e6
    lines += [
        "",
        f"Import of the extension beside jax: {import_seconds() * 1e3:.0f} ms. Size: {size:.1f} MB.",
    ]
    worst = max(row["whole circle"] for row in rows)
    lines.append(f"Limit for the circle: {LIMIT_US:.0f} us per operation; worst here {worst:.1f}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into results.md")
    text = table()
    print(text)
    if parser.parse_args().write:
        pathlib.Path(__file__).with_name("results.md").write_text(text)


if __name__ == "__main__":
    main()
