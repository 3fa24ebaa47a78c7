"""Element types and constants."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from programs.arrays import values
from programs.registry import program

FLOATS = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz")
EXPONENT_FLOATS = ("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn")
INTEGERS = ("int4", "uint4", "int2", "uint2")


@program()
def small_floats():
    def f(*xs):
        return [(x.astype(jnp.float32) * 2).astype(x.dtype) for x in xs]

    return f, tuple(np.array([0.5, 1, 2, 4], getattr(ml_dtypes, t, t)) for t in (*FLOATS, *EXPONENT_FLOATS))


@program()
def small_integers():
    def f(*xs):
        return [x.astype(jnp.int32) + 1 for x in xs]

    narrow = tuple(np.array([0, 1], getattr(ml_dtypes, t)) for t in INTEGERS)
    return f, (
        *narrow,
        *(np.array([0, 1], t) for t in ("int8", "uint8", "int16", "uint16", "uint32", "bool")),
    )


@program()
def complex_numbers():
    def f(z):
        return z * z.conj(), z.real, jnp.abs(z), jnp.exp(z), z.imag > 0, jnp.angle(z)

    return f, (np.array([1 + 2j, -3j], np.complex64),)


@program()
def constants():
    table = values(64, 64)
    others = (
        np.arange(100, dtype=np.int8),
        values(9) > 0,
        np.array([np.nan, np.inf, -np.inf, -0.0], np.float32),
        (values(7) + 1j).astype(np.complex64),
        np.arange(7).astype(ml_dtypes.bfloat16),
        np.zeros((0, 3), np.float32),
        np.arange(8).astype(ml_dtypes.int4),
        np.array([0.5, 6.0], ml_dtypes.float4_e2m1fn),
        np.full((32, 32), 3.0, np.float32),
    )

    def f(x):
        return x @ table, [jnp.asarray(other) for other in others], jnp.float32(np.nan)

    return f, (values(64, 64, seed=1),)


@program()
def large_constant():
    table = values(512, 1024)
    mask = values(512, 1024, seed=2) > 0

    def f(x):
        return jnp.where(mask, x @ table, 0.0)

    return f, (values(512, 512, seed=1),)
