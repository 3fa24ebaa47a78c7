"""What one compile says of single values, and what the memory estimate is corrected by.

The estimate follows rules of what XLA:GPU stores. A compile of the same program shows where it does otherwise: an
elementwise value that was believed to be fused and is a buffer, bytes that live while an operation runs and that no
value of the program stands for. Values are found by JAX's name, source line, type and size, which XLA keeps; points of
the program by the products, loops and reductions that both have in the same order. What cannot be found stays as
the rules have it.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from farrier._src import hlo
from farrier._src.report import dump, estimate, memory, origin
from farrier._src.report.program import Program

# An estimate that is nearer than this to what was measured is not corrected: the rest is other values' order.
_CLOSE = 0.01

# Of what the estimate is off by, what values that XLA stores must explain to be believed of plans, too: names tell apart
# neither what one kernel makes of another nor a value from its copy.
_EXPLAINED = 0.25

# Smaller buffers do not decide whether a step fits.
_SMALL = 4 << 20

# A value that lives for less than this part of the program is working memory, such as a product's copy of an operand.
_LONG = 0.03

# XLA's names of element types that MLIR calls otherwise.
_ELEMENTS = (
    {"pred": "i1", "c64": "complex<f32>", "c128": "complex<f64>"}
    | {
        f"{xla}{bits}": f"{mlir}{bits}"
        for xla, mlir in (("s", "i"), ("u", "ui"))
        for bits in (2, 4, 8, 16, 32, 64)
    }
    | {name: name[:2] + name[2:].upper() for name in memory.ELEMENTS if name.startswith(("f8", "f4"))}
)


def held(artifact: dump.Artifact) -> dict[str, Any]:
    """What a compiled program holds in temporary device memory, as plain data.

    Returns:
      "anchors": [name, most bytes live from there to the next one], the first for what comes before all of them;
      "buffers": [name, source line, element type, elements, how many, how many of them live long], those of 4 MiB and
      more.
    """
    program = Program(hlo.Module(artifact.module))
    profile = memory.MemoryProfile(program, artifact.assignment)
    temporary = {a.index for a in profile.allocations if a.kind == "temp" and a.space == "device"}
    live = profile.series(lambda buffer: buffer.allocation in temporary)
    marks = [("", 0)]
    for name, position in estimate.named(program):
        if position > marks[-1][1]:
            marks.append((name, position))
    ends = [position for _, position in marks[1:]] + [len(live)]
    buffers: dict[tuple, list[int]] = collections.defaultdict(lambda: [0, 0])
    for made, element, elements, life in _stored(artifact.assignment, program, temporary):
        counts = buffers[_name(program.op_name(made)), _line(program.source(made)), element, elements]
        counts[0] += 1
        counts[1] += life >= _LONG * len(program)
    return {
        "anchors": [
            [_name(name), int(live[at:end].max())] for (name, at), end in zip(marks, ends, strict=True)
        ],
        "buffers": [[*key, *counts] for key, counts in sorted(buffers.items())],
    }


def _stored(assignment: Any, program: Program, allocations: set[int]):
    """(instruction that computes it, element type, elements, positions it lives for) of each big value in the given
    allocations.
    """
    uses = origin.Uses(program)
    by_id = {i.proto.id: i for i in program.module.instructions()}
    logical = {b.id: b for b in assignment.logical_buffers}
    for allocation in assignment.buffer_allocations:
        if allocation.index not in allocations:
            continue
        for assigned in allocation.assigned:
            buffer = logical[assigned.logical_buffer_id]
            made = by_id.get(buffer.defined_at.instruction_id)
            if buffer.size < _SMALL or made is None:
                continue
            index = tuple(buffer.defined_at.shape_index)
            life = uses.last((made, index)) - program.position.get(made.proto.id, 0)
            shape = memory.leaf(made.proto.shape, index)
            if made.opcode == "fusion":
                made = made.called[0].root
                if made.opcode == "tuple" and index:
                    made = made.operands[index[0]]
            element = memory.element_text(shape.element_type)
            yield made, _ELEMENTS.get(element, element), math.prod(shape.dimensions), life


def corrections(
    module: Any, request: Mapping[str, Any], seen: Mapping[str, Any], measured: int
) -> dict[str, Any]:
    """What to correct the estimate of a program, and of plans for it, by, given what its own compile held.

    Of what is missing where orders differ nothing is known but how much it is, and a plan orders anew: it stays out.

    Args:
      module: the program, a `farrier._core.Module`.
      request: what queries are told about its sizes.
      seen: what `held` gave.
      measured: temporary bytes of the compile.

    Returns:
      The request entry "measured" of the estimator's and the planner's queries; empty where the estimate is close
      without it, or no closer with it.
    """

    def ask(**more: Any) -> dict[str, Any]:
        return json.loads(module.query("memory.estimate", json.dumps({**request, "planned": True, **more})))

    before = ask(curve=True, elementwise=True)
    if abs(before["temp"] - measured) <= _CLOSE * measured or "curve" not in before:
        return {}
    best, error = {}, abs(before["temp"] - measured)
    found: dict[str, Any] = {"stored": _stored_otherwise(before["elementwise"], seen["buffers"])}
    now = ask(measured=found, curve=True)
    if abs(now["temp"] - measured) > (1 - _EXPLAINED) * error:
        found, now = {}, before
    else:
        best, error = found, abs(now["temp"] - measured)
    if now["temp"] >= measured:
        # What is estimated too high keeps a budget. A plan may have given up what is wrong about it.
        return best
    found = {**found, "extra": _extra(now["curve"], seen["anchors"], measured - now["temp"])}
    return found if abs(ask(measured=found)["temp"] - measured) < error else best


def _stored_otherwise(rows: Sequence[Sequence[Any]], buffers: Sequence[Sequence[Any]]) -> dict[str, bool]:
    """Elementwise values that XLA stores more often than the estimate counts, by the operation's number."""
    counts = {tuple(key): (count, long) for *key, count, long in buffers}
    groups: dict[tuple, list[tuple[int, bool, int]]] = {}
    for number, name, line, element, elements, stored, copies in rows:
        groups.setdefault((_name(name), line, element, elements), []).append((number, stored, copies))
    result: dict[str, bool] = {}
    for key, members in groups.items():
        count, long = counts.get(key, (0, 0))
        more = count - sum(stored or copies for _, stored, copies in members)
        for number, stored, copies in members:
            # What products were believed to copy and XLA keeps for long is the value itself.
            if not stored and (long > 0 if copies else more > 0):
                result[str(number)] = True
                long -= 1
                more -= not copies
    return result


def _between(
    curve: Mapping[str, Any], anchors: Sequence[Sequence[Any]]
) -> Iterator[tuple[range, Sequence[Sequence[Any]]]]:
    """The parts of the program between points that the compile has, too: operations, and what it has there."""
    names = curve["names"]
    ours = [(_name(names[name]), at) for at, name in enumerate(curve["name"]) if name >= 0]
    theirs = [(name, at) for at, (name, _) in enumerate(anchors)]
    ends = (len(curve["bytes"]), len(anchors))
    points = [(0, 0), *(p for p in estimate.common(ours, theirs) if p[0] > 0), ends]
    for (first, a), (last, b) in itertools.pairwise(points):
        if first < last:
            yield range(first, last), anchors[a:b]


def _extra(curve: Mapping[str, Any], anchors: Sequence[Sequence[Any]], missing: int) -> dict[str, int]:
    """For each operation the bytes that were live between the same two points of the compiled program, beside those
    that the estimate has; by the operation's number.

    Away from the peak XLA's order differs more than at it: never more is taken than the whole is `missing`.
    """
    live, numbers = curve["bytes"], curve["number"]
    result: dict[str, int] = {}
    for operations, there in _between(curve, anchors):
        more = max((most for _, most in there), default=0) - max(live[k] for k in operations)
        more = min(more, missing)
        result.update({str(numbers[k]): more for k in operations if more > 0 and numbers[k] >= 0})
    return result


def _name(name: str) -> str:
    """JAX's name within the manual computation that an operation is in, which StableHLO's names start at."""
    return name.rsplit("/shard_map/", 1)[-1]


def _line(source: str) -> str:
    return source.rsplit("/", 1)[-1]
