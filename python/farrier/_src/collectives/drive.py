"""Compile, simulate, reorder, compile again, and keep the better of the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from farrier._src import oracle
from farrier._src.collectives import hooks, schedule
from farrier._src.collectives import parameters as parameter_sets
from farrier._src.targets import Target

# XLA's own estimate of each kernel, written into the module: what kernels cost in the simulation.
STATISTICS = {"xla_gpu_collect_cost_model_stats": True}
# Exposed communication below this part of the step is not worth a second compile.
WORTHWHILE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Improved:
    """A program's schedule before and after."""

    before: oracle.Compiled
    after: oracle.Compiled
    """The same object as `before` where nothing was changed."""
    plan: schedule.SchedulePlan | None
    simulated_before: tuple[schedule.Simulation, ...]
    """By parameter set."""
    simulated_after: tuple[schedule.Simulation, ...]
    reason: str
    """Why the result is what it is, for the report."""
    outcome: schedule.Outcome | None = None

    @property
    def changed(self) -> bool:
        """Whether the schedule is ours."""
        return self.after is not self.before


def improve(
    module: Any,
    target: Target,
    *,
    parameters: Sequence[str | parameter_sets.ParameterSet] | None = None,
    judges: Sequence[str | parameter_sets.ParameterSet] = (),
    memory_growth: float = 0.0,
    compiler_options: Mapping[str, Any] | None = None,
) -> Improved:
    """Gives a program our schedule where that is better.

    Args:
      module: StableHLO, as `oracle.compile_module` takes it.
      target: the devices.
      parameters: parameter sets (names, files, objects) that the order must not lose under; None: the
        target's two.
      judges: further sets that only score the result.
      memory_growth: how much more total device memory the result may need, as a part of what it needs now.
        XLA's buffer assignment of the result decides, not an estimate.
      compiler_options: XLA options for both compiles.

    Returns:
      What was found; `after` is `before` unless the new schedule is faster under every set of `parameters`,
      within the memory, by XLA's own final program.

    Raises:
      farrier.Error: the program does not compile, or a parameter set is malformed.
    """
    sets = parameter_sets.resolve(parameters, target)
    scored = (*sets, *parameter_sets.resolve(judges, target))
    options = {**STATISTICS, **(compiler_options or {})}
    before = oracle.compile_module(module, target, compiler_options=options)
    base = before.hlo()
    growth = int(memory_growth * before.measurement.total_bytes)
    plan = schedule.plan(base, target, sets, memory_growth_bytes=growth)
    costs = dict(plan.costs)
    simulated = schedule.simulate(base, target, scored, frozen=costs)

    def keep(reason: str, outcome: schedule.Outcome | None = None) -> Improved:
        return Improved(
            before=before,
            after=before,
            plan=None,
            simulated_before=simulated,
            simulated_after=simulated,
            reason=reason,
            outcome=outcome,
        )

    if all(s.exposed_seconds <= WORTHWHILE * s.seconds for s in simulated[: len(sets)]):
        return keep("no communication worth mentioning is exposed")
    copy = oracle.parse_module(module if isinstance(module, str | bytes) else str(module))
    hooks.rename(copy, plan)
    target.topology_desc()  # loads the compiler that the hook registers with
    with hooks.applying(plan) as record:
        after = oracle.compile_module(copy, target, compiler_options=options)
    if record.error is not None:
        return keep(f"the hook failed, XLA's schedule stays: {record.error}")
    if record.calls == 0:
        return keep("XLA did not call the hook: its plugin does not support hooks")
    if record.outcome is None or not record.outcome.changed:
        return keep("no order found that is faster under every parameter set", record.outcome)
    result = schedule.simulate(after.hlo(), target, scored, frozen=costs)
    for b, a in zip(simulated[: len(sets)], result[: len(sets)], strict=True):
        if a.seconds > b.seconds:
            return keep(f"the final program is slower under {a.parameters}", record.outcome)
    if after.measurement.total_bytes > before.measurement.total_bytes + growth:
        return keep(
            f"needs {after.measurement.total_bytes} bytes, more than "
            f"{before.measurement.total_bytes} + {growth}",
            record.outcome,
        )
    return Improved(
        before=before,
        after=after,
        plan=plan,
        simulated_before=simulated,
        simulated_after=result,
        reason="faster under every parameter set",
        outcome=record.outcome,
    )
