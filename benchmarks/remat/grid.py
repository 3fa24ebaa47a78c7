"""Budgets kept: six workloads times six budgets, each planned, compiled and measured, and one budget above the need.

The budgets of a workload lie evenly from its floor up to five sixths of the way to what it needs as written, in
temporaries. The floor is what ``jax.checkpoint`` with ``nothing_saveable`` around each layer needs. Of each budget:
whether the measured step keeps it within ``max_compiles``, its recomputed FLOPs, and what each attempt was predicted
and measured to need. The budget above the need is a tenth more than the step takes as written: nothing may change.

    python benchmarks/remat/grid.py --output grid.jsonl             # goes on where it was interrupted
    python benchmarks/remat/grid.py --output grid.jsonl --show      # only the table
    python benchmarks/remat/grid.py --only llm-1b-scan vit-large    # vit-large is one of those beside the six
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable

import farrier
from lines import Lines, main, memory_cells
from steps import Step

# Few layers of full width, so that a compile takes seconds.
GRID = {
    "llm-1b": Step("llm-1b", options={"layers": 4}),
    "llm-1b-scan": Step("llm-1b-scan", options={"layers": 8}),
    "llm-1b-naive": Step("llm-1b-naive", options={"layers": 2}),
    "llm-1b-accumulate": Step("llm-1b-accumulate", options={"layers": 4}),
    "fsdp-scan": Step("fsdp-scan", "1x1x8", {"layers": 4}),
    "translator": Step("translator"),
}
MORE = {name: Step(name) for name in ("vit-large", "unet", "resnet-50", "lstm")}
BUDGETS = 6
ABOVE = 1.1
FIELDS = ("workload", "options", "share")


def searched(step: Step, budget: int, flops: float) -> dict:
    """What `farrier.optimize` finds within `budget` bytes in total; `flops` are those as written."""
    try:
        plan = step.plan(budget, passes=["remat"])
    except farrier.BudgetError as error:
        return {"kept": False, "smallest_bytes": error.smallest_bytes}
    after, attempts = plan.measured["after"], plan.measured.get("attempts", [])
    return {
        "kept": after["total_bytes"] <= budget,
        "total_bytes": after["total_bytes"],
        "temp_bytes": after["temp_bytes"],
        "host_bytes": after["host_temp_bytes"],
        "extra_flops": after["flops"] / flops - 1,
        "changed": plan.input_fingerprint != plan.output_fingerprint,
        "compiles": 1 + len(attempts),
        "attempts": attempts,
        "cost_seconds": plan.passes["remat"]["predicted"]["seconds"] if plan.passes else 0.0,
    }


def timed(measure: Callable[[], dict]) -> Callable[[], dict]:
    """What `measure` gives, and the processor time that it took."""

    def measured() -> dict:
        before = resource.getrusage(resource.RUSAGE_SELF)
        found = measure()
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {**found, "processor_seconds": round(spent, 1)}

    return measured


def run(args: argparse.Namespace, found: Lines) -> None:
    for name in args.only:
        step = (GRID | MORE)[name]
        row = {"workload": name, "options": step.options}
        written = found.once({**row, "share": "as written"}, timed(lambda s=step: s.written("none")))
        floor = found.once({**row, "share": "floor"}, timed(lambda s=step: s.written("nothing")))
        fixed = written["total_bytes"] - written["temp_bytes"]
        need = written["temp_bytes"]
        for i in range(BUDGETS, -1, -1):
            share = round(i / BUDGETS, 3) if i < BUDGETS else ABOVE
            temp = int(floor["temp_bytes"] + share * (need - floor["temp_bytes"]))
            budget = int(ABOVE * written["total_bytes"]) if i == BUDGETS else fixed + temp
            found.once(
                {**row, "share": share, "budget_bytes": budget},
                timed(lambda s=step, b=budget, f=written["flops"]: searched(s, b, f)),
                again=args.again,
            )


def searches(rows: list[dict]) -> list[dict]:
    """The rows that a search gave, for budgets that bind; of each workload the largest first."""
    found = [row for row in rows if isinstance(row["share"], float) and row["share"] < 1]
    names = list(dict.fromkeys(row["workload"] for row in found))
    return sorted(found, key=lambda row: (names.index(row["workload"]), -row["share"]))


def not_monotone(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Pairs of budgets of one workload of which the smaller one's step measures more than 1 per cent above."""
    kept = [row for row in searches(rows) if row["kept"]]
    return [
        (less, more)
        for less in kept
        for more in kept
        if less["workload"] == more["workload"]
        and less["budget_bytes"] < more["budget_bytes"]
        and less["total_bytes"] > 1.01 * more["total_bytes"]
    ]


def table(rows: list[dict]) -> str:
    """The rows as Markdown, and what they come to; temporaries in GB."""
    out = [
        "| step | as written | budget | measured | in host memory | extra FLOPs | compiles |",
        "|---|---|---|---|---|---|---|",
    ]
    written = {row["workload"]: row for row in rows if row["share"] == "as written"}
    for row in searches(rows):
        need = written[row["workload"]]
        fixed = need["total_bytes"] - need["temp_bytes"]
        cells = [
            row["workload"],
            f"{need['temp_bytes'] / 1e9:.2f} GB",
            f"{(row['budget_bytes'] - fixed) / 1e9:.2f} GB ({100 * row['share']:.0f} %)",
        ]
        if "temp_bytes" in row:
            cells += [
                *memory_cells(row),
                f"{100 * row['extra_flops']:+.1f} %",
                str(row["compiles"]),
            ]
        else:
            cells += [f"**not kept**: {(row['smallest_bytes'] - fixed) / 1e9:.2f} GB", "", "", ""]
        out.append("| " + " | ".join(cells) + " |")
    kept = sum(row["kept"] for row in searches(rows))
    above = [row for row in rows if row["share"] == ABOVE]
    same = sum(not row["changed"] and not row["extra_flops"] for row in above)
    out += [
        "",
        f"Kept {kept} of {len(searches(rows))} budgets; {same} of {len(above)} steps unchanged above their need.",
    ]
    for less, more in not_monotone(rows):
        out.append(
            f"Not monotone: {less['workload']}, {less['total_bytes'] / 1e9:.2f} GB for the smaller budget "
            f"({100 * less['share']:.0f} %), {more['total_bytes'] / 1e9:.2f} GB for {100 * more['share']:.0f} %."
        )
    return "\n".join(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*GRID, *MORE], default=list(GRID))
    main(parser, FIELDS, run, lambda rows: print(table(rows)))
