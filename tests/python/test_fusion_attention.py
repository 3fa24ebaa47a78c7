"""Attention becomes cuDNN calls where that is what it is, and only there."""

import json
import re

import fusion_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FORWARD, BACKWARD = b"__cudnn$fmhaSoftmax", b"__cudnn$fmhaSoftmaxBackward"


def lower(attend, sizes=cases.Sizes(), gradients=True, dtype=jnp.bfloat16):  # noqa: B008 - frozen
    function = cases.with_gradients(attend) if gradients else attend
    return jax.jit(function).lower(*sizes.arguments(dtype))


def check(attend, sizes, seed=0, exact=False):
    """Both programs against an f32 truth; `exact`: also without the roundings that are the kernel's own."""
    arguments = sizes.arguments(seed=seed)
    lowered = lower(attend, sizes)
    module, result = cases.rewrite(lowered, "rewrites=attention")
    assert cases.applied(result), cases.reasons(result)
    assert b"stablehlo.exponential" not in module.print()
    truth = jax.tree.leaves(
        jax.jit(cases.with_gradients(attend))(*(x.astype(jnp.float32) for x in arguments))
    )[1:]
    old = cases.run_original(lowered, *arguments)[1:]
    new = cases.run_rewritten(module, *arguments)[1:]
    errors = [(cases.error(a, t), cases.error(b, t)) for a, b, t in zip(old, new, truth, strict=True)]
    output, *by_query_and_key, by_value = errors
    for before, after in (output, by_value):
        assert after <= 1.1 * before + 1e-4, errors
    # The kernel's backward rounds twice where the program does not: the output that enters the row sums, and
    # the score gradients. That is flash attention's own definition, and all of the difference: see below.
    for before, after in by_query_and_key:
        assert after <= 1.3 * before + 1e-3, errors
    if exact:
        new = cases.run_rewritten(module, *arguments, exact=True)[1:]
        for a, b, t in zip(old, new, truth, strict=True):
            assert cases.error(b, t) <= 1.1 * cases.error(a, t) + 1e-4
    return module


@pytest.mark.parametrize("name", cases.MATCHED)
def test_every_way_of_writing_it_is_found_and_computes_the_same(name):
    module = check(cases.MATCHED[name], cases.Sizes(), exact=True)
    calls = [re.sub(b"ScaleBias", b"", call) for call in cases.calls(module)]
    assert calls.count(BACKWARD) == 1
    assert calls.count(FORWARD) == (2 if name == "checkpoint" else 1)
    # Masks that the kernel has no name for are tensors that it adds.
    assert (b"ScaleBias" in module.print()) == (name in ("checkered mask", "anticausal", "one key off"))


@pytest.mark.parametrize("name", cases.MATCHED)
def test_forward_alone(name):
    module, _ = cases.rewrite(lower(cases.MATCHED[name], gradients=False), "rewrites=attention")
    assert [re.sub(b"ScaleBias", b"", call) for call in cases.calls(module)] == [FORWARD]


@pytest.mark.parametrize("name", cases.REFUSED)
def test_what_the_kernel_does_not_compute_is_left_alone_with_a_reason(name):
    attend, reason = cases.REFUSED[name]
    lowered = lower(attend)
    before = cases.interchange.to_core(lowered.compiler_ir("stablehlo")).print()
    module, result = cases.rewrite(lowered, "rewrites=attention")
    assert not cases.applied(result)
    assert module.print() == before
    assert any(re.search(reason, text) for text in cases.reasons(result)), cases.reasons(result)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batch=st.integers(1, 3),
    length=st.integers(8, 40),  # of few keys score gradients nearly cancel, and roundings weigh more
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.sampled_from([8, 24]),
    seen=st.integers(2, 40),  # a key alone has all the weight, and scores no gradients
    seed=st.integers(0, 99),
)
def test_any_shape_and_window(batch, length, key_heads, groups, width, seen, seed):
    sizes = cases.Sizes(batch, length, key_heads * groups, key_heads, width)
    check(cases.grouped(cases.window(seen)), sizes, seed)


def configs(text):
    """(operand and result types, backend_config) of every attention call of a generic-form text."""
    call = r'backend_config = ("(?:[^"\\]|\\.)*").*?call_target_name = "__cudnn.*?: (\(.*?) loc'
    return [
        (types, json.loads(config.replace("\\22", "\x00")[1:-1].replace("\x00", '"')))
        for config, types in re.findall(call, text)
    ]


@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, (7, 0))])
def test_the_calls_are_those_jax_makes(causal, window):
    sizes = cases.Sizes(width=64)
    ours, _ = cases.rewrite(
        lower(cases.library(is_causal=causal, local_window_size=window), sizes), "rewrites=attention"
    )

    def cudnn(q, k, v):
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, local_window_size=window, implementation="cudnn"
        )

    lowered = (
        jax.jit(cases.with_gradients(cudnn)).trace(*sizes.arguments()).lower(lowering_platforms=("cuda",))
    )
    theirs = cases.interchange.to_core(lowered.compiler_ir("stablehlo"))
    want = configs(theirs.print().decode())
    assert len(want) == 2
    assert configs(ours.print().decode()) == want


def test_deterministic_programs_keep_their_backward():
    _, result = cases.rewrite(lower(cases.MATCHED["causal"]), "rewrites=attention deterministic=true")
    assert not cases.applied(result)
    assert "varies from run to run" in cases.reasons(result)[0]


@pytest.mark.parametrize(
    ("sizes", "dtype", "reason"),
    [
        (cases.Sizes(width=12), jnp.bfloat16, "multiples of 8 up to 256, not 12"),
        (cases.Sizes(), jnp.float32, "these are f32"),
    ],
)
def test_limits_of_the_kernel(sizes, dtype, reason):
    _, result = cases.rewrite(lower(cases.MATCHED["causal"], sizes, dtype=dtype), "rewrites=attention")
    assert not cases.applied(result)
    assert any(reason in text for text in cases.reasons(result))


def scanned(attend, checkpoint: bool):
    """Three layers of attention in a scan: (weights, x) -> loss."""

    def layer(x, w):
        q, k, v = (jnp.einsum("bsm,mhd->bshd", x, w[name]) for name in ("q", "k", "v"))
        return x + jnp.einsum("bshd,hdm->bsm", attend(q, k, v), w["o"])

    layer = jax.checkpoint(layer) if checkpoint else layer

    def loss(weights, x):
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, weights)
        return jnp.sum(jnp.sin(x.astype(jnp.float32)))

    return jax.value_and_grad(loss)


def scan_arguments(sizes, layers=3, width=32):
    random = np.random.default_rng(1)
    shapes = {
        "q": (layers, width, sizes.heads, sizes.width),
        "k": (layers, width, sizes.key_heads, sizes.width),
        "v": (layers, width, sizes.key_heads, sizes.width),
        "o": (layers, sizes.heads, sizes.width, width),
    }
    weights = {
        name: jnp.asarray(0.1 * random.standard_normal(shape), jnp.bfloat16) for name, shape in shapes.items()
    }
    return weights, jnp.asarray(random.standard_normal((sizes.batch, sizes.length, width)), jnp.bfloat16)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_attention_in_scans_is_matched_through_the_stacks_of_residuals(checkpoint):
    sizes = cases.Sizes()
    arguments = scan_arguments(sizes)
    function = scanned(cases.MATCHED["causal"], checkpoint)
    lowered = jax.jit(function).lower(*arguments)
    module, result = cases.rewrite(lowered, "rewrites=attention")
    assert cases.applied(result), cases.reasons(result)
    assert cases.calls(module).count(BACKWARD) == 1
    assert cases.calls(module).count(FORWARD) == 1 + checkpoint
    # No scores are left, nor stacks of them.
    assert f"{sizes.length}x{sizes.length}xf32" not in module.print().decode()
    truth = jax.tree.leaves(jax.jit(function)(*jax.tree.map(lambda a: a.astype(jnp.float32), arguments)))
    old, new = cases.run_original(lowered, *arguments), cases.run_rewritten(module, *arguments)
    for a, b, t in zip(old, new, truth, strict=True):
        assert cases.error(b, t) <= 1.3 * cases.error(a, t) + 1e-3


def test_without_a_word_about_the_split_automatic_sharding_keeps_its_attention_and_shard_map_gets_the_kernel():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    sharding = jax.sharding.NamedSharding(mesh, spec)
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in cases.Sizes().arguments()]
    attend = cases.MATCHED["causal"]
    _, result = cases.rewrite(jax.jit(attend).lower(*arguments), "rewrites=attention")
    assert not cases.applied(result)
    assert "on every device" in cases.reasons(result)[0]
    mapped = jax.shard_map(attend, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)
    module, _ = cases.rewrite(jax.jit(mapped).lower(*arguments), "rewrites=attention")
    assert cases.calls(module) == [FORWARD]
