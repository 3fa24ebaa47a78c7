"""What the full matrix says: budgets for it, and the page of wins and losses.

    python benchmarks/matrix.py budgets RESULTS.json... -o benchmarks/suites/budgets.toml
    python benchmarks/matrix.py page RESULTS.json... -o docs/results.md --plots benchmarks/results/plots

`budgets` gives farrier the memory of the `jax.checkpoint` policies that no other policy beats. `page` compares at
each such policy: farrier's FLOPs within the policy's memory, and farrier's memory within the policy's FLOPs.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import tomllib
from collections.abc import Iterable

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import matrix_page
from farrier._src.bench.suite import load_suite
from farrier.bench import Result, load, with_reference

# Budgets closer than this to one that is there already ask the same question.
_APART = 0.02


def read(paths: Iterable[pathlib.Path]) -> tuple[list[Result], dict[str, str]]:
    """The results of several runs, the last one of each, FLOPs above the un-annotated program's; versions.

    The versions' entry ``commits`` says which file was measured at which commit of this project.
    """
    found: dict[str, Result] = {}
    environment: dict[str, str] = {}
    commits = []
    for path in paths:
        run = load(path)
        environment.update(run.environment)
        found.update((r.id, r) for r in run.results)
        commits.append(f"`{path.name}` {run.commit['id'][:8]}")
    return with_reference(found.values(), "unannotated"), {**environment, "commits": ", ".join(commits)}


def by_case(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by case and target."""
    out: dict[tuple[str, str], list[Result]] = collections.defaultdict(list)
    for r in results:
        out[r.case, r.target].append(r)
    return dict(out)


def budgets(results: list[Result], count: int) -> list[int]:
    """Up to `count` budgets in bytes, largest first: the least and the most memory, and those between."""
    totals = sorted((matrix_page.total(r) for r in matrix_page.frontier_policies(results)), reverse=True)
    chosen: list[int] = []
    for t in totals:
        rounded = -(-int(t) // matrix_page.ROUNDED) * matrix_page.ROUNDED
        if not chosen or rounded < (1 - _APART) * chosen[-1]:
            chosen.append(rounded)
    if len(chosen) <= count:
        return chosen
    return [chosen[round(k * (len(chosen) - 1) / (count - 1))] for k in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("budgets", "page"):
        command = commands.add_parser(name)
        command.add_argument("results", nargs="+", type=pathlib.Path)
        command.add_argument("-o", "--output", type=pathlib.Path, required=True)
        if name == "budgets":
            command.add_argument("--count", type=int, default=3, help="budgets a case (default 3)")
        else:
            command.add_argument("--plots", type=pathlib.Path, help="folder of the plots to show")
    args = parser.parse_args()
    results, environment = read(args.results)
    if args.command == "page":
        suite = pathlib.Path(__file__).parent / "suites" / "full.py"
        planned = {(c.name, target, o.name) for c, target, o in load_suite(suite).pairs()}
        missing = planned - {(r.case, r.target, r.options) for r in results}
        text = matrix_page.render(by_case(results), environment, args.output, args.plots, missing=missing)
        args.output.write_text(text, encoding="utf-8")
        return
    known = tomllib.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    for (case, _), found in by_case(results).items():
        if chosen := budgets(found, args.count):
            known[case] = chosen
    lines = [
        "# Bytes; written by benchmarks/matrix.py budgets.",
        *(f"{k} = {v}" for k, v in sorted(known.items())),
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
