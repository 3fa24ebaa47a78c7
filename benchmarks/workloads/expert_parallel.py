"""A mixture of experts whose experts live on different devices: tokens travel in all-to-alls.

Dense weights are sharded and gathered layer by layer (FSDP) over the same devices, so that gathers,
reduce-scatters and all-to-alls share one communication stream.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from workloads import decoder, moe
from workloads.decoder_manual import (
    finish_manual,
    gather,
    gathered_loss,
    opened,
    shard_axis,
    sharded_spec,
)
from workloads.registry import Built

_EXPERTS = ("gate", "up", "down")


def build(
    target: Any = None,
    *,
    size: str = "moe-16b",
    style: str = "unrolled",
    attention: str = "cudnn",
    shared: int = 2,
    layers: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Built:
    """The training step with experts over all of the target's devices.

    Args:
      target: as many devices as divide the experts.
      size, style, attention, layers, batch, length: as `decoder.build`; the size needs experts.
      shared: experts that every token passes (Dai et al. 2024, DeepSeekMoE): what can run while tokens travel.
    """
    devices, s, plan = opened(target, size, style, layers, batch, length, attention=attention)
    if not s.experts or s.experts % devices:
        raise ValueError(f"size {size!r} has {s.experts} experts for {devices} devices")
    mesh = target.mesh(names=("x",))
    one = decoder.layer_shapes(s)
    if shared:
        wide = shared * s.hidden
        one |= {
            "shared_gate": (s.width, wide),
            "shared_up": (s.width, wide),
            "shared_down": (wide, s.width),
        }
    axes = {k: 0 if k in _EXPERTS else shard_axis(shape, devices) for k, shape in one.items()}
    shapes = decoder.weight_shapes(s, style)
    shapes["layers"] = (
        {k: (s.layers, *shape) for k, shape in one.items()}
        if style == "scanned"
        else [dict(one) for _ in range(s.layers)]
    )

    def layer(x, shards, positions):
        w = {k: v.astype(jnp.bfloat16) if k in _EXPERTS else gather(v, axes[k]) for k, v in shards.items()}
        h = decoder.rms_norm(x, w["attention_norm"])
        x = x + jnp.einsum("bshk,hkd->bsd", decoder.mix(s, plan, h, w, positions), w["out"])
        h = decoder.rms_norm(x, w["mlp_norm"])
        flat = h.reshape(-1, s.width)
        routed = moe.exchanged(flat, w, s.chosen, axis="x", devices=devices)
        x = x + routed.reshape(x.shape)
        if shared:
            mine = {k.removeprefix("shared_"): v for k, v in w.items() if k.startswith("shared_")}
            x = x + decoder.gated(h, mine) @ mine["down"]
        return x

    def loss(weights, tokens, labels):
        positions = jnp.arange(tokens.shape[1])
        return gathered_loss(weights, tokens, labels, lambda x, w: layer(x, w, positions), devices)

    spec = sharded_spec(axes, style)
    return finish_manual(target, mesh, s, style, loss, spec, P("x"), axis="x", shapes=shapes)
