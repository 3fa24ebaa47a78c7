"""Budgets kept: workloads times budgets, each planned, compiled and measured.

The budgets of a workload lie evenly between its floor and what it needs as written; the floor is what
``jax.checkpoint`` with ``nothing_saveable`` around each layer needs where the workload has that option, else
half of its temporaries. For each budget: whether the measured step keeps it, its recomputed FLOPs, how far the
estimator was off before and after the first correction, compiles and the seconds of planning alone.

    python benchmarks/remat/grid.py                      # all, for one H100
    python benchmarks/remat/grid.py --only llm-1b-scan --points 3
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
import warnings

import farrier
import jax
from farrier._src import interchange, oracle
from farrier._src.drivers import remat
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import workloads

# name, topology, options: few layers of full width, so that a compile takes seconds.
GRID = [
    ("llm-1b", "1x1x1", {"layers": 4}),
    ("llm-1b-scan", "1x1x1", {"layers": 8}),
    ("llm-1b-naive", "1x1x1", {"layers": 2}),
    ("llm-1b-accumulate", "1x1x1", {"layers": 4}),
    ("fsdp-scan", "1x1x8", {"layers": 4}),
    ("translator", "1x1x1", {}),
    ("vit-large", "1x1x1", {"layers": 6}),
    ("unet", "1x1x1", {}),
    ("resnet-50", "1x1x1", {}),
    ("moe-tiny-onehot", "1x1x1", {"batch": 64}),
]


def build(name: str, target: farrier.Target, options: dict) -> workloads.Built:
    known = workloads.options(name)
    return workloads.build(name, target, **{k: v for k, v in options.items() if k in known})


def seconds_to_plan(built: workloads.Built, target: farrier.Target, budget: int) -> float:
    """Of the query alone, on the program as it stands."""
    module = interchange.to_core(built.lower().compiler_ir("stablehlo"))
    request = {"budget": budget, "machine": remat.machine(target)}
    start = time.perf_counter()
    module.query("remat.plan", json.dumps(request))
    return time.perf_counter() - start


def rows(name: str, topology: str, options: dict, points: int):
    target = farrier.Target("h100", topology=topology)
    built = build(name, target, options)
    written = oracle.measure(built.lower(), target)
    fixed = written.total_bytes - written.temp_bytes
    floor = written.temp_bytes // 2
    if "remat" in workloads.options(name):
        floor = oracle.measure(
            build(name, target, {**options, "remat": "nothing"}).lower(), target
        ).temp_bytes
    for i in range(points, -1, -1):
        share = i / points if points else 1.0
        temp = int(floor + share * (written.temp_bytes - floor))
        step = farrier.optimize(built.function, memory_budget=fixed + temp, target=target, passes=["remat"])
        row = {
            "workload": name,
            "options": options,
            "topology": topology,
            "written_temp_bytes": written.temp_bytes,
            "floor_temp_bytes": floor,
            "share": round(share, 3),
            "budget_temp_bytes": temp,
        }
        start = time.perf_counter()
        try:
            plan = step.plan(*built.arguments)
        except farrier.BudgetError as error:
            yield row | {"kept": False, "smallest_temp_bytes": error.smallest_bytes - fixed}
            continue
        after, attempts = plan.measured["after"], plan.measured.get("attempts", [])
        yield row | {
            "kept": after["total_bytes"] <= fixed + temp,
            "temp_bytes": after["temp_bytes"],
            "extra_flops": after["flops"] / written.flops - 1,
            "changed": bool(plan.passes),
            "compiles": 1 + len(attempts),
            "estimate_error": plan.measured["estimate"] / written.temp_bytes - 1,
            "attempt_errors": [a["predicted_temp_bytes"] / a["measured_temp_bytes"] - 1 for a in attempts],
            "plan_seconds": seconds_to_plan(built, target, temp),
            "search_seconds": time.perf_counter() - start,
        }


def table(found: list[dict]) -> Table:
    out = Table(
        "workload", "budget", "measured", "FLOPs", "compiles", "plan", title="temporary GB, H100, deviceless"
    )
    for row in found:
        cells = [row["workload"], f"{row['budget_temp_bytes'] / 1e9:.2f} ({100 * row['share']:.0f} %)"]
        if "temp_bytes" in row:
            cells += [
                f"{row['temp_bytes'] / 1e9:.2f}",
                f"{100 * row['extra_flops']:+.2f} %",
                str(row["compiles"]),
            ]
            cells += [f"{row['plan_seconds']:.2f} s"]
        else:
            cells += [f"not kept: {row['smallest_temp_bytes'] / 1e9:.2f}"]
        out.add_row(*cells)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="WORKLOAD")
    parser.add_argument(
        "--points", type=int, default=5, help="budgets between floor and as written, less one"
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines, appended as they come")
    args = parser.parse_args()
    warnings.simplefilter("ignore", farrier.OptimizeWarning)
    console, found = Console(), []
    for name, topology, options in GRID:
        if args.only and name not in args.only:
            continue
        try:
            for row in rows(name, topology, options, args.points):
                found.append(row)
                console.print_json(json.dumps(row), indent=None)
                if args.output:
                    with args.output.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        except farrier.CompileError as error:
            console.print(f"{name}: {error}")
        jax.clear_caches()
    console.print(table(found))
    kept = sum(row["kept"] for row in found)
    console.print(f"kept {kept} of {len(found)} budgets")


if __name__ == "__main__":
    main()
