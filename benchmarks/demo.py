"""The main job, shown as a table: a 1B-class train step brought under a memory budget for one H100.

The step is plain JAX without any `jax.checkpoint`. Every figure is what XLA:GPU's own compiler says of the
program it compiled for the named target; no GPU is needed. Run by `make demo`.
"""

from __future__ import annotations

import argparse
import time
import warnings

import farrier
import rich.box
import rich.console
import rich.table
from workloads import registry

GB = 1e9


def row(built: registry.Built, target: farrier.Target, budget: str) -> list[str]:
    """Plans the step for one budget; the cells of its row."""
    start = time.perf_counter()
    plan = farrier.optimize(built.function, memory_budget=budget, target=target, passes=["remat"]).plan(
        *built.arguments
    )
    seconds = time.perf_counter() - start
    before, after = plan.measured["before"], plan.measured["after"]
    extra = after["flops"] / before["flops"] - 1
    attempts = plan.measured.get("attempts", [])
    return [
        budget,
        f"{before['total_bytes'] / GB:.2f} GB",
        f"{after['total_bytes'] / GB:.2f} GB",
        f"{after['temp_bytes'] / GB:.2f} GB",
        f"{100 * extra:+.2f} %",
        f"{1 + len(attempts)}",
        f"{seconds:.1f} s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="llm-1b", choices=registry.names())
    parser.add_argument("--target", default="h100")
    parser.add_argument("--budgets", nargs="+", default=["16.3GB", "14.8GB"], metavar="BUDGET")
    arguments = parser.parse_args()
    # A table is the output; what optimize would warn about shows in it.
    warnings.simplefilter("ignore", farrier.OptimizeWarning)

    target = farrier.Target(arguments.target)
    built = registry.build(arguments.workload, target)
    console = rich.console.Console()
    table = rich.table.Table(
        "budget",
        "before",
        "after",
        "of it temporary",
        "FLOPs",
        "compiles",
        "time",
        title=f"{arguments.workload}, one train step, {target.name}: total device memory as XLA measures it",
        box=rich.box.SIMPLE_HEAD,
    )
    for column in table.columns:
        column.justify = "right"
    for budget in arguments.budgets:
        with console.status(f"planning for {budget} ..."):
            cells = row(built, target, budget)
        table.add_row(*cells)
    console.print(table)
    console.print(
        "FLOPs: recomputed, relative to the step as written. Repeated runs answer from the plan cache.",
        style="dim",
    )


if __name__ == "__main__":
    main()
