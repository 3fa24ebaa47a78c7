"""What loops only read, and is cheap to make, is made inside: the same bits, less memory, fewer bytes."""

import farrier
import fusion_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier._src import interchange, oracle
from jax import lax
from jax.interpreters import mlir


def masked_scan(weights, x, ids):
    """A mask of heads and batch, known at run time, read by every layer; with gradients."""
    bias = jnp.where(ids[:, None, :, None] == ids[:, None, None], 0.0, -1e9) * jnp.ones((1, 4, 1, 1))

    def layer(x, w):
        q = (x @ w).reshape(*x.shape[:2], 4, -1)
        scores = jnp.einsum("bshd,bthd->bhst", q, q) + bias
        return x + jnp.einsum("bhst,bthd->bshd", jnp.tanh(scores), q).reshape(x.shape), None

    return jnp.sum(lax.scan(layer, x, weights)[0] ** 2)


def nested(weights, x, row):
    """Through two loops."""
    big = jnp.broadcast_to(jnp.sin(row), x.shape)
    inner = lambda c, w: (jnp.tanh(c * w + big), None)  # noqa: E731
    return lax.scan(lambda c, _: (lax.scan(inner, c, weights)[0], None), x, None, length=3)[0]


def casts(weights, x, row):
    narrow = weights.astype(jnp.bfloat16)
    return lax.scan(lambda x, w: (jnp.tanh(x * w.astype(jnp.float32) + row), None), x, narrow)[0]


def read_afterwards(weights, x, row):
    """What the loop read, the program reads again."""
    big = jnp.broadcast_to(jnp.sin(row), x.shape)
    c, still = lax.fori_loop(0, 4, lambda i, s: (s[0] * weights[i] + s[1], s[1]), (x, big))
    return c + still


def arrays(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


SMALL = {
    "masks": (jax.value_and_grad(masked_scan, (0, 1)), [(3, 8, 8), (2, 24, 8)], True),
    "nested": (nested, [(4, 16, 32), (16, 32), (32,)], False),
    "casts": (casts, [(4, 16, 32), (16, 32), (32,)], False),
    "read afterwards": (read_afterwards, [(4, 16, 32), (16, 32), (32,)], False),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_bit_is_kept(name):
    function, shapes, ids = SMALL[name]
    arguments = arrays(*shapes) + ([np.arange(48, dtype=np.int32).reshape(2, 24) // 5] if ids else [])
    lowered = jax.jit(function).lower(*arguments)
    module, result = cases.rewrite(lowered, "rewrites=sink sink-bytes=64 numerics=bitwise")
    assert cases.applied(result)["sink"] >= 1
    for old, new in zip(
        cases.run_original(lowered, *arguments), cases.run_rewritten(module, *arguments), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_a_value_that_products_read_stays_outside():
    def function(weights, x):
        one_hot = jnp.broadcast_to(weights[0], (32, 32)).T
        return lax.scan(lambda c, w: (jnp.tanh(c @ one_hot) * w, None), x, weights)[0]

    lowered = jax.jit(function).lower(*arrays((4, 32), (16, 32)))
    _, result = cases.rewrite(lowered, "rewrites=sink sink-bytes=64")
    assert not cases.applied(result)


def test_one_number_is_left_to_the_compiler():
    """XLA makes a broadcast constant where it is read."""

    def function(x):
        big = jnp.full(x.shape, jnp.int32(3).astype(jnp.float32)) * 2
        return lax.fori_loop(0, 8, lambda _, s: (jnp.sin(s[0] + s[1]), s[1]), (x, big))[0]

    _, result = cases.rewrite(jax.jit(function).lower(*arrays((32, 32))), "rewrites=sink sink-bytes=64")
    assert not cases.applied(result)


def test_on_a_gpu_the_value_is_not_stored():
    target = farrier.Target("h100")

    def function(x, row):
        big = jnp.broadcast_to(jnp.tanh(row), x.shape)
        return lax.fori_loop(0, 8, lambda _, c: jnp.sin(c * 0.9 + big), x)

    given = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=target.sharding())
        for shape in ((2048, 2048), (2048,))
    ]
    lowered = jax.jit(function).lower(*given)
    module, result = cases.rewrite(lowered)
    assert cases.applied(result) == {"sink": 1}
    stored = oracle.measure(lowered, target)
    made = oracle.measure(interchange.to_jaxlib(module, mlir.make_ir_context()), target)
    big = 2048 * 2048 * 4
    assert made.temp_bytes <= stored.temp_bytes - big + (1 << 16)
    # Eight iterations read it no more.
    assert made.bytes_moved <= stored.bytes_moved - 8 * big
