"""Software pipelining of a loop in partitioned HLO: gathers an iteration early, reductions an iteration late.

The loop's state grows by one element for each collective that moves. A gather's element holds what this iteration
needs; the body gathers for the next one, and the first gather runs before the loop. A reduction's element holds what
the iteration before wants reduced; the last reduction runs after the loop. No value of the program changes:

- The gather of the last iteration is for an iteration that never runs. Its slice is clamped into the stack, as HLO's
  slices are, and nothing reads it.
- The first iteration reduces zeros and writes them into the slot that it will write again one iteration later, or,
  in a loop of one iteration, that the reduction after the loop writes.

XLA copies an element of the state whose old value is still read when the new one appears. Values that move here are
read early in the iteration and renewed late (or the reverse), so it rarely has to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from farrier._src.collectives.loops import Late, Loop
from farrier._src.hlo import Instruction
from farrier._src.hlo.edit import Editor, cloner


def pipeline(
    editor: Editor, loop: Loop, early: Sequence[Instruction], late: Sequence[Late]
) -> tuple[list[Any], list[Any]]:
    """Moves gathers of `loop.early` and reductions of `loop.late` across iterations.

    Returns:
      The protos of the collectives that now stand in the loop's body for `early` and `late`.
    """
    return _Rewrite(editor, loop).run(early, late)


class _Rewrite:
    def __init__(self, editor: Editor, loop: Loop):
        self.editor = editor
        self.loop = loop
        self.parent = loop.instruction.computation
        self.init = loop.instruction.operands[0]
        self.counter = loop.elements[loop.counter]
        self.step = loop.body.root.operands[loop.counter]
        self.one = next(o for o in self.step.operands if o is not self.counter)
        # Of each new element: its shape, its value before the loop, its next value in the body.
        self.shapes: list[Any] = []
        self.first: list[Any] = []
        self.following: list[Any] = []

    def run(self, early: Sequence[Instruction], late: Sequence[Late]) -> tuple[list[Any], list[Any]]:
        moved_early = self._gathers(early)
        moved_late = self._reductions(late) if late else []
        self._widen()
        return moved_early, moved_late

    def _gathers(self, early: Sequence[Instruction]) -> list[Any]:
        ahead = self._copier_in_body(self.step.proto)
        before = self._copier_before()
        moved = []
        for g in early:
            users = list(g.users)
            self.editor.replace(users, g.proto, self._carry(g))
            moved.append(ahead(g))
            self.first.append(before(g))
            self.following.append(moved[-1])
        return moved

    def _reductions(self, late: Sequence[Late]) -> list[Any]:
        e, body = self.editor, self.loop.body
        w = self.loop.instruction.proto
        integer = self.counter.proto.shape
        start = self.init.operands[self.loop.counter].proto
        # The counter of the iteration before; the first iteration takes its own, see above.
        lower = e.add(body, "subtract", integer, [self.counter.proto, self.one.proto], self.step.proto)
        past = e.add(body, "maximum", integer, [lower, e.clone(body, start, [])], self.step.proto)
        end = e.element(self.parent, w, self.loop.counter)
        last = e.add(
            self.parent, "subtract", integer, [end, e.clone(self.parent, self.one.proto, [])], self.step.proto
        )
        moved = []
        for one in late:
            # Read before the state has grown: of an element that ends up as it was, the loop's result is its value.
            operand = one.reduction.operands[0]
            waiting = self._carry(operand)
            left = e.add(self.parent, "get-tuple-element", operand.proto.shape, [w], operand.proto)
            left.tuple_index = waiting.tuple_index
            inside = self._copier_in_body(past, {id(operand): waiting})
            after = self._copier_after(last, {id(operand): left})
            for update in one.updates:
                place = next(k for k, o in enumerate(body.root.operands) if o is update)
                readers = [g for g in self.loop.instruction.users if g.proto.tuple_index == place]
                e.replace([body.root], update.proto, inside(update))
                end_value = after(update)
                for g in readers:
                    e.replace(g.users, g.proto, end_value)
                    if self.parent.root is g:
                        e.set_root(self.parent, end_value)
            moved.append(inside(one.reduction))
            zero = e.zero(self.parent, operand.proto)
            self.first.append(e.add(self.parent, "broadcast", operand.proto.shape, [zero], operand.proto))
            self.following.append(e.operand(one.reduction.proto, 0))
        return moved

    def _carry(self, value: Instruction) -> Any:
        """A new element of the state that has the shape of `value`; what the body reads of it."""
        shape = value.proto.shape
        p = self.editor.add(
            self.loop.body, "get-tuple-element", shape, [self.loop.parameter.proto], value.proto
        )
        p.tuple_index = len(self.init.operands) + len(self.shapes)
        self.shapes.append(shape)
        return p

    def _copier_in_body(
        self, counter: Any, standing: dict[int, Any] | None = None
    ) -> Callable[[Instruction], Any]:
        """Copies values of the body within it, with `counter` for the counter."""

        def leaf(i: Instruction) -> Any | None:
            if standing and id(i) in standing:
                return standing[id(i)]
            if i.opcode != "get-tuple-element":
                return None
            return counter if i is self.counter else i.proto

        return cloner(self.editor, self.loop.body, leaf)

    def _copier_before(self) -> Callable[[Instruction], Any]:
        """Copies values of the body to before the loop, as they are in its first iteration."""

        def leaf(i: Instruction) -> Any | None:
            if i.opcode != "get-tuple-element":
                return None
            return self.editor.operand(self.init.proto, i.proto.tuple_index)

        return cloner(self.editor, self.parent, leaf)

    def _copier_after(self, counter: Any, standing: dict[int, Any]) -> Callable[[Instruction], Any]:
        """Copies values of the body to after the loop, with `counter` for the counter."""

        def leaf(i: Instruction) -> Any | None:
            if id(i) in standing:
                return standing[id(i)]
            if i.opcode != "get-tuple-element":
                return None
            if i is self.counter:
                return counter
            return self.editor.element(self.parent, self.loop.instruction.proto, i.proto.tuple_index)

        return cloner(self.editor, self.parent, leaf)

    def _widen(self) -> None:
        e, loop = self.editor, self.loop
        for old, more in ((loop.body.root, self.following), (self.init, self.first)):
            new = e.clone(old.computation, old.proto, [])
            new.operand_ids.extend([*old.proto.operand_ids, *(p.id for p in more)])
            e.widen(new, self.shapes)
            if old is self.init:
                e.replace([loop.instruction], old.proto, new)
            else:
                e.set_root(loop.body, new)
        parameters = [i for i in loop.condition.instructions if i.opcode == "parameter"]
        for i in (loop.instruction, loop.parameter, *parameters):
            e.widen(i.proto, self.shapes)
            e.touch(i.computation)
