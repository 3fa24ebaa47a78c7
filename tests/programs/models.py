"""A tiny decoder's train step, unrolled and scanned: the shape of what farrier is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from programs.arrays import values
from programs.registry import program

LAYERS, WIDTH, HEADS, VOCABULARY, BATCH, LENGTH = 2, 16, 2, 32, 2, 8


def parameters() -> dict:
    """Float32 weights; `layers` are stacked along a leading dimension of LAYERS."""
    shapes = {
        "qkv": (WIDTH, 3 * WIDTH),
        "out": (WIDTH, WIDTH),
        "up": (WIDTH, 4 * WIDTH),
        "down": (4 * WIDTH, WIDTH),
    }
    layers = {name: values(LAYERS, *shape, seed=i) * 0.2 for i, (name, shape) in enumerate(shapes.items())}
    return {"embedding": values(VOCABULARY, WIDTH, seed=9), "layers": layers}


def layer(x, weights):
    normal = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    q, k, v = jnp.split((normal @ weights["qkv"]).reshape(*x.shape[:2], HEADS, -1), 3, -1)
    scores = jnp.einsum("bshd,bthd->bhst", q, k) / np.sqrt(WIDTH // HEADS).astype(np.float32)
    scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), scores, -1e9)
    mixed = jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores), v).reshape(x.shape)
    x = x + mixed @ weights["out"]
    return x + jax.nn.gelu(x @ weights["up"]) @ weights["down"]


def loss(weights, tokens, *, scanned: bool, remat: bool):
    body = jax.checkpoint(layer) if remat else layer
    x = weights["embedding"][tokens]
    if scanned:
        x, _ = lax.scan(lambda h, w: (body(h, w), None), x, weights["layers"])
    else:
        for i in range(LAYERS):
            x = body(x, {name: w[i] for name, w in weights["layers"].items()})
    logits = jnp.einsum("bsd,vd->bsv", x, weights["embedding"])
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1))


def train_step(state, tokens, *, scanned: bool, remat: bool):
    weights, first, second = state
    value, gradient = jax.value_and_grad(functools.partial(loss, scanned=scanned, remat=remat))(
        weights, tokens
    )
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
    second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, gradient)
    weights = jax.tree.map(lambda p, m, v: p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), weights, first, second)
    return (weights, first, second), value


def build(**options):
    weights = parameters()
    zeros = jax.tree.map(np.zeros_like, weights)
    tokens = np.arange(BATCH * LENGTH, dtype=np.int32).reshape(BATCH, LENGTH) % VOCABULARY
    step = jax.jit(functools.partial(train_step, **options), donate_argnums=0)
    return step, ((weights, zeros, zeros), tokens)


@program()
def decoder_step():
    return build(scanned=False, remat=False)


@program()
def decoder_step_remat():
    return build(scanned=False, remat=True)


@program()
def decoder_step_scanned():
    return build(scanned=True, remat=True)
