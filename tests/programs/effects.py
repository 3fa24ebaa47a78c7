"""Random numbers, callbacks and tokens, foreign calls."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback

from programs.arrays import values
from programs.registry import program


@program()
def random_numbers():
    def f(key):
        a, b = jax.random.split(jax.random.wrap_key_data(key))
        return jax.random.normal(a, (3,)), jax.random.randint(b, (4,), 0, 9), jax.random.permutation(a, 5)

    return f, (np.array([0, 7], np.uint32),)


@program()
def random_bits():
    def f(state):
        new, bits = lax.rng_bit_generator(state, (5,))
        return new, bits, lax.rng_bit_generator(state, (2,), algorithm=lax.RandomAlgorithm.RNG_PHILOX)

    return f, (np.arange(4, dtype=np.uint32),)


@program()
def hidden_random_state():
    # Two draws with the same operands: never one.
    return lambda a, b: (lax.rng_uniform(a, b, (4,)) < 2, lax.rng_uniform(a, b, (4,)) < 2), (
        np.float32(0),
        np.float32(1),
    )


@program()
def typed_keys():
    def f(seed):
        key = jax.random.key(seed, impl="rbg")
        return jax.random.key_data(jax.random.split(key, 2)), jax.random.bernoulli(key, 0.5, (8,))

    return f, (np.int32(3),)


@program(has_callback=True)
def callbacks():
    shape = jax.ShapeDtypeStruct((4,), jnp.float32)

    def f(x):
        jax.debug.print("x = {x}", x=x, ordered=True)
        jax.debug.callback(lambda a: None, x)
        y = jax.pure_callback(lambda a: np.asarray(a) * 2, shape, x)
        return io_callback(lambda a: np.asarray(a), shape, y, ordered=True)

    return f, (values(4),)


@program(runs=False)
def foreign_call():
    def f(x):
        call = jax.ffi.ffi_call(
            "farrier_test_target",
            jax.ShapeDtypeStruct((4,), jnp.float32),
            vmap_method="broadcast_all",
            input_output_aliases={0: 0},
        )
        table = np.array([1, 2, 3], np.int64)
        return call(x, eps=np.float32(1e-5), n=3, name='a"b', arr=table, flag=True)

    return f, (values(4),)


@program(runs=False)
def side_effecting_foreign_calls():
    def f(x):
        call = jax.ffi.ffi_call(
            "farrier_test_log", jax.ShapeDtypeStruct((4,), jnp.float32), has_side_effect=True
        )
        return call(x), call(x)

    return f, (values(4),)
