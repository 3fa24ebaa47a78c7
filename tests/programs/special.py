"""chlo operations, composites, metadata, symbolic shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.experimental.compute_on import compute_on
from jax.experimental.xla_metadata import set_xla_metadata

from programs.arrays import values
from programs.registry import program


@program()
def special_functions():
    special = jax.scipy.special

    def f(x):
        y = jnp.abs(x) + 1.5
        unary = [op(y) for op in (special.gammaln, special.digamma, jnp.arccosh, jnp.arcsinh, special.i0e)]
        more = (
            jnp.arcsin(x / 9),
            jnp.sinh(x),
            lax.erf(x),
            lax.erf_inv(x / 9),
            special.zeta(y, y),
            lax.erfc(x),
        )
        return unary, more

    return f, (values(4, 4),)


@program()
def ragged_product():
    def f(x, w, sizes):
        return lax.ragged_dot(x, w, sizes), lax.approx_max_k(x, 2)

    return f, (values(8, 8), values(2, 8, 3), np.array([3, 5], np.int32))


@program(has_gradient=True)
def composites():
    @functools.partial(lax.composite, name="my.norm", version=2)
    def norm(x, *, eps):
        return x * lax.rsqrt((x * x).mean() + eps)

    def f(x):
        # A composite has no derivative of its own.
        return lax.stop_gradient(norm(lax.stop_gradient(x), eps=np.float32(1e-5))) + x

    return f, (values(8),)


@program(has_gradient=True)
def metadata():
    def f(x):
        with set_xla_metadata(farrier_test="bar", n="3"):
            y = jnp.sin(x) * 2
        return jnp.sin(x) * 2 + y

    return f, (values(8),)


@program()
def on_host():
    def f(x):
        @compute_on(compute_type="device_host", out_memory_spaces=jax.memory.Space.Device)
        @jax.jit
        def g(y):
            return y * 2

        return g(x) + 1

    return f, (values(8),)


@program()
def custom_derivatives():
    @jax.custom_vjp
    def clip_gradient(x):
        return x

    clip_gradient.defvjp(lambda x: (x, ()), lambda _, g: (jnp.clip(g, -1, 1),))

    @jax.custom_jvp
    def softplus(x):
        return jnp.log1p(jnp.exp(x))

    softplus.defjvp(lambda p, t: (softplus(p[0]), jax.nn.sigmoid(p[0]) * t[0]))
    return jax.grad(lambda x: softplus(clip_gradient(x)).sum()), (values(8),)


@program(symbolic=True, runs=False)
def symbolic_shapes():
    (batch,) = export.symbolic_shape("b")

    def f(x):
        table = jnp.arange(x.shape[0])
        joined = jnp.concatenate([x, x])
        return x.reshape(-1), x @ x.T, joined, x.sum(0), x[:-1], jnp.pad(x, ((0, 1), (0, 0))), table, x[table]

    return f, (jax.ShapeDtypeStruct((batch, 8), jnp.float32),)
