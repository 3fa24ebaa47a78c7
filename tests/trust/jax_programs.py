"""Random JAX train steps: layers of random blocks, unrolled or in loops, their gradient, an optimizer.

Drawn like the StableHLO programs, from an object with the interface of ``random.Random``. Shapes are tiny; what
varies is the structure: who reads which residual, in which loop, in which type, with which key.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import farrier
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

VOCABULARY = 7


@dataclasses.dataclass
class Sizes:
    batch: int
    length: int
    width: int
    dtype: Any


@dataclasses.dataclass
class Context:
    """What every block of every layer may read besides its own weights."""

    table: jax.Array
    key: jax.Array
    mesh: Any = None


Block = Callable[[jax.Array, dict, Context], jax.Array]


def _weight(w: dict, name: str, like: jax.Array) -> jax.Array:
    return w[name].astype(like.dtype)


def dense(x, w, c):
    return x + jnp.tanh(x @ _weight(w, "square", x))


def gated(x, w, c):
    return x + (x @ _weight(w, "square", x)) * jax.nn.sigmoid(x @ _weight(w, "other", x))


def accumulated(x, w, c):
    y = jnp.einsum("bsd,de->bse", x, _weight(w, "square", x), preferred_element_type=jnp.float32)
    return x + jax.nn.gelu(y).astype(x.dtype)


def rms_norm(x, w, c):
    f = x.astype(jnp.float32)
    return (f * lax.rsqrt((f * f).mean(-1, keepdims=True) + 1e-6) * w["vector"]).astype(x.dtype)


def layer_norm(x, w, c):
    f = x.astype(jnp.float32)
    return ((f - f.mean(-1, keepdims=True)) * lax.rsqrt(f.var(-1, keepdims=True) + 1e-5)).astype(x.dtype)


def attention(x, w, c):
    q, k = x @ _weight(w, "square", x), x @ _weight(w, "other", x)
    scores = jnp.einsum("bsd,btd->bst", q, k).astype(jnp.float32)
    scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -1e9)
    return x + jnp.einsum("bst,btd->bsd", jax.nn.softmax(scores).astype(x.dtype), x)


def convolution(x, w, c):
    kernel = _weight(w, "square", x)[None]
    return x + lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def dropout(x, w, c):
    keep = jax.random.bernoulli(c.key, 0.8, x.shape)
    return jnp.where(keep, x / 0.8, 0).astype(x.dtype)


def noise(x, w, c):
    return x + (0.1 * jax.random.normal(jax.random.fold_in(c.key, 3), x.shape)).astype(x.dtype)


def running(x, w, c):
    return x + 0.1 * jnp.cumsum(x, axis=1)


def associative(x, w, c):
    return jnp.tanh(lax.associative_scan(jnp.add, x, axis=1))


def ordered(x, w, c):
    return x + jnp.sort(x, axis=-1)[..., ::-1]


def routed(x, w, c):
    value, chosen = lax.top_k(jax.nn.softmax(x @ _weight(w, "square", x)), 2 if x.shape[-1] > 1 else 1)
    mix = jnp.einsum("bsk,bske->bse", value, jax.nn.one_hot(chosen, x.shape[-1], dtype=x.dtype))
    return x + mix * x


def gathered(x, w, c):
    order = jnp.argsort(w["vector"])
    return x.at[..., order].add(0.5 * x)


def shared_table(x, w, c):
    return x + x @ c.table.astype(x.dtype)


def inner_loop(x, w, c):
    return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ _weight(w, "square", x)) + 0.1 * i, x)


def data_loop(x, w, c):
    count = lax.stop_gradient(jnp.clip(jnp.abs(x).sum().astype(jnp.int32) % 3, 0, 2))
    scale = lax.while_loop(lambda s: s[0] < count, lambda s: (s[0] + 1, s[1] * 1.5), (0, jnp.float32(1)))[1]
    return x * lax.stop_gradient(scale).astype(x.dtype)


def branched(x, w, c):
    square = _weight(w, "square", x)
    return lax.cond(x.sum() > 0, lambda y: jnp.sin(y @ square), lambda y: y * 0.5, x)


def switched(x, w, c):
    which = jnp.abs(w["vector"][0] * 3).astype(jnp.int32)
    return lax.switch(which, [jnp.tanh, jnp.cos, lambda y: y * y], x)


def rounded(x, w, c):
    return x.astype(jnp.bfloat16).astype(x.dtype) + jnp.abs(x)


@jax.custom_vjp
def _clipped(x):
    return jnp.clip(x, -1, 1)


_clipped.defvjp(lambda x: (_clipped(x), x), lambda x, g: (jnp.where(jnp.abs(x) < 2, g, 0.1 * g),))


def clipped(x, w, c):
    return _clipped(x * 1.5)


@jax.jit
def _called(x):
    return jax.nn.silu(x) * 2


def called(x, w, c):
    return _called(x) + _called(x * 0.5)


def barred(x, w, c):
    x, square = lax.optimization_barrier((x, _weight(w, "square", x)))
    return jnp.tanh(x @ square)


def solved(x, w, c):
    square = w["square"]
    matrix = jnp.eye(square.shape[0]) + 0.1 * square @ square.T
    return x + (x.astype(jnp.float32) @ jnp.linalg.inv(matrix)).astype(x.dtype)


def summed(x, w, c):
    """Over the devices of one mesh axis, where there is a mesh."""
    if c.mesh is None:
        return x + x.mean(0, keepdims=True)
    return x + lax.psum(x, "x") / 8 + lax.all_gather(x, "x", tiled=True).mean()


def parallel(x, w, c):
    """Two products with a reduction behind them, as tensor parallelism has."""
    y = jnp.tanh(x @ _weight(w, "square", x)) @ _weight(w, "other", x)
    return x + (y if c.mesh is None else lax.psum(y, "x") / 8)


def heads(x, w, c):
    """Causal attention over heads of 8, in 16 bits: what cuDNN's kernel takes."""
    batch, length, d = x.shape
    count = max(2, -(-d // 8))

    def project(name):
        wide = jnp.tile(w[name], (1, -(-8 * count // d)))[:, : 8 * count]
        return (x.astype(jnp.bfloat16) @ wide.astype(jnp.bfloat16)).reshape(batch, length, count, 8)

    q, k, v = project("square"), project("other"), project("square")
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * 8**-0.5
    scores = jnp.where(jnp.tri(length, dtype=bool), scores, -1e30)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(jnp.bfloat16), v)
    return x + mixed.reshape(batch, length, -1)[..., :d].astype(x.dtype)


def experts(x, w, c):
    """A mixture of experts: dispatch and combine by one-hot tensors, slots by a running count."""
    batch, length, d = x.shape
    tokens, each = x.reshape(-1, d), 2 if d > 1 else 1
    capacity = max(1, batch * length * each // d)
    top, index = lax.top_k((tokens @ _weight(w, "square", x)).astype(jnp.float32), each)
    picked = jax.nn.one_hot(index, d, dtype=jnp.float32)
    order = jnp.cumsum(picked.reshape(-1, d), 0).reshape(-1, each, d)
    slot = jnp.where(picked > 0, order - 1, capacity).astype(jnp.int32)
    place = jax.nn.one_hot(slot, capacity, dtype=x.dtype)
    rows = jnp.tanh(jnp.einsum("tec,td->ecd", place.sum(1), tokens))
    combine = jnp.einsum("tkec,tk->tec", place, jax.nn.softmax(top).astype(x.dtype))
    return x + jnp.einsum("tec,ecd->td", combine, rows).reshape(x.shape)


def spectral(x, w, c):
    """A long convolution by Fourier transforms."""
    f, length = x.astype(jnp.float32), x.shape[1]
    kernel = jnp.exp(-jnp.arange(length, dtype=jnp.float32))[:, None] * w["vector"]
    product = jnp.fft.rfft(f, 2 * length, axis=1) * jnp.fft.rfft(kernel, 2 * length, axis=0)
    return x + jnp.fft.irfft(product, 2 * length, axis=1)[:, :length].astype(x.dtype)


def rotated(x, w, c):
    """Pairs of features as complex numbers, turned by their position."""
    f = x.astype(jnp.float32)
    turn = jnp.exp(1j * jnp.arange(x.shape[1])[:, None] * w["vector"])
    return x + ((f + 1j * f[..., ::-1]) * turn).real.astype(x.dtype)


def fenced(x, w, c):
    with farrier.hint(fence="on"):
        return x + jnp.tanh(x @ _weight(w, "square", x)) + x @ _weight(w, "other", x)


BLOCKS: tuple[Block, ...] = (
    dense, dense, gated, accumulated, rms_norm, layer_norm, attention, convolution, dropout, noise, running,
    associative, ordered, routed, gathered, shared_table, inner_loop, data_loop, branched, switched, rounded,
    clipped, called, barred, solved, summed, parallel, heads, experts, fenced, spectral, rotated,
)  # fmt: skip

# Where nothing jumps, a sum in another order changes little. (Experts jump where two are equally good.)
CONTINUOUS: tuple[Block, ...] = (
    dense, accumulated, rms_norm, layer_norm, convolution, dropout, running, associative, shared_table, inner_loop,
    called, barred, parallel, heads, heads, heads, experts, experts, experts, fenced, spectral, rotated,
)  # fmt: skip


def _pick(random: Any, choices):
    return choices[random.randrange(len(choices))]


def _chance(random: Any, one_in: int) -> bool:
    return random.randrange(one_in) == one_in - 1


def _layers(random: Any, body: Callable, count: int) -> Callable:
    """``body`` applied ``count`` times: unrolled, or in a loop of one of several forms."""
    style = random.randrange(7)

    def apply(x, w, key):
        keys = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(key), count))
        step = lambda h, inputs: (body(h, inputs[0], inputs[1]), h.astype(jnp.float32).mean())  # noqa: E731
        if style == 0:
            return lax.scan(step, x, (w, keys))
        if style == 1:
            return lax.scan(step, x, (w, keys), reverse=True)
        if style == 2:
            return lax.scan(step, x, (w, keys), unroll=2)
        if style == 3 and count % 2 == 0:
            pairs = jax.tree.map(lambda a: a.reshape(2, count // 2, *a.shape[1:]), (w, keys))
            return lax.scan(lambda h, inputs: lax.scan(step, h, inputs), x, pairs)
        if style == 4:
            each = [jax.tree.map(lambda a, i=i: a[i], w) for i in range(count)]
            return lax.fori_loop(0, 2, lambda i, h: body(h, each[0], keys[0]), x), jnp.zeros(())
        means = []
        for i in range(count):
            x = body(x, jax.tree.map(lambda a, i=i: a[i], w), keys[i])
            means.append(x.astype(jnp.float32).mean())
        return x, jnp.stack(means)

    return apply


def _loss(kind: int) -> Callable:

    def loss(x, tokens, embedding):
        f = x.astype(jnp.float32)
        if kind == 0:
            logits = jnp.einsum("bsd,vd->bsv", f, embedding)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1).mean()
        if kind == 1:
            return (f * f).mean()
        if kind == 2:
            return jnp.abs(f).sum() + jnp.max(f)
        return jax.nn.logsumexp(f)

    return loss


def _optimizer(random: Any) -> Callable:
    kind = random.randrange(3)

    def update(w, state, g):
        if kind == 0:
            return jax.tree.map(lambda p, d: p - 0.1 * d, w, g), state
        first = jax.tree.map(lambda m, d: 0.9 * m + 0.1 * d, state[0], g)
        if kind == 1:
            return jax.tree.map(lambda p, m: p - 0.1 * m, w, first), (first, state[1])
        second = jax.tree.map(lambda v, d: 0.99 * v + 0.01 * d * d, state[1], g)
        moved = jax.tree.map(lambda p, m, v: p - 0.01 * m / (jnp.sqrt(v) + 1e-8), w, first, second)
        return moved, (first, second)

    return update


_CHECKPOINTS = (
    lambda f: f,
    lambda f: f,
    lambda f: f,
    jax.checkpoint,
    functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
    functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.everything_saveable),
)


@functools.cache
def _mesh() -> Any:
    return jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def step(random: Any, scale: int = 1, *, substitutable: bool = False) -> tuple[Callable, tuple]:
    """A jitted random train step and abstract arguments: (weights, optimizer state, tokens, key).

    Args:
      scale: factor of batch, length and width. Above 1 the step is for one device.
      substitutable: blocks and losses that kernels and other sums may replace, without jumps.
    """
    placement = _pick(random, ("one",) * 8 + ("constraint", "manual")) if scale == 1 else "one"
    sizes = Sizes(
        batch=_pick(random, (8, 16)) if placement != "one" else _pick(random, (1, 2, 3)) * scale,
        length=_pick(random, (4, 8) if substitutable else (1, 2, 4)) * scale,
        width=_pick(random, (2, 4, 6)) * scale,
        dtype=_pick(random, (jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16)),
    )
    blocks = [_pick(random, CONTINUOUS if substitutable else BLOCKS) for _ in range(1 + random.randrange(4))]
    checkpoint = _pick(random, _CHECKPOINTS)
    if {spectral, rotated} & set(blocks) and checkpoint in _CHECKPOINTS[-2:]:
        checkpoint = jax.checkpoint  # what a policy saves JAX rounds, and it cannot round complex numbers
    count = _pick(random, (1, 2, 2, 3, 4))
    mesh = _mesh() if placement != "one" else None

    def body(x, w, key):
        c = Context(w["table"], jax.random.wrap_key_data(key), mesh if placement == "manual" else None)
        for block in blocks:
            x = block(x, w, c).astype(sizes.dtype)
        if placement == "constraint":
            x = lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("x")))
        return x

    layers = _layers(random, checkpoint(body), count)
    loss = _loss(0 if substitutable and random.randrange(4) else random.randrange(4))
    update = _optimizer(random)
    microbatches = _pick(random, (1, 1, 1, 2))
    donate = _chance(random, 3)

    def whole(w, tokens, key):
        tokens = jnp.abs(tokens) % VOCABULARY
        x = w["embedding"][tokens].astype(sizes.dtype)
        table = jnp.broadcast_to(w["table"], (count, *w["table"].shape))
        each = {"square": w["square"], "other": w["other"], "vector": w["vector"], "table": table}
        x, means = layers(x, each, key)
        return loss(x, tokens, w["embedding"]), means

    if placement == "manual":
        inner = whole

        def whole(w, tokens, key):
            def mapped(w, tokens, key):
                value, means = inner(w, tokens, key)
                return lax.pmean(value, "x"), lax.pmean(means, "x")

            spec = PartitionSpec()
            return jax.shard_map(
                mapped, mesh=mesh, in_specs=(spec, PartitionSpec("x"), spec), out_specs=(spec, spec),
                check_vma=False,
            )(w, tokens, key)  # fmt: skip

    def train_step(w, state, tokens, key):
        gradient = jax.value_and_grad(whole, has_aux=True)
        if microbatches == 1:
            (value, means), g = gradient(w, tokens, key)
        else:

            def accumulate(total, part):
                (value, means), g = gradient(w, part, key)
                return jax.tree.map(jnp.add, total, g), (value, means)

            parts = jnp.stack([tokens, tokens[::-1]])
            g, (value, means) = lax.scan(accumulate, jax.tree.map(jnp.zeros_like, w), parts)
        return (*update(w, state, g), value, means)

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    d = sizes.width
    w = {
        "square": shape(count, d, d),
        "other": shape(count, d, d),
        "vector": shape(count, d),
        "table": shape(d, d),
        "embedding": shape(VOCABULARY, d),
    }
    tokens = shape(sizes.batch, sizes.length, dtype=jnp.int32)
    jitted = jax.jit(train_step, donate_argnums=(0, 1) if donate else ())
    if mesh is not None:
        replicated = NamedSharding(mesh, PartitionSpec())
        jitted = jax.jit(
            train_step,
            donate_argnums=(0, 1) if donate else (),
            in_shardings=replicated,
            out_shardings=replicated,
        )
    return jitted, (w, (w, w), tokens, shape(2, dtype=jnp.uint32))


def substitutable(random: Any) -> str:
    """The text of a random train step with parts that have substitutes."""
    return module(random, substitutable=True)


def module(random: Any, *, substitutable: bool = False) -> str:
    """The text of a random train step's module, as ``jax.jit`` lowers it."""
    function, arguments = step(random, substitutable=substitutable)
    module = function.lower(*arguments).compiler_ir("stablehlo")
    return module.operation.get_asm(print_generic_op_form=True)
