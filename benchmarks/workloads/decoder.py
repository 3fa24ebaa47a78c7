"""A decoder-only language model's training step: RMSNorm, RoPE, grouped-query attention, SwiGLU, AdamW.

bf16 compute over f32 master weights. Sizes are public ones; everything is abstract, so 70B costs nothing to
build.
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
from workloads import optimizer, remat_policies
from workloads.registry import Built


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its batch. Llama-3 shapes: Grattafiori et al. 2024, table 3; Mixtral: Jiang et al. 2024,
    table 1."""

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


SIZES = {
    "tiny": Size(64, 2, 4, 2, 16, 128, 128, 32, 2),
    "1b": Size(2048, 8, 16, 4, 128, 5632, 32768, 4096, 4),
    "llama3-8b": Size(4096, 32, 32, 8, 128, 14336, 128256, 8192, 1, 500000.0),
    "llama3-70b": Size(8192, 80, 64, 8, 128, 28672, 128256, 8192, 1, 500000.0),
}


def layer_shapes(s: Size) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's weights."""
    return {
        "attention_norm": (s.width,),
        "query": (s.width, s.heads, s.head_width),
        "key": (s.width, s.key_heads, s.head_width),
        "value": (s.width, s.key_heads, s.head_width),
        "out": (s.heads, s.head_width, s.width),
        "mlp_norm": (s.width,),
        "gate": (s.width, s.hidden),
        "up": (s.width, s.hidden),
        "down": (s.hidden, s.width),
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


def decoder_layer(s: Size, attention: str, name_residuals: bool, x, weights, positions):
    """One pre-norm decoder layer on [B, S, width]."""
    h = checkpoint_name(rms_norm(x, weights["attention_norm"]), "attention_norm")
    query = rotary(jnp.einsum("bsd,dhk->bshk", h, weights["query"]), positions, s.rope_base)
    key = rotary(jnp.einsum("bsd,dhk->bshk", h, weights["key"]), positions, s.rope_base)
    value = jnp.einsum("bsd,dhk->bshk", h, weights["value"])
    query, key, value = (checkpoint_name(v, n) for v, n in ((query, "query"), (key, "key"), (value, "value")))
    mixed = attention_kinds.attend(attention, query, key, value, name_residuals=name_residuals)
    mixed = checkpoint_name(mixed, "attention")
    x = checkpoint_name(x + jnp.einsum("bshk,hkd->bsd", mixed, weights["out"]), "middle")
    h = checkpoint_name(rms_norm(x, weights["mlp_norm"]), "mlp_norm")
    gate = checkpoint_name(h @ weights["gate"], "gate")
    up = checkpoint_name(h @ weights["up"], "up")
    return x + (jax.nn.silu(gate) * up) @ weights["down"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean negative log-likelihood; logits [..., V] in f32, labels [...]."""
    top = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(log_sum - chosen)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a step is written: everything but the size."""

    style: str
    attention: str
    remat: str
    batch_sharding: Any = None

    def constrain(self, x):
        """Pins the batch axis of activations: without it sharding propagation follows the weights."""
        if self.batch_sharding is None:
            return x
        spec = P(*self.batch_sharding.spec, *([None] * (x.ndim - len(self.batch_sharding.spec))))
        return lax.with_sharding_constraint(x, NamedSharding(self.batch_sharding.mesh, spec))


def loss(s: Size, plan: Plan, weights, tokens, labels):
    """Mean next-token loss of one batch; tokens and labels [B, S]."""
    weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    positions = jnp.arange(tokens.shape[1])
    named = remat_policies.names_flash_residuals(plan.remat)

    def layer(x, w):
        return plan.constrain(decoder_layer(s, plan.attention, named, plan.constrain(x), w, positions))

    layer = remat_policies.wrap(layer, plan.remat, scanned=plan.style == "scanned")
    x = plan.constrain(weights["embedding"][tokens])
    if plan.style == "scanned":
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, weights["layers"])
    else:
        for w in weights["layers"]:
            x = layer(x, w)
    x = plan.constrain(rms_norm(x, weights["final_norm"]))
    logits = jnp.einsum("bsd,dv->bsv", x, weights["head"], preferred_element_type=jnp.float32)
    return cross_entropy(plan.constrain(logits), labels)


def train_step(s: Size, plan: Plan, state, tokens, labels):
    """One optimizer step: (state, tokens, labels) -> (state, loss)."""
    value, gradients = jax.value_and_grad(functools.partial(loss, s, plan))(state["weights"], tokens, labels)
    return optimizer.update(state, gradients), value


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


def _fsdp_spec(path, shape, style: str, devices: int, axis: str) -> P:
    """Shards the largest axis that the devices divide; the stacked layer axis never."""
    stacked = style == "scanned" and any(getattr(k, "key", None) == "layers" for k in path)
    candidates = [n for n in range(int(stacked), len(shape)) if shape[n] % devices == 0]
    if not candidates or devices == 1:
        return P()
    chosen = max(candidates, key=lambda n: shape[n])
    return P(*[axis if n == chosen else None for n in range(len(shape))])


def build(
    target: Any = None,
    *,
    size: str = "1b",
    style: str = "unrolled",
    attention: str = "cudnn",
    remat: str = "none",
    layers: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Built:
    """The training step on one device, or sharded over all of the target's devices (FSDP by automatic
    sharding).

    Args:
      target: where the abstract arguments live; None: this machine.
      size: a key of `SIZES`.
      style: ``"unrolled"`` or ``"scanned"`` layers.
      attention: ``"naive"``, ``"cudnn"`` or ``"chunked"``.
      remat: a name from `remat_policies.names()`.
      layers, batch, length: replace the size's own.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r}: expected one of {sorted(SIZES)}")
    if style not in ("unrolled", "scanned"):
        raise ValueError(f"style {style!r}: expected 'unrolled' or 'scanned'")
    given = {"layers": layers, "batch": batch, "length": length}
    s = dataclasses.replace(SIZES[size], **{k: v for k, v in given.items() if v is not None})
    mesh = target.mesh(names=("x",)) if target is not None else None
    devices = target.device_count if target is not None else 1

    def place(spec: P):
        return NamedSharding(mesh, spec) if mesh is not None else None

    def is_shape(x):
        return isinstance(x, tuple)

    weights = jax.tree_util.tree_map_with_path(
        lambda path, shape: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=place(_fsdp_spec(path, shape, style, devices, "x"))
        ),
        weight_shapes(s, style),
        is_leaf=is_shape,
    )
    state = optimizer.init_abstract(weights)
    data_spec = P("x") if devices > 1 else P()
    tokens = jax.ShapeDtypeStruct((s.batch, s.length), jnp.int32, sharding=place(data_spec))
    plan = Plan(style, attention, remat, place(data_spec) if devices > 1 else None)
    step = functools.partial(train_step, s, plan)
    step.__name__ = "train_step"
    shardings = None
    if mesh is not None:
        shardings = (jax.tree.map(lambda a: a.sharding, state), place(P()))
    function = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    return Built("", function, (state, tokens, tokens), target, tokens_limit=s.vocabulary)
