"""Compile, simulate, reorder, compile again, and keep the better of the two."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farrier._src import errors, hlo, oracle
from farrier._src.collectives import hooks, prepare, schedule
from farrier._src.collectives import parameters as parameter_sets
from farrier._src.targets import Target

# XLA's own estimate of each kernel, written into the module: what kernels cost in the simulation.
STATISTICS = {"xla_gpu_collect_cost_model_stats": True}
# Exposed communication below this part of the step is not worth a second compile.
WORTHWHILE = 1e-3

PIPELINE = "pipeline"
"""The name of the form that is made before XLA's scheduler: buckets, and collectives across iterations."""

NOTHING_EXPOSED = "no communication worth mentioning is exposed"


def kernels_from(path: str) -> dict[str, Any]:
    """Options with which XLA takes kernels from a file, and adds those that it lacks: most are the same from one form
    or order of a program to the next. Programs and their memory stay the same.
    """
    return {"xla_gpu_kernel_cache_file": path}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """The program in another form: what a rewrite of its StableHLO made of it.

    Attributes:
      name: of the rewrite, for the report and the plan.
      module: StableHLO as `oracle.compile_module` takes it.
      compiler_options: XLA options that the form needs, on top of the program's own.
      needs: HLO opcodes without which the form is not worth a compile.
      unlike: collectives (HLO opcodes) that make it not worth one where the program has any of them.
    """

    name: str
    module: Any
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    unlike: frozenset[str] = frozenset()

    def pointless(self, opcodes: set[str]) -> str:
        """Why a program of these opcodes is not worth a compile of the form; "" where it is."""
        if missing := sorted(self.needs - opcodes):
            return f"the program has no {', '.join(missing)}"
        if others := sorted(self.unlike & opcodes):
            return f"the program has {', '.join(others)}"
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Improved:
    """A program's schedule before and after."""

    before: oracle.Compiled
    after: oracle.Compiled
    """The same object as `before` where nothing was changed."""
    plan: schedule.SchedulePlan | None
    """None where XLA's schedule stays."""
    simulated_before: tuple[schedule.Simulation, ...]
    """By parameter set."""
    simulated_after: tuple[schedule.Simulation, ...]
    reason: str
    """Why the result is what it is, for the report."""
    outcome: schedule.Outcome | None = None
    prepared: prepare.Prepared | None = None
    """What was changed before XLA's scheduler, where that is part of `plan`."""
    variant: Variant | None = None
    """The form of the program that `after` is of; None: the program as it was."""
    compiles: int = 1
    """Compiles that were spent."""
    rejected: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Why each form that was looked at and not taken was not, by its name ("" is the program as it was)."""
    judge: _Judge | None = dataclasses.field(default=None, repr=False)
    """What compared them: prices and limits, for `reordered`."""

    wishes: tuple[schedule.Wish, ...] = ()
    """What more memory would be worth to the schedule; seconds against `after`'s."""

    @property
    def simulated(self) -> tuple[schedule.Simulation, ...]:
        """Of what was decided for."""
        return self.simulated_after

    @property
    def changed(self) -> bool:
        """Whether the schedule or the program's form is ours."""
        return self.after is not self.before


@dataclasses.dataclass(frozen=True)
class _Found:
    """One form of the program, compiled and judged."""

    compiled: oracle.Compiled
    simulated: tuple[schedule.Simulation, ...]
    plan: schedule.SchedulePlan | None
    outcome: schedule.Outcome | None
    variant: Variant | None
    prepared: prepare.Prepared | None = None


def improve(
    module: Any,
    target: Target,
    *,
    parameters: Sequence[str | parameter_sets.ParameterSet] | None = None,
    judges: Sequence[str | parameter_sets.ParameterSet] = (),
    memory_growth: float = 0.0,
    limit_bytes: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    variants: Callable[[], Sequence[Variant]] | Sequence[Variant] = (),
    compiles: int | None = None,
    compile: Callable[[Any, Mapping[str, Any]], oracle.Compiled] | None = None,
    order: bool = True,
    pipeline: bool = True,
    probe: bool = False,
) -> Improved:
    """Gives a program our schedule, and another form, where that is better.

    Args:
      module: StableHLO, as `oracle.compile_module` takes it.
      target: the devices.
      parameters: parameter sets (names, files, objects) that the result must not lose under; None: the
        target's two.
      judges: further sets that only score the result.
      memory_growth: how much more total device memory the result may need, as a part of what it needs now.
        XLA's buffer assignment of the result decides, not an estimate.
      limit_bytes: the most that the result may need in total, per device; a program that needs more as it
        is may not grow. None: `memory_growth` alone decides.
      compiler_options: XLA options for all compiles.
      variants: other forms of the program to try, the most promising first; a callable is asked only when
        communication is exposed.
      compiles: how many compiles may be spent, at least 1; None: as many as the forms take. The first is
        the program's own, each form then takes one, and its schedule another.
      compile: what compiles; None: `oracle.compile_module` for `target`.
      order: whether to look for a schedule of our own.
      pipeline: whether to try what is changed before XLA's scheduler: buckets, and collectives across the
        iterations of loops. It is judged together with a schedule of our own, which it needs, in one compile.
      probe: whether to find out what more memory would be worth (`Improved.wishes`).

    Returns:
      What was found; `after` is `before` unless the result is faster under every set of `parameters`, within
      the memory, by XLA's own final program.

    Raises:
      farrier.Error: the program does not compile, or a parameter set is malformed.
    """
    sets = parameter_sets.guarded(parameter_sets.resolve(parameters, target))
    judge = _Judge(
        target=target,
        sets=sets,
        scored=(*sets, *parameter_sets.resolve(judges, target)),
        compile=compile or (lambda m, options: oracle.compile_module(m, target, compiler_options=options)),
        options={**STATISTICS, **(compiler_options or {})},
        left=compiles,
        order=order,
        probe=probe,
    )
    base = judge.compiled(module, {})
    total = base.measurement.total_bytes
    grown = total * (1 + memory_growth)
    judge.limit_bytes = max(total, int(min(grown, grown if limit_bytes is None else limit_bytes)))
    judge.learn(base)
    original = _Found(base, judge.simulate(base), None, None, None)
    best, reason, outcome = original, NOTHING_EXPOSED, None
    if not judge.all_hidden(original):
        found, reason, outcome = judge.scheduled(original, module)
        best = judge.better(original, found) if found is not None else original
        program = base.hlo()
        if pipeline and order:
            found, why = judge.pipelined(original, best, module, program)
            if found is None:
                judge.rejected[PIPELINE] = why
            else:
                best, reason, outcome = found, "faster under every parameter set", found.outcome
        opcodes = {i.opcode.removesuffix("-start") for c in program.computations for i in c.instructions}
        for variant in variants() if callable(variants) else variants:
            if why := variant.pointless(opcodes):
                judge.rejected[variant.name] = why
                continue
            found, why = judge.form(variant, best)
            if found is None:
                judge.rejected[variant.name] = why
            else:
                best, reason, outcome = found, "faster under every parameter set", found.outcome
    return Improved(
        before=base,
        after=best.compiled,
        plan=best.plan,
        simulated_before=original.simulated,
        simulated_after=best.simulated,
        reason=reason,
        outcome=best.outcome or outcome,
        prepared=best.prepared,
        variant=best.variant,
        compiles=judge.spent,
        rejected=dict(judge.rejected),
        judge=judge,
        wishes=judge.wishes(judge.asked_of or original, best),
    )


def reordered(found: Improved, module: Any, wish: schedule.Wish) -> tuple[Improved | None, str]:
    """Another version of a program with our schedule, judged against what was found for the first.

    Args:
      found: of the first version, with the order and the form that it has.
      module: the other version, already in that form.
      wish: how to schedule it: one compile, and where collectives move across iterations another one without, which
        can be better where memory is no longer short. What the result may need in total stays the same.

    Returns:
      What was found, in the terms of the first version; None where the result is slower under a parameter set or
      over the limit; and the reason.
    """
    judge = found.judge
    assert judge is not None
    spent = judge.spent
    tried = [_reordered(found, module, wish)]
    if wish.pipeline:
        tried.append(_reordered(found, module, dataclasses.replace(wish, pipeline=False, buckets=False)))
    best, why = max(tried, key=lambda one: judge.gain(found, one[0]) if one[0] is not None else -1.0)
    return best and dataclasses.replace(best, compiles=judge.spent - spent), why


def _reordered(found: Improved, module: Any, wish: schedule.Wish) -> tuple[Improved | None, str]:
    judge = found.judge
    assert judge is not None
    prices = schedule.plan(
        found.after.hlo(),
        judge.target,
        judge.sets,
        memory_growth_bytes=wish.growth,
        frozen=judge.costs,
        pipeline=wish.pipeline,
        buckets=wish.buckets,
    )
    options = {} if found.variant is None else found.variant.compiler_options
    after, record = judge.hooked(module, prices, options)
    if record.error is not None or record.outcome is None:
        return None, "our schedule could not be applied"
    if (needed := after.measurement.total_bytes) > judge.limit_bytes:
        return None, f"needs {needed} bytes, more than the {judge.limit_bytes} allowed"
    changed = dataclasses.replace(
        found,
        after=after,
        plan=prices if record.outcome.changed or record.prepared is not None else None,
        simulated_after=judge.simulate(after),
        outcome=record.outcome,
        prepared=record.prepared,
    )
    if judge.gain(found, changed) <= 0:
        return None, "not faster under every parameter set"
    return changed, "faster under every parameter set"


@dataclasses.dataclass
class _Judge:
    """Compiles forms and schedules and compares them at the same prices."""

    target: Target
    sets: tuple[parameter_sets.ParameterSet, ...]
    scored: tuple[parameter_sets.ParameterSet, ...]
    compile: Callable[[Any, Mapping[str, Any]], oracle.Compiled]
    options: Mapping[str, Any]
    left: int | None
    order: bool
    probe: bool = False
    limit_bytes: int = 0
    spent: int = 0
    costs: dict[str, float] = dataclasses.field(default_factory=dict)
    rejected: dict[str, str] = dataclasses.field(default_factory=dict)
    asked: list[schedule.Wish] = dataclasses.field(default_factory=list)
    """What more memory would have been worth to the form that is kept, against XLA's schedule of it."""
    asked_of: _Found | None = None
    """That form with XLA's schedule; None: the program as it was."""

    def compiled(self, module: Any, options: Mapping[str, Any]) -> oracle.Compiled:
        self.spent += 1
        try:
            return self.compile(module, {**self.options, **options})
        except errors.CompileError:
            # XLA's estimates refuse some topologies that it compiles for (seen: a GB200 NVL72, 1x18x4). Kernels without
            # an estimate are priced by the bytes they move.
            if not STATISTICS.keys() <= self.options.keys():
                raise
            self.options = {k: v for k, v in self.options.items() if k not in STATISTICS}
            return self.compile(module, {**self.options, **options})

    def may_compile(self) -> bool:
        return self.left is None or self.spent < self.left

    def learn(self, compiled: oracle.Compiled) -> None:
        """Freezes the prices of kernels that were not met before."""
        plan = schedule.plan(compiled.hlo(), self.target, self.sets, frozen=self.costs)
        self.costs.update(plan.costs)

    def simulate(self, compiled: oracle.Compiled) -> tuple[schedule.Simulation, ...]:
        # A copy: prices are learnt from a form as XLA compiles it by itself.
        return schedule.simulate(compiled.hlo(), self.target, self.scored, frozen=dict(self.costs))

    def all_hidden(self, found: _Found) -> bool:
        judged = found.simulated[: len(self.sets)]
        return all(s.exposed_seconds <= WORTHWHILE * s.seconds for s in judged)

    def better(self, than: _Found, found: _Found) -> _Found:
        return found if self.gain(than, found) > 0 else than

    def gain(self, than: _Found | Improved, found: _Found | Improved) -> float:
        """By what part the step is faster, mean over the sets; 0 where it is slower under one."""
        pairs = list(zip(than.simulated, found.simulated, strict=True))[: len(self.sets)]
        if any(a.seconds > b.seconds for b, a in pairs):
            return 0.0
        return sum(1 - a.seconds / b.seconds for b, a in pairs) / len(pairs)

    def pipelined(
        self, original: _Found, best: _Found, module: Any, program: hlo.Module
    ) -> tuple[_Found | None, str]:
        """The program with changes before XLA's scheduler and our schedule after it, if that beats `best`."""
        loops, joined = prepare.promising(program)
        if not loops and not joined:
            return None, "no collective of a loop could move, and none was joined with others"
        if loops and not self.may_compile():
            # As good as all that waits in loops may have to be carried.
            waits = [w for w in best.simulated[0].waits if w.runs > 1 and w.exposed_seconds > 0]
            more = sum(w.bytes * (w.group if w.kind == "reduce-scatter" else 1) for w in waits)
            room = max(0, self.limit_bytes - original.compiled.measurement.total_bytes)
            if more:
                self._ask_to_move(original, best, more, room + more)
            return None, "no compile is left to judge it"
        found, why, _ = self.scheduled(original, module, pipeline=loops)
        if found is not None and self.gain(best, found) <= 0:
            return None, "not faster under every parameter set"
        return found, why

    def scheduled(
        self,
        given: _Found,
        module: Any,
        options: Mapping[str, Any] | None = None,
        *,
        pipeline: bool | None = None,
    ) -> tuple[_Found | None, str, schedule.Outcome | None]:
        """`given` compiled once more with our schedule; None where XLA's stays, and why.

        With `pipeline`, also with buckets before XLA's scheduler, and where it is true with pipelined loops.
        """
        if not self.order:
            return None, "a schedule of our own was not asked for", None
        if not self.may_compile():
            return None, "no compile is left for a schedule of our own", None
        total = given.compiled.measurement.total_bytes
        room = max(0, self.limit_bytes - total)
        for again in (False, True):
            plan = schedule.plan(
                given.compiled.hlo(),
                self.target,
                self.sets,
                memory_growth_bytes=room,
                frozen=self.costs,
                probe=self.probe,
                pipeline=bool(pipeline),
                buckets=pipeline is not None,
            )
            after, record = self.hooked(module, plan, options or {})
            outcome = record.outcome
            if record.error is not None:
                return None, f"the hook failed, XLA's schedule stays: {record.error}", None
            if record.calls == 0:
                return None, "XLA did not call the hook: its plugin does not support hooks", None
            moves = record.prepared is not None and record.prepared.changed
            if pipeline is not None and not moves and not (record.prepared and record.prepared.left_bytes):
                return None, "nothing in it can move", outcome
            if outcome is None:
                return None, "no order found that is faster under every parameter set", None
            found = _Found(after, self.simulate(after), plan, outcome, given.variant, record.prepared)
            needed = after.measurement.total_bytes
            under = self._asked_for(given, found)
            if pipeline is not None and not moves:
                return None, "nothing that can move fits in the memory", outcome
            if pipeline is None and not outcome.changed:
                return None, "no order found that is faster under every parameter set", outcome
            if needed <= self.limit_bytes:
                break
            # Once more, with what XLA needed over the estimate taken from the room.
            if again or under == 0 or room == 0 or not self.may_compile():
                return None, f"needs {needed} bytes, more than the {self.limit_bytes} allowed", outcome
            room = max(0, room - under)
        for b, a in zip(given.simulated[: len(self.sets)], found.simulated, strict=False):
            if a.seconds > b.seconds:
                return None, f"the final program is slower under {a.parameters}", outcome
        return found, "faster under every parameter set", outcome

    def _asked_for(self, given: _Found, found: _Found) -> int:
        """Notes what more memory would be worth; by how many bytes XLA needs more than was estimated."""
        plan, outcome = found.plan, found.outcome
        assert plan is not None and outcome is not None
        count = len(self.sets)
        before = sum(s.seconds for s in given.simulated[:count]) / count
        needed = found.compiled.measurement.total_bytes
        carried = found.prepared.carried_bytes if found.prepared is not None else 0
        expected = outcome.peak_after - outcome.peak_before + carried
        under = max(0, needed - given.compiled.measurement.total_bytes - expected)
        # Wishes are against the order that the search was given, which may be of a changed program.
        moved = before - sum(outcome.before) / count
        kinds = {"pipeline": plan.pipeline, "buckets": plan.buckets}
        self.asked += [
            dataclasses.replace(w, bytes=w.bytes + under, seconds=w.seconds + moved, **kinds)
            for w in outcome.wishes
        ]
        if needed > self.limit_bytes:
            saved = before - sum(s.seconds for s in found.simulated[:count]) / count
            wish = schedule.Wish(needed - self.limit_bytes, saved, plan.memory_growth_bytes, **kinds)
            self.asked.append(wish)
        left = found.prepared.left_bytes if found.prepared is not None else 0
        if left > 0:
            more = left + max(0, needed - self.limit_bytes)
            self._ask_to_move(given, found, more, plan.memory_growth_bytes + left)
        return under

    def _ask_to_move(self, given: _Found, found: _Found, more: int, growth: int) -> None:
        """Notes what it would be worth to move what has not moved in `found`, for `more` bytes, alone and with what is
        wished for already. At best all that waits in loops is hidden; what it comes to, the compile says.
        """
        simulated = found.simulated[: len(self.sets)]
        before = statistics.fmean(s.seconds for s in given.simulated[: len(self.sets)])
        waits = statistics.fmean(sum(w.exposed_seconds for w in s.waits if w.runs > 1) for s in simulated)
        most = before - statistics.fmean(s.compute_seconds for s in simulated)
        alone = schedule.Wish(
            more,
            before - statistics.fmean(s.seconds for s in simulated) + waits,
            growth,
            pipeline=True,
            buckets=True,
        )
        self.asked += [
            alone,
            *(
                dataclasses.replace(
                    alone, bytes=w.bytes + more, seconds=min(w.seconds + waits, most), growth=w.growth + more
                )
                for w in self.asked
            ),
        ]

    def wishes(self, given: _Found, best: _Found) -> tuple[schedule.Wish, ...]:
        """What was asked for while `given` was scheduled, against what was found; most memory first."""
        pairs = list(zip(given.simulated, best.simulated, strict=True))[: len(self.sets)]
        kept = sum(b.seconds - a.seconds for b, a in pairs) / len(pairs)
        left = [dataclasses.replace(w, seconds=w.seconds - kept) for w in self.asked]
        return tuple(sorted((w for w in left if w.seconds > 0), key=lambda w: -w.bytes))

    def hooked(
        self, module: Any, plan: schedule.SchedulePlan, options: Mapping[str, Any]
    ) -> tuple[oracle.Compiled, hooks.Record]:
        """One compile with a schedule by `plan`."""
        copy = oracle.clone_module(module)
        hooks.rename(copy, plan)
        self.target.topology_desc()  # loads the compiler that the hook registers with
        with hooks.applying(plan) as record:
            return self.compiled(copy, options), record

    def form(self, variant: Variant, best: _Found) -> tuple[_Found | None, str]:
        """A form of the program with the better of XLA's schedule and ours, if it beats `best`."""
        if not self.may_compile():
            return None, "no compile is left to judge it"
        try:
            compiled = self.compiled(variant.module, variant.compiler_options)
        except errors.CompileError as refused:
            return None, f"XLA refuses it: {str(refused).splitlines()[0]}"
        self.learn(compiled)
        plain = _Found(compiled, self.simulate(compiled), None, None, variant)
        pairs = zip(best.simulated[: len(self.sets)], plain.simulated, strict=False)
        if any(a.bound_seconds > b.seconds for b, a in pairs):
            return None, "no order of it can be faster"
        asked, self.asked = self.asked, []
        found, why, _ = self.scheduled(plain, variant.module, variant.compiler_options)
        self.asked, asked = asked, self.asked
        if found is None:
            found = plain
            if compiled.measurement.total_bytes > self.limit_bytes:
                return None, f"needs {compiled.measurement.total_bytes} bytes of {self.limit_bytes}; {why}"
        if self.gain(best, found) <= 0:
            return None, "not faster under every parameter set"
        self.asked = asked
        self.asked_of = plain
        return found, why
