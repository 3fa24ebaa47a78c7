"""The search for a plan: plan, compile, measure, correct.

The estimator predicts what XLA will need; XLA says what it does need. Each compile corrects the next plan:
what the prediction was off by is taken from the budget the planner sees. The search ends when the budget is
kept and little of it is left over, when nothing is recomputed at all, or after ``max_compiles``.

Passes that come before may leave several programs that compute the same: the cross-entropy in few or many
chunks, say. Each is a *way* to the budget; planning takes milliseconds where a compile takes minutes, so every
compile is spent on the way that is modelled to cost least within the budget, recomputation counted. The program
without those passes is a way, too, where none of theirs keeps the budget.

Transfers to host memory are the least certain part of a plan: what is under way takes device memory that the
estimator can misjudge. A plan with transfers that is measured over the budget is corrected once, as any other; after a
second miss, or where XLA refuses such a plan, the next is without.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farrier._src import errors, limits
from farrier._src.exchange import exchange
from farrier._src.pipeline import Context, StepPlan

# A plan that leaves more of the budget than this unused is tightened while compiles are left: what is
# recomputed for memory nobody asked back is waste.
_SLACK = 0.02

# Where not even the plan of the least predicted memory keeps the budget, the cheapest one predicted this much
# above it is tried: with fewer recomputations in flight XLA can need less for it.
_NEARLY_LEAST = 1.03

# Of the budget, the most that what a plan was off by takes from one of another kind: of a plan with transfers from
# one without, because most of it is what was under way; of one way from another.
_MOST_CARRIED = 0.08


@dataclasses.dataclass(frozen=True)
class _Way:
    """A program that the passes before rematerialization can leave.

    Attributes:
      passes: what they decided.
      module: the program.
      cost: of one run as it stands, seconds or FLOPs as the objective says, over the cheapest way's.
      resort: whether it is used only where no other way keeps the budget.
      estimate: what the estimator says of it as it stands, "temp" and "fixed" bytes.
    """

    passes: Mapping[str, Any]
    module: Any
    cost: float = 0.0
    resort: bool = False
    estimate: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A way, and what rematerialization does with it; `temp` as the estimator counts it."""

    way: _Way
    plan: Mapping[str, Any] | None
    temp: int
    fits: bool
    cost: float

    @property
    def text(self) -> str:
        """What tells two choices apart."""
        decided = self.plan and [self.plan["loops"], self.plan["blocks"]]
        return json.dumps([self.way.passes, decided], sort_keys=True)

    @property
    def order(self) -> tuple:
        """Cheapest first; of those that are not believed to fit, the smallest."""
        return (False, self.way.resort, self.cost) if self.fits else (True, False, self.temp)

    @property
    def host(self) -> bool:
        """Whether anything waits in host memory."""
        return bool(self.plan and self.plan["predicted"].get("host_bytes"))


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """One choice, compiled."""

    choice: _Choice
    predicted_temp: int
    measurement: Any


def plan_step(module: Any, drivers: Sequence[Any], context: Context) -> StepPlan:
    """Decides for `module` (a `farrier._core.Module`, left as it is).

    Passes that do not depend on the budget decide first and once; rematerialization then brings the program
    they leave within the budget; those that spend memory see what is left of it, and may get more in one exchange.

    Raises:
      farrier.BudgetError: the budget binds and no plan keeps it; names the smallest total that was measured.
    """
    late = [driver for driver in drivers if getattr(driver, "spends_slack", False)]
    early = [driver for driver in drivers if driver not in late]
    decided = _within_budget(module, early, context)
    if not late:
        return decided
    current, unspent = module.clone(), None
    for driver in early:
        if getattr(driver, "needs_budget", False):
            unspent = current.clone()
        if driver.name in decided.passes:
            driver.apply(current, decided.passes[driver.name])
    passes, measured, compiles = dict(decided.passes), dict(decided.measured), decided.compiles
    for driver in late:
        if context.clock.expired():
            break
        plan = _decision(driver, current, context)
        compiles += driver.compiles
        if plan:
            driver.apply(current, plan)
            passes[driver.name] = plan
            if "after" in measured and driver.measurement is not None:
                measured["after"] = _described(driver.measurement)
        if unspent is None or not driver.wishes:
            continue
        remat = next(driver for driver in early if getattr(driver, "needs_budget", False))
        moved = exchange(unspent, remat, driver, passes.get(remat.name), decided.measured, context, _decision)
        compiles += moved.compiles
        if moved.remat is not None:
            passes |= {remat.name: moved.remat, driver.name: moved.late}
            measured["after"] = _described(driver.measurement)
    return dataclasses.replace(decided, passes=passes, measured=measured, compiles=compiles)


def _within_budget(module: Any, drivers: Sequence[Any], context: Context) -> StepPlan:
    remat = None
    ways = [_Way({}, module)]
    for driver in drivers:
        if getattr(driver, "needs_budget", False):
            remat = driver
        elif not context.clock.expired():
            weighs = context.budget_bytes is not None and any(
                getattr(other, "needs_budget", False) for other in drivers
            )
            ways = [left for way in ways for left in _left_by(driver, way, context, all_ways=weighs)]
    if remat is None or context.budget_bytes is None:
        return StepPlan(passes=ways[0].passes)
    if any(way.passes for way in ways) and all(way.passes for way in ways):
        ways.append(_Way({}, module, resort=True))
    return _fit(_priced(ways, remat, context), remat, context)


def _left_by(driver: Any, way: _Way, context: Context, *, all_ways: bool) -> list[_Way]:
    """The ways that a pass can leave of one: all, or the one that it would take by itself."""
    if all_ways and hasattr(driver, "alternatives"):
        plans = _decision(driver, way.module, context, ask="alternatives") or [None]
    else:
        plans = [_decision(driver, way.module, context)]
    left = []
    for plan in plans:
        if not plan:
            left.append(way)
            continue
        current = way.module.clone()
        driver.apply(current, plan)
        left.append(_Way({**way.passes, driver.name: plan}, current))
    return left


def _priced(ways: Sequence[_Way], remat: Any, context: Context) -> list[_Way]:
    """The ways with what they are believed to need and to cost; a single one has no other to cost more than."""
    found = []
    for way in ways:
        sizes = json.dumps(remat.sizes(way.module, context))
        estimate = json.loads(way.module.query("memory.estimate", sizes))
        cost = _cost(remat.cost(way.module, context), context) if len(ways) > 1 else 0.0
        found.append(dataclasses.replace(way, estimate=estimate, cost=cost))
    least = min(way.cost for way in found if not way.resort)
    return [dataclasses.replace(way, cost=way.cost - least) for way in found]


def _decision(driver: Any, module: Any, context: Context, *, ask: str = "plan", **budget: Any) -> Any:
    """What a pass decides, or the `ask` of it else; None when it takes longer than it may.

    It decides on a copy where there is a limit: what is given up goes on reading it.
    """
    if context.pass_seconds is None:
        return getattr(driver, ask)(module, context, **budget)
    copy = module.clone()
    try:
        return limits.within(
            context.pass_seconds,
            f"pass {driver.name!r}",
            lambda: getattr(driver, ask)(copy, context, **budget),
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


def _cost(figures: Mapping[str, float], context: Context) -> float:
    """ "seconds", or "flops" with seconds to tell equals apart."""
    seconds = float(figures["seconds"])
    return seconds if context.objective == "time" else float(figures.get("flops", 0.0)) + seconds


def _choices(
    ways: Sequence[_Way],
    remat: Any,
    context: Context,
    budget_of: Callable[[_Way], int],
    *,
    host: bool = True,
) -> list[_Choice]:
    """For each way what is to be done to keep its budget of temporary bytes; the best comes first."""
    choices = []
    for way in ways:
        temp_budget = budget_of(way)
        plan = _decision(remat, way.module, context, temp_budget=temp_budget, host=host)
        predicted = plan["predicted"] if plan else {}
        temp = int(predicted.get("after", way.estimate["temp"]))
        choices.append(
            _Choice(
                way,
                plan,
                temp,
                fits=bool(predicted.get("fits", True)) if plan else temp <= temp_budget,
                cost=way.cost + (_cost(predicted, context) if plan else 0.0),
            )
        )
    return sorted(choices, key=lambda choice: choice.order)


def _fit(ways: Sequence[_Way], remat: Any, context: Context) -> StepPlan:
    budget = context.budget_bytes
    sizes = remat.sizes(ways[0].module, context)
    # Where the planner sees a partitioned program in global sizes, the first compile says how much of them a
    # device has.
    in_global_sizes = context.partitions > 1 and not sizes

    def step(choice: _Choice, measured: Mapping[str, Any], compiles: int = 0) -> StepPlan:
        passes = {**choice.way.passes, **({remat.name: choice.plan} if choice.plan else {})}
        return StepPlan(passes=passes, measured=measured, compiles=compiles)

    first = ways[0]
    if len(ways) > 1 or context.measure is None:
        devices = context.partitions if in_global_sizes else 1
        believed = max(1, budget * devices - first.estimate["fixed"])
        best = _choices(ways, remat, context, lambda way: believed)[0]
        if context.measure is None:
            return step(best, {"estimate": best.way.estimate["temp"]})
        first = best.way
    estimate = first.estimate["temp"]
    before = context.measure(first.module)
    compiles = 1
    report = {"before": _described(before), "estimate": estimate}
    untouched = _Choice(first, None, estimate, fits=True, cost=first.cost)
    if before.total_bytes <= budget:
        return step(untouched, report | {"after": _described(before)}, compiles)

    # Parameters and results stay what they are: the plan moves temporaries only.
    fixed = before.total_bytes - before.temp_bytes
    scale = estimate / before.temp_bytes if in_global_sizes and before.temp_bytes else 1.0
    attempts: list[_Attempt] = []
    seen = {untouched.text}
    room = latest = budget - fixed
    # What a way's estimate was wrong by says all about this way, and something about the others.
    corrected: dict[int, int] = {}
    # Whether transfers may be planned, and whether a plan with them was measured over the budget.
    host, missed = True, False
    nearly = False

    def budget_of(way: _Way) -> int:
        return corrected.get(id(way), max(latest, int((1 - _MOST_CARRIED) * room)))

    def measured(choice: _Choice) -> _Attempt | None:
        """The choice, applied and compiled; None where XLA refuses it."""
        nonlocal compiles
        seen.add(choice.text)
        rewritten = choice.way.module
        if choice.plan:
            rewritten = rewritten.clone()
            remat.apply(rewritten, choice.plan)
        compiles += 1
        try:
            measurement = context.measure(rewritten)
        except errors.CompileError:
            # XLA refuses some programs whose values it cannot follow through host memory.
            if not choice.host:
                raise
            return None
        attempts.append(_Attempt(choice, int(choice.temp / scale), measurement))
        return attempts[-1]

    while compiles < max(context.max_compiles, 2) and not context.clock.expired():
        if max(map(budget_of, ways)) <= 0:
            break
        choice = _choices(ways, remat, context, lambda way: max(1, int(budget_of(way) * scale)), host=host)[0]
        way = id(choice.way)
        if choice.text in seen:
            if not attempts and way not in corrected:
                # It was believed to fit as it stands, and was measured not to.
                latest -= max(1, before.temp_bytes - int(estimate / scale))
                corrected[way] = latest
                continue
            if not attempts or nearly or choice.plan is None or choice.fits:
                break
            nearly = True
            corrected[way] = int(_NEARLY_LEAST * choice.temp / scale)
            continue
        attempt = measured(choice)
        if attempt is None:
            host = False
            continue
        over = attempt.measurement.total_bytes - budget
        if over <= 0 and (choice.cost == 0 or -over <= _SLACK * room):
            break
        # What this plan was predicted too low (or high) by, the next one will be too: it is nearly the same.
        latest = room - (attempt.measurement.temp_bytes - attempt.predicted_temp)
        if over > 0:
            # Never ask for the same again when the prediction was right and yet over.
            latest = min(latest, attempt.predicted_temp - over)
            if choice.host and missed:
                host = False
                latest = max(latest, int((1 - _MOST_CARRIED) * room))
            missed = missed or choice.host
        corrected[way] = latest

    def kept(attempt: _Attempt) -> bool:
        return attempt.measurement.total_bytes <= budget

    if context.budget_binding and not any(map(kept, attempts)) and not context.clock.expired():
        # Before a budget is refused, one compile more for what is believed to need least, given how wrong that
        # belief was for the same way before. A budget that nothing can keep gets it, too: the error names what
        # would do.
        wrong = {id(a.choice.way): a.measurement.temp_bytes - a.predicted_temp for a in attempts}
        least = [c for c in _choices(ways, remat, context, lambda way: 1, host=False) if c.text not in seen]
        if least:
            measured(min(least, key=lambda c: c.temp / scale + wrong.get(id(c.way), 0)))

    report["attempts"] = [
        {"predicted_temp_bytes": a.predicted_temp, "measured_temp_bytes": a.measurement.temp_bytes}
        for a in attempts
    ]
    fitting = [a for a in attempts if kept(a)]
    if fitting:
        best = min(fitting, key=lambda a: (a.choice.cost, a.measurement.total_bytes))
        report["planned_bytes"] = fixed + best.predicted_temp
        return step(best.choice, report | {"after": _described(best.measurement)}, compiles)
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
    if best is None:
        return step(untouched, report, compiles)
    return step(best.choice, report | {"after": _described(best.measurement)}, compiles)
