"""Cross-entropy in chunks of tokens: the same values, no logits."""

import fusion_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def lower(function, arguments, gradients=True):
    function = jax.value_and_grad(function, (0, 1)) if gradients else function
    return jax.jit(function).lower(*arguments)


def giants(module, arguments) -> bool:
    """Whether a value as large as the logits is left."""
    x, w, _ = arguments
    batch, length, _ = x.shape
    shapes = (f"<{batch}x{length}x{w.shape[1]}x", f"<{batch * length}x{w.shape[1]}x")
    text = module.print().decode()
    return any(shape in text for shape in shapes)


@pytest.mark.parametrize("name", cases.CROSS_ENTROPY)
def test_the_loss_keeps_every_bit_and_gradients_their_rounding(name):
    arguments = cases.cross_entropy_arguments()
    lowered = lower(cases.CROSS_ENTROPY[name], arguments)
    module, result = cases.rewrite(lowered, "rewrites=cross-entropy chunks=4")
    assert cases.applied(result)["cross-entropy"] >= 1, cases.reasons(result)
    assert not giants(module, arguments)
    loss, by_x, by_w = cases.run_original(lowered, *arguments)
    new_loss, new_by_x, new_by_w = cases.run_rewritten(module, *arguments)
    # Where XLA:CPU merges the sums over vocabulary and tokens, or vectorises tanh by shape, its own rounding
    # changes with the shape; the plain form shows that the program's does not.
    np.testing.assert_allclose(new_loss, loss, rtol=0 if name == "plain" else 1e-6)
    # Products of fewer rows may take another path through XLA:CPU's matrix multiplication.
    np.testing.assert_allclose(new_by_x, by_x, rtol=0, atol=1e-6 * np.abs(by_x).max())
    np.testing.assert_allclose(new_by_w, by_w, rtol=0, atol=2e-6 * np.abs(by_w).max())


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_forward_alone_is_bitwise_and_allowed_as_such(name):
    arguments = cases.cross_entropy_arguments()
    lowered = lower(cases.CROSS_ENTROPY[name], arguments, gradients=False)
    module, result = cases.rewrite(lowered, "rewrites=cross-entropy chunks=8 numerics=bitwise")
    assert cases.applied(result) == {"cross-entropy": 1}
    assert not giants(module, arguments)
    (new,), (old,) = cases.run_rewritten(module, *arguments), cases.run_original(lowered, *arguments)
    np.testing.assert_allclose(new, old, rtol=0 if name == "plain" else 1e-6)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batch=st.integers(1, 3),
    length=st.sampled_from([12, 30, 64]),
    width=st.integers(1, 9),
    vocabulary=st.integers(3, 70),
    chunks=st.integers(2, 6),
    narrow=st.booleans(),
    name=st.sampled_from(sorted(cases.CROSS_ENTROPY)),
)
def test_no_worse_than_the_original(batch, length, width, vocabulary, chunks, narrow, name):
    arguments = cases.cross_entropy_arguments(
        batch, length, width, vocabulary, jnp.bfloat16 if narrow else jnp.float32
    )
    function = cases.CROSS_ENTROPY[name]
    lowered = lower(function, arguments)
    module, result = cases.rewrite(lowered, f"rewrites=cross-entropy chunks={chunks}")
    assert cases.applied(result), cases.reasons(result)
    x, w, labels = arguments
    truth = jax.tree.leaves(
        jax.jit(jax.value_and_grad(function, (0, 1)))(x.astype(jnp.float32), w.astype(jnp.float32), labels)
    )
    old = cases.run_original(lowered, *arguments)
    new = cases.run_rewritten(module, *arguments)
    for a, b, t in zip(old, new, truth, strict=True):
        assert cases.error(b, t) <= 1.1 * cases.error(a, t) + 2e-6


def test_products_cost_what_they_did():
    from farrier._src.hlo.stablehlo_flops import stablehlo_flops
    from farrier._src.interchange import to_jaxlib
    from jax.interpreters import mlir

    arguments = cases.cross_entropy_arguments()
    lowered = lower(cases.everything, arguments)
    module, _ = cases.rewrite(lowered, "rewrites=cross-entropy chunks=4")
    before, _ = stablehlo_flops(lowered.compiler_ir("stablehlo"))
    after, _ = stablehlo_flops(to_jaxlib(module, mlir.make_ir_context()))
    assert after == before


def returns_logits(x, w, labels):
    logits = cases._logits(x, w)
    return jnp.mean(jax.nn.logsumexp(logits, -1)), logits


def depends_on_loss(x, w, labels):
    return jnp.exp(cases.negative_log_likelihood(x, w, labels))


def mixes_tokens(x, w, labels):
    logits = cases._logits(x, w)
    return jnp.mean(jax.nn.logsumexp(logits, -1)) + jnp.sum(logits * logits[:, ::-1])


@pytest.mark.parametrize(
    ("function", "gradients", "reason"),
    [
        (returns_logits, False, "the whole intermediate is returned"),
        (depends_on_loss, True, "which depends on the result"),
        (mixes_tokens, False, "the whole intermediate is read by"),
    ],
)
def test_what_stands_in_the_way_is_said_and_nothing_changes(function, gradients, reason):
    lowered = lower(function, cases.cross_entropy_arguments(), gradients)
    before = cases.interchange.to_core(lowered.compiler_ir("stablehlo")).print()
    module, result = cases.rewrite(lowered, "rewrites=cross-entropy chunks=4")
    assert not cases.applied(result)
    assert any(reason in text for text in cases.reasons(result)), cases.reasons(result)
    assert module.print() == before


def test_bitwise_numerics_refuse_a_regrouped_sum():
    lowered = lower(cases.negative_log_likelihood, cases.cross_entropy_arguments())
    _, result = cases.rewrite(lowered, "rewrites=cross-entropy chunks=4 numerics=bitwise")
    assert not cases.applied(result)
    assert "numerics=bitwise" in cases.reasons(result)[0]
