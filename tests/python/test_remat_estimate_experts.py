"""What the estimate takes for a buffer where rows are divided among experts (`chlo.ragged_dot`)."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
from farrier._src import interchange

GROUPS, ROWS, WIDTH, HIDDEN = 8, 4096, 256, 512


def imported(function, *arguments):
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
    assert b"chlo.ragged_dot" in module.print(locations=False)
    return module


def test_a_ragged_product_reads_its_rows_once_for_each_group():
    """XLA:GPU expands it: masked copies of the rows, and the work of as many dense products as there are groups."""
    arguments = [
        jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((GROUPS, WIDTH, HIDDEN), jnp.float32),
        jax.ShapeDtypeStruct((GROUPS,), jnp.int32),
    ]

    def step(x, w, sizes):
        return jax.lax.ragged_dot(jnp.sin(x), w, sizes)

    module = imported(step, *arguments)
    temp = json.loads(module.query("memory.estimate", "{}"))["temp"]
    assert temp == GROUPS * ROWS * WIDTH * 4
    flops = json.loads(module.query("cost.total", "{}"))["flops"]
    assert flops == 2 * GROUPS * ROWS * WIDTH * HIDDEN


def test_masked_copies_for_weight_gradients_are_there_until_the_iteration_ends():
    """Gradients of weights run last, and what products that keep the rows read is a copy of what those read: both of the
    hidden width are there with both of the other, and one of them once more.
    """
    arguments = [
        jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((2, GROUPS, WIDTH, HIDDEN), jnp.float32),
        jax.ShapeDtypeStruct((2, GROUPS, HIDDEN, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((GROUPS,), jnp.int32),
    ]

    def loss(x, up, down, sizes):
        @jax.checkpoint
        def layer(x, w):
            h = jax.nn.relu(jax.lax.ragged_dot(x, w[0], sizes))
            return x + jax.lax.ragged_dot(h, w[1], sizes), None

        return jnp.sum(jax.lax.scan(layer, x, (up, down))[0])

    module = imported(jax.grad(loss, argnums=(1, 2)), *arguments)
    temp = json.loads(module.query("memory.estimate", "{}"))["temp"]
    assert temp >= GROUPS * ROWS * (2 * WIDTH + 3 * HIDDEN) * 4
