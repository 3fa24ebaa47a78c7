"""Programs lowered for CUDA: kernels from Pallas and cuDNN. Compiled without a GPU; run only on one."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu, triton

from programs.arrays import values
from programs.registry import program


@program(platform="cuda", runs=False)
def cudnn_attention():
    def f(q):
        return (
            jax.nn.dot_product_attention(q, q, q, implementation="cudnn", is_causal=True)
            .astype(jnp.float32)
            .sum()
        )

    return jax.grad(f), (jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16),)


@program(platform="cuda", runs=False, abstract_gpu=True)
def triton_kernel():
    def kernel(x, o):
        o[...] = x[...] * 2 + pl.program_id(0)

    def f(x):
        return pl.pallas_call(
            kernel,
            grid=(4,),
            in_specs=[pl.BlockSpec((16,), lambda i: (i,))],
            out_specs=pl.BlockSpec((16,), lambda i: (i,)),
            out_shape=jax.ShapeDtypeStruct((64,), jnp.float32),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        )(x)

    return f, (values(64),)


@program(platform="cuda", runs=False, abstract_gpu=True)
def mosaic_kernel():
    def kernel(x, o):
        o[...] = x[...] + 1.0

    return mosaic_gpu.kernel(kernel, out_type=jax.ShapeDtypeStruct((128,), jnp.float32)), (values(128),)


@program(platform="cuda", runs=False)
def cuda_linear_algebra():
    return lambda a: (jnp.linalg.cholesky(a), jnp.linalg.qr(a), jax.lax.top_k(a, 2)), (values(4, 4),)


@program(platform="cuda", runs=False)
def narrow_product():
    return lambda x: jnp.einsum("ij,jk->ik", x, x, preferred_element_type=jnp.float32), (
        jax.ShapeDtypeStruct((64, 64), jnp.float8_e4m3fn),
    )
