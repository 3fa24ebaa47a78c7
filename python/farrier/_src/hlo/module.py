"""A light object model of an HLO module, made from its proto in one linear pass."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

from farrier._src.hlo import proto

# Bits per element by XLA's type number (xla_data.proto, PrimitiveType). Predicates take a byte.
_BITS = {
    1: 8, 2: 8, 3: 16, 4: 32, 5: 64, 6: 8, 7: 16, 8: 32, 9: 64, 10: 16, 11: 32, 12: 64, 15: 64, 16: 16,
    18: 128, 19: 8, 20: 8, 21: 4, 22: 4, 23: 8, 24: 8, 25: 8, 26: 2, 27: 2, 28: 8, 29: 8, 30: 1, 31: 1,
    32: 4, 33: 8, 35: 8, 36: 8,
}  # fmt: skip
_TUPLE, _BUFFER = 13, 34


class Instruction:
    """One HLO instruction; operands and called computations are resolved to objects."""

    __slots__ = ("__dict__", "called", "computation", "operands", "proto", "users")

    def __init__(self, computation: Computation, p: Any):
        self.computation = computation
        self.proto = p
        self.operands: list[Instruction] = []
        self.called: list[Computation] = []
        self.users: list[Instruction] = []

    @property
    def name(self) -> str:
        return self.proto.name

    @functools.cached_property
    def opcode(self) -> str:
        return self.proto.opcode

    @functools.cached_property
    def dims(self) -> tuple[int, ...]:
        """Dimensions of an array result; of a tuple, those of its first leaf."""
        shape = self.proto.shape
        while shape.element_type in (_TUPLE, _BUFFER) and shape.tuple_shapes:
            shape = shape.tuple_shapes[0]
        return tuple(shape.dimensions)

    @functools.cached_property
    def bytes(self) -> int:
        """Bytes of the result; of a tuple, of all its leaves."""
        return shape_bytes(self.proto.shape)

    @functools.cached_property
    def leaf_bytes(self) -> tuple[int, ...]:
        """Bytes of each top-level element of a tuple result, or of the one array."""
        shape = self.proto.shape
        if shape.element_type == _TUPLE:
            return tuple(shape_bytes(s) for s in shape.tuple_shapes)
        return (shape_bytes(shape),)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The backend config when it is a JSON object, else empty."""
        data = self.proto.backend_config
        if not data.startswith(b"{"):
            return {}
        try:
            value = json.loads(data)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def trip_count(self) -> int | None:
        """Iterations of a while loop where XLA knows them."""
        known = self.config.get("known_trip_count")
        return int(known["n"]) if known and "n" in known else None

    def __repr__(self) -> str:
        return f"<{self.opcode} {self.name}>"


class Computation:
    """A computation: instructions in the order of the module's proto (operands before users)."""

    __slots__ = ("id", "instructions", "is_fusion", "name", "root")

    def __init__(self, p: Any):
        self.name: str = p.name
        self.id: int = p.id
        self.is_fusion: bool = p.is_fusion_computation
        self.instructions: list[Instruction] = [Instruction(self, i) for i in p.instructions]
        self.root: Instruction | None = None


class Module:
    """An HLO module read from a serialized HloModuleProto."""

    def __init__(self, data: bytes):
        p = proto.parse_module(data)
        self.proto = p
        self.name: str = p.name
        self.computations: list[Computation] = [Computation(c) for c in p.computations]
        by_id = {c.id: c for c in self.computations}
        for c, cp in zip(self.computations, p.computations, strict=True):
            local = {i.proto.id: i for i in c.instructions}
            c.root = local.get(cp.root_id, c.instructions[-1] if c.instructions else None)
            for i in c.instructions:
                i.operands = [local[k] for k in i.proto.operand_ids]
                i.called = [by_id[k] for k in i.proto.called_computation_ids if k in by_id]
                for o in i.operands:
                    o.users.append(i)
        self.entry: Computation = by_id.get(p.entry_computation_id, self.computations[-1])

    @classmethod
    def from_executable(cls, executable: Any) -> Module:
        """The optimized module of a jaxlib (loaded) executable."""
        return cls(executable.hlo_modules()[0].as_serialized_hlo_module_proto())

    def instructions(self) -> Iterator[Instruction]:
        """All instructions of all computations."""
        for c in self.computations:
            yield from c.instructions


def shape_bytes(shape: Any) -> int:
    """Bytes of a Shape message: dense layout, sub-byte types packed when the layout says so."""
    kind = shape.element_type
    if kind in (_TUPLE, _BUFFER):
        return sum(shape_bytes(s) for s in shape.tuple_shapes)
    bits = _BITS.get(kind, 0)
    if 0 < bits < 8:
        bits = shape.layout.element_size_in_bits or 8
    return (math.prod(shape.dimensions) * bits + 7) // 8
