"""One exchange of memory between rematerialization and the schedule of collectives.

Rematerialization fills the budget first; the schedule gets what is measured to be left, and says what more memory
would be worth to it. That is one price of a byte, in exposed communication. The other is what it costs to compute
more values twice, which the planner of rematerialization says without a compile. Unless the second is clearly higher,
that much memory changes hands, for one compile, or for two where collectives are to move across iterations; the result stays
only where its step is faster under every parameter set and within the budget, as XLA measures it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from farrier._src.pipeline import Context
from farrier._src.remarks import Remark, milliseconds

_NAME = "collectives"
# Both prices are estimates. Recomputation was seen priced at 2.4 ms of a step of 32 that it made 1.3 ms faster: what a
# scan keeps for its backward is also zeroed, written and read. Up to this part of the step the compile is asked.
_DOUBT = 0.08


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """Both decisions after the exchange."""

    remat: Mapping[str, Any] | None = None
    """None: memory stays where it was."""
    late: Mapping[str, Any] | None = None
    compiles: int = 0
    """Compiles that were spent."""


def exchange(
    module: Any,
    remat: Any,
    late: Any,
    decided: Mapping[str, Any] | None,
    measured: Mapping[str, Any],
    context: Context,
    ask: Callable[..., Any],
) -> Exchanged:
    """Tries the exchange; where memory stays where it is, a remark says why.

    Args:
      module: the program that rematerialization decided for, left as it is.
      remat: the driver of rematerialization.
      late: the driver that spends what is left, after its `plan`; with ``wishes``, ``step_seconds`` and
        ``exchange``.
      decided: the plan of `remat` that it planned after; None: nothing is computed twice.
      measured: the search's report: "estimate", and the measurements "before" and "after".
      context: of the search.
      ask: ``ask(driver, module, context, **budget)``, one decision of a pass.
    """
    wishes = late.wishes
    if not wishes or "after" not in measured:
        return Exchanged()
    temp = measured["after"]["temp_bytes"]
    # In the planner's own bytes, which are off from XLA's by what they were for the plan at hand.
    held = decided["predicted"]["after"] if decided else measured["estimate"]
    paid = decided["predicted"]["seconds"] if decided else 0.0
    host = bool(decided and decided["predicted"].get("host_bytes"))
    offers = []
    for wish in wishes:
        plan = None
        if wish.bytes < temp:
            budget = int(held * (1 - wish.bytes / temp))
            plan = ask(remat, module, context, temp_budget=budget, host=host)
        if plan is None or not plan["predicted"].get("fits", True):
            continue
        offers.append((wish.seconds - (plan["predicted"]["seconds"] - paid), wish, plan))

    def said(message: str, **args: Any) -> None:
        context.remark(Remark(_NAME, message, args=args))

    if not offers:
        first = wishes[0]
        said(
            f"{first.bytes:,} bytes more would save {milliseconds(first.seconds)} ms of exposed communication, and nothing is "
            "left to compute twice for them"
        )
        return Exchanged()
    gain, wish, plan = max(offers, key=lambda offer: (offer[0], -offer[1].bytes))
    price = wish.seconds - gain
    prices = (
        f"{wish.bytes:,} bytes are worth {milliseconds(wish.seconds)} ms of exposed communication and cost {milliseconds(price)} ms of "
        "recomputation"
    )
    figures = {"Bytes": wish.bytes, "ExposedSeconds": wish.seconds, "RecomputedSeconds": price}
    if -gain > _DOUBT * late.step_seconds or context.clock.expired():
        said(f"memory stays where it is: {prices}", **figures)
        return Exchanged()
    version = module.clone()
    remat.apply(version, plan)
    # Plans come in steps: what is freed over what was asked for is the schedule's too.
    freed = temp - round(temp * plan["predicted"]["after"] / held)
    room = dataclasses.replace(wish, growth=wish.growth + max(0, freed - wish.bytes))
    changed, why = late.exchange(version, room, context)
    if changed is None:
        said(f"memory stays where it is: {prices}, but the compiled step {_after(why)}", **figures)
        return Exchanged(compiles=late.compiles)
    said(f"memory moved from residuals to the schedule: {prices}; {why}", **figures)
    return Exchanged(plan, changed, late.compiles)


def _after(why: str) -> str:
    """A reason as the end of a sentence about the step."""
    return why if why.startswith("needs") else f"is refused: {why}"
