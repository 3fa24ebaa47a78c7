"""The primitive behind ``farrier.optimize``.

One equation stands for the whole function. Its parameters are those of JAX's own ``jit``
primitive plus a *site*, the object that plans. Every transformation (jvp, transpose, batching,
partial evaluation, ...) binds the ``jit`` primitive on the original jaxpr, so derivatives and
batches are those of the original function by construction. Only the lowering is ours:

1. the original is lowered by JAX, inside the enclosing module's context, into a *program*: a
   module of its own whose ``main`` has the enclosing function's argument attributes (shardings,
   memory kinds, donation);
2. the site turns the program into an optimized module, or says that nothing changes;
3. that module's body is spliced into the enclosing function: no call, no export, so named
   scopes, source locations, host callbacks and the enclosing function's donation stay as they
   were. When nothing changes, the text is the one that the original function lowers to.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax.extend import core as jex_core
from jax.extend.core.primitives import jit_p
from jax.interpreters import mlir
from jaxlib.mlir import passmanager
from jaxlib.mlir.dialects import func as func_dialect

from farrier._src import compat, errors, names

ir = mlir.ir


class Site(Protocol):
    """What an equation of ``optimize_p`` carries: hashable by identity, compared by identity."""

    def transform(self, program: Callable[[], Program], enclosing: ir.Module) -> ir.Module | None:
        """The module to splice in, in the MLIR context of ``enclosing``; None: nothing changes.

        ``program`` makes the copy to plan for, so that nothing is copied when nothing is planned.
        """


@dataclasses.dataclass(frozen=True)
class Program:
    """The original function as a module of its own, ready to plan for.

    Attributes:
      module: public ``main`` plus private functions, verified; Shardy meshes are symbols, as in
        the modules that JAX compiles.
      name: the function's name.
      platforms: the platforms it is lowered for (one).
      num_partitions: devices that the program is partitioned over.
      devices: the devices it is partitioned over. In a job of one process their order is the
        backend's: JAX lowers once for all device assignments.
      callbacks: source lines of the host callbacks in it.
      top_level: True when the arguments are those of the outermost ``jit``, so that shardings,
        memory kinds and donation are known.
    """

    module: ir.Module
    name: str
    platforms: tuple[str, ...]
    num_partitions: int
    devices: tuple[Any, ...]
    top_level: bool
    callbacks: tuple[str, ...] = ()


def _original(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "site"}


def _primitive(name: str) -> jex_core.Primitive:
    primitive = jex_core.Primitive(name)
    primitive.multiple_results = True
    primitive.skip_canonicalization = True
    compat.adopt_rules_of_jit(primitive, jit_p, _original)

    @primitive.def_effectful_abstract_eval
    def _abstract_eval(*avals, site, **params):
        del site
        return jit_p.abstract_eval(*avals, **params)

    @primitive.def_impl
    def _impl(*args, **params):
        # Reached only where a jaxpr is evaluated equation by equation.
        if jax.config.jax_debug_nans or jax.config.jax_debug_infs:
            # JAX is looking for the operation that made a NaN: inside, one by one.
            return jex_core.jaxpr_as_fun(params["jaxpr"])(*args)
        return jax.jit(lambda *xs: primitive.bind(*xs, **params))(*args)

    return primitive


optimize_p = _primitive("farrier_optimize")
# The same, lowered anew for each device assignment and told of it. JAX then takes one mesh per
# program and no abstract one, so only a job of several processes pays that price: there the
# processes that own the devices have to agree.
optimize_on_devices_p = _primitive("farrier_optimize_on_devices")
compat.lower_with_devices(optimize_on_devices_p)
OPTIMIZE_PRIMITIVES = (optimize_p, optimize_on_devices_p)


def bind(site: Site, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
    """Evaluates a closed jaxpr whose ``jit`` equations become equations of our primitive.

    ``jaxpr`` is what ``jax.make_jaxpr(jax.jit(f))`` gives: one ``jit`` equation, or none when the
    function only forwards its arguments.
    """
    primitive = optimize_p if jax.process_count() == 1 else optimize_on_devices_p
    environment: dict[Any, Any] = {}

    def read(atom):
        return atom.val if isinstance(atom, jex_core.Literal) else environment[atom]

    environment.update(zip(jaxpr.constvars, jaxpr.consts, strict=True))
    environment.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive is jit_p:
            results = primitive.bind(*operands, site=site, **eqn.params)
        else:
            results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        if not eqn.primitive.multiple_results:
            results = [results]
        environment.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def callback_lines(jaxpr: Any) -> list[str]:
    """The source lines of a jaxpr's host callbacks, inner jaxprs included."""
    lines = []
    for eqn in jaxpr.eqns:
        if "callback" in eqn.primitive.name or eqn.primitive.name == "debug_print":
            lines.append(compat.source_line(eqn.source_info) or eqn.primitive.name)
        for inner in compat.subjaxprs(eqn.params):
            lines.extend(callback_lines(inner))
    return lines


def unsupported(jaxpr: Any) -> str | None:
    """Why a function cannot stand in one equation, or None: mutable references, hijax types."""
    for eqn in jaxpr.eqns:
        stateful = [effect for effect in eqn.effects if compat.is_state_effect(effect)]
        if stateful:
            return "it reads or writes mutable array references (jax.Ref) of its caller"
        if eqn.primitive is jit_p and compat.has_high_types(eqn.params["jaxpr"]):
            return "it takes or gives high-level (hijax) types"
    return None


def _enclosing_function() -> Any:
    """The ``func.func`` that the insertion point is in, or None."""
    op = ir.InsertionPoint.current.block.owner
    # A FuncOp's own ``name`` is its symbol, so ask the operation under the view.
    while op is not None and op.operation.name != "func.func":
        op = op.operation.parent
    return None if op is None else op.operation


def _entry(operation: Any) -> Any:
    """The entry block of a function operation."""
    return operation.regions[0].blocks[0]


def _attributes(function: Any, which: str, count: int) -> list[Any]:
    if which in function.attributes:
        return list(function.attributes[which])
    return [ir.DictAttr.get({})] * count


def _without(attributes: Any, *names: str) -> Any:
    return ir.DictAttr.get({item.name: item.attr for item in attributes if item.name not in names})


@dataclasses.dataclass
class _Signature:
    """How the program's ``main`` is called: one enclosing value per argument."""

    values: list[ir.Value]
    attributes: list[Any]
    positions: list[int]  # per token and operand, the number of main's argument
    result_attributes: list[Any]
    top_level: bool


def _signature(operands: Sequence[ir.Value], result_types: Sequence[ir.Type]) -> _Signature:
    function = _enclosing_function()
    top_level = (
        function is not None
        and ir.StringAttr(function.attributes["sym_name"]).value == "main"
        and ir.InsertionPoint.current.block == _entry(function)
    )
    values: list[ir.Value] = []
    attributes: list[Any] = []
    results = [ir.DictAttr.get({})] * len(result_types)
    if top_level:
        values = list(_entry(function).arguments)
        attributes = _attributes(function, "arg_attrs", len(values))
        outer_type = ir.FunctionType(ir.TypeAttr(function.attributes["function_type"]).value)
        if list(outer_type.results) == list(result_types):
            results = _attributes(function, "res_attrs", len(result_types))
        else:
            # Some results do not come from here, so the number of an aliased result means nothing.
            attributes = [_any_alias(attribute) for attribute in attributes]
    number = {value: i for i, value in enumerate(values)}
    for value in operands:
        if value not in number:
            number[value] = len(values)
            values.append(value)
            attributes.append(ir.DictAttr.get({}))
    return _Signature(values, attributes, [number[value] for value in operands], results, top_level)


def _any_alias(attributes: Any) -> Any:
    """Argument attributes with "may alias any result" in place of "aliases result k"."""
    items = {item.name: item.attr for item in attributes}
    if items.pop("tf.aliasing_output", None) is not None:
        items["jax.buffer_donor"] = ir.BoolAttr.get(True)
    return ir.DictAttr.get(items)


def _constants(jaxpr: Any) -> list[Any]:
    """The values of a jaxpr's closed-over arrays, each array once."""
    once: dict[int, Any] = {}
    for value, var in zip(jaxpr.consts, jaxpr.constvars, strict=True):
        if id(value) not in once:
            once[id(value)] = mlir.ir_constant(value, aval=var.aval)
    return [once[id(value)] for value in jaxpr.consts]


def _lower_program(ctx, tokens, operands, result_types, jaxpr) -> tuple[ir.Module, _Signature]:
    """Lowers the original into a module of its own, in the enclosing module's MLIR context."""
    outer = ctx.module_context
    flat, structure = mlir.ir_tree_registry.flatten(list(operands))
    signature = _signature([*tokens.values(), *flat], result_types)
    module = ir.Module.create(loc=ir.Location.unknown())
    for name in outer.module.operation.attributes:
        module.operation.attributes[name] = outer.module.operation.attributes[name]
    inner = outer.replace(
        module=module,
        ip=ir.InsertionPoint(module.body),
        symbol_table=ir.SymbolTable(module.operation),
        lowering_cache={},
        cached_primitive_lowerings={},
    )
    function_type = ir.FunctionType.get([value.type for value in signature.values], list(result_types))
    function = func_dialect.FuncOp("main", function_type, ip=inner.ip)
    function.attributes["sym_visibility"] = ir.StringAttr.get("public")
    inner.symbol_table.insert(function)
    function.arg_attrs = ir.ArrayAttr.get(signature.attributes)
    function.result_attrs = ir.ArrayAttr.get(signature.result_attributes)
    block = function.add_entry_block([value.location for value in signature.values])
    with ir.InsertionPoint(block), compat.location_of(ctx):
        arguments = [block.arguments[position] for position in signature.positions]
        token_set = mlir.TokenSet(dict(zip(tokens, arguments, strict=False)))
        constants = _constants(jaxpr)
        outputs, token_set = mlir.jaxpr_subcomp(
            inner,
            names.in_name_stacks(jaxpr),
            ctx.name_stack,
            token_set,
            constants,
            *structure.unflatten(arguments[len(tokens) :]),
            dim_var_values=(),
            const_lowering={},
            outer_traceback=ctx.traceback,
        )
        flat_outputs, _ = mlir.ir_tree_registry.flatten(list(outputs))
        func_dialect.return_([*(token_set.get(effect) for effect in tokens), *flat_outputs])
    return module, signature


def _standalone(module: ir.Module) -> ir.Module:
    """A copy that XLA compiles: verified, Shardy meshes lifted to symbols as JAX does."""
    copy = ir.Module.parse(module.operation.get_asm(binary=True, enable_debug_info=True), module.context)
    if jax.config.jax_use_shardy_partitioner:
        passmanager.PassManager.parse("builtin.module(sdy-lift-inlined-meshes)").run(copy.operation)
    return copy


def _merge_symbols(destination: Any, source: ir.Module) -> Any:
    """Moves everything but ``main`` from ``source`` into the enclosing module; returns ``main``.

    Names that are taken are replaced, in the definitions and in every use; a mesh that the
    enclosing module already has under the same name is not added twice.
    """
    table = destination.symbol_table
    own = ir.SymbolTable(source.operation)
    main = None
    moved = []
    taken = {symbol_name(op) for op in source.body.operations}
    for op in list(source.body.operations):
        name = symbol_name(op)
        if name == "main":
            main = op
            continue
        if name in table:
            present = table[name]
            if op.operation.name == "sdy.mesh" and str(present) == str(op):
                op.operation.erase()
                continue
            fresh = next(
                new for k in itertools.count() if (new := f"{name}_{k}") not in table and new not in taken
            )
            taken.add(fresh)
            ir.SymbolTable.replace_all_symbol_uses(name, fresh, source.operation)
            own.set_symbol_name(op, fresh)
        moved.append(op)
    for op in moved:
        op.operation.detach_from_parent()
        if op.operation.name == "sdy.mesh":
            # Shardy wants a mesh before its first use.
            ir.InsertionPoint.at_block_begin(destination.module.body).insert(op)
        else:
            op.attributes["sym_visibility"] = ir.StringAttr.get("private")
            destination.ip.insert(op)
        table.insert(op)
    return main


def _devices(module_context: Any, count: int) -> tuple[Any, ...]:
    """``count`` devices of the module's backend, in the order of the assignment where that is known."""
    assigned = getattr(module_context.axis_context, "device_assignment", None)
    if assigned is not None:
        return tuple(assigned)
    # Not get_backend(): it asks for the platform's attached backend, and there may be none.
    backend = module_context.backend
    return () if backend is None else tuple(backend.devices()[:count])


def symbol_name(op: Any) -> str:
    """The symbol name of a module-level operation."""
    return ir.StringAttr(op.attributes["sym_name"]).value


def _splice(ctx, module: ir.Module, values: Sequence[ir.Value]) -> list[ir.Value]:
    """Moves ``main``'s body to the insertion point; returns what it returned."""
    main = _merge_symbols(ctx.module_context, module)
    block = _entry(main.operation)
    for argument, value in zip(block.arguments, values, strict=True):
        argument.replace_all_uses_with(value)
    *body, terminator = list(block.operations)
    point = ir.InsertionPoint.current
    for op in body:
        op.operation.detach_from_parent()
        point.insert(op)
    results = list(terminator.operation.operands)
    terminator.operation.erase()
    return results


def _lowering(ctx, *operands, site, jaxpr, name, **_):
    outer = ctx.module_context
    effects = compat.ordered_effects(jaxpr.effects)
    types = [mlir.aval_to_ir_types(outer, aval) for aval in ctx.avals_out]
    structure = mlir.ir_tree_registry.flatten([t[0] if len(t) == 1 else t for t in types])[1]
    result_types = [*[mlir.token_type() for _ in effects], *itertools.chain.from_iterable(types)]
    tokens = {effect: ctx.tokens_in.get(effect) for effect in effects}
    if ctx.dim_var_values or len(outer.platforms) > 1:
        # Symbolic shapes and several platforms at once: there is no one program to plan for.
        outputs, token_set = mlir.jaxpr_subcomp(
            outer,
            jaxpr,
            ctx.name_stack,
            ctx.tokens_in,
            _constants(jaxpr),
            *operands,
            dim_var_values=ctx.dim_var_values,
            const_lowering=ctx.const_lowering,
            outer_traceback=None,
        )
        ctx.set_tokens_out(token_set)
        return outputs
    callbacks = tuple(callback_lines(jaxpr))
    try:
        module, signature = _lower_program(ctx, tokens, operands, result_types, jaxpr)
    except RuntimeError as error:
        if callbacks and "Unknown backend" in str(error):
            raise errors.CallbackError(
                f"{name} calls back to the host, which JAX lowers only for devices that are attached",
                where=callbacks[0],
                hint="plan on a machine with the GPU, or leave the callback out of what is planned",
            ) from error
        raise
    partitions = ir.IntegerAttr(module.operation.attributes["mhlo.num_partitions"]).value
    replacement = site.transform(
        lambda: Program(
            module=_standalone(module),
            name=name,
            platforms=tuple(outer.platforms),
            num_partitions=partitions,
            devices=_devices(outer, partitions),
            top_level=signature.top_level,
            callbacks=callbacks,
        ),
        outer.module,
    )
    results = _splice(ctx, module if replacement is None else replacement, signature.values)
    token_results, values = results[: len(effects)], results[len(effects) :]
    if effects:
        ctx.set_tokens_out(
            ctx.tokens_in.update_tokens(mlir.TokenSet(dict(zip(effects, token_results, strict=True))))
        )
    return structure.unflatten(values)


# Not cacheable: a cached lowering is a function of its own that two call sites share, and ours
# depends on where it is called.
for _each in OPTIMIZE_PRIMITIVES:
    mlir.register_lowering(_each, _lowering, cacheable=False)
