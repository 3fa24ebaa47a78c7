"""What makes a training step of a loss: Adam in f32, the state donated."""

import functools

import jax
import jax.numpy as jnp


def adam(p, g, m, v, lr=1e-3):
    """One update: parameters, and both moments."""
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
    v = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b * b, v, g)
    p = jax.tree.map(lambda p, a, b: p - lr * a / (jnp.sqrt(b) + 1e-8), p, m, v)
    return p, m, v


def step_of(loss):
    """The jitted step (state, batch) -> (state, loss)."""

    @functools.partial(jax.jit, donate_argnums=(0,))
    def step(state, batch):
        p, m, v = state
        value, g = jax.value_and_grad(loss)(p, batch)
        return adam(p, g, m, v), value

    return step


def state_of(p):
    """Parameters with the moments that training starts from."""
    return (p, jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p))


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
