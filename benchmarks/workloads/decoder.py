"""A decoder-only language model's training step: RMSNorm, RoPE, grouped-query attention, SwiGLU, AdamW.

bf16 compute over f32 master weights. Sizes are public ones; everything is abstract, so 70B costs
nothing to build.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from workloads import attention as attention_kinds
from workloads import moe, remat_policies, training
from workloads.registry import Built


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its batch.

    Llama-3 shapes: Grattafiori et al. 2024, table 3; the 8x7B mixture: Jiang et al. 2024, table 1; the layers of
    the 16B mixture: Dai et al. 2024 (DeepSeekMoE).
    """

    width: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    hidden: int
    vocabulary: int
    length: int
    batch: int
    rope_base: float = 10000.0
    experts: int = 0
    chosen: int = 0


SIZES = {
    "tiny": Size(64, 2, 4, 2, 16, 128, 128, 32, 2),
    "tiny-moe": Size(64, 2, 4, 2, 16, 128, 128, 32, 2, experts=4, chosen=2),
    # In numbers that eight devices divide.
    "tiny-8": Size(64, 2, 8, 8, 8, 128, 128, 32, 8),
    "tiny-8-moe": Size(64, 2, 8, 8, 8, 64, 128, 32, 8, experts=16, chosen=2),
    "1b": Size(2048, 8, 16, 4, 128, 5632, 32768, 4096, 4),
    "1b-narrow": Size(1024, 16, 8, 8, 128, 2816, 32768, 4096, 8),
    "wide": Size(4096, 4, 32, 8, 128, 14336, 32768, 4096, 2),
    "llama3-8b": Size(4096, 32, 32, 8, 128, 14336, 128256, 8192, 1, 500000.0),
    "llama3-70b": Size(8192, 80, 64, 8, 128, 28672, 128256, 8192, 1, 500000.0),
    # As "1b", "wide" and "moe-16b", in numbers that 72 and 576 devices divide.
    "1b-72": Size(2304, 8, 18, 6, 128, 5760, 36864, 4096, 72),
    "wide-72": Size(4608, 4, 32, 8, 128, 14400, 36864, 4096, 18),
    "moe-72": Size(2304, 4, 18, 18, 128, 1440, 36864, 4096, 72, experts=72, chosen=6),
    "moe-16b": Size(2048, 4, 16, 16, 128, 1408, 32768, 4096, 8, experts=64, chosen=6),
    "moe-8x7b": Size(4096, 32, 32, 8, 128, 14336, 32000, 4096, 1, 1e6, experts=8, chosen=2),
}


def layer_shapes(s: Size) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's weights."""
    expert = (s.experts,) if s.experts else ()
    shapes = {
        "attention_norm": (s.width,),
        "query": (s.width, s.heads, s.head_width),
        "key": (s.width, s.key_heads, s.head_width),
        "value": (s.width, s.key_heads, s.head_width),
        "out": (s.heads, s.head_width, s.width),
        "mlp_norm": (s.width,),
        "gate": (*expert, s.width, s.hidden),
        "up": (*expert, s.width, s.hidden),
        "down": (*expert, s.hidden, s.width),
    }
    if s.experts:
        shapes["router"] = (s.width, s.experts)
    return shapes


def weight_shapes(s: Size, style: str) -> dict[str, Any]:
    """Shapes of all weights: a list of layers, or stacked layers for a scan."""
    one = layer_shapes(s)
    layers: Any
    if style == "scanned":
        layers = {k: (s.layers, *shape) for k, shape in one.items()}
    else:
        layers = [dict(one) for _ in range(s.layers)]
    return {
        "embedding": (s.vocabulary, s.width),
        "layers": layers,
        "final_norm": (s.width,),
        "head": (s.width, s.vocabulary),
    }


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root-mean-square norm over the last axis, statistics in f32."""
    wide = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
    return (wide * inverse).astype(x.dtype) * scale.astype(x.dtype)


def rotary(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding of [B, S, H, D], halves rotated against each other, in f32."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, None] * frequency
    cosine, sine = jnp.cos(angle)[None, :, None, :], jnp.sin(angle)[None, :, None, :]
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1).astype(
        x.dtype
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a step is written: everything but the size."""

    style: str
    attention: str
    remat: str
    moe: str = "ragged"
    dropout: float = 0.0
    batch_sharding: Any = None

    def constrain(self, x):
        """Pins the batch axis of activations: without it sharding propagation follows the weights."""
        if self.batch_sharding is None:
            return x
        spec = P(*self.batch_sharding.spec, *([None] * (x.ndim - len(self.batch_sharding.spec))))
        return lax.with_sharding_constraint(x, NamedSharding(self.batch_sharding.mesh, spec))


def projected(s: Size, h, weights, positions):
    """Query, key and value of normed activations [B, S, width], positions rotated in."""
    query = rotary(jnp.einsum("bsd,dhk->bshk", h, weights["query"]), positions, s.rope_base)
    key = rotary(jnp.einsum("bsd,dhk->bshk", h, weights["key"]), positions, s.rope_base)
    return query, key, jnp.einsum("bsd,dhk->bshk", h, weights["value"])


def mix(s: Size, plan: Plan, h, weights, positions):
    """Attention of normed activations [B, S, width], up to and without the output projection."""
    query, key, value = projected(s, h, weights, positions)
    query, key, value = (checkpoint_name(v, n) for v, n in ((query, "query"), (key, "key"), (value, "value")))
    named = remat_policies.names_flash_residuals(plan.remat)
    mixed = attention_kinds.attend(plan.attention, query, key, value, name_residuals=named)
    return checkpoint_name(mixed, "attention")


def gated(h, weights):
    """SwiGLU's hidden values of normed activations."""
    gate = checkpoint_name(h @ weights["gate"], "gate")
    up = checkpoint_name(h @ weights["up"], "up")
    return jax.nn.silu(gate) * up


def decoder_layer(s: Size, plan: Plan, x, weights, positions, key=None):
    """One pre-norm decoder layer on [B, S, width]; `key` draws the dropout masks."""

    def drop(y, n):
        if plan.dropout == 0.0:
            return y
        keep = jax.random.bernoulli(jax.random.fold_in(key, n), 1 - plan.dropout, y.shape)
        return jnp.where(keep, y / (1 - plan.dropout), 0).astype(y.dtype)

    h = checkpoint_name(rms_norm(x, weights["attention_norm"]), "attention_norm")
    mixed = mix(s, plan, h, weights, positions)
    x = checkpoint_name(x + drop(jnp.einsum("bshk,hkd->bsd", mixed, weights["out"]), 0), "middle")
    h = checkpoint_name(rms_norm(x, weights["mlp_norm"]), "mlp_norm")
    if s.experts:
        return x + drop(moe.feed_forward(plan.moe, h, weights, s.chosen), 1)
    return x + drop(gated(h, weights) @ weights["down"], 1)


def loss(s: Size, plan: Plan, weights, tokens, labels, seed=None):
    """Mean next-token loss of one batch; tokens and labels [B, S], seed [] for dropout."""
    weights = training.half(weights)
    positions = jnp.arange(tokens.shape[1])
    # A typed key: its derivation per layer is part of the program, as in users' code.
    base = jax.random.key(seed) if seed is not None else None

    def layer(x, scanned):
        w, n = scanned
        key = jax.random.fold_in(base, n) if base is not None else None
        return plan.constrain(decoder_layer(s, plan, plan.constrain(x), w, positions, key))

    layer = remat_policies.wrap(layer, plan.remat, scanned=plan.style == "scanned")
    x = plan.constrain(weights["embedding"][tokens])
    if plan.style == "scanned":
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, (weights["layers"], jnp.arange(s.layers)))
    else:
        for n, w in enumerate(weights["layers"]):
            x = layer(x, (w, n))
    x = plan.constrain(rms_norm(x, weights["final_norm"]))
    logits = jnp.einsum("bsd,dv->bsv", x, weights["head"], preferred_element_type=jnp.float32)
    return training.cross_entropy(plan.constrain(logits), labels)


def accumulated(one: training.Loss, count: int) -> training.Loss:
    """The mean loss over `count` microbatches under a scan; its gradient accumulates in the scan's
    backward."""

    def total(weights, *batch):
        split = [b.reshape(count, b.shape[0] // count, *b.shape[1:]) for b in batch]
        value, _ = lax.scan(
            lambda acc, piece: (acc + jax.checkpoint(one)(weights, *piece), None),
            jnp.float32(0),
            tuple(split),
        )
        return value / count

    return total


def fsdp_spec(path, shape, *, style: str, devices: int, axis: str = "x") -> P:
    """Shards the largest axis that the devices divide; the stacked layer axis never."""
    stacked = style == "scanned" and any(getattr(k, "key", None) == "layers" for k in path)
    candidates = [n for n in range(int(stacked), len(shape)) if shape[n] % devices == 0]
    if not candidates or devices == 1:
        return P()
    chosen = max(candidates, key=lambda n: shape[n])
    return P(*[axis if n == chosen else None for n in range(len(shape))])


# Two mesh axes: "f" shards weights and batch (FSDP), "t" shards heads, hidden units and the vocabulary.
_TWO_AXES = {
    "query": ("f", "t", None),
    "key": ("f", "t", None),
    "value": ("f", "t", None),
    "out": ("t", None, "f"),
    "gate": ("f", "t"),
    "up": ("f", "t"),
    "down": ("t", "f"),
    "embedding": ("t", "f"),
    "head": ("f", "t"),
}


def two_axes_spec(path, shape, *, style: str) -> P:
    """Partition of a weight over the axes f (FSDP) and t (tensor)."""
    name = path[-1].key
    spec = _TWO_AXES.get(name, ())
    stacked = style == "scanned" and any(getattr(k, "key", None) == "layers" for k in path)
    return P(*([None] if stacked and spec else []), *spec) if len(spec) + stacked == len(shape) else P()


def resize(size: str, layers: int | None, batch: int | None, length: int | None) -> Size:
    """A named size with some of its figures replaced."""
    training.check_choice("size", size, SIZES)
    given = {"layers": layers, "batch": batch, "length": length}
    return dataclasses.replace(SIZES[size], **{k: v for k, v in given.items() if v is not None})


def build(
    target: Any = None,
    *,
    size: str = "1b",
    style: str = "unrolled",
    attention: str = "cudnn",
    remat: str = "none",
    sharding: str = "fsdp",
    tensor: int = 1,
    microbatches: int = 1,
    dropout: float = 0.0,
    moe_kind: str = "ragged",
    layers: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Built:
    """The training step on one device, or over all of the target's devices by automatic sharding.

    Args:
      target: where the abstract arguments live; None: this machine.
      size: a key of `SIZES`.
      style: ``"unrolled"`` or ``"scanned"`` layers.
      attention: ``"naive"``, ``"cudnn"`` or ``"chunked"``.
      remat: a name from `remat_policies.names()`.
      sharding: ``"fsdp"`` shards weights and batch; ``"data"`` shards the batch only.
      tensor: devices along a second mesh axis that shards heads and hidden units.
      microbatches: gradient accumulation over so many pieces of the batch, in an outer scan.
      dropout: probability; adds a seed argument.
      moe_kind: ``"ragged"`` or ``"onehot"``, for sizes with experts.
      layers, batch, length: replace the size's own.
    """
    s = resize(size, layers, batch, length)
    training.check_choice("style", style, ("unrolled", "scanned"))
    training.check_choice("attention", attention, attention_kinds.KINDS)
    training.check_choice("remat", remat, remat_policies.names())
    training.check_choice("sharding", sharding, ("fsdp", "data"))
    training.check_choice("moe_kind", moe_kind, moe.KINDS)
    devices = target.device_count if target is not None else 1
    if devices % tensor or s.batch % (devices // tensor) or s.batch % microbatches:
        raise ValueError(
            f"batch {s.batch} over {devices} devices, tensor={tensor}, microbatches={microbatches}"
        )
    if tensor > 1:
        mesh = target.mesh((devices // tensor, tensor), ("f", "t"))
        weight_spec, batch_spec = functools.partial(two_axes_spec, style=style), P("f")
    else:
        mesh = target.mesh(names=("x",)) if target is not None else None
        weight_spec = functools.partial(fsdp_spec, style=style, devices=devices)
        batch_spec = P("x") if devices > 1 else P()
        if sharding == "data":
            weight_spec = training.whole
    pinned = training.place(mesh, batch_spec) if devices > 1 else None
    plan = Plan(style, attention, remat, moe_kind, dropout, pinned)
    tokens = ((s.batch, s.length), jnp.int32)
    arguments = {"tokens": tokens, "labels": tokens}
    if dropout:
        arguments["seed"] = ((), jnp.int32)
    one = functools.partial(loss, s, plan)
    if microbatches > 1:
        if dropout:
            raise ValueError("dropout with microbatches: one of the two")
        one = accumulated(one, microbatches)
    return training.finish(
        target,
        one,
        weight_shapes(s, style),
        arguments,
        mesh=mesh,
        weight_spec=weight_spec,
        batch_spec=batch_spec,
        integers_below=s.vocabulary,
    )
