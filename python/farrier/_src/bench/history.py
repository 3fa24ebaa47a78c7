"""Results of many commits in a folder of plain files, and a metric's way through them."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from farrier._src.bench import result as results
from farrier._src.bench.environment import COMPARED
from farrier._src.bench.result import Run
from farrier._src.errors import Error


class HistoryError(Error):
    """The store holds nothing that was asked for."""


def path_for(store: pathlib.Path, run: Run) -> pathlib.Path:
    """Returns the file of a run: ``STORE/<commit>/<suite>-<versions>.json``.

    One commit has one file for each suite and set of versions; running again replaces it.
    """
    versions = "\n".join(f"{k}={run.environment.get(k, '')}" for k in COMPARED)
    short = hashlib.sha256(versions.encode()).hexdigest()[:8]
    suite = re.sub(r"[^\w.\-]+", "_", pathlib.PurePath(run.suite).stem)
    commit = run.commit["id"] + ("-dirty" if run.commit.get("dirty") else "")
    return store / commit / f"{suite}-jax{run.environment.get('jax', '')}-{short}.json"


def add(store: pathlib.Path, run: Run) -> pathlib.Path:
    """Puts a run into the store and returns its file."""
    path = path_for(store, run)
    results.save(run, path)
    return path


def read(store: pathlib.Path) -> list[Run]:
    """Returns the runs of a store by the time of their commit, or their own outside of a repository.

    Raises:
      HistoryError: there is no such folder, or nothing in it.
      ResultError: a file in it is damaged.
    """
    files = sorted(store.glob("*/*.json")) if store.is_dir() else []
    if not files:
        raise HistoryError(f"no results in {store}: `farrier bench SUITE --store {store}` keeps them there")
    runs = [results.load(f) for f in files]
    return sorted(runs, key=lambda r: (_time(r), r.created))


def _time(run: Run) -> float:
    import datetime

    text = run.commit.get("time") or run.created
    return datetime.datetime.fromisoformat(text).timestamp()


@dataclasses.dataclass(frozen=True)
class Point:
    """A metric's value at one commit."""

    commit: str
    time: float
    value: float
    spread: float | None
    jax: str


@dataclasses.dataclass(frozen=True)
class Series:
    """A metric of one result over commits."""

    id: str
    unit: str
    points: tuple[Point, ...]


def series(runs: Iterable[Run], metric: str, *, select: str = "*") -> list[Series]:
    """Returns the values of ``metric`` (a name) for the results whose id matches glob ``select``.

    Raises:
      HistoryError: no run has it.
    """
    found: dict[str, tuple[str, list[Point]]] = {}
    known: set[str] = set()
    for run in runs:
        for r in run.results:
            known.update(r.metrics)
            m = r.metrics.get(metric)
            if m is None or not fnmatch.fnmatchcase(r.id, select):
                continue
            commit = run.commit["id"][:10] + ("+" if run.commit.get("dirty") else "")
            point = Point(commit, _time(run), m.value, m.spread, run.environment.get("jax", ""))
            found.setdefault(r.id, (m.unit, []))[1].append(point)
    if not found:
        raise HistoryError(
            f"no result matching {select!r} has metric {metric!r}; there are {', '.join(sorted(known))}"
        )
    return [Series(k, unit, tuple(points)) for k, (unit, points) in sorted(found.items())]


def plot_text(data: list[Series], metric: str, *, width: int = 100, height: int = 24) -> str:
    """Draws the series for a terminal; the horizontal axis is commits in order, not time."""
    import plotext

    commits, labels = _axis(data)
    plotext.clear_figure()
    plotext.plotsize(width, height)
    plotext.theme("clear")
    for s in data:
        plotext.plot(
            [commits[p.commit] for p in s.points], [p.value for p in s.points], label=s.id, marker="braille"
        )
        plotext.scatter([commits[p.commit] for p in s.points], [p.value for p in s.points])
    plotext.xticks(list(range(len(labels))), labels)
    plotext.xlabel("commit (in order)")
    plotext.ylabel(f"{metric} [{data[0].unit}]")
    text = plotext.build()
    plotext.clear_figure()
    return text


def _axis(data: list[Series]) -> tuple[dict[str, int], list[str]]:
    order: dict[str, float] = {}
    for s in data:
        for p in s.points:
            order.setdefault(p.commit, p.time)
    labels = sorted(order, key=lambda c: order[c])
    return {c: n for n, c in enumerate(labels)}, labels


def plot_file(data: list[Series], metric: str, path: pathlib.Path) -> None:
    """Draws the series into a PNG, SVG or PDF; bars show one standard deviation of noisy metrics.

    Raises:
      HistoryError: matplotlib is not installed, or does not know the suffix.
    """
    try:
        import matplotlib
    except ImportError as e:
        raise HistoryError('a plot in a file needs matplotlib: pip install "farrier[plot]"') from e
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    commits, labels = _axis(data)
    figure = Figure(figsize=(max(6.0, 0.5 * len(labels) + 4), 4.5), layout="constrained")
    axes: Any = figure.add_subplot()
    for s in data:
        x = [commits[p.commit] for p in s.points]
        y = [p.value for p in s.points]
        if any(p.spread for p in s.points):
            axes.errorbar(x, y, yerr=[p.spread or 0.0 for p in s.points], marker="o", capsize=3, label=s.id)
        else:
            axes.plot(x, y, marker="o", label=s.id)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_xlabel("commit (in order)")
    axes.set_ylabel(f"{metric} [{data[0].unit}]" if data[0].unit else metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except ValueError as e:
        raise HistoryError(f"cannot write a plot to {path}: {e}") from e
