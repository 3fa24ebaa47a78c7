"""The search for a plan: plan, compile, measure, correct.

The estimator predicts what XLA will need; XLA says what it does need. Each compile corrects the next plan:
what the prediction was off by is taken from the budget the planner sees. The search ends when the budget is
kept and little of it is left over, when nothing is recomputed at all, or after ``max_compiles``.

Transfers to host memory are the least certain part of a plan: what is under way takes device memory that the
estimator can misjudge. A plan with transfers that XLA refuses, or that is measured over the budget, is followed
by one without.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from farrier._src import errors, limits
from farrier._src.pipeline import Context, StepPlan

# A plan that leaves more of the budget than this unused is tightened while compiles are left: what is
# recomputed for memory nobody asked back is waste.
_SLACK = 0.02

# Where not even the plan of the least predicted memory keeps the budget, the cheapest one predicted this much
# above it is tried: with fewer recomputations in flight XLA can need less for it.
_NEARLY_LEAST = 1.03

# Of the budget, the most that what a plan with transfers was off by takes from the next one without: most of it
# is what was under way, which the next plan does not have.
_MOST_CARRIED = 0.08


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """One plan, compiled."""

    plan: Mapping[str, Any]
    predicted_temp: int
    seconds: float
    measurement: Any


def plan_step(module: Any, drivers: Sequence[Any], context: Context) -> StepPlan:
    """Decides for `module` (a `farrier._core.Module`, left as it is).

    Passes that do not depend on the budget decide first and once; rematerialization then brings the program
    they leave within the budget; those that spend memory see what is left of it.

    Raises:
      farrier.BudgetError: the budget binds and no plan keeps it; names the smallest total that was measured.
    """
    late = [driver for driver in drivers if getattr(driver, "spends_slack", False)]
    decided = _within_budget(module, [driver for driver in drivers if driver not in late], context)
    if not late:
        return decided
    current = module.clone()
    for driver in drivers:
        if driver.name in decided.passes:
            driver.apply(current, decided.passes[driver.name])
    passes, compiles = dict(decided.passes), decided.compiles
    for driver in late:
        if context.clock.expired():
            break
        plan = _decision(driver, current, context)
        compiles += driver.compiles
        if plan:
            driver.apply(current, plan)
            passes[driver.name] = plan
    return dataclasses.replace(decided, passes=passes, compiles=compiles)


def _within_budget(module: Any, drivers: Sequence[Any], context: Context) -> StepPlan:
    passes: dict[str, Any] = {}
    remat = None
    current = module
    for driver in drivers:
        if getattr(driver, "needs_budget", False):
            remat = driver
            continue
        if context.clock.expired():
            continue
        plan = _decision(driver, current, context)
        if plan:
            current = current.clone()
            driver.apply(current, plan)
            passes[driver.name] = plan
    if remat is None or context.budget_bytes is None:
        return StepPlan(passes=passes)
    return _fit(current, remat, passes, context)


def _decision(driver: Any, module: Any, context: Context, **budget: Any) -> Any:
    """What a pass decides; None when it takes longer than it may.

    It decides on a copy where there is a limit: what is given up goes on reading it.
    """
    if context.pass_seconds is None:
        return driver.plan(module, context, **budget)
    copy = module.clone()
    try:
        return limits.within(
            context.pass_seconds, f"pass {driver.name!r}", lambda: driver.plan(copy, context, **budget)
        )
    except errors.PassError as error:
        context.remark(_LeftOut(driver.name, error.what))
        return None


@dataclasses.dataclass(frozen=True)
class _LeftOut:
    """The remark of a pass that took too long."""

    pass_name: str
    message: str
    kind: str = "missed"
    location: str | None = None
    args: tuple = ()


def _described(measurement: Any) -> dict[str, Any]:
    """A measurement for the report; the total is what budgets are about."""
    return {"total_bytes": measurement.total_bytes} | measurement.to_json()


def _text(plan: Mapping[str, Any] | None) -> str:
    """What tells two plans apart."""
    return json.dumps(plan and [plan["loops"], plan["blocks"]], sort_keys=True)


def _fit(module: Any, remat: Any, passes: dict[str, Any], context: Context) -> StepPlan:
    budget = context.budget_bytes
    sizes = remat.sizes(module, context)
    estimate = json.loads(module.query("memory.estimate", json.dumps(sizes)))["temp"]
    if context.measure is None:
        plan = _decision(remat, module, context, temp_budget=budget)
        return StepPlan(passes=passes | ({remat.name: plan} if plan else {}), measured={"estimate": estimate})

    before = context.measure(module)
    compiles = 1
    report = {"before": _described(before), "estimate": estimate}
    if before.total_bytes <= budget:
        return StepPlan(passes=passes, measured=report | {"after": _described(before)}, compiles=compiles)

    # Parameters and results stay what they are: the plan moves temporaries only.
    fixed = before.total_bytes - before.temp_bytes
    # Where the planner sees a partitioned program in global sizes, the first compile says how much of them a
    # device has.
    in_global_sizes = context.partitions > 1 and not sizes
    scale = estimate / before.temp_bytes if in_global_sizes and before.temp_bytes else 1.0
    attempts: list[_Attempt] = []
    seen: set[str] = set()
    planner_budget = budget - fixed
    host, nearly = True, False

    def measured(plan: Mapping[str, Any]) -> _Attempt | None:
        """The plan, applied and compiled; None where XLA refuses it."""
        nonlocal compiles
        rewritten = module.clone()
        remat.apply(rewritten, plan)
        predicted = plan["predicted"]
        compiles += 1
        try:
            measurement = context.measure(rewritten)
        except errors.CompileError:
            # XLA refuses some programs whose values it cannot follow through host memory.
            if not predicted.get("host_bytes"):
                raise
            return None
        attempts.append(_Attempt(plan, int(predicted["after"] / scale), predicted["seconds"], measurement))
        return attempts[-1]

    while compiles < max(context.max_compiles, 2) and planner_budget > 0 and not context.clock.expired():
        plan = _decision(remat, module, context, temp_budget=int(planner_budget * scale), host=host)
        text = _text(plan)
        if (
            plan is not None
            and text in seen
            and attempts
            and not nearly
            and not plan["predicted"].get("fits", True)
        ):
            nearly = True
            planner_budget = int(_NEARLY_LEAST * plan["predicted"]["after"] / scale)
            continue
        if plan is None or text in seen:
            break
        seen.add(text)
        attempt = measured(plan)
        if attempt is None:
            host = False
            continue
        over = attempt.measurement.total_bytes - budget
        if over <= 0 and (attempt.seconds == 0 or -over <= _SLACK * (budget - fixed)):
            break
        # What this plan was predicted too low (or high) by, the next one will be too: it is nearly the same.
        planner_budget = budget - fixed - (attempt.measurement.temp_bytes - attempt.predicted_temp)
        if over > 0:
            # Never ask for the same again when the prediction was right and yet over.
            planner_budget = min(planner_budget, attempt.predicted_temp - over)
            if plan["predicted"].get("host_bytes"):
                host = False
                planner_budget = max(planner_budget, int((1 - _MOST_CARRIED) * (budget - fixed)))

    def kept(attempt: _Attempt) -> bool:
        return attempt.measurement.total_bytes <= budget

    if context.budget_binding and attempts and not any(map(kept, attempts)) and not context.clock.expired():
        # Before a budget is refused, one compile more for the plan that is believed to need least.
        plan = _decision(remat, module, context, temp_budget=1, host=False)
        if plan is not None and _text(plan) not in seen:
            measured(plan)

    report["attempts"] = [
        {"predicted_temp_bytes": a.predicted_temp, "measured_temp_bytes": a.measurement.temp_bytes}
        for a in attempts
    ]
    fitting = [a for a in attempts if kept(a)]
    if fitting:
        best = min(fitting, key=lambda a: (a.seconds, a.measurement.total_bytes))
        report["planned_bytes"] = fixed + best.predicted_temp
        return StepPlan(
            passes=passes | {remat.name: best.plan},
            measured=report | {"after": _described(best.measurement)},
            compiles=compiles,
        )
    smallest = min([before.total_bytes, *(a.measurement.total_bytes for a in attempts)])
    if context.budget_binding:
        raise errors.BudgetError(
            f"{context.function} needs at least {smallest:,} bytes per device as far as farrier measured, "
            f"and may use {budget:,}",
            budget_bytes=budget,
            smallest_bytes=smallest,
            hint=f"memory_budget={smallest} works; arguments and results alone take {fixed:,} bytes",
        )
    best = min(attempts, key=lambda a: a.measurement.total_bytes, default=None)
    return StepPlan(
        passes=passes | ({remat.name: best.plan} if best else {}),
        measured=report | ({"after": _described(best.measurement)} if best else {}),
        compiles=compiles,
    )
