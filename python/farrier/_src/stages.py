"""From a program to a decision: find or make a plan, apply it, or keep the original.

One :class:`FunctionSite` stands behind each optimized function. The primitive's lowering hands it a
program (see :mod:`farrier._src.primitive`); it answers with a module to splice in, or None. All
that can go wrong between the two is handled here: in strict mode it raises, else the original runs
and one warning says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farrier._src import cache, compat, distributed, errors, fingerprint, pipeline, where
from farrier._src.options import Options
from farrier._src.plan import Plan
from farrier._src.primitive import Program, ir

__all__ = ["Decision", "FunctionSite", "OptimizeWarning"]


class OptimizeWarning(UserWarning):
    """Something that was asked of ``farrier.optimize`` is not done; the message says what instead."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided for one lowering of a function.

    Attributes:
      plan: the plan; its ``passes`` are empty when nothing changes.
      source: where it came from: "search", "plan" (given by the user), "cache", "process 0",
        "nothing to do" or "fallback".
      changed: whether the module differs from the original.
      seconds: wall time of planning and applying, tracing and XLA's final compile excluded.
      compiles: compiles that the search spent.
      remarks: what the passes had to say, in order.
      notes: what the user should know about the budget and the target.
      run: where it is planned for (see :class:`farrier._src.where.Run`).
    """

    plan: Plan
    source: str
    changed: bool
    seconds: float
    compiles: int
    remarks: tuple[Any, ...]
    notes: tuple[str, ...]
    run: where.Run


# Errors that are the answer and not a failure of a pass: they reach the caller in every mode.
_ANSWERS = (
    errors.BudgetError,
    errors.CallbackError,
    errors.DistributedError,
    errors.MissingPluginError,
    errors.OptionError,
    errors.PlanError,
    errors.TargetError,
)


class FunctionSite:
    """Plans for one optimized function; carried by its equations, compared by identity."""

    def __init__(self, name: str, source: str | None, options: Options, compiler_options: Mapping[str, Any]):
        self.name = name
        self.source = source
        self.options = options
        self.compiler_options = dict(compiler_options)
        self._said: set[str] = set()
        # The lowered modules that JAX keeps, with what was decided for each; JAX's own lowering
        # cache hands the same module out again.
        self._decisions: list[tuple[ir.Module, Decision]] = []
        self._store = cache.PlanStore(options.cache_dir)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def decision_for(self, module: ir.Module) -> Decision | None:
        """What was decided when ``module`` was lowered."""
        return next((d for m, d in reversed(self._decisions) if m is module), None)

    def say(self, text: str) -> None:
        """Warns, once per function and text."""
        if text not in self._said:
            self._said.add(text)
            at = f" ({self.source})" if self.source else ""
            warnings.warn(f"farrier.optimize: {self.name}{at}: {text}", OptimizeWarning, stacklevel=2)

    def transform(self, program: Callable[[], Program], enclosing: ir.Module) -> ir.Module | None:
        """See :class:`farrier._src.primitive.Site`."""
        if not self.options.passes and self.options.plan is None:
            return None
        start = time.perf_counter()
        made = program()
        run = where.resolve(self, made)
        for note in run.warnings:
            self.say(note)
        remarks: list[Any] = []
        try:
            plan, source, compiles, module = self._decide(made, run, remarks)
        except _ANSWERS:
            raise
        except Exception as error:
            if self.options.strict:
                raise
            self.say(
                f"runs as it was written, because optimizing it failed: {_first_line(error)}{_repro(error)}"
            )
            plan = self._plan(made, run, "", "", {}, {}, fallback=_first_line(error))
            source, compiles, module = "fallback", 0, None
        decision = Decision(
            plan=plan,
            source=source,
            changed=module is not None,
            seconds=time.perf_counter() - start,
            compiles=compiles,
            remarks=tuple(remarks),
            notes=(*run.warnings, *run.notes),
            run=run,
        )
        self._decisions.append((enclosing, decision))
        if module is None:
            return None
        # JAX's compile cache and XLA's hooks tell plans apart by the module's name.
        name = ir.StringAttr(enclosing.operation.attributes["sym_name"]).value
        enclosing.operation.attributes["sym_name"] = ir.StringAttr.get(
            f"{name}_farrier_{plan.fingerprint[:8]}", context=enclosing.context
        )
        return module

    def _decide(self, program: Program, run: where.Run, remarks: list[Any]):
        """The plan, where it came from, the compiles it took and the module (None: unchanged)."""
        from farrier._src import interchange

        original = interchange.to_core(program.module)
        before = original.fingerprint
        drivers = pipeline.drivers_for(self.options.passes)
        given = self.options.plan
        if given is not None and given.platform == run.platform:
            self._check_given(given, program, run, before)
            plan, source, compiles = given, "plan", 0
        else:
            agreement = distributed.agreement(run, self.name, before)
            plan, source, compiles = agreement.plan(
                lambda: self._search_or_recall(program, run, original, before, drivers, remarks)
            )
        rewritten, changed = self._apply(original, drivers, plan, before)
        if given is None or given.platform != run.platform:
            agreement.confirm(plan.output_fingerprint, rewritten.fingerprint if changed else before)
        if not changed:
            return plan, source if plan.passes or plan.fallback else "nothing to do", compiles, None
        module = interchange.to_jaxlib(rewritten, program.module.context)
        return plan, source, compiles, module

    def _apply(self, original: Any, drivers: Sequence[Any], plan: Plan, before: str):
        if plan.fallback or not plan.passes:
            return original, False
        rewritten = original.clone()
        pipeline.apply(rewritten, drivers, plan.passes)
        after = rewritten.fingerprint
        same_program = plan.input_fingerprint == before
        if same_program and plan.output_fingerprint != after and plan.versions == fingerprint.versions():
            raise errors.StalePlanError(
                f"applying the plan to {self.name} did not give the program that the plan was made with",
                differences=[f"result: {plan.output_fingerprint[:12]} in the plan, {after[:12]} now"],
                hint="plan again; if it happens twice, report it with the plan and the program",
            )
        return rewritten, after != before

    def _check_given(self, plan: Plan, program: Program, run: where.Run, before: str) -> None:
        """Refuses a plan whose circumstances differ in what decides; other programs are the passes' say."""
        differences = []
        if plan.partitions != program.num_partitions:
            differences.append(f"devices: {plan.partitions} in the plan, {program.num_partitions} now")
        allowed = ("bitwise", "bounded", "relaxed")
        made_with = plan.options.get("numerics", "bounded")
        if allowed.index(made_with) > allowed.index(self.options.numerics):
            differences.append(f"numerics: {made_with!r} in the plan, {self.options.numerics!r} allowed now")
        planned, asked = plan.options.get("target"), self.options.target
        if planned and asked is not None and planned.get("name") != asked.name:
            differences.append(f"target: {planned.get('name')} in the plan, {asked.name} now")
        if differences:
            raise errors.StalePlanError(
                f"the plan was made for something else than this {self.name}",
                differences=differences,
                hint="plan again with step.plan(...).save(path), or give the options of the plan",
            )

    def _search_or_recall(self, program, run, original, before, drivers, remarks):
        key = fingerprint.plan_key(before, self, run)
        remembered = self._store.get(key)
        if remembered is not None:
            return remembered, "cache", 0
        from farrier._src import search

        context = pipeline.Context(
            function=self.name,
            platform=run.platform,
            partitions=program.num_partitions,
            target=run.target,
            budget_bytes=run.budget_bytes,
            budget_binding=run.budget_binding,
            objective=self.options.objective,
            numerics=self.options.numerics,
            max_compiles=self.options.max_compiles,
            measure=run.measure,
            remark=remarks.append,
        )
        found = search.plan_step(original, drivers, context)
        passes = {name: decided for name, decided in found.passes.items() if decided}
        rewritten = original.clone()
        pipeline.apply(rewritten, drivers, passes)
        after = rewritten.fingerprint
        plan = self._plan(
            program, run, before, after, passes if after != before else {}, dict(found.measured)
        )
        self._store.put(key, plan)
        return plan, "search", found.compiles

    def _plan(self, program, run, before, after, passes, measured, fallback=None) -> Plan:
        return Plan(
            function=self.name,
            passes=passes,
            input_fingerprint=before,
            output_fingerprint=after,
            platform=run.platform,
            partitions=program.num_partitions,
            options=self.options.describe() | {"budget_bytes": run.budget_bytes},
            versions=fingerprint.versions(),
            fallback=fallback,
            measured=measured,
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _repro(error: BaseException) -> str:
    repro = getattr(error, "repro", None)
    return f"\n  reproduce with: {repro}" if repro else ""


compat.hide_frames(__file__)
with contextlib.suppress(ImportError):
    from farrier._src import primitive as _primitive

    compat.hide_frames(_primitive.__file__)
