"""AdamW with f32 master weights and moments, as a step of plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def init_abstract(parameters: Any) -> dict[str, Any]:
    """The abstract optimizer state for abstract f32 parameters: weights, two moments, step count."""
    first = jax.tree.leaves(parameters)[0]
    sharding = first.sharding
    if sharding is not None:
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    return {"weights": parameters, "first": parameters, "second": parameters, "step": step}


def update(
    state: dict[str, Any],
    gradients: Any,
    *,
    rate: float = 3e-4,
    beta1: float = 0.9,
    beta2: float = 0.95,
    epsilon: float = 1e-8,
    decay: float = 0.1,
) -> dict[str, Any]:
    """One AdamW step (Loshchilov & Hutter 2019, algorithm 2); everything in f32."""
    step = state["step"] + 1
    t = step.astype(jnp.float32)
    correct1, correct2 = 1 - beta1**t, 1 - beta2**t

    def leaf(weight, gradient, first, second):
        gradient = gradient.astype(jnp.float32)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient * gradient
        direction = (first / correct1) / (jnp.sqrt(second / correct2) + epsilon)
        return weight - rate * (direction + decay * weight), first, second

    updated = jax.tree.map(leaf, state["weights"], gradients, state["first"], state["second"])
    treedef = jax.tree.structure(state["weights"])
    columns = zip(*treedef.flatten_up_to(updated), strict=True)
    weights, first, second = (jax.tree.unflatten(treedef, list(c)) for c in columns)
    return {"weights": weights, "first": first, "second": second, "step": step}
