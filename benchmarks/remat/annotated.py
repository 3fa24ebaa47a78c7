"""Steps that people have annotated with `jax.checkpoint`, given more memory than they need: what farrier takes back.

A budget of p per cent is annotated + p * (as written without annotations - annotated), in total bytes.

    python benchmarks/remat/annotated.py --output annotated.jsonl             # goes on where it was interrupted
    python benchmarks/remat/annotated.py --output annotated.jsonl --again     # farrier's rows anew
    python benchmarks/remat/annotated.py --output annotated.jsonl --show      # only the table
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools

from lines import Lines, main
from steps import Step

CASES = {
    "unrolled": Step("llm-1b", options={"layers": 4}),
    "scan": Step("llm-1b-scan", options={"layers": 4}),
    "scan, attention in chunks": Step("llm-1b-scan", options={"layers": 4, "attention": "chunked"}),
    "accumulating gradients": Step("llm-1b-accumulate", options={"layers": 2}),
    "vit-large": Step("vit-large", options={"layers": 4}),
    "FSDP on 8, scan": Step("fsdp-scan", "1x1x8", {"layers": 4}),
}
POLICIES = ("nothing", "dots-no-batch")
SHARES = (0.0, 0.5, 1.0)
FIELDS = ("case", "policy", "share")


def run(args: argparse.Namespace, found: Lines) -> None:
    for case, policy in itertools.product(args.only, args.policies):
        step = CASES[case]
        none, written = (
            found.once({"case": case, "policy": name, "share": None}, lambda n=name, s=step: s.written(n))
            for name in ("none", policy)
        )
        annotated = dataclasses.replace(step, options={**step.options, "remat": policy})
        for share in SHARES:
            budget = int(written["total_bytes"] + share * (none["total_bytes"] - written["total_bytes"]))
            found.once(
                {"case": case, "policy": policy, "share": share, "budget_bytes": budget},
                lambda b=budget, a=annotated: a.searched(b, host=False, compiles=args.max_compiles),
                again=args.again,
            )


def table(found: Lines) -> str:
    """The rows as Markdown: totals in GB, FLOPs above those of the step without annotations."""
    out = [
        "| step | under | needs | FLOPs | budget | farrier | FLOPs | compiles |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found.rows():
        if row["share"] is None:
            continue
        none, written = (
            found.get({"case": row["case"], "policy": name, "share": None})
            for name in ("none", row["policy"])
        )

        def above(flops: float, none=none) -> str:
            return f"{100 * (flops / none['flops'] - 1):+.1f} %"

        cells = [
            row["case"],
            f"`{row['policy']}`",
            f"{written['total_bytes'] / 1e9:.2f} GB",
            above(written["flops"]),
            f"{row['budget_bytes'] / 1e9:.2f} GB",
        ]
        if "flops" in row:
            cells += [f"{row['total_bytes'] / 1e9:.2f} GB", above(row["flops"]), str(row["compiles"])]
        else:
            cells += [f"refused: {row['smallest_bytes'] / 1e9:.2f} GB", "", ""]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--max-compiles", type=int, default=3)
    main(parser, FIELDS, run, lambda rows: print(table(Lines.of(rows, FIELDS))))
