"""`jax.checkpoint` policies by name: the hand-tuned rivals of the rematerialization pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

# Names that the decoder layer gives its values.
_QKV = ("query", "key", "value")
_ATTENTION = ("attention",)
_FLASH = ("attention", "attention_statistics")

_NAMED: dict[str, tuple[str, ...]] = {
    "names-qkv": _QKV,
    "names-attention": _ATTENTION,
    "names-attention-middle": (*_ATTENTION, "middle"),
    "names-qkv-attention": (*_QKV, *_ATTENTION, "middle"),
    "names-mlp": ("gate", "up"),
    "names-qkv-attention-up": (*_QKV, *_ATTENTION, "middle", "up"),
    "names-all": (*_QKV, *_ATTENTION, "middle", "gate", "up"),
    # The same with the attention kernel's own residuals named, so that the policy need not run it again.
    "names-flash": _FLASH,
    "names-flash-middle": (*_FLASH, "middle"),
    "names-qkv-flash": (*_QKV, *_FLASH, "middle"),
    "names-qkv-flash-up": (*_QKV, *_FLASH, "middle", "up"),
    "names-flash-all": (*_QKV, *_FLASH, "middle", "gate", "up"),
}


def names() -> tuple[str, ...]:
    """All policy names; ``"none"`` means no `jax.checkpoint` at all."""
    return (
        "none",
        "everything",
        "nothing",
        "dots",
        "dots-no-batch",
        "offload-dots-no-batch",
        "offload-names",
        "offload-qkv",
        *_NAMED,
    )


def _offloaded(*names: str) -> Callable[..., Any]:
    """What has one of these names waits in host memory; everything else is computed again."""
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


def names_flash_residuals(policy: str) -> bool:
    """Whether the policy names the attention kernel's softmax statistics."""
    return "flash" in policy


def wrap(layer: Callable[..., Any], policy: str, *, scanned: bool) -> Callable[..., Any]:
    """`layer` under `jax.checkpoint` with the named policy.

    Inside a scan the loop itself keeps XLA from merging the recomputation with the original, so CSE
    prevention is off there, as JAX's documentation of `jax.checkpoint` advises.
    """
    if policy == "none":
        return layer
    table = jax.checkpoint_policies
    if policy in _NAMED:
        chosen = table.save_only_these_names(*_NAMED[policy])
    else:
        chosen = {
            "everything": table.everything_saveable,
            "nothing": table.nothing_saveable,
            "dots": table.dots_saveable,
            "dots-no-batch": table.dots_with_no_batch_dims_saveable,
            "offload-dots-no-batch": table.offload_dot_with_no_batch_dims("device", "pinned_host"),
            "offload-names": _offloaded("attention", "middle", "gate", "up"),
            "offload-qkv": _offloaded(*_QKV),
        }[policy]
    return jax.checkpoint(layer, policy=chosen, prevent_cse=not scanned)
