"""The search for a plan: plan, compile, measure, correct.

The estimator predicts what XLA will need; XLA says what it does need. The first compile, of the program as it stands,
says it value by value (:mod:`farrier._src.corrections`), and plans are estimated by that. Each compile of a plan corrects
the next one: what the prediction was off by is taken from the budget the planner sees. The search ends when the budget is
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
from farrier._src.beliefs import MOST_CARRIED, TRANSFERS_KNOWN, Attempt, Beliefs, Choice, Way
from farrier._src.exchange import exchange
from farrier._src.pipeline import Context, StepPlan

# A plan that leaves more of the budget than this unused is tightened while compiles are left: what is
# recomputed for memory nobody asked back is waste.
_SLACK = 0.02

# What the last plan before a budget is refused leaves of it: a share of it, and so many times what an attempt without
# transfers was wrong by at most, the fewer where no other plan leaves more; where they were wrong by much, just that, up to a
# share.
_LAST_SPARE = 0.02
_LAST_TIMES = (1.5, 1.0)
_MOST_SPARE = 0.25

# Of the budget, what an attempt that came near is over by at most.
_NEARLY = 0.01


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
        decision = passes.get(remat.name, {})
        afresh, shared = decision.get("afresh"), decision.get("shared", False)
        if afresh:
            unspent = remat.afresh(unspent, context, shared=shared)
        moved = exchange(unspent, remat, driver, passes.get(remat.name), decided.measured, context, _decision)
        compiles += moved.compiles
        if moved.remat is not None:
            again = moved.remat
            if afresh:
                again = remat.from_afresh(again, 0, unspent, context, shared=shared)
            passes |= {remat.name: again, driver.name: moved.late}
            measured["after"] = _described(driver.measurement)
    return dataclasses.replace(decided, passes=passes, measured=measured, compiles=compiles)


def _within_budget(module: Any, drivers: Sequence[Any], context: Context) -> StepPlan:
    remat = None
    ways = [Way({}, module)]
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
        ways.append(Way({}, module, resort=True))
    return _Fit(_priced(_with_afresh(ways, remat, context), remat, context), remat, context).run()


def _with_afresh(ways: Sequence[Way], remat: Any, context: Context) -> list[Way]:
    """The ways, and after them each again without what ``jax.checkpoint`` computes again, where it does."""
    found = list(ways)
    if hasattr(remat, "afresh"):
        for way in ways:
            for shared in (False, True):
                module = _decision(remat, way.module, context, ask="afresh", shared=shared)
                if module is not None:
                    found.append(dataclasses.replace(way, module=module, origin=way, shared=shared))
    return found


def _left_by(driver: Any, way: Way, context: Context, *, all_ways: bool) -> list[Way]:
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
        left.append(Way({**way.passes, driver.name: plan}, current))
    return left


def _priced(ways: Sequence[Way], remat: Any, context: Context) -> list[Way]:
    """The ways with what they are believed to need and to cost; a single one has no other to cost more than."""
    found = []
    for way in ways:
        estimate = _estimated(way.module, remat, context)
        cost = _cost(remat.cost(way.module, context), remat, context) if len(ways) > 1 else 0.0
        found.append(dataclasses.replace(way, estimate=estimate, cost=cost))
    least = min(way.cost for way in found if not way.resort)
    priced: dict[int, Way] = {}
    for way, known in zip(ways, found, strict=True):
        origin = priced[id(way.origin)] if way.origin else None
        priced[id(way)] = dataclasses.replace(known, cost=known.cost - least, origin=origin)
    return list(priced.values())


def _estimated(module: Any, remat: Any, context: Context) -> dict[str, int]:
    """What the planner's estimate says of a program by its rules alone, "temp" and "fixed" bytes."""
    request = {**remat.sizes(module, context), "planned": True}
    return json.loads(module.query("memory.estimate", json.dumps(request)))


def _decision(driver: Any, module: Any, context: Context, *, ask: str = "plan", **told: Any) -> Any:
    """What a pass decides, or the `ask` of it else; None when it takes longer than it may.

    It decides on a copy where there is a limit: what is given up goes on reading it.
    """
    if context.pass_seconds is None:
        return getattr(driver, ask)(module, context, **told)
    copy = module.clone()
    try:
        return limits.within(
            context.pass_seconds,
            f"pass {driver.name!r}",
            lambda: getattr(driver, ask)(copy, context, **told),
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


def _cost(figures: Mapping[str, float], remat: Any, context: Context) -> float:
    """ "seconds", or "flops" with seconds to tell equals apart: what rematerialization plans by."""
    objective = getattr(getattr(remat, "options", None), "objective", None) or context.objective
    seconds = float(figures["seconds"])
    return seconds if objective == "time" else float(figures.get("flops", 0.0)) + seconds


def _choices(
    ways: Sequence[Way],
    remat: Any,
    context: Context,
    budget_of: Callable[[Way], int],
    *,
    host: bool = True,
    rows: bool = False,
    measured: Mapping[int, Mapping[str, Any]] | None = None,
) -> list[Choice]:
    """For each way what is to be done to keep its budget of temporary bytes; the best comes first.

    `measured` has, by the way's id, what its own compile showed of its values; with `rows` stacks hold theirs in rows.
    """
    choices = []
    held = {"rows": True} if rows else {}
    for way in ways:
        temp_budget = budget_of(way)
        known = {"measured": measured[id(way)]} if measured and id(way) in measured else {}
        plan = _decision(remat, way.module, context, temp_budget=temp_budget, host=host, **held, **known)
        predicted = plan["predicted"] if plan else {}
        temp = int(predicted.get("after", way.estimate["temp"]))
        choices.append(
            Choice(
                way,
                plan,
                temp,
                fits=bool(predicted.get("fits", True)) if plan else temp <= temp_budget,
                cost=way.cost + (_cost(predicted, remat, context) if plan else 0.0),
            )
        )
    return sorted(choices, key=lambda choice: choice.order)


class _Fit:
    """Brings one of several ways within the budget."""

    def __init__(self, ways: Sequence[Way], remat: Any, context: Context):
        self.ways, self.remat, self.context = ways, remat, context
        self.budget = context.budget_bytes
        self.compiles = 0
        self.attempts: list[Attempt] = []
        self.report: dict[str, Any] = {}
        self.seen: set[str] = set()
        self.standing: Attempt | None = None

    def run(self) -> StepPlan:
        """The cheapest plan that was measured to keep the budget.

        Raises:
          farrier.BudgetError: the budget binds and no plan keeps it.
        """
        first = self._believed_best()
        if self.context.measure is None:
            return self._step(first, {"estimate": first.way.estimate["temp"]})
        way = first.way.written
        estimate = way.estimate["temp"]
        untouched = Choice(way, None, estimate, fits=True, cost=way.cost)
        before = self._measure(way.module)
        self.report = {"before": _described(before), "estimate": estimate}
        if before.total_bytes <= self.budget:
            if all(other.written is not way or other.cost >= way.cost for other in self.ways):
                return self._step(untouched, self.report | {"after": _described(before)})
            # It fits, and computes again what there may be room for.
            self.standing = Attempt(untouched, before.temp_bytes, before.temp_bytes, before)
        # Parameters and results stay what they are: the plan moves temporaries only.
        fixed = before.total_bytes - before.temp_bytes
        scale = estimate / before.temp_bytes if self._in_global_sizes and before.temp_bytes else 1.0
        beliefs = Beliefs(self.budget - fixed, scale)
        self._learn(way, before, beliefs)
        self.seen = {untouched.text}
        self._search(beliefs, first=way, wrong=before.temp_bytes - int(estimate / scale))
        if not self._fitting() and not self.context.clock.expired():
            if self.standing:
                self._try_spared(beliefs)
            elif self.context.budget_binding:
                self._try_least(beliefs)
        return self._outcome(untouched, before, fixed)

    @property
    def _in_global_sizes(self) -> bool:
        """Whether the planner sees a partitioned program in global sizes: the first compile then says how much of them
        a device has.
        """
        return self.context.partitions > 1 and not self.remat.sizes(self.ways[0].module, self.context)

    def _believed_best(self) -> Choice:
        """The choice that the estimates say is best; of a single way nothing is believed before it was compiled."""
        way = self.ways[0]
        if self.context.measure is not None and all(other.written is way for other in self.ways):
            return Choice(way, None, way.estimate["temp"], fits=True, cost=way.cost)
        devices = self.context.partitions if self._in_global_sizes else 1
        believed = max(1, self.budget * devices - way.estimate["fixed"])
        return _choices(self.ways, self.remat, self.context, lambda way: believed)[0]

    def _learn(self, way: Way, measurement: Any, beliefs: Beliefs) -> None:
        """What the compile of a way as it stands says of its values, where it is asked to."""
        learn = getattr(self.remat, "learn", None)
        found = learn(way.module, self.context, measurement) if learn and beliefs.scale == 1 else None
        if found:
            beliefs.measured[id(way)], self.report["corrected_estimate"] = found

    def _search(self, beliefs: Beliefs, *, first: Way, wrong: int) -> None:
        """Plans and compiles until the budget is kept and used, or compiles or ideas run out."""
        most = max(self.context.max_compiles, 2)
        while self.compiles < most and not self.context.clock.expired():
            if max(map(beliefs.budget_of, self.ways)) <= 0:
                break
            choice = self._choices(beliefs, beliefs.counted_budget_of)[0]
            if self.standing and choice.cost >= self.standing.choice.cost:
                break
            if choice.text in self.seen:
                if not self.attempts and beliefs.does_not_fit(choice.way, wrong):
                    continue
                if self.attempts and beliefs.allow_nearly_least(choice):
                    continue
                break
            attempt = self._attempt(choice, beliefs)
            if attempt is None:
                continue
            over = attempt.measurement.total_bytes - self.budget
            # The least plan that there is may leave nothing of the budget and yet be dearer than need be, where it was
            # taken because none was believed to fit.
            used = choice.fits and -over <= _SLACK * beliefs.room
            if over <= 0 and (choice.cost <= 0 or used):
                break
            if self._may_hold_rows(choice) and beliefs.try_rows(attempt, over):
                continue
            # The last compile aims for the middle of what is accepted: a plan that misses by little is worth nothing.
            last = over <= 0 and self.compiles == most - 1
            beliefs.correct(attempt, over, spare=int(_SLACK / 2 * beliefs.room) if last else 0)

    def _try_least(self, beliefs: Beliefs) -> None:
        """Before a budget is refused, one compile more: `_try_spared`; where that misses, too, by little, for a plan that needs so
        much less and a little; else for what is believed to need least, given how wrong that belief was for the same way
        before. A budget that nothing can keep gets it, as well: the error names what would do.
        """
        wrong = {id(a.choice.way): max(0, a.wrong) for a in self.attempts}
        before = len(self.attempts)
        self._try_spared(beliefs)
        if not self._fitting() and len(self.attempts) > before:
            missed = self.attempts[-1]
            over = missed.measurement.total_bytes - self.budget
            if over <= _NEARLY * beliefs.room:
                self._try_within(beliefs, missed.predicted_temp - over - _LAST_SPARE * beliefs.room)
        if self._fitting():
            return
        least = [c for c in self._choices(beliefs, lambda way: 1, host=False) if c.text not in self.seen]
        if least:
            self._attempt(min(least, key=lambda c: beliefs.predicted(c) + wrong.get(id(c.way), 0)), beliefs)

    def _try_spared(self, beliefs: Beliefs) -> None:
        """Where attempts missed by little, or all by nearly the same, one compile for the cheapest plan that leaves room for more
        than that; else for as much as the worst of them missed by, if that is no large part of the budget: before a budget is
        refused, or a step stays that computes more again than it must. Without transfers, but where all with them missed by next
        to nothing.
        """
        # Of what a plan with transfers was wrong by, most was what was under way.
        alike = [abs(a.wrong) for a in self.attempts if not a.choice.host]
        missed = max(alike) if alike else min((abs(a.wrong) for a in self.attempts), default=0)
        little = MOST_CARRIED * beliefs.room
        spares: list[float] = []
        if self.attempts and missed <= little:
            spares = [times * missed for times in (_LAST_TIMES if alike else (1,))]
        elif len(alike) > 1 and missed - min(alike) <= little:
            spares = [2 * missed - min(alike), missed]
        elif alike and missed <= _MOST_SPARE * beliefs.room:
            spares = [missed]
        any(self._try_within(beliefs, (1 - _LAST_SPARE) * beliefs.room - spare) for spare in spares)

    def _try_within(self, beliefs: Beliefs, temp: float) -> bool:
        """A compile for the cheapest plan that is believed to need so many bytes at the most; False where that is none, or one
        that was tried or costs what stands.
        """
        host = all(a.wrong <= TRANSFERS_KNOWN * beliefs.room for a in self.attempts if a.choice.host)
        aim = max(1, int(temp * beliefs.scale))
        safe = self._choices(beliefs, lambda way: aim, host=host)[0]
        dear = self.standing and safe.cost >= self.standing.choice.cost
        if not safe.fits or dear or safe.text in self.seen:
            return False
        self._attempt(safe, beliefs)
        return True

    def _choices(
        self, beliefs: Beliefs, budget_of: Callable[[Way], int], *, host: bool = True
    ) -> list[Choice]:
        return _choices(
            self.ways,
            self.remat,
            self.context,
            budget_of,
            host=host and beliefs.host,
            rows=beliefs.rows,
            measured=beliefs.measured,
        )

    def _may_hold_rows(self, choice: Choice) -> bool:
        """Whether the choice has stacks that may hold the elements of their values in a row."""
        has_stacks = getattr(self.remat, "has_stacks", None)
        return bool(has_stacks and has_stacks(choice.plan, choice.way.module, self.context))

    def _attempt(self, choice: Choice, beliefs: Beliefs) -> Attempt | None:
        """The choice, applied and compiled; None where there is to be another without what spoils it: transfers that XLA refuses,
        or what the way's compile showed, by which the plan names values that the program does not have.
        """
        self.seen.add(choice.text)
        rewritten = choice.way.module
        if choice.plan:
            rewritten = rewritten.clone()
            if stale := self.remat.apply(rewritten, choice.plan):
                if beliefs.measured.pop(id(choice.way), None) is None:
                    raise errors.PassError(f"pass {self.remat.name!r} cannot apply its own plan: {stale[0]}")
                self.seen.discard(choice.text)
                return None
        try:
            measurement = self._measure(rewritten)
        except errors.CompileError:
            # XLA refuses some programs whose values it cannot follow through host memory.
            if not choice.host:
                raise
            beliefs.host = False
            return None
        by_rules = None
        if id(choice.way) in beliefs.measured and not choice.host:
            by_rules = _estimated(rewritten, self.remat, self.context)["temp"]
        attempt = Attempt(choice, beliefs.predicted(choice), beliefs.expected(choice), measurement, by_rules)
        self.attempts.append(attempt)
        return attempt

    def _measure(self, module: Any) -> Any:
        self.compiles += 1
        learns = self.compiles == 1 and hasattr(self.remat, "learn")
        return self.context.measure(module, held=True) if learns else self.context.measure(module)

    def _fitting(self) -> list[Attempt]:
        """The attempts that were measured to keep the budget."""
        return [a for a in self.attempts if a.measurement.total_bytes <= self.budget]

    def _step(self, choice: Choice, measured: Mapping[str, Any]) -> StepPlan:
        plan = choice.plan
        if choice.way.origin:
            told = (choice.temp, choice.way.module, self.context)
            plan = self.remat.from_afresh(plan, *told, shared=choice.way.shared)
        passes = {**choice.way.passes, **({self.remat.name: plan} if plan else {})}
        return StepPlan(passes=passes, measured=measured, compiles=self.compiles)

    def _outcome(self, untouched: Choice, before: Any, fixed: int) -> StepPlan:
        """What the attempts come to."""
        self.report["attempts"] = [
            {
                "predicted_temp_bytes": a.predicted_temp,
                "expected_temp_bytes": a.expected_temp,
                "measured_temp_bytes": a.measurement.temp_bytes,
            }
            for a in self.attempts
        ]
        if kept := [*([self.standing] if self.standing else []), *self._fitting()]:
            best = min(kept, key=lambda a: (a.choice.cost, a.measurement.total_bytes))
            self.report["planned_bytes"] = fixed + best.expected_temp
            return self._step(best.choice, self.report | {"after": _described(best.measurement)})
        smallest = min([before.total_bytes, *(a.measurement.total_bytes for a in self.attempts)])
        if self.context.budget_binding:
            raise errors.BudgetError(
                f"{self.context.function} needs at least {smallest:,} bytes per device as far as farrier measured, "
                f"and may use {self.budget:,}",
                budget_bytes=self.budget,
                smallest_bytes=smallest,
                hint=f"memory_budget={smallest} works; arguments and results alone take {fixed:,} bytes",
            )
        best = min(self.attempts, key=lambda a: a.measurement.total_bytes, default=None)
        if best is None:
            return self._step(untouched, self.report)
        return self._step(best.choice, self.report | {"after": _described(best.measurement)})
