"""Small programs that each give one of farrier's passes something to do; a compile takes a few seconds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

WIDTH, HIDDEN, TOKENS, LAYERS = 1024, 4096, 16384, 4


def _layer(x, w):
    """A residual gated layer on [tokens, width]: three values of [tokens, hidden] live until the backward pass."""
    gate, up = x @ w["gate"], x @ w["up"]
    return x + (jax.nn.silu(gate) * up) @ w["down"]


def _step(loss):
    """Plain gradient descent with donated weights."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(weights, *batch):
        value, gradient = jax.value_and_grad(loss)(weights, *batch)
        return jax.tree.map(lambda w, g: w - 0.01 * g, weights, gradient), value

    return step


def _shapes(stacked: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
    extra = (stacked,) if stacked else ()
    return {
        name: jax.ShapeDtypeStruct((*extra, *shape), jnp.bfloat16)
        for name, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH)))
    }


def stack(target: Any):
    """Unrolled layers: residuals that rematerialization can give up."""
    del target

    def loss(weights, x):
        for w in weights:
            x = _layer(x, w)
        return jnp.mean(x.astype(jnp.float32) ** 2)

    x = jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.bfloat16)
    return _step(loss), ([_shapes() for _ in range(LAYERS)], x)


def scan(target: Any):
    """The same layers under a scan: stacks of residuals between two loops."""
    del target

    def loss(weights, x):
        x, _ = lax.scan(lambda x, w: (_layer(x, w), None), x, weights)
        return jnp.mean(x.astype(jnp.float32) ** 2)

    return _step(loss), (_shapes(LAYERS), jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.bfloat16))


def attention(target: Any):
    """Attention by einsum and softmax, which the fusion pass gives to cuDNN."""
    del target

    def loss(weights, x):
        query, key, value = (jnp.einsum("bsd,dhk->bshk", x, w) for w in weights)
        scores = jnp.einsum("bshk,bthk->bhst", query, key, preferred_element_type=jnp.float32) / 8.0
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        shares = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhst,bthk->bshk", shares, value)
        return jnp.mean(mixed.astype(jnp.float32) ** 2)

    weight = jax.ShapeDtypeStruct((1024, 16, 64), jnp.bfloat16)
    return _step(loss), ([weight] * 3, jax.ShapeDtypeStruct((4, 2048, 1024), jnp.bfloat16))


def gathered(target: Any):
    """Layers whose weights are gathered by hand in a scan: XLA starts and ends each gather in one place."""
    mesh = target.mesh(names=("x",))

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P("x"), check_vma=False
    )
    def forward(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ lax.all_gather(w, "x", tiled=True)), None

        return lax.scan(layer, x, weights)[0]

    def put(shape: tuple[int, ...], spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    return forward, (put((LAYERS, HIDDEN, HIDDEN), P(None, "x")), put((8 * HIDDEN, HIDDEN), P("x")))
