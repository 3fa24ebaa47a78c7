"""The passes on explicit collectives keep every bit of the values, on eight CPU devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier import _core
from farrier._src import compat, primitive
from farrier._src.optimize import _stage
from jax import lax
from jax.sharding import PartitionSpec as P
from workloads.decoder_manual import conjugate_pair

ir = primitive.ir


class Pipeline:
    """Runs passes on the program where `optimize` would run its own."""

    options = None

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.counters = {}

    def say(self, text):
        raise AssertionError(text)

    def transform(self, program, enclosing):
        made = program()
        text = made.module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
        module = _core.Module.parse(text)
        for record in module.run(self.pipeline).passes:
            self.counters.update(record.counters)
        return ir.Module.parse(module.print().decode(), enclosing.context)


def through(pipeline, fun):
    """`fun` with its module changed by `pipeline`, and the site that counts."""
    original = jax.jit(fun)
    inner = compat.inner_function(original)
    site = Pipeline(pipeline)

    @functools.wraps(original)
    def staged(*args):
        return _stage(site, inner, original.__name__, args, {})

    return compat.jit_like(original, staged), site


@pytest.fixture(scope="module")
def step():
    """Forward and backward of three layers: weights gathered in f32 and used in bf16, gradients summed."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, weights):
        def loss(weights):
            y = x.astype(jnp.bfloat16)
            for w in weights:
                y = jnp.tanh(y @ lax.all_gather(w, "x", axis=0, tiled=True).astype(jnp.bfloat16))
            return jnp.sum(y.astype(jnp.float32) ** 2)

        value, gradients = jax.value_and_grad(loss)(weights)
        return lax.psum(value, "x"), [lax.psum(g, "x") for g in gradients]

    def f(x, weights):
        specs = (P("x"), [P("x")] * 3)
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(), [P()] * 3), check_vma=False)(
            x, weights
        )

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((64, 32)), jnp.float32)
    weights = [jnp.asarray(rng.standard_normal((32, 32)) / 6, jnp.float32) for _ in range(3)]
    return f, (x, weights)


@pytest.fixture(scope="module")
def repeating():
    """Collectives that repeat or undo one another."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def local(x):
        largest = lax.pmax(lax.pmax(jnp.max(x), "x"), "x")
        twice = lax.all_gather(x, "x", tiled=True) + lax.all_gather(x, "x", tiled=True)
        whole = lax.all_gather(lax.psum_scatter(twice, "x", tiled=True), "x", tiled=True)
        # The last device of the second chain hears of nobody.
        moved = lax.ppermute(lax.ppermute(x, "x", ring), "x", ring[:-1])
        return largest, whole, moved

    def f(x):
        return jax.shard_map(
            local, mesh=mesh, in_specs=P("x"), out_specs=(P(), P(), P("x")), check_vma=False
        )(x)

    return f, (jnp.asarray(np.random.default_rng(1).standard_normal((64, 16)), jnp.float32),)


@pytest.mark.parametrize(
    ("regroup", "expected"),
    [
        (
            "true",
            {
                "repeated-collectives": 1,
                "idempotent-reductions": 1,
                "joined-scatters": 1,
                "composed-permutes": 1,
            },
        ),
        ("false", {"repeated-collectives": 1, "idempotent-reductions": 1, "composed-permutes": 1}),
    ],
)
def test_merged_collectives_are_bitwise_equal(repeating, regroup, expected):
    f, args = repeating
    changed, site = through(f"builtin.module(farrier-merge-collectives{{regroup={regroup}}})", f)
    want, got = jax.jit(f)(*args), changed(*args)
    assert {name: count for name, count in site.counters.items() if count} == expected
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("pipeline", "counter"),
    [
        ("farrier-simplify-collectives", "narrowed"),
        ("farrier-chain-collectives{bucket-bytes=1024}", "chained"),
        ("farrier-simplify-collectives,farrier-chain-collectives{bucket-bytes=1024},cse", "chained"),
    ],
)
def test_bitwise_equal(step, pipeline, counter):
    f, args = step
    changed, site = through(f"builtin.module({pipeline})", f)
    want, got = jax.jit(f)(*args), changed(*args)
    assert site.counters[counter] > 0
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def norm(x, weight):
    """Root mean square norm; `weight` [D]."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * weight


def tensor_parallel(axes, *, looped, own_norm=False, size=16):
    """Two layers with residuals and norms under tensor parallelism over "t", forward and gradients.

    With `own_norm` each device has a norm's weight of its own, so that devices disagree from there on.
    """
    mesh = jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(jax.sharding.AxisType.Auto,) * len(axes)
    )

    enter, leave = conjugate_pair("t")

    def layer(x, w):
        h = enter(norm(x, w["norm"]))
        return x + leave(jnp.tanh(h @ w["up"]) @ w["down"]), None

    def local(x, weights):
        def loss(weights, x):
            if looped:
                y, _ = lax.scan(layer, x, weights)
            else:
                y = x
                for n in range(weights["up"].shape[0]):
                    y, _ = layer(y, jax.tree.map(lambda w, n=n: w[n], weights))
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(weights, x)
        return y, gradients

    batch = P("d") if "d" in axes else P()
    specs = {"norm": P(None, "t") if own_norm else P(), "up": P(None, None, "t"), "down": P(None, "t")}

    def f(x, weights):
        return jax.shard_map(
            local, mesh=mesh, in_specs=(batch, specs), out_specs=(batch, (specs, batch)), check_vma=False
        )(x, weights)

    rng = np.random.default_rng(3)
    shapes = {"norm": (2, 8 * size if own_norm else size), "up": (2, size, 32), "down": (2, 32, size)}
    weights = {k: jnp.asarray(rng.standard_normal(s) / 4, jnp.float32) for k, s in shapes.items()}
    return f, (jnp.asarray(rng.standard_normal((8, 32, size)), jnp.float32), weights)


def zero_redundancy(axis):
    """A gradient, averaged, of which each device updates its own slice (ZeRO-1)."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(w, x):
        gradient = lax.psum(jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w), "x") / 8
        rows = w.shape[axis] // 8
        mine = functools.partial(
            lax.dynamic_slice_in_dim, start_index=lax.axis_index("x") * rows, slice_size=rows, axis=axis
        )
        new = mine(w) - 0.1 * mine(gradient * jnp.sign(gradient))
        return lax.all_gather(new, "x", axis=axis, tiled=True)

    def f(w, x):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("x")), out_specs=P(), check_vma=False)(w, x)

    rng = np.random.default_rng(4)
    return f, (
        jnp.asarray(rng.standard_normal((16, 24)), jnp.float32),
        jnp.asarray(rng.standard_normal((32, 16)), jnp.float32),
    )


@pytest.mark.parametrize(
    ("program", "regroup", "expected"),
    [
        (functools.partial(tensor_parallel, {"t": 8}, looped=False), True, 4),
        (functools.partial(tensor_parallel, {"d": 2, "t": 4}, looped=False), True, 4),
        (functools.partial(tensor_parallel, {"t": 4, "d": 2}, looped=True), True, 2),
        (functools.partial(zero_redundancy, 0), True, 1),
        (functools.partial(zero_redundancy, 1), False, 1),
        # What a device alone knows is not cut; the gradient of its norm's weight is its own.
        (functools.partial(tensor_parallel, {"t": 8}, looped=False, own_norm=True), False, 4),
    ],
    ids=["unrolled", "grid", "scan", "slice-rows", "slice-columns", "devices-disagree"],
)
def test_scattered_reductions_keep_values(program, regroup, expected):
    f, args = program()
    options = f"min-bytes=1024 regroup={str(regroup).lower()}"
    changed, site = through(f"builtin.module(farrier-scatter-reductions{{{options}}})", f)
    want, got = jax.jit(f)(*args), changed(*args)
    assert site.counters["scattered-reductions"] == expected
    assert (site.counters["gathers"] == 0) == (program.func is zero_redundancy)
    assert regroup or site.counters["partial-sums"] == 0
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        if regroup:
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)
        else:  # XLA:CPU adds up in one order whether it scatters or not
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
