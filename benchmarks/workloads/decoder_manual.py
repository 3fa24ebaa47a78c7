"""The decoder's training step under `jax.shard_map`: every collective is written out by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from workloads import attention as attention_kinds
from workloads import decoder, optimizer, training
from workloads.registry import Built


def gather(weight: jax.Array, axis: int, over: str = "x") -> jax.Array:
    """The whole weight in bf16 from its shards along a mesh axis; its transpose is a reduce-scatter."""
    return lax.all_gather(weight.astype(jnp.bfloat16), over, axis=axis, tiled=True)


def shard_axis(shape: tuple[int, ...], devices: int) -> int:
    """The largest axis that the devices divide."""
    candidates = [n for n, size in enumerate(shape) if size % devices == 0]
    if not candidates:
        raise ValueError(f"no axis of a weight of shape {shape} divides by {devices} devices")
    return max(candidates, key=lambda n: shape[n])


def sharded_spec(axes: dict[str, int], style: str) -> Callable[[Any, tuple[int, ...]], P]:
    """The partition of a decoder's weights over the axis "x": each layer's along `axes`."""

    def spec(path, shape):
        name = path[-1].key
        if any(getattr(k, "key", None) == "layers" for k in path):
            chosen = axes[name] + (style == "scanned")
        else:
            chosen = 1 if name == "head" else 0
        return P(*["x" if n == chosen else None for n in range(len(shape))])

    return spec


def gathered_loss(weights: Any, tokens: jax.Array, labels: jax.Array, layer: Any, devices: int) -> jax.Array:
    """One device's part of the mean loss; embedding, norm and head are gathered over the axis "x".

    Args:
      weights: a decoder's, one device's shards.
      tokens, labels: [B, S], one device's.
      layer: ``layer(x, shards)``, scanned where the layers are stacked.
      devices: along "x".
    """
    x = gather(weights["embedding"], 0)[tokens]
    if isinstance(weights["layers"], dict):
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, weights["layers"])
    else:
        for w in weights["layers"]:
            x = layer(x, w)
    x = decoder.rms_norm(x, gather(weights["final_norm"], 0))
    logits = jnp.einsum("bsd,dv->bsv", x, gather(weights["head"], 1), preferred_element_type=jnp.float32)
    return training.cross_entropy(logits, labels) / devices


def fsdp(
    target: Any = None,
    *,
    size: str = "1b",
    style: str = "unrolled",
    attention: str = "cudnn",
    reshard: bool = True,
    layers: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Built:
    """Weights sharded over all devices, gathered layer by layer.

    Args:
      target: at least two devices.
      size, style, attention, layers, batch, length: as `decoder.build`.
      reshard: gather again in the backward (ZeRO-3) instead of keeping gathered weights (ZeRO-2).
    """
    devices, s, plan = opened(target, size, style, layers, batch, length, attention=attention)
    axes = {k: shard_axis(shape, devices) for k, shape in decoder.layer_shapes(s).items()}
    mesh = target.mesh(names=("x",))

    def keep(primitive, *_, **__):
        # Everything stays but the gathered weights.
        return primitive.name not in ("all_gather", "all_gather_invariant")

    def layer(x, w, positions):
        gathered = {k: gather(v, axes[k]) for k, v in w.items()}
        return decoder.decoder_layer(s, plan, x, gathered, positions)

    def loss(weights, tokens, labels):
        positions = jnp.arange(tokens.shape[1])
        one = jax.checkpoint(layer, policy=keep, prevent_cse=style == "unrolled") if reshard else layer
        return gathered_loss(weights, tokens, labels, lambda x, w: one(x, w, positions), devices)

    spec = sharded_spec(axes, style)
    return finish_manual(target, mesh, s, style, loss, spec, P("x"), axis="x")


def conjugate_pair(axis: str) -> tuple[Callable, Callable]:
    """What a parallel region is entered and left by (Megatron-LM's f and g): identity forward with a sum over `axis`
    backward, and the reverse.
    """

    @jax.custom_vjp
    def enter(x):
        return x

    enter.defvjp(lambda x: (x, None), lambda _, g: (lax.psum(g, axis),))

    @jax.custom_vjp
    def leave(x):
        return lax.psum(x, axis)

    leave.defvjp(lambda x: (lax.psum(x, axis), None), lambda _, g: (g,))
    return enter, leave


def tensor_parallel(
    target: Any = None,
    *,
    size: str = "1b",
    style: str = "unrolled",
    attention: str = "cudnn",
    layers: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Built:
    """Heads, hidden units and the vocabulary sharded over all devices (Shoeybi et al. 2019, Megatron-LM).

    Args:
      target: as many devices as divide the key heads.
      size, style, attention, layers, batch, length: as `decoder.build`.
    """
    devices, s, plan = opened(target, size, style, layers, batch, length, attention=attention)
    if s.key_heads % devices or s.hidden % devices or s.vocabulary % devices:
        raise ValueError(f"{devices} devices do not divide {s.key_heads} key heads of size {size!r}")
    mesh = target.mesh(names=("t",))

    enter, leave = conjugate_pair("t")

    def layer(x, w, positions):
        h = enter(decoder.rms_norm(x, w["attention_norm"]))
        mixed = decoder.mix(s, plan, h, w, positions)
        x = x + leave(jnp.einsum("bshk,hkd->bsd", mixed, w["out"]))
        h = enter(decoder.rms_norm(x, w["mlp_norm"]))
        return x + leave(decoder.gated(h, w) @ w["down"])

    def loss(weights, tokens, labels):
        weights = training.half(weights)
        positions = jnp.arange(tokens.shape[1])
        rows = weights["embedding"].shape[0]
        local = tokens - lax.axis_index("t") * rows
        mine = (local >= 0) & (local < rows)
        found = weights["embedding"][jnp.clip(local, 0, rows - 1)]
        x = leave(jnp.where(mine[..., None], found, 0))
        if style == "scanned":
            x, _ = lax.scan(lambda x, w: (layer(x, w, positions), None), x, weights["layers"])
        else:
            for w in weights["layers"]:
                x = layer(x, w, positions)
        x = enter(decoder.rms_norm(x, weights["final_norm"]))
        logits = jnp.einsum("bsd,dv->bsv", x, weights["head"], preferred_element_type=jnp.float32)
        top = lax.pmax(lax.stop_gradient(jnp.max(logits, axis=-1)), "t")
        log_sum = jnp.log(leave(jnp.sum(jnp.exp(logits - top[..., None]), axis=-1))) + top
        columns = logits.shape[-1]
        local = labels - lax.axis_index("t") * columns
        mine = (local >= 0) & (local < columns)
        picked = jnp.take_along_axis(logits, jnp.clip(local, 0, columns - 1)[..., None], axis=-1)[..., 0]
        return jnp.mean(log_sum - leave(jnp.where(mine, picked, 0.0)))

    sharded = {
        "query": 1,
        "key": 1,
        "value": 1,
        "out": 0,
        "gate": 1,
        "up": 1,
        "down": 0,
        "embedding": 0,
        "head": 1,
    }

    def spec(path, shape):
        name = path[-1].key
        if name not in sharded:
            return P()
        stacked = style == "scanned" and any(getattr(k, "key", None) == "layers" for k in path)
        return P(*["t" if n == sharded[name] + stacked else None for n in range(len(shape))])

    return finish_manual(target, mesh, s, style, loss, spec, P(), axis=None)


def opened(
    target: Any,
    size: str,
    style: str,
    layers: int | None,
    batch: int | None,
    length: int | None,
    *,
    attention: str = "cudnn",
) -> tuple[int, decoder.Size, decoder.Plan]:
    """What workloads of several devices begin with: the number of devices, sizes and the plan of a layer.

    Raises:
      ValueError: one device, or a style, a kind of attention or a size that does not exist.
    """
    devices = several(target)
    training.check_choice("style", style, ("unrolled", "scanned"))
    training.check_choice("attention", attention, attention_kinds.KINDS)
    return devices, decoder.resize(size, layers, batch, length), decoder.Plan(style, attention, "none")


def several(target: Any) -> int:
    """The target's number of devices.

    Raises:
      ValueError: there is no target, or it has one device.
    """
    if target is None or target.device_count < 2:
        raise ValueError("this workload needs a target with several devices")
    return target.device_count


def finish_manual(
    target, mesh, s, style, loss, spec, batch_spec, *, axis: str | None, shapes: Any = None
) -> Built:
    """Wraps the step in a shard_map over `mesh`.

    Args:
      target, mesh, s, style: as the workload has them.
      loss: ``loss(weights, tokens, labels)`` on one device's shards.
      spec: partition of each weight by (tree path, shape).
      batch_spec: partition of tokens and labels.
      axis: the mesh axis over which the loss is summed; None: every device has all of it.
      shapes: tree of weight shapes; None: the decoder's.
    """
    shapes = decoder.weight_shapes(s, style) if shapes is None else shapes
    specs = jax.tree_util.tree_map_with_path(spec, shapes, is_leaf=training.is_shape)
    state_specs = {"weights": specs, "first": specs, "second": specs, "step": P()}

    def step(state, tokens, labels):
        value, gradients = jax.value_and_grad(loss)(state["weights"], tokens, labels)
        if axis is not None:
            value = lax.psum(value, axis)
        return optimizer.update(state, gradients), value

    # The custom calls of attention carry no replication types, hence no check of them.
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(state_specs, batch_spec, batch_spec),
        out_specs=(state_specs, P()),
        check_vma=False,
    )

    @functools.wraps(step)
    def train_step(state, tokens, labels):
        return mapped(state, tokens, labels)

    train_step.__name__ = "train_step"
    tokens = ((s.batch, s.length), jnp.int32)
    return training.finish(
        target,
        loss,
        shapes,
        {"tokens": tokens, "labels": tokens},
        mesh=mesh,
        weight_spec=spec,
        batch_spec=batch_spec,
        step=train_step,
        integers_below=s.vocabulary,
    )
