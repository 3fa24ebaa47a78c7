"""The frontier at three budgets: what farrier recomputes there, and the best `jax.checkpoint` policy that fits.

A budget of p per cent is floor + p * (as written - floor), in temporaries; the floor is what the step needs with
``nothing_saveable`` around each layer. Policies that use host memory rival only the searches that may use it.

    python benchmarks/remat/points.py --output points.jsonl             # goes on where it was interrupted
    python benchmarks/remat/points.py --output points.jsonl --again     # farrier's rows anew, policies as they are
    python benchmarks/remat/points.py --output points.jsonl --show      # only the table
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import farrier
from farrier._src import oracle
from lines import Lines, main, memory_cells

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import workloads
from workloads import remat_policies

# workload, topology, options
CASES = {
    "scan": ("llm-1b-scan", "1x1x1", {}),
    "unrolled": ("llm-1b", "1x1x1", {}),
}
SHARES = (0.75, 0.5, 0.25)
# All but those that keep everything, and one that nobody would take without attention's result.
POLICIES = [name for name in remat_policies.names() if name not in ("none", "everything", "names-qkv")]
STEPS = {"farrier, no host memory": False, "farrier": True}
FIELDS = ("case", "step", "share")


def written(case: str, policy: str) -> dict:
    """The step under a policy, measured; sizes in bytes of one device."""
    name, topology, options = CASES[case]
    target = farrier.Target("h100", topology=topology)
    measurement = oracle.measure(workloads.build(name, target, remat=policy, **options).lower(), target)
    return described(measurement.to_json()) | {"total_bytes": measurement.total_bytes}


def described(measurement: dict) -> dict:
    return {
        "total_bytes": measurement.get("total_bytes"),
        "temp_bytes": measurement["temp_bytes"],
        "host_bytes": measurement["host_temp_bytes"],
        "flops": measurement["flops"],
    }


def searched(case: str, budget: int, *, host: bool, compiles: int) -> dict:
    """What `farrier.optimize` finds within `budget` bytes in total."""
    name, topology, options = CASES[case]
    target = farrier.Target("h100", topology=topology)
    built = workloads.build(name, target, **options)
    step = farrier.optimize(
        built.function,
        memory_budget=budget,
        target=target,
        passes=[farrier.Remat(offload=host)],
        max_compiles=compiles,
    )
    try:
        plan = step.plan(*built.arguments)
    except farrier.BudgetError as error:
        return {"smallest_bytes": error.smallest_bytes}
    attempts = plan.measured.get("attempts", [])
    return described(plan.measured["after"]) | {
        "planned_bytes": plan.measured.get("planned_bytes"),
        "compiles": 1 + len(attempts),
        "attempts": attempts,
        "cost_seconds": plan.passes["remat"]["predicted"]["seconds"] if plan.passes else 0.0,
    }


def run(args: argparse.Namespace, found: Lines) -> None:
    for case in args.only:

        def policy(name: str, case=case) -> dict:
            return found.once({"case": case, "step": name, "share": None}, lambda: written(case, name))

        none, floor = policy("none"), policy("nothing")
        for share in args.shares:
            temp = int(floor["temp_bytes"] + share * (none["temp_bytes"] - floor["temp_bytes"]))
            budget = none["total_bytes"] - none["temp_bytes"] + temp
            for step, host in STEPS.items():
                row = {"case": case, "step": step, "share": share, "budget_bytes": budget}
                found.once(
                    row,
                    lambda b=budget, h=host, c=case: searched(c, b, host=h, compiles=args.max_compiles),
                    again=args.again,
                )
        for name in args.policies:
            policy(name)


def best(policies: list[dict], budget: int, *, host: bool) -> dict | None:
    """The policy of the fewest FLOPs within the budget."""
    fitting = [p for p in policies if p["total_bytes"] <= budget and (host or not p["host_bytes"])]
    return min(fitting, key=lambda p: (p["flops"], p["total_bytes"]), default=None)


def table(rows: list[dict]) -> str:
    """The rows as Markdown; temporaries in GB."""
    out = [
        "| step | share | budget | host memory | measured | in host memory | FLOPs | compiles | best policy that fits |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        mine = [row for row in rows if row["case"] == case]
        none = next((row for row in mine if row["step"] == "none"), None)
        policies = [row for row in mine if row["share"] is None and row["step"] != "none"]
        for row in sorted(
            (row for row in mine if row["share"] is not None),
            key=lambda r: (-r["share"], r["step"] == "farrier"),
        ):
            fixed = none["total_bytes"] - none["temp_bytes"]
            host = row["step"] == "farrier"
            cells = [
                case,
                f"{100 * row['share']:.0f} %",
                f"{(row['budget_bytes'] - fixed) / 1e9:.2f} GB",
                "allowed" if host else "forbidden",
            ]
            if "temp_bytes" in row:
                cells += [
                    *memory_cells(row),
                    f"{100 * (row['flops'] / none['flops'] - 1):+.1f} %",
                    str(row["compiles"]),
                ]
            else:
                cells += [f"refused: {(row['smallest_bytes'] - fixed) / 1e9:.2f} GB", "", "", ""]
            rival = best(policies, row["budget_bytes"], host=host)
            cells += [
                f"`{rival['step']}` {rival['temp_bytes'] / 1e9:.2f} GB, "
                f"{100 * (rival['flops'] / none['flops'] - 1):+.1f} %"
                if rival
                else "none"
            ]
            out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--max-compiles", type=int, default=3)
    main(parser, FIELDS, run, lambda rows: print(table(rows)))
