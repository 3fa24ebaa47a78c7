"""Small training steps that the report's tests compile, each once per process."""

import functools

import jax
import jax.numpy as jnp
from farrier._src import interchange, report
from farrier._src.targets import Target

WIDTH, ROWS, LAYERS = 256, 512, 2


def model(params, x, *, option="plain"):
    """Two named layers. ``saved`` keeps one more residual a layer."""
    for k, w in enumerate(params):
        with jax.named_scope(f"layer_{k}"):
            h = x @ w["up"]
            if option == "saved":
                h = jax.lax.optimization_barrier(jnp.sin(h)) * h
            a = jnp.tanh(h)
            x = x + (a * 2.0 + 1.0) @ w["down"]
    return jnp.mean(x**2)


def step(state, x, *, option="plain"):
    """One step of SGD with momentum; ``fenced`` splits the update in two kernels."""
    loss, grads = jax.value_and_grad(lambda p: model(p, x, option=option))(state["params"])
    momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state["momentum"], grads)
    if option == "fenced":
        momentum = jax.lax.optimization_barrier(momentum)
    params = jax.tree.map(lambda p, m: p - 0.01 * m, state["params"], momentum)
    return {"params": params, "momentum": momentum}, loss


def arguments(sharding=None):
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    layer = {"up": array(WIDTH, 4 * WIDTH), "down": array(4 * WIDTH, WIDTH)}
    params = [layer] * LAYERS
    return {"params": params, "momentum": params}, array(ROWS, WIDTH)


@functools.cache
def lowered(option="plain"):
    donate = () if option == "undonated" else (0,)
    fn = jax.jit(functools.partial(step, option=option), donate_argnums=donate)
    return fn.lower(*arguments(Target("h100").sharding()))


@functools.cache
def compiled(option="plain"):
    """(jax.stages.Compiled, Artifact) for one H100."""
    return report.compile_with_dump(lowered(option))


@functools.cache
def made(option="plain"):
    """The report of a step compiled for one H100."""
    return report.from_artifact(compiled(option)[1], target=Target("h100"), stablehlo=module(option))


@functools.cache
def module(option="plain"):
    """The step before XLA, as farrier's own module."""
    return interchange.to_core(lowered(option).compiler_ir("stablehlo"))


@functools.cache
def scanned():
    """A scan over stacked layers: its residuals are stacked by a loop."""

    def loss(params, x):
        def body(x, w):
            return x + jnp.tanh(x @ w["up"]) @ w["down"], None

        x, _ = jax.lax.scan(body, x, params)
        return jnp.mean(x**2)

    def update(params, x):
        grads = jax.grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    target = Target("h100")
    array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=target.sharding())
    params = {"up": array((4, WIDTH, 2 * WIDTH)), "down": array((4, 2 * WIDTH, WIDTH))}
    step = jax.jit(update, donate_argnums=0).lower(params, array((ROWS, WIDTH)))
    done, artifact = report.compile_with_dump(step)
    stablehlo = interchange.to_core(step.compiler_ir("stablehlo"))
    return done, report.from_artifact(artifact, target=target, stablehlo=stablehlo)


@functools.cache
def sharded(overlap=True):
    """Gathers of layer weights on 8 devices: a layer ahead, or without `overlap` where they are used."""
    target = Target("h100", topology="1x1x8")
    mesh = target.mesh((8,), ("x",))
    spec = jax.sharding.PartitionSpec

    def fetch(w):
        return jax.lax.all_gather(w, "x", tiled=True)

    def local(weights, x):
        full = fetch(weights[0]) if overlap else None
        for k, w in enumerate(weights):
            with jax.named_scope(f"layer_{k}"):
                following = None
                if overlap and k + 1 < len(weights):
                    # The next layer's gather waits for this layer's input: it runs beside its product.
                    ahead, x = jax.lax.optimization_barrier((weights[k + 1], x))
                    following = fetch(ahead)
                elif not overlap:
                    w, x = jax.lax.optimization_barrier((w, x))
                    full, x = jax.lax.optimization_barrier((fetch(w), x))
                x = jnp.tanh(x @ full)
                full = following
        return x

    fn = jax.shard_map(
        local, mesh=mesh, in_specs=(spec("x"), spec("x")), out_specs=spec("x"), check_vma=False
    )
    sharding = jax.sharding.NamedSharding(mesh, spec("x"))
    weights = [jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=sharding)] * 3
    x = jax.ShapeDtypeStruct((8 * 8192, 2048), jnp.bfloat16, sharding=sharding)
    step = jax.jit(fn).lower(weights, x)
    done, artifact = report.compile_with_dump(step)
    stablehlo = interchange.to_core(step.compiler_ir("stablehlo"))
    return done, report.from_artifact(artifact, target=target, stablehlo=stablehlo)


@functools.cache
def partitioned():
    """A loss over tokens that two devices share, weights on both; partitioned by XLA."""
    target = Target("h100", topology="1x1x2")
    mesh = target.mesh((2,), ("x",))
    spec = jax.sharding.PartitionSpec

    def array(*shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.sharding.NamedSharding(mesh, spec))

    def loss(w, x):
        for _ in range(3):
            x = jnp.tanh(x @ w)
        return jnp.sum(jnp.square(x.astype(jnp.float32)))

    step = jax.jit(jax.grad(loss)).lower(array(1024, 1024, spec=spec()), array(32768, 1024, spec=spec("x")))
    _, artifact = report.compile_with_dump(step)
    stablehlo = interchange.to_core(step.compiler_ir("stablehlo"))
    return report.from_artifact(artifact, target=target, stablehlo=stablehlo)
