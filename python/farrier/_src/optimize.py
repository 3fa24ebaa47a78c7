"""``farrier.optimize``: a jitted function whose module is planned for before XLA sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from farrier._src import compat, errors, primitive, retarget, reuse
from farrier._src.explain import Explanation
from farrier._src.options import Options
from farrier._src.plan import Plan
from farrier._src.stages import Decision, FunctionSite

__all__ = ["Compiled", "Lowered", "Traced", "optimize"]


def optimize(fun: Callable | None = None, /, **options: Any) -> Any:
    """Makes a JAX function fit a memory budget and run faster, without changing what it computes.

    Use it bare or with options, over ``jax.jit`` (a function that is not jitted is jitted)::

        @farrier.optimize(memory_budget="72GiB", target="h100")
        @partial(jax.jit, donate_argnums=0)
        def train_step(state, batch): ...

    The result is a jitted function: JAX's own dispatch, ``static_argnums``, donation, shardings,
    methods, ``.trace`` and ``.lower``. Planning happens when JAX lowers it, and again whenever JAX
    lowers again (other shapes, shardings, mesh, precision). Under ``jax.grad``, ``jax.vmap``,
    ``jax.checkpoint`` and the like it is the original function; under ``jax.jit`` and ``lax.scan``
    it stays optimized. Three methods are added, all of which take the function's arguments (real or
    abstract):

    * ``plan(*args)`` -> :class:`farrier.Plan`: decides for the target, and runs nothing.
    * ``explain(*args)`` -> a report: text in a terminal, HTML in a notebook, ``.to_json()``.
    * ``original``: the jitted function as it was.

    Args:
      fun: a function, jitted or not.

    Keyword Args:
      memory_budget: total device memory per device (arguments + outputs - aliased + temporaries, as
        XLA's ``memory_analysis()`` counts them): bytes, a text ("72GiB", "80%"), or a fraction in
        (0, 1] of what a process can use of the device. Default: none.
      target: what to plan for, "h100" or a :class:`farrier.Target`. Default: the attached GPU.
      passes: names of passes, or their options objects. Default: all.
      objective: "time" or "flops", what to give up least of. Default: "time".
      numerics: "bitwise", "bounded" (default) or "relaxed": which changes of rounding are allowed.
      plan: a :class:`farrier.Plan` or the path of a saved one, applied without a search.
      max_compiles: how many compiles a search may spend; before a budget is refused, or an annotated step
        is left as it is, one more is spent on a plan that leaves more of the budget, and before it is refused
        one on the plan of the least predicted memory, too. Collectives have a bound of their own,
        `Collectives.max_compiles`. Default: 3.
      max_seconds: wall time of the search. When it is up no further plan is tried and the best one so far
        is taken; a search that does not end within twice that is given up as a failed pass. Default: none.
      max_pass_seconds: wall time of one decision of one pass. A pass that takes longer is left out.
        Default: none.
      strict: raise when a pass fails, instead of running the original with a warning.
      cache_dir: where plans and measurements are kept. Default: ``FARRIER_CACHE_DIR``, else this
        system's cache directory.

    Raises:
      farrier.OptionError: unknown options or values, when the decorator is applied.
      farrier.BudgetError, farrier.PlanError, farrier.DistributedError, ...: when the function is
        lowered.

    >>> import jax.numpy as jnp
    >>> @optimize
    ... def double(x):
    ...     return x + x
    >>> double(jnp.float32(2)).item()
    4.0
    """
    made = Options.make(**options)
    if fun is None:
        return functools.partial(_optimized, options=made)
    return _optimized(fun, made)


def _optimized(fun: Callable, options: Options) -> Any:
    if not callable(fun):
        raise errors.OptionError(
            f"farrier.optimize takes a function, not {type(fun).__name__}",
            hint="options are keyword-only: farrier.optimize(memory_budget=...)",
        )
    if hasattr(fun, "farrier_site"):
        raise errors.OptionError(f"{fun.__name__} is optimized already", hint="use farrier.optimize once")
    original = fun if compat.is_jitted(fun) else jax.jit(fun)
    inner = compat.inner_function(original)
    name = original.__name__
    site = FunctionSite(name, compat.source_of(original), options, compat.compiler_options(original))

    @functools.wraps(original)
    def staged(*args, **kwargs):
        if jax.config.jax_disable_jit:
            return inner(*args, **kwargs)
        return _stage(site, inner, name, args, kwargs)

    optimized = compat.jit_like(original, staged)
    methods = _Methods(site, compat.Tracer(optimized), compat.Tracer(original))
    optimized.farrier_site = site
    optimized.original = original
    for method in ("trace", "lower", "plan", "explain"):
        setattr(optimized, method, getattr(methods, method))
    return optimized


def _stage(site: FunctionSite, inner: Callable, name: str, args: Any, kwargs: Any) -> Any:
    """Under jit's trace: one equation that stands for the function."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    # jit hands static arguments over as they are; everything else is a tracer here.
    dynamic = [isinstance(leaf, jax.core.Tracer) for leaf in leaves]

    def flat(*traced):
        values = iter(traced)
        full = [
            next(values) if is_dynamic else leaf for leaf, is_dynamic in zip(leaves, dynamic, strict=True)
        ]
        full_args, full_kwargs = jax.tree.unflatten(structure, full)
        return inner(*full_args, **full_kwargs)

    flat.__name__ = flat.__qualname__ = name
    traced = [leaf for leaf, is_dynamic in zip(leaves, dynamic, strict=True) if is_dynamic]
    jaxpr, shapes = jax.make_jaxpr(jax.jit(flat), return_shape=True)(*traced)
    if reason := primitive.unsupported(jaxpr):
        site.say(f"runs as it was written, because {reason}")
        return inner(*args, **kwargs)
    results = primitive.bind(site, jaxpr, traced)
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


class _Stage:
    """A stage of ``jax.stages`` with what farrier decided beside it; the rest is JAX's."""

    def __init__(self, stage: Any, site: FunctionSite):
        self._stage = stage
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def __repr__(self) -> str:
        return f"<farrier {self._stage!r}>"


class Traced(_Stage):
    """``jax.stages.Traced`` of an optimized function."""

    def lower(self, **options: Any) -> Lowered:
        """Plans and lowers. Takes what ``jax.stages.Traced.lower`` takes."""
        return Lowered(self._stage.lower(**options), self._site)


class Lowered(_Stage):
    """``jax.stages.Lowered`` of an optimized function, with the decision that was made for it."""

    @property
    def decision(self) -> Decision | None:
        """What was decided, or None when nothing was asked for (no pass applies)."""
        return self._site.decision_for(self._stage.compiler_ir("stablehlo"))

    @property
    def plan(self) -> Plan | None:
        """The plan that was applied."""
        decision = self.decision
        return None if decision is None else decision.plan

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        """Compiles with XLA. Takes what ``jax.stages.Lowered.compile`` takes."""
        compiled = Compiled(self._stage.compile(*args, **kwargs), self._site)
        compiled.decision = self.decision
        return compiled


class Compiled(_Stage):
    """``jax.stages.Compiled`` of an optimized function, with the decision that was made for it."""

    decision: Decision | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan that was applied."""
        return None if self.decision is None else self.decision.plan

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._stage(*args, **kwargs)


class _Methods:
    """What an optimized function has beside its call."""

    def __init__(self, site: FunctionSite, tracer: compat.Tracer, original: compat.Tracer):
        self._site = site
        self._tracer = tracer
        self._original = original

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """As ``jax.jit(f).trace``; abstract arguments that say no place are taken to be on the target."""
        target = self._site.options.target
        if target is not None and retarget.wants_target(args, kwargs):
            args, kwargs = retarget.on_target(target, args, kwargs)
        return Traced(self._tracer.trace(*args, **kwargs), self._site)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """As ``jax.jit(f).lower``; abstract arguments that say no place are taken to be on the target."""
        return self.trace(*args, **kwargs).lower()

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """Decides for the target with these arguments (real or abstract); nothing runs.

        Raises:
          farrier.PlanError: no pass applies to the function.
          farrier.BudgetError: the budget cannot be met.
        """
        plan = self._for_target(args, kwargs).plan
        reuse.forget()
        if plan is None:
            raise errors.PlanError(
                f"there is nothing to plan for {self._site.name}: it has no pass that applies",
                hint="name passes with passes=, and see the warnings of farrier.optimize",
            )
        return plan

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """A report on what is decided for these arguments (real or abstract), and why."""
        lowered = self._for_target(args, kwargs)
        return Explanation(
            self._site.name,
            lowered.decision,
            lowered,
            original=lambda: self._for_target(args, kwargs, self._original),
        )

    def _for_target(self, args: Any, kwargs: Any, tracer: compat.Tracer | None = None) -> Lowered:
        """Lowers for the target, wherever the arguments live; `tracer`: of another function than the optimized."""
        target = self._site.options.target
        tracer = tracer or self._tracer
        if target is None:
            return Lowered(tracer.trace(*args, **kwargs).lower(), self._site)
        platforms = None
        try:
            args, kwargs = retarget.on_target(target, args, kwargs)
        except errors.MissingPluginError:
            if self._site.options.strict:
                raise
            # Without the plugin there are no devices to lower for; JAX still lowers for the platform.
            platforms = ("cuda",)
        traced = tracer.trace(*args, **kwargs)
        return Lowered(traced.lower(lowering_platforms=platforms), self._site)


compat.hide_frames(__file__)
