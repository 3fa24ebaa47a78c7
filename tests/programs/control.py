"""Control flow, nested calls, barriers, rematerialization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from programs.arrays import values
from programs.registry import program


@program()
def loops():
    def f(x, n):
        a = lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, x))
        b = lax.fori_loop(0, 10, lambda i, v: v + i, x)
        return a, b, lax.map(jnp.sin, values(5, 4))

    return f, (values(4), np.int32(3))


@program(has_gradient=True)
def scans():
    def f(x):
        carry, ys = lax.scan(lambda c, y: (jnp.tanh(c + y), c * y), x, values(5, 4))
        _, reverse = lax.scan(lambda c, y: (c + y, c), x, ys, reverse=True, unroll=2)
        return carry, ys, reverse, lax.associative_scan(jnp.add, ys)

    return f, (values(4),)


@program(has_gradient=True)
def branches():
    def f(x, n):
        a = lax.cond(n > 3, lambda x: x + 1, lambda x: x * 2, x)
        b = lax.switch(n, [lambda x: x, lambda x: -x, lambda x: x * 3], x)
        return a, b, lax.cond(n > 1, lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), lambda x: x, x)

    return f, (values(4), np.int32(1))


@program(has_gradient=True)
def nested_calls():
    @jax.jit
    def inner(x):
        return jnp.sin(x) * 2

    @functools.partial(jax.jit, inline=False)
    def middle(x):
        return inner(x) + inner(x * 3)

    def f(x):
        with jax.named_scope('attn/"quote\\é'):
            return middle(x) + middle(inner(x))

    return f, (values(4),)


@program(has_gradient=True)
def barriers():
    def f(x):
        a, b = lax.optimization_barrier((x, x * 2))
        return a + b, lax.optimization_barrier(a)

    return f, (values(4),)


@program()
def rematerialized_gradient():
    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w)

    def f(ws, x):
        for w in ws:
            x = layer(x, w)
        return (x**2).sum()

    return jax.value_and_grad(f), ([values(8, 8, seed=s) for s in range(3)], values(4, 8))


@program()
def donated():
    return jax.jit(lambda x, y: (x + y, y * 2), donate_argnums=0), (values(8), values(8))
