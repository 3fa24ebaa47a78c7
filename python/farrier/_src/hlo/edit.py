"""Changing an HLO module in place, through its proto: new instructions, clones, wider loops.

`Module` is the reading side; `Editor` writes to the same proto messages and puts each computation back into an order in
which operands come before their users, as XLA wants them. Fields that farrier does not declare travel along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from farrier._src.hlo.module import Computation, Instruction, Module

# Where a Literal message keeps values of a floating-point type: f16, f32, f64, bf16.
_ZEROS: dict[int, tuple[str, Any]] = {
    10: ("f16s", b"\0\0"),
    11: ("f32s", 0.0),
    12: ("f64s", 0.0),
    16: ("bf16s", b"\0\0"),
}
_LOCAL = (1 << 32) - 1


class Editor:
    """Edits one module; call `finish` once at the end."""

    def __init__(self, module: Module):
        self.module = module
        self.protos = {c.id: c for c in module.proto.computations}
        self._names = {i.name for c in module.proto.computations for i in c.instructions}
        self._next = {
            c.id: max((i.id & _LOCAL for i in c.instructions), default=0) + 1
            for c in module.proto.computations
        }
        self._channel = max(
            (i.channel_id for c in module.proto.computations for i in c.instructions), default=0
        )
        self._touched: set[int] = set()
        self._by_id = {i.id: i for c in module.proto.computations for i in c.instructions}
        # Instructions that may be left without a reader; those that then are, go.
        self._loose: list[Any] = []

    def operand(self, p: Any, index: int) -> Any:
        """The proto that `p` reads now, which need not be what its `Instruction` was read with."""
        return self._by_id[p.operand_ids[index]]

    def add(
        self, computation: Computation, opcode: str, shape: Any, operands: Sequence[Any], like: Any
    ) -> Any:
        """A new instruction.

        Args:
          computation: where.
          opcode: what.
          shape: a Shape message.
          operands: protos of instructions of the same computation.
          like: a proto whose metadata (name, source line) it gets.
        """
        p = self.protos[computation.id].instructions.add(opcode=opcode)
        p.shape.CopyFrom(shape)
        p.metadata.CopyFrom(like.metadata)
        self._number(computation, p, opcode)
        p.operand_ids.extend(o.id for o in operands)
        return p

    def clone(self, computation: Computation, source: Any, operands: Sequence[Any]) -> Any:
        """A copy of `source` (a proto, of any computation) on other operands; collectives get a channel of their own."""
        p = self.protos[computation.id].instructions.add()
        p.CopyFrom(source)
        self._number(computation, p, source.opcode)
        del p.operand_ids[:]
        p.operand_ids.extend(o.id for o in operands)
        del p.control_predecessor_ids[:]
        if p.channel_id > 0:
            self._channel += 1
            p.channel_id = self._channel
        return p

    def element(self, computation: Computation, of: Any, index: int) -> Any:
        """A new get-tuple-element of `of`."""
        p = self.add(computation, "get-tuple-element", of.shape.tuple_shapes[index], [of], of)
        p.tuple_index = index
        return p

    def zero(self, computation: Computation, like: Any) -> Any:
        """A constant of no dimensions: the zero of the element type of `like`, a floating-point type of HLO's."""
        shape = type(like.shape)(element_type=like.shape.element_type)
        shape.layout.SetInParent()
        p = self.add(computation, "constant", shape, [], like)
        p.literal.shape.CopyFrom(shape)
        field, value = _ZEROS[shape.element_type]
        if isinstance(value, bytes):
            setattr(p.literal, field, value)
        else:
            getattr(p.literal, field).append(value)
        return p

    def set_root(self, computation: Computation, root: Any) -> None:
        """Makes `root` the result of `computation`."""
        self._loose.append(self._by_id[self.protos[computation.id].root_id])
        self.protos[computation.id].root_id = root.id
        self._touched.add(computation.id)

    def replace(self, users: Iterable[Instruction], old: Any, new: Any) -> None:
        """Makes `users` read `new` where they read `old`."""
        self._loose.append(old)
        for user in users:
            for k, operand in enumerate(user.proto.operand_ids):
                if operand == old.id:
                    user.proto.operand_ids[k] = new.id
            self._touched.add(user.computation.id)

    def widen(self, tuple_proto: Any, shapes: Sequence[Any]) -> None:
        """Gives a tuple-shaped instruction further elements at the end."""
        for shape in shapes:
            tuple_proto.shape.tuple_shapes.add().CopyFrom(shape)

    def touch(self, computation: Computation) -> None:
        """Notes that `computation` was changed through its protos."""
        self._touched.add(computation.id)

    def finish(self) -> bytes:
        """The serialized module, changed computations in order."""
        for c in self.module.proto.computations:
            if c.id in self._touched:
                _rebuild(c, {p.id for p in self._loose})
                c.ClearField("program_shape")
        return self.module.proto.SerializeToString(deterministic=True)

    def _number(self, computation: Computation, p: Any, stem: str) -> None:
        high = self.protos[computation.id].instructions[0].id & ~_LOCAL
        p.id = high | self._next[computation.id]
        self._next[computation.id] += 1
        stem = p.name.rsplit(".", 1)[0] if p.name else stem
        number = 0
        while (name := f"{stem}.farrier{number}") in self._names:
            number += 1
        self._names.add(name)
        p.name = name
        self._by_id[p.id] = p
        self._touched.add(computation.id)


def cloner(
    editor: Editor, computation: Computation, leaf: Callable[[Instruction], Any | None]
) -> Callable[[Instruction], Any]:
    """A function that copies an instruction and all that it is made of into `computation`, each once.

    `leaf` gives the proto that stands for an instruction there, or None where it is to be copied itself.
    """
    made: dict[int, Any] = {}

    def copy(i: Instruction) -> Any:
        stack = [i]
        while stack:
            top = stack[-1]
            if id(top) in made:
                stack.pop()
                continue
            standing = leaf(top)
            if standing is not None:
                made[id(top)] = standing
                continue
            missing = [o for o in top.operands if id(o) not in made]
            if missing:
                stack += missing
                continue
            made[id(top)] = editor.clone(computation, top.proto, [made[id(o)] for o in top.operands])
        return made[id(i)]

    return copy


def _rebuild(computation: Any, loose: set[int]) -> None:
    """Operands and control predecessors before their users, otherwise as it was; without what `loose` left unread."""
    by_id = {i.id: i for i in computation.instructions}
    dead = _dead(computation, by_id, loose & set(by_id))
    order: list[Any] = []
    opened: set[int] = set()
    placed: set[int] = set()
    for first in computation.instructions:
        stack = [] if first.id in dead else [first.id]
        while stack:
            top = stack[-1]
            if top in placed:
                stack.pop()
            elif top in opened:
                stack.pop()
                placed.add(top)
                order.append(by_id[top])
            else:
                opened.add(top)
                before = [*by_id[top].operand_ids, *by_id[top].control_predecessor_ids]
                stack += [k for k in reversed(before) if k not in placed]
                if any(k in opened and k not in placed for k in before):
                    raise ValueError(f"{by_id[top].name} waits for itself")
    data = [i.SerializeToString(deterministic=True) for i in order]
    del computation.instructions[:]
    for one in data:
        computation.instructions.add().ParseFromString(one)


def _dead(computation: Any, by_id: dict[int, Any], loose: set[int]) -> set[int]:
    """Those of `loose` that nothing reads any more, and what only they read."""
    readers: dict[int, int] = dict.fromkeys(by_id, 0)
    for i in computation.instructions:
        for k in (*i.operand_ids, *i.control_predecessor_ids):
            readers[k] += 1
    dead: set[int] = set()
    pending = sorted(loose)
    while pending:
        k = pending.pop()
        i = by_id[k]
        if k in dead or readers[k] or k == computation.root_id or i.opcode == "parameter":
            continue
        dead.add(k)
        for o in (*i.operand_ids, *i.control_predecessor_ids):
            readers[o] -= 1
            pending.append(o)
    return dead
