"""Recurrent language models: an LSTM (a scan over time) and a gated linear recurrence (an associative
scan)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from workloads import remat_policies, training
from workloads.registry import Built

# width, layers, vocabulary, length, batch
SIZES = {"tiny": (32, 2, 64, 16, 2), "small": (1024, 4, 32768, 512, 64)}


def _lstm_layer(x, w):
    """x [B, S, d] -> [B, S, d]; the scan carries hidden state and cell."""
    batch, _, width = x.shape
    projected = jnp.einsum("bsd,dk->sbk", x, w["input"])

    def cell(carry, entering):
        hidden, state = carry
        gates = entering + hidden @ w["hidden"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        state = jax.nn.sigmoid(f) * state + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = (jax.nn.sigmoid(o) * jnp.tanh(state)).astype(hidden.dtype)
        return (hidden, state.astype(hidden.dtype)), hidden

    zero = jnp.zeros((batch, width), x.dtype)
    _, out = lax.scan(cell, (zero, zero), projected)
    return x + out.swapaxes(0, 1)


def _linear_layer(x, w):
    """A gated linear recurrence h_t = a_t h_{t-1} + b_t, solved by an associative scan in f32."""
    gates, values, outs = jnp.split(jnp.einsum("bsd,dk->bsk", x, w["input"]), 3, axis=-1)
    decay = jax.nn.sigmoid(gates.astype(jnp.float32))
    entering = (1 - decay) * values.astype(jnp.float32)

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, states = lax.associative_scan(combine, (decay, entering), axis=1)
    mixed = states.astype(x.dtype) * jax.nn.silu(outs)
    return x + mixed @ w["out"]


def _loss(kind, remat, weights, tokens, labels):
    weights = training.half(weights)
    layer = remat_policies.wrap({"lstm": _lstm_layer, "linear": _linear_layer}[kind], remat, scanned=False)
    x = weights["embedding"][tokens]
    for w in weights["layers"]:
        x = layer(x, w)
    logits = jnp.einsum("bsd,vd->bsv", x, weights["embedding"], preferred_element_type=jnp.float32)
    return training.cross_entropy(logits, labels)


def build(
    target: Any = None,
    *,
    kind: str = "lstm",
    size: str = "tiny",
    remat: str = "none",
    batch: int | None = None,
) -> Built:
    """The training step of ``kind`` ``"lstm"`` or ``"linear"``."""
    training.check_choice("kind", kind, ("lstm", "linear"))
    training.check_choice("size", size, SIZES)
    training.check_choice("remat", remat, remat_policies.names())
    width, layers, vocabulary, length, default_batch = SIZES[size]
    if kind == "lstm":
        layer = {"input": (width, 4 * width), "hidden": (width, 4 * width)}
    else:
        layer = {"input": (width, 3 * width), "out": (width, width)}
    tokens = ((batch or default_batch, length), jnp.int32)
    return training.finish(
        target,
        functools.partial(_loss, kind, remat),
        {"embedding": (vocabulary, width), "layers": [layer for _ in range(layers)]},
        {"tokens": tokens, "labels": tokens},
        integers_below=vocabulary,
    )
