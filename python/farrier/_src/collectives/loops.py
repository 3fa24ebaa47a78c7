"""Loops of partitioned HLO in which a collective may move to the iteration before or after its own.

A gather whose operand is made of values that no iteration changes and of the loop's counter can be issued one
iteration early; a reduction whose result only goes into one slot of a stack can be issued one iteration late.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from farrier._src.hlo import Computation, Instruction, Module

# Operations on arrays without effects that give the same elements wherever and whenever they run. Products and
# reductions are left out: they are worth doing once.
_MOVES = frozenset(
    (
        "bitcast",
        "bitcast-convert",
        "broadcast",
        "concatenate",
        "constant",
        "convert",
        "copy",
        "dynamic-slice",
        "iota",
        "pad",
        "partition-id",
        "replica-id",
        "reshape",
        "reverse",
        "slice",
        "transpose",
    )
)
_ELEMENTWISE = frozenset(
    (
        "abs",
        "add",
        "and",
        "clamp",
        "compare",
        "divide",
        "maximum",
        "minimum",
        "multiply",
        "negate",
        "not",
        "or",
        "remainder",
        "select",
        "shift-left",
        "shift-right-arithmetic",
        "shift-right-logical",
        "sign",
        "subtract",
        "xor",
    )
)
_CHEAP = _MOVES | _ELEMENTWISE
_REDUCTIONS = frozenset(["all-reduce", "reduce-scatter"])
# Element types of gradients: f16, f32, f64, bf16.
_FLOATS = frozenset((10, 11, 12, 16))


@dataclasses.dataclass
class Late:
    """A reduction that may be issued in the next iteration."""

    reduction: Instruction
    tail: list[Instruction]
    """What makes its result into stacks' slots, in program order, the updates of the stacks last included."""
    updates: list[Instruction]
    """dynamic-update-slices, each the next value of one element of the loop's state and the only reader of its
    last value."""


@dataclasses.dataclass
class Loop:
    """A while loop with a counter, and what may move between its iterations."""

    instruction: Instruction
    body: Computation
    condition: Computation
    parameter: Instruction
    elements: dict[int, Instruction]
    """The body's get-tuple-element by element of its state."""
    counter: int
    """The element that counts: a constant at first, one more after each iteration."""
    trips: int
    invariant: frozenset[int]
    """Elements that the body hands on as they are."""
    early: list[Instruction]
    """Gathers that may be issued one iteration early, in program order."""
    late: list[Late]


def find(module: Module) -> Iterator[Loop]:
    """The loops of `module` in which something may move, in the order of its computations."""
    callers: dict[int, int] = {}
    for i in module.instructions():
        for c in i.called:
            callers[id(c)] = callers.get(id(c), 0) + 1
    for c in module.computations:
        for i in c.instructions:
            if i.opcode == "while" and all(callers[id(called)] == 1 for called in i.called):
                loop = _read(i)
                if loop is not None and (loop.early or loop.late):
                    yield loop


def _read(i: Instruction) -> Loop | None:
    if len(i.called) != 2 or any(u.opcode != "get-tuple-element" for u in i.users):
        return None
    # The condition is the one that answers yes or no.
    conditions = [c for c in i.called if c.root is not None and c.root.proto.shape.element_type == 1]
    bodies = [c for c in i.called if c not in conditions]
    if len(conditions) != 1 or len(bodies) != 1:
        return None
    condition, body = conditions[0], bodies[0]
    parameters = [p for p in body.instructions if p.opcode == "parameter"]
    root, init = body.root, i.operands[0]
    if len(parameters) != 1 or root is None or root.opcode != "tuple" or init.opcode != "tuple":
        return None
    parameter = parameters[0]
    elements: dict[int, Instruction] = {}
    for user in parameter.users:
        if user.opcode != "get-tuple-element" or user.proto.tuple_index in elements:
            return None
        elements[user.proto.tuple_index] = user
    found = _counter(condition, root, init, elements)
    if found is None:
        return None
    counter, trips = found
    invariant = frozenset(k for k, o in enumerate(root.operands) if o is elements.get(k))
    loop = Loop(i, body, condition, parameter, elements, counter, trips, invariant, [], [])
    available = _Available(loop)
    loop.early = [
        g
        for g in body.instructions
        if g.opcode == "all-gather" and len(g.operands) == 1 and available(g.operands[0])
    ]
    # What is made of the counter and invariant values alone is no gradient, whatever is done with it.
    for r in body.instructions:
        if (
            r.opcode in _REDUCTIONS
            and len(r.operands) == 1
            and r.operands[0].proto.shape.element_type in _FLOATS
        ):
            if available(r.operands[0]):
                continue
            late = _late(r, loop, available)
            if late is not None:
                loop.late.append(late)
    return loop


def _constant(i: Instruction) -> int | None:
    """The value of an integer constant of no dimensions."""
    if i.opcode != "constant" or i.dims:
        return None
    literal = i.proto.literal
    for values in (literal.s32s, literal.s64s, literal.u32s, literal.u64s):
        if len(values) == 1:
            return int(values[0])
    return None


def _counter(
    condition: Computation, root: Instruction, init: Instruction, elements: dict[int, Instruction]
) -> tuple[int, int] | None:
    """The counting element and how often the loop runs; None where it is not this plain."""
    test = condition.root
    if test.opcode != "compare" or test.proto.comparison_direction != "LT" or len(test.operands) != 2:
        return None
    left, right = test.operands
    if left.opcode != "get-tuple-element" or (limit := _constant(right)) is None:
        return None
    k = left.proto.tuple_index
    start, step = _constant(init.operands[k]), root.operands[k]
    element = elements.get(k)
    if start is None or element is None or step.opcode != "add" or element not in step.operands:
        return None
    other = step.operands[1] if step.operands[0] is element else step.operands[0]
    if _constant(other) != 1 or limit <= start:
        return None
    return k, limit - start


class _Available:
    """Whether a value of the body is made of the counter and of invariant elements by cheap operations alone."""

    def __init__(self, loop: Loop):
        self._known: dict[int, bool] = {id(loop.parameter): False}
        for k, e in loop.elements.items():
            self._known[id(e)] = k in loop.invariant or k == loop.counter

    def __call__(self, i: Instruction) -> bool:
        stack = [i]
        while stack:
            top = stack[-1]
            if id(top) in self._known:
                stack.pop()
                continue
            missing = [o for o in top.operands if id(o) not in self._known]
            if missing:
                stack += missing
                continue
            self._known[id(top)] = top.opcode in _CHEAP and all(self._known[id(o)] for o in top.operands)
        return self._known[id(i)]


def _late(reduction: Instruction, loop: Loop, available: _Available) -> Late | None:
    """`reduction` with all that is made of it, if that ends in slots of stacks that nothing else looks at."""
    root = loop.body.root
    tail: set[int] = {id(reduction)}
    updates: list[Instruction] = []
    pending = list(reduction.users)
    while pending:
        user = pending.pop()
        if id(user) in tail:
            continue
        tail.add(id(user))
        if user.opcode != "dynamic-update-slice":
            if user.opcode not in _CHEAP:
                return None
            pending += user.users
            continue
        stack = user.operands[0]
        places = [k for k, o in enumerate(root.operands) if o is user]
        if user.users != [root] or len(places) != 1:
            return None
        if (
            stack is not loop.elements.get(places[0])
            or stack.users != [user]
            or id(user.operands[1]) not in tail
        ):
            return None
        if not all(available(o) for o in user.operands[2:]):
            return None
        updates.append(user)
    if not updates:
        return None
    ordered = [i for i in loop.body.instructions if id(i) in tail]
    stacks = {id(u.operands[0]) for u in updates}
    for i in ordered[1:]:
        if not all(id(o) in tail or id(o) in stacks or available(o) for o in i.operands):
            return None
    return Late(reduction, ordered, [i for i in ordered if i in updates])
