"""How near the second compile lands: for every unseen program (`benchmarks/unseen`) the first plan after the compile of the
program as it is written, which the estimate is corrected by, predicted and as XLA:GPU measures it. A plan is for half of what
the program can give: the budget is halfway between its temporaries, as estimated, and the least that any plan is believed to take.

    python benchmarks/remat/first_plans.py --output first_plans.jsonl           # goes on where it was interrupted
    python benchmarks/remat/first_plans.py --output first_plans.jsonl --show    # only the table

Programs of which no plan frees a twentieth are left out of the figures. Rematerialization on the device alone.
"""

from __future__ import annotations

import statistics
import types
from typing import Any

import farrier
from farrier._src import corrections, interchange, oracle
from farrier._src.drivers.remat import RematDriver
from programs import lowered, measure_each
from rich.console import Console
from rich.table import Table

# Of a program's temporaries, what a plan frees at the least.
_FREES = 0.05


def first_plan(name: str) -> dict[str, Any]:
    """The first plan of one program: bytes of temporaries on a device, without "measured_bytes" where there is none."""
    step, target = lowered(name)
    program = step.compiler_ir("stablehlo")
    module, written = interchange.to_core(program), oracle.measure(program, target, held=True)
    context = types.SimpleNamespace(
        partitions=target.device_count, target=target, objective="time", platform="cuda"
    )
    driver = RematDriver(farrier.Remat(offload=False))
    found = corrections.corrections(module, driver.sizes(module, context), written.held, written.temp_bytes)

    def plan(budget: int) -> Any:
        return driver.plan(module, context, temp_budget=budget, host=False, measured=found)

    row = {"written_bytes": written.temp_bytes}
    least = plan(1)
    if least is None or least["predicted"]["after"] > (1 - _FREES) * least["predicted"]["before"]:
        return row
    budget = (least["predicted"]["after"] + least["predicted"]["before"]) // 2
    decided = plan(budget)
    if decided is None:
        return row
    if stale := driver.apply(module, decided):
        raise farrier.PassError(f"{name}: the plan was not applied: {stale[0]}")
    measured = oracle.measure(interchange.to_jaxlib(module), target)
    predicted = decided["predicted"]
    return row | {
        "budget_bytes": budget,
        "predicted_bytes": predicted["after"],
        "measured_bytes": measured.temp_bytes,
        "cost_seconds": predicted["seconds"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "part", "program", "written", "budget", "predicted", "measured", "off", title="temporary MB, H100"
    )
    errors = []
    for row in rows:
        if "measured_bytes" not in row:
            continue
        errors.append(row["predicted_bytes"] / row["measured_bytes"] - 1)
        sizes = (row[f"{what}_bytes"] for what in ("written", "budget", "predicted", "measured"))
        table.add_row(
            row["part"], row["program"], *(f"{size / 1e6:.1f}" for size in sizes), f"{errors[-1]:+.1%}"
        )
    console = Console()
    console.print(table)
    if errors:
        off = sorted(map(abs, errors))
        console.print(
            f"{len(off)} plans: mean {statistics.mean(off):.1%}, median {statistics.median(off):.1%}, worst {off[-1]:.1%}; "
            f"{sum(error <= 0.015 for error in off)} within 1.5 %, {sum(error >= 0.1 for error in off)} by 10 % or more; "
            f"{statistics.mean(errors):+.1%} on average"
        )


if __name__ == "__main__":
    measure_each(__doc__, first_plan, show)
