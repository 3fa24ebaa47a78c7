"""The table of workloads, and what building one gives."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# name -> ("module:function", options); modules are imported when a workload is built.
_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    # Decoders on one device, or FSDP by automatic sharding on several.
    "llm-tiny": ("workloads.decoder:build", {"size": "tiny", "attention": "naive"}),
    "llm-tiny-scan": ("workloads.decoder:build", {"size": "tiny", "attention": "naive", "style": "scanned"}),
    "llm-tiny-accumulate": (
        "workloads.decoder:build",
        {"size": "tiny", "attention": "naive", "style": "scanned", "batch": 4, "microbatches": 2},
    ),
    "llm-tiny-dropout": (
        "workloads.decoder:build",
        {"size": "tiny", "attention": "naive", "style": "scanned", "dropout": 0.1},
    ),
    "moe-tiny-ragged": ("workloads.decoder:build", {"size": "tiny-moe", "attention": "naive"}),
    "moe-tiny-onehot": (
        "workloads.decoder:build",
        {"size": "tiny-moe", "attention": "naive", "moe_kind": "onehot"},
    ),
    "llm-1b": ("workloads.decoder:build", {"size": "1b"}),
    "llm-1b-scan": ("workloads.decoder:build", {"size": "1b", "style": "scanned"}),
    "llm-1b-naive": ("workloads.decoder:build", {"size": "1b", "attention": "naive"}),
    "llm-1b-chunked": ("workloads.decoder:build", {"size": "1b", "attention": "chunked"}),
    "llm-1b-accumulate": (
        "workloads.decoder:build",
        {"size": "1b", "style": "scanned", "batch": 16, "microbatches": 4},
    ),
    "llm-1b-dropout": ("workloads.decoder:build", {"size": "1b", "style": "scanned", "dropout": 0.1}),
    "llama3-8b": ("workloads.decoder:build", {"size": "llama3-8b", "batch": 8}),
    "llama3-8b-scan": ("workloads.decoder:build", {"size": "llama3-8b", "style": "scanned", "batch": 8}),
    "llama3-70b-scan": ("workloads.decoder:build", {"size": "llama3-70b", "style": "scanned", "batch": 64}),
    "moe-8x7b-scan": ("workloads.decoder:build", {"size": "moe-8x7b", "style": "scanned", "batch": 64}),
    # The set on which collective scheduling is judged; `topology` says for how many devices each is meant.
    "fsdp": ("workloads.decoder:build", {"size": "1b", "batch": 8}),
    "fsdp-scan": ("workloads.decoder:build", {"size": "1b", "style": "scanned", "batch": 8}),
    "fsdp-manual": ("workloads.decoder_manual:fsdp", {"size": "1b", "batch": 8}),
    "fsdp-manual-scan": ("workloads.decoder_manual:fsdp", {"size": "1b", "style": "scanned", "batch": 8}),
    "tensor-manual": ("workloads.decoder_manual:tensor_parallel", {"size": "wide"}),
    "tensor-manual-scan": (
        "workloads.decoder_manual:tensor_parallel",
        {"size": "wide", "style": "scanned"},
    ),
    "data": ("workloads.decoder:build", {"size": "1b-narrow", "sharding": "data"}),
    "data-scan": (
        "workloads.decoder:build",
        {"size": "1b-narrow", "style": "scanned", "sharding": "data"},
    ),
    "two-axes": ("workloads.decoder:build", {"size": "wide", "batch": 32, "tensor": 8}),
    "two-axes-scan": (
        "workloads.decoder:build",
        {"size": "wide", "style": "scanned", "batch": 32, "tensor": 8},
    ),
    "experts": ("workloads.expert_parallel:build", {"size": "moe-16b"}),
    "experts-scan": ("workloads.expert_parallel:build", {"size": "moe-16b", "style": "scanned"}),
    "pipeline": ("workloads.pipeline:build", {"size": "1b", "batch": 16}),
    "ring": ("workloads.ring:build", {"size": "1b", "length": 16384, "batch": 1}),
    "ring-unrolled": (
        "workloads.ring:build",
        {"size": "1b", "length": 16384, "batch": 1, "looped": False},
    ),
    # Other architectures.
    "translator-tiny": ("workloads.encoder_decoder:build", {"size": "tiny"}),
    "translator": ("workloads.encoder_decoder:build", {"size": "small"}),
    "resnet-tiny": ("workloads.vision:resnet", {"size": "tiny"}),
    "resnet-50": ("workloads.vision:resnet", {"size": "50"}),
    "vit-tiny": ("workloads.vision:vit", {"size": "tiny"}),
    "vit-large": ("workloads.vision:vit", {"size": "large"}),
    "unet-tiny": ("workloads.vision:unet", {"size": "tiny"}),
    "unet": ("workloads.vision:unet", {"size": "small"}),
    "lstm-tiny": ("workloads.recurrent:build", {"size": "tiny", "kind": "lstm"}),
    "lstm": ("workloads.recurrent:build", {"size": "small", "kind": "lstm"}),
    "linear-recurrence-tiny": ("workloads.recurrent:build", {"size": "tiny", "kind": "linear"}),
    "linear-recurrence": ("workloads.recurrent:build", {"size": "small", "kind": "linear"}),
}

COLLECTIVES = (
    "fsdp",
    "fsdp-scan",
    "fsdp-manual",
    "fsdp-manual-scan",
    "tensor-manual",
    "tensor-manual-scan",
    "data",
    "data-scan",
    "two-axes",
    "two-axes-scan",
    "experts",
    "experts-scan",
    "pipeline",
    "ring",
    "ring-unrolled",
)
"""The workloads whose communication is judged."""


@dataclasses.dataclass(frozen=True)
class Built:
    """A workload ready to lower: a jitted training step and its abstract arguments."""

    name: str
    function: Callable[..., Any]
    """The jitted step; donates its first argument, the state."""
    arguments: tuple[Any, ...]
    """`jax.ShapeDtypeStruct` trees, with the target's shardings when there is a target."""
    target: Any = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    integers_below: int = 2
    """Integer arguments are drawn below this."""

    def lower(self) -> Any:
        """The `jax.stages.Lowered` of the step."""
        return self.function.lower(*self.arguments)

    def real_arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """Concrete arguments for a run on the default device: small normal weights, zero moments, random
        tokens."""
        key = jax.random.key(seed)
        leaves, tree = jax.tree.flatten_with_path(self.arguments)
        values = []
        for n, (path, leaf) in enumerate(leaves):
            sub = jax.random.fold_in(key, n)
            name = jax.tree_util.keystr(path)
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                zero = leaf.shape == ()
                value = (
                    jnp.zeros((), leaf.dtype)
                    if zero
                    else jax.random.randint(sub, leaf.shape, 0, self.integers_below)
                )
                values.append(value.astype(leaf.dtype))
            elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                values.append(jax.random.split(sub, leaf.shape) if leaf.shape else sub)
            elif "'first'" in name or "'second'" in name:
                values.append(jnp.zeros(leaf.shape, leaf.dtype))
            elif "norm" in name:
                values.append(jnp.ones(leaf.shape, leaf.dtype))
            else:
                scale = 0.02 if "'weights'" in name else 1.0
                values.append((scale * jax.random.normal(sub, leaf.shape)).astype(leaf.dtype))
        return jax.tree.unflatten(tree, values)


def names() -> tuple[str, ...]:
    """All workload names, sorted."""
    return tuple(sorted(_TABLE))


def topology(name: str) -> str:
    """The topology that a workload is meant for: one device, eight in one host, or eight hosts of eight."""
    if name.startswith("two-axes"):
        return "1x8x8"
    if name in COLLECTIVES or name in ("llama3-70b-scan", "moe-8x7b-scan"):
        return "1x1x8"
    return "1x1x1"


def _builder(name: str) -> tuple[Callable[..., Built], dict[str, Any]]:
    if name not in _TABLE:
        near = difflib.get_close_matches(name, _TABLE, n=1)
        raise KeyError(
            f"no workload {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {names()}")
        )
    where, defaults = _TABLE[name]
    module, function = where.split(":")
    return getattr(importlib.import_module(module), function), dict(defaults)


def options(name: str) -> dict[str, Any]:
    """The options a workload takes, with its defaults."""
    builder, defaults = _builder(name)
    known = {
        k: p.default for k, p in inspect.signature(builder).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    return {**known, **defaults}


def build(name: str, target: Any = None, **overrides: Any) -> Built:
    """Builds a workload.

    Args:
      name: one of `names()`.
      target: a `farrier.Target` to put its mesh on the arguments; None: this machine's default device.
      **overrides: the workload's own options, see `options(name)`.

    Raises:
      KeyError: unknown workload or option.
    """
    builder, defaults = _builder(name)
    known = options(name)
    for key in overrides:
        if key not in known:
            raise KeyError(f"workload {name!r} has no option {key!r}; it has {', '.join(sorted(known))}")
    return dataclasses.replace(builder(target, **{**defaults, **overrides}), name=name, options=overrides)
