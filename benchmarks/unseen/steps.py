"""What makes a training step of a loss: an optimizer in f32, the state donated."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def adam(p, g, m, v, lr=1e-3):
    """One update: parameters, and both moments."""
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
    v = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b * b, v, g)
    p = jax.tree.map(lambda p, a, b: p - lr * a / (jnp.sqrt(b) + 1e-8), p, m, v)
    return p, m, v


class Training(NamedTuple):
    """How a loss is trained: (state, gradients) -> state, the moments in a state, loss -> (parameters, batch) -> (loss,
    gradients)."""

    update: Callable = lambda state, g: adam(state[0], g, *state[1:])
    moments: int = 2
    gradients: Callable = jax.value_and_grad


ADAM = Training()


def step_of(loss, training=ADAM):
    """The jitted step (state, batch) -> (state, loss)."""

    @functools.partial(jax.jit, donate_argnums=(0,))
    def step(state, batch):
        value, g = training.gradients(loss)(state[0], batch)
        return training.update(state, g), value

    return step


def state_of(p, moments=2):
    """Parameters with the moments that training starts from."""
    return (p, *(jax.tree.map(jnp.zeros_like, p) for _ in range(moments)))


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
