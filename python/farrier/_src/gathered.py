"""What a device gathers for a partitioned matrix product.

Weights of which each device holds a part (FSDP) are gathered before the product that reads them, where the axis that
splits them splits another dimension of the result: a buffer of the whole weight while the product runs. The gradient of
such a weight is a sum over what the devices hold: each makes the whole of its own, and keeps a part of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

# For each dimension the axes that split it, with the parts that each makes.
Axes = Sequence[Sequence[tuple[str, int]]]


def bytes_for(op: Any, split: Sequence[Axes | None]) -> tuple[int, int]:
    """Bytes of gathered operands and of the sum before it is shared out, of a ``stablehlo.dot_general``. Of the two ways
    to bring an operand that is split along what is summed together with one that is not, the smaller counts.

    Args:
      op: the product, its shapes those of all devices together.
      split: how left, right and result are split; None for one that every device has whole.
    """
    types = [ir.RankedTensorType(value.type) for value in (*op.operands, *op.results)]
    if not all(type_.has_static_shape for type_ in types):
        return 0, 0
    left, right, result = (
        list(axes) if axes is not None else [()] * type_.rank
        for axes, type_ in zip(split, types, strict=True)
    )
    numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    batch = list(zip(numbers.lhs_batching_dimensions, numbers.rhs_batching_dimensions, strict=True))
    summed = list(zip(numbers.lhs_contracting_dimensions, numbers.rhs_contracting_dimensions, strict=True))
    free = [
        [dim for dim in range(len(value)) if dim not in {pair[side] for pair in (*batch, *summed)}]
        for side, value in enumerate((left, right))
    ]
    kept = {axis for dim in result for axis, _ in dim}
    gathered = sum_ = 0
    for side, (value, other) in enumerate(((left, right), (right, left))):
        # Where the result has each dimension of this operand.
        places = [(pair[side], n) for n, pair in enumerate(batch)]
        first = len(batch) + (len(free[0]) if side else 0)
        places += [(dim, first + n) for n, dim in enumerate(free[side])]
        whole = [axis for dim, place in places for axis in value[dim] if axis not in result[place]]
        # Split in this operand alone, along an axis that splits another dimension of the result.
        alone = [
            axis
            for pair in summed
            for axis in value[pair[side]]
            if axis not in other[pair[1 - side]] and axis[0] in kept
        ]
        gather = _bytes(op.operands[side], value) * _parts([*whole, *alone])
        share = _bytes(op.results[0], result) * _parts(alone)
        if alone and share < gather:
            sum_ = max(sum_, share)
        elif whole or alone:
            # Or the product is made for this operand's part of the result, and that exchanged: if all that splits both
            # otherwise splits what only the other operand has.
            kept_by_other = {axis for dim in free[1 - side] for axis in other[dim]}
            if whole and not alone and kept_by_other.issuperset(whole):
                gather = min(gather, _bytes(op.operands[1 - side], other) * _parts(whole))
            gathered += gather
    both = [axis for a, b in summed for axis in left[a] if axis in right[b] and axis[0] in kept]
    if both:
        sum_ = max(sum_, _bytes(op.results[0], result) * _parts(both))
    return gathered, sum_


def _parts(axes: Sequence[tuple[str, int]]) -> int:
    return math.prod(size for _, size in axes)


def _bytes(value: Any, split: Axes) -> int:
    """Of a value on one device; of one that is converted, as it is before, where that is smaller."""
    type_ = ir.RankedTensorType(value.type)
    bits = _bits(type_)
    owner = value.owner
    if not isinstance(owner, ir.Block) and owner.name == "stablehlo.convert":
        bits = min(bits, _bits(ir.RankedTensorType(owner.operands[0].type)))
    return math.prod(type_.shape) * bits // 8 // _parts([axis for dim in split for axis in dim])


def _bits(type_: Any) -> int:
    return getattr(type_.element_type, "width", 64)
