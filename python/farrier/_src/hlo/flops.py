"""Matrix FLOPs of optimized HLO: dots, convolutions and the library calls that XLA:GPU puts in their place.

A multiply-add counts two. Elementwise work is not counted: on the GPUs farrier targets it is bound by
memory and shows up as bytes. Causal masks are not discounted, in attention kernels as in plain dots, so
that replacing one by the other leaves the count unchanged.
"""

from __future__ import annotations

import math
from typing import Any

from farrier._src.hlo.module import Instruction


def _dot(lhs: tuple[int, ...], contracting, out: tuple[int, ...]) -> int:
    return 2 * math.prod(out) * math.prod(lhs[int(i)] for i in contracting)


def _ragged_dot(i: Instruction) -> int:
    numbers = i.proto.ragged_dot_dimension_numbers
    lhs, out = i.operands[0].dims, i.dims
    contracting = list(numbers.dot_dimension_numbers.lhs_contracting_dimensions)
    flops = _dot(lhs, contracting, out)
    if set(numbers.lhs_ragged_dimensions) & set(contracting):
        # One output per group, and the groups share the contracted rows: each row is used once, not once a
        # group.
        groups = i.operands[2].dims[-1] if len(i.operands) > 2 and i.operands[2].dims else out[0]
        flops //= max(1, groups)
    return flops


def _convolution(out: tuple[int, ...], kernel: tuple[int, ...], kernel_out_feature: int) -> int:
    return 2 * math.prod(out) * math.prod(kernel) // max(1, kernel[kernel_out_feature])


def _convolution_hlo(i: Instruction) -> int:
    numbers = i.proto.convolution_dimension_numbers
    kernel = i.operands[1].dims
    # A grouped kernel already has the input features of one group only; with batch groups each output
    # feature sees one group's share of the batch.
    flops = _convolution(i.dims, kernel, numbers.kernel_output_feature_dimension)
    return flops


def _cudnn_convolution(i: Instruction) -> int | None:
    target = i.proto.custom_call_target
    feature = i.proto.convolution_dimension_numbers.kernel_output_feature_dimension
    a, b, out = i.operands[0].dims, i.operands[1].dims, i.dims
    # The work of each gradient is the forward's: name the three tensors of the forward convolution.
    if "BackwardInput" in target:
        out, kernel = a, b
    elif "BackwardFilter" in target:
        out, kernel = b, out
    else:
        kernel = b
    if feature >= len(kernel):
        return None
    return _convolution(out, kernel, feature)


def _attention(i: Instruction) -> int | None:
    config = i.config.get("cudnn_fmha_backend_config", {})
    scores = [int(d) for d in config.get("intermediate_tensor_shape", {}).get("dimensions", [])]
    if len(scores) != 4 or len(i.operands) < 3:
        return None
    batch, heads, rows, columns = scores
    q, v = i.operands[0], i.operands[2]
    head_qk = math.prod(q.dims) // max(1, batch * heads * rows)
    head_v = v.dims[-1] if v.dims else 0
    product = 2 * batch * heads * rows * columns
    if "Backward" in i.proto.custom_call_target:
        # Scores again, then the gradients of the probabilities, values, queries and keys.
        return product * (3 * head_qk + 2 * head_v)
    return product * (head_qk + head_v)


def _gemm(i: Instruction) -> int | None:
    config: dict[str, Any] = i.config.get("gemm_backend_config", {})
    if not config:
        config = i.config.get("grouped_gemm_backend_config", {}).get("gemm_backend_config", {})
    numbers = config.get("dot_dimension_numbers")
    if not numbers or not i.operands:
        return None
    return _dot(i.operands[0].dims, numbers.get("lhs_contracting_dimensions", []), i.dims)


def custom_call_flops(i: Instruction) -> int | None:
    """Matrix FLOPs of a custom call; 0 for one known to do no matrix work, None for one we do not know."""
    target = i.proto.custom_call_target
    if "fmha" in target:
        return _attention(i)
    if target.startswith("__cublas$"):
        return _gemm(i)
    if target.startswith("__cudnn$conv"):
        return _cudnn_convolution(i)
    if target in NO_MATRIX_WORK or target.startswith(("__cub$", "__cudnn$norm")):
        return 0
    return None


# Custom calls that are bookkeeping or bound by memory.
NO_MATRIX_WORK = frozenset(
    {
        "AllocateBuffer",
        "AllocatePersistentBuffer",
        "CreateBuffer",
        "MoveToDevice",
        "MoveToHost",
        "PinToDeviceSram",
        "Sharding",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
        "SliceToDynamic",
        "PadToStatic",
        "TopK",
        "__gpu$TopK",
        "annotate_device_placement",
        "cu_threefry2x32_ffi",
        "__nop",
        "xla.sdy.FuncResultSharding",
    }
)


def instruction_flops(i: Instruction) -> int | None:
    """Matrix FLOPs of one execution of `i` itself, without what it calls; None when unknown."""
    match i.opcode:
        case "dot" | "scaled-dot":
            return _dot(i.operands[0].dims, i.proto.dot_dimension_numbers.lhs_contracting_dimensions, i.dims)
        case "ragged-dot":
            return _ragged_dot(i)
        case "convolution":
            return _convolution_hlo(i)
        case "custom-call":
            return custom_call_flops(i)
        case "cholesky" | "triangular-solve" | "fft":
            return None
        case _:
            return 0
