"""Context parallelism: the sequence is sharded, and keys and values travel round a ring of permutes.

Ring attention (Liu, Zaharia, Abbeel 2023) with the softmax kept online, written as its own forward and backward:
in the backward, gradients of keys and values travel with them. Causal masks are applied block by block; blocks
that a device does not need are computed and masked all the same. Weights are sharded and gathered over the same
devices.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from workloads import decoder
from workloads.decoder_manual import (
    finish_manual,
    gather,
    gathered_loss,
    opened,
    shard_axis,
    sharded_spec,
)
from workloads.registry import Built

_MASKED = -1e30


def _scores(query, key, source):
    """Masked scores [B, K, G, S, T] in f32 of the own queries against the keys of device `source`."""
    length, columns = query.shape[1], key.shape[1]
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("bskgd,btkd->bkgst", query, key, preferred_element_type=jnp.float32) * scale
    row = lax.axis_index("x") * length + lax.broadcasted_iota(jnp.int32, (length, columns), 0)
    column = source * columns + lax.broadcasted_iota(jnp.int32, (length, columns), 1)
    return jnp.where(row >= column, scores, _MASKED)


def _around(devices: int, looped: bool, step, carry):
    """`step(carry, n)` for n in 0 .. devices - 1, as a loop or written out."""
    if looped:
        return lax.scan(lambda c, n: (step(c, n), None), carry, jnp.arange(devices))[0]
    for n in range(devices):
        carry = step(carry, n)
    return carry


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(query: jax.Array, key: jax.Array, value: jax.Array, devices: int, looped: bool) -> jax.Array:
    """Causal attention over the whole sequence.

    Args:
      query: [B, S, K, G, D], one device's part of the sequence.
      key, value: [B, S, K, D].
      devices: in the ring, mesh axis "x".
      looped: the ring as a scan.

    Returns:
      [B, S, K, G, D].
    """
    return _forward(query, key, value, devices, looped)[0]


def _forward(query, key, value, devices, looped):
    ring = [(i, (i + 1) % devices) for i in range(devices)]
    me = lax.axis_index("x")
    batch, length, heads, groups, width = query.shape
    top = jnp.full((batch, heads, groups, length), _MASKED, jnp.float32)
    out = jnp.zeros((batch, heads, groups, length, width), jnp.float32)

    def step(carry, n):
        key, value, top, total, out = carry
        onward = lax.ppermute((key, value), "x", ring)
        scores = _scores(query, key, (me - n) % devices)
        higher = jnp.maximum(top, jnp.max(scores, axis=-1))
        probabilities = jnp.exp(scores - higher[..., None])
        shrink = jnp.exp(top - higher)
        total = total * shrink + jnp.sum(probabilities, axis=-1)
        new = jnp.einsum(
            "bkgst,btkd->bkgsd", probabilities.astype(query.dtype), value, preferred_element_type=jnp.float32
        )
        return (*onward, higher, total, out * shrink[..., None] + new)

    *_, top, total, out = _around(devices, looped, step, (key, value, top, jnp.zeros_like(top), out))
    result = jnp.einsum("bkgsd->bskgd", out / total[..., None]).astype(query.dtype)
    return result, (query, key, value, result, top + jnp.log(total))


def _backward(devices, looped, kept, gradient):
    query, key, value, out, log_sum = kept
    ring = [(i, (i + 1) % devices) for i in range(devices)]
    me = lax.axis_index("x")
    scale = query.shape[-1] ** -0.5
    wide = dict(preferred_element_type=jnp.float32)
    delta = jnp.einsum("bskgd,bskgd->bkgs", out, gradient, **wide)

    def step(carry, n):
        key, value, to_key, to_value, to_query = carry
        onward = lax.ppermute((key, value), "x", ring)
        probabilities = jnp.exp(_scores(query, key, (me - n) % devices) - log_sum[..., None])
        half = probabilities.astype(query.dtype)
        to_value = to_value + jnp.einsum("bkgst,bskgd->btkd", half, gradient, **wide)
        drift = jnp.einsum("bskgd,btkd->bkgst", gradient, value, **wide) - delta[..., None]
        to_scores = (probabilities * drift * scale).astype(query.dtype)
        to_key = to_key + jnp.einsum("bkgst,bskgd->btkd", to_scores, query, **wide)
        to_query = to_query + jnp.einsum("bkgst,btkd->bskgd", to_scores, key, **wide)
        # After the whole round gradients are back where their keys and values live.
        return (*onward, *lax.ppermute((to_key, to_value), "x", ring), to_query)

    zero = jnp.zeros(key.shape, jnp.float32)
    carry = (key, value, zero, zero, jnp.zeros(query.shape, jnp.float32))
    *_, to_key, to_value, to_query = _around(devices, looped, step, carry)
    return to_query.astype(query.dtype), to_key.astype(key.dtype), to_value.astype(value.dtype)


attend.defvjp(_forward, _backward)


def build(
    target: Any = None,
    *,
    size: str = "1b",
    style: str = "scanned",
    looped: bool = True,
    layers: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Built:
    """The training step with the sequence over all of the target's devices.

    Args:
      target: as many devices as divide the sequence.
      size, style, layers, batch, length: as `decoder.build`; the length is of the whole sequence.
      looped: the ring as a scan; else its steps written out.
    """
    devices, s, _ = opened(target, size, style, layers, batch, length)
    if s.length % devices:
        raise ValueError(f"a sequence of {s.length} over {devices} devices")
    axes = {k: shard_axis(shape, devices) for k, shape in decoder.layer_shapes(s).items()}
    mesh = target.mesh(names=("x",))

    def layer(x, shards, positions):
        w = {k: gather(v, axes[k]) for k, v in shards.items()}
        h = decoder.rms_norm(x, w["attention_norm"])
        query, key, value = decoder.projected(s, h, w, positions)
        grouped = query.reshape(*query.shape[:2], s.key_heads, -1, s.head_width)
        mixed = attend(grouped, key, value, devices, looped).reshape(query.shape)
        x = x + jnp.einsum("bshk,hkd->bsd", mixed, w["out"])
        return x + decoder.gated(decoder.rms_norm(x, w["mlp_norm"]), w) @ w["down"]

    def loss(weights, tokens, labels):
        length = tokens.shape[1]
        positions = lax.axis_index("x") * length + jnp.arange(length)
        return gathered_loss(weights, tokens, labels, lambda x, w: layer(x, w, positions), devices)

    spec = sharded_spec(axes, style)
    return finish_manual(target, mesh, s, style, loss, spec, P(None, "x"), axis="x")
