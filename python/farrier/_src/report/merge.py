"""Reports of the processes of one job: the same program everywhere, the same collectives in the same order?

Processes that run different programs, or start their collectives in different orders, hang without a message.
Their reports are compared before, or after, that happens.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from farrier._src import errors
from farrier._src.report import model
from farrier._src.report.units import short_source, time


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Where a rank first differs from the majority."""

    rank: int
    what: str
    """``program`` or ``collective order``."""
    index: int
    """Position in program order, or in the list of collectives."""
    expected: str
    found: str
    source: str

    def __str__(self) -> str:
        at = f" [{self.source}]" if self.source else ""
        return (
            f"rank {self.rank}: {self.what} differs first at {self.index}: expected {self.expected}, "
            f"found {self.found}{at}"
        )


@dataclasses.dataclass(frozen=True)
class Merged:
    """What the reports say together.

    Attributes:
      ranks: number of reports.
      agree: whether program and collective order are the same everywhere.
      mismatches: one for each rank and kind that differs.
      slowest: for each collective with measured times, (name, slowest rank, its ns, the median rank's ns).
      step_ns: measured time of a step by rank, where measured.
    """

    ranks: int
    agree: bool
    mismatches: tuple[Mismatch, ...]
    slowest: tuple[tuple[str, int, float, float], ...]
    step_ns: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        head = f"{self.ranks} ranks, " + (
            "the same program and collective order" if self.agree else "they do NOT run the same program"
        )
        lines = [head, *(f"  {m}" for m in self.mismatches)]
        for name, rank, ns, median in self.slowest[:12]:
            lines.append(f"  {name}: slowest on rank {rank}, {time(ns)} (median {time(median)})")
        return "\n".join(lines)

    def __rich__(self) -> Any:
        head, *rest = str(self).split("\n")
        table = Table(box=None, pad_edge=False, show_header=False)
        for line in rest:
            table.add_row(Text(line))
        return Group(Text(head, style="bold" if self.agree else "bold red"), table)


def merge(reports: Sequence[model.Report]) -> Merged:
    """Compares the reports of ranks 0, 1, ... with what most of them say.

    Raises:
      farrier.InputError: fewer than two reports.
    """
    if len(reports) < 2:
        raise errors.InputError("merging needs the reports of at least two processes")
    mismatches = []
    majority = _majority([r.data["module"]["fingerprint"] for r in reports])
    reference = next(r for r in reports if r.data["module"]["fingerprint"] == majority)
    for rank, r in enumerate(reports):
        if r.data["module"]["fingerprint"] != majority:
            mismatches.append(_program(rank, reference, r))
    orders = [tuple(r.data["collective_order"]) for r in reports]
    common = _majority(orders)
    for rank, order in enumerate(orders):
        if order != common:
            at, expected, found = _first(common, order)
            mismatches.append(
                Mismatch(rank, "collective order", at, expected, found, _collective_source(reports[rank], at))
            )
    measured = {rank: r.data["measured"] for rank, r in enumerate(reports) if r.data["measured"]}
    return Merged(
        ranks=len(reports),
        agree=not mismatches,
        mismatches=tuple(mismatches),
        slowest=_slowest(measured, {c["name"] for r in reports for c in r.collectives}),
        step_ns={rank: m["step_ns"] for rank, m in measured.items()},
    )


def _majority(values: Sequence[Any]) -> Any:
    """The most frequent value; of equally frequent ones the lowest rank's."""
    counts = collections.Counter(values)
    return max(counts, key=lambda v: (counts[v], -values.index(v)))


def _first(expected: Sequence[str], found: Sequence[str]) -> tuple[int, str, str]:
    for k, (a, b) in enumerate(zip(expected, found, strict=False)):
        if a != b:
            return k, a, b
    k = min(len(expected), len(found))
    return k, *(str(x[k]) if k < len(x) else "nothing" for x in (expected, found))  # type: ignore[return-value]


def _program(rank: int, reference: model.Report, r: model.Report) -> Mismatch:
    def steps(x: model.Report) -> list[str]:
        p = x.data["program"]
        return [f"{n} {p['shape_table'][s]}" for n, s in zip(p["names"], p["shapes"], strict=True)]

    at, expected, found = _first(steps(reference), steps(r))
    program = r.data["program"]
    source = program["source_table"][program["sources"][at]] if at < len(program["sources"]) else ""
    return Mismatch(rank, "program", at, expected, found, short_source(source))


def _collective_source(r: model.Report, at: int) -> str:
    return short_source(r.collectives[at]["source"]) if at < len(r.collectives) else ""


def _slowest(measured: dict[int, Any], names: set[str]) -> tuple[tuple[str, int, float, float], ...]:
    times: dict[str, dict[int, float]] = collections.defaultdict(dict)
    for rank, m in measured.items():
        for op in m["ops"]:
            if op["name"] in names:
                times[op["name"]][rank] = op["ns"]
    out = []
    for name, by_rank in times.items():
        if len(by_rank) > 1:
            rank = max(sorted(by_rank), key=lambda k: by_rank[k])
            ordered = sorted(by_rank.values())
            out.append((name, rank, by_rank[rank], ordered[(len(ordered) - 1) // 2]))
    return tuple(sorted(out, key=lambda x: (x[3] - x[2], x[0])))
