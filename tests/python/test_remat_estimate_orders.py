"""What the estimate takes for a buffer where products and elementwise kernels want different orders of dimensions."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest
from farrier._src import interchange

MB = 1 << 20
QUERIES, KEYS = (jax.ShapeDtypeStruct((2, 1024, *heads, 64), jnp.bfloat16) for heads in ((2, 2), (2,)))
OF_SCORES = 2 * 2 * 2 * 1024 * 1024


def estimated(function, *arguments):
    """Temporary bytes, and what is live at the peak as "operation type"; of the backward part behind "backward "."""
    module = interchange.to_core(jax.jit(function).lower(*arguments).compiler_ir("stablehlo"))
    answer = json.loads(module.query("memory.estimate", json.dumps({"top": 64})))
    live = []
    for entry in answer["live"]:
        name, kind, shape, _ = entry["key"].split("|")
        part = "backward " if "transpose(" in name else ""
        live.append(f"{part}{kind.removeprefix('stablehlo.').split(':')[0]} {shape}")
    return answer["temp"], live


def gradients():
    """Of attention with grouped heads, whose scores are a product's result in bf16, as all that is live at the peak."""

    def attention(q, k, v):
        scores = jnp.einsum("bskgd,btkd->bkgst", q, k).astype(jnp.float32)
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        weights = (weights / jnp.sum(weights, axis=-1, keepdims=True)).astype(q.dtype)
        return jnp.sum(jnp.einsum("bkgst,btkd->bskgd", weights, v).astype(jnp.float32) * 2)

    return jax.grad(attention, argnums=(0, 1, 2))


def test_what_changes_its_order_is_written_once_behind_the_product():
    """The gradient of the probabilities lies in another order than the scores, and is read twice beside them: what is
    widened from the product is written in their order, not what each of the two computes of it.
    """
    _, live = estimated(gradients(), QUERIES, KEYS, KEYS)
    wide = [value for value in live if value.endswith("1024x1024xf32>")]
    assert wide == ["backward convert tensor<2x2x2x1024x1024xf32>"]


def test_what_is_read_in_two_orders_is_not_written_over():
    """One kernel writes the gradient of the scores, and the probabilities in the order that the values' gradient wants
    them: the scores, in bf16, are read in both orders, and both results are there beside them and the f32 gradient.
    """
    temp, _ = estimated(gradients(), QUERIES, KEYS, KEYS)
    assert temp >= OF_SCORES * (4 + 3 * 2)


def test_a_weights_gradient_in_another_order_is_read_where_it_lies():
    """What meets a parameter's order is no copy: the optimizer's kernel reads the product as it is."""

    def step(weights, moments, x):
        def loss(weights):
            up, down = (w.astype(x.dtype) for w in weights)
            return jnp.sum(jnp.square(jnp.tanh(x @ up) @ down).astype(jnp.float32))

        gradients = jax.grad(loss)(weights)
        norm = sum(jnp.sum(jnp.square(g)) for g in gradients)
        gradients = [g * jnp.minimum(1.0, 1 / norm) for g in gradients]
        first = [0.9 * m + 0.1 * g for m, g in zip(moments, gradients, strict=True)]
        second = [0.9 * m + 0.1 * g * g for m, g in zip(moments, gradients, strict=True)]
        weights = [w - m / jnp.sqrt(v) for w, m, v in zip(weights, first, second, strict=True)]
        return weights, first, second

    square = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    _, live = estimated(step, [square] * 2, [square] * 2, jax.ShapeDtypeStruct((512, 2048), jnp.bfloat16))
    assert "backward dot_general tensor<2048x2048xbf16>" in live
    assert not [value for value in live if value.endswith("f32>")]


@pytest.mark.parametrize("heads", [1, 2])
def test_one_head_of_keys_shares_one_copy_of_the_probabilities(heads):
    """Both of its products are of a matrix in a batch, whose dimensions XLA exchanges in the product: the probabilities are
    written as they are named, once, and kept. Of several heads each product wants them in an order of its own.
    """
    keys = jax.ShapeDtypeStruct((2, 1024, heads, 64), jnp.bfloat16)
    queries = jax.ShapeDtypeStruct((2, 1024, heads, 4, 64), jnp.bfloat16)

    def loss(q, k, v):
        for _ in range(2):
            scores = jnp.einsum("bskgd,btkd->bkgst", q, k).astype(jnp.float32)
            weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
            q = jnp.einsum("bkgst,btkd->bskgd", weights, v)
        return jnp.sum(jnp.square(q.astype(jnp.float32)))

    _, live = estimated(jax.grad(loss, argnums=(0, 1, 2)), queries, keys, keys)
    kept = [value for value in live if value == f"convert tensor<2x{heads}x4x1024x1024xbf16>"]
    assert bool(kept) == (heads == 1)
