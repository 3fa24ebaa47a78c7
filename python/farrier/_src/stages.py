"""From a program to a decision: find or make a plan, apply it, or keep the original.

One :class:`FunctionSite` stands behind each optimized function. The primitive's lowering hands it a
program (see :mod:`farrier._src.primitive`); it answers with a module to splice in, or None. All
that can go wrong between the two is handled here: in strict mode it raises, else the original runs
and one warning says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farrier._src import (
    cache,
    compat,
    distributed,
    errors,
    fingerprint,
    in_compiles,
    interchange,
    limits,
    pipeline,
    store,
    where,
)
from farrier._src import remarks as remarks_lib
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
      changed: whether the module, or what XLA's compile makes of it, differs from the original.
      seconds: wall time of planning and applying, tracing and XLA's final compile excluded.
      compiles: compiles that the search spent.
      remarks: what the passes had to say, in order, as JSON (pass, kind, message, location, args).
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


# Lowerings of one function whose decisions can still be asked for; JAX keeps as many modules alive.
_REMEMBERED = 256


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
        """Warns, once per function and first line: a step that JAX lowers twice fails twice, in the same way."""
        first = text.split("\n", 1)[0]
        if first not in self._said:
            self._said.add(first)
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
        plan, source, compiles, module, compiling = self._decide(made, run, remarks)
        decision = Decision(
            plan=plan,
            source=source,
            changed=module is not None or compiling is not None,
            seconds=time.perf_counter() - start,
            compiles=compiles,
            remarks=tuple(remarks),
            notes=(*run.warnings, *run.notes),
            run=run,
        )
        self._decisions.append((enclosing, decision))
        del self._decisions[:-_REMEMBERED]
        if decision.changed:
            # JAX's compile cache and XLA's hooks tell plans apart by the module's name.
            tag = f"farrier_{plan.fingerprint[:8]}"
            _append_to_name(enclosing, tag)
            if compiling is not None:
                in_compiles.register(tag, compiling)
        return module

    def _decide(self, program: Program, run: where.Run, remarks: list[Any]):
        """The plan, where it came from, the compiles it took, the module (None: unchanged) and what is asked
        of its compile (None: nothing)."""
        original, before = self._read(program)
        drivers = pipeline.drivers_for(self.options.passes)
        options = store.content_key(self.options.describe())
        agreement = distributed.agreement(run, self.name, before, options)
        given = self.options.plan
        if given is not None and given.platform == run.platform:
            self._check_given(given, program, run)
            plan, source, compiles = given, "plan", 0
        else:
            plan, source, compiles = agreement.plan(
                lambda: self._search_or_recall(program, run, original, before, drivers, remarks)
            )
        compiling = None
        try:
            try:
                module, after = self._carried_out(program, original, drivers, plan, before, remarks)
            except errors.StalePlanError:
                # A program whose name scopes alone have changed is the same to the store, and not to a plan.
                if source != "cache" or len(run.processes) > 1:
                    raise
                remarks.clear()
                plan, source, compiles = self._search_or_recall(
                    program, run, original, before, drivers, remarks, recall=False
                )
                module, after = self._carried_out(program, original, drivers, plan, before, remarks)
            if plan.fallback is None:
                compiling = pipeline.compiling(drivers, plan.passes)
        except Exception as error:
            agreement.fail(error)
            if self._raises(error):
                raise
            module, source = None, "fallback"
            plan = self._fallback(program, run, before, error)
        else:
            agreement.confirm(after)
        if plan.fallback is not None:
            self.say(f"runs as it was written, because {plan.fallback}")
        return plan, source, compiles, module, compiling

    def _raises(self, error: Exception) -> bool:
        return self.options.strict or isinstance(error, _ANSWERS)

    def _read(self, program: Program) -> tuple[Any, str]:
        """farrier's module and its fingerprint; (error, text) when farrier cannot read the program."""
        try:
            module = interchange.to_core(program.module)
        except Exception as error:
            if self._raises(error):
                raise
            return error, f"unreadable: {_first_line(error)}"
        return module, fingerprint.of_module(module)

    def _check_original(self, program, run, original, error) -> None:
        """Falling back must not break the budget silently.

        Raises:
          farrier.BudgetError: the original does not keep a binding budget.
          farrier.CallbackError: the same, and a host callback may be what kept it from being optimized.
        """
        measure = run.verify or run.measure
        if run.budget_bytes is None or not run.budget_binding or measure is None:
            return
        try:
            total = measure(original).total_bytes
        except errors.Error:
            return  # Not even the original compiles here: XLA's own error is the one to show.
        if total <= run.budget_bytes:
            return
        what = (
            f"optimizing {self.name} failed and as it was written it needs {total:,} bytes per device, "
            f"of the {run.budget_bytes:,} that it may use ({_first_line(error)})"
        )
        if program.callbacks:
            raise errors.CallbackError(
                what,
                where=program.callbacks[0],
                hint="the host callback may be the cause: try without it, or raise the budget",
            ) from error
        raise errors.BudgetError(
            what, budget_bytes=run.budget_bytes, smallest_bytes=total, where=self.source
        ) from error

    def _fallback(self, program, run, before, error) -> Plan:
        reason = f"optimizing it failed: {_first_line(error)}{_repro(error)}{self._saved(program, before)}"
        if program.callbacks:
            reason += f"\n  it calls back to the host at {program.callbacks[0]}"
        return self._plan(program, run, before, before, {}, {}, fallback=reason)

    def _carried_out(self, program, original, drivers, plan, before, remarks) -> tuple[ir.Module | None, str]:
        """The module that the plan makes of the program (None: unchanged) and its fingerprint."""
        if plan.fallback is not None or not plan.passes:
            return None, before
        # A plan that was searched for or remembered brings its remarks along.
        given = plan is self.options.plan
        say = (lambda said: remarks.append(remarks_lib.to_json(said))) if given else None
        rewritten = self._apply(original, drivers, plan, before, say)
        after = fingerprint.of_module(rewritten)
        if after == before:
            return None, before
        return interchange.to_jaxlib(rewritten, program.module.context), after

    def _apply(self, original: Any, drivers: Sequence[Any], plan: Plan, before: str, remark=None) -> Any:
        """A copy of the program with the plan applied; `remark` takes what the passes say about it."""
        rewritten = original.clone()
        pipeline.apply(rewritten, drivers, plan.passes, remark)
        after = fingerprint.of_module(rewritten)
        repeated = plan.input_fingerprint == before and plan.versions == fingerprint.versions()
        if repeated and plan.output_fingerprint != after:
            raise errors.StalePlanError(
                f"applying the plan to {self.name} did not give the program that the plan was made with",
                differences=[f"result: {plan.output_fingerprint[:12]} in the plan, {after[:12]} now"],
                hint="plan again; if it happens twice, report it with the plan and the program",
            )
        return rewritten

    def _saved(self, program: Program, before: str) -> str:
        """Saves the program that could not be optimized; where, for the message."""
        name = f"{fingerprint.text_key(before)[:16]}.mlir"
        path = store.default_directory(self.options.cache_dir) / "failures" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(program.module.operation.get_asm(binary=False, enable_debug_info=True).encode())
        except OSError:
            return ""
        return f"\n  the program is saved in {path}"

    def _check_given(self, plan: Plan, program: Program, run: where.Run) -> None:
        """Refuses a plan whose circumstances differ in what decides; other programs are the passes' say."""
        differences = []
        if plan.partitions != program.num_partitions:
            differences.append(f"devices: {plan.partitions} in the plan, {program.num_partitions} now")
        allowed = ("bitwise", "bounded", "relaxed")
        made_with = plan.options.get("numerics", "bounded")
        if allowed.index(made_with) > allowed.index(self.options.numerics):
            differences.append(f"numerics: {made_with!r} in the plan, {self.options.numerics!r} allowed now")
        after = plan.measured.get("after")
        if after and run.budget_bytes is not None and run.budget_binding:
            total = (
                sum(after[f"{part}_bytes"] for part in ("argument", "output", "temp")) - after["alias_bytes"]
            )
            if total > run.budget_bytes:
                differences.append(
                    f"budget: the plan gives {total:,} bytes, {run.budget_bytes:,} allowed now"
                )
        planned, asked = plan.options.get("target"), self.options.target
        if planned and asked is not None and planned.get("name") != asked.name:
            differences.append(f"target: {planned.get('name')} in the plan, {asked.name} now")
        if differences:
            raise errors.StalePlanError(
                f"the plan was made for something else than this {self.name}",
                differences=differences,
                hint="plan again with step.plan(...).save(path), or give the options of the plan",
            )

    def _search_or_recall(self, program, run, original, before, drivers, remarks, *, recall=True):
        """The plan for a program: the one that was made before, if it may be recalled, or a new one.

        A pass that fails gives a plan too (unless strict): to fall back on the original. So all
        processes of a job fall back together.
        """
        if isinstance(original, Exception):
            return self._fallback(program, run, before, original), "fallback", 0
        key = fingerprint.plan_key(before, self, run)
        remembered = self._store.get(key) if recall else None
        if remembered is not None:
            plan, said = remembered
            remarks.extend(said)
            return plan, "cache", 0
        try:
            plan, compiles = self._search_within(program, run, original, before, drivers, remarks)
        except Exception as error:
            if self._raises(error):
                raise
            self._check_original(program, run, original, error)
            return self._fallback(program, run, before, error), "fallback", 0
        if self.options.max_seconds is None and self.options.max_pass_seconds is None:
            # A plan that wall time cut short is not the one that the next search would make.
            self._store.put(key, plan, remarks)
        return plan, "search" if plan.passes else "nothing to do", compiles

    def _search_within(self, program, run, original, before, drivers, remarks) -> tuple[Plan, int]:
        """The search, given up when it does not heed its own limit."""
        limits.check_memory(original.num_ops)
        most = self.options.max_seconds
        if most is None:
            return self._search(program, run, original, before, drivers, remarks)
        said: list[Any] = []
        copy = original.clone()
        found = limits.within(
            2 * most,
            f"the search for {self.name}",
            lambda: self._search(program, run, copy, before, drivers, said),
        )
        remarks.extend(said)
        return found

    def _search(self, program, run, original, before, drivers, remarks) -> tuple[Plan, int]:
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
            clock=limits.Clock(self.options.max_seconds),
            pass_seconds=self.options.max_pass_seconds,
            measure=run.measure,
            remark=lambda remark: remarks.append(remarks_lib.to_json(remark)),
            compile=run.compile,
            compiler_options=self.compiler_options,
        )
        found, rewritten = self._decided(original, drivers, context)
        compiles, measured = found.compiles, dict(found.measured)
        if run.verify is not None and run.budget_bytes is not None:
            # The attached GPU's compile differs (autotuned kernels, their workspaces): look once,
            # and if it is over, plan once more for that much less.
            attached = _verified(run, drivers, found, rewritten)
            compiles += 1
            over = attached.total_bytes - run.budget_bytes
            if over > 0:
                remarks.clear()
                tighter = dataclasses.replace(context, budget_bytes=run.budget_bytes - over)
                found, rewritten = self._decided(original, drivers, tighter)
                attached = _verified(run, drivers, found, rewritten)
                compiles, measured = compiles + found.compiles + 1, dict(found.measured)
            if attached.total_bytes > run.budget_bytes:
                raise errors.BudgetError(
                    f"{self.name} needs {attached.total_bytes:,} bytes on the attached device and may use "
                    f"{run.budget_bytes:,}",
                    budget_bytes=run.budget_bytes,
                    smallest_bytes=attached.total_bytes,
                    where=self.source,
                    hint=f"the smallest budget that was measured to work is {attached.total_bytes:,} bytes",
                )
            measured["attached"] = attached.to_json()
        after = fingerprint.of_module(rewritten)
        # What leaves the program as it was may still ask something of its compile.
        kept = after != before or pipeline.compiling(drivers, found.passes) is not None
        passes = dict(found.passes) if kept else {}
        return self._plan(program, run, before, after, passes, measured), compiles

    def _decided(self, original, drivers, context) -> tuple[pipeline.StepPlan, Any]:
        """What the search found, and the program with it applied, accepted by jaxlib."""
        found = pipeline.search(original, drivers, context)
        found = dataclasses.replace(found, passes={k: v for k, v in found.passes.items() if v})
        rewritten = original.clone()
        pipeline.apply(rewritten, drivers, found.passes, context.remark)
        # Refused here, it is this process's fallback; refused later, other processes depend on it.
        interchange.to_jaxlib(rewritten)
        return found, rewritten

    def _plan(self, program, run, before, after, passes, measured, fallback=None) -> Plan:
        return Plan(
            function=self.name,
            passes=_data(passes),
            input_fingerprint=before,
            output_fingerprint=after,
            platform=run.platform,
            partitions=program.num_partitions,
            options=_data(self.options.describe() | {"budget_bytes": run.budget_bytes}),
            versions=fingerprint.versions(),
            fallback=fallback,
            measured=_data(measured),
        )


def _append_to_name(module: ir.Module, tag: str) -> None:
    name = f"{compat.module_name(module)}_{tag}"
    module.operation.attributes["sym_name"] = ir.StringAttr.get(name, context=module.context)


def _verified(run: where.Run, drivers: Sequence[Any], found: pipeline.StepPlan, rewritten: Any) -> Any:
    """The measurement of the attached GPU's compile, with what the plan asks of it."""
    compiling = pipeline.compiling(drivers, found.passes)
    if compiling is None:
        return run.verify(rewritten)
    module = interchange.to_jaxlib(rewritten)
    tag = f"farrier_{fingerprint.text_key(json.dumps(_data(found.passes), sort_keys=True))[:8]}"
    _append_to_name(module, tag)
    with compiling.applied(tag) as options:
        return run.verify(module, options)


def _data(value: Any) -> Any:
    """Plain JSON data, as it will be read back; without wall times, so equal decisions are equal plans."""

    def timeless(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {key: timeless(entry) for key, entry in item.items() if not str(key).endswith("_seconds")}
        return [timeless(entry) for entry in item] if isinstance(item, list | tuple) else item

    return json.loads(json.dumps(timeless(value)))


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
