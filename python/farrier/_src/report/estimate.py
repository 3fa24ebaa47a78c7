"""The estimate that plans are made with, laid over XLA's own curve: where plan and compile part.

The estimate walks the StableHLO program, the compiled curve XLA's schedule, and the two orders differ. Products,
custom calls, reductions and loops keep JAX's name through the compile; those found in both, in the same order,
are put on the same position, and what lies between two of them is spread evenly.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from farrier._src import hlo, sharding
from farrier._src.report.program import Program

# Operations that XLA neither renames nor melts into another: what both programs have in common.
_ANCHORS = frozenset(
    (
        "all-gather", "all-reduce", "all-to-all", "collective-permute", "convolution", "custom-call", "dot",
        "gather", "ragged-dot", "reduce", "reduce-scatter", "scatter", "sort", "while",
    )
)  # fmt: skip


def estimate(program: Program, stablehlo: Any, *, fixed_bytes: int) -> dict[str, Any]:
    """The ``estimate`` part of a report's document.

    Args:
      program: what XLA made of the module.
      stablehlo: the module before XLA, a `farrier._core.Module`.
      fixed_bytes: device bytes of arguments, results and constants. The estimate is about temporaries; the
        curve stands on these, so that what differs is the estimate alone.

    Returns:
      ``points`` are [position in the compiled program, bytes]. Of a partitioned program they are one device's,
      by Shardy's propagation. Where that cannot be had, sizes of the whole are divided by the number of devices
      (``divided_by``), as if all were sharded over all of them.
    """
    count = max(1, program.module.proto.device_assignment.computation_count)
    split = sharding.shards(stablehlo) if count > 1 else None
    request = {"curve": True} | ({} if split is None else {"shards": split})
    answer = json.loads(stablehlo.query("memory.estimate", json.dumps(request)))
    curve = answer.get("curve") or {"bytes": [], "name": [], "names": [], "manual": False}
    devices = 1 if split is not None or curve["manual"] else count
    names, live = curve["names"], curve["bytes"]
    marks = [(names[n], k) for k, n in enumerate(curve["name"]) if n >= 0]
    anchors = common(marks, list(named(program)))
    points: list[list[float]] = []
    for k, position in enumerate(_spread(anchors, len(live), len(program))):
        total = fixed_bytes + live[k] // devices
        if not points or points[-1][1] != total:
            points.append([round(position, 2), total])
    peak = max((b for _, b in points), default=fixed_bytes)
    return {
        "label": "StableHLO estimate",
        "peak": peak,
        "temp": peak - fixed_bytes,
        "fixed": fixed_bytes,
        "divided_by": devices,
        "anchors": len(anchors),
        "operations": len(live),
        "points": points,
    }


def named(program: Program) -> Iterator[tuple[str, int]]:
    """(JAX's name, position) of the compiled program's anchors, those inside fusions included."""

    def inside(i: hlo.Instruction) -> Iterator[hlo.Instruction]:
        if i.opcode == "fusion":
            for c in i.called:
                for x in c.instructions:
                    yield from inside(x)
        elif i.opcode.removesuffix("-start") in _ANCHORS:
            yield i

    for position, step in enumerate(program.steps):
        for i in inside(step):
            if name := program.op_name(i):
                yield name, position


def common(a: Sequence[tuple[str, int]], b: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """Pairs of places at which both have the same names in the same order; both places rise."""
    shared = {name for name, _ in a} & {name for name, _ in b}
    a, b = [x for x in a if x[0] in shared], [x for x in b if x[0] in shared]
    matcher = difflib.SequenceMatcher(None, [n for n, _ in a], [n for n, _ in b], autojunk=False)
    out: list[tuple[int, int]] = []
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            pair = a[block.a + k][1], b[block.b + k][1]
            if not out or (pair[0] > out[-1][0] and pair[1] > out[-1][1]):
                out.append(pair)
    return out


def _spread(anchors: Sequence[tuple[int, int]], count: int, positions: int) -> list[float]:
    """A position for each of `count` operations: an anchor's own, even steps between anchors."""
    ends = [(0, 0), *(p for p in anchors if p[0] > 0 and p[1] > 0), (count, positions)]
    out: list[float] = []
    for (a, x), (b, y) in itertools.pairwise(ends):
        out += [x + (y - x) * k / (b - a) for k in range(b - a)]
    return out
