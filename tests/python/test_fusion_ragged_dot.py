"""Ragged products become one grouped product: the match, the kernel's own text, and the work that is left."""

import re

import fusion_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton_interpreter
from farrier import Target
from farrier._src import interchange, oracle
from farrier._src.fusion.hints import hint
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.interpreters import mlir

SUMS = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
BY_LHS = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def lower(function, *arguments, sharding=None):
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in arguments]
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def rewrite(function, *arguments, options="rewrites=ragged-dot"):
    module, result = cases.rewrite(lower(function, *arguments), options)
    return module, result


def arguments(m=96, k=40, n=24, g=3, dtype=jnp.bfloat16, sizes=None, seed=0):
    rng = np.random.default_rng(seed)
    if sizes is None:
        cuts = np.sort(rng.integers(0, m + 1, g))
        sizes = np.diff(cuts, prepend=0)
    return (
        jnp.asarray(rng.normal(size=(m, k)), dtype),
        jnp.asarray(rng.normal(size=(g, k, n)), dtype),
        jnp.asarray(sizes, jnp.int32),
    )


def layer(x, w, sizes):
    """Two products of an expert layer and its loss: forward, and both gradients under grad."""
    hidden = jnp.tanh(lax.ragged_dot(x, w, sizes))
    return jnp.sum(lax.ragged_dot(hidden, jnp.swapaxes(w, 1, 2), sizes).astype(jnp.float32) ** 2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("sizes", [(30, 0, 66), (10, 20, 5), (0, 0, 0)])
def test_the_layer_and_its_gradients_compute_the_same(dtype, sizes):
    given_ = arguments(dtype=dtype, sizes=sizes)
    function = jax.value_and_grad(layer, (0, 1))
    lowered = lower(function, *given_)
    module, result = cases.rewrite(lowered, "rewrites=ragged-dot")
    assert cases.applied(result) == {"ragged-dot": 6}, cases.reasons(result)
    assert b"chlo.ragged_dot" not in module.print()
    truth = jax.tree.leaves(jax.jit(function)(*(a.astype(jnp.float32) if a.ndim > 1 else a for a in given_)))
    # XLA:CPU knows no ragged product: JAX lowers it to masked dense ones there.
    old = cases.run_original(jax.jit(function).lower(*given_), *given_)
    new = cases.run_rewritten(module, *given_)
    for before, after, t in zip(old, new, truth, strict=True):
        assert cases.error(after, t) <= 1.1 * cases.error(before, t) + 1e-6


def kernel(module):
    """(Kernel, grid) of the only call in a rewritten module."""
    text = module.print().decode()
    assert text.count("__gpu$xla.gpu.triton") == 1
    escaped = re.search(r'ir = "((?:[^"\\]|\\.)*)"', text).group(1)
    ir_text = re.sub(r"\\([0-9A-F]{2})", lambda m: chr(int(m.group(1), 16)), escaped)
    grid = tuple(int(re.search(rf"grid_{axis} = (\d+)", text).group(1)) for axis in "xyz")
    return triton_interpreter.Kernel(ir_text), grid


def by_hand(kind, x, w, sizes):
    """The ragged product in float64, group by group."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    ends = np.cumsum(sizes)
    spans = [slice(e - s, e) for e, s in zip(ends, np.asarray(sizes), strict=True)]
    if kind == "sums":
        return np.stack([x[s].T @ w[s] for s in spans])
    out = np.zeros((x.shape[0], w.shape[2] if kind == "rows" else w.shape[1]))
    for g, s in enumerate(spans):
        out[s] = x[s] @ (w[g] if kind == "rows" else w[g].T)
    return out


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_kernel_itself_computes_ragged_products(data):
    kind = data.draw(st.sampled_from(["rows", "by-lhs", "sums"]), label="kind")
    dtype = data.draw(st.sampled_from([jnp.bfloat16, jnp.float16, jnp.float32]), label="dtype")
    m, g = data.draw(st.integers(20, 300), label="m"), data.draw(st.integers(2, 9), label="g")
    k, n = data.draw(st.integers(1, 150), label="k"), data.draw(st.integers(1, 150), label="n")
    cuts = sorted(data.draw(st.lists(st.integers(0, m), min_size=g, max_size=g), label="cuts"))
    sizes = np.diff(np.array(cuts), prepend=0).astype(np.int32)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shapes = {"rows": (g, k, n), "by-lhs": (g, n, k), "sums": (m, n)}
    # Whole numbers: sums in any order and precision are exact, so that one wrong element shows.
    x = jnp.asarray(rng.integers(-2, 3, (m, k)), dtype)
    w = jnp.asarray(rng.integers(-2, 3, shapes[kind]), dtype)
    numbers = {
        "rows": None,
        "by-lhs": BY_LHS,
        "sums": SUMS,
    }[kind]

    def product(x, w, sizes):
        if numbers is None:
            return lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.float32)
        return lax.ragged_dot_general(x, w, sizes, numbers, preferred_element_type=jnp.float32)

    module, result = rewrite(product, x, w, sizes)
    assume(cases.applied(result))
    program, grid = kernel(module)
    truth = by_hand(kind, x, w, sizes)
    got = program.run(
        grid, np.asarray(x), np.asarray(w), sizes, output=np.full(truth.shape, np.nan, np.float32)
    )
    assert program.unwritten == 0
    np.testing.assert_array_equal(got, truth)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, w, s: jax.vmap(lax.ragged_dot)(x[None], w[None], s[None]), "not a vector"),
        (
            lambda x, w, s: lax.ragged_dot(
                x.astype(jnp.float32), w.astype(jnp.float32), s, precision=lax.Precision.HIGHEST
            ),
            "precision above the default",
        ),
        (lambda x, w, s: lax.ragged_dot(x.astype(jnp.int8), w.astype(jnp.int8), s), "bf16, f16 or f32"),
        (lambda x, w, s: lax.ragged_dot(x[:2], w, s), "few rows"),
    ],
)
def test_the_rest_is_left_alone_with_a_reason(function, reason):
    given_ = arguments()
    before = interchange.to_core(lower(function, *given_).compiler_ir("stablehlo")).print()
    module, result = rewrite(function, *given_)
    assert module.print() == before
    assert any(reason in r for r in cases.reasons(result)), cases.reasons(result)


def test_hints_and_numerics_are_honoured():
    def hinted(x, w, sizes):
        with hint(fuse="off"):
            return lax.ragged_dot(x, w, sizes)

    _, result = rewrite(hinted, *arguments())
    assert cases.reasons(result) == ["left as it is: a hint forbids it"]
    _, result = rewrite(lax.ragged_dot, *arguments(), options="numerics=bitwise")
    assert "numerics=bitwise" in cases.reasons(result)[0]


def test_the_compiler_takes_the_kernels_and_the_work_is_ideal():
    m, k, n, g = 16384, 256, 384, 8
    target = Target("h100")
    shapes = [((m, k), jnp.bfloat16), ((g, k, n), jnp.bfloat16), ((g,), jnp.int32)]
    lowered = lower(
        jax.value_and_grad(layer, (0, 1)),
        *(jax.ShapeDtypeStruct(*s) for s in shapes), sharding=target.sharding(),
    )  # fmt: skip
    module, result = cases.rewrite(lowered)
    assert cases.applied(result) == {"ragged-dot": 6}
    measured = oracle.measure(interchange.to_jaxlib(module, mlir.make_ir_context()), target)
    ideal = 6 * 2 * m * k * n
    assert ideal < measured.flops <= 1.1 * ideal
    assert not [u for u in measured.to_json().get("unknown", {}) if "flops" in u]
