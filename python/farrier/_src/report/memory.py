"""Live device memory over program order, from XLA's own buffer assignment.

XLA records, for every allocation that it packs with its heap simulator, the order in which buffers were
allocated, shared and freed. Replaying that record gives the live bytes at each position of the schedule;
allocations without a record (arguments, results, constants) live through the whole step. The largest value is
XLA's `CompiledMemoryStats.peak_memory_in_bytes`, and the sizes of the allocations sum to its `arguments +
outputs - aliased + temp`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from farrier._src import hlo
from farrier._src.report import origin as origin_lib
from farrier._src.report.program import Program

# xla/service/heap_simulator.proto, HeapSimulatorTrace.Event.Kind.
_ALLOC, _FREE, _SHARE = 0, 1, 2
# xla/xla_data.proto's PrimitiveType by number, spelled as HLO text does.
_TYPES = {
    1: "pred", 2: "s8", 3: "s16", 4: "s32", 5: "s64", 6: "u8", 7: "u16", 8: "u32", 9: "u64",
    10: "f16", 11: "f32", 12: "f64", 15: "c64", 16: "bf16", 17: "token", 18: "c128", 19: "f8e5m2",
    20: "f8e4m3fn", 21: "s4", 22: "u4", 23: "f8e4m3b11fnuz", 24: "f8e5m2fnuz", 25: "f8e4m3fnuz",
    26: "s2", 27: "u2", 28: "f8e4m3", 29: "f8e3m4", 30: "s1", 31: "u1", 32: "f4e2m1fn",
    33: "f8e8m0fnu",
}  # fmt: skip
ELEMENTS = tuple(_TYPES.values())
"""Element types, spelled as HLO text does."""
_HOST_COLOR = 5
"""The memory space number that XLA gives to pinned host memory (`xla::Layout::kHostMemorySpace`)."""


def shape_text(shape: Any) -> str:
    """``bf16[4,128]``; a tuple's first element and how many more there are."""
    if shape.tuple_shapes:
        more = len(shape.tuple_shapes) - 1
        return f"({shape_text(shape.tuple_shapes[0])}{f', +{more}' if more else ''})"
    return f"{element_text(shape.element_type)}[{','.join(str(d) for d in shape.dimensions)}]"


def element_text(element_type: int) -> str:
    """An element type by XLA's number, spelled as HLO text does."""
    return _TYPES.get(element_type, f"type{element_type}")


def leaf(shape: Any, index: Any) -> Any:
    """The part of a shape that an index names."""
    for k in index:
        if k >= len(shape.tuple_shapes):
            return shape
        shape = shape.tuple_shapes[k]
    return shape


@dataclasses.dataclass
class Buffer:
    """Memory that holds one value (and those that XLA lets share it) for a span of the program."""

    name: str
    """The defining instruction; for an argument its path."""
    opcode: str
    shape: str
    bytes: int
    origin: str
    """One of `farrier._src.report.origin.ORIGINS`."""
    scope: str
    layer: str
    source: str
    """``file:line`` of the JAX code that made it."""
    start: int
    """First position in program order at which it is live."""
    end: int
    """Last position at which it is live."""
    allocation: int
    offset: int
    """Bytes from the allocation's start."""
    space: str = "device"
    donated: bool = False
    """An argument whose memory a result takes over."""
    shared: int = 0
    """How many further values share the memory."""
    rematerialized: bool = False
    frames: tuple[tuple[str, str, int], ...] = ()
    """The user's stack where it was made, innermost first: (function, file, line)."""


@dataclasses.dataclass(frozen=True)
class Allocation:
    """One contiguous range of memory that the program asks for."""

    index: int
    bytes: int
    kind: str
    """``argument``, ``temp``, ``output``, ``constant`` or ``thread-local``."""
    space: str
    live_at_peak: int
    """Bytes of it that hold live values at the program's peak."""


@dataclasses.dataclass(frozen=True)
class XlaFigures:
    """What XLA itself reports for the executable, bytes on one device."""

    argument: int
    output: int
    alias: int
    temp: int
    host_argument: int = 0
    host_output: int = 0
    host_alias: int = 0
    host_temp: int = 0
    peak: int | None = None
    """`peak_memory_in_bytes` (None where this jax does not report it)."""

    @property
    def total(self) -> int:
        """Arguments + outputs - aliased + temp: what a memory budget is compared with."""
        return self.argument + self.output - self.alias + self.temp

    @classmethod
    def of(cls, stats: Any) -> XlaFigures:
        """From a `CompiledMemoryStats`."""
        return cls(
            argument=stats.argument_size_in_bytes,
            output=stats.output_size_in_bytes,
            alias=stats.alias_size_in_bytes,
            temp=stats.temp_size_in_bytes,
            host_argument=stats.host_argument_size_in_bytes,
            host_output=stats.host_output_size_in_bytes,
            host_alias=stats.host_alias_size_in_bytes,
            host_temp=stats.host_temp_size_in_bytes,
            peak=getattr(stats, "peak_memory_in_bytes", None),
        )


class MemoryProfile:
    """Buffers of a program and what is live when.

    Attributes:
      buffers: every buffer that is not thread-local, by first position.
      allocations: every allocation of the assignment.
      live: int64 array (positions,), live device bytes while each position runs.
      host_live: the same for host memory.
      peak: the first position with the most live device bytes.
      allocated: device bytes of all allocations.
    """

    def __init__(self, program: Program, assignment: Any, *, origins: dict[str, str] | None = None):
        self.program = program
        n = max(1, len(program))
        self._by_id = {i.proto.id: i for i in program.module.instructions()}
        self._logical = {b.id: b for b in assignment.logical_buffers}
        self._uses = origin_lib.Uses(program)
        self._arguments = origin_lib.Arguments(program, overrides=origins or {})
        self.buffers: list[Buffer] = []
        traced: dict[int, list[Any]] = {}
        holder = {x.logical_buffer_id: a.index for a in assignment.buffer_allocations for x in a.assigned}
        for trace in assignment.heap_simulator_traces:
            traced.setdefault(_traced_allocation(trace, holder), []).append(trace)
        for a in assignment.buffer_allocations:
            if a.is_thread_local:
                continue
            if a.index in traced and not a.is_entry_computation_parameter:
                for trace in traced[a.index]:
                    self._replay(a, trace)
            else:
                self._whole(a, n)
        self.buffers.sort(key=lambda b: (b.start, -b.bytes, b.name))
        self.live = self.series(lambda b: b.space == "device")
        self.host_live = self.series(lambda b: b.space == "host")
        self.peak = int(np.argmax(self.live))
        at_peak: dict[int, int] = {}
        for b in self.at(self.peak, space=None):
            at_peak[b.allocation] = at_peak.get(b.allocation, 0) + b.bytes
        self.allocations = [
            Allocation(a.index, a.size, _kind(a), _space(a), min(a.size, at_peak.get(a.index, 0)))
            for a in assignment.buffer_allocations
        ]
        self.allocated = sum(
            a.bytes for a in self.allocations if a.space == "device" and a.kind != "thread-local"
        )

    @property
    def peak_bytes(self) -> int:
        """Live device bytes at the peak."""
        return int(self.live[self.peak])

    @property
    def fragmentation(self) -> int:
        """Allocated device bytes that hold nothing live at the peak: padding and packing loss."""
        return self.allocated - self.peak_bytes

    def series(self, keep: Any) -> np.ndarray:
        """Live bytes of the buffers that `keep` accepts, while each position runs; int64 (positions,)."""
        n = max(1, len(self.program))
        delta = np.zeros(n + 1, np.int64)
        chosen = [b for b in self.buffers if keep(b)]
        if chosen:
            size = np.array([b.bytes for b in chosen], np.int64)
            np.add.at(delta, np.array([b.start for b in chosen]), size)
            np.add.at(delta, np.array([b.end + 1 for b in chosen]), -size)
        return np.cumsum(delta[:-1])

    def at(self, position: int, *, space: str | None = "device") -> list[Buffer]:
        """Buffers that are live while `position` runs, largest first."""
        found = [b for b in self.buffers if b.start <= position <= b.end and space in (None, b.space)]
        return sorted(found, key=lambda b: (-b.bytes, b.start, b.name))

    # --- construction ---------------------------------------------------------------------------------------

    def _instruction(self, logical: Any) -> hlo.Instruction | None:
        return self._by_id.get(logical.defined_at.instruction_id)

    def _values(self, logical: Iterable[Any]) -> list[origin_lib.Value]:
        found = ((self._instruction(b), tuple(b.defined_at.shape_index)) for b in logical)
        return [(i, index) for i, index in found if i is not None]

    def _position(self, logical: Any) -> int | None:
        return self.program.position.get(logical.defined_at.instruction_id)

    def _whole(self, a: Any, n: int) -> None:
        """An allocation that lives all through the step."""
        if a.size == 0:
            return
        assigned = [
            self._logical[x.logical_buffer_id] for x in a.assigned if x.logical_buffer_id in self._logical
        ]
        largest = max(assigned, key=lambda b: (b.size, -b.id), default=None)
        definer = self._instruction(largest) if largest is not None else None
        if a.is_entry_computation_parameter:
            for logical in assigned:  # several values may share an aliased argument: name the argument itself
                found = self._instruction(logical)
                if found is not None and found.opcode == "parameter":
                    definer, largest = found, logical
                    break
            kind = self._arguments.origin(a.parameter_number)
        elif a.is_constant:
            kind = origin_lib.CONSTANTS
        elif a.maybe_live_out or a.is_tuple:
            kind = origin_lib.OUTPUTS
        else:
            kind = self._uses.origin(self._values(assigned))
        self._add(
            definer, largest, bytes=a.size, origin=kind, start=0, end=n - 1, allocation=a.index, offset=0,
            space=_space(a), donated=a.is_entry_computation_parameter and a.maybe_live_out,
            shared=max(0, len(assigned) - 1),
        )  # fmt: skip

    def _replay(self, a: Any, trace: Any) -> None:
        """An allocation that XLA packed: its heap events in order, placed on positions.

        The record has an order but no times. An allocation happens where its value is defined. A release lies
        between two allocations; within that gap it is put after the value's last use. So every sum at an
        allocation, the peak included, is XLA's own.
        """
        offsets = {x.logical_buffer_id: x.offset for x in a.assigned}
        events = trace.events
        n = len(self.program)
        upcoming = [n] * (len(events) + 1)  # position of the next allocation at or after each event
        for k in range(len(events) - 1, -1, -1):
            upcoming[k] = upcoming[k + 1]
            if events[k].kind != _FREE:
                at = self._position(self._logical[events[k].buffer_id])
                if at is not None:
                    upcoming[k] = min(at, upcoming[k + 1])
        open_groups: dict[int, list[int]] = {}  # canonical id -> members so far
        started: dict[int, int] = {}
        remaining: dict[int, int] = {}
        canonical: dict[int, int] = {}
        now = 0
        for k, event in enumerate(events):
            logical = self._logical[event.buffer_id]
            if event.kind == _FREE:
                root = canonical.pop(event.buffer_id, event.buffer_id)
                remaining[root] = remaining.get(root, 1) - 1
                if remaining[root] == 0:
                    self._close(a, root, open_groups.pop(root), started.pop(root), now, upcoming[k], offsets)
                continue
            at = self._position(logical)
            now = max(now, at) if at is not None else now
            if event.kind == _SHARE:
                root = canonical.get(event.share_with_canonical_id, event.share_with_canonical_id)
                if root in open_groups:
                    open_groups[root].append(event.buffer_id)
                    canonical[event.buffer_id] = root
                    remaining[root] += 1
                    continue
            canonical[event.buffer_id] = event.buffer_id
            open_groups[event.buffer_id] = [event.buffer_id]
            started[event.buffer_id] = now
            remaining[event.buffer_id] = 1
        for root, members in open_groups.items():  # never freed: lives to the end
            self._close(a, root, members, started[root], n - 1, n, offsets)

    def _close(
        self,
        a: Any,
        root: int,
        members: list[int],
        start: int,
        now: int,
        upcoming: int,
        offsets: dict[int, int],
    ) -> None:
        logical = self._logical[root]
        values = self._values(self._logical[m] for m in members)
        last = max((self._uses.last(v) for v in values), default=now)
        end = max(start, min(max(last, now), max(now, upcoming - 1)))
        named = origin_lib.representative(self.program, values) or self._instruction(logical)
        self._add(
            named, logical, bytes=logical.size, origin=self._uses.origin(values), start=start, end=end,
            allocation=a.index, offset=offsets.get(root, 0), space=_space(a), shared=len(members) - 1,
        )  # fmt: skip

    def _add(self, definer: hlo.Instruction | None, logical: Any, *, origin: str, **fields: Any) -> None:
        program = self.program
        made = self._instruction(logical) if logical is not None else None
        if definer is None or made is None:
            self.buffers.append(
                Buffer("(unnamed)", "", "", scope="", layer="", source="", origin=origin, **fields)
            )
            return
        source = origin_lib.content(program, definer)
        scope = program.scope(source)
        op_name = program.op_name(source)
        argument = definer.opcode == "parameter" and definer.computation is program.module.entry
        self.buffers.append(
            Buffer(
                name=(op_name or definer.name) if argument else definer.name,
                opcode=definer.opcode,
                shape=shape_text(leaf(made.proto.shape, logical.defined_at.shape_index)),
                origin=origin,
                scope="" if argument else scope,
                layer=origin_lib.layer(program, source),
                source="" if argument else program.source(source),
                rematerialized="rematted_computation" in op_name,
                frames=() if argument else tuple(program.frames(source)),
                **fields,
            )
        )


def _traced_allocation(trace: Any, holder: dict[int, int]) -> int:
    """The allocation that a heap record is about: the one that holds most of its buffers.

    The record names an index itself, but jax 0.11 wrote it before XLA renumbered its allocations.
    """
    votes = collections.Counter(holder.get(e.buffer_id, -1) for e in trace.events if e.kind == _ALLOC)
    votes.pop(-1, None)
    return votes.most_common(1)[0][0] if votes else trace.buffer_allocation_index


def _kind(a: Any) -> str:
    if a.is_thread_local:
        return "thread-local"
    if a.is_entry_computation_parameter:
        return "argument"
    if a.is_constant:
        return "constant"
    if a.maybe_live_out:
        return "output"
    return "temp"


def _space(a: Any) -> str:
    return "host" if a.color == _HOST_COLOR else "device"
