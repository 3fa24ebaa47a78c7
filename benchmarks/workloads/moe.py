"""Mixture-of-experts feed-forward layers, dispatched two ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

KINDS = ("ragged", "onehot", "gather")


def _route(x: jax.Array, router: jax.Array, chosen: int) -> tuple[jax.Array, jax.Array]:
    """Top experts of each token and their weights: [T, d] -> ([T, chosen] f32, [T, chosen] int32)."""
    logits = jnp.einsum("td,de->te", x, router, preferred_element_type=jnp.float32)
    top, index = lax.top_k(logits, chosen)
    return jax.nn.softmax(top, axis=-1), index


def _capacity(tokens: int, experts: int, chosen: int, factor: float) -> int:
    """Slots of an expert: `factor` times its even share of what is chosen."""
    return max(1, int(factor * chosen * tokens / experts))


def _experts(rows: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """Every expert's feed-forward layer on its slots: [E, C, d] -> [E, C, d]."""
    gate = jnp.einsum("ecd,edf->ecf", rows, weights["gate"])
    up = jnp.einsum("ecd,edf->ecf", rows, weights["up"])
    return jnp.einsum("ecf,efd->ecd", jax.nn.silu(gate) * up, weights["down"])


def ragged(x: jax.Array, weights: dict[str, jax.Array], chosen: int) -> jax.Array:
    """Tokens sorted by expert, then grouped matmuls (`lax.ragged_dot`). x [T, d] -> [T, d]."""
    experts = weights["gate"].shape[0]
    share, index = _route(x, weights["router"], chosen)
    flat = index.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=experts).astype(jnp.int32)
    rows = x[order // chosen]
    gate = lax.ragged_dot(rows, weights["gate"], sizes)
    up = lax.ragged_dot(rows, weights["up"], sizes)
    out = lax.ragged_dot(jax.nn.silu(gate) * up, weights["down"], sizes)
    restored = jnp.zeros_like(out).at[order].set(out).reshape(x.shape[0], chosen, -1)
    return jnp.einsum("tkd,tk->td", restored, share.astype(x.dtype))


def onehot(
    x: jax.Array, weights: dict[str, jax.Array], chosen: int, *, capacity_factor: float = 1.25
) -> jax.Array:
    """Dense dispatch and combine masks with a capacity (Lepikhin et al. 2020, GShard). x [T, d] -> [T, d]."""
    tokens, experts = x.shape[0], weights["gate"].shape[0]
    capacity = _capacity(tokens, experts, chosen, capacity_factor)
    share, index = _route(x, weights["router"], chosen)
    picked = jax.nn.one_hot(index, experts, dtype=jnp.float32)
    order = jnp.cumsum(picked.reshape(tokens * chosen, experts), axis=0).reshape(tokens, chosen, experts)
    slot = jnp.where(picked > 0, order - 1, capacity).astype(jnp.int32)
    place = jax.nn.one_hot(slot, capacity, dtype=x.dtype)
    dispatch = jnp.einsum("tkec->tec", place)
    combine = jnp.einsum("tkec,tk->tec", place, share.astype(x.dtype))
    rows = jnp.einsum("tec,td->ecd", dispatch, x)
    out = _experts(rows, weights)
    return jnp.einsum("tec,ecd->td", combine, out)


def gather(
    x: jax.Array, weights: dict[str, jax.Array], chosen: int, *, capacity_factor: float = 1.25
) -> jax.Array:
    """What `onehot` computes, its masks replaced by indices written by hand. x [T, d] -> [T, d]."""
    experts = weights["gate"].shape[0]
    rows, place, share = slots(x, weights["router"], experts, chosen, capacity_factor)
    return combined(_experts(rows, weights), place, share)


def slots(
    x: jax.Array, router: jax.Array, experts: int, chosen: int, capacity_factor: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens sorted into the experts' slots, those beyond the capacity dropped.

    Returns:
      Rows [E, C, d], the place of each of a token's choices in E * C (that number where dropped)
      [T * chosen], and the choices' weights [T, chosen].
    """
    tokens = x.shape[0]
    capacity = _capacity(tokens, experts, chosen, capacity_factor)
    share, index = _route(x, router, chosen)
    picked = jax.nn.one_hot(index.reshape(-1), experts, dtype=jnp.int32)
    slot = jnp.take_along_axis(jnp.cumsum(picked, axis=0), index.reshape(-1, 1), 1)[:, 0] - 1
    place = jnp.where(slot < capacity, index.reshape(-1) * capacity + slot, experts * capacity)
    token = (
        jnp.full(experts * capacity, tokens, jnp.int32)
        .at[place]
        .set(jnp.arange(tokens * chosen, dtype=jnp.int32) // chosen, mode="drop", unique_indices=True)
    )
    rows = x.at[token].get(mode="fill", fill_value=0).reshape(experts, capacity, -1)
    return rows, place, share


def combined(out: jax.Array, place: jax.Array, share: jax.Array) -> jax.Array:
    """Every token's weighted sum over the slots [E, C, d] that its choices went to: [T, d]."""
    taken = out.reshape(-1, out.shape[-1]).at[place].get(mode="fill", fill_value=0)
    taken = taken.reshape(*share.shape, -1)
    return jnp.einsum("tkd,tk->td", taken, share.astype(out.dtype))


def exchanged(
    x: jax.Array,
    weights: dict[str, jax.Array],
    chosen: int,
    *,
    axis: str,
    devices: int,
    capacity_factor: float = 1.25,
) -> jax.Array:
    """What `gather` computes, each of a mesh axis's devices holding its share of the experts.

    Tokens travel to their experts and back in two all-to-alls. x [T, d] of one device -> [T, d].
    """
    experts = devices * weights["gate"].shape[0]
    rows, place, share = slots(x, weights["router"], experts, chosen, capacity_factor)
    # [E, C, d] -> [E / n, n * C, d]: all devices' rows for the experts that live here.
    there = lax.all_to_all(rows, axis, split_axis=0, concat_axis=1, tiled=True)
    out = lax.all_to_all(_experts(there, weights), axis, split_axis=1, concat_axis=0, tiled=True)
    return combined(out, place, share)


def feed_forward(kind: str, x: jax.Array, weights: dict[str, jax.Array], chosen: int) -> jax.Array:
    """The expert layer on [B, S, d]."""
    flat = x.reshape(-1, x.shape[-1])
    out = {"ragged": ragged, "onehot": onehot, "gather": gather}[kind](flat, weights, chosen)
    return out.reshape(x.shape)
