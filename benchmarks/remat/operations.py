"""How far the estimator is from XLA:GPU on one kind of operation: small networks of two products with one thing between
them, and their gradients. A network holds a few buffers of one size, so that one too many or too few is 10 to 30 %: what is
far off here shows what the estimate has no rule for.

    python benchmarks/remat/operations.py                       # all, deviceless, about four minutes
    python benchmarks/remat/operations.py --only take_along_axis pool_3
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import statistics

import farrier
import jax
import jax.numpy as jnp
from farrier._src import interchange, oracle
from jax import lax
from rich.console import Console
from rich.table import Table

F32, BF16 = jnp.float32, jnp.bfloat16
ROWS, WIDTH = 8192, 1024
PICTURES = (8, 32, 32, WIDTH)  # the same elements
TARGET = farrier.Target("h100", topology="1x1x1")


def _halves(h):
    return h[:, : WIDTH // 2], h[:, WIDTH // 2 :]


def _scanned(combine, *given):
    return lax.associative_scan(combine, given)[-1]


def _normed(h, shape, over):
    x = h.reshape(shape)
    x = (x - x.mean(over, keepdims=True)) * lax.rsqrt(x.var(over, keepdims=True) + 1e-5)
    return x.reshape(h.shape)


def _filtered(h, w, shape, order, groups=1, strides=1):
    x = h.reshape(shape)
    spatial = (strides,) * (len(shape) - 2)
    y = lax.conv_general_dilated(x, w, spatial, "SAME", dimension_numbers=order, feature_group_count=groups)
    return y.reshape(h.shape)


def _complex(h):
    real, imaginary = _halves(h)
    turned = (real + 1j * imaginary) * jnp.exp(1j * real)
    return jnp.concatenate([turned.real, turned.imag], 1)


# What stands between the products, of f32[8192, 1024] and what else is given: (function, shapes and types of the rest).
BETWEEN = {
    "cumsum": (lambda h: jnp.cumsum(h, 0),),
    "cumprod": (lambda h: jnp.cumprod(1 + 0.01 * h, 0),),
    "cummax": (lambda h: lax.cummax(h, axis=0),),
    "cumlogsumexp": (lambda h: lax.cumlogsumexp(h, axis=0),),
    "recurrence": (lambda h: _scanned(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), jax.nn.sigmoid(h), h),),
    "sort_rows": (lambda h: jnp.sort(h, 0),),
    "sort_columns": (lambda h: jnp.sort(h, 1),),
    "order_of_rows": (lambda h: h[jnp.argsort(h[:, 0])],),
    "top_k": (lambda h: jnp.concatenate([lax.top_k(h, WIDTH // 2)[0], h[:, : WIDTH // 2]], 1),),
    "median": (lambda h: h - jnp.median(h, 0),),
    "fft": (lambda h: jnp.fft.irfft(jnp.fft.rfft(h, axis=0) * 0.5, axis=0, n=ROWS),),
    "fft_2d": (lambda h: jnp.fft.fft2(h.reshape(8, 1024, WIDTH)).real.reshape(h.shape),),
    "cholesky": (lambda h: h @ jnp.linalg.cholesky(h.T @ h / ROWS + jnp.eye(WIDTH)),),
    "triangular_solve": (
        lambda h: (
            jax.scipy.linalg.solve_triangular(jnp.tril(h[:WIDTH]) + 10 * jnp.eye(WIDTH), h.T, lower=True).T
        ),
    ),
    "qr": (lambda h: h @ jnp.linalg.qr(h[:WIDTH])[0],),
    "eigenvalues": (lambda h: h * jnp.linalg.eigh(h[:256, :256] + h[:256, :256].T)[0].sum(),),
    "log_sum_exp": (lambda h: h - jax.nn.logsumexp(h, 1, keepdims=True),),
    "softmax_columns": (lambda h: jax.nn.softmax(h, 0),),
    "gumbel_softmax": (lambda h: jax.nn.softmax(h + jax.random.gumbel(jax.random.key(0), h.shape)),),
    "norm_rows": (lambda h: h / jnp.linalg.norm(h, axis=1, keepdims=True),),
    "norm_columns": (lambda h: _normed(h, h.shape, 0),),
    "batch_norm": (lambda h: _normed(h, PICTURES, (0, 1, 2)),),
    "group_norm": (lambda h: _normed(h, (8, 32, 32, 32, WIDTH // 32), (1, 2, 4)),),
    "instance_norm": (lambda h: _normed(h, PICTURES, (1, 2)),),
    "one_hot": (lambda h, t: h + jax.nn.one_hot(t, WIDTH), ((ROWS,), jnp.int32)),
    "gather_rows": (lambda h, t: h[t], ((ROWS,), jnp.int32)),
    "take_along_axis": (lambda h, t: jnp.take_along_axis(h, t, 1), ((ROWS, WIDTH), jnp.int32)),
    "segment_sum": (lambda h, t: jax.ops.segment_sum(h, t, ROWS), ((ROWS,), jnp.int32)),
    "segment_max": (lambda h, t: jax.ops.segment_max(h, t, ROWS), ((ROWS,), jnp.int32)),
    "scatter_set": (lambda h, t: jnp.zeros_like(h).at[t].set(h), ((ROWS,), jnp.int32)),
    "permutation": (lambda h: h[jax.random.permutation(jax.random.key(0), ROWS)],),
    "roll": (lambda h: jnp.roll(h, 1, 0) + jnp.roll(h, -1, 1),),
    "reverse": (lambda h: h[::-1] * h,),
    "shift": (lambda h: jnp.pad(h, ((3, 0), (0, 0)))[:ROWS] * h,),
    "dynamic_slice": (
        lambda h, i: lax.dynamic_slice(h, (i, 0), (ROWS // 2, WIDTH)).repeat(2, 0),
        ((), jnp.int32),
    ),
    "dynamic_update_slice": (
        lambda h, i: lax.dynamic_update_slice(h, h[: ROWS // 2] * 2, (i, 0)),
        ((), jnp.int32),
    ),
    "select": (lambda h: jnp.where(h > 0, h, jnp.exp(h) - 1),),
    "clip": (lambda h: jnp.clip(h, -0.5, 0.5),),
    "max_rows": (lambda h: h * h.max(0),),
    "min_columns": (lambda h: h * h.min(1, keepdims=True),),
    "product_columns": (lambda h: h * jnp.prod(1 + 0.001 * h, 1, keepdims=True),),
    "arg_max": (lambda h: h * jnp.argmax(h, 1)[:, None],),
    "cond": (lambda h, i: lax.cond(i > 0, jnp.sin, jnp.cos, h), ((), jnp.int32)),
    "map": (
        lambda h: lax.map(lambda a: jnp.tanh(a @ jnp.ones((WIDTH, WIDTH))), h.reshape(8, -1, WIDTH)).reshape(
            h.shape
        ),
    ),
    "fori_loop": (lambda h: lax.fori_loop(0, 4, lambda i, c: jnp.sin(c) * 1.1, h),),
    "dropout": (lambda h: h * jax.random.bernoulli(jax.random.key(0), 0.9, h.shape),),
    "noise": (lambda h: h + jax.random.normal(jax.random.key(0), h.shape),),
    "complex": (_complex,),
    "int8": (lambda h: jnp.clip(jnp.round(h * 127), -127, 127).astype(jnp.int8).astype(F32) / 127 + h,),
    "float8": (lambda h: h.astype(jnp.float8_e4m3fn).astype(F32),),
    "straight_through": (lambda h: h + lax.stop_gradient(jnp.sign(h) - h),),
    "resize_linear": (
        lambda h: jax.image.resize(h.reshape(PICTURES), (8, 64, 64, WIDTH), "bilinear")[:, :32, :32].reshape(
            h.shape
        ),
    ),
    "resize_nearest": (
        lambda h: jax.image.resize(h.reshape(PICTURES), (8, 64, 64, WIDTH), "nearest")[:, ::2, ::2].reshape(
            h.shape
        ),
    ),
    "depthwise": (
        lambda h: _filtered(h, jnp.ones((3, 3, 1, WIDTH)), PICTURES, ("NHWC", "HWIO", "NHWC"), WIDTH),
    ),
    "convolution_1d": (
        lambda h, w: _filtered(h, w, (8, 1024, WIDTH), ("NHC", "HIO", "NHC")),
        ((3, WIDTH, WIDTH), F32),
    ),
    "convolution_groups": (
        lambda h, w: _filtered(h, w, PICTURES, ("NHWC", "HWIO", "NHWC"), 8),
        ((3, 3, WIDTH // 8, WIDTH), F32),
    ),
    "convolution_features_first": (
        lambda h, w: _filtered(h, w, (8, WIDTH, 32, 32), ("NCHW", "OIHW", "NCHW")),
        ((WIDTH, WIDTH, 3, 3), F32),
    ),
    "ragged_product": (
        lambda h, sizes, w: lax.ragged_dot(h, w, sizes),
        ((8,), jnp.int32),
        ((8, WIDTH, WIDTH), F32),
    ),
    "erf_inverse": (lambda h: jax.scipy.special.erfinv(h * 0.9),),
    "log_gamma": (lambda h: jax.scipy.special.gammaln(2 + h),),
    "bin_count": (lambda h: h * jnp.bincount((jnp.abs(h[:, 0]) * 100).astype(jnp.int32), length=WIDTH),),
}


def _between(operation, rest, forwards=False):
    def loss(first, second, x, *given):
        return jnp.sum(jnp.sin(operation(jnp.tanh(x @ first), *given) @ second))

    shapes = [((WIDTH, WIDTH), F32), ((WIDTH, WIDTH), F32), ((ROWS, WIDTH), F32), *rest]
    asked = (0, 1, *(3 + i for i, (_, dtype) in enumerate(rest) if dtype == F32))
    if forwards:
        return lambda *given: jax.jvp(loss, given, given), shapes
    return jax.grad(loss, argnums=asked), shapes


def _classes(kind, classes, dtype):
    def loss(w, u, x, labels):
        logits = (jnp.tanh(x @ w) @ u).astype(F32)
        if kind == "named":
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()
        if kind == "hot":
            return -(jax.nn.one_hot(labels, classes) * jax.nn.log_softmax(logits)).sum(-1).mean()
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]).mean()

    rows = (1 << 26) // classes
    shapes = [((512, 512), dtype), ((512, classes), dtype), ((rows, 512), dtype), ((rows,), jnp.int32)]
    return jax.value_and_grad(loss, argnums=(0, 1)), shapes


def _pooled(before, window, dtype):
    def loss(first, second, x):
        for w in (first, second):
            x = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            ones, strides = (1, window, window, 1), (1, 2, 2, 1)
            x = lax.reduce_window(before(x), -jnp.inf, lax.max, ones, strides, "SAME")
        return jnp.sum(jnp.square(x.astype(F32)))

    shapes = [((3, 3, 4, 32), dtype), ((3, 3, 32, 64), dtype), ((64, 64, 64, 4), dtype)]
    return jax.grad(loss, argnums=(0, 1)), shapes


def _spread(dims, size, padding, dtype):
    over = "DHW"[3 - dims :]
    order = f"N{over}C", f"{over}IO", f"N{over}C"
    side, rows = (64, 32) if dims == 2 else (32, 4)

    def loss(first, second, x):
        h = jnp.tanh(lax.conv_general_dilated(x, first, (1,) * dims, "SAME", dimension_numbers=order))
        y = lax.conv_transpose(h, second, (2,) * dims, padding, dimension_numbers=order)
        return jnp.sum(jnp.sin(y).astype(F32))

    shapes = [
        ((3,) * dims + (4, 64), dtype),
        ((size,) * dims + (64, 32), dtype),
        ((rows, *(side,) * dims, 4), dtype),
    ]
    return jax.grad(loss, argnums=(0, 1)), shapes


def _pictures(order, dtype, normed):
    features, image = order.index("C"), tuple(order.index(axis) for axis in "HW")
    filters = "HWIO" if order == "NHWC" else "OIHW"

    def loss(x, *weights):
        for w in weights:
            h = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=(order, filters, order))
            if normed:
                wide = h.astype(F32)
                wide = wide - wide.mean(image, keepdims=True)
                h = (wide * lax.rsqrt(jnp.square(wide).mean(image, keepdims=True) + 1e-5)).astype(dtype)
            x = x + jax.nn.silu(h) if x.shape == h.shape else jax.nn.silu(h)
        return jnp.sum(jnp.square(x.astype(F32)))

    weights = [(3, 3, i, 64) if order == "NHWC" else (64, i, 3, 3) for i in (4, 64, 64, 64)]
    x = [32, 64, 64]
    x.insert(features, 4)
    return jax.grad(loss, argnums=(1, 2, 3, 4)), [(shape, dtype) for shape in (tuple(x), *weights)]


def _attention(grouped, backward):
    def loss(q, k, v):
        scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k) if grouped else jnp.einsum("bhqd,bhkd->bhqk", q, k)
        p = jax.nn.softmax(scores.astype(F32) * 0.1).astype(q.dtype)
        y = jnp.einsum("bhgqk,bkhd->bqhgd", p, v) if grouped else jnp.einsum("bhqk,bhkd->bhqd", p, v)
        return jnp.sum(jnp.sin(y).astype(F32)) if backward else y

    q, kv = ((4, 1024, 4, 2, 64), (4, 1024, 4, 64)) if grouped else ((4, 8, 1024, 64),) * 2
    return jax.grad(loss, argnums=(0, 1, 2)) if backward else loss, [(shape, BF16) for shape in (q, kv, kv)]


# Name to what makes (function, shapes and types).
NETWORKS = {name: functools.partial(_between, each[0], each[1:]) for name, each in BETWEEN.items()}
NETWORKS |= {
    f"{kind}_{classes}_{dtype.dtype.name}": functools.partial(_classes, kind, classes, dtype)
    for kind in ("named", "hot", "normalised")
    for classes in (4096, 32000)
    for dtype in (F32, BF16)
}
NETWORKS |= {
    f"pool_{window}{name}": functools.partial(_pooled, before, window, F32)
    for window in (2, 3)
    for name, before in {
        "": lambda x: x,
        "_relu": jax.nn.relu,
        "_scaled": lambda x: jax.nn.relu(1.5 * x + 0.1),
    }.items()
}
NETWORKS |= {
    f"transposed_{dims}d_{size}": functools.partial(_spread, dims, size, "SAME", BF16)
    for dims in (2, 3)
    for size in (2, 4)
}
NETWORKS |= {
    f"pictures_{order}_{dtype.dtype.name}{'_normed' if normed else ''}": functools.partial(
        _pictures, order, dtype, normed
    )
    for order in ("NHWC", "NCHW")
    for dtype in (F32, BF16)
    for normed in (False, True)
}
NETWORKS |= {
    f"attention{'_grouped' if grouped else ''}{'' if backward else '_alone'}": functools.partial(
        _attention, grouped, backward
    )
    for grouped in (False, True)
    for backward in (False, True)
}
NETWORKS["forwards"] = functools.partial(_between, jnp.sin, (), forwards=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NETWORK", choices=sorted(NETWORKS))
    parser.add_argument("--output", type=pathlib.Path, help="JSON")
    args = parser.parse_args()
    console, found = Console(), []
    table = Table("network", "estimated", "measured", "off", title="temporary MB, H100")
    for name in args.only or NETWORKS:
        function, shapes = NETWORKS[name]()
        arguments = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=TARGET.sharding()) for shape, dtype in shapes
        ]
        program = jax.jit(function).lower(*arguments).compiler_ir("stablehlo")
        estimated = json.loads(interchange.to_core(program).query("memory.estimate", "{}"))["temp"]
        measured = oracle.measure(program, TARGET).temp_bytes
        error = round(estimated / measured - 1, 5)
        found.append(
            {
                "network": name,
                "estimated_temp_bytes": estimated,
                "measured_temp_bytes": measured,
                "error": error,
            }
        )
        table.add_row(name, f"{estimated / 1e6:.1f}", f"{measured / 1e6:.1f}", f"{error:+.1%}")
        jax.clear_caches()
    console.print(table)
    errors = [abs(each["error"]) for each in found]
    console.print(
        f"{len(errors)}: mean {statistics.mean(errors):.1%}, median {statistics.median(errors):.1%}, worst {max(errors):.1%}, "
        f"{sum(error <= 0.04 for error in errors)} within 4 %"
    )
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
