"""How far the planner's choices are from optimal, by an exact reference.

For each pair of loops of a workload, at several budgets: the cheapest way to stay within the bytes, by

* the planner: a vertex of the minimum cut's hull, or two of them on a range of iterations each;
* HiGHS (through scipy): an integer program over every value of the loop body, uncontracted, in which each
  iteration decides for itself.

    python benchmarks/remat/exact.py llm-1b-scan

With ``--layers n``, a program of so many unrolled layers as a straight line, by the operations of its forward part
(`straight.py`), at budgets between what ``nothing_saveable`` around each layer is estimated to need and the program as
written:

    python benchmarks/remat/exact.py llm-1b --layers 4 --json exact.json
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import straight
from rich.console import Console
from rich.table import Table
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

SHARES = (0.75, 0.5, 0.25)


def exact(pair: dict, budget: int, limit: float = 120) -> tuple[float, float]:
    """Seconds of the optimum within `budget` bytes, and the solver's proven lower bound.

    Variables of each iteration: saved s[v], recomputed y[o]; s[v] + y[o(v)] >= 1 where v is needed, and
    y[o] <= s[u] + y[o(u)] for the operands u of o. Nanoseconds and MiB keep the numbers near one.
    """
    values, trips = pair["candidates"], pair["iterations"]
    operation, operations = [], {}
    for i, v in enumerate(values):
        key = ("group", v["group"]) if v["group"] >= 0 else ("value", i)
        operation.append(operations.setdefault(key, len(operations)))
    n, each = len(values), len(values) + len(operations)
    cost, size, upper = np.zeros(each), np.zeros(each), np.ones(each)
    for i, v in enumerate(values):
        cost[i], size[i] = v["save_seconds"] * 1e6, v["bytes"] / 2**20
        cost[n + operation[i]] += v["seconds"] * 1e6
        if not v["recomputable"]:
            upper[n + operation[i]] = 0
    rows, columns, factors, least = [], [], [], []
    for t in range(trips):
        base = t * each
        for i, v in enumerate(values):
            own = [(i, 1), (n + operation[i], 1)]
            if v["needed"]:
                rows += [len(least)] * 2
                columns += [base + c for c, _ in own]
                factors += [1, 1]
                least.append(1)
            for u in v["operands"] if v["recomputable"] else ():
                terms = [(u, 1), (n + operation[u], 1), (n + operation[i], -1)]
                rows += [len(least)] * 3
                columns += [base + c for c, _ in terms]
                factors += [f for _, f in terms]
                least.append(0)
    count = each * trips
    constraints = [
        LinearConstraint(coo_matrix((factors, (rows, columns)), shape=(len(least), count)).tocsr(), least),
        LinearConstraint(np.tile(size, trips), -np.inf, budget / 2**20),
    ]
    result = milp(
        np.tile(cost, trips),
        constraints=constraints,
        integrality=np.ones(count),
        bounds=Bounds(0, np.tile(upper, trips)),
        options={"time_limit": limit, "mip_rel_gap": 1e-4},
    )
    if result.x is None:
        return float("inf"), float(result.mip_dual_bound or 0) / 1e6
    return float(result.fun) / 1e6, float(result.mip_dual_bound) / 1e6


def compare(pairs: list[dict], shares=SHARES) -> list[dict]:
    """One row for each pair and budget: between the hull's smallest and largest bytes, by share.

    Args:
      pairs: those of the query ``remat.loops``, asked for these `shares`.
    """
    rows = []
    for pair in pairs:
        for share, planned in zip(shares, pair["planned"], strict=True):
            budget = planned["budget_bytes"]
            start = time.perf_counter()
            best, bound = exact(pair, budget)
            rows.append(
                {
                    "pair": pair["key"],
                    "iterations": pair["iterations"],
                    "values": len(pair["candidates"]),
                    "share": share,
                    "budget_bytes": budget,
                    "planned_seconds": planned["seconds"],
                    "exact_seconds": best,
                    "bound_seconds": bound,
                    "solver_seconds": time.perf_counter() - start,
                }
            )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; with `--json`, writes the rows."""
    import farrier
    import workloads
    from farrier import _core
    from farrier._src.drivers import remat

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--target", default="h100")
    parser.add_argument("--layers", type=int, help="of a straight line")
    parser.add_argument(
        "--limit", type=float, default=120, help="seconds of the solver for each straight line"
    )
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args(arguments)
    if options.layers:
        return straight.main(options, SHARES)
    table = Table(
        "workload", "iterations", "values", "share", "GB", "planned ms", "exact ms", "ratio", "solver s"
    )
    everything = []
    target = farrier.Target(options.target)
    request = json.dumps({"shares": SHARES, "machine": remat.machine(target)})
    for name in options.workloads:
        built = workloads.build(name, target)
        module = built.lower().compiler_ir("stablehlo")
        text = module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
        pairs = json.loads(_core.Module.parse(text).query("remat.loops", request))["pairs"]
        for row in compare(pairs):
            everything.append({"workload": name, **row})
            ratio = row["planned_seconds"] / row["exact_seconds"] if row["exact_seconds"] else 1.0
            table.add_row(
                name,
                str(row["iterations"]),
                str(row["values"]),
                f"{row['share']:.0%}",
                f"{row['budget_bytes'] / 1e9:.2f}",
                f"{row['planned_seconds'] * 1e3:.2f}",
                f"{row['exact_seconds'] * 1e3:.2f}",
                f"{ratio:.4f}",
                f"{row['solver_seconds']:.1f}",
            )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
