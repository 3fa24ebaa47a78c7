"""What the estimate takes for a buffer, rule by rule. That the rules are XLA:GPU's, `benchmarks/remat` measures."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest
from farrier._src import interchange

MB = 1 << 20


def estimate(function, *shapes):
    """The predicted temporary bytes of the lowered function, and what is live at the peak: {(shape, op): count}."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    module = interchange.to_core(jax.jit(function).lower(*arguments).compiler_ir("stablehlo"))
    answer = json.loads(module.query("memory.estimate", json.dumps({"top": 64})))
    live = [entry["key"].split("|")[-3:-1] for entry in answer["live"]]
    return answer["temp"], [
        f"{kind.removeprefix('stablehlo.').split(':')[0]} {shape}" for kind, shape in live
    ]


def attention(q, k, v):
    """Grouped heads, as decoders write it: the scores lie in the order that the product gives them."""
    scores = jnp.einsum("bskgd,btkd->bkgst", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bkgst,btkd->bskgd", weights, v)


def test_what_products_read_in_another_order_is_not_kept():
    """The f32 scores wait for the backward part; the bf16 probabilities are made again by the kernel that
    transposes them for each product."""
    q, kv = (2, 1024, 2, 2, 64), (2, 1024, 2, 64)

    def step(q, k, v):
        for _ in range(2):
            q = attention(q, k, v)
        return jnp.sum(q.astype(jnp.float32))

    _, live = estimate(
        jax.grad(step, argnums=(0, 1, 2)), (q, jnp.bfloat16), (kv, jnp.bfloat16), (kv, jnp.bfloat16)
    )
    assert live.count("dot_general tensor<2x2x1024x1024x2xf32>") == 2
    assert not [value for value in live if value.startswith("convert") and "1024x1024xbf16" in value]


def test_what_products_read_in_its_own_order_is_kept():
    def step(x, w):
        y = jax.nn.silu((x @ w).astype(jnp.float32)).astype(x.dtype)
        return jnp.sum((y @ w).astype(jnp.float32))

    square = (2048, 2048)
    _, live = estimate(jax.grad(step, argnums=1), (square, jnp.bfloat16), (square, jnp.bfloat16))
    assert [value for value in live if value == "convert tensor<2048x2048xbf16>"]


def test_what_a_loop_reads_is_a_buffer():
    """Weights are cast before the loop over layers: nothing fuses into a loop's operands."""

    def step(x, weights):
        half = weights.astype(jnp.bfloat16)
        return jax.lax.scan(lambda x, w: (x @ w, None), x, half)[0]

    temp, live = estimate(step, ((64, 1024), jnp.bfloat16), ((8, 1024, 1024), jnp.float32))
    assert "convert tensor<8x1024x1024xbf16>" in live
    assert temp >= 16 * MB


def test_what_a_loop_reads_is_there_beside_what_it_writes():
    """A stack that the loop fills does not lie where another one of its size is read, though that is the last read."""

    def step(x, weights):
        half = weights.astype(jnp.bfloat16)
        x, filled = jax.lax.scan(lambda x, w: (x @ w, w @ w), x, half)
        return jnp.sum(filled.astype(jnp.float32), axis=0) @ x.astype(jnp.float32).T

    temp, live = estimate(step, ((64, 1024), jnp.bfloat16), ((8, 1024, 1024), jnp.float32))
    assert "convert tensor<8x1024x1024xbf16>" in live
    assert temp >= 32 * MB


def test_two_stacks_of_the_same_values_are_one():
    """As a scan's derivative writes what two operations keep."""

    def step(x):
        def body(i, carry):
            x, a, b = carry
            y = jnp.sin(x)
            return y @ x, *(jax.lax.dynamic_update_index_in_dim(stack, y, i, 0) for stack in (a, b))

        zeros = jnp.zeros((8, *x.shape), x.dtype)
        _, a, b = jax.lax.fori_loop(0, 8, body, (x, zeros, zeros))
        return jnp.einsum("lij,ljk->ik", a, b)

    _, live = estimate(step, ((1024, 1024), jnp.float32))
    assert live.count("while tensor<8x1024x1024xf32>") == 1


@pytest.mark.parametrize("needed_later", [True, False])
def test_a_sum_is_stored_only_where_that_frees_what_it_is_made_of(needed_later):
    """Both branches of a residual block wait for their norms' derivatives: the sum is computed again."""

    def step(x, w, v):
        a, b = x @ w, x @ v
        both = a + b
        y = jnp.sin(both) @ w
        z = jnp.cos(both) @ y
        return (a * y) @ z + (b * y) @ z if needed_later else z

    square = ((2048, 2048), jnp.float32)
    _, live = estimate(step, square, square, square)
    assert ("add tensor<2048x2048xf32>" in live) == (not needed_later)


def test_a_product_with_a_vector_fuses_what_it_reads():
    """XLA makes it a multiplication and a sum; a one-hot factor is never written."""

    def step(index, gate):
        hot = jax.nn.one_hot(index, 4096, dtype=jnp.bfloat16)  # [tokens, choices, 4096]
        return jnp.einsum("tkc,tk->tc", hot, gate).astype(jnp.float32).sum()

    temp, _ = estimate(step, ((2048, 2), jnp.int32), ((2048, 2), jnp.bfloat16))
    assert temp < 2048 * 2 * 4096 * 2


def half_precision_step():
    """Four layers whose f32 weights are cast to bf16, and an update: a core module."""

    def loss(weights, x):
        for w in weights:
            x = jnp.sin(x @ w.astype(jnp.bfloat16)) + x
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(weights, x):
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights, x))

    weights = [jax.ShapeDtypeStruct((2048, 2048), jnp.float32)] * 4
    x = jax.ShapeDtypeStruct((8192, 2048), jnp.bfloat16)
    return interchange.to_core(jax.jit(step, donate_argnums=0).lower(weights, x).compiler_ir("stablehlo"))


def planned(module, share, tmp_path):
    """The plan for a share of what the program is estimated to need, and the program rewritten by it."""
    temp = json.loads(module.query("memory.estimate", "{}"))["temp"]
    plan = json.loads(module.query("remat.plan", json.dumps({"budget": int(share * temp)})))
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    rewritten = module.clone()
    rewritten.run(f"builtin.module(farrier-remat{{plan={file}}})")
    return plan, rewritten


@pytest.mark.parametrize("share", [0.9, 0.7, 0.6])
def test_a_plan_says_what_the_rewritten_program_is_estimated_to_need(share, tmp_path):
    module = half_precision_step()
    plan, rewritten = planned(module, share, tmp_path)
    predicted = plan["predicted"]
    assert predicted["after"] == json.loads(rewritten.query("memory.estimate", "{}"))["temp"]
    assert predicted["fits"] and predicted["after"] <= share * predicted["before"]


def test_a_parameter_is_cast_again_before_it_is_updated(tmp_path):
    """XLA would copy the parameter otherwise, and hold the copy from the forward part on."""
    _, rewritten = planned(half_precision_step(), 0.6, tmp_path)
    text = rewritten.print(generic=True, locations=False).decode()
    tied = (
        "(tensor<2048x2048xbf16>, tensor<2048x2048xbf16>) -> (tensor<2048x2048xbf16>, tensor<2048x2048xbf16>)"
    )
    barriers = [line for line in text.splitlines() if "optimization_barrier" in line and tied in line]
    assert barriers
    # What updates read is the gradient that waited for the cast.
    name = barriers[-1].split(":2 =")[0].strip()
    assert f"{name}#0" in text and f"{name}#1" in text


def test_a_ragged_product_reads_its_rows_once_for_each_group():
    """XLA:GPU expands it: masked copies of the rows, and the work of as many dense products as there are groups."""
    groups, rows, width, hidden = 8, 4096, 256, 512
    arguments = [
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((groups, width, hidden), jnp.float32),
        jax.ShapeDtypeStruct((groups,), jnp.int32),
    ]

    def step(x, w, sizes):
        return jax.lax.ragged_dot(jnp.sin(x), w, sizes)

    lowered = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",))
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
    assert b"chlo.ragged_dot" in module.print(locations=False)
    temp = json.loads(module.query("memory.estimate", "{}"))["temp"]
    assert temp == groups * rows * width * 4
    flops = json.loads(module.query("cost.total", "{}"))["flops"]
    assert flops == 2 * groups * rows * width * hidden
