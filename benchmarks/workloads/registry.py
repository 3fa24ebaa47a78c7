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
    "llm-tiny": ("workloads.decoder:build", {"size": "tiny", "attention": "naive"}),
    "llm-1b": ("workloads.decoder:build", {"size": "1b", "attention": "cudnn"}),
    "llm-1b-scan": ("workloads.decoder:build", {"size": "1b", "attention": "cudnn", "style": "scanned"}),
    "llama3-8b": ("workloads.decoder:build", {"size": "llama3-8b", "attention": "cudnn"}),
    "llama3-8b-scan": (
        "workloads.decoder:build",
        {"size": "llama3-8b", "attention": "cudnn", "style": "scanned"},
    ),
    "llama3-70b-scan": (
        "workloads.decoder:build",
        {"size": "llama3-70b", "attention": "cudnn", "style": "scanned"},
    ),
}


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
    tokens_limit: int = 2
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
                    else jax.random.randint(sub, leaf.shape, 0, self.tokens_limit)
                )
                values.append(value.astype(leaf.dtype))
            elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                values.append(jax.random.split(sub, leaf.shape) if leaf.shape else sub)
            elif "'first'" in name or "'second'" in name:
                values.append(jnp.zeros(leaf.shape, leaf.dtype))
            else:
                values.append((0.02 * jax.random.normal(sub, leaf.shape)).astype(leaf.dtype))
        return jax.tree.unflatten(tree, values)


def names() -> tuple[str, ...]:
    """All workload names, sorted."""
    return tuple(sorted(_TABLE))


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
