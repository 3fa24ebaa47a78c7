"""Multiply-adds of a convolution, not counting those that fall into padding or into dilation holes.

The gradient of a strided convolution is a convolution over a dilated input, mostly holes: counted without
them it costs what the forward does, which is what a library kernel does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """One spatial axis: sizes of input, kernel and output, and how the window moves."""

    input: int
    kernel: int
    output: int
    stride: int = 1
    padding_low: int = 0
    window_dilation: int = 1
    base_dilation: int = 1


def valid_pairs(axis: Axis) -> int:
    """Pairs (output position, kernel position) that meet an input element on one axis."""
    # Position = output * stride + kernel * window_dilation - padding; linear in both, so either may be the
    # loop.
    loop, vector = (axis.kernel, axis.window_dilation), (axis.output, axis.stride)
    if loop[0] > vector[0]:
        loop, vector = vector, loop
    base = np.arange(vector[0], dtype=np.int64) * vector[1] - axis.padding_low
    total = 0
    for k in range(loop[0]):
        position = base + k * loop[1]
        inside = (position >= 0) & (position <= (axis.input - 1) * axis.base_dilation)
        total += int(np.count_nonzero(inside & (position % axis.base_dilation == 0)))
    return total


def convolution_flops(
    output: Sequence[int],
    output_batch: int,
    output_feature: int,
    kernel_input_features: int,
    axes: Sequence[Axis],
) -> int:
    """Two per multiply-add. `kernel_input_features` is the kernel's own count: one group's features."""
    per_point = math.prod(valid_pairs(a) for a in axes)
    return 2 * output[output_batch] * output[output_feature] * kernel_input_features * per_point
