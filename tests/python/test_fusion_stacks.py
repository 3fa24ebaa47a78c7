"""Stacks that a loop fills start without a first value, where that is proven to be harmless."""

import fusion_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier._src import interchange
from farrier._src.fusion.hints import hint
from jax import lax

LAYERS, ROWS, WIDTH = 8, 128, 256  # a stack of activations is 1 MiB
X = jnp.ones((ROWS, WIDTH))


def rewrite(function, *arguments, options="rewrites=stacks"):
    lowered = jax.jit(function).lower(*arguments)
    return lowered, *cases.rewrite(lowered, options)


def scanned(weights, x):
    x, kept = lax.scan(lambda x, w: (jnp.tanh(x * w), x), x, weights)
    return jnp.sum(x**2) + jnp.sum(kept[0])


def test_residuals_and_stacked_gradients_compute_the_same_bits():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(LAYERS, ROWS, WIDTH)), jnp.float32)
    lowered, module, result = rewrite(jax.grad(scanned, (0, 1)), weights, X)
    # Residuals are written from the first to the last slice, gradients of the weights the other way round.
    assert cases.applied(result)["stacks"] >= 3
    assert module.print().count(b"AllocateBuffer") == cases.applied(result)["stacks"]
    # The reference of a buffer without a first value is full of nan.
    for old, new in zip(
        cases.run_original(lowered, weights, X), cases.run_rewritten(module, weights, X), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def put(y, x, i):
    return lax.dynamic_update_slice(y, x[None], (i, 0, 0))


def filled(steps, body):
    return lambda x: lax.fori_loop(0, steps, body(x), jnp.zeros((LAYERS, *x.shape), x.dtype))


@pytest.mark.parametrize(
    "function",
    [
        filled(LAYERS - 1, lambda x: lambda i, y: put(y, x, i)),  # the last slice stays as it was
        filled(LAYERS, lambda x: lambda i, y: put(y, x, i // 2)),  # the second half does
        filled(LAYERS, lambda x: lambda i, y: put(y, x, jnp.minimum(i, 5))),
        filled(LAYERS, lambda x: lambda i, y: put(y, x + y[0], i)),  # reads what it started from
        filled(LAYERS, lambda x: lambda i, y: put(y, x + lax.dynamic_index_in_dim(y, i, 0, False), i)),
        filled(LAYERS, lambda x: lambda i, y: put(y, x[: ROWS // 2], i)),  # half a slice
        lambda x: lax.fori_loop(0, LAYERS, lambda i, y: put(y, x, i), jnp.stack([x] * LAYERS)),
        lambda x: filled(LAYERS, lambda x: lambda i, y: put(y, x, i))(x[:8]),  # too small to matter
    ],
)
def test_what_could_be_read_before_it_is_written_stays(function):
    lowered = jax.jit(function).lower(X)
    before = interchange.to_core(lowered.compiler_ir("stablehlo")).print()
    module, result = cases.rewrite(lowered, "rewrites=stacks")
    assert not cases.applied(result)
    assert module.print() == before


def test_a_whole_fill_is_found_and_a_hint_keeps_it():
    whole = filled(LAYERS, lambda x: lambda i, y: put(y, x, i))
    assert cases.applied(rewrite(whole, X)[2]) == {"stacks": 1}
    assert cases.applied(rewrite(whole, X[:8])[2]) == {}
    small = "rewrites=stacks min-stack-bytes=8192"
    assert cases.applied(rewrite(whole, X[:8], options=small)[2]) == {"stacks": 1}

    def kept(x):
        with hint(fuse="off"):
            return whole(x)

    assert not cases.applied(rewrite(kept, X)[2])
