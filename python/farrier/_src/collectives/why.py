"""Why a collective's time was not hidden, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from farrier._src.hlo import Instruction
from farrier._src.remarks import milliseconds

# Below this part of a collective's time, what could run beside it counts as nothing.
_NOTHING = 0.1
# From this part of the wait on, it is said to be for others on the same stream.
_QUEUED = 0.5
# Of milliseconds: one collective may take a few microseconds.
_DIGITS = 3


def reason(
    start: Instruction,
    seconds: float,
    exposed: float,
    runs: int,
    hideable: float,
    queued: float,
    behind: Instruction | None,
    *,
    looped: bool,
) -> str:
    """One sentence, without a full stop.

    Args:
      start: the collective, or its start.
      seconds, exposed, queued: all its runs together.
      runs: how often it runs in a step.
      hideable: kernels of its computation that neither feed it nor need it, of one run.
      behind: what the stream was busy with when it was issued, where it was.
      looped: whether its computation is a loop's body.
    """
    once = seconds / runs
    if hideable < _NOTHING * once:
        if looped and (carried := _carried(start)):
            return (
                f"each iteration of its loop waits for the one before: it depends on {carried} and makes it, and next "
                "to nothing of the iteration is independent of it"
            )
        where = "in its iteration" if looped else "in the program"
        return f"next to nothing {where} is independent of it: kernels feed it or need it"
    if queued >= _QUEUED * exposed and behind is not None:
        return (
            f"it is ordered behind other collectives on the same stream, the last {behind.name}: they were still being "
            f"sent for {milliseconds(queued / runs, _DIGITS)} ms after it was issued"
        )
    independent = f"{milliseconds(hideable, _DIGITS)} ms of kernels are independent of it"
    if hideable < once:
        return f"not enough to run beside it: {independent}, it takes {milliseconds(once, _DIGITS)} ms"
    if not start.opcode.endswith("-start"):
        return f"it is synchronous: {independent}, but the schedule has none of them between its start and its end"
    return f"the order does not use what there is: {independent}, it takes {milliseconds(once, _DIGITS)} ms"


def _carried(start: Instruction) -> str:
    """The element of the loop's state that the collective reads and that the next iteration gets from it."""
    body = start.computation
    read = {
        i.proto.tuple_index
        for i in _reach((start,), lambda i: i.operands)
        if i.opcode == "get-tuple-element" and i.operands[0].opcode == "parameter"
    }
    after = {id(i) for i in _reach((start,), lambda i: i.users)}
    root = body.root
    if root is None or root.opcode != "tuple":
        return ""
    both = [k for k, o in enumerate(root.operands) if k in read and id(o) in after]
    return f"element {both[0]} of the loop's state" if both else ""


def _reach(
    start: Iterable[Instruction], following: Callable[[Instruction], Sequence[Instruction]]
) -> list[Instruction]:
    seen: set[int] = set()
    found: list[Instruction] = []
    pending = list(start)
    while pending:
        i = pending.pop()
        if id(i) not in seen:
            seen.add(id(i))
            found.append(i)
            pending += following(i)
    return found
