"""How operations hand on shardings that Shardy's propagation, as jaxlib carries it, says nothing of.

XLA:GPU expands a ragged product into a product over masked groups before it partitions, so that its result is split
as that product's: by the dimensions that the operands share with it. Shardy reads a rule off the attribute
``sdy.sharding_rule`` of any operation.
"""

from __future__ import annotations

from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import chlo, sdy

_RULE = "sdy.sharding_rule"


def add_rules(program: Any) -> None:
    """Gives every ragged product of a module of jaxlib's its rule; called within the module's context."""

    def visit(op: Any) -> Any:
        if op.name == "chlo.ragged_dot" and _RULE not in op.attributes:
            rule = ragged_dot_rule(op)
            if rule is not None:
                op.attributes[_RULE] = rule
        return ir.WalkResult.ADVANCE

    program.operation.walk(visit)


def ragged_dot_rule(op: Any) -> Any | None:
    """The rule of a ``chlo.ragged_dot``; None where a shape is not known.

    Each dimension is one factor, shared where left, right and result have it in common. What is contracted, and the
    groups where each row is multiplied by the matrix of its own group, are summed over: split there, the result is
    whole on every device.
    """
    numbers = chlo.RaggedDotDimensionNumbers(op.attributes["ragged_dot_dimension_numbers"])
    types = [ir.RankedTensorType(value.type) for value in (*op.operands, *op.results)]
    if not all(type_.has_static_shape for type_ in types):
        return None
    left, right, groups, result = (list(type_.shape) for type_ in types)
    sizes: list[int] = []

    def factor(size: int) -> int:
        sizes.append(size)
        return len(sizes) - 1

    lhs, rhs = [-1] * len(left), [-1] * len(right)
    batch, reduced = [], []
    for found, ours, theirs in (
        (batch, numbers.lhs_batching_dimensions, numbers.rhs_batching_dimensions),
        (reduced, numbers.lhs_contracting_dimensions, numbers.rhs_contracting_dimensions),
    ):
        for a, b in zip(ours, theirs, strict=True):
            lhs[a] = rhs[b] = factor(left[a])
            found.append(lhs[a])
    for dim in numbers.rhs_group_dimensions:
        rhs[dim] = factor(right[dim])
        reduced.append(rhs[dim])
    free: list[int] = []
    for mapping, shape in ((lhs, left), (rhs, right)):
        for dim, known in enumerate(mapping):
            if known < 0:
                mapping[dim] = factor(shape[dim])
                free.append(mapping[dim])
    out = [*batch, *free]
    if set(numbers.lhs_ragged_dimensions) & set(numbers.lhs_contracting_dimensions):
        out.insert(0, factor(result[0]))  # one result for each group
    if len(out) != len(result):
        return None
    return sdy.OpShardingRuleAttr.get(
        [*sizes, *groups],
        [_mapping(lhs), _mapping(rhs), _mapping(range(len(sizes), len(sizes) + len(groups)))],
        [_mapping(out)],
        reduction_factors=sorted(reduced),
    )


def _mapping(factors: Any) -> Any:
    return sdy.TensorMappingAttr.get([sdy.DimMappingAttr.get([each]) for each in factors])
