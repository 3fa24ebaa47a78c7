"""From a loss to a jitted training step with abstract arguments: what all workloads share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from workloads import optimizer
from workloads.registry import Built

Loss = Callable[..., jax.Array]
"""``loss(weights, *batch)``: mean loss of one batch."""


def is_shape(x: Any) -> bool:
    """Whether a node of a shape tree is a shape."""
    return isinstance(x, tuple)


def place(mesh: Any, spec: P) -> NamedSharding | None:
    """The sharding on the mesh, or none where there is no mesh (this machine's default device)."""
    return NamedSharding(mesh, spec) if mesh is not None else None


def abstract_weights(shapes: Any, mesh: Any, spec: Callable[[Any, tuple[int, ...]], P]) -> Any:
    """Abstract f32 weights; `spec` maps (tree path, shape) to the partition."""
    return jax.tree_util.tree_map_with_path(
        lambda path, shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place(mesh, spec(path, shape))),
        shapes,
        is_leaf=is_shape,
    )


def whole(path: Any, shape: tuple[int, ...]) -> P:
    """The partition of a weight that every device has whole."""
    del path, shape
    return P()


def step_of(loss: Loss) -> Callable[..., Any]:
    """``step(state, *batch) -> (state, loss)`` with AdamW."""

    def train_step(state, *batch):
        value, gradients = jax.value_and_grad(loss)(state["weights"], *batch)
        return optimizer.update(state, gradients), value

    return train_step


def finish(
    target: Any,
    loss: Loss,
    shapes: Any,
    batch: Mapping[str, tuple[tuple[int, ...], Any]],
    *,
    mesh: Any = None,
    weight_spec: Callable[[Any, tuple[int, ...]], P] = whole,
    batch_spec: P | None = None,
    step: Callable[..., Any] | None = None,
    integers_below: int = 2,
) -> Built:
    """A workload from a loss.

    Args:
      target: recorded; its mesh is made here unless `mesh` is given.
      loss: ``loss(weights, *batch)``.
      shapes: tree of weight shapes (tuples).
      batch: name -> (shape, dtype) of the loss's further arguments, in order.
      mesh: the mesh of all arguments.
      weight_spec: partition of each weight; the optimizer's moments follow it.
      batch_spec: partition of every batch argument that has dimensions.
      step: replaces the step made from the loss (it takes state and batch).
      integers_below: random integer arguments are drawn below this.
    """
    if mesh is None and target is not None:
        mesh = target.mesh(names=("x",))
    state = optimizer.init_abstract(abstract_weights(shapes, mesh, weight_spec))
    arguments = tuple(
        jax.ShapeDtypeStruct(shape, dtype, sharding=place(mesh, (batch_spec or P()) if shape else P()))
        for shape, dtype in batch.values()
    )
    shardings = None
    if mesh is not None:
        shardings = (jax.tree.map(lambda a: a.sharding, state), place(mesh, P()))
    function = jax.jit(step or step_of(loss), donate_argnums=0, out_shardings=shardings)
    return Built("", function, (state, *arguments), target, integers_below=integers_below)


def check_choice(what: str, value: str, known: Any) -> None:
    """Raises ValueError naming what is possible."""
    if value not in known:
        raise ValueError(f"{what} {value!r}: expected one of {', '.join(sorted(known))}")


def normalize(x: jax.Array, scale: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """Layer norm without bias over the last axis, statistics in f32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype) * scale.astype(x.dtype)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean negative log-likelihood; logits [..., V] in f32, labels [...]."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(log_sum - chosen)


def half(weights: Any) -> Any:
    """The weights in bf16, for compute."""
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
