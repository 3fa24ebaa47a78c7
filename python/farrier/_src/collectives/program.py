"""From scheduled HLO to the plain program that the C++ simulator and list scheduler work on, and back.

The exchange format is columns per computation, JSON; docs/collectives.md lists them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from farrier._src.collectives import groups
from farrier._src.collectives.costs import CostModel
from farrier._src.hlo import Computation, Instruction, Module
from farrier._src.hlo.custom_calls import LAUNCH_NOTHING
from farrier._src.hlo.totals import COLLECTIVES

FREE, COMPUTE, COMM_START, COMM_DONE, COMM_SYNC, COPY_START, COPY_DONE, WHILE, CALL = range(9)

_KINDS = frozenset(COLLECTIVES) - {"send", "recv"}
_FREE_OPCODES = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "opt-barrier",
        "add-dependency",
        "domain",
        "optimization-barrier",
        "partition-id",
        "replica-id",
        "get-dimension-size",
    )
)
_VIEWS = frozenset(["bitcast", "opt-barrier", "optimization-barrier", "add-dependency", "domain", "reshape"])
# Instructions whose order against each other is part of their meaning.
_ORDERED = frozenset(
    (
        "send",
        "send-done",
        "recv",
        "recv-done",
        "infeed",
        "outfeed",
        "rng",
        "rng-get-and-update-state",
        "rng-bit-generator",
    )
)

# Buffers of one value: one set of buffer numbers for each top-level element.
_Leaves = tuple[frozenset[int], ...]


@dataclasses.dataclass
class Program:
    """A scheduled module as columns, with the way back to its instructions."""

    json: dict[str, Any]
    """``{"entry", "computations", "collectives"}``, the C++ side's input."""
    computations: list[Computation]
    instructions: list[list[Instruction]]
    """By computation, in the order the columns have."""
    unknown_trip_counts: int
    """Loops whose trip count XLA does not know; they count once."""

    @property
    def size(self) -> int:
        """Instructions in all computations."""
        return sum(len(i) for i in self.instructions)


def scheduled_instructions(module: Module) -> dict[int, list[Instruction]]:
    """Instructions by computation id, in schedule order where the module has one."""
    order = {e.computation_id: list(e.sequence.instruction_ids) for e in module.proto.schedule.sequences}
    result = {}
    for c in module.computations:
        sequence = order.get(c.id)
        if sequence is None or len(sequence) != len(c.instructions):
            result[c.id] = list(c.instructions)
            continue
        # The schedule may name instructions by their number within the computation only.
        mask = (1 << 32) - 1
        local = {i.proto.id & mask: i for i in c.instructions}
        result[c.id] = [local[k & mask] for k in sequence]
    return result


def device_count(module: Module) -> int:
    """Partitions times replicas that the module was compiled for; 1 when it does not say."""
    assignment = module.proto.device_assignment
    return max(1, assignment.replica_count) * max(1, assignment.computation_count)


def collective_of(i: Instruction) -> Instruction | None:
    """The collective that `i` is, starts, or wraps; None for anything else (a done is not one)."""
    opcode = i.opcode
    if opcode in _KINDS:
        return i
    if opcode.endswith("-start"):
        if opcode[:-6] in _KINDS:
            return i
        if opcode == "async-start" and i.called:
            return next(filter(None, map(_within, i.called[0].instructions)), None)
        return None
    return _within(i)


def _within(i: Instruction) -> Instruction | None:
    """The collective that `i` is, or that XLA made a kernel of its own of: small reductions, fused with nothing."""
    if i.opcode == "fusion" and i.called:
        i = i.called[0].root or i
    return i if i.opcode in _KINDS else None


def kind_of(collective: Instruction) -> str:
    """``all-gather``, ... of a collective or its start."""
    return collective.opcode.removesuffix("-start")


def build(module: Module, costs: CostModel, domain_devices: int) -> Program:
    """Reads a scheduled module.

    Args:
      module: scheduled HLO (after XLA's scheduler, or the final module of an executable).
      costs: kernels' costs; frozen ones are looked up there.
      domain_devices: devices per NVLink domain, for the spread of replica groups.
    """
    return _Builder(module, costs, domain_devices).run()


class _Builder:
    def __init__(self, module: Module, costs: CostModel, domain_devices: int):
        self.module = module
        self.costs = costs
        self.domain_devices = domain_devices
        self.devices = device_count(module)
        self.sequences = scheduled_instructions(module)
        self.numbers: dict[int, int] = {}
        self.columns: list[dict[str, Any]] = []
        self.computations: list[Computation] = []
        self.collectives: list[dict[str, Any]] = []
        self.spans: dict[bytes, groups.Span] = {}
        self.unknown_trips = 0

    def run(self) -> Program:
        entry = self.computation(self.module.entry)
        return Program(
            json={"entry": entry, "computations": self.columns, "collectives": self.collectives},
            computations=self.computations,
            instructions=[self.sequences[c.id] for c in self.computations],
            unknown_trip_counts=self.unknown_trips,
        )

    def computation(self, c: Computation) -> int:
        if c.id in self.numbers:
            return self.numbers[c.id]
        number = self.numbers[c.id] = len(self.columns)
        self.columns.append({})
        self.computations.append(c)
        self.columns[number] = _Columns(self, c, self.sequences[c.id]).run()
        return number

    def collective(self, i: Instruction, result_bytes: int) -> int:
        p = i.proto
        key = b"|".join(
            x.SerializeToString(deterministic=True)
            for x in (
                *p.replica_groups,
                p.collective_device_list,
                p.iota_collective_device_list,
                p.mesh_axes_replica_groups,
            )
        ) + b"".join(x.SerializeToString(deterministic=True) for x in p.source_target_pairs)
        span = self.spans.get(key)
        if span is None:
            span = self.spans[key] = groups.span(i, self.devices, self.domain_devices)
        self.collectives.append(
            {
                "kind": kind_of(i),
                "bytes": result_bytes,
                "group": span.group,
                "domains": span.domains,
                "per_domain": span.per_domain,
            }
        )
        return len(self.collectives) - 1


class _Columns:
    """The columns of one computation."""

    def __init__(self, builder: _Builder, c: Computation, sequence: list[Instruction]):
        self.builder = builder
        self.c = c
        self.sequence = sequence
        self.position = {id(i): k for k, i in enumerate(sequence)}
        self.buffers: list[int] = []
        self.live_in: list[int] = []
        self.values: dict[int, _Leaves] = {}

    def run(self) -> dict[str, Any]:
        n = len(self.sequence)
        column: dict[str, list[Any]] = {
            "role": [FREE] * n, "cost": [0.0] * n, "partner": [-1] * n, "collective": [-1] * n,
            "body": [-1] * n, "trips": [1] * n, "preds": [[] for _ in range(n)],
            "reads": [[] for _ in range(n)], "writes": [[] for _ in range(n)],
        }  # fmt: skip
        by_id = {i.proto.id: k for k, i in enumerate(self.sequence)}
        ordered = -1
        for k, i in enumerate(self.sequence):
            preds = {self.position[id(o)] for o in i.operands}
            preds.update(by_id[p] for p in i.proto.control_predecessor_ids if p in by_id)
            if i.opcode in _ORDERED or i.proto.custom_call_has_side_effect:
                if ordered >= 0:
                    preds.add(ordered)
                ordered = k
            column["preds"][k] = sorted(preds)
            self._role(k, i, column)
        for k, i in enumerate(self.sequence):
            reads, writes = self._buffers(k, i, column)
            column["reads"][k] = sorted(reads)
            column["writes"][k] = sorted(writes)
        root = self.c.root
        out = sorted(set().union(*self.values[id(root)])) if root is not None else []
        return {
            "name": self.c.name,
            "buffers": self.buffers,
            "live_in": self.live_in,
            "live_out": out,
            **column,
        }

    # --- what it does ---------------------------------------------------------------------------------------

    def _role(self, k: int, i: Instruction, column: dict[str, list[Any]]) -> None:
        opcode = i.opcode
        if opcode == "while":
            body = next((c for c in i.called if not _is_condition(c)), i.called[0])
            trips = i.trip_count
            if trips is None:
                self.builder.unknown_trips += 1
            column["role"][k] = WHILE
            column["body"][k] = self.builder.computation(body)
            column["trips"][k] = 1 if trips is None else trips
            return
        if opcode in ("call", "conditional"):
            # Of a conditional the largest branch stands for all: one device's branch is unknown here.
            body = max(i.called, key=lambda c: len(c.instructions))
            column["role"][k] = CALL
            column["body"][k] = self.builder.computation(body)
            return
        collective = collective_of(i)
        if collective is not None:
            done = _done_of(i) if opcode.endswith("-start") else None
            result = done or i
            column["collective"][k] = self.builder.collective(collective, result.bytes)
            column["role"][k] = COMM_SYNC
            if done is not None and id(done) in self.position:
                self._pair(k, done, column, COMM_START, COMM_DONE)
            return
        if opcode in ("copy-start", "async-start"):
            done = _done_of(i)
            column["cost"][k] = self._copy_cost(i, done)
            column["role"][k] = COMPUTE
            if done is not None and id(done) in self.position:
                self._pair(k, done, column, COPY_START, COPY_DONE)
            return
        if opcode in _FREE_OPCODES or opcode in _ORDERED or opcode.endswith(("-done", "-update")):
            return  # a done gets its role from its start
        if opcode == "custom-call" and i.proto.custom_call_target in LAUNCH_NOTHING:
            return
        column["role"][k] = COMPUTE
        column["cost"][k] = self.builder.costs.kernel(i)

    def _pair(self, k: int, done: Instruction, column: dict[str, list[Any]], start: int, end: int) -> None:
        other = self.position[id(done)]
        column["role"][k], column["role"][other] = start, end
        column["partner"][k], column["partner"][other] = other, k
        # Through an async-update the done names its start only indirectly.
        if other > k and k not in column["preds"][other]:
            column["preds"][other] = [*column["preds"][other], k]

    def _copy_cost(self, start: Instruction, done: Instruction | None) -> float:
        """Microseconds on the copy engine: the slice for slices in place, else the result, read and
        written."""
        size = done.bytes if done is not None else start.bytes
        pending = [c for c in start.called]
        while pending:
            for j in pending.pop().instructions:
                if j.opcode == "dynamic-update-slice":
                    size = j.operands[1].bytes
                pending += j.called if j.opcode == "fusion" else []
        return max(self.builder.costs.floor, 2 * size / self.builder.costs.memory)

    # --- what it holds --------------------------------------------------------------------------------------

    def _new(self, size: int) -> frozenset[int]:
        self.buffers.append(size)
        return frozenset((len(self.buffers) - 1,))

    def _fresh(self, i: Instruction) -> _Leaves:
        return tuple(self._new(b) for b in i.leaf_bytes)

    def _all(self, i: Instruction) -> frozenset[int]:
        return frozenset().union(*self.values.get(id(i), ()))

    def _buffers(self, k: int, i: Instruction, column) -> tuple[frozenset[int], frozenset[int]]:
        """(buffers read, buffers brought into being); sets the value's leaves."""
        none: frozenset[int] = frozenset()
        opcode = i.opcode
        if opcode == "parameter":
            # The caller's or the program's arguments: counted there, alive throughout.
            self.values[id(i)] = tuple(self._new(0) for _ in i.leaf_bytes)
            self.live_in += sorted(self._all(i))
            return none, none
        if opcode in ("constant", "partition-id", "replica-id", "after-all"):
            self.values[id(i)] = tuple(none for _ in i.leaf_bytes)
            return none, none
        if opcode == "tuple":
            self.values[id(i)] = tuple(self._all(o) for o in i.operands)
            return none, none
        if opcode == "get-tuple-element":
            leaves, index = self.values[id(i.operands[0])], i.proto.tuple_index
            self.values[id(i)] = (leaves[index] if index < len(leaves) else frozenset().union(*leaves),)
            return none, none
        if opcode in _VIEWS:
            self.values[id(i)] = self.values[id(i.operands[0])]
            return none, none
        read = frozenset().union(*(self._all(o) for o in i.operands)) if i.operands else none
        if opcode == "while":
            self.values[id(i)] = self.values[id(i.operands[0])]
            return read, none
        role = column["role"][k]
        if role in (COMM_START, COPY_START):
            done = self.sequence[column["partner"][k]]
            inside = self._in_place_target(i) if role == COPY_START else None
            leaves = inside if inside is not None else self._fresh(done)
            self.values[id(i)] = leaves
            return read, none if inside is not None else frozenset().union(*leaves)
        if role in (COMM_DONE, COPY_DONE):
            start = self.sequence[column["partner"][k]]
            self.values[id(i)] = self.values[id(start)]
            held = frozenset().union(*(self._all(o) for o in start.operands), self._all(start))
            return held, none
        if opcode.endswith(("-update", "-done")) and i.operands:
            self.values[id(i)] = self.values[id(i.operands[0])]
            return read, none
        leaves = tuple(
            self._all(i.operands[target]) if target is not None else self._new(size)
            for target, size in zip(_aliases(i), i.leaf_bytes, strict=True)
        )
        self.values[id(i)] = leaves
        return read, frozenset().union(*leaves) if leaves else none

    def _in_place_target(self, start: Instruction) -> _Leaves | None:
        """For an asynchronous in-place update: the buffers of the operand it writes into."""
        if start.opcode != "async-start" or not start.called:
            return None
        root = start.called[0].root
        if root is None:
            return None
        inner = _aliases(root)
        if len(inner) == 1 and inner[0] is not None and root.operands[inner[0]].opcode == "parameter":
            return (self._all(start.operands[root.operands[inner[0]].proto.parameter_number]),)
        return None


def _is_condition(c: Computation) -> bool:
    return c.root is not None and c.root.proto.shape.element_type == 1 and not c.root.dims


def _done_of(start: Instruction) -> Instruction | None:
    pending = list(start.users)
    while pending:
        user = pending.pop(0)
        if user.opcode.endswith("-done"):
            return user
        if user.opcode.endswith("-update"):
            pending += user.users
    return None


def _aliases(i: Instruction) -> list[int | None]:
    """For each top-level result, the operand whose buffer it overwrites, if any."""
    found: list[int | None] = [None] * len(i.leaf_bytes)
    for alias in i.proto.output_operand_aliasing:
        k = alias.output_shape_index[0] if alias.output_shape_index else 0
        if k < len(found):
            found[k] = alias.operand_index
    if i.opcode == "dynamic-update-slice":
        return [0]
    if i.opcode == "fusion" and i.called and i.called[0].root is not None:
        root = i.called[0].root
        roots = root.operands if root.opcode == "tuple" else [root]
        for k, r in enumerate(roots[: len(found)]):
            while r.opcode in ("bitcast", "reshape") and r.operands:
                r = r.operands[0]
            if r.opcode not in ("dynamic-update-slice", "scatter") or not r.operands:
                continue
            base = r.operands[0]
            while base.opcode in ("bitcast", "reshape") and base.operands:
                base = base.operands[0]
            if base.opcode == "parameter":
                found[k] = base.proto.parameter_number
    return found


def write_orders(module: Module, program: Program, orders: list[list[int]]) -> bytes:
    """The serialized module with new sequences; everything else, known to us or not, is carried over."""
    new = {
        program.computations[c].id: [program.instructions[c][k] for k in order]
        for c, order in enumerate(orders)
        if order
    }
    for entry in module.proto.schedule.sequences:
        if entry.computation_id in new:
            old = {k & ((1 << 32) - 1): k for k in entry.sequence.instruction_ids}
            ids = [old[i.proto.id & ((1 << 32) - 1)] for i in new[entry.computation_id]]
            del entry.sequence.instruction_ids[:]
            entry.sequence.instruction_ids.extend(ids)
    return module.proto.SerializeToString(deterministic=True)
