"""Where the final kernels move bytes that a better program would not: edges and kernels, ranked.

An *edge* is one value that a kernel writes to device memory and others read back. It costs one write and one
read per reader; what of that another program could avoid depends on who stands at its ends:

| writer | readers | could be | avoids |
|---|---|---|---|
| matrix product much smaller in its inputs than in its result | any | computed tile by tile where it is read | all |
| matrix product | element by element, reductions | the product's epilogue | all |
| element by element | the same | one kernel | all, but its inputs are read again |
| element by element | matrix products | the products' prologue | all, but its inputs are read again |
| any | several that are no matrix products | readers sharing one read | all reads but one |

These are upper bounds: a kernel that does everything at once may need more registers than there are. The sums
count every write and read once, however many edges it belongs to.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from farrier._src import hlo
from farrier._src.hlo import traffic
from farrier._src.report import cost as cost_lib
from farrier._src.report import origin
from farrier._src.report.kernels import stem
from farrier._src.report.memory import shape_text
from farrier._src.report.program import Program

MIN_BYTES = 1 << 20
"""Smaller values stay in the L2 cache of every supported GPU (40 MiB and more) between two kernels."""
_TILE = 4
"""A product whose result is this many times larger than what it reads is cheaper to repeat than to store."""
_TINY = 8
"""A value this many times larger than what it is made from is cheaper to make again than to store."""
_VIEWS = ("bitcast", "get-tuple-element", "copy-done", "opt-barrier", "optimization-barrier", "reshape")
_NOT_LOCAL = frozenset(
    ("reduce", "reduce-window", "scatter", "sort", "select-and-scatter", "dot", "convolution")
)
_RELABEL = ("bitcast", "convert", "copy", "reshape", "transpose", "multiply", "select")

ADVICE: Mapping[str, str] = {
    "attention": "farrier's fusion pass substitutes flash attention: scores never reach memory",
    "cross-entropy": "farrier's fusion pass runs it in chunks of tokens: logits never exist whole",
    "tile": "compute the product in chunks of rows where it is read",
    "epilogue": "let the product's epilogue do it: fewer readers, or readers in the product's own type and layout",
    "fuse": "one kernel could do both: look for a barrier, a transpose or a reduction between them",
    "prologue": "let the products read the inputs: fewer products of one value, or a cheaper producer",
    "recompute": "make it again where it is read: it is far larger than what it is made from",
    "share": "its readers could share one read: bring their shapes and layouts together",
}
"""What to do about each kind."""
_BY_PASS = ("attention", "cross-entropy")


@dataclasses.dataclass(frozen=True)
class Edge:
    """Equal values of one source line, sums over one step on one device."""

    kind: str
    """A key of `ADVICE`."""
    removable_bytes: int
    """At most this much traffic would go."""
    removable_ns: float
    """The same as the roofline of the kernels at its ends sees it, nanoseconds."""
    shape: str
    bytes: int
    """Size of one value."""
    count: int
    """Values per step."""
    producer: str
    """Name of the writing kernel without its number."""
    source: str
    """``file:line`` of the writer."""
    consumers: tuple[str, ...]
    consumer_sources: tuple[str, ...]
    scope: str
    rewrite: str
    """The fusion pass's rewrite that removes it, or empty."""
    advice: str
    missed: str
    """Why the fusion pass left this line alone, where a remark says so."""
    position: int
    """Of the first writer, in program order."""


@dataclasses.dataclass(frozen=True)
class KernelRow:
    """Equal kernels of one source line, with what their edges could save; sums over one step."""

    name: str
    shape: str
    source: str
    count: int
    bytes: int
    """Device memory traffic."""
    removable_bytes: int
    roofline_ns: float
    """max(FLOPs / peak, bytes / bandwidth), nanoseconds."""
    removable_ns: float
    """How much shorter the roofline's time is without the removable bytes, nanoseconds."""
    position: int


@dataclasses.dataclass(frozen=True)
class Opportunities:
    """All of a program, largest first."""

    bytes: int
    """Traffic of one step."""
    removable_bytes: int
    """Of that, what no edge needs; each write and read counted once."""
    roofline_ns: float
    removable_ns: float
    edges: tuple[Edge, ...]
    kernels: tuple[KernelRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class _Kernel:
    i: hlo.Instruction
    position: int
    runs: int
    cost: cost_lib.Cost
    matrix: bool
    opaque: bool
    """A library's kernel: nothing can be fused into it."""
    reads: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    """Value -> bytes."""
    removed: dict[tuple[str, int, int], int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Value:
    producer: _Kernel
    index: int
    bytes: int
    elements: int
    shape: Any
    readers: list[_Kernel] = dataclasses.field(default_factory=list)
    escapes: bool = False


def find(
    program: Program,
    model: cost_lib.CostModel,
    *,
    remarks: Iterable[Mapping[str, Any]] = (),
    min_bytes: int = MIN_BYTES,
) -> Opportunities:
    """Ranks what a better program would not move.

    Args:
      program: a compiled module in program order.
      model: its costs on a target.
      remarks: the passes' remarks (`Report.remarks`); a missed rewrite is laid beside the edge of its line.
      min_bytes: smaller values are left out.
    """
    kernels, values = _graph(program, model)
    softmax = _softmax_clusters(values)
    missed = {r["location"]: r["message"] for r in remarks if r.get("kind") == "missed" and r.get("location")}
    groups: dict[tuple[Any, ...], list[tuple[_Value, int, float]]] = collections.defaultdict(list)
    for value in values.values():
        if value.bytes < min_bytes or not value.readers:
            continue
        kind, removed = _judge(value, softmax)
        if not removed:
            continue
        seconds = 0.0
        for kernel, key, size in removed:
            before = _saved(kernel, model)
            kernel.removed[key] = size
            seconds += (_saved(kernel, model) - before) * kernel.runs
        size = sum(n * kernel.runs for kernel, _, n in removed)
        i = value.producer.i
        key = (
            kind, stem(i.name), shape_text(value.shape), program.source(i), program.phase(i),
            tuple(sorted({program.source(k.i) for k in value.readers})),
        )  # fmt: skip
        groups[key].append((value, size, seconds))
    edges = [_edge(program, key, found, missed) for key, found in groups.items()]
    edges.sort(key=lambda e: (-e.removable_bytes, e.position))
    return Opportunities(
        bytes=sum(k.cost.ideal_bytes * k.runs for k in kernels),
        removable_bytes=sum(_removed(k) * k.runs for k in kernels),
        roofline_ns=sum(k.cost.roofline_ns * k.runs for k in kernels),
        removable_ns=sum(_saved(k, model) * k.runs for k in kernels),
        edges=tuple(edges),
        kernels=_rows(program, model, kernels),
    )


def _graph(
    program: Program, model: cost_lib.CostModel
) -> tuple[list[_Kernel], dict[tuple[int, int], _Value]]:
    """The kernels in program order, and every value between two of them."""
    kernels: dict[int, _Kernel] = {}
    values: dict[tuple[int, int], _Value] = {}
    for position, i in enumerate(program.steps):
        if i.proto.id in kernels or i.opcode.endswith("-done") or not model.launches(i):
            continue
        if origin.collective(i) is not None:
            continue
        found = model.cost(i)
        kernels[i.proto.id] = _Kernel(
            i, position, program.runs[position], found, found.flops > 0, i.opcode == "custom-call"
        )  # fmt: skip
    for kernel in kernels.values():
        for k, operand in enumerate(kernel.i.operands):
            key = _definition(operand)
            producer = kernels.get(key[0])
            if producer is None or (producer.i.proto.id, key[1]) in kernel.reads:
                continue
            kernel.reads[key] = traffic.operand_bytes(kernel.i, k)
            _value(values, producer, key).readers.append(kernel)
    for i in program.steps:
        if i.proto.id not in kernels and i.opcode not in _VIEWS:
            for operand in i.operands:
                key = _definition(operand)
                if key[0] in kernels:
                    _value(values, kernels[key[0]], key).escapes = True
    for computation in program.module.computations:
        root = computation.root
        if root is not None and root.proto.id in kernels:
            _value(values, kernels[root.proto.id], (root.proto.id, 0)).escapes = True
    return list(kernels.values()), values


def _value(values: dict[tuple[int, int], _Value], producer: _Kernel, key: tuple[int, int]) -> _Value:
    found = values.get(key)
    if found is None:
        shape = producer.i.proto.shape
        if shape.tuple_shapes:
            shape = shape.tuple_shapes[min(key[1], len(shape.tuple_shapes) - 1)]
        elements = 1
        for n in shape.dimensions:
            elements *= n
        found = values[key] = _Value(
            producer, key[1], traffic.result_bytes(producer.i, key[1]), elements, shape
        )
    return found


def _definition(i: hlo.Instruction) -> tuple[int, int]:
    """The instruction that made a value, and which of its results."""
    index = 0
    while i.opcode in _VIEWS and i.operands:
        source = i.operands[0]
        if i.opcode == "get-tuple-element":
            if source.opcode == "tuple":
                source = source.operands[i.proto.tuple_index]
            elif source.opcode not in ("opt-barrier", "optimization-barrier"):
                return source.proto.id, i.proto.tuple_index
            else:  # a barrier over a tuple: look at the element that went in
                inner = source.operands[0]
                if inner.opcode != "tuple":
                    return source.proto.id, i.proto.tuple_index
                source = inner.operands[i.proto.tuple_index]
        i = source
    return i.proto.id, index


def _local(kernel: _Kernel, index: int) -> bool:
    """Whether a result is computed element by element: nothing is summed on the way to it."""
    i = kernel.i
    if i.opcode != "fusion":
        return i.opcode not in _NOT_LOCAL and not kernel.opaque
    root = i.called[0].root
    if root is None:
        return False
    pending = [root.operands[index] if root.opcode == "tuple" else root]
    seen = set()
    while pending:
        x = pending.pop()
        if x.proto.id in seen:
            continue
        seen.add(x.proto.id)
        if x.opcode in _NOT_LOCAL or x.opcode == "fusion":
            return False
        pending += x.operands
    return True


_Node = tuple[int, int, tuple[int, int] | None]
"""Values of one number of elements at a kernel (its instruction); of a matrix product each value for itself."""


def _softmax_clusters(values: Mapping[tuple[int, int], _Value]) -> dict[int, str]:
    """Kernels (by instruction) around a softmax that a matrix product feeds: the rewrite that is made for it.

    Kernels joined by values of one number of elements are a cluster; one that exponentiates what a value per
    row was subtracted from is a softmax. Products without batch dimensions make logits, others scores (splitting a contraction
    adds a batch dimension, so one product without is enough).
    """
    parent: dict[_Node, _Node] = {}

    def top(k: _Node) -> _Node:
        while parent.setdefault(k, k) != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    kernels: dict[_Node, _Kernel] = {}
    largest: dict[int, int] = collections.defaultdict(int)
    for key, value in values.items():
        for kernel in (value.producer, *value.readers):
            # What a product reads is not what it makes, nor one operand the other, however many elements they have:
            # a table of as many rows as logits have columns is no logits.
            place = key if kernel.matrix else None
            node = (value.elements, kernel.i.proto.id, place)
            kernels[node] = kernel
            largest[kernel.i.proto.id] = max(largest[kernel.i.proto.id], value.elements)
            written = key if value.producer.matrix else None
            parent[top(node)] = top((value.elements, value.producer.i.proto.id, written))
    softmax, batched = set(), collections.defaultdict(set)
    for node, kernel in kernels.items():
        # A kernel counts by its largest value: a reduced one would join unrelated clusters.
        if node[0] != largest[node[1]]:
            continue
        if _exponentiates_rows(kernel.i):
            softmax.add(top(node))
        if kernel.matrix and not kernel.opaque:
            batched[top(node)].add(_batched(kernel.i))
    return {
        node[1]: "cross-entropy" if False in batched[top(node)] else "attention"
        for node in kernels
        if largest[node[1]] == node[0] and top(node) in softmax and batched[top(node)]
    }


def _exponentiates_rows(i: hlo.Instruction) -> bool:
    """Whether a kernel computes exp(x - y) with one y for many x."""
    pending = [i]
    while pending:
        x = pending.pop()
        if x.opcode == "fusion":
            for c in x.called:
                pending += c.instructions
        if x.opcode != "exponential":
            continue
        at = x.operands[0]
        while at.opcode in _RELABEL and at.operands:
            at = at.operands[0]
        if at.opcode != "subtract":
            continue
        for side in at.operands:
            while side.opcode in _RELABEL and side.operands:
                side = side.operands[0]
            if side.opcode == "broadcast" and side.operands[0].dims:
                return True
    return False


def _batched(i: hlo.Instruction) -> bool:
    """Whether a matrix product has batch dimensions, as scores have and logits have not."""
    pending = [i]
    while pending:
        x = pending.pop()
        if x.opcode == "dot" and x.proto.dot_dimension_numbers.lhs_batch_dimensions:
            return True
        numbers = x.config.get("gemm_backend_config", {}).get("dot_dimension_numbers", {})
        if numbers.get("lhs_batch_dimensions"):
            return True
        for c in x.called if x.opcode == "fusion" else ():
            pending += c.instructions
    return False


_Access = tuple[_Kernel, tuple[str, int, int], int]
"""A kernel, what it accesses, and how many bytes of that it would not need (negative: needs more)."""


def _judge(value: _Value, softmax: Mapping[int, str]) -> tuple[str, list[_Access]]:
    """The kind of an edge, and the accesses that it would not need."""
    producer, readers = value.producer, value.readers
    key = (producer.i.proto.id, value.index)
    write = (producer, ("write", *key), value.bytes)
    reads = [(r, ("read", *key), r.reads[key]) for r in readers]
    matrix = [r for r in readers if r.matrix or r.opaque]
    others = [r for r in readers if not r.matrix and not r.opaque]
    local = _local(producer, value.index)
    results = range(len(producer.i.leaf_bytes))
    read = max(0, producer.cost.ideal_bytes - sum(traffic.result_bytes(producer.i, k) for k in results))
    ends = {softmax.get(k.i.proto.id, "") for k in (producer, *readers)}
    if not value.escapes and ends <= {"attention", "cross-entropy"}:
        return min(ends), [write, *reads]
    if not value.escapes and producer.matrix and not producer.opaque and value.bytes > _TILE * read:
        return "tile", [write, *reads]
    if not value.escapes and producer.matrix and not producer.opaque and not matrix:
        return "epilogue", [write, *reads]
    if not value.escapes and local and not producer.matrix and not any(r.opaque for r in readers):
        kind = "recompute" if value.bytes > _TINY * read else "prologue" if matrix else "fuse"
        accesses = [write, *reads, *_moved_into_readers(value, read)]
        if sum(n for _, _, n in accesses) > 0:
            return kind, accesses
    if len(others) > 1:
        # The longest read stays.
        kept = max(range(len(others)), key=lambda k: others[k].reads[key])
        return "share", [(r, ("read", *key), r.reads[key]) for k, r in enumerate(others) if k != kept]
    return "", []


def _moved_into_readers(value: _Value, read: int) -> list[_Access]:
    """What changes hands when the writer's work moves into the readers: each reads the writer's inputs."""
    producer = value.producer
    key = producer.i.proto.id, -1
    again = [(r, ("again", *key), -read) for r in value.readers]
    # A writer of one result vanishes with its reads.
    return [*again, (producer, ("inputs", *key), read)] if len(producer.i.leaf_bytes) == 1 else again


def _removed(kernel: _Kernel) -> int:
    """Bytes that one execution would not move. Inputs of a writer that vanishes are among its own edges too."""
    return min(sum(kernel.removed.values()), kernel.cost.ideal_bytes)


def _saved(kernel: _Kernel, model: cost_lib.CostModel) -> float:
    """How much shorter the roofline's time of one execution is without the removed bytes, nanoseconds."""
    bandwidth = model.target.hbm_bytes_per_s
    compute = model.compute_ns(kernel.i)
    left = max(0.0, kernel.cost.ideal_bytes - _removed(kernel)) / bandwidth * 1e9
    return max(0.0, kernel.cost.roofline_ns - max(compute, left))


def _edge(
    program: Program,
    key: tuple[Any, ...],
    found: list[tuple[_Value, int, float]],
    missed: Mapping[str, str],
) -> Edge:
    kind, producer, shape, source, _, consumer_sources = key
    first = min((value for value, _, _ in found), key=lambda v: v.producer.position)
    reasons = [
        message
        for location, message in missed.items()
        if any(s and s in location for s in (source, *consumer_sources))
    ]
    return Edge(
        kind=kind,
        removable_bytes=sum(size for _, size, _ in found),
        removable_ns=sum(ns for _, _, ns in found),
        shape=shape,
        bytes=first.bytes,
        count=sum(value.producer.runs for value, _, _ in found),
        producer=producer,
        source=source,
        consumers=tuple(sorted({stem(r.i.name) for r in first.readers})),
        consumer_sources=consumer_sources,
        scope=program.scope(first.producer.i),
        rewrite=kind if kind in _BY_PASS else "",
        advice=ADVICE[kind],
        missed=reasons[0] if reasons else "",
        position=first.producer.position,
    )


def _rows(program: Program, model: cost_lib.CostModel, kernels: list[_Kernel]) -> tuple[KernelRow, ...]:
    groups: dict[tuple[str, str, str], list[_Kernel]] = collections.defaultdict(list)
    for kernel in kernels:
        if kernel.removed:
            key = (stem(kernel.i.name), shape_text(kernel.i.proto.shape), program.source(kernel.i))
            groups[key].append(kernel)
    rows = [
        KernelRow(
            name=name,
            shape=shape,
            source=source,
            count=sum(k.runs for k in found),
            bytes=sum(k.cost.ideal_bytes * k.runs for k in found),
            removable_bytes=sum(_removed(k) * k.runs for k in found),
            roofline_ns=sum(k.cost.roofline_ns * k.runs for k in found),
            removable_ns=sum(_saved(k, model) * k.runs for k in found),
            position=min(k.position for k in found),
        )
        for (name, shape, source), found in groups.items()
    ]
    # What would read more, so that others go, has nothing to gain itself.
    gaining = [row for row in rows if row.removable_bytes > 0]
    return tuple(sorted(gaining, key=lambda r: (-r.removable_bytes, r.position)))
