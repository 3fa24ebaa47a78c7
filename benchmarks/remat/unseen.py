"""How far the estimator is from XLA:GPU on training steps that are none of the project's workloads (`benchmarks/unseen`):
the part that its rules were found on, and those that the rules were then tried on.

    python benchmarks/remat/unseen.py                           # all, deviceless, about fifteen minutes
    python benchmarks/remat/unseen.py --only vqvae gat
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

import jax
from farrier._src import interchange, oracle
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import unseen
from estimate import judged, sizes
from programs import lowered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(name for part in unseen.PARTS.values() for name in part)
    parser.add_argument("--only", nargs="+", metavar="PROGRAM", choices=names)
    parser.add_argument("--output", type=pathlib.Path, help="JSON")
    args = parser.parse_args()
    console, found = Console(), []
    table = Table("part", "program", "estimated", "measured", "off", "corrected", title="temporary MB, H100")
    for part, programs in unseen.PARTS.items():
        for name in programs:
            if args.only and name not in args.only:
                continue
            step, target = lowered(name)
            program = step.compiler_ir("stablehlo")
            module = interchange.to_core(program)
            measured = oracle.measure(program, target, held=True)
            each = {"part": part, "program": name} | judged(
                module, sizes(module, target.device_count), measured.temp_bytes, measured.held
            )
            found.append(each)
            bytes_ = (each["estimated_temp_bytes"], each["measured_temp_bytes"])
            off = (each["error"], each["corrected_error"])
            table.add_row(part, name, *(f"{size / 1e6:.1f}" for size in bytes_), *(f"{e:+.1%}" for e in off))
            jax.clear_caches()
    console.print(table)
    for part in unseen.PARTS:
        for key, what in (("error", "before any compile"), ("corrected_error", "corrected by it")):
            errors = [abs(each[key]) for each in found if each["part"] == part]
            if errors:
                console.print(f"{part}, {what}: mean {statistics.mean(errors):.1%}, worst {max(errors):.1%}")
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
