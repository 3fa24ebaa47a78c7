"""How far the estimator is from XLA:GPU before any compile: temporary bytes of programs as they are written.

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
from farrier._src import interchange, oracle, sharding
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


def estimated(module, devices: int) -> int:
    """Predicted temporary bytes on one device of a `farrier._core.Module`."""
    shards = sharding.shards(module) if devices > 1 else None
    request = {} if shards is None else {"shards": shards}
    return json.loads(module.query("memory.estimate", json.dumps(request)))["temp"]


def row(tag: str, estimate: int, measured: int) -> dict:
    """One result; bytes, and how much of the measured bytes the estimate is off by."""
    name, topology, options = PROGRAMS[tag]
    return {
        "program": tag,
        "workload": name,
        "topology": topology,
        "options": options,
        "estimated_temp_bytes": estimate,
        "measured_temp_bytes": measured,
        "error": round(estimate / measured - 1, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="PROGRAM", choices=sorted(PROGRAMS))
    parser.add_argument("--output", type=pathlib.Path, help="JSON")
    args = parser.parse_args()
    console, found = Console(), []
    table = Table("program", "estimated", "measured", "off", title="temporary GB, H100, deviceless")
    for tag, (name, topology, options) in PROGRAMS.items():
        if args.only and tag not in args.only:
            continue
        target = farrier.Target("h100", topology=topology)
        lowered = workloads.build(name, target, **options).lower()
        module = interchange.to_core(lowered.compiler_ir("stablehlo"))
        devices = 8 if topology.endswith("8") else 1
        each = row(tag, estimated(module, devices), oracle.measure(lowered, target).temp_bytes)
        found.append(each)
        sizes = (each["estimated_temp_bytes"], each["measured_temp_bytes"])
        table.add_row(tag, *(f"{size / 1e9:.3f}" for size in sizes), f"{each['error']:+.1%}")
        jax.clear_caches()
    console.print(table)
    errors = [abs(each["error"]) for each in found]
    console.print(f"mean error {statistics.mean(errors):.1%}, worst {max(errors):.1%}")
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
