"""Several devices: automatic sharding, explicit collectives."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from programs.arrays import values
from programs.registry import program

P = PartitionSpec


@functools.cache
def mesh():
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@program(devices=8)
def automatic_sharding():
    def f(x, w):
        h = lax.with_sharding_constraint(x @ w, NamedSharding(mesh(), P("x", None)))
        return jnp.tanh(h).sum()

    shardings = (NamedSharding(mesh(), P("x", "y")), NamedSharding(mesh(), P("y", None)))
    return jax.jit(jax.grad(f, (0, 1)), in_shardings=shardings), (values(16, 32), values(32, 64))


@program(devices=8)
def collectives():
    def f(x):
        gathered = lax.all_gather(x, "y", tiled=True)
        scattered = lax.psum_scatter(x, "y", tiled=True)
        moved = lax.ppermute(x, "x", [(0, 1), (1, 0)])
        exchanged = lax.all_to_all(x, "y", 0, 1, tiled=True)
        parts = (
            lax.psum(x, "x"),
            gathered,
            scattered,
            moved,
            exchanged,
            lax.pmax(x, "x"),
            lax.pmean(x, ("x", "y")),
        )
        return sum(part.sum() for part in parts)[None] + lax.axis_index("y")

    mapped = jax.shard_map(f, mesh=mesh(), in_specs=P("x", "y"), out_specs=P(("x", "y")), check_vma=False)
    return jax.jit(mapped), (values(16, 64),)


@program(devices=8)
def partly_manual():
    mapped = jax.shard_map(
        lambda x: lax.psum(x * 2, "x"), mesh=mesh(), in_specs=P("x"), out_specs=P(), axis_names={"x"}
    )
    return jax.jit(mapped), (values(16, 64),)


@program(devices=8)
def manual_loop():
    def f(w, x):
        def step(h, part):
            return jnp.tanh(h @ lax.all_gather(part, "x", tiled=True)), ()

        return lax.psum(lax.scan(step, x, w)[0].sum(), ("x", "y"))

    mapped = jax.shard_map(f, mesh=mesh(), in_specs=(P(None, "x"), P("y")), out_specs=P(), check_vma=False)
    return jax.jit(jax.grad(mapped)), (values(3, 8, 8), values(8, 8))


@program(devices=8)
def host_memory():
    host = NamedSharding(mesh(), P("x", None), memory_kind="pinned_host")

    def f(x):
        return jax.device_put(jnp.sin(x), jax.memory.Space.Host)

    return jax.jit(f, out_shardings=host), (values(8, 8),)
