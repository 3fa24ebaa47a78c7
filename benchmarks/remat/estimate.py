"""How far the estimator is from XLA:GPU: temporary bytes of programs as they are written, before any compile and
corrected by the compile of the same program (`farrier._src.corrections`).

    python benchmarks/remat/estimate.py                       # all, deviceless, about ten minutes
    python benchmarks/remat/estimate.py --only naive2 unet

A program under automatic sharding is estimated for one device, by Shardy's propagation.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

import farrier
import jax
from farrier._src import corrections, interchange, oracle, sharding
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import workloads

# tag: workload, topology, options. Full width, the fewest layers that show what layers do.
PROGRAMS = {
    "unrolled4": ("llm-1b", "1x1x1", {"layers": 4}),
    "unrolled4dots": ("llm-1b", "1x1x1", {"layers": 4, "remat": "dots"}),
    "unrolled4nothing": ("llm-1b", "1x1x1", {"layers": 4, "remat": "nothing"}),
    "scan4": ("llm-1b-scan", "1x1x1", {"layers": 4}),
    "scan4nothing": ("llm-1b-scan", "1x1x1", {"layers": 4, "remat": "nothing"}),
    "accum4": ("llm-1b-accumulate", "1x1x1", {"layers": 4}),
    "dropout2": ("llm-1b-dropout", "1x1x1", {"layers": 2}),
    "naive2": ("llm-1b-naive", "1x1x1", {"layers": 2}),
    "naive2dots": ("llm-1b-naive", "1x1x1", {"layers": 2, "remat": "dots"}),
    "naive2nothing": ("llm-1b-naive", "1x1x1", {"layers": 2, "remat": "nothing"}),
    "chunked2": ("llm-1b-chunked", "1x1x1", {"layers": 2}),
    "vit6": ("vit-large", "1x1x1", {}),
    "translator": ("translator", "1x1x1", {}),
    "lstm": ("lstm", "1x1x1", {}),
    "linrec": ("linear-recurrence", "1x1x1", {}),
    "resnet": ("resnet-50", "1x1x1", {}),
    "unet": ("unet", "1x1x1", {}),
    "moe": ("moe-tiny-onehot", "1x1x1", {"batch": 64}),
    "moe2": ("moe-8x7b-scan", "1x1x8", {"layers": 2, "batch": 16}),
    "fsdp4": ("fsdp-scan", "1x1x8", {"layers": 4}),
    "fsdpm2": ("fsdp-manual", "1x1x8", {"layers": 2}),
    "twoaxes2": ("two-axes-scan", "1x1x8", {"layers": 2}),
    "llama4": ("llama3-8b-scan", "1x1x8", {"layers": 4}),
}


def sizes(module, devices: int) -> dict:
    """What the estimator is told of a program for several devices."""
    shards = sharding.shards(module) if devices > 1 else None
    return {} if shards is None else {"shards": shards}


def estimated(module, request: dict) -> int:
    """Predicted temporary bytes on one device of a `farrier._core.Module`."""
    return json.loads(module.query("memory.estimate", json.dumps(request)))["temp"]


def judged(module, request: dict, measured: int, held) -> dict:
    """The estimate beside the compile, bytes: how much of the measured it is off by without and with corrections.

    Args:
      module: the program, a `farrier._core.Module`.
      request: what the query is told of a device's sizes.
      measured: temporary bytes of its compile.
      held: what the compile held (`corrections.held`).
    """
    estimate = estimated(module, request)
    found = corrections.corrections(module, request, held, measured)
    corrected = estimated(module, {**request, "measured": found})
    return {
        "estimated_temp_bytes": estimate,
        "measured_temp_bytes": measured,
        "error": round(estimate / measured - 1, 5),
        "corrected_temp_bytes": corrected,
        "corrected_error": round(corrected / measured - 1, 5),
    }


def row(tag: str, module, measured: int, held) -> dict:
    """One result: the program, and what `judged` says of it."""
    name, topology, options = PROGRAMS[tag]
    request = sizes(module, 8 if topology.endswith("8") else 1)
    program = {"program": tag, "workload": name, "topology": topology, "options": options}
    return program | judged(module, request, measured, held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="PROGRAM", choices=sorted(PROGRAMS))
    parser.add_argument("--output", type=pathlib.Path, help="JSON")
    args = parser.parse_args()
    console, found = Console(), []
    table = Table(
        "program", "estimated", "measured", "off", "corrected", title="temporary GB, H100, deviceless"
    )
    for tag, (name, topology, options) in PROGRAMS.items():
        if args.only and tag not in args.only:
            continue
        target = farrier.Target("h100", topology=topology)
        lowered = workloads.build(name, target, **options).lower()
        module = interchange.to_core(lowered.compiler_ir("stablehlo"))
        measured = oracle.measure(lowered.compiler_ir("stablehlo"), target, held=True)
        each = row(tag, module, measured.temp_bytes, measured.held)
        found.append(each)
        bytes_ = (each["estimated_temp_bytes"], each["measured_temp_bytes"])
        off = (each["error"], each["corrected_error"])
        table.add_row(tag, *(f"{size / 1e9:.3f}" for size in bytes_), *(f"{error:+.1%}" for error in off))
        jax.clear_caches()
    console.print(table)
    for key, what in (("error", "before any compile"), ("corrected_error", "corrected by it")):
        errors = [abs(each[key]) for each in found]
        console.print(f"{what}: mean error {statistics.mean(errors):.1%}, worst {max(errors):.1%}")
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
