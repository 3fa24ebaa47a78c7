"""Array operations: indexing, windows, sorting, transforms, products."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from programs.registry import program


def values(*shape: int, seed: int = 0) -> np.ndarray:
    """Reproducible float32 numbers of a standard normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@program(has_gradient=True)
def gather_scatter():
    def f(x, i):
        return (
            x[i],
            x.at[i].add(1.0),
            x.at[:, i].set(2.0),
            x.at[i].max(0.5, indices_are_sorted=True, unique_indices=True),
            jax.vmap(lambda row, j: row[j])(x, jnp.arange(8) % 3),
        )

    return f, (values(8, 8), np.array([1, 4, 6], np.int32))


@program(has_gradient=True)
def dynamic_slices():
    def f(x, i):
        part = lax.dynamic_slice(x, (i, 0), (2, 2))
        return part, lax.dynamic_update_slice(x, part * 2, (i, i)), lax.slice(x, (1, 0), (7, 8), (2, 3))

    return f, (values(8, 8), np.int32(3))


@program(has_gradient=True)
def shapes():
    def f(x):
        return (
            x.reshape(4, 16).T[None],
            jnp.concatenate([x, x[::-1]], axis=1),
            lax.pad(x, 0.0, ((1, 2, 1), (-1, 0, 0))),
            jnp.broadcast_to(x[:, None], (8, 3, 8)),
            lax.broadcasted_iota(jnp.int32, (3, 4), 1) + x[:3, :4],
            jnp.where(x > 0, x, jnp.clip(x, -0.5, 0.5)),
        )

    return f, (values(8, 8),)


@program(has_gradient=True)
def convolution():
    def f(x, w):
        y = lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        return lax.conv_transpose(y, values(2, 2, 8, 3, seed=1), (2, 2), "VALID")

    return f, (values(2, 8, 8, 4), values(3, 3, 2, 8))


@program()
def convolution_gradient():
    def f(x, w):
        return lax.conv_general_dilated(x, w, (1,), [(2, 1)], lhs_dilation=(2,), rhs_dilation=(2,)).sum()

    return jax.grad(f, (0, 1)), (values(2, 3, 9), values(4, 3, 3))


@program(has_gradient=True)
def windows():
    def f(x):
        pooled = lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")
        summed = lax.reduce_window(x, 0.0, lax.add, (3, 3), (1, 1), "SAME", window_dilation=(1, 2))
        return pooled, summed, lax.cumsum(x), lax.cummax(x, axis=1), lax.cumlogsumexp(x)

    return f, (values(8, 8),)


@program()
def window_gradient():
    return jax.grad(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID").sum()), (
        values(8, 8),
    )


@program()
def reductions():
    def f(x):
        pair = lax.reduce((x, x * 2), (0.0, 1.0), lambda a, b: (a[0] + b[0], a[1] * b[1]), (0,))
        return (
            x.sum(0),
            x.max(),
            x.min(1),
            x.prod(),
            (x > 0).any(),
            jnp.argmax(x, 1),
            jnp.argmin(x),
            pair,
            x.std(),
        )

    return f, (values(8, 8),)


@program()
def sorting():
    def f(x):
        return (
            jnp.sort(x),
            jnp.argsort(x, stable=True),
            lax.top_k(x, 2),
            lax.sort((x, x * 2), num_keys=2),
            jnp.unique(x, size=8),
        )

    return f, (values(8, 8),)


@program(has_gradient=True)
def fourier():
    def f(x):
        return jnp.fft.fft(x).real, jnp.fft.irfft(jnp.fft.rfft(x)), jnp.abs(jnp.fft.ifft2(x))

    return f, (values(8, 8),)


@program(has_gradient=True)
def products():
    def f(x, y):
        return (
            jnp.einsum("bij,bjk->bik", x, y, precision="highest"),
            lax.dot_general(x, y, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32),
            jnp.tensordot(x, y[0], 1),
            jnp.vdot(x, x),
            lax.dot(x[0], y[0], precision=lax.Precision.HIGH),
        )

    return f, (values(2, 4, 4), values(2, 4, 4, seed=1))


@program(platform="cuda", runs=False)
def product_algorithms():
    def f(x):
        return [lax.dot(x, x, precision=algorithm) for algorithm in ("TF32_TF32_F32", "BF16_BF16_F32_X3")]

    return f, (values(8, 8),)


@program(has_gradient=True)
def elementwise():
    def f(x):
        y = jnp.abs(x) + 0.5
        unary = (
            jnp.sin,
            jnp.cos,
            jnp.tan,
            jnp.tanh,
            jnp.exp,
            jnp.expm1,
            jax.nn.sigmoid,
            jnp.floor,
            jnp.ceil,
            jnp.round,
        )
        positive = (jnp.log, jnp.log1p, jnp.sqrt, lax.rsqrt, jnp.cbrt)
        return (
            [op(x) for op in unary]
            + [op(y) for op in positive]
            + [x**3, y**x, jnp.arctan2(x, y), x % y, jnp.sign(x)]
        )

    return f, (values(4, 4),)


@program()
def accuracies():
    def f(x):
        return [op(x, accuracy=lax.AccuracyMode.HIGHEST) for op in (lax.exp, lax.tanh)] + [
            lax.exp(x, accuracy=lax.Tolerance(atol=1e-5, rtol=0.0, ulps=1))
        ]

    return f, (values(4),)


@program()
def integers():
    def f(i):
        bits = (i & 3, i | 4, i ^ 5, ~i, i << 1, i >> 1, lax.shift_right_logical(i, jnp.int32(1)))
        counts = (lax.population_count(i), lax.clz(i), i // 3, i % 3, i.astype(jnp.uint8))
        real = i.astype(jnp.float32)
        return bits, counts, jnp.isfinite(real), lax.reduce_precision(real, 5, 10), i.view(jnp.float32)

    return f, (np.arange(1, 9, dtype=np.int32),)


@program(has_gradient=True)
def linear_algebra():
    def f(a):
        a = a @ a.T + 4 * jnp.eye(4)
        return (
            jnp.linalg.cholesky(a),
            jnp.linalg.solve(a, a),
            lax.linalg.triangular_solve(a, a, lower=True),
            jnp.linalg.inv(a),
        )

    return f, (values(4, 4),)


@program()
def decompositions():
    def f(a):
        return (
            jnp.linalg.eigh(a @ a.T),
            jnp.linalg.svd(a),
            jnp.linalg.qr(a),
            lax.linalg.lu(a),
            jnp.linalg.eigvals(a),
        )

    return f, (values(4, 4),)
