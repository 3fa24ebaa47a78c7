"""Collectives as `optimize` drives them: a form of the program, XLA options, and a schedule of our own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from farrier._src import errors, pipeline
from farrier._src.collectives import drive, hooks, rewrites, schedule
from farrier._src.collectives import parameters as parameter_sets
from farrier._src.remarks import Remark, milliseconds

_VERSION = 1
# Collectives that a report names as still waiting.
_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collectives:
    """Options of collective scheduling, for ``optimize(passes=[farrier.Collectives(...), ...])``.

    Attributes:
      parameters: parameter sets (names such as "nv", paths of TOML files) that a result must not be slower
        under; None takes the target's two, and one alone is guarded by itself at half speed. docs/collectives.md lists
        them.
      memory_growth: without a memory budget, how much more total device memory the result may need, as a
        part of what the program needs; never more than a process can use of the device. With a budget, what
        is left of it.
      rewrites: which forms of programs that state their collectives (``shard_map``) to try.
      split_min_bytes: all-reduces with a smaller result, in bytes, are no reason to run layers in halves or to scatter.
      schedule: whether to put an order of our own in the place of XLA's.
      pipeline: whether to try, together with such an order, changes before XLA's scheduler: buckets of collectives,
        and collectives of loops that move to the iteration before or after.
      max_compiles: how many compiles the pass may spend, on top of those of a search for memory.
      stress: apply every rewrite whether it gains or not, and compile nothing: for tests.
    """

    name = "collectives"

    parameters: Sequence[str] | None = None
    memory_growth: float = 0.1
    rewrites: Sequence[str] = rewrites.NAMES
    split_min_bytes: int = 4 << 20
    schedule: bool = True
    pipeline: bool = True
    max_compiles: int = 6
    stress: bool = False

    def __post_init__(self):
        if isinstance(self.parameters, str):
            raise errors.OptionError(
                f"Collectives(parameters={self.parameters!r}): expected a sequence of names, not one text"
            )
        if isinstance(self.rewrites, str):
            raise errors.OptionError(
                f"Collectives(rewrites={self.rewrites!r}): expected a sequence of names, not one text"
            )
        for name in self.rewrites:
            if name not in rewrites.NAMES:
                raise errors.OptionError.unknown(name, rewrites.NAMES, of="Collectives(rewrites=...)")
        if not isinstance(self.memory_growth, int | float) or not 0 <= self.memory_growth < math.inf:
            raise errors.OptionError(
                f"Collectives(memory_growth={self.memory_growth!r}): expected a part of the memory, 0 or more"
            )
        if not isinstance(self.max_compiles, int) or self.max_compiles < 1:
            raise errors.OptionError(
                f"Collectives(max_compiles={self.max_compiles!r}): expected a number of compiles, 1 or more"
            )


class CollectivesDriver:
    """Decides by compiling and simulating (`drive.improve`); the plan has prices and limits, not an order."""

    name = "collectives"
    spends_slack = True

    def __init__(self, options: Collectives | None = None):
        self.options = options or Collectives()
        self.compiles = 0
        """Compiles that `plan` or `exchange` has spent."""
        self.measurement: Any = None
        """Of the program with what was decided; None where nothing was."""
        self._found: drive.Improved | None = None

    def plan(self, module: Any, context: pipeline.Context) -> Mapping[str, Any] | None:
        """A plan, or None where there is nothing to hide, nothing to gain, or nothing to judge it by.

        Its keys: "rewrite" (a name and a pass pipeline, or None), "compiler_options" (final values), "schedule"
        (a `SchedulePlan` as JSON, or None) and "simulated" (seconds by parameter set, for reading).
        """
        if self.options.stress:
            stressed = rewrites.stressed(
                module,
                self.options.rewrites,
                numerics=context.numerics,
                min_bytes=self.options.split_min_bytes,
            )
            return stressed and _plan(rewrite=stressed)
        if context.partitions == 1:
            return None
        if context.platform != "cuda" or context.compile is None or context.target is None:
            return None

        def say(kind: str, message: str, location: str = "", operation: str = "", **args: Any) -> None:
            context.remark(Remark(self.name, message, kind, location or None, operation, args))

        sets = parameter_sets.resolve(self.options.parameters, context.target)
        budget = context.budget_bytes
        found = drive.improve(
            _jaxlib(module),
            context.target,
            parameters=sets,
            memory_growth=self.options.memory_growth if budget is None else math.inf,
            limit_bytes=context.target.usable_bytes if budget is None else budget,
            variants=lambda: rewrites.variants(
                module,
                self.options.rewrites,
                numerics=context.numerics,
                min_bytes=self.options.split_min_bytes,
                given=context.compiler_options,
            ),
            compiles=self.options.max_compiles,
            compile=context.compile,
            order=self.options.schedule,
            pipeline=self.options.pipeline,
            probe=budget is not None,
        )
        self.compiles = found.compiles
        self._found = found
        self._explain(found, len(sets), say)
        return self._decided(found) if found.changed else None

    @property
    def wishes(self) -> Sequence[schedule.Wish]:
        """What more memory than was left would be worth to the schedule of the program last planned for."""
        return () if self._found is None else self._found.wishes

    @property
    def step_seconds(self) -> float:
        """A step of the program last planned for, as it was left, under the first parameter set; simulated."""
        return 0.0 if self._found is None else self._found.simulated_after[0].seconds

    def exchange(
        self, module: Any, wish: schedule.Wish, context: pipeline.Context
    ) -> tuple[Mapping[str, Any] | None, str]:
        """A plan for a version of the program last planned for that needs less memory by a wish, for a compile or two.

        None where the step is not faster than the last plan's under every parameter set, or over the budget; and
        what came of it, in words.
        """
        before, self.compiles = self._found, 0
        if before is None or before.judge is None:
            return None, "nothing was planned before"
        version = module.clone()
        if before.variant is not None and rewrites.apply(version, before.variant.plan):
            return None, f"rewrite {before.variant.name} does not fit it"
        spent = before.judge.spent
        found, why = drive.reordered(before, _jaxlib(version), wish)
        self.compiles = before.judge.spent - spent
        if found is None:
            return None, why
        self._found = found
        old, new = before.simulated_after[0], found.simulated_after[0]
        return self._decided(found), (
            f"step {milliseconds(old.seconds)} -> {milliseconds(new.seconds)} ms, exposed communication "
            f"{milliseconds(old.exposed_seconds)} -> {milliseconds(new.exposed_seconds)} ({new.parameters}, simulated)"
        )

    def _decided(self, found: drive.Improved) -> dict[str, Any]:
        self.measurement = found.after.measurement
        rewrite = None if found.variant is None else found.variant.plan
        return _plan(
            rewrite=rewrite,
            compiler_options={} if found.variant is None else found.variant.compiler_options,
            schedule=None if found.plan is None else found.plan.to_json(),
            simulated={
                before.parameters: [round(s.seconds, 7) for s in (before, after)]
                for before, after in zip(found.simulated_before, found.simulated_after, strict=True)
            },
        )

    def apply(
        self, module: Any, plan: Mapping[str, Any], *, remark: Callable[[Any], None] | None = None
    ) -> Sequence[str] | None:
        """Rewrites ``module``; the rest of the plan is for its compile, see `compiling`. What there is to
        say needs the compile, so it is said when planning.
        """
        _check(plan)
        rewrite = plan["rewrite"]
        return None if rewrite is None else rewrites.apply(module, rewrite)

    def compiling(self, plan: Mapping[str, Any]) -> pipeline.Compiling | None:
        """The XLA options and the schedule that the plan asks for."""
        _check(plan)
        options, order = plan["compiler_options"], plan["schedule"]
        if not options and order is None:
            return None
        if order is None:
            return pipeline.Compiling(options)
        prices = schedule.SchedulePlan.from_json(order)

        @contextlib.contextmanager
        def around(tag: str) -> Iterator[None]:
            with hooks.applying(prices, tag=tag) as record:
                yield
            if record.error is not None:
                warnings.warn(
                    f"farrier.optimize: a module compiled with XLA's own schedule, because ours failed: "
                    f"{record.error.strip().splitlines()[-1]}",
                    stacklevel=2,
                )

        return pipeline.Compiling(options, around)

    def _explain(self, found: drive.Improved, sets: int, say: Any) -> None:
        pairs = list(zip(found.simulated_before, found.simulated_after, strict=True))[:sets]
        if not found.changed:
            say("analysis", f"XLA's schedule stays: {found.reason}")
        else:
            what = " and ".join(
                [
                    *([f"rewrite {found.variant.name}"] if found.variant is not None else []),
                    *(_moved(found.prepared) if found.prepared is not None else []),
                    *(["an order of our own"] if found.plan is not None else []),
                ]
            )
            times = "; ".join(
                f"step {milliseconds(b.seconds)} -> {milliseconds(a.seconds)} ms, exposed communication "
                f"{milliseconds(b.exposed_seconds)} -> {milliseconds(a.exposed_seconds)}, bound {milliseconds(a.bound_seconds)} ({a.parameters})"
                for b, a in pairs
            )
            before, after = pairs[0]
            say(
                "applied",
                f"{what}: {times} (simulated)",
                SecondsBefore=before.seconds,
                Seconds=after.seconds,
                ExposedSecondsBefore=before.exposed_seconds,
                ExposedSeconds=after.exposed_seconds,
                Parameters=after.parameters,
            )
        for name, why in found.rejected.items():
            say("missed", f"{name} is not used: {why}")
        for wait in pairs[0][1].waits[:_NAMED]:
            if wait.exposed_seconds < drive.WORTHWHILE * pairs[0][1].seconds:
                break
            why = wait.why
            if wait.kind == "all-gather" and found.outcome is not None and found.outcome.over_cap:
                why += f"; {found.outcome.over_cap} orders that were faster hold more memory than is allowed"
            say(
                "missed",
                f"{wait.kind} of {wait.bytes:,} bytes over {wait.group} devices, {wait.runs} runs, still waits "
                f"{milliseconds(wait.exposed_seconds)} of {milliseconds(wait.seconds)} ms: {why}",
                wait.source,
                wait.op_name,
                Bytes=wait.bytes,
                Runs=wait.runs,
                Seconds=wait.seconds,
                ExposedSeconds=wait.exposed_seconds,
            )


def _moved(done: Any) -> list[str]:
    parts = [
        *([f"{done.early} gathers an iteration early"] if done.early else []),
        *([f"{done.late} reductions an iteration late"] if done.late else []),
        *([f"{done.buckets} buckets of collectives"] if done.buckets else []),
    ]
    return [", ".join(parts)]


def _plan(
    *,
    rewrite: Mapping[str, Any] | None,
    compiler_options: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    simulated: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "rewrite": rewrite,
        "compiler_options": dict(compiler_options or {}),
        "schedule": schedule,
        "simulated": dict(simulated or {}),
    }


def _check(plan: Mapping[str, Any]) -> None:
    version = plan.get("version")
    missing = [key for key in ("rewrite", "compiler_options", "schedule") if key not in plan]
    if version != _VERSION or missing:
        raise errors.PlanError(
            f"the plan's part about collectives has version {version!r}"
            + (f" and lacks {', '.join(missing)}" if missing else "")
            + f"; this farrier reads version {_VERSION}",
            hint="plan again",
        )


def _jaxlib(module: Any) -> Any:
    from farrier._src import interchange

    return interchange.to_jaxlib(module)
