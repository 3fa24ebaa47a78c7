"""What a plan made with one parameter set does when another is the truth.

    python benchmarks/collectives/mismatch.py [WORKLOAD ...] [--target h100] [--out benchmarks/results/collectives]

By default `optimize` keeps a result only where it is not slower under both of a target's parameter sets. Here each
plan is made with one set, as a user's own measured figures would be (a set alone is guarded by itself at half
speed), and scored with the other, which it never saw: how wrong may the figures be before planning by them costs
something? Everything that `optimize` would try is tried: our order, collectives that move across iterations, buckets,
and every form of programs that state their collectives, within the memory that `run.py` allows. Programs that both
plans ask for are compiled once. Simulated figures, see docs/collectives.md.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from run import CASES, Workload, arguments, markdown, ms

# The most that a step may lose, as a part of XLA's.
ALLOWED = 0.003


def measure(workload: Workload) -> dict:
    """Plans one workload with each set and scores with every set; the result as plain data."""
    sets = workload.sets
    rows = []
    for planned in sets:
        found = workload.improve(parameters=(planned,), judges=[s for s in sets if s is not planned])
        pairs = zip(found.simulated_before, found.simulated_after, strict=True)
        scored = {b.parameters: (b, a) for b, a in pairs}
        for before, after in (scored[s.name] for s in sets):
            rows.append(
                {
                    "planned": planned.name,
                    "scored": after.parameters,
                    "form": found.variant.name if found.variant else None,
                    "moved": found.prepared is not None and found.prepared.changed,
                    "xla_seconds": round(before.seconds, 9),
                    "seconds": round(after.seconds, 9),
                }
            )
    return {
        "workload": workload.name,
        "letter": workload.case.letter,
        "target": f"{workload.target.name} {workload.target.topology}",
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
            ", ".join([*([row["form"]] if row["form"] else []), *(["moved"] if row["moved"] else [])]),
        )
        for r in results
        for row in r["rows"]
    ]
    lines = [
        "Simulated, milliseconds a step. Planned with one parameter set (guarded by itself at half speed), scored with each; the rows that count",
        f"are those where the two differ: none may be worse than XLA's default by more than {ALLOWED:.1%}. Form: of a program that",
        "states its collectives; moved: buckets, and collectives across the iterations of loops.",
        "",
        *markdown(("", "workload", "planned with", "scored with", "XLA", "ours", "", "form"), rows),
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
    folder = tempfile.TemporaryDirectory()
    for name in args.names:
        known[name] = measure(Workload(name, args.target, kernels=os.path.join(folder.name, "kernels")))
        results = sorted(known.values(), key=lambda r: list(CASES).index(r["workload"]))
        path.write_text("".join(json.dumps(r) + "\n" for r in results), encoding="utf-8")
        (args.out / "mismatch.md").write_text(table(results), encoding="utf-8")
        print(name, flush=True)
    return int(worst(known.values()) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
