"""The seam between ``optimize`` and the passes.

A pass is a *driver*: an object that decides (``plan``) and one that carries out (``apply``), both on
farrier's own module. ``optimize`` knows drivers only through the table below; a driver knows nothing
of JAX, of processes or of caches. Which drivers run, in which order and with how many compiles, is
the search's business (:mod:`farrier._src.search`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from farrier._src import errors, limits

__all__ = [
    "DRIVERS",
    "Compiling",
    "Context",
    "PassDriver",
    "StepPlan",
    "compiling",
    "default_passes",
    "drivers_for",
    "search",
]

# In the order of application: fusion changes what exists, so it comes before remat, and what memory is left
# after that is known when collectives are scheduled. One line per driver: its name and where its class
# lies; imported when a function first asks for it.
DRIVERS: dict[str, str] = {
    "fusion": "farrier._src.fusion.driver:FusionDriver",
    "remat": "farrier._src.drivers.remat:RematDriver",
    "collectives": "farrier._src.collectives.driver:CollectivesDriver",
}

# The search: decides for a module with its drivers and a context, by compiling and measuring.
SEARCH = "farrier._src.search:plan_step"

# Stands between the search and every driver while it is set: for measuring what passes cost.
DRIVER_WRAPPER: contextvars.ContextVar[Callable[[Any], Any] | None] = contextvars.ContextVar(
    "farrier_driver_wrapper", default=None
)


class PassDriver(Protocol):
    """One pass, as ``optimize`` and the search see it.

    Made anew for each function as ``Driver(options)``; ``options`` is the pass's own options object,
    or None for its defaults. A driver whose plans reach into XLA's compile also has
    ``compiling(plan) -> Compiling | None``; one that spends the memory that others leave has
    ``spends_slack = True`` and decides last. One that can do with less memory at a price has
    ``alternatives(module, context)``: several plans, None for "as it is" among them, which the search
    weighs under a memory budget.
    """

    name: str

    def plan(self, module: Any, context: Context) -> Mapping[str, Any] | None:
        """Decides for ``module`` (a ``farrier._core.Module``, left as it is).

        Returns JSON whose keys name values of the program stably, or None: nothing to do.
        """

    def apply(
        self, module: Any, plan: Mapping[str, Any], *, remark: Callable[[Any], None] | None = None
    ) -> Sequence[str] | None:
        """Rewrites ``module`` in place as ``plan`` says; ``remark`` takes what the pass has to say about it.

        Returns the keys of the plan that the program does not have; none or None when all applied.
        """


@dataclasses.dataclass(frozen=True)
class Compiling:
    """What a plan asks of XLA's compile of the program, beside the module.

    Attributes:
      options: XLA options of the compile, final: where the function's own ``compiler_options`` have one of
        the same name, it is already part of the value.
      around: given the text that marks the module's name, a context manager for the compile; None when
        there is nothing to do around it.
    """

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    around: Callable[[str], contextlib.AbstractContextManager[Any]] | None = None

    @contextlib.contextmanager
    def applied(self, tag: str) -> Iterator[dict[str, Any]]:
        """Around the compile of a module with ``tag`` in its name; yields the options to give it."""
        with self.around(tag) if self.around is not None else contextlib.nullcontext():
            yield dict(self.options)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a search and a driver may know about the program besides its text.

    Attributes:
      function: the function's name.
      platform: what the program was lowered for, "cuda" or "cpu".
      partitions: number of devices that the program is partitioned over.
      target: the ``farrier.Target`` to plan for, or None when planning for CPU.
      budget_bytes: total device memory per device (arguments + outputs - aliased + temporaries) that
        the result should stay within, or None.
      budget_binding: whether missing the budget is an error. False when a plan for a GPU is carried
        out on CPU, and when nothing can be measured.
      objective: "time" or "flops".
      numerics: "bitwise", "bounded" or "relaxed".
      max_compiles: how many compiles the search may spend; one more before it refuses a budget.
      measure: compiles a ``farrier._core.Module`` and returns a ``Measurement``, with ``held=True`` one that says
        what lies in temporary memory when; None when no compiler for the platform is there, so that only estimates
        are possible.
      remark: takes a ``Remark``-like object (pass_name, kind, message, location, args) for the report.
      compile: ``compile(module, options)`` compiles a ``farrier._core.Module`` or a jaxlib module with XLA
        options on top of the function's own and returns an ``oracle.Compiled``; None as `measure`.
      compiler_options: the function's own XLA options.
      clock: says when to stop with the best plan so far.
      pass_seconds: wall time that one decision of one pass may take, or None.
    """

    function: str
    platform: str
    partitions: int
    target: Any
    budget_bytes: int | None
    budget_binding: bool
    objective: str
    numerics: str
    max_compiles: int
    measure: Callable[..., Any] | None
    remark: Callable[[Any], None]
    compile: Callable[[Any, Mapping[str, Any]], Any] | None = None
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clock: limits.Clock = dataclasses.field(default_factory=lambda: limits.Clock(None))
    pass_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What ``search.plan_step(module, drivers, context)`` returns.

    Attributes:
      passes: per driver's name the JSON to apply; drivers that do nothing are absent.
      measured: JSON for the report, such as {"before": ..., "after": ..., "estimate": ...}.
      compiles: how many compiles the search spent.
    """

    passes: Mapping[str, Any]
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compiles: int = 0


def default_passes() -> tuple[str, ...]:
    """The names of all passes of this build, in the order of application."""
    return tuple(DRIVERS)


def pass_name(entry: Any) -> str:
    """The name of an entry of ``passes=``: the text itself, or the options object's ``name``.

    Raises:
      farrier.OptionError: there is no such pass.
    """
    name = entry if isinstance(entry, str) else getattr(entry, "name", None)
    if not isinstance(name, str):
        raise errors.OptionError(f"passes has {entry!r}: expected a pass's name or its options object")
    if name not in DRIVERS:
        raise errors.OptionError.unknown(name, DRIVERS, of="passes")
    return name


def pass_options(entry: Any) -> dict[str, Any]:
    """The options of an entry of ``passes=`` as JSON; empty for a bare name."""
    return dataclasses.asdict(entry) if dataclasses.is_dataclass(entry) else {}


def drivers_for(passes: Sequence[Any]) -> list[PassDriver]:
    """The drivers of the chosen passes, in the order of application."""
    chosen = {pass_name(entry): entry for entry in passes}
    result = []
    for name, place in DRIVERS.items():
        if name in chosen:
            entry = chosen[name]
            result.append(_load(place)(None if isinstance(entry, str) else entry))
    wrap = DRIVER_WRAPPER.get()
    return result if wrap is None else [wrap(driver) for driver in result]


def search(module: Any, drivers: Sequence[PassDriver], context: Context) -> StepPlan:
    """What to do to ``module`` (left as it is): :data:`SEARCH`, loaded when the first plan is made."""
    return _load(SEARCH)(module, drivers, context)


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def apply(
    module: Any,
    drivers: Sequence[PassDriver],
    passes: Mapping[str, Any],
    remark: Callable[[Any], None] | None = None,
) -> None:
    """Applies decisions to a module in place, in the order of the drivers; ``remark`` as in :class:`Context`.

    Raises:
      farrier.StalePlanError: decisions name passes that are not there, or values that the program
        does not have.
    """
    by_name = {driver.name: driver for driver in drivers}
    unknown = [name for name in passes if name not in by_name]
    if unknown:
        raise errors.StalePlanError(
            "the plan was made with other passes",
            differences=[f"pass {name!r} is in the plan and not in passes=" for name in unknown],
            hint="give passes= as the plan has them, or plan again",
        )
    for driver in drivers:
        if driver.name in passes:
            missing = driver.apply(module, passes[driver.name], remark=remark)
            if missing:
                raise errors.StalePlanError(
                    f"the plan no longer fits the program (pass {driver.name!r})",
                    missing_keys=missing,
                    hint="plan again with step.plan(...).save(path)",
                )


def compiling(drivers: Sequence[PassDriver], passes: Mapping[str, Any]) -> Compiling | None:
    """What the decisions of all passes ask of XLA's compile together; None: nothing."""
    asked = [
        driver.compiling(passes[driver.name])
        for driver in drivers
        if driver.name in passes and hasattr(driver, "compiling")
    ]
    asked = [one for one in asked if one is not None]
    if not asked:
        return None
    options: dict[str, Any] = {}
    for one in asked:
        options.update(one.options)

    @contextlib.contextmanager
    def around(tag: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for one in asked:
                if one.around is not None:
                    stack.enter_context(one.around(tag))
            yield

    return Compiling(options, around)
