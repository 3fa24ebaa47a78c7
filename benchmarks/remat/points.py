"""The frontier at three budgets: what farrier recomputes there, and the best `jax.checkpoint` policy that fits.

A budget of p per cent is floor + p * (as written - floor), in temporaries; the floor is what the step needs with
``nothing_saveable`` around each layer. Policies that use host memory rival only the searches that may use it.

    python benchmarks/remat/points.py --output points.jsonl             # goes on where it was interrupted
    python benchmarks/remat/points.py --output points.jsonl --again     # farrier's rows anew, policies as they are
    python benchmarks/remat/points.py --output points.jsonl --show      # only the table
"""

from __future__ import annotations

import argparse

from lines import Lines, main, memory_cells
from steps import Step
from workloads import remat_policies

CASES = {"scan": Step("llm-1b-scan"), "unrolled": Step("llm-1b")}
SHARES = (0.75, 0.5, 0.25)
# All but those that keep everything, and one that nobody would take without attention's result.
POLICIES = [name for name in remat_policies.names() if name not in ("none", "everything", "names-qkv")]
STEPS = {"farrier, no host memory": False, "farrier": True}
FIELDS = ("case", "step", "share")


def run(args: argparse.Namespace, found: Lines) -> None:
    for case in args.only:

        def policy(name: str, case=case) -> dict:
            return found.once({"case": case, "step": name, "share": None}, lambda: CASES[case].written(name))

        none, floor = policy("none"), policy("nothing")
        for share in args.shares:
            temp = int(floor["temp_bytes"] + share * (none["temp_bytes"] - floor["temp_bytes"]))
            budget = none["total_bytes"] - none["temp_bytes"] + temp
            for step, host in STEPS.items():
                row = {"case": case, "step": step, "share": share, "budget_bytes": budget}
                found.once(
                    row,
                    lambda b=budget, h=host, c=case: CASES[c].searched(b, host=h, compiles=args.max_compiles),
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
