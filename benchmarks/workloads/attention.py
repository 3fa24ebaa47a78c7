"""Causal grouped-query attention, four ways."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

KINDS = ("naive", "cudnn", "chunked", "xla")


def naive(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Plain dots and softmax in f32. query [B, S, H, D], key and value [B, S, K, D] -> [B, S, H, D]."""
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum("bskgd,btkd->bkgst", grouped, key, preferred_element_type=jnp.float32) * width**-0.5
    rows = lax.broadcasted_iota(jnp.int32, (length, length), 0)
    columns = lax.broadcasted_iota(jnp.int32, (length, length), 1)
    probabilities = jax.nn.softmax(jnp.where(rows >= columns, scores, -1e30), axis=-1).astype(query.dtype)
    return jnp.einsum("bkgst,btkd->bskgd", probabilities, value).reshape(query.shape)


def cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """cuDNN's flash attention through JAX's public entry point."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def chunked(query: jax.Array, key: jax.Array, value: jax.Array, *, chunks: int = 8) -> jax.Array:
    """Queries in chunks under a scan, each recomputed in the backward: memory linear in the sequence."""
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    chunks = min(chunks, length)
    size = length // chunks
    pieces = query.reshape(batch, chunks, size, groups, heads // groups, width).swapaxes(0, 1)

    @jax.checkpoint
    def one(piece, start):
        scores = jnp.einsum("bskgd,btkd->bkgst", piece, key, preferred_element_type=jnp.float32) * width**-0.5
        rows = start + lax.broadcasted_iota(jnp.int32, (size, length), 0)
        columns = lax.broadcasted_iota(jnp.int32, (size, length), 1)
        probabilities = jax.nn.softmax(jnp.where(rows >= columns, scores, -1e30), axis=-1).astype(query.dtype)
        return jnp.einsum("bkgst,btkd->bskgd", probabilities, value)

    _, out = lax.scan(lambda _, x: (None, one(*x)), None, (pieces, size * jnp.arange(chunks)))
    return out.swapaxes(0, 1).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=())
def cudnn_named(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """cuDNN's flash attention whose output and softmax statistics carry `checkpoint_name`s.

    JAX's own entry point keeps them inside a custom_vjp where no policy sees them; a policy over these
    names keeps the kernel from running again in the backward. This is the best that hand placement can do.
    """
    return cudnn(query, key, value)


def _named_forward(query, key, value):
    out, backward = jax.vjp(cudnn, query, key, value)
    leaves, tree = jax.tree.flatten(backward)
    inputs = (query, key, value)
    named = [
        leaf if any(leaf is x for x in inputs) else checkpoint_name(leaf, "attention_statistics")
        for leaf in leaves
    ]
    return out, jax.tree.unflatten(tree, named)


def _named_backward(backward, gradient):
    return backward(gradient)


cudnn_named.defvjp(_named_forward, _named_backward)


def attend(kind: str, query, key, value, *, name_residuals: bool = False) -> jax.Array:
    """Attention of the given kind; `name_residuals` names the flash kernel's own residuals."""
    if kind == "naive":
        return naive(query, key, value)
    if kind == "chunked":
        return chunked(query, key, value)
    if kind == "xla":
        # As `cudnn` through the same entry point, and runs anywhere.
        return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="xla")
    if kind == "cudnn":
        return (cudnn_named if name_residuals else cudnn)(query, key, value)
    raise ValueError(f"attention {kind!r}: expected one of {KINDS}")
