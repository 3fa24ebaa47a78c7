"""Draws results of the full suite: `python benchmarks/plots.py RESULTS.json... -o FOLDER`.

For each workload and target one frontier (device memory against recomputed FLOPs; every option
set a point, the un-dominated ones joined per family) and bars of exposed communication.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Iterable

import matplotlib
from farrier.bench import Metric, Result, load

matplotlib.use("agg")
from matplotlib.figure import Figure

# Family by the option set's name; colours are Okabe and Ito's, told apart by colour-blind readers.
FAMILIES = (
    ("farrier", r"farrier", "#D55E00", "o"),
    ("jax.checkpoint", r"checkpoint-", "#0072B2", "s"),
    ("XLA rematerialization", r"xla-remat-", "#009E73", "^"),
    ("XLA flags", r"flags-", "#CC79A7", "D"),
    ("enzyme_ad", r"enzyme", "#F0E442", "P"),
    ("un-annotated", r"unannotated|plain", "#000000", "*"),
)


def family(options: str) -> tuple[str, str, str]:
    """The name, colour and marker of an option set's family."""
    for name, pattern, colour, marker in FAMILIES:
        if re.match(pattern, options):
            return name, colour, marker
    return "other", "#999999", "x"


def undominated(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both coordinates, by the first one."""
    out: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not out or y < out[-1][1]:
            out.append((x, y))
    return out


def frontier(results: list[Result], title: str) -> Figure:
    """Total device memory (GB) against recomputed FLOPs (percent of the un-annotated program's)."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    plain = next((r for r in results if family(r.options)[0] == "un-annotated"), None)
    base = plain.metrics["flops"].value if plain is not None else None
    families: dict[str, list[tuple[float, float]]] = {}
    for r in results:
        flops = r.metrics["flops"].value
        point = (r.metrics["total_bytes"].value / 1e9, 100 * (flops / base - 1) if base else flops)
        families.setdefault(family(r.options)[0], []).append(point)
    for name, _, colour, marker in FAMILIES:
        points = families.get(name)
        if not points:
            continue
        axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, label=name, s=36, zorder=3)
        axes.step(*zip(*undominated(points), strict=True), where="post", color=colour, lw=1, alpha=0.6)
    axes.set_xlabel("total device memory [GB]")
    axes.set_ylabel("recomputed FLOPs [% of the un-annotated step]" if base else "FLOPs")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


# By farrier's simulator where a result has that, else by the benchmark's simple model.
EXPOSED = ("simulated_exposed_seconds", "exposed_seconds")


def _exposed(r: Result) -> Metric:
    return next(r.metrics[name] for name in EXPOSED if name in r.metrics)


def exposed(results: list[Result], title: str) -> Figure:
    """Exposed and hidden communication (ms by the results' cost model), one bar an option set."""
    shown = sorted(
        (r for r in results if EXPOSED[0] in r.metrics or EXPOSED[1] in r.metrics),
        key=lambda r: _exposed(r).value,
    )
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    out = [1e3 * _exposed(r).value for r in shown]
    names = [r.options for r in shown]
    axes.barh(names, out, color="#D55E00", label="exposed")
    if all(EXPOSED[0] not in r.metrics for r in shown):
        hidden = [1e3 * r.metrics["overlapped_seconds"].value for r in shown]
        axes.barh(names, hidden, left=out, color="#56B4E9", label="hidden by compute")
    axes.invert_yaxis()
    model = _exposed(shown[0]).model
    axes.set_xlabel(f"communication of one step [ms, model {model}]")
    axes.set_title(title)
    axes.legend()
    return figure


def main() -> None:
    """Writes one PNG a figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    groups: dict[tuple[str, str], dict[str, Result]] = {}
    for path in args.results:
        for r in load(path).results:
            if r.status == "ok":
                groups.setdefault((r.case, r.target), {})[r.options] = r
    args.output.mkdir(parents=True, exist_ok=True)
    for (case, target), found in sorted(groups.items()):
        results = list(found.values())
        name = re.sub(r"[^\w.\-]+", "_", f"{case}-{target}")
        title = f"{case} on {target}"
        # Flags do not trade memory for FLOPs.
        if len(results) > 1 and not any(r.options.startswith("flags") for r in results):
            frontier(results, title).savefig(args.output / f"{name}-frontier.png", dpi=130)
            print(args.output / f"{name}-frontier.png")
        if any("exposed_seconds" in r.metrics for r in results):
            exposed(results, title).savefig(args.output / f"{name}-exposed.png", dpi=130)
            print(args.output / f"{name}-exposed.png")


if __name__ == "__main__":
    main()
