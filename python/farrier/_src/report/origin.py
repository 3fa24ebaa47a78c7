"""What a buffer is for: parameters, optimizer state, residuals, gradients, collectives, ...

Nothing here looks at names that a particular model or optimizer library uses. The evidence is the data flow
(what reads a value, and whether an argument is donated) and the two markers that JAX's differentiation leaves
in every name stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from farrier._src import errors, hlo
from farrier._src.hlo import totals
from farrier._src.report import program as program_lib
from farrier._src.report.program import BACKWARD, FORWARD, OTHER, Program

PARAMETERS, OPTIMIZER, INPUTS, CONSTANTS = "parameters", "optimizer", "inputs", "constants"
RESIDUALS, GRADIENTS, COLLECTIVES, TEMPORARIES, OUTPUTS = (
    "residuals",
    "gradients",
    "collectives",
    "temporaries",
    "outputs",
)
ORIGINS = (
    PARAMETERS, OPTIMIZER, INPUTS, CONSTANTS, OUTPUTS, RESIDUALS, GRADIENTS, COLLECTIVES, TEMPORARIES,
)  # fmt: skip
"""In the order in which a chart stacks them: what lives all through the step at the bottom."""

# Instructions whose result is (part of) an operand's memory.
_VIEWS = frozenset(
    (
        "bitcast",
        "get-tuple-element",
        "tuple",
        "opt-barrier",
        "optimization-barrier",
        "async-start",
        "async-update",
        "async-done",
        "add-dependency",
        "copy-done",
        "all-gather-done",
        "all-reduce-done",
        "collective-permute-done",
        "while",
        "reshape",
        "domain",
    )
)
_RELAYOUT = frozenset(
    (
        "copy",
        "transpose",
        "convert",
        "bitcast",
        "reshape",
        "bitcast-convert",
    )
)
_FLOATS = frozenset((10, 11, 12, 16, 19, 20, 23, 24, 25, 28, 29, 32, 33))  # PrimitiveType


Value = tuple[hlo.Instruction, tuple[int, ...]]
"""An instruction and the index of one leaf of its result."""


def collective(i: hlo.Instruction) -> str | None:
    """The kind of collective whose result `i` holds or starts (``all-gather``), or None."""
    kind = totals.collective_kind(i)
    if kind is not None:
        return kind
    if i.opcode in ("async-start", "async-update") and i.called:
        for inner in i.called[0].instructions:
            kind = totals.collective_kind(inner)
            if kind is not None:
                return kind
    if i.opcode.endswith("-done") and i.operands:
        return collective(i.operands[0])
    return None


def relayout(i: hlo.Instruction) -> bool:
    """Whether an instruction holds its one operand's values in another layout, shape or type."""
    if i.opcode in _RELAYOUT:
        return len(i.operands) == 1
    if i.opcode != "fusion" or len(i.operands) != 1 or not i.called:
        return False
    return all(x.opcode in _RELAYOUT or x.opcode == "parameter" for x in i.called[0].instructions)


class Uses:
    """Who reads a value, looking through views, tuples and loops.

    A value is an instruction and a shape index.
    """

    def __init__(self, program: Program):
        self._program = program
        self._memo: dict[tuple[int, tuple[int, ...]], tuple[int, frozenset[str], bool]] = {}

    def last(self, value: Value) -> int:
        """The last position that reads the value's memory."""
        return self._read(value)[0]

    def _read(self, value: Value) -> tuple[int, frozenset[str], bool]:
        """(last position, phases of the readers, whether it reaches the program's result)."""
        definer, index = value
        key = (definer.proto.id, index)
        found = self._memo.get(key)
        if found is not None:
            return found
        position = self._program.position
        entry_root = self._program.module.entry.root
        phases: set[str] = set()
        last = position.get(definer.proto.id, 0)
        out = definer is entry_root
        pending, seen = [definer], {definer.proto.id}

        def follow(i: hlo.Instruction) -> None:
            if i.proto.id not in seen:
                seen.add(i.proto.id)
                pending.append(i)

        while pending:
            current = pending.pop()
            for user in current.users:
                last = max(last, position.get(user.proto.id, 0))
                if user is entry_root:
                    out, last = True, len(self._program) - 1
                if user.opcode == "get-tuple-element":
                    if not (current is definer and index and index[0] != user.proto.tuple_index):
                        follow(user)
                elif user.opcode == "tuple":
                    elements = [k for k, o in enumerate(user.operands) if o is current]
                    for loop in user.users:
                        if loop.opcode == "while":
                            phases.add(self._program.phase(loop))
                            last = max(last, position.get(loop.proto.id, 0))
                            for reader in loop.users:
                                if (
                                    reader.opcode == "get-tuple-element"
                                    and reader.proto.tuple_index in elements
                                ):
                                    last = max(last, position.get(reader.proto.id, 0))
                                    follow(reader)
                elif user.opcode in _VIEWS:
                    if user.opcode == "while" or user.opcode.endswith("-done"):
                        phases.add(self._program.phase(user))
                    if user.opcode != "while":
                        follow(user)
                else:
                    phases.add(self._program.phase(user))
        result = (last, frozenset(phases), out)
        self._memo[key] = result
        return result

    def phase(self, i: hlo.Instruction) -> str:
        """The phase that made a value; a mere change of layout or type does not make one."""
        for _ in range(16):
            if i.opcode == "get-tuple-element" or (relayout(i) and i.operands):
                i = i.operands[0]
            else:
                break
        return self._program.phase(i)

    def origin(self, values: Iterable[Value]) -> str:
        """The origin of a temporary whose memory `values` share, the first one first."""
        values = list(values)
        if not values:
            return TEMPORARIES
        if any(collective(i) for i, _ in values if i.opcode not in ("get-tuple-element", "tuple")):
            return COLLECTIVES
        phases = [p for p in (self.phase(i) for i, _ in values) if p != OTHER]
        made = phases[0] if phases else OTHER
        read: set[str] = set()
        out = False
        for value in values:
            _, found, reaches = self._read(value)
            read |= found
            out = out or reaches
        if made == FORWARD and BACKWARD in read:
            return RESIDUALS
        # Memory that the forward pass made and the backward pass goes on using in place is no gradient.
        if made == BACKWARD and (OTHER in read or out) and all(p == BACKWARD for p in phases):
            return GRADIENTS
        return TEMPORARIES


class Arguments:
    """The arguments of the entry computation and what each one is for."""

    def __init__(self, program: Program, *, overrides: Mapping[str, str]):
        for pattern, origin in overrides.items():
            if origin not in ORIGINS:
                raise errors.OptionError(
                    f"origin {origin!r} for arguments matching {pattern!r}: "
                    f"expected one of {', '.join(ORIGINS)}"
                )
        self._program = program
        entry = program.module.entry
        self._parameters = {
            i.proto.parameter_number: i for i in entry.instructions if i.opcode == "parameter"
        }
        self.donated = {e.parameter_number for e in program.module.proto.input_output_alias.entries}
        self._overrides = {re.compile(k): v for k, v in overrides.items()}
        root = entry.root
        self._results = (
            {
                (s.element_type, tuple(s.dimensions))
                for s in (root.proto.shape.tuple_shapes or [root.proto.shape])
            }
            if root is not None
            else set()
        )
        self._differentiated = program.differentiated()

    def origin(self, number: int) -> str:
        """`PARAMETERS`, `OPTIMIZER` or `INPUTS` (whatever the step only reads)."""
        p = self._parameters.get(number)
        if p is None:
            return INPUTS
        path = self._program.op_name(p) or p.name
        for pattern, origin in self._overrides.items():
            if pattern.search(path):
                return origin
        shape = p.proto.shape
        floating = shape.element_type in _FLOATS
        # Without donation the evidence for "updated by the step" is a result of the same shape.
        updated = number in self.donated or (
            not self.donated and (shape.element_type, tuple(shape.dimensions)) in self._results
        )
        if not updated:
            return INPUTS
        if not self._differentiated:
            return PARAMETERS
        if floating and self._reaches_derivative(p):
            return PARAMETERS
        return OPTIMIZER

    def _reaches_derivative(self, p: hlo.Instruction) -> bool:
        """Whether a differentiated operation reads the argument, directly or through conversions."""
        pending, seen = [(p, 0)], {p.proto.id}
        while pending:
            value, depth = pending.pop()
            for user in value.users:
                if self._program.phase(user) in (FORWARD, BACKWARD):
                    return True
                # A conversion, a gather of shards or a copy still holds the parameter; an update does not.
                through = user.opcode in _VIEWS or user.opcode == "copy-start"
                through = through or collective(user) is not None or relayout(user)
                if through and depth < 8 and user.proto.id not in seen:
                    seen.add(user.proto.id)
                    pending.append((user, depth + 1))
        return False


def representative(program: Program, values: Iterable[Value]) -> hlo.Instruction | None:
    """The instruction to name for memory that several values share: what computes its content.

    The stacked residuals of a scan are made by a broadcast of zeros before the loop; what the reader wants to
    see is the instruction in the loop's body that writes each layer's slice, and its source line.
    """
    instructions = [
        i for i, _ in values if i.opcode not in ("get-tuple-element", "tuple", "while", "parameter")
    ]
    if not instructions:
        return None
    first = instructions[0]
    if (
        first.opcode in ("fusion", "broadcast", "custom-call")
        and program.source(first)
        and len(instructions) == 1
    ):
        return first
    inside = [i for i in instructions if i.computation is not first.computation and program.source(i)]
    if inside and (first.opcode in ("broadcast", "constant") or not first.operands or _fills(first)):
        return inside[0]
    return first if program.source(first) else next((i for i in instructions if program.source(i)), first)


def content(program: Program, i: hlo.Instruction) -> hlo.Instruction:
    """What computes the value that `i` holds: of an update in place, what computes the slice it writes."""
    update = i
    if i.opcode == "fusion" and i.called and i.called[0].root is not None:
        update = _unwrap(i.called[0].root)
    if update.opcode != "dynamic-update-slice":
        return i
    written = _unwrap(update.operands[1])
    if written.opcode == "parameter" and i.opcode == "fusion":
        written = _unwrap(i.operands[written.proto.parameter_number])
    return written if program.source(written) else i


def _unwrap(i: hlo.Instruction) -> hlo.Instruction:
    while (i.opcode in _RELAYOUT or i.opcode == "get-tuple-element") and len(i.operands) == 1:
        i = i.operands[0]
    return i


def _fills(i: hlo.Instruction) -> bool:
    """Whether a fusion only broadcasts constants."""
    return (
        i.opcode == "fusion"
        and bool(i.called)
        and all(
            x.opcode in ("broadcast", "constant", "parameter", "bitcast", "tuple")
            for x in i.called[0].instructions
        )
    )


def layer(program: Program, i: hlo.Instruction) -> str:
    """The layer an instruction belongs to, by its named scopes or its argument path; empty when unknown."""
    return program_lib.layer_of(program.scope(i))
