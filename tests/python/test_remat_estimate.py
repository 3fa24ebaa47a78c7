"""What the estimate takes for a buffer, rule by rule. That the rules are XLA:GPU's, `benchmarks/remat` measures."""

from __future__ import annotations

import json
import math

import farrier
import jax
import jax.numpy as jnp
import pytest
import workloads
from farrier._src import interchange

MB = 1 << 20


def estimate(function, *shapes):
    """The predicted temporary bytes of the lowered function, and what is live at the peak: {(shape, op): count}."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
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


@pytest.mark.parametrize("parts", [2, 3])
def test_a_part_is_stored_where_that_is_less_than_half_of_the_whole(parts):
    """Both halves of a gated product are read where the whole lies."""

    def step(x, w):
        h = x @ w
        kept, gate = jnp.split(h, [h.shape[1] // parts], axis=1)
        return jnp.sum(gate, axis=0), jnp.sort(kept * 2, axis=0), jnp.sum(jnp.sin(kept))

    _, live = estimate(step, ((2048, 1024), jnp.float32), ((1024, parts * 2048), jnp.float32))
    assert ("slice tensor<2048x2048xf32>" in live) == (parts > 2)


@pytest.mark.parametrize("computed", [True, False])
def test_weight_gradients_end_only_an_iteration_that_copies_a_slice(computed):
    """There is something to hide then, and products that are summed in parts read views of their own: what they wait for could
    be next when they stand, and that is put off until they do. What is computed with a slice reads it where it lies. (Measured:
    168 and 264 MB, 168 without XLA's latency-hiding scheduler.)
    """

    def loss(weights, x):
        x = x + x * jnp.sin(x) if computed else x
        for w in weights:
            x = x + jnp.sin(x @ w) @ w
        return jnp.mean(x**2)

    def step(x, *weights):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(weights, part)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), x)[0]

    temp, _ = estimate(step, ((4, 8192, 512), jnp.float32), *[((512, 512), jnp.float32)] * 4)
    assert temp == pytest.approx((168 if computed else 264) * MB, rel=0.05)


def test_what_is_fetched_ahead_is_there_beside_what_is_read():
    """A loop that carries a slice from the host and fetches the next one holds both until the first is read."""

    def step(x, stack):
        host = jax.device_put(stack, jax.memory.Space.Host)

        def fetch(i):
            piece = jax.lax.dynamic_index_in_dim(host, i, keepdims=False)
            return jax.device_put(piece, jax.memory.Space.Device)

        def body(carry, i):
            x, now = carry
            return (x @ now, fetch(i)), None

        return jax.lax.scan(body, (x, fetch(0)), jnp.arange(8))[0][0]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 1024), (8, 1024, 1024))]
    lowered = jax.jit(step).trace(*shapes).lower(lowering_platforms=("cuda",))
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
    assert 8 * MB <= json.loads(module.query("memory.estimate", "{}"))["temp"] < 10 * MB


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


def test_two_stacks_of_values_computed_alike_are_one():
    """As a derivative in a loop's body writes the same factor twice."""

    def step(x):
        def body(i, carry):
            x, a, b = carry
            y = jnp.tanh(x)
            a, b = (jax.lax.dynamic_update_index_in_dim(stack, (1 + y) * (1 - y), i, 0) for stack in (a, b))
            return y @ x, a, b

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
        y = jax.nn.silu(both) @ w
        z = (both * y) @ y
        return (a * y) @ z + (b * y) @ z if needed_later else z

    square = ((4096, 4096), jnp.float32)
    _, live = estimate(step, square, square, square)
    assert ("add tensor<4096x4096xf32>" in live) == (not needed_later)


def test_a_product_with_a_vector_fuses_what_it_reads():
    """XLA makes it a multiplication and a sum; a one-hot factor is never written."""

    def step(index, gate):
        hot = jax.nn.one_hot(index, 4096, dtype=jnp.bfloat16)  # [tokens, choices, 4096]
        return jnp.einsum("tkc,tk->tc", hot, gate).astype(jnp.float32).sum()

    temp, _ = estimate(step, ((2048, 2), jnp.int32), ((2048, 2), jnp.bfloat16))
    assert temp < 2048 * 2 * 4096 * 2


def test_what_one_kernel_reads_is_no_buffer():
    """GELU's derivative joins the gradient and the activation in several steps; one kernel takes them all."""

    def step(x, weights):
        def loss(x, weights):
            for w, v in weights:
                x = x + jax.nn.gelu(x @ w) @ v
            return jnp.sum(jnp.sin(x))

        return jax.grad(loss, argnums=(0, 1))(x, weights)

    shape = {"x": (4096, 512), "w": (512, 2048), "v": (2048, 512)}
    x, w, v = (jax.ShapeDtypeStruct(shape[name], jnp.float32) for name in "xwv")
    module = interchange.to_core(jax.jit(step).lower(x, [(w, v)] * 2).compiler_ir("stablehlo"))
    answer = json.loads(module.query("memory.estimate", json.dumps({"top": 64})))
    hidden = [entry for entry in answer["live"] if entry["bytes"] == 32 * MB]
    # Before and after the activation, of both layers.
    assert len(hidden) == 4 and answer["temp"] < 5 * 32 * MB


@pytest.mark.parametrize(
    ("activation", "stored"),
    [(jax.nn.relu, False), (jnp.tanh, False), (jax.nn.silu, True), (jnp.square, True)],
)
def test_a_product_computes_what_needs_one_operand(activation, stored):
    """The kernel of the next product reads what stands before the activation, where that is all it reads."""

    def step(x, w):
        h = x @ w
        return activation(h) @ w, jnp.sum(h, axis=0)

    temp, live = estimate(step, *[((2048, 2048), jnp.float32)] * 2)
    assert bool({"multiply tensor<2048x2048xf32>", "chlo.square tensor<2048x2048xf32>"} & set(live)) == stored
    assert (temp >= 32 * MB) == stored


@pytest.mark.parametrize(
    ("activation", "dtype", "stored"),
    [
        (jnp.tanh, jnp.bfloat16, True),
        (jnp.tanh, jnp.float32, False),
        (jax.nn.sigmoid, jnp.bfloat16, False),
        (jax.lax.erfc, jnp.float32, True),
    ],
)
@pytest.mark.parametrize("again", [True, False])
def test_what_is_dear_is_kept_for_whoever_reads_it_again(activation, dtype, stored, again):
    """In bf16 writing and reading a hyperbolic tangent takes less than computing it again, as XLA counts."""

    def step(x, w, v):
        def loss(w, v):
            h = x @ w
            part = activation(h)
            h = h * part if again else h * jax.lax.stop_gradient(h) + jax.lax.stop_gradient(part).sum()
            return jnp.sum(jnp.sin((h @ v).astype(jnp.float32)))

        return jax.grad(loss, argnums=(0, 1))(w, v)

    _, live = estimate(step, ((4096, 1024), dtype), *[((1024, 1024), dtype)] * 2)
    name = {"erfc": "chlo.erfc", "sigmoid": "logistic"}.get(activation.__name__, activation.__name__)
    assert any(value.startswith(f"{name} ") for value in live) == (stored and again)


@pytest.mark.parametrize("normed", [True, False])
def test_a_norm_makes_a_tangent_dear_in_any_type(normed):
    """Its derivative reads it in two more kernels."""

    def step(x, w, v):
        def loss(w, v):
            h = x @ w
            h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6) if normed else h
            return jnp.sum(jnp.sin(jax.nn.gelu(h) @ v))

        return jax.grad(loss, argnums=(0, 1))(w, v)

    _, live = estimate(step, *[(shape, jnp.float32) for shape in [(4096, 1024), (1024, 1024), (1024, 1024)]])
    assert any(value.startswith("tanh ") for value in live) == normed


def test_what_one_kernel_reads_through_a_pad_is_inside_it():
    """Logits that a tangent caps, without the last position's: its derivative joins the padded gradient and the tangent, and
    is written as bf16 beside both."""

    def step(x, w, labels):
        def loss(w):
            logits = 30.0 * jnp.tanh((x @ w).astype(jnp.float32) / 30.0)[:, :-1]
            found = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - found)

        return jax.grad(loss)(w)

    shapes = [((4, 1024, 256), jnp.bfloat16), ((256, 8192), jnp.bfloat16), ((4, 1023), jnp.int32)]
    temp, _ = estimate(step, *shapes)
    assert 2.4 < temp / (4 * 1024 * 8192 * 4) < 2.6


def test_a_product_of_which_a_part_is_read_is_one_of_the_part():
    """The padded gradient of all logits but the last position's is not written over them, and is made in one kernel of
    them and of what is scattered."""

    def step(x, w, labels):
        def loss(w):
            lp = jax.nn.log_softmax((x @ w).astype(jnp.float32)[:, :-1])
            return -jnp.mean(jnp.take_along_axis(lp, labels[..., None], axis=-1))

        return jax.grad(loss)(w)

    shapes = [((4, 1024, 256), jnp.bfloat16), ((256, 8192), jnp.bfloat16), ((4, 1023), jnp.int32)]
    temp, _ = estimate(step, *shapes)
    assert 1.95 < temp / (4 * 1024 * 8192 * 4) < 2.05


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_a_scatter_is_added_to_is_scattered_onto(smoothing):
    """The gradient of the normaliser is stored, and the logits are gone when it is cast. So it is where more is added, as that
    of smoothed labels.
    """

    def step(x, w, labels):
        def loss(w):
            logits = (x @ w)[:, :-1].astype(jnp.float32)
            norm = jax.nn.logsumexp(logits, axis=-1)
            found = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
            each = norm - (1 - smoothing) * found
            return jnp.mean(each - smoothing * logits.mean(-1) + 1e-4 * norm**2 if smoothing else each)

        return jax.grad(loss)(w)

    shapes = [((4, 1024, 256), jnp.bfloat16), ((256, 8192), jnp.bfloat16), ((4, 1023), jnp.int32)]
    temp, _ = estimate(step, *shapes)
    assert 1.45 < temp / (4 * 1024 * 8192 * 4) < 1.55


def test_small_is_what_is_small_beside_the_rest():
    """A program of a few MB has buffers, too."""

    def step(x, w):
        y = jax.nn.silu(x @ w)
        return (y @ w) @ y

    _, live = estimate(step, *[((512, 512), jnp.float32)] * 2)
    assert "multiply tensor<512x512xf32>" in live


def test_products_that_want_one_order_share_the_copy():
    """One head of keys: both products read the probabilities by position of the key first, so they are kept."""
    q, kv = (4, 512, 8, 64), (4, 512, 64)

    def step(q, k, v, o):
        def loss(q, k, v):
            scores = jnp.einsum("bthd,bsd->bhts", q, k)
            mixed = jnp.einsum("bhts,bsd->bthd", jax.nn.softmax(scores, axis=-1), v)
            return jnp.sum(jnp.square(mixed.reshape(*mixed.shape[:2], -1) @ o))

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    _, live = estimate(
        step, (q, jnp.float32), (kv, jnp.float32), (kv, jnp.float32), ((512, 512), jnp.float32)
    )
    assert "divide tensor<4x8x512x512xf32>" in live


@pytest.mark.parametrize(("hidden", "values"), [(1408, 3), (8192, 2)])
def test_nothing_is_written_over_a_part_of_one_product(hidden, values):
    """Small products of one operand are one, in one buffer; where they are apart what is made of both takes the place
    of one."""

    def step(x, gate, up, down):
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down

    rows, width = 4096, 512
    shapes = [(rows, width), (width, hidden), (width, hidden), (hidden, width)]
    temp, _ = estimate(step, *[(shape, jnp.bfloat16) for shape in shapes])
    assert round(temp / (rows * hidden * 2)) == values


@pytest.mark.parametrize("passing", [(), (0,), (0, 1)])
def test_a_part_of_one_product_that_passes_a_barrier_is_a_copy(passing):
    """Who reads it reads the copy. The whole is there as long as a part is read that passes none."""

    def step(x, gate, up, down):
        parts = [x @ gate, x @ up]
        h = (parts[0] * parts[1]) @ down
        if passing:
            *passed, h = jax.lax.optimization_barrier((*[parts[i] for i in passing], h))
            for i, part in zip(passing, passed, strict=True):
                parts[i] = part
        return (parts[0] * h.sum() + parts[1] * h.max()) @ down

    rows, width, hidden = 4096, 512, 1408
    shapes = [(rows, width), (width, hidden), (width, hidden), (hidden, width)]
    temp, _ = estimate(step, *[(shape, jnp.bfloat16) for shape in shapes])
    assert temp // (rows * hidden * 2) == {(): 3, (0,): 4, (0, 1): 5}[passing]


@pytest.mark.parametrize(
    ("turned", "transfers", "values"),
    [(False, False, 1), (False, True, 1), (True, False, 1), (True, True, 2)],
)
def test_beside_transfers_a_part_is_copied_for_a_barrier_as_late_as_can_be(turned, transfers, values):
    """Until then the whole product waits, unless a kernel that makes something of the same elements copies the part."""

    def step(x, sent, query, key, down, up):
        if transfers:
            sent = jax.device_put(sent * 2, jax.memory.Space.Host)
        q, k = x @ query, x @ key
        halves = jnp.split(k, 2, axis=1)
        h = jnp.tanh((q * (jnp.concatenate([-halves[1], halves[0]], axis=1) if turned else -k)) @ down)
        h = jnp.tanh(h @ up).sum(1)
        k, h = jax.lax.optimization_barrier((k, h))
        if transfers:
            sent = jax.device_put(sent, jax.memory.Space.Device)
        return (k * h[:, None]) @ down + sent

    rows, width, hidden = 4096, 512, 1408
    shapes = [
        (rows, width),
        (rows, width),
        (width, hidden),
        (width, hidden),
        (hidden, width),
        (width, 4 * hidden),
    ]
    temp, _ = estimate(step, *[(shape, jnp.bfloat16) for shape in shapes])
    assert temp // (rows * hidden * 2) == 4 + values


def test_a_part_that_a_kernel_reads_is_a_copy_beside_the_whole():
    """As the values of attention are, where rotated keys are made again from the whole product."""

    def step(x, key, value, down, up):
        k, v = x @ key, x @ value
        h = (
            jnp.tanh(jnp.concatenate([-k[:, hidden // 2 :], k[:, : hidden // 2]], axis=1) @ (down + 1))
            + v @ down
        )
        h = jnp.tanh(h @ up).sum(1)[:, None]
        return (k * h) @ down, v.T @ (x * h)

    rows, width, hidden = 4096, 512, 1408
    shapes = [(rows, width), (width, hidden), (width, hidden), (hidden, width), (width, 4 * hidden)]
    temp, _ = estimate(step, *[(shape, jnp.bfloat16) for shape in shapes])
    assert temp // (rows * hidden * 2) == 4 + 3


@pytest.mark.parametrize("donated", [True, False])
def test_a_donated_weight_is_copied_for_who_reads_it_after_its_gradient(donated):
    """Nothing orders the product that reads it before the update; of two of a size one copy is left."""
    weight, x = (
        jax.ShapeDtypeStruct((2048, 2048), jnp.float32),
        jax.ShapeDtypeStruct((256, 2048), jnp.float32),
    )

    def step(weights, x):
        def loss(weights):
            a, b, c = weights
            return jnp.sum(jax.nn.silu(jax.nn.silu(x @ a) @ b) @ c)

        return jax.tree.map(lambda w, g: w - g, weights, jax.grad(loss)(weights))

    def temp(donate):
        lowered = jax.jit(step, donate_argnums=donate).lower((weight,) * 3, x)
        module = interchange.to_core(lowered.compiler_ir("stablehlo"))
        return json.loads(module.query("memory.estimate", "{}"))["temp"]

    copied = temp(0 if donated else ()) - temp(())
    assert copied == (16 * MB if donated else 0)


@pytest.mark.parametrize("kernel", ["HWIO", "OHWI"])
def test_a_filter_is_copied_as_cudnn_reads_it(kernel):
    """Input features last; the gradient of the input reads the same copy."""
    shape = (3, 3, 512, 512) if kernel == "HWIO" else (512, 3, 3, 512)

    def loss(x, w):
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", kernel, "NHWC"))
        return jnp.sum(jnp.square(y))

    temp, _ = estimate(jax.grad(loss), ((1, 8, 8, 512), jnp.float32), (shape, jnp.float32))
    assert (temp >= 9 * MB) == (kernel == "HWIO")


@pytest.mark.parametrize("computed", [True, False])
def test_what_cudnn_does_not_pad_is_copied(computed):
    """Once, for the filter and its gradient; an elementwise value that nothing else stores is computed as it is padded."""

    def temp(padding):
        def loss(w, x):
            y = jnp.sin(x) if computed else x
            y = jax.lax.conv_general_dilated(
                y, w, (2, 2), padding, dimension_numbers=("NHWC", "OHWI", "NHWC")
            )
            return jnp.sum(jnp.square(y))

        return estimate(jax.grad(loss), ((64, 3, 3, 64), jnp.float32), ((16, 64, 64, 64), jnp.float32))[0]

    even = 0 if not computed else 16 * 64 * 64 * 64 * 4
    assert temp([(0, 1), (0, 1)]) - temp([(1, 1), (1, 1)]) == 16 * 65 * 65 * 64 * 4 - even


@pytest.mark.parametrize("read_elsewhere", [True, False])
def test_a_convolution_adds_what_it_is_added_to(read_elsewhere):
    """In cuDNN's kernel, where nothing reads the result without the sum."""

    def step(x, w):
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC"))
        both = x + y
        return jnp.sum(jnp.sin(both), axis=0), jnp.sum(y if read_elsewhere else both, axis=1)

    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 64, 64, 64), (64, 3, 3, 64)))
    module = interchange.to_core(jax.jit(step).lower(*arguments).compiler_ir("stablehlo"))
    rows = json.loads(module.query("memory.estimate", json.dumps({"elementwise": True})))["elementwise"]
    (stored,) = (row[5] for row in rows if row[1].endswith("/add"))
    assert stored == (not read_elsewhere)


@pytest.mark.parametrize("readers", [1, 8])
def test_a_gather_is_made_in_kernels_that_are_few_or_read_from_little(readers):
    """As messages along edges are: written where each is summed. What they are gathered from a cache has."""

    def step(x, index, weights):
        messages = x[index]
        return [jax.ops.segment_sum(w[:, None] * messages, index, x.shape[0]) for w in weights]

    arguments = ((4096, 128), jnp.float32), ((65536,), jnp.int32), ((readers, 65536), jnp.float32)
    _, live = estimate(step, *arguments)
    assert "gather tensor<65536x128xf32>" not in live


def test_a_convolution_is_not_written_over():
    """Its result comes with scratch memory: what is made of it lies beside it, as what is made of a product does not."""

    def temp(kind):
        def step(x, w):
            if kind == "product":
                y = x.reshape(-1, 64) @ w[:, 0, 0]
            else:
                y = jax.lax.conv_general_dilated(
                    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC")
                )
            z = y * jnp.sin(y)
            return jax.lax.sort(z.reshape(-1, 64), dimension=0)

        return estimate(step, ((16, 64, 64, 64), jnp.float32), ((64, 1, 1, 64), jnp.float32))[0]

    assert temp("convolution") == temp("product") + 16 * MB


@pytest.mark.parametrize(("rows", "parts"), [(16384, 16), (2048, 8), (512, 2), (256, 0)])
def test_a_product_of_few_tiles_is_summed_in_parts(rows, parts):
    """At least 256 tiles of 64 x 128, each over 256 and more."""
    temp, _ = estimate(lambda x, y: x.T @ y, ((rows, 512), jnp.float32), ((rows, 256), jnp.float32))
    assert temp == parts * 512 * 256 * 4


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [((768, 768), 4), ((1792, 768), 2), ((1280, 128), 16), ((5120, 64), 4), ((64, 5120), 4)],
)
def test_tiles_are_counted_whole(sizes, parts):
    temp, _ = estimate(lambda x, y: x.T @ y, *[((8192, size), jnp.float32) for size in sizes])
    assert temp == parts * math.prod(sizes) * 4


def test_the_order_of_what_is_summed_over_is_no_matter():
    def step(x, w):
        y = jnp.sin(x) * x
        return jax.lax.dot_general(y, w, (((2, 1), (1, 0)), ((), ())))

    temp, _ = estimate(step, ((2048, 32, 256), jnp.float32), ((32, 256, 2048), jnp.float32))
    assert temp == 2048 * 32 * 256 * 4


@pytest.mark.parametrize(
    ("shape", "axes", "stored"),
    [
        ((16, 4096, 128), 1, True),
        ((16, 4096, 32, 4), (1, 3), True),
        ((64, 4096, 128), 1, False),
        ((16, 8192, 128), 1, False),
        ((16, 4096, 128), 2, False),
    ],
)
def test_what_a_sum_of_few_columns_reads_another_kernel_makes(shape, axes, stored):
    """There are too few of them to occupy the GPU with more than reading."""

    def step(x, y):
        return jnp.sum(jnp.exp(x.astype(jnp.float32) * y.astype(jnp.float32)), axis=axes)

    temp, _ = estimate(step, *[(shape, jnp.bfloat16)] * 2)
    assert temp // (4 * math.prod(shape)) == stored


def test_what_is_widened_for_a_sum_of_few_columns_is_stored_narrow():
    def step(x, y):
        return jnp.sum(jnp.exp(x * y), axis=1)

    shape = (16, 4096, 128)
    temp, live = estimate(step, *[(shape, jnp.bfloat16)] * 2)
    assert "exponential tensor<16x4096x128xbf16>" in live and temp < 3 * math.prod(shape)


@pytest.mark.parametrize(
    ("shape", "dtype", "act", "norm", "stored"),
    [
        ((64, 256, 512), jnp.bfloat16, jax.nn.silu, True, True),
        ((64, 256, 1024), jnp.bfloat16, jax.nn.silu, True, False),
        ((32, 512, 512), jnp.bfloat16, jax.nn.silu, False, True),
        ((64, 256, 512), jnp.bfloat16, jax.nn.silu, False, False),
        ((64, 256, 256), jnp.bfloat16, jax.nn.relu, True, True),
        ((64, 256, 512), jnp.bfloat16, jax.nn.relu, True, False),
        ((32, 1024, 256), jnp.bfloat16, jax.nn.relu, False, False),
        ((32, 1024, 256), jnp.float32, jax.nn.silu, True, True),
        ((32, 512, 512), jnp.float32, jax.nn.silu, True, False),
    ],
)
def test_what_two_sums_of_columns_and_a_product_read_is_stored(shape, dtype, act, norm, stored):
    """As where channels are weighed by what their means give; more columns the more it takes to compute."""

    def step(w, g, x):
        h = x @ w
        if norm:
            wide = h.astype(jnp.float32)
            h = ((wide - wide.mean((0, 1))) * jax.lax.rsqrt(wide.var((0, 1)) + 1e-3)).astype(dtype)
        h = act(h)
        h = h * jax.nn.sigmoid(h.mean(1) @ g)[:, None]
        return jnp.sum((h @ w).astype(jnp.float32) ** 2)

    square = (shape[-1], shape[-1])
    _, live = estimate(jax.grad(step, argnums=(0, 1)), (square, dtype), (square, dtype), (shape, dtype))
    of_shape = f"tensor<{'x'.join(map(str, shape))}x"
    assert (
        sum(value.startswith((f"multiply {of_shape}", f"maximum {of_shape}")) for value in live) == 1 + stored
    )


def test_what_shifted_values_make_in_one_kernel_is_not_stored():
    """As a filter over time makes of slices, and a level of an associative scan for the next."""

    def step(w, v, x):
        h, g = x @ w, x @ v
        return jnp.sum(jnp.exp(h[:, 1:] * g[:, :-1]), 1), jnp.sum(h, 0), jnp.sum(g, 0)

    temp, _ = estimate(step, *[((1024, 4096), jnp.float32)] * 2, ((4096, 1024), jnp.float32))
    assert temp == 2 * 4096 * 4096 * 4


@pytest.mark.parametrize("kept", [False, True])
def test_a_part_of_what_is_kept_whole_is_not_stored(kept):
    def step(w, x):
        h = x @ w
        first = () if kept else jnp.sum(h, 0)
        part = h[:, :1024]
        sums = jnp.sum(jnp.exp(part), 1), jnp.sum(part * part, 0)
        return first, sums, jnp.sum(h, 0) if kept else ()

    _, live = estimate(step, ((1024, 4096), jnp.float32), ((4096, 1024), jnp.float32))
    assert ("slice tensor<4096x1024xf32>" in live) != kept


def test_a_product_that_sums_nothing_is_elementwise():
    """As the gradient of a layer with one output: written nowhere but where it is read."""

    def step(x, w, y):
        h = x @ w.T  # [8192, 1] and [2048, 1]
        return jnp.sum(h * y, axis=0)

    temp, live = estimate(
        step, *[((size, 1), jnp.float32) for size in (8192, 2048)], ((8192, 2048), jnp.float32)
    )
    assert "dot_general tensor<8192x2048xf32>" not in live and temp < MB


def test_both_gradients_of_a_product_with_itself_are_one():
    """As pairs of features are multiplied: the sum of the two is made where it is read, of the whole."""

    def step(z, at):
        gradient = jax.grad(lambda z: jnp.sum(jnp.sin(jnp.einsum("bid,bjd->bij", z, z))))(z)
        table = jnp.zeros((1 << 18, 64)).at[at].add(gradient[:, 1:])
        return jnp.sum(jnp.sin(table), axis=0), jnp.sum(gradient[:, 0], axis=0)

    _, live = estimate(step, ((4096, 17, 64), jnp.float32), ((4096, 16), jnp.int32))
    assert live.count("dot_general tensor<4096x17x64xf32>") == 2
    assert not [value for value in live if value.startswith(("add", "slice"))]


@pytest.mark.parametrize(("columns", "merged"), [(5888, True), (6016, False)])
def test_products_of_one_operand_are_one_up_to_a_size(columns, merged):
    """XLA makes one of two where either has at most 64 MiB beside what they share: its whole waits for the last part."""

    def step(x, w, v):
        a = jnp.sin(x @ w)
        square = a.T @ a
        return jnp.cos(x @ v) @ square[:, :64]

    weight = ((1536, columns), jnp.bfloat16)
    _, live = estimate(step, ((4096, 1536), jnp.bfloat16), weight, weight)
    assert (live.count(f"dot_general tensor<4096x{columns}xbf16>") == 2) == merged


@pytest.mark.parametrize(("columns", "merged"), [(51, False), (52, True)])
def test_products_of_unlike_sizes_are_not_one(columns, merged):
    """Up to 20 times: where they are one, what is kept of the narrow one keeps the wide one."""

    def step(x, w, v):
        narrow = x @ v
        later = x @ (jnp.sin(x @ w).T @ x)
        return jnp.cos(narrow).T @ jnp.sin(later)

    _, live = estimate(
        step, ((8192, 1024), jnp.float32), ((1024, 1024), jnp.float32), ((1024, columns), jnp.float32)
    )
    assert (live.count("dot_general tensor<8192x1024xf32>") == 2) == merged


@pytest.mark.parametrize(("bits", "kept"), [(23, "dot_general"), (10, "reduce_precision")])
def test_rounding_that_does_nothing_is_done_in_the_product(bits, kept):
    """As `jax.checkpoint` writes for what a policy saves; to less it is another value."""

    def step(x, w):
        product = jax.lax.reduce_precision(x @ w, exponent_bits=8, mantissa_bits=bits)
        early = jnp.sin(product) @ w
        product, early = jax.lax.optimization_barrier((product, early))
        return jnp.cos(product) @ early

    _, live = estimate(step, ((2048, 2048), jnp.float32), ((2048, 2048), jnp.float32))
    assert f"{kept} tensor<2048x2048xf32>" in live
    assert ("reduce_precision tensor<2048x2048xf32>" in live) == (kept == "reduce_precision")


def behind_a_barrier(function):
    """`function` of something, whose result a product reads as it is."""
    apart = jax.lax.optimization_barrier
    return lambda w, *given: apart(jnp.sin(apart(function(w, *given)))).reshape(-1, w.shape[1]) @ w.T


def scattered(w, at, to):
    rows = jnp.arange(len(at))
    return jnp.zeros((len(at), w.shape[1])).at[rows, at].add(to)


def stacked(w, x):
    return jax.lax.scan(lambda x, _: (x * 1.5, jnp.tanh(x @ w)), x, None, length=4)[1]


@pytest.mark.parametrize(
    ("made", "buffers", "shapes"),
    [
        (lambda w, x: x @ w, 1, [((8192, 256), jnp.float32)]),
        (lambda w, x: x @ w, 2, [((4, 2048, 256), jnp.float32)]),
        (lambda w, x: jnp.tanh(x @ w), 2, [((4, 2048, 256), jnp.float32)]),
        (scattered, 2, [((8192,), jnp.int32), ((8192,), jnp.float32)]),
        (stacked, 2, [((2048, 256), jnp.float32)]),
        (
            lambda w, x, y: jax.lax.dynamic_update_slice(jax.lax.optimization_barrier(x @ w), y, (5, 5)),
            2,
            [((8192, 256), jnp.float32), ((8, 8), jnp.float32)],
        ),
    ],
    ids=["rows", "rows of rows", "elementwise of those", "scattered", "stacked", "updated"],
)
def test_what_is_written_over(made, buffers, shapes):
    """As XLA does, compiled for an H100: 1.00 and 2.00 of the value that is read."""
    temp, _ = estimate(behind_a_barrier(made), ((256, 8192), jnp.float32), *shapes)
    assert round(temp / (8192 * 8192 * 4)) == buffers


def test_products_that_follow_each_other_are_not_one():
    """Layers of the same weights: each result is gone when the next layer has read it."""

    def step(x, w):
        for _ in range(4):
            x = jax.nn.silu(x @ w)
        return x

    temp, _ = estimate(step, ((2048, 2048), jnp.float32), ((2048, 2048), jnp.float32))
    assert temp <= 2 * 16 * MB


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


def planned(module, share, tmp_path, **asked):
    """The plan for a share of what the program is estimated to need, and the program rewritten by it."""
    temp = json.loads(module.query("memory.estimate", "{}"))["temp"]
    plan = json.loads(module.query("remat.plan", json.dumps({"budget": int(share * temp), **asked})))
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


@pytest.mark.parametrize("share", [0.9, 0.7, 0.6])
def test_a_plan_of_small_values_says_no_less_than_the_estimate(share, tmp_path):
    """Its segments count what the estimate calls small, and miss what kernels read of values computed again."""
    plan, rewritten = planned(half_precision_step(), share, tmp_path, small_bytes=1 << 20)
    assert plan["predicted"]["after"] >= json.loads(rewritten.query("memory.estimate", "{}"))["temp"]


@pytest.mark.parametrize("share", [0.7, 0.6])
def test_a_scans_plan_counts_gradients_that_are_finished_early(share, tmp_path):
    """As the rewriting has it where XLA, which puts them off in a loop's body, would raise the peak."""
    built = workloads.build("llm-1b-scan", farrier.Target("h100"), layers=2, attention="naive")
    plan, rewritten = planned(interchange.to_core(built.lower().compiler_ir("stablehlo")), share, tmp_path)
    assert plan["loops"]
    assert (
        plan["predicted"]["after"]
        == json.loads(rewritten.query("memory.estimate", '{"planned": true}'))["temp"]
    )


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
