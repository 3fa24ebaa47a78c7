"""Image models: a residual convolutional network, a vision transformer and a denoising U-Net."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from workloads import remat_policies, training
from workloads.registry import Built


def conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, groups: int = 1) -> jax.Array:
    """A same-padded convolution, NHWC by HWIO."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def batch_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Batch norm with the batch's statistics, in f32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=(0, 1, 2))
    variance = jnp.mean((wide - mean) ** 2, axis=(0, 1, 2))
    return ((wide - mean) * lax.rsqrt(variance + 1e-5)).astype(x.dtype) * scale.astype(x.dtype)


# --- residual network ---------------------------------------------------------------------------

# stage widths, blocks of each stage, image side, classes, batch
RESNET_SIZES = {
    "tiny": ((8, 16), (1, 1), 16, 10, 2),
    "50": ((64, 128, 256, 512), (3, 4, 6, 3), 224, 1000, 128),
}


def _bottleneck(x, w, stride):
    out = jax.nn.relu(batch_norm(conv(x, w["reduce"]), w["norm1"]))
    out = jax.nn.relu(batch_norm(conv(out, w["spatial"], stride=stride), w["norm2"]))
    out = batch_norm(conv(out, w["expand"]), w["norm3"])
    if "project" in w:
        x = conv(x, w["project"], stride=stride)
    return jax.nn.relu(x + out)


def _resnet_loss(strides, remat, weights, images, labels):
    weights = training.half(weights)
    x = jax.nn.relu(conv(images.astype(jnp.bfloat16), weights["stem"], stride=2))
    for w, stride in zip(weights["blocks"], strides, strict=True):
        block = functools.partial(_bottleneck, stride=stride)
        x = remat_policies.wrap(block, remat, scanned=False)(x, w)
    pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    return training.cross_entropy(pooled @ weights["head"].astype(jnp.float32), labels)


def resnet(target: Any = None, *, size: str = "tiny", remat: str = "none", batch: int | None = None) -> Built:
    """A bottleneck residual network (He et al. 2016, table 1)."""
    training.check_choice("size", size, RESNET_SIZES)
    training.check_choice("remat", remat, remat_policies.names())
    widths, counts, side, classes, default_batch = RESNET_SIZES[size]
    batch = batch or default_batch
    blocks, strides, channels = [], [], widths[0]
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
        for n in range(count):
            w = {
                "reduce": (1, 1, channels, width),
                "spatial": (3, 3, width, width),
                "expand": (1, 1, width, 4 * width),
                "norm1": (width,),
                "norm2": (width,),
                "norm3": (4 * width,),
            }
            if n == 0:
                w["project"] = (1, 1, channels, 4 * width)
            blocks.append(w)
            strides.append(2 if n == 0 and stage > 0 else 1)
            channels = 4 * width
    shapes = {"stem": (7, 7, 3, widths[0]), "blocks": blocks, "head": (channels, classes)}
    return training.finish(
        target,
        functools.partial(_resnet_loss, tuple(strides), remat),
        shapes,
        {"images": ((batch, side, side, 3), jnp.float32), "labels": ((batch,), jnp.int32)},
        integers_below=classes,
    )


# --- vision transformer -------------------------------------------------------------------------

# patch, width, layers, heads, hidden, image side, classes, batch
VIT_SIZES = {
    "tiny": (4, 32, 2, 2, 64, 16, 10, 2),
    "large": (16, 1024, 24, 16, 4096, 224, 1000, 64),
}


def _vit_loss(patch, remat, scanned, dropout, weights, images, labels, seed):
    weights = training.half(weights)
    batch, side, _, channels = images.shape
    grid = side // patch
    x = images.astype(jnp.bfloat16).reshape(batch, grid, patch, grid, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, patch * patch * channels)
    x = x @ weights["patch"] + weights["position"]
    base = jax.random.key(seed)

    def layer(x, scanned_in):
        w, n = scanned_in
        h = training.normalize(x, w["norm1"])
        query, key, value = (jnp.einsum("bsd,dhk->bshk", h, w[k]) for k in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(query, key, value, implementation="xla")
        x = x + jnp.einsum("bshk,hkd->bsd", mixed, w["out"])
        h = jax.nn.gelu(training.normalize(x, w["norm2"]) @ w["up"])
        if dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(base, n), 1 - dropout, h.shape)
            h = jnp.where(keep, h / (1 - dropout), 0).astype(h.dtype)
        return x + h @ w["down"]

    layer = remat_policies.wrap(layer, remat, scanned=scanned)
    if scanned:
        count = weights["layers"]["up"].shape[0]
        x, _ = lax.scan(lambda x, w: (layer(x, w), None), x, (weights["layers"], jnp.arange(count)))
    else:
        for n, w in enumerate(weights["layers"]):
            x = layer(x, (w, n))
    pooled = jnp.mean(x.astype(jnp.float32), axis=1)
    return training.cross_entropy(pooled @ weights["head"].astype(jnp.float32), labels)


def vit(
    target: Any = None,
    *,
    size: str = "tiny",
    style: str = "scanned",
    remat: str = "none",
    dropout: float = 0.1,
    layers: int | None = None,
    batch: int | None = None,
) -> Built:
    """A vision transformer (Dosovitskiy et al. 2021, table 1) with dropout after the MLP's activation.

    Args:
      layers: other than the size's.
    """
    training.check_choice("size", size, VIT_SIZES)
    training.check_choice("style", style, ("unrolled", "scanned"))
    training.check_choice("remat", remat, remat_policies.names())
    patch, width, default_layers, heads, hidden, side, classes, default_batch = VIT_SIZES[size]
    layers, batch = layers or default_layers, batch or default_batch
    layer = {
        "norm1": (width,),
        "norm2": (width,),
        **{k: (width, heads, width // heads) for k in ("query", "key", "value")},
        "out": (heads, width // heads, width),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    scanned = style == "scanned"
    stacked = {k: (layers, *s) for k, s in layer.items()} if scanned else [layer for _ in range(layers)]
    shapes = {
        "patch": (patch * patch * 3, width),
        "position": ((side // patch) ** 2, width),
        "layers": stacked,
        "head": (width, classes),
    }
    return training.finish(
        target,
        functools.partial(_vit_loss, patch, remat, scanned, dropout),
        shapes,
        {
            "images": ((batch, side, side, 3), jnp.float32),
            "labels": ((batch,), jnp.int32),
            "seed": ((), jnp.int32),
        },
        integers_below=classes,
    )


# --- denoising U-Net ----------------------------------------------------------------------------

# widths of the levels, image side, batch
UNET_SIZES = {
    "tiny": ((8, 16), 16, 2),
    "small": ((128, 256, 384, 512), 64, 32),
}


def _group_norm(x, scale, groups=4):
    batch, height, width, channels = x.shape
    wide = x.astype(jnp.float32).reshape(batch, height * width, groups, channels // groups)
    mean = jnp.mean(wide, axis=(1, 3), keepdims=True)
    variance = jnp.mean((wide - mean) ** 2, axis=(1, 3), keepdims=True)
    wide = ((wide - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


def _residual(x, w, time):
    h = conv(jax.nn.silu(_group_norm(x, w["norm1"])), w["conv1"])
    h = h + (time @ w["time"])[:, None, None, :]
    h = conv(jax.nn.silu(_group_norm(h, w["norm2"])), w["conv2"])
    return conv(x, w["skip"]) + h


def _unet_loss(remat, weights, images, noise, times):
    weights = training.half(weights)
    block = remat_policies.wrap(_residual, remat, scanned=False)
    level = jnp.cos(times)[:, None, None, None]
    mixed = level * images + jnp.sqrt(1 - level**2) * noise
    x = conv(mixed.astype(jnp.bfloat16), weights["stem"])
    width = weights["time"].shape[0]
    frequency = jnp.exp(-jnp.arange(width // 2, dtype=jnp.float32) * (9.0 / (width // 2)))
    angle = times[:, None] * frequency
    time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(jnp.bfloat16)
    time = jax.nn.silu(time @ weights["time"])
    skips = []
    for w in weights["down"]:
        x = block(x, w["block"], time)
        skips.append(x)
        x = conv(x, w["resize"], stride=2)
    x = block(x, weights["middle"], time)
    for w in reversed(weights["up"]):
        batch, height, side, channels = x.shape
        x = jax.image.resize(x, (batch, 2 * height, 2 * side, channels), "nearest")
        x = jnp.concatenate([conv(x, w["resize"]), skips.pop()], axis=-1)
        x = block(x, w["block"], time)
    predicted = conv(x, weights["out"]).astype(jnp.float32)
    return jnp.mean((predicted - noise) ** 2)


def unet(target: Any = None, *, size: str = "tiny", remat: str = "none", batch: int | None = None) -> Built:
    """A denoising U-Net without attention (after Ho et al. 2020): long skips from early to late layers."""
    training.check_choice("size", size, UNET_SIZES)
    training.check_choice("remat", remat, remat_policies.names())
    widths, side, default_batch = UNET_SIZES[size]
    batch = batch or default_batch
    time = widths[0]

    def block(inner, outer):
        return {
            "norm1": (inner,),
            "conv1": (3, 3, inner, outer),
            "time": (time, outer),
            "norm2": (outer,),
            "conv2": (3, 3, outer, outer),
            "skip": (1, 1, inner, outer),
        }

    pairs = list(zip((widths[0], *widths), widths, strict=False))
    shapes = {
        "stem": (3, 3, 3, widths[0]),
        "time": (time, time),
        "down": [{"block": block(a, b), "resize": (3, 3, b, b)} for a, b in pairs],
        "middle": block(widths[-1], widths[-1]),
        "up": [{"resize": (3, 3, b, b), "block": block(2 * b, a)} for a, b in pairs],
        "out": (3, 3, widths[0], 3),
    }
    image = ((batch, side, side, 3), jnp.float32)
    return training.finish(
        target,
        functools.partial(_unet_loss, remat),
        shapes,
        {"images": image, "noise": image, "times": ((batch,), jnp.float32)},
    )
