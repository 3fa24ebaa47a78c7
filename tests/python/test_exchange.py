"""The exchange of memory between rematerialization and the schedule, with a compiler and passes that the test makes up."""

import json
import types

import pytest
from farrier._src import metrics, search
from farrier._src.collectives import schedule
from test_search import FIXED, Module, Planner, context

BUDGET = FIXED + 500


class Late:
    """Wants memory, at a price; carries an exchange out where the step is faster."""

    name = "collectives"
    spends_slack = True
    step_seconds = 100.0

    def __init__(self, wishes, *, faster=True, plan=None):
        self.wishes = tuple(schedule.Wish(*wish, growth=7) for wish in wishes)
        self.faster, self.decision = faster, plan
        self.compiles, self.measurement, self.freed = 0, None, []

    def plan(self, module, context):
        self.compiles = 2
        return self.decision

    def apply(self, module, plan, *, remark=None):
        pass

    def exchange(self, module, wish, context):
        self.freed.append((module.temp, wish.bytes))
        self.room = wish.growth
        self.compiles = 1
        if not self.faster:
            return None, "not faster under every parameter set"
        self.measurement = metrics.Measurement(
            argument_bytes=FIXED, output_bytes=0, alias_bytes=0, temp_bytes=500
        )
        return {"version": "exchanged"}, "step 2.00 -> 1.00 ms"


def run(late, budget=BUDGET, planner=None):
    said = []
    planner = planner or Planner()
    given = context(budget, lambda temp: temp)
    given = types.SimpleNamespace(**(vars(given) | {"remark": said.append}))
    module = Module()
    plan = search.plan_step(module, [planner, late], given)
    assert module.temp == 800  # left as it is
    return plan, planner, [remark.message for remark in said]


def test_memory_moves_where_the_schedule_pays_more():
    # A byte costs a second of recomputation here.
    late = Late([(40, 50.0)])
    plan, planner, said = run(late)
    assert planner.asked == [500, 460]
    assert late.freed == [(460, 40)]
    assert plan.passes["remat"]["predicted"]["after"] == 460
    assert plan.passes["collectives"] == {"version": "exchanged"}
    assert plan.compiles == 2 + 2 + 1
    assert plan.measured["after"]["total_bytes"] == BUDGET
    assert said[-1].startswith("memory moved from residuals to the schedule: 40 bytes are worth 50000.00 ms")


def test_what_is_freed_over_what_was_asked_for_is_room_for_the_schedule():
    class Steps(Planner):
        """Frees memory in steps of a hundred bytes."""

        def plan(self, module, context, *, temp_budget, host=True):
            return super().plan(module, context, temp_budget=temp_budget // 100 * 100, host=host)

    late = Late([(40, 100.0)])
    plan, _, _ = run(late, planner=Steps())
    assert plan.passes["remat"]["predicted"]["after"] == 400
    assert late.freed == [(400, 40)] and late.room == 7 + 60


def test_the_best_of_several_prices_is_taken():
    late = Late([(100, 120.0), (50, 90.0), (25, 30.0)])
    plan, _, _ = run(late)
    assert late.freed == [(450, 50)] and plan.passes["remat"]["predicted"]["after"] == 450


def test_memory_stays_where_recomputation_is_dearer():
    late = Late([(40, 19.0)], plan={"version": "first"})
    plan, _, said = run(late)
    assert late.freed == []
    assert plan.passes["remat"]["predicted"]["after"] == 500
    assert plan.passes["collectives"] == {"version": "first"}
    assert plan.compiles == 2 + 2
    assert said[-1] == (
        "memory stays where it is: 40 bytes are worth 19000.00 ms of exposed communication and cost 40000.00 ms of "
        "recomputation"
    )


def test_a_compiled_step_that_is_not_faster_changes_nothing():
    late = Late([(40, 50.0)], faster=False)
    plan, _, said = run(late)
    assert plan.passes["remat"]["predicted"]["after"] == 500 and "collectives" not in plan.passes
    assert plan.compiles == 2 + 2 + 1
    assert said[-1].endswith("but the compiled step is refused: not faster under every parameter set")


def test_a_step_that_fits_as_it_is_may_pay_for_the_schedule_too():
    late = Late([(40, 50.0)])
    plan, planner, _ = run(late, budget=FIXED + 800)
    assert planner.asked == [760]
    assert plan.passes["remat"]["predicted"]["after"] == 760


def test_what_cannot_be_freed_is_said():
    late = Late([(900, 50.0)])
    _, _, said = run(late)
    assert late.freed == [] and "nothing is left to compute twice" in said[-1]


@pytest.mark.parametrize("wishes", [(), [(40, 50.0)]])
def test_without_a_budget_nothing_is_exchanged(wishes):
    late = Late(wishes)
    plan, planner, said = run(late, budget=None)
    assert (late.freed, planner.asked, said) == ([], [], []) and plan.compiles == 2


def test_where_prices_are_near_the_compile_decides():
    late = Late([(40, 35.0)])
    plan, _, _ = run(late)
    assert late.freed == [(460, 40)] and plan.passes["collectives"] == {"version": "exchanged"}


def _answers(**by_cap):
    """An optimizer whose orders need and save what `by_cap` says: cap -> (peak, time)."""
    table = {None if cap == "free" else int(cap[1:]): row for cap, row in by_cap.items()}

    def within(cap):
        peak, time = table[cap]
        return {"peak_after": peak, "after": [time, time]}

    return within


FOUND = {"before": [110.0, 110.0], "after": [100.0, 100.0]}


def test_wishes_are_what_orders_over_the_cap_save():
    within = _answers(free=(1800, 60.0), c1400=(1390, 80.0), c1200=(1100, 100.0))
    wishes = schedule._wishes(within, 1000, FOUND, 50)
    assert [(w.bytes, w.growth) for w in wishes] == [(800, 850), (390, 440)]
    assert [w.seconds for w in wishes] == pytest.approx([50e-6, 30e-6])


@pytest.mark.parametrize("free", [(1800, 99.95), (900, 60.0)])
def test_no_wish_without_a_gain_or_a_need(free):
    assert schedule._wishes(_answers(free=free), 1000, FOUND, 50) == ()


def test_a_plan_is_the_same_with_and_without_the_question():
    plain = schedule.SchedulePlan(parameters=(), peak_flops={}, hbm_bytes_per_s=1.0, costs={})
    asked = schedule.SchedulePlan(parameters=(), peak_flops={}, hbm_bytes_per_s=1.0, costs={}, probe=True)
    assert plain.fingerprint == asked.fingerprint
    assert schedule.SchedulePlan.from_json(json.loads(json.dumps(asked.to_json()))) == plain
