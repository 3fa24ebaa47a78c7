"""The fusion pass as a whole: options, cost, and leaving alone what has nothing to gain."""

import time

import fusion_cases as cases
import jax
import jax.numpy as jnp
import pytest
from farrier import _core


def feed_forward(x, w):
    for _ in range(3):
        x = jax.nn.softmax(jnp.tanh(x @ w), -1)
    return x.sum()


def test_nothing_to_gain_comes_out_byte_identical():
    x = jnp.ones((8, 8))
    lowered = jax.jit(jax.grad(feed_forward)).lower(x, x)
    before = cases.interchange.to_core(lowered.compiler_ir("stablehlo")).print()
    module, result = cases.rewrite(lowered)
    assert not cases.applied(result)
    assert module.print() == before


def test_the_same_input_gives_the_same_bytes():
    lowered = jax.jit(cases.with_gradients(cases.MATCHED["causal"])).lower(*cases.Sizes().arguments())
    texts = {cases.rewrite(lowered)[0].print() for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rewrites=atention", "no rewrite 'atention'"),
        ("numerics=exact", "not 'exact'"),
        ("chunks=-1", "negative"),
    ],
)
def test_wrong_options_are_refused(options, message):
    lowered = jax.jit(jnp.exp).lower(jnp.ones(3))
    with pytest.raises(_core.DiagnosticError, match=message):
        cases.rewrite(lowered, options)


def test_ten_thousand_operations_take_half_a_second():
    def model(q, k, v):
        for _ in range(60):
            q = cases.MATCHED["causal"](q, k, v)
        return jnp.sum(q.astype(jnp.float32))

    lowered = jax.jit(jax.grad(model, (0, 1, 2))).lower(*cases.Sizes(length=512).arguments())
    module = cases.interchange.to_core(lowered.compiler_ir("stablehlo"))
    operations = module.num_ops
    start = time.process_time()
    result = module.run("builtin.module(farrier-fusion)")
    seconds = time.process_time() - start
    assert cases.applied(result) == {"attention": 60}
    assert seconds / operations * 10_000 <= 0.5 * 3, (seconds, operations)  # a busy machine gets three times
