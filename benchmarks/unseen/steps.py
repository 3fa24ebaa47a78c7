"""What makes a training step of a loss: an optimizer in f32, the state donated."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def adam(p, g, m, v, lr=1e-3):
    """One update: parameters, and both moments."""
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
    v = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b * b, v, g)
    p = jax.tree.map(lambda p, a, b: p - lr * a / (jnp.sqrt(b) + 1e-8), p, m, v)
    return p, m, v


class Training(NamedTuple):
    """How a loss is trained: (state, gradients) -> state, the moments in a state, loss -> (parameters, batch) -> (loss,
    gradients), parameters -> state where the moments are not as the parameters are."""

    update: Callable = lambda state, g: adam(state[0], g, *state[1:])
    moments: int = 2
    gradients: Callable = jax.value_and_grad
    start: Callable | None = None


class Devices(NamedTuple):
    """The mesh that a loss is written for, as one device sees it: extents, names of axes, how parameters and batches are
    partitioned. The loss is a device's part, summed over the axes of the batch; under automatic sharding it is the whole.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    parameters: Any
    batch: PartitionSpec
    automatic: bool = False


ADAM = Training()


def step_of(loss, training=ADAM, devices=None, mesh=None):
    """The jitted step (state, batch) -> (state, loss): for several devices under a shard_map over `mesh`, or, where they are
    automatic, under its shardings.
    """
    by_hand = devices is not None and not devices.automatic

    def step(state, batch):
        value, g = training.gradients(loss)(state[0], batch)
        if by_hand:
            value = lax.psum(value, tuple(devices.batch))
        return training.update(state, g), value

    if devices is not None:
        state = (devices.parameters,) * (1 + training.moments)
    if by_hand:
        step = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(state, devices.batch),
            out_specs=(state, PartitionSpec()),
            check_vma=False,
        )
    if devices is None or by_hand:
        return jax.jit(step, donate_argnums=(0,))
    out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), (state, PartitionSpec()))
    return jax.jit(step, donate_argnums=(0,), out_shardings=out)


def state_of(p, training=ADAM):
    """Parameters with the moments that training starts from."""
    if training.start is not None:
        return training.start(p)
    return (p, *(jax.tree.map(jnp.zeros_like, p) for _ in range(training.moments)))


def rnd(*shape):
    """Small random parameters."""
    return jax.random.normal(jax.random.key(sum(shape)), shape) * 0.05


def lstm_cell(w, carry, x):
    """One step of an LSTM: ((state, cell), input) -> ((state, cell), state), all of one width."""
    h, s = carry
    i, f, g, o = jnp.split(jnp.concatenate([h, x], -1) @ w, 4, -1)
    s = jax.nn.sigmoid(f) * s + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(s)
    return (h, s), h
