"""Matrix FLOPs of optimized HLO: dots, convolutions and the library calls that XLA:GPU puts in their place.

A multiply-add counts two. Elementwise work is not counted: on the GPUs farrier targets it is bound by
memory and shows up as bytes. Causal masks are not discounted, in attention kernels as in plain dots, so
that replacing one by the other leaves the count unchanged.
"""

from __future__ import annotations

import math
from typing import Any

from farrier._src.hlo import custom_calls
from farrier._src.hlo.convolution import Axis, convolution_flops
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


def _convolution(i: Instruction, image: tuple, kernel: tuple, out: tuple) -> int | None:
    """FLOPs of the convolution of `image` with `kernel` to `out`, all given by their dimensions."""
    numbers = i.proto.convolution_dimension_numbers
    spatial = numbers.kernel_spatial_dimensions
    if len(spatial) + 2 != len(kernel) or len(i.proto.window.dimensions) != len(spatial):
        return None
    axes = [
        Axis(
            image[numbers.input_spatial_dimensions[n]],
            kernel[numbers.kernel_spatial_dimensions[n]],
            out[numbers.output_spatial_dimensions[n]],
            max(1, w.stride),
            w.padding_low,
            max(1, w.window_dilation),
            max(1, w.base_dilation),
        )
        for n, w in enumerate(i.proto.window.dimensions)
    ]
    flops = convolution_flops(
        out,
        numbers.output_batch_dimension,
        numbers.output_feature_dimension,
        kernel[numbers.kernel_input_feature_dimension],
        axes,
    )
    return flops


def _cudnn_convolution(i: Instruction) -> int | None:
    # The work of each gradient is the forward's: name the three tensors of the forward convolution.
    target = i.proto.custom_call_target
    a, b, out = i.operands[0].dims, i.operands[1].dims, i.dims
    if "BackwardInput" in target:
        return _convolution(i, out, b, a)
    if "BackwardFilter" in target:
        return _convolution(i, a, out, b)
    return _convolution(i, a, b, out)


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
    if target == custom_calls.TRITON:
        kernel = custom_calls.grouped(i.proto.backend_config.decode(errors="replace"))
        return kernel.flops(*(o.dims for o in i.operands)) if kernel else None
    if target in custom_calls.NO_MATRIX_WORK or target.startswith(("__cub$", "__cudnn$norm")):
        return 0
    return None


def instruction_flops(i: Instruction) -> int | None:
    """Matrix FLOPs of one execution of `i` itself, without what it calls; None when unknown."""
    match i.opcode:
        case "dot" | "scaled-dot":
            return _dot(i.operands[0].dims, i.proto.dot_dimension_numbers.lhs_contracting_dimensions, i.dims)
        case "ragged-dot":
            return _ragged_dot(i)
        case "convolution":
            return _convolution(i, i.operands[0].dims, i.operands[1].dims, i.dims)
        case "custom-call":
            return custom_call_flops(i)
        case "cholesky" | "triangular-solve" | "fft":
            return None
        case _:
            return 0
