"""What an order planned with one parameter set does when another is the truth.

    python benchmarks/collectives/mismatch.py [WORKLOAD ...] [--target h100] [--out benchmarks/results/collectives]

By default `optimize` keeps an order only where it is not slower under both of a target's parameter sets. Here each
order is planned with one set, as a user's own measured figures would be (a set alone is guarded by itself at half
speed), and scored with the other, which it never saw: how wrong may the figures be before scheduling by them costs
something? One compile a workload; XLA's scheduled program is caught in the compile and
reordered there, within the memory that `run.py` allows. Simulated figures, see docs/collectives.md.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterable

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from farrier import Target
from farrier._src import hlo, oracle
from farrier._src.collectives import drive, parameters, schedule
from jax.extend import xla
from run import CASES, arguments, markdown, ms

# The most that a step may lose, as a part of XLA's.
ALLOWED = 0.003


def scheduled_module(module, target: Target) -> tuple[hlo.Module, oracle.Compiled]:
    """The program as XLA's scheduler leaves it, and the compiled one."""
    caught: list[bytes] = []
    stage = xla.PipelineStage.POST_SCHEDULER

    def catch(data: bytes) -> None:
        caught.append(data)

    target.topology_desc()  # loads the compiler that the hook registers with
    xla.register_hlo_module_transformation(catch, name="catch", stage=stage, platforms=["cuda"])
    try:
        compiled = oracle.compile_module(module, target, compiler_options=drive.STATISTICS)
    finally:
        xla.clear_hlo_module_transformation("catch", stage=stage, platforms=["cuda"])
    # XLA compiles small modules of its own on the way; the step is the largest.
    return hlo.Module(max(caught, key=len)), compiled


def measure(name: str, target_name: str) -> dict:
    """Plans one workload with each set and scores with every set; the result as plain data."""
    case = CASES[name]
    target = case.target(target_name)
    sets = parameters.for_target(target)
    lowered = case.lowered(target)  # keeps its partitioning callbacks alive
    module, compiled = scheduled_module(lowered.compiler_ir("stablehlo"), target)
    # Kernels at XLA's estimates, which only the final program carries, the same for every order.
    costs = dict(schedule.plan(compiled.hlo(), target, sets).costs)
    room = int(case.growth * compiled.measurement.total_bytes)
    before = schedule.simulate(module, target, sets, frozen=dict(costs))
    rows = []
    for planned in sets:
        plan = schedule.plan(
            module, target, parameters.guarded((planned,)), memory_growth_bytes=room, frozen=costs
        )
        new, _ = schedule.reschedule(module, plan)
        after = (
            before if new is None else schedule.simulate(hlo.Module(new), target, sets, frozen=dict(costs))
        )
        for b, a in zip(before, after, strict=True):
            rows.append(
                {
                    "planned": planned.name,
                    "scored": a.parameters,
                    "xla_seconds": round(b.seconds, 9),
                    "seconds": round(a.seconds, 9),
                }
            )
    return {
        "workload": name,
        "letter": case.letter,
        "target": f"{target.name} {target.topology}",
        "rows": rows,
    }


def table(results: list[dict]) -> str:
    """The results as a Markdown table."""
    rows = [
        (
            r["letter"],
            r["workload"],
            row["planned"],
            row["scored"],
            ms(row["xla_seconds"]),
            ms(row["seconds"]),
            f"{row['seconds'] / row['xla_seconds'] - 1:+.2%}",
        )
        for r in results
        for row in r["rows"]
    ]
    lines = [
        "Simulated, milliseconds a step. Planned with one parameter set (guarded by itself at half speed), scored with each; the rows that count",
        f"are those where the two differ: none may be worse than XLA's own order by more than {ALLOWED:.1%}.",
        "",
        *markdown(("", "workload", "planned with", "scored with", "XLA", "ours", ""), rows),
        "",
        f"Worst where planned and scored differ: {worst(results):+.2%}.",
    ]
    return "\n".join(lines) + "\n"


def worst(results: Iterable[dict]) -> float:
    """The largest growth of a step over XLA's default, where it is planned with one set and scored with another."""
    return max(
        row["seconds"] / row["xla_seconds"] - 1
        for r in results
        for row in r["rows"]
        if row["planned"] != row["scored"]
    )


def main() -> int:
    """Runs the command line; 1 when a workload loses more than is allowed."""
    args = arguments(__doc__.splitlines()[0])
    path = args.out / f"{args.target}-mismatch.jsonl"
    known = {}
    if path.exists():
        known = {r["workload"]: r for r in map(json.loads, path.read_text("utf-8").splitlines())}
    for name in args.names:
        known[name] = measure(name, args.target)
        results = sorted(known.values(), key=lambda r: r["letter"])
        path.write_text("".join(json.dumps(r) + "\n" for r in results), encoding="utf-8")
        (args.out / "mismatch.md").write_text(table(results), encoding="utf-8")
        print(name, flush=True)
    return int(worst(known.values()) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
