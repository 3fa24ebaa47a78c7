"""What farrier changes in a partitioned module before XLA schedules it: buckets, and collectives across iterations.

XLA joins small collectives before its scheduler looks at them, by size alone: the gradients of a layer become one
reduction that can start when the last of them exists. Buckets (frontend attribute ``combiner_key``) let it join only
those that are ready, or wanted, at about the same time, up to what makes the latency small beside the bytes. What its
own iteration cannot hide moves to the one before or after (`pipelining`).

Decisions are taken with the products' time alone, which is known before fusion, and with collectives as the slowest of
the parameter sets has them: both leave room. Whether they were worth it, the compiled program says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farrier._src.collectives import loops as loops_lib
from farrier._src.collectives import pipelining, pricing, program
from farrier._src.collectives.costs import CostModel
from farrier._src.hlo import Computation, Instruction, Module
from farrier._src.hlo.edit import Editor

if TYPE_CHECKING:
    from farrier._src.collectives.schedule import SchedulePlan

# A bucket takes no more in once it holds so many latencies of bytes.
_BUCKET_LATENCIES = 4.0
_KEY = "combiner_key"
_GATHERS = ("all-gather",)
_REDUCTIONS = ("all-reduce", "reduce-scatter")


@dataclasses.dataclass(kw_only=True)
class Prepared:
    """What was done to a module."""

    early: int = 0
    """Gathers that are issued one iteration early."""
    late: int = 0
    """Reductions that are issued one iteration late."""
    buckets: int = 0
    """Groups of collectives that XLA may join."""
    carried_bytes: int = 0
    """By which loops' states grew, per device."""
    left_bytes: int = 0
    """By which they would have grown beyond that, if memory had allowed it."""

    @property
    def changed(self) -> bool:
        """Whether anything was."""
        return bool(self.early or self.late or self.buckets)


def prepare(module: Module, plan: SchedulePlan) -> tuple[bytes | None, Prepared]:
    """Applies what `plan` asks for before the scheduler.

    Args:
      module: partitioned HLO, not fused yet; its protos are changed.
      plan: what to do, and the speeds to decide with.

    Returns:
      The serialized new module, or None where nothing was found to change; and what was done.
    """
    work = _Prepare(module, plan)
    work.run()
    return (work.editor.finish() if work.done.changed else None), work.done


def promising(module: Module) -> tuple[bool, bool]:
    """Whether loops, and whether buckets, are worth a try, judging by a module that XLA compiled without them.

    The first looks for collectives in loops that need not belong to one iteration: gathers, and reductions whose
    result is only written into a stack. The second looks for reductions that XLA has joined.
    """
    loops = joined = False
    bodies = {id(c) for i in module.instructions() if i.opcode == "while" for c in i.called}
    for i in module.instructions():
        collective = program.collective_of(i)
        if collective is None:
            continue
        kind = program.kind_of(collective)
        if kind in _REDUCTIONS:
            joined = joined or len(collective.operands) > 1
        if id(i.computation) in bodies:
            loops = (
                loops or kind in ("all-gather", "reduce-scatter") or (kind == "all-reduce" and _is_stacked(i))
            )
    return loops, joined


def _is_stacked(i: Instruction) -> bool:
    """Whether what a collective makes is only read by updates of stacks, in place."""
    users, readers = list(i.users), []
    while users:
        u = users.pop()
        if u.opcode in ("all-reduce-done", "async-done", "get-tuple-element", "bitcast"):
            users += u.users
        else:
            readers.append(u)
    roots = [u.called[0].root if u.opcode == "fusion" and u.called else u for u in readers]
    return bool(roots) and all(r is not None and r.opcode == "dynamic-update-slice" for r in roots)


class _Prepare:
    def __init__(self, module: Module, plan: SchedulePlan):
        self.module = module
        self.plan = plan
        self.editor = Editor(module)
        self.costs = CostModel(plan, plan.parameters[0])
        self.done = Prepared()
        self.moved: set[int] = set()
        found = [
            i for i in module.instructions() if i.opcode in (*_GATHERS, *_REDUCTIONS) and len(i.operands) == 1
        ]
        self.prices = pricing.collectives(module, found, plan.parameters)

    def run(self) -> None:
        for loop in list(loops_lib.find(self.module)) if self.plan.pipeline else []:
            work = _Work(loop.body, self.costs)
            early, late = self._early(loop, work), self._late(loop, work)
            if not early and not late:
                continue
            self.done.early += len(early)
            self.done.late += len(late)
            self.moved |= {id(g) for g in early} | {id(r.reduction) for r in late}
            moved_early, moved_late = pipelining.pipeline(self.editor, loop, early, late)
            if self.plan.buckets:
                self._fill([(g, p) for g, p in zip(early, moved_early, strict=True)], "next")
                self._fill([(r.reduction, p) for r, p in zip(late, moved_late, strict=True)], "late")
        if self.plan.buckets:
            for c in self.module.computations:
                self._bucket(c)

    # --- what moves -----------------------------------------------------------------------------------------

    def _early(self, loop: loops_lib.Loop, work: _Work) -> list[Instruction]:
        """Gathers that the products before their readers do not hide, in the order in which they are wanted."""
        chosen, sent = [], 0.0
        for g in sorted(loop.early, key=work.wanted):
            seconds = self._sent(sent, g)
            if seconds <= work.wanted(g):
                sent = seconds
            elif self._fits(g.bytes):
                chosen.append(g)
        return chosen

    def _late(self, loop: loops_lib.Loop, work: _Work) -> list[loops_lib.Late]:
        """Reductions that the products after their operands do not hide, the last first."""
        root = loop.body.root
        assert root is not None  # loops.find
        stacks = {id(u) for one in loop.late for u in one.updates}
        chain = [o for o in root.operands if id(o) not in stacks]
        chosen, sent = [], 0.0
        rest = {id(one): work.after(one.reduction, chain) for one in loop.late}
        for one in sorted(loop.late, key=lambda one: rest[id(one)]):
            seconds = self._sent(sent, one.reduction)
            if seconds <= rest[id(one)]:
                sent = seconds
            elif self._fits(one.reduction.operands[0].bytes):
                chosen.append(one)
        return chosen

    def _sent(self, sent: float, i: Instruction) -> float:
        """When `i` has been sent, `sent` being when the ones before it have; they share its latency."""
        price = self.prices[id(i)]
        return max(sent, price.latency) + price.seconds - price.latency

    def _fits(self, size: int) -> bool:
        if self.done.carried_bytes + size > self.plan.memory_growth_bytes:
            self.done.left_bytes += size
            return False
        self.done.carried_bytes += size
        return True

    # --- buckets --------------------------------------------------------------------------------------------

    def _bucket(self, c: Computation) -> None:
        for kinds, name in ((_GATHERS, "gather"), (_REDUCTIONS, "reduce")):
            found = [
                i
                for i in c.instructions
                if i.opcode in kinds
                and id(i) in self.prices
                and id(i) not in self.moved
                and not _has_key(i.proto)
            ]
            if len(found) < 2:
                continue
            work = _Work(c, self.costs)
            found.sort(key=work.wanted if kinds is _GATHERS else work.ready)
            self._fill([(i, i.proto) for i in found], name)

    def _fill(self, members: Sequence[tuple[Instruction, Any]], name: str) -> None:
        """Puts neighbours of `members` (priced instruction, its proto now) into buckets."""
        number, held = 0, 0.0
        for i, p in members:
            price = self.prices[id(i)]
            p.frontend_attributes.map.add(key=_KEY, value=f"farrier_{name}_{number}")
            self.editor.touch(i.computation)
            held += price.seconds - price.latency
            if held > _BUCKET_LATENCIES * price.latency:
                number, held = number + 1, 0.0
        if members:
            self.done.buckets += number + (held > 0)


def _has_key(p: Any) -> bool:
    return any(a.key == _KEY for a in p.frontend_attributes.map)


class _Work:
    """The time of the products that come before an instruction of one computation, seconds."""

    def __init__(self, c: Computation, costs: CostModel):
        self._seconds: list[float] = []
        # By instruction: a set of products, as bits. All others have no number, which keeps the sets small.
        self._before: dict[int, int] = {}
        self._own: dict[int, int] = {}
        for i in c.instructions:
            before = 0
            for o in i.operands:
                before |= self._before[id(o)] | self._own.get(id(o), 0)
            self._before[id(i)] = before
            if time := costs.matrix(i):
                self._own[id(i)] = 1 << len(self._seconds)
                self._seconds.append(time / 1e6)

    def wanted(self, gather: Instruction) -> float:
        """Before the first reader of `gather`."""
        return min((self._sum(self._before[id(u)]) for u in gather.users), default=0.0)

    def ready(self, reduction: Instruction) -> float:
        """Before `reduction`."""
        return self._sum(self._before[id(reduction)])

    def after(self, reduction: Instruction, chain: Sequence[Instruction]) -> float:
        """Of what the values of `chain` need, all that `reduction` does not wait for."""
        needed = 0
        for i in chain:
            needed |= self._before[id(i)] | self._own.get(id(i), 0)
        return self._sum(needed & ~self._before[id(reduction)])

    def _sum(self, products: int) -> float:
        total = 0.0
        while products:
            low = products & -products
            total += self._seconds[low.bit_length() - 1]
            products ^= low
        return total
