"""Which kernels stand behind the calls that JAX wraps under automatic sharding.

``jax.experimental.custom_partitioning`` leaves a ``CustomSPMDPartitioning`` call in the program, whose text is the
address of a Python object: what it runs is known to this process alone. Of an object that is known here, the target of
the call that it becomes on every device is said, so that it is treated as that call is on one device. A call of anything
else stays what it looks like: something of which nothing is known, and which never runs twice.
"""

from __future__ import annotations

import inspect
from typing import Any

WRAPPER = "CustomSPMDPartitioning"

# Functions that partition cuDNN's attention, and whether it is the backward kernel.
_ATTENTION = {
    "jax._src.cudnn.fused_attention_stablehlo._dot_product_attention_fwd_partition": False,
    "jax._src.cudnn.fused_attention_stablehlo._dot_product_attention_bwd_partition": True,
}


def callback(key: bytes) -> Any | None:
    """The object whose address a wrapped call has as its configuration; None where it is not of this process."""
    from jax._src import custom_partitioning

    return custom_partitioning._sharding_callbacks.get(key)


def qualified(info: Any) -> str:
    """The name of the function that partitions a wrapped call."""
    return f"{info.partition.__module__}.{info.partition.__qualname__}"


def kernel(key: bytes) -> str | None:
    """The target of the call that a wrapped call becomes on every device; None where that is not known.

    cuDNN attention: its static arguments say whether it has a bias and draws random numbers. One whose scores a function
    of the caller's changes is not named.
    """
    info = callback(key)
    if info is None or (backward := _ATTENTION.get(qualified(info))) is None:
        return None
    given = dict(zip(inspect.signature(info.partition).parameters, info.static_args, strict=False))
    if given.get("score_mod") is not None or "dropout_rate" not in given or "variadic_args" not in given:
        return None
    bias = "ScaleBias" if given["variadic_args"][0] else ""
    dropout = "Dropout" if given["dropout_rate"] > 0 else ""
    return f"__cudnn$fmha{bias}Softmax{dropout}{'Backward' if backward else ''}"
