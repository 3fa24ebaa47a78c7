"""Substituted kernels spelled out, so that a rewritten program can run where the kernels cannot.

A program that the fusion pass rewrote for a GPU holds custom calls. `with_references` replaces each by a
function that computes what the kernel computes, in the precision in which the kernel computes it: products
accumulate in f32, the softmax is f32, and what enters the second product is rounded to the inputs' type
first. Running both programs shows whether a match was right.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from farrier._src import errors
from farrier._src.hlo import custom_calls

__all__ = ["attention_backward", "attention_forward", "grouped_product", "with_references"]

ir = mlir.ir


def _visible(queries: int, keys: int, causal: bool, window: int) -> jax.Array | None:
    if not causal:
        return None
    row = lax.broadcasted_iota(jnp.int32, (queries, keys), 0)
    column = lax.broadcasted_iota(jnp.int32, (queries, keys), 1)
    seen = column <= row
    return seen & (row - column < window) if window else seen


def _scores(query, key, bias, *, scale: float, causal: bool, window: int) -> jax.Array:
    """Masked scores [B, K, G, S, T] in f32; K key heads, G query heads each."""
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum("bskgd,btkd->bkgst", grouped, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        bias = jnp.broadcast_to(bias, (batch, heads, *bias.shape[2:]))
        scores += bias.reshape(scores.shape).astype(jnp.float32)
    seen = _visible(length, key.shape[1], causal, window)
    return scores if seen is None else jnp.where(seen, scores, -jnp.inf)


def attention_forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale * q k^T + bias) v.

    Args:
      query: [B, S, H, D].
      key: [B, T, K, D], K dividing H.
      value: as key.
      bias: [B or 1, H or 1, S, T], added to the scores.
      scale: of the scores.
      causal: whether a query sees only keys up to its own position.
      window: how many of those, its own included; 0: all.

    Returns:
      The output [B, H, S, D] in the type of the query, and the logarithm of the softmax's denominator
      [B, H, S] in f32: the results of cuDNN's call.
    """
    batch, length, heads, width = query.shape
    scores = _scores(query, key, bias, scale=scale, causal=causal, window=window)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum(
        "bkgst,btkd->bkgsd", weights.astype(query.dtype), value, preferred_element_type=jnp.float32
    )
    output = (mixed / total).astype(query.dtype).reshape(batch, heads, length, width)
    return output, (jnp.log(total) + top).reshape(batch, heads, length)


def attention_backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    statistics: jax.Array,
    gradient: jax.Array,
    output: jax.Array,
    bias: jax.Array | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    exact: bool = False,
    by_bias: bool = False,
) -> tuple[jax.Array, ...]:
    """Gradients of `attention_forward` by the query, the key and the value, and by the bias if asked for.

    The kernel rounds in two places where a program that keeps score gradients in f32 does not: it subtracts
    the row sum of gradient * output with the output already rounded (Dao et al. 2022, section B.4, keeps no
    other), and it rounds score gradients to the inputs' type before their products.

    Args:
      query, key, value, bias, scale, causal, window: as in the forward.
      statistics: [B, H, S], the forward's second result.
      gradient: [B, S, H, D], by the output.
      output: [B, S, H, D].
      exact: leave those two roundings out, to tell them from a wrong substitution.
      by_bias: also the gradient by the bias, added up over what the bias has one of.

    Returns:
      [B, H, S, D], [B, K, T, D] and [B, K, T, D] in the type of the query; as the bias, in its type.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    wide = jnp.float32
    split = (batch, length, groups, heads // groups, width)
    scores = _scores(query, key, bias, scale=scale, causal=causal, window=window)
    weights = jnp.exp(scores - statistics.reshape(*scores.shape[:-1], 1))
    gradient, output = gradient.reshape(split), output.reshape(split)
    by_value = jnp.einsum(
        "bkgst,bskgd->bktd", weights.astype(query.dtype), gradient, preferred_element_type=wide
    )
    by_weights = jnp.einsum("bskgd,btkd->bkgst", gradient, value, preferred_element_type=wide)
    if exact:
        narrow, inner = wide, jnp.sum(weights * by_weights, -1)
    else:
        narrow = query.dtype
        inner = jnp.einsum("bskgd,bskgd->bkgs", gradient.astype(wide), output.astype(wide))
    wide_scores = weights * (by_weights - inner[..., None])
    by_scores = wide_scores.astype(narrow)
    by_query = scale * jnp.einsum(
        "bkgst,btkd->bkgsd", by_scores, key.astype(narrow), preferred_element_type=wide
    )
    by_key = scale * jnp.einsum(
        "bkgst,bskgd->bktd", by_scores, query.reshape(split).astype(narrow), preferred_element_type=wide
    )
    return (
        by_query.astype(query.dtype).reshape(batch, heads, length, width),
        by_key.astype(query.dtype),
        by_value.astype(query.dtype),
        *([_summed_as(bias, wide_scores)] if by_bias else []),
    )


def _summed_as(bias, by_scores) -> jax.Array:
    batch, groups, each, *positions = by_scores.shape
    by_scores = by_scores.reshape(batch, groups * each, *positions)
    shared = [dim for dim in (0, 1) if bias.shape[dim] == 1]
    return by_scores.sum(shared, keepdims=True).astype(bias.dtype)


def grouped_product(
    lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, *, lhs_axes: str, rhs_axes: str, result: Any
) -> jax.Array:
    """The grouped matrix product that replaces `jax.lax.ragged_dot` and its gradients.

    Args:
      lhs: axes m (rows, sorted by group) and k, in the order of `lhs_axes`.
      rhs: axes g, k and n: one matrix per group; or m and n: a row for each row of `lhs`.
      sizes: [g] int32, how many consecutive rows belong to each group.
      lhs_axes, rhs_axes: letters of the axes.
      result: the result's type.

    Returns:
      [m, n], zero in rows behind the last group; or [g, k, n], the sum over each group's rows. Products are
      accumulated in f32 and rounded once.
    """
    end = jnp.cumsum(sizes)
    row = lax.broadcasted_iota(jnp.int32, (lhs.shape[lhs_axes.index("m")],), 0)
    member = (row[None] >= (end - sizes)[:, None]) & (row[None] < end[:, None])  # [g, m]

    def product(group: jax.Array) -> jax.Array:
        x = jnp.where(member[group][:, None], jnp.einsum(f"{lhs_axes}->mk", lhs), 0)
        if "m" in rhs_axes:
            w = jnp.where(member[group][:, None], jnp.einsum(f"{rhs_axes}->mn", rhs), 0)
            return jnp.einsum("mk,mn->kn", x, w, preferred_element_type=jnp.float32)
        w = lax.dynamic_index_in_dim(rhs, group, rhs_axes.index("g"), keepdims=False)
        return jnp.einsum(f"mk,{rhs_axes.replace('g', '')}->mn", x, w, preferred_element_type=jnp.float32)

    each = lax.map(product, jnp.arange(sizes.shape[0]))
    return (each if "m" in rhs_axes else each.sum(0)).astype(result)


def _attention(target: str, config: dict[str, Any], exact: bool, results: int):
    """The reference of a cuDNN attention call: a function of its operands giving its results."""
    fmha = config["cudnn_fmha_backend_config"]
    options = {
        "scale": float(fmha["fmha_scale"]),
        "causal": fmha["mask_type"] == "CAUSAL",
        "window": int(fmha["sliding_window_length"]),
    }
    if fmha["mask_type"] not in ("CAUSAL", "NO_MASK") or fmha["dropout_rate"]:
        raise errors.InternalError(f"no reference of {target} with mask {fmha['mask_type']} or dropout")
    workspace = jnp.zeros((0,), jnp.uint8)
    biased = "Bias" in target
    if target.endswith("Backward"):

        def backward(query, key, value, statistics, gradient, *rest):
            bias, output = (rest[0], rest[1]) if biased else (None, rest[0])
            gradients = attention_backward(
                query,
                key,
                value,
                statistics,
                gradient,
                output,
                bias,
                exact=exact,
                by_bias=results == 5,
                **options,
            )
            return (*gradients, workspace)

        return backward
    return lambda *operands: (*attention_forward(*operands, **options), workspace)


_ATTENTION = (
    "__cudnn$fmhaSoftmax",
    "__cudnn$fmhaSoftmaxBackward",
    "__cudnn$fmhaScaleBiasSoftmax",
    "__cudnn$fmhaScaleBiasSoftmaxBackward",
)


def _reference(op: Any, exact: bool) -> Any:
    """The function that `op` computes, if it is a call of a substituted kernel, else None."""
    if op.name != "stablehlo.custom_call":
        return None
    target = _text(op.attributes["call_target_name"])
    if target == "AllocateBuffer":
        # Whatever was in memory: something that shows in every result that reads it.
        buffer = _abstract(op.results[0].type)
        garbage = jnp.nan if jnp.issubdtype(buffer.dtype, jnp.floating) else 77
        return lambda: (jnp.full(buffer.shape, garbage, buffer.dtype),)
    if target in _ATTENTION:
        return _attention(target, json.loads(_text(op.attributes["backend_config"])), exact, len(op.results))
    kernel = (
        custom_calls.grouped(str(op.attributes["backend_config"])) if target == custom_calls.TRITON else None
    )
    if kernel is None:
        return None
    result = _abstract(op.results[0].type).dtype
    return lambda *operands: (
        grouped_product(*operands, lhs_axes=kernel.lhs, rhs_axes=kernel.rhs, result=result),
    )


def _abstract(type_: ir.Type) -> jax.ShapeDtypeStruct:
    tensor = ir.RankedTensorType(type_)
    return jax.ShapeDtypeStruct(tuple(tensor.shape), _dtype(str(tensor.element_type)))


def _dtype(name: str) -> Any:
    """The dtype of an element type's text: "bf16", "ui8", "f8E4M3FN"."""
    found = re.fullmatch(r"(ui|i|f)(\d+)(E\w+)?", name)
    if name in ("i1", "bf16") or not found:
        return jnp.dtype({"i1": "bool", "bf16": "bfloat16"}[name])
    kind, bits, form = found.groups()
    return jnp.dtype(
        {"ui": "uint", "i": "int", "f": "float"}[kind] + bits + (f"_{form.lower()}" if form else "")
    )


def _text(attribute: ir.Attribute) -> str:
    return ir.StringAttr(attribute).value


def _walk(operation: Any):
    for region in operation.regions:
        for block in region.blocks:
            for op in list(block.operations):
                yield op.operation
                yield from _walk(op.operation)


def with_references(module: ir.Module, *, exact: bool = False) -> ir.Module:
    """A copy of `module` in which every substituted kernel is a call of its reference; runs anywhere.

    Args:
      module: a program that the fusion pass rewrote.
      exact: without the roundings that are the kernels' own; see `attention_backward`.

    Raises:
      farrier.InternalError: a kernel that has no reference here.
    """
    with module.context as context, ir.Location.unknown():
        result = ir.Module.parse(
            module.operation.get_asm(binary=True, enable_debug_info=True, print_generic_op_form=True)
        )
        functions: dict[str, str] = {}
        for op in list(_walk(result.operation)):
            function = _reference(op, exact)
            if function is None:
                continue
            operands = [_abstract(value.type) for value in op.operands]
            results = [str(value.type) for value in op.results]
            key = f"{op.attributes['call_target_name']}{op.attributes['backend_config']}{operands}{results}"
            if key not in functions:
                functions[key] = f"farrier_reference_{len(functions)}"
                _add_function(result, context, functions[key], function, operands)
            with ir.InsertionPoint(op):
                call = ir.Operation.create(
                    "func.call",
                    results=[value.type for value in op.results],
                    operands=list(op.operands),
                    attributes={"callee": ir.FlatSymbolRefAttr.get(functions[key])},
                )
            for old, new in zip(op.results, call.results, strict=True):
                old.replace_all_uses_with(new)
            op.erase()
    return result


def _add_function(module: ir.Module, context: Any, name: str, function: Any, operands: list[Any]) -> None:
    lowered = jax.jit(function, keep_unused=True).trace(*operands).lower(lowering_platforms=("cpu",))
    other = ir.Module.parse(lowered.compiler_ir("stablehlo").operation.get_asm(binary=True), context)
    for op in _walk(other.operation):
        if op.name == "func.call":
            callee = ir.FlatSymbolRefAttr(op.attributes["callee"]).value
            op.attributes["callee"] = ir.FlatSymbolRefAttr.get(f"{name}_{callee}")
    for op in list(other.body.operations):
        own = _text(op.attributes["sym_name"])
        op.attributes["sym_name"] = ir.StringAttr.get(name if own == "main" else f"{name}_{own}")
        op.attributes["sym_visibility"] = ir.StringAttr.get("private")
        module.body.append(op)
