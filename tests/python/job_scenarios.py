"""What the processes of ``job.py`` do; imported when JAX's job is up."""

import farrier
import jax
import jax.numpy as jnp
import numpy as np
import textual
from farrier._src import compat as compat
from farrier._src import pipeline
from farrier._src.collectives import check
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


class Patch:
    """As much of pytest's monkeypatch as ``textual.install`` needs."""

    def setattr(self, owner, name, value):
        setattr(owner, name, value)


def run(scenario, rank, count, plan):
    if scenario == "remat":
        return rematerialize(count, plan)
    if scenario in ("train", "disagree"):
        return (train if scenario == "train" else disagree)(rank, count)
    search = textual.install(Patch())
    apply = textual.SwapDriver.apply
    try:
        return _run(scenario, rank, count, plan) | {"searches": len(search.contexts)}
    except farrier.Error as error:
        return {"error": type(error).__name__, "message": str(error), "searches": len(search.contexts)}
    finally:
        textual.SwapDriver.apply = apply


def _collectives(scenario, rank, count):
    """What every process hears about the collectives of an executable before its first call."""
    mesh = jax.make_mesh((count,), ("x",))
    swapped = scenario == "hang" and rank == 2

    def local(x):
        if swapped:
            return lax.psum(lax.all_gather(x, "x", tiled=True), "x")
        return lax.all_gather(lax.psum(x, "x"), "x", tiled=True)

    def step(x):
        specs = {"in_specs": PartitionSpec("x"), "out_specs": PartitionSpec(), "check_vma": False}
        return jax.shard_map(local, mesh=mesh, **specs)(x)

    x = jax.ShapeDtypeStruct((count * 2,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))
    verdict = check.check_live(jax.jit(step).lower(x).compile(), timeout_s=60)
    return {"status": verdict.status, "message": verdict.message}


def _run(scenario, rank, count, plan):
    if scenario in ("same", "hang"):
        return _collectives(scenario, rank, count)
    sharding = NamedSharding(jax.make_mesh((count,), ("x",)), PartitionSpec("x"))
    values = np.arange(count * 2.0, dtype=np.float32)
    x = jax.make_array_from_callback((count * 2,), sharding, lambda index: values[index])
    factor = 3.0 if scenario == "programs" and rank == 2 else 2.0

    def step(x):
        return jnp.sin(x) * factor

    step.__name__ = f"step_{scenario}"

    def too_much(module, drivers, context):
        raise farrier.BudgetError("does not fit", budget_bytes=1, smallest_bytes=2)

    def differently(self, module, plan, *, remark=None):
        module.text = module.text.replace("stablehlo.sine", "stablehlo.tan")

    def badly(self, module, plan, *, remark=None):
        raise RuntimeError("cannot apply")

    if scenario == "budget":
        pipeline.search = too_much
    if rank == 1 and scenario in ("applying", "results"):
        textual.SwapDriver.apply = badly if scenario == "applying" else differently
    passes = "broken" if scenario == "fallback" else "swap"
    optimized = farrier.optimize(step, passes=passes, plan=plan, max_compiles=0)
    value = optimized(x)
    lowered = optimized.lower(x)
    return {
        "value": [float(v) for shard in value.addressable_shards for v in np.asarray(shard.data)],
        "source": lowered.decision.source,
        "plan": lowered.plan.fingerprint,
        "json": lowered.plan.to_json(),
        "text": lowered.as_text(),
    }


def rematerialize(count, plan):
    """A train step over all processes, under a budget that only recomputation keeps."""
    search, searches = pipeline.search, []

    def counted(*arguments):
        searches.append(arguments)
        return search(*arguments)

    pipeline.search = counted
    mesh = jax.make_mesh((count,), ("x",))

    def put(values, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    draw = np.random.default_rng(0)
    weights = [put(draw.normal(size=(32, 32)).astype(np.float32), PartitionSpec()) for _ in range(6)]
    x = put(draw.normal(size=(64 * count, 32)).astype(np.float32), PartitionSpec("x"))

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w) + jnp.sin(x)
        return jnp.mean(x * x)

    def step(weights, x):
        value, gradients = jax.value_and_grad(loss)(weights, x)
        return [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)], value

    memory = jax.jit(step).lower(weights, x).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    optimized = farrier.optimize(
        step,
        memory_budget=total - memory.temp_size_in_bytes // 4,
        passes=[farrier.Remat(small_bytes=0)],
        plan=plan,
        strict=True,
    )
    lowered = optimized.lower(weights, x)
    return {
        "value": [float(optimized(weights, x)[1])],
        "plain": float(jax.jit(step)(weights, x)[1]),
        "source": lowered.decision.source,
        "changed": lowered.decision.changed,
        "plan": lowered.plan.fingerprint,
        "json": lowered.plan.to_json(),
        "text": lowered.as_text(),
        "searches": len(searches),
    }


def train(rank, count, steps=20):
    """Losses of ``steps`` steps of a model sharded over all processes, with farrier on and off."""
    mesh = jax.make_mesh((count,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("x",), ()))
    draw = np.random.default_rng(0)

    def put(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    # Weights in shards, batches in shards: gathers forward, reductions backward.
    data = draw.normal(size=(count * 2, 8)).astype(np.float32)
    start = [(draw.normal(size=(count * 2, 8)) / 3).astype(np.float32) for _ in range(3)]

    def step(weights, x):
        def loss(weights):
            h = x
            for w in weights:
                h = jnp.tanh(h @ w.T @ w) + h
            return (h**2).mean()

        value, gradient = jax.value_and_grad(loss)(weights)
        return [w - 0.1 * g for w, g in zip(weights, gradient, strict=True)], value

    jitted = jax.jit(step, out_shardings=([rows] * 3, whole))
    results = {}
    remat = farrier.Remat(stress=5, small_bytes=1)
    for name, function in (("off", jitted), ("on", farrier.optimize(jitted, passes=[remat], strict=True))):
        weights, x, losses = [put(w, rows) for w in start], put(data, rows), []
        for _ in range(steps):
            weights, value = function(weights, x)
            losses.append(float(np.asarray(value.addressable_shards[0].data)))
        results[name] = losses
        if name == "on":
            lowered = function.lower(weights, x)
            results["changed"] = lowered.decision.changed
            results["plan"] = lowered.plan.fingerprint
    return results


def disagree(rank, count):
    """One process asks for another seed: an option that decides."""
    sharding = NamedSharding(jax.make_mesh((count,), ("x",)), PartitionSpec("x"))
    values = np.ones((count * 2, 4), np.float32)
    x = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    jitted = jax.jit(lambda x: jnp.tanh(jnp.sin(x)) * 2)
    passes = [farrier.Fusion()] if rank == 2 else [farrier.Remat(stress=1, small_bytes=1)]
    try:
        farrier.optimize(jitted, passes=passes)(x)
    except farrier.Error as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": None, "message": ""}
