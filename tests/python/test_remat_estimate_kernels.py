"""Kernels that the estimate takes XLA:GPU to make, against what a compile of the same program needs."""

from __future__ import annotations

import json

import farrier
import jax
import jax.numpy as jnp
import pytest
from farrier._src import interchange, oracle

TARGET = farrier.Target("h100", topology="1x1x1")


def judged(function, *shapes):
    """The estimated temporary bytes over the measured ones, and what the estimate has at its peak, as "operation type"."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=TARGET.sharding()) for shape, dtype in shapes]
    program = jax.jit(function).lower(*arguments).compiler_ir("stablehlo")
    answer = json.loads(interchange.to_core(program).query("memory.estimate", json.dumps({"top": 64})))
    live = [entry["key"].split("|")[-3:-1] for entry in answer["live"]]
    measured = oracle.measure(program, TARGET).temp_bytes
    return answer["temp"] / measured, [f"{kind.split('.')[1].split(':')[0]} {shape}" for kind, shape in live]


def attention_gradient(scale, grouped=False):
    """Of causal attention written out, and of a wide product behind it, at which the peak is."""

    def loss(q, k, v, w):
        scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k) if grouped else jnp.einsum("bqhgd,bkhd->bhqk", q, k)
        scores = scores.astype(jnp.float32) * scale if scale else scores.astype(jnp.float32)
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        out = jnp.einsum("bhgqk,bkhd->bqhgd" if grouped else "bhqk,bkhd->bqhd", weights, v)
        return jnp.sum(jnp.tanh(out @ w).astype(jnp.float32))

    return jax.grad(loss, argnums=(0, 1, 2))


def attention_shapes(length, groups=1):
    kv = ((4, length, 8 // groups, 64), jnp.bfloat16)
    return ((4, length, 8 // groups, groups, 64), jnp.bfloat16), kv, kv, ((64, 4096), jnp.bfloat16)


@pytest.mark.parametrize(
    ("length", "scale", "stored"), [(640, 1, True), (768, 0.1, True), (768, None, False), (896, 0.1, False)]
)
def test_what_of_a_softmax_is_stored_follows_from_its_rows(length, scale, stored):
    """Rows of 640 fill five eighths of a tile of 1,024: XLA writes the differences from each maximum in f32, and the scores
    in bf16 are gone. Rows of 896 are computed again from the scores, and what is only masked from 768 on.
    """
    off, live = judged(attention_gradient(scale), *attention_shapes(length))
    scores = f"tensor<4x8x{length}x{length}x"
    assert (f"subtract {scores}f32>" in live, f"dot_general {scores}bf16>" in live) == (stored, not stored)
    assert off == pytest.approx(1, abs=0.04)


def test_differences_in_another_order_are_not_stored():
    """With grouped heads the scores lie in the order of the product, over which no kernel of rows goes."""
    off, live = judged(attention_gradient(0.1, grouped=True), *attention_shapes(640, groups=2))
    assert not [value for value in live if value.startswith("subtract")]
    assert off == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("queries", [2, 3, 7])
def test_copies_in_two_orders_are_written_together_where_there_are_no_tiles(queries):
    """The forward and the backward product want the probabilities in two orders. With three or seven queries to a key XLA
    transposes in loops, not in tiles, and one kernel writes both: the second waits from the forward part on, while the wide
    product is there.
    """
    kv = ((4, 512, 4, 64), jnp.bfloat16)
    shapes = ((4, 512, 4, queries, 64), jnp.bfloat16), kv, kv, ((64, 8192), jnp.bfloat16)
    off, _ = judged(attention_gradient(0.1, grouped=True), *shapes)
    assert off == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("rows", "stored"), [(16384, True), (2048, False)])
def test_of_the_numbers_of_scattered_rows_a_comparison_is_left(rows, stored):
    """Rows may be written to one place. JAX scatters their numbers, too, and compares what stands there with each, for what
    is written and again for its gradient: of big ones XLA stores the comparison, once, and the numbers are gone.
    """

    def loss(x, w, up, at):
        written = jnp.zeros_like(x).at[at].set(x @ w, mode="drop")
        return jnp.sum(jnp.tanh(jnp.tanh(written @ w) @ up).astype(jnp.float32))

    shapes = ((rows, 1024), jnp.bfloat16), ((1024, 1024), jnp.bfloat16), ((1024, 16384), jnp.bfloat16)
    off, live = judged(jax.grad(loss), *shapes, ((rows,), jnp.int32))
    assert (f"compare tensor<{rows}x1024xi1>" in live, f"scatter tensor<{rows}x1024xui32>" in live) == (
        stored,
        not stored,
    )
    assert off == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_softmax_in_tiles_is_written_beside_what_it_reads(grouped):
    """Not where rows lie apart, as with grouped heads, whose scores lie as the product gives them."""

    def attend(q, k, v):
        scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k) if grouped else jnp.einsum("bqd,bkd->bqk", q, k)
        p = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(q.dtype)
        return jnp.einsum("bhgqk,bkhd->bqhgd" if grouped else "bqk,bkd->bqd", p, v)

    kv = (4, 1024, 2, 64) if grouped else (16, 1024, 64)
    q = (4, 1024, 2, 2, 64) if grouped else kv
    off, live = judged(attend, *[(shape, jnp.bfloat16) for shape in (q, kv, kv)])
    assert ([value.split()[0] for value in live].count("convert") == 1) or grouped
    assert off == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("classes", "stored"), [(4096, True), (32000, False)])
@pytest.mark.parametrize("looked_up", [False, True])
def test_a_logarithmic_softmax_in_tiles_is_stored_to_be_looked_up(classes, stored, looked_up):
    """Its gradient alone is made in one kernel, beside the logits."""

    def loss(x, w, labels):
        logs = jax.nn.log_softmax((x @ w).astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], 1))

    shapes = ((4096, 256), jnp.bfloat16), ((256, classes), jnp.bfloat16), ((4096,), jnp.int32)
    off, live = judged((jax.value_and_grad if looked_up else jax.grad)(loss), *shapes)
    assert (f"subtract tensor<4096x{classes}xf32>" in live) == (stored and looked_up)
    assert off == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("summed", [False, True])
def test_a_sum_over_rows_and_another_kernel_of_what_it_reads_are_one(summed):
    """Elementwise kernels that read one product are not: the first has run when the wide product does."""

    def step(x, w, v, up):
        h = x @ w
        early = jnp.cos(h) * v
        wide = jnp.sum(jnp.sin(x @ up))
        late = h * (v + wide)
        return wide, jnp.sum(jnp.sort(early, 0), 0), jnp.sum(late if summed else jnp.sort(late, 0), 0)

    shapes = *[((4096, 4096), jnp.float32)] * 3, ((4096, 8192), jnp.float32)
    off, live = judged(step, *shapes)
    assert ("multiply tensor<4096x4096xf32>" in live) == (not summed)
    assert off == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("before", "window", "rows", "within"),
    [
        (lambda h: h, 2, 16, 0.12),
        (jax.nn.relu, 2, 16, 0.01),
        (jax.nn.relu, 3, 16, 0.02),
        (lambda h: jax.nn.relu(h * 1.5 + 0.1), 3, 16, 0.02),
        (lambda h: jax.nn.relu(h * 1.5 + 0.1), 3, 64, 0.07),
    ],
)
def test_gradients_of_maxima_take_indices_and_zeros(before, window, rows, within):
    """Of each window's maximum XLA writes an index for each dimension, and adds gradients onto zeros, which a rectifier of the
    same shape makes in the forward part. Maxima of windows that overlap store what takes arithmetic, if that is large.
    """

    def loss(w, u, x):
        h = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        ones, strides = (1, window, window, 1), (1, 2, 2, 1)
        h = jax.lax.reduce_window(before(h), -jnp.inf, jax.lax.max, ones, strides, "SAME")
        return jnp.sum(jnp.sin(h.reshape(rows, -1) @ u))

    shapes = (3, 3, 4, 32), (32 * 32 * 32, 64), (rows, 64, 64, 4)
    off, live = judged(jax.grad(loss), *[(shape, jnp.float32) for shape in shapes])
    assert (f"maximum tensor<{rows}x64x64x32xf32>" in live) == (rows == 64)
    assert off == pytest.approx(1, abs=within)


@pytest.mark.parametrize(("filter_size", "padding"), [(2, "SAME"), (4, "SAME"), (5, "VALID")])
def test_transposed_convolutions_read_zeros_between_elements(filter_size, padding):
    """Their filter's gradient does not, in two dimensions."""

    def loss(w, up, x):
        h = jnp.tanh(
            jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        h = jax.lax.conv_transpose(h, up, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(jnp.sin(h).astype(jnp.float32))

    shapes = (3, 3, 4, 64), (filter_size, filter_size, 64, 32), (16, 64, 64, 4)
    off, _ = judged(jax.grad(loss, argnums=(0, 1)), *[(shape, jnp.bfloat16) for shape in shapes])
    assert off == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("centred", [False, True])
def test_a_norms_gradients_are_one_kernel_or_kept_in_tiles(centred):
    """By the root of the mean of squares, the gradients of what is normalised and of the scale are one kernel's, written over
    nothing. A layer norm's are made in tiles: what is summed over rows for the scale is stored, in f32.
    """

    def loss(w, scale, shift, x):
        h = (x @ w).astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True) if centred else h
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-5) * scale + shift
        return jnp.sum(jnp.sin(h.astype(x.dtype)).astype(jnp.float32))

    shapes = (
        ((512, 1024), jnp.bfloat16),
        ((1024,), jnp.float32),
        ((1024,), jnp.float32),
        ((8192, 512), jnp.bfloat16),
    )
    off, live = judged(jax.grad(loss, argnums=(0, 1, 2)), *shapes)
    assert ("multiply tensor<8192x1024xf32>" if centred else "convert tensor<8192x1024xbf16>") in live
    assert off == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.gelu])
def test_what_transposed_convolutions_read_is_computed_as_it_is_spread(activation):
    """And again as it is transposed for the filter's gradient, in the kernel of its derivative: it is not stored. (XLA's heap has
    holes of 8 %.)
    """

    def loss(first, weights, x):
        x = x @ first
        for w in weights:
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_transpose(activation(x), w, (2, 2), "SAME", dimension_numbers=dims)
        return jnp.sum(jnp.sin(x))

    shapes = (128, 128), (4, 4, 128, 64), (4, 4, 64, 64), (4, 4, 64, 8), (16, 32, 32, 128)
    off, live = judged(
        jax.grad(lambda first, *given: loss(first, given[:-1], given[-1]), argnums=(0, 1, 2, 3)),
        *[(shape, jnp.float32) for shape in shapes],
    )
    assert not [value for value in live if value.startswith(("maximum", "multiply", "tanh"))]
    assert off == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("order", ["NHWC", "NCHW"])
def test_norms_behind_convolutions_sum_as_features_lie(order):
    """Innermost, wherever the program has them: sums over an image are over rows, and what is summed is stored."""
    features, image = order.index("C"), tuple(order.index(axis) for axis in "HW")
    filters = "HWIO" if order == "NHWC" else "OIHW"

    def loss(weights, x):
        for w in weights:
            h = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=(order, filters, order))
            h = (h - h.mean(image, keepdims=True)) * jax.lax.rsqrt(h.var(image, keepdims=True) + 1e-5)
            x = x + jax.nn.silu(h) if x.shape == h.shape else jax.nn.silu(h)
        return jnp.sum(jnp.square(x))

    def shape(inputs, outputs):
        return (3, 3, inputs, outputs) if order == "NHWC" else (outputs, inputs, 3, 3)

    image_shape = [8, 64, 64]
    image_shape.insert(features, 4)
    shapes = *(shape(inputs, 64) for inputs in (4, 64, 64, 64)), tuple(image_shape)
    off, live = judged(
        jax.grad(lambda *given: loss(given[:-1], given[-1]), argnums=(0, 1, 2, 3)),
        *[(each, jnp.float32) for each in shapes],
    )
    assert any(value.startswith("multiply tensor") for value in live)
    assert off == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("second", [(4, 512), (4, 256)])
def test_random_masks_of_one_shape_are_made_together(second):
    """A random generator counts the elements of a mask. XLA computes the coordinate of an axis once, for all masks of a shape,
    and gives kernels that read one value, and write as many elements, to one kernel: the second masked value is there while
    the first is read.
    """

    def step(x, wide):
        keys, shapes = jax.random.split(jax.random.key(0)), ((4, 512, 2048), (*second, 2048))

        def masked(i):
            return (jnp.sin(x[i]) * jax.random.bernoulli(keys[i], 0.9, shapes[i])).reshape(-1, 2048)

        first = jnp.sum(jnp.sin(masked(0) @ wide))
        return jnp.sum(jnp.sin(masked(1) @ (wide[:, :64] + first)))

    shapes = ((2, 2048), jnp.float32), ((2048, 8192), jnp.float32)
    off, live = judged(step, *shapes)
    assert len([value for value in live if value.startswith("multiply")]) == (2 if second == (4, 512) else 1)
    assert off == pytest.approx(1, abs=0.02)


def test_a_random_mask_is_stored_for_whoever_reads_it_again():
    """To draw it again is dear; in place of the random numbers XLA stores which of them are less."""

    def loss(x, w, up, seed):
        keep = jax.random.bernoulli(jax.random.key(seed), 0.9, (4, 1024, 2048))
        h = jnp.where(keep, jax.nn.gelu((jnp.tanh(x) @ w).reshape(keep.shape)), 0)
        return jnp.sum(jnp.tanh(h.reshape(4096, 2048) @ up).astype(jnp.float32))

    shapes = ((4096, 256), jnp.bfloat16), ((256, 2048), jnp.bfloat16), ((2048, 1024), jnp.bfloat16)
    off, live = judged(jax.grad(loss, argnums=(0, 1)), *shapes, ((), jnp.int32))
    assert "compare tensor<4x1024x2048xi1>" in live
    assert off == pytest.approx(1, abs=0.02)
