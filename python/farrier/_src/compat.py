"""Every use of JAX that its public modules do not cover, in one place.

Works with jax 0.11.2 through 0.12.x. Each entry says why no public way exists; nothing else in
farrier imports ``jax._src``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import checkify as _checkify
from jax._src import compiler as _compiler
from jax._src import core as _core
from jax._src import dispatch as _dispatch
from jax._src import distributed as _distributed
from jax._src import effects as _effects
from jax._src import pjit as _pjit
from jax._src import source_info_util as _source_info_util
from jax._src import traceback_util as _traceback_util
from jax._src.interpreters import ad as _ad
from jax._src.interpreters import mlir as _mlir
from jax._src.interpreters import remat as _remat
from jax._src.state import discharge as _discharge
from jax._src.state.types import AbstractRef as _AbstractRef
from jax.interpreters import ad, batching, partial_eval
from jaxlib.mlir import ir as _ir

_PjitFunction = type(jax.jit(lambda: None))


def is_jitted(fun: Any) -> bool:
    """Whether ``fun`` is what ``jax.jit`` returns; its type has no public name."""
    return isinstance(fun, _PjitFunction) and hasattr(fun, "_jit_info")


def inner_function(jitted: Any) -> Callable:
    """The Python function under a ``jax.jit`` (``__wrapped__`` skips a ``functools.partial``)."""
    return jitted._fun


def jit_like(jitted: Any, fun: Callable) -> Any:
    """``jax.jit(fun, ...)`` with exactly the arguments that ``jitted`` was made with.

    ``jax.jit`` keeps its validated arguments (static and donated ones, shardings, layouts,
    compiler options, signature) only in a private record, and rebuilding them through the
    public function would lose the tree prefixes and the function's source information.
    """
    return _pjit._cpp_pjit(fun, jitted._jit_info)


class Tracer:
    """Traces what a jitted function would, without holding the function.

    An object that jit returned cannot hold a method that holds it: the cycle is never collected.
    """

    def __init__(self, jitted: Any):
        self._fun = jitted._fun
        self._jit_info = jitted._jit_info

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """The ``jax.stages.Traced`` of a call."""
        return _pjit.jit_trace(self, *args, **kwargs)


def compiler_options(jitted: Any) -> dict[str, Any]:
    """The ``compiler_options=`` of a ``jax.jit``; empty when none were given."""
    return dict(jitted._jit_info.compiler_options_kvs)


def source_of(jitted: Any) -> str | None:
    """``name at file:line`` of the function under a ``jax.jit``, as JAX's own messages put it."""
    return jitted._jit_info.fun_sourceinfo


def hide_frames(path: str) -> None:
    """Keeps the frames of a file out of tracebacks and out of operations' locations.

    JAX offers no public way, and without it the source line of every operation would be a line
    of farrier.
    """
    _source_info_util.register_exclusion(path)
    _traceback_util.register_exclusion(path)


def source_line(source_info: Any) -> str | None:
    """``file:line (function)`` of the user's frame behind an equation, or None."""
    frame = _source_info_util.user_frame(source_info.traceback)
    if frame is None:
        return None
    return f"{frame.file_name}:{frame.start_line} ({frame.function_name})"


def location_of(ctx: Any) -> Any:
    """The location of what a lowering rule emits for no equation in particular, as ``jit`` gives it.

    The public part of a rule's context has the name stack and the traceback but not what JAX makes of them.
    """
    return _mlir.source_info_to_location(ctx.module_context, None, ctx.name_stack, ctx.traceback)


def lower_with_devices(primitive: Any) -> None:
    """Has JAX lower programs with ``primitive`` once per device assignment, and name it in the context."""
    _dispatch.prim_requires_devices_during_lowering.add(primitive)


def is_state_effect(effect: Any) -> bool:
    """Whether an effect reads or writes a mutable array reference of the caller."""
    return isinstance(effect, _effects.JaxprInputEffect)


def has_high_types(jaxpr: Any) -> bool:
    """Whether a jaxpr takes or gives hijax types, which only JAX's own call takes apart."""
    return any(getattr(aval, "is_high", False) for aval in (*jaxpr.in_avals, *jaxpr.out_avals))


def ordered_effects(effects: Any) -> list:
    """The ordered effects of a set, in the order in which JAX threads their tokens."""
    return list(_effects.ordered_effects.filter_in(effects))


def subjaxprs(params: dict[str, Any]):
    """The jaxprs among an equation's parameters; ``jax.extend.core`` has no such iterator."""
    return _core.jaxprs_in_params(params)


def adopt_rules_of_jit(primitive: Any, jit_p: Any, original: Callable[[dict], dict]) -> None:
    """Gives ``primitive`` the transformation rules of ``jit_p``.

    ``original`` maps the primitive's parameters to those of ``jit_p``. Each rule then binds
    ``jit_p`` itself: what comes out of a transformation is the original function's, and cannot
    drift from JAX's own treatment of ``jax.jit``. The registries of linearization, fancy
    transposition, rematerialization, checkify and discharge have no public name.
    """

    def call(rule):
        return lambda *args, **params: rule(*args, **original(params))

    ad.primitive_jvps[primitive] = call(ad.primitive_jvps[jit_p])
    batching.fancy_primitive_batchers[primitive] = call(batching.fancy_primitive_batchers[jit_p])
    _ad.primitive_linearizations[primitive] = call(_ad.primitive_linearizations[jit_p])
    _ad.fancy_transposes[primitive] = call(_ad.fancy_transposes[jit_p])
    _remat.rules[primitive] = call(_remat.rules[jit_p])
    partial_eval.custom_partial_eval_rules[primitive] = call(partial_eval.custom_partial_eval_rules[jit_p])
    _checkify.error_checks[primitive] = call(_checkify.error_checks[jit_p])
    primitive.is_high = lambda *avals, **params: jit_p.is_high(*avals, **original(params))

    def to_lojax(*args, **params):
        if has_high_types(params["jaxpr"]):
            return jit_p.to_lojax(*args, **original(params))
        # High only inside: taken apart, it is still the same call.
        return primitive.bind(*args, **(params | {"jaxpr": partial_eval.lower_jaxpr2(params["jaxpr"])}))

    primitive.to_lojax = to_lojax

    def discharge(ctx, *args, **params):
        jaxpr = params["jaxpr"]
        outside = any(map(is_state_effect, jaxpr.effects))
        if outside or any(isinstance(aval, _AbstractRef) for aval in jaxpr.in_avals):
            return _discharge._discharge_rules[jit_p](ctx, *args, **original(params))
        # References of its own turn into values; it is still the same call.
        pure = _discharge.discharge_state(jaxpr, strip_memory_space=ctx.strip_memory_space)
        return [None] * len(args), primitive.bind(*args, **(params | {"jaxpr": pure}))

    _discharge.register_discharge_rule(primitive)(discharge)

    def eqn_of_jit(eqn):
        return eqn.replace(primitive=jit_p, params=original(eqn.params))

    def custom_rule(saveable, unknowns, instantiate, eqn, *rest):
        rule = partial_eval.partial_eval_jaxpr_custom_rules[jit_p]
        return rule(saveable, unknowns, instantiate, eqn_of_jit(eqn), *rest)

    partial_eval.partial_eval_jaxpr_custom_rules[primitive] = custom_rule

    def dce(*args):
        *rest, eqn = args
        used, new = partial_eval.dce_rules[jit_p](*rest, eqn_of_jit(eqn))
        if new is None:
            return used, None
        # Pruned of what nobody reads it is still the same call: it stays optimized.
        return used, new.replace(primitive=primitive, params=eqn.params | new.params)

    partial_eval.dce_rules[primitive] = dce


def is_attached(device: Any) -> bool:
    """Whether a device can run programs; a topology's device (deviceless compile) cannot.

    The compile-only client has no public class.
    """
    return "CompileOnly" not in type(device.client).__name__


def distributed_client() -> tuple[Any, int]:
    """The client of jax.distributed's key-value store (None when there is no job) and our process's number.

    The public module only starts and stops the job.
    """
    state = _distributed.global_state
    return state.client, state.process_id


def key_value_get(client: Any, key: str, seconds: float) -> str | None:
    """The value of a key, waiting up to ``seconds`` for it; None when it is not there by then."""
    try:
        return client.blocking_key_value_get(key, max(1, int(seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
            return None
        raise


compile_and_load = _compiler.backend_compile_and_load
"""XLA's compile as JAX has it, below everything that is put around JAX's own compiles here."""

_around_compiles: list[Callable[[str], Any]] = []
_before_compiles: list[Callable[[Any, str], Any]] = []
_installing = threading.Lock()


@functools.cache
def _ask_at_compiles() -> None:
    """Puts what is registered here in front of every compile that JAX makes; once in a process."""
    compile_or_get_cached = _compiler.compile_or_get_cached

    @functools.wraps(compile_or_get_cached)
    def compiled(backend, computation, devices, compile_options, *rest, **named):
        for hook in tuple(_before_compiles):
            with computation.context:
                computation = hook(computation, backend.platform)
        with _settings(module_name(computation)) as extra:
            if extra:
                # Kept as they were given: the caller may use its options again.
                given = list(compile_options.env_option_overrides)
                kept = [(option, value) for option, value in given if option not in extra]
                compile_options.env_option_overrides = [*kept, *extra.items()]
            try:
                return compile_or_get_cached(backend, computation, devices, compile_options, *rest, **named)
            finally:
                if extra:
                    compile_options.env_option_overrides = given

    _compiler.compile_or_get_cached = compiled


def around_compiles(around: Callable[[str], Any]) -> None:
    """Has ``around(module name)`` asked before each compile that JAX makes, in this process from now on.

    It answers None, or a context manager that is entered around the compile and yields XLA options that
    are added to it. JAX has no public way to give a function compiler options that are known only once it is
    lowered: ``jax.jit(compiler_options=)`` fixes them before, and a call's compile takes no others.

    Args:
      around: must not raise; asked on the compiling thread.
    """
    with _installing:
        _ask_at_compiles()
        if around not in _around_compiles:
            _around_compiles.append(around)


def before_compiles(hook: Callable[[Any, str], Any]) -> Callable[[], None]:
    """Calls ``hook(module, platform)`` for each module that JAX compiles, and compiles what it returns.

    The one door that every compile of JAX goes through, also those of single operations; ``jax.extend`` has
    hooks on XLA's side of it only. Returns what takes the hook away again.
    """
    with _installing:
        _ask_at_compiles()
        _before_compiles.append(hook)
    return lambda: _before_compiles.remove(hook)


@contextlib.contextmanager
def _settings(name: str) -> Iterator[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        extra: dict[str, Any] = {}
        for around in _around_compiles:
            context = around(name)
            if context is not None:
                extra.update(stack.enter_context(context))
        yield extra


def module_name(module: Any) -> str:
    """The symbol name of a module, "jit_f" for what ``jax.jit(f)`` lowers to."""
    attributes = module.operation.attributes
    return _ir.StringAttr(attributes["sym_name"]).value if "sym_name" in attributes else "unnamed"


_instead_of_compiles: list[Callable[[str, Any, Any, Any], Any]] = []


def instead_of_compiles(answer: Callable[[str, Any, Any, Any], Any]) -> None:
    """Has ``answer(module name, module, devices, options)`` asked before XLA compiles, from now on.

    It answers None, or the executable that the compile would give. Compiles with host callbacks, and those that
    :func:`around_compiles` has something to do around, are not asked about.

    Args:
      answer: must not raise; asked on the compiling thread.
    """
    with _installing:
        if not _instead_of_compiles:
            _compiler.backend_compile_and_load = _compile_unless_answered(_compiler.backend_compile_and_load)
        if answer not in _instead_of_compiles:
            _instead_of_compiles.append(answer)


def _compile_unless_answered(backend_compile_and_load: Callable) -> Callable:
    @functools.wraps(backend_compile_and_load)
    def compiled(backend, module, executable_devices, options, host_callbacks):
        name = module_name(module)
        if not host_callbacks and all(around(name) is None for around in _around_compiles):
            for answer in _instead_of_compiles:
                found = answer(name, module, list(executable_devices), options)
                if found is not None:
                    return found
        return backend_compile_and_load(backend, module, executable_devices, options, host_callbacks)

    return compiled
