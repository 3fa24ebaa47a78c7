"""In which order the estimate takes XLA:GPU to run kernels, against what a compile of the same program needs."""

from __future__ import annotations

import json

import farrier
import jax
import jax.numpy as jnp
import pytest
from farrier import _core
from farrier._src import interchange, oracle

TARGET = farrier.Target("h100", topology="1x1x1")


def judged(function, *arguments):
    """The estimated temporary bytes over the measured ones."""
    arguments = jax.tree.map(
        lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=TARGET.sharding()), arguments
    )
    program = jax.jit(function).lower(*arguments).compiler_ir("stablehlo")
    answer = json.loads(interchange.to_core(program).query("memory.estimate"))
    return answer["temp"] / oracle.measure(program, TARGET).temp_bytes


def of(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def single(*shape):
    return of(*shape, dtype=jnp.float32)


@pytest.mark.parametrize("stages", [1, 2])
def test_zeros_for_a_pools_gradient_wait_for_it_from_before_the_first_convolution(stages):
    """Of two kernels that free nothing XLA's list takes the one that makes less: zeros of the first convolution's result,
    which makes a pair of pointers more.
    """

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(weights, x):
        for w, v in weights:
            x = jax.lax.reduce_window(conv(x, w), -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
            x += conv(jax.nn.relu(conv(jax.nn.relu(x), v)), v)
        return jnp.sum(jnp.square(x))

    weights = [(single(3, 3, 4, 16), single(3, 3, 16, 16)), (single(3, 3, 16, 32), single(3, 3, 32, 32))]
    assert judged(jax.grad(loss), weights[:stages], single(128, 84, 84, 4)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("squared", [False, True])
def test_a_loss_runs_early_where_the_gradient_reads_the_same(squared):
    """What a token's loss takes from its normaliser is one kernel with what the gradient takes, and reads the logits before
    they become that; what sums squares of errors is none with it.
    """

    def loss(weights, head, x, labels):
        for w in weights:
            x += jnp.tanh(x @ w) @ w.T
        logits = (x @ head).astype(jnp.float32)
        if squared:
            return jnp.mean(jnp.square(logits - labels.astype(jnp.float32)[:, None]))
        found = jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - found)

    shapes = [of(1024, 1024)] * 2, of(1024, 32768), of(8192, 1024), of(8192, dtype=jnp.int32)
    off = judged(jax.value_and_grad(loss, argnums=(0, 1)), *shapes)
    assert off == pytest.approx(1, abs=0.08 if squared else 0.02)


def test_a_branch_that_is_always_taken_is_no_block():
    """`jnp.diagonal` writes its gradient as a branch by a constant: XLA computes it where it is read, and stores none of it."""

    def loss(x, y):
        scores = (x @ y.T).astype(jnp.float32)
        return (jax.nn.logsumexp(scores, -1) - jnp.diagonal(scores)).mean()

    assert judged(jax.grad(loss, argnums=(0, 1)), of(8192, 512), of(8192, 512)) == pytest.approx(1, abs=0.05)


def test_a_program_of_effects_alone_needs_nothing():
    call = '"stablehlo.custom_call"() <{call_target_name = "log", has_side_effect = true}> : () -> ()'
    module = _core.Module.parse(f"module {{ func.func public @main() {{ {call} {call} func.return }} }}")
    assert json.loads(module.query("memory.estimate"))["temp"] == 0
