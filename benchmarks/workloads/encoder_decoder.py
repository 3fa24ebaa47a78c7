"""An encoder-decoder translator: two stacks of layers, the second reading the first's result in every
layer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from workloads import remat_policies, training
from workloads.registry import Built

# width, layers of each stack, heads, hidden, vocabulary, length, batch
SIZES = {
    "tiny": (64, 2, 4, 128, 128, 32, 2),
    "small": (1024, 12, 16, 4096, 32768, 1024, 16),
}


def _attend(x, memory, w, *, causal: bool):
    """Multi-head attention of x [B, S, d] over memory [B, T, d]."""
    query = jnp.einsum("bsd,dhk->bshk", x, w["query"])
    key = jnp.einsum("btd,dhk->bthk", memory, w["key"])
    value = jnp.einsum("btd,dhk->bthk", memory, w["value"])
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="xla")
    return jnp.einsum("bshk,hkd->bsd", mixed, w["out"])


def _encoder_layer(x, w):
    h = training.normalize(x, w["norm1"])
    x = x + _attend(h, h, w["self"], causal=False)
    h = training.normalize(x, w["norm2"])
    return x + jax.nn.gelu(h @ w["up"]) @ w["down"]


def _decoder_layer(x, w, memory):
    h = training.normalize(x, w["norm1"])
    x = x + _attend(h, h, w["self"], causal=True)
    h = training.normalize(x, w["norm3"])
    x = x + _attend(h, memory, w["cross"], causal=False)
    h = training.normalize(x, w["norm2"])
    return x + jax.nn.gelu(h @ w["up"]) @ w["down"]


def _loss(remat: str, scanned: bool, weights, source, target, labels):
    weights = training.half(weights)
    wrap = functools.partial(remat_policies.wrap, policy=remat, scanned=scanned)

    def stack(layer, x, stacked):
        if scanned:
            return lax.scan(lambda x, w: (layer(x, w), None), x, stacked)[0]
        for w in stacked:
            x = layer(x, w)
        return x

    memory = stack(wrap(_encoder_layer), weights["embedding"][source], weights["encoder"])
    memory = training.normalize(memory, weights["encoder_norm"])
    decode = wrap(lambda x, w: _decoder_layer(x, w, memory))
    x = stack(decode, weights["embedding"][target], weights["decoder"])
    x = training.normalize(x, weights["decoder_norm"])
    logits = jnp.einsum("bsd,vd->bsv", x, weights["embedding"], preferred_element_type=jnp.float32)
    return training.cross_entropy(logits, labels)


def build(
    target: Any = None,
    *,
    size: str = "tiny",
    style: str = "scanned",
    remat: str = "none",
    batch: int | None = None,
) -> Built:
    """The training step; both stacks unrolled or scanned (two forward and two backward loops)."""
    training.check_choice("size", size, SIZES)
    training.check_choice("style", style, ("unrolled", "scanned"))
    training.check_choice("remat", remat, remat_policies.names())
    width, layers, heads, hidden, vocabulary, length, default_batch = SIZES[size]
    batch = batch or default_batch
    attention = {
        "query": (width, heads, width // heads),
        "key": (width, heads, width // heads),
        "value": (width, heads, width // heads),
        "out": (heads, width // heads, width),
    }
    mlp = {"norm1": (width,), "norm2": (width,), "up": (width, hidden), "down": (hidden, width)}
    encoder = {**mlp, "self": attention}
    decoder = {**mlp, "norm3": (width,), "self": attention, "cross": attention}

    def stacked(one):
        if style == "scanned":
            return jax.tree.map(lambda s: (layers, *s), one, is_leaf=training.is_shape)
        return [one for _ in range(layers)]

    shapes = {
        "embedding": (vocabulary, width),
        "encoder": stacked(encoder),
        "encoder_norm": (width,),
        "decoder": stacked(decoder),
        "decoder_norm": (width,),
    }
    tokens = ((batch, length), jnp.int32)
    return training.finish(
        target,
        functools.partial(_loss, remat, style == "scanned"),
        shapes,
        {"source": tokens, "target": tokens, "labels": tokens},
        integers_below=vocabulary,
    )
