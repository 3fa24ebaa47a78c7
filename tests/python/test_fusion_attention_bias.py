"""Biases and run-time masks become tensors that cuDNN's kernels add to the scores, and only where that is the same."""

import re

import attention_cases as biased
import fusion_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FORWARD, BACKWARD = b"__cudnn$fmhaScaleBiasSoftmax", b"__cudnn$fmhaScaleBiasSoftmaxBackward"


def with_gradients(case, gradients=True):
    def loss(*arguments):
        out = case.attend(*arguments)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    argnums = (0, 1, 2, 3) if case.by_more else (0, 1, 2)
    return jax.value_and_grad(loss, argnums, has_aux=True) if gradients else case.attend


def arguments_of(case, sizes, seed=0):
    return (*sizes.arguments(seed=seed), *case.more(np.random.default_rng(seed), sizes))


def in_f32(arguments):
    return [a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arguments]


def check(case, sizes, seed=0, roundings=True):
    """Both programs against an f32 truth; without the roundings that are the kernel's own, and with them."""
    arguments = arguments_of(case, sizes, seed)
    lowered = jax.jit(with_gradients(case)).lower(*arguments)
    module, result = cases.rewrite(lowered, "rewrites=attention")
    assert cases.applied(result), cases.reasons(result)
    truth = jax.tree.leaves(jax.jit(with_gradients(case))(*in_f32(arguments)))[1:]
    old = cases.run_original(lowered, *arguments)[1:]
    exact = cases.run_rewritten(module, *arguments, exact=True)[1:]
    for name, a, b, t in zip("oqkvb", old, exact, truth, strict=False):
        assert cases.error(b, t) <= 1.1 * cases.error(a, t) + 1e-3, (
            name,
            cases.error(a, t),
            cases.error(b, t),
        )
    if roundings:
        new = cases.run_rewritten(module, *arguments)[1:]
        for name, a, b, t in zip("oqkvb", old, new, truth, strict=False):
            bound = (1.1 if name in "ov" else 1.3) * cases.error(a, t) + 1e-3
            assert cases.error(b, t) <= bound, (name, cases.error(a, t), cases.error(b, t))
    return module


@pytest.mark.parametrize("name", biased.MATCHED)
def test_masks_and_biases_are_found_and_compute_the_same(name):
    case = biased.MATCHED[name]
    module = check(case, cases.Sizes())
    calls = cases.calls(module)
    assert calls.count(BACKWARD) == 1 and calls.count(FORWARD) >= 1, calls
    assert (b"CAUSAL" in module.print()) == case.kernel_masks
    # Five results: the gradients, that of the bias, and the workspace.
    assert (b':5 = "stablehlo.custom_call"' in module.print()) == case.by_more


@pytest.mark.parametrize("name", biased.REFUSED)
def test_what_is_not_a_sum_is_left_alone_with_a_reason(name):
    case, reason = biased.REFUSED[name]
    lowered = jax.jit(with_gradients(case)).lower(*arguments_of(case, cases.Sizes()))
    before = cases.interchange.to_core(lowered.compiler_ir("stablehlo")).print()
    module, result = cases.rewrite(lowered, "rewrites=attention")
    assert not cases.applied(result)
    assert module.print() == before
    assert any(re.search(reason, text) for text in cases.reasons(result)), cases.reasons(result)


def test_rows_of_which_nothing_is_seen_are_averaged_as_before():
    sizes = cases.Sizes()
    q, k, v = sizes.arguments()
    for attend, empty in (
        (biased.padded, jnp.asarray([0, 5], jnp.int32)),
        (biased.padded_and_causal, jnp.asarray([0, 48], jnp.int32)),
        (biased.any_mask, jnp.zeros((2, 1, 48, 48), bool)),
    ):
        lowered = jax.jit(attend).lower(q, k, v, empty)
        module, result = cases.rewrite(lowered, "rewrites=attention")
        assert cases.applied(result), cases.reasons(result)
        (old,), (new,) = (
            cases.run_original(lowered, q, k, v, empty),
            cases.run_rewritten(module, q, k, v, empty),
        )
        assert cases.error(new, old) < 1e-2
        assert cases.error(new[0, 0, 0], np.asarray(v[0], np.float64).mean(0)[0]) < 1e-2


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_scan_makes_the_mask_once_before_its_loops(checkpoint):
    sizes = cases.Sizes()
    q, k, v = sizes.arguments()
    (segment,) = biased.segments(np.random.default_rng(0), sizes)

    def loss(weights, q, k, v, segment):
        def layer(q, w):
            return q + biased.packed(q * w, k, v, segment), None

        layer = jax.checkpoint(layer) if checkpoint else layer
        return jnp.sum(jnp.sin(jax.lax.scan(layer, q, weights)[0].astype(jnp.float32)))

    arguments = (jnp.asarray([0.5, 1.0, 1.5], jnp.bfloat16), q, k, v, segment)
    lowered = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(*arguments)
    module, result = cases.rewrite(lowered, "rewrites=attention")
    assert cases.applied(result), cases.reasons(result)
    assert cases.calls(module).count(BACKWARD) == 1
    truth = jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(*in_f32(arguments)))
    old, new = cases.run_original(lowered, *arguments), cases.run_rewritten(module, *arguments)
    for a, b, t in zip(old[1:], new[1:], truth[1:], strict=True):
        assert cases.error(b, t) <= 1.3 * cases.error(a, t) + 2e-3
    # One mask, or two under checkpoint, whose recomputed forward is another site; no stack of them.
    text = module.print().decode()
    assert f"tensor<3x{sizes.batch}x1x{sizes.length}x{sizes.length}xbf16>" not in text
    body = text.split('"stablehlo.while"', 1)[1]
    assert f"tensor<{sizes.batch}x1x{sizes.length}x{sizes.length}xi1>" not in body


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["padding", "packed segments", "any mask", "two masks", "BERT"]),
    batch=st.integers(1, 3),
    length=st.integers(8, 20).map(lambda n: 2 * n),  # fewer numbers: their errors are luck
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.sampled_from([8, 24]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_mask(name, batch, length, key_heads, groups, width, seed):
    sizes = cases.Sizes(batch, length, key_heads * groups, key_heads, width)
    check(biased.MATCHED[name], sizes, seed, roundings=False)


def test_limits():
    case = biased.MATCHED["padding"]
    odd = cases.Sizes(length=47)
    _, result = cases.rewrite(
        jax.jit(with_gradients(case)).lower(*arguments_of(case, odd)), "rewrites=attention"
    )
    assert "even numbers of positions" in cases.reasons(result)[0]
    assert cases.applied(
        cases.rewrite(jax.jit(case.attend).lower(*arguments_of(case, odd)), "rewrites=attention")[1]
    )
    half = [a.astype(jnp.float16) for a in cases.Sizes().arguments()]
    _, result = cases.rewrite(
        jax.jit(case.attend).lower(*half, *case.more(np.random.default_rng(0), cases.Sizes())),
        "rewrites=attention",
    )
    assert any("f16 does not reach" in text for text in cases.reasons(result))


@pytest.mark.parametrize("name", biased.RELAXED)
def test_what_rounds_more_than_the_kernel_is_matched_when_that_is_allowed(name):
    """Everything in bf16, or a bias of more digits than bf16 has: refused unless numerics=relaxed."""
    case = biased.RELAXED[name]
    arguments = arguments_of(case, cases.Sizes())
    lowered = jax.jit(with_gradients(case)).lower(*arguments)
    _, result = cases.rewrite(lowered, "rewrites=attention")
    assert not cases.applied(result)
    assert any("numerics=relaxed allows it" in text for text in cases.reasons(result)), cases.reasons(result)
    module, result = cases.rewrite(lowered, "rewrites=attention numerics=relaxed")
    assert cases.applied(result) == {"attention": 1}, cases.reasons(result)
    truth = jax.tree.leaves(jax.jit(with_gradients(case))(*in_f32(arguments)))[1:]
    old, new = cases.run_original(lowered, *arguments)[1:], cases.run_rewritten(module, *arguments)[1:]
    for a, b, t in zip(old, new, truth, strict=True):
        assert cases.error(b, t) <= 1.3 * cases.error(a, t) + 4e-3, (cases.error(a, t), cases.error(b, t))
