"""Over how many devices each value of a partitioned program is split.

Shardings are written on a few values; the others get theirs when XLA propagates them. jaxlib carries the same
propagation (Shardy's), so it is run here on a numbered copy of the program and what it decides is read back.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import sdy

from farrier._src import interchange

_PROPAGATION = "builtin.module(sdy-propagation-pipeline)"


def shards(module: Any) -> dict[str, Any] | None:
    """The request entry ``"shards"`` of the planner's queries for a `farrier._core.Module`.

    Returns:
      {"arguments": [n per argument], "operations": {"<number>": [n per result]}}, numbers as by
      ``farrier-number-operations``; None if the program has no Shardy mesh (it is partitioned by hand, by
      the older partitioner, or not at all) or this jaxlib cannot propagate.
    """
    found = layouts(module)
    if found is None:
        return None
    return {
        "arguments": [1 if each is None else each.count for each in found.arguments],
        "operations": {
            str(number): [1 if each is None else each.count for each in results]
            for number, results in found.operations.items()
        },
    }


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one value is split.

    Attributes:
      mesh: the mesh's name; None if it is written out in place.
      dimensions: for each dimension the mesh axes that split it and into how many parts each does, major first.
        An axis that splits it in part only (a sub-axis) has a name with a colon.
    """

    mesh: str | None
    dimensions: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def count(self) -> int:
        """Into how many parts the value is split."""
        return math.prod(size for dimension in self.dimensions for _, size in dimension)


@dataclasses.dataclass(frozen=True)
class Layouts:
    """What Shardy's propagation says of a program; None where it says nothing of a value.

    Attributes:
      meshes: axes and their sizes, in order, of each mesh by name.
      arguments: of the public function.
      operations: of the results of each operation, by its number as by ``farrier-number-operations``.
      manual: names of the axes that a manual computation takes for itself, by its number.
    """

    meshes: dict[str, dict[str, int]]
    arguments: list[Layout | None]
    operations: dict[int, list[Layout | None]]
    manual: dict[int, tuple[str, ...]]


def layouts(module: Any) -> Layouts | None:
    """How each value of a `farrier._core.Module` is split; None under the conditions of `shards`."""
    numbered = module.clone()
    numbered.run("builtin.module(farrier-number-operations)")
    program = interchange.to_jaxlib(numbered)
    if not any(op.operation.name == "sdy.mesh" for op in program.body.operations):
        return None
    with program.context, ir.Location.unknown(program.context):
        try:
            passmanager.PassManager.parse(_PROPAGATION).run(program.operation)
        except (ValueError, ir.MLIRError):
            return None
        return _read(program)


def _read(program: Any) -> Layouts | None:
    meshes, public = {}, None
    for op in program.body.operations:
        if op.operation.name == "sdy.mesh":
            mesh = sdy.MeshAttr(op.attributes["mesh"])
            meshes[ir.StringAttr(op.attributes["sym_name"]).value] = _axes(mesh)
        elif op.operation.name == "func.func" and "sym_visibility" not in op.attributes:
            public = op
        elif op.operation.name == "func.func":
            visibility = ir.StringAttr(op.attributes["sym_visibility"]).value
            public = op if visibility == "public" else public
    if public is None:
        return None

    def layout(sharding: Any) -> Layout:
        sharding = sdy.TensorShardingAttr(sharding)
        of = sharding.mesh_or_ref
        by_name = isinstance(of, ir.FlatSymbolRefAttr)
        sizes = meshes.get(of.value, {}) if by_name else _axes(sdy.MeshAttr(of))
        dimensions = []
        for dimension in sharding.dimension_shardings:
            axes = []
            for axis in sdy.DimensionShardingAttr(dimension).axes:
                axis = sdy.AxisRefAttr(axis)
                if axis.sub_axis_info is None:
                    axes.append((axis.name, sizes.get(axis.name, 1)))
                else:
                    part = sdy.SubAxisInfoAttr(axis.sub_axis_info)
                    axes.append((f"{axis.name}:({part.pre_size}){part.size}", part.size))
            dimensions.append(tuple(axes))
        return Layout(of.value if by_name else None, tuple(dimensions))

    arguments: list[Layout | None] = []
    for attributes in public.attributes.get("arg_attrs", ()):
        attributes = ir.DictAttr(attributes)
        known = "sdy.sharding" in attributes
        arguments.append(layout(attributes["sdy.sharding"]) if known else None)
    operations: dict[int, list[Layout | None]] = {}
    manual: dict[int, tuple[str, ...]] = {}

    def visit(op: Any) -> Any:
        attributes = op.attributes
        if "farrier.op" not in attributes:
            return ir.WalkResult.ADVANCE
        results: list[Layout | None] = [None] * len(op.results)
        if "sdy.sharding" in attributes:
            listed = sdy.TensorShardingPerValueAttr(attributes["sdy.sharding"]).shardings
            results = [layout(each) for each in listed]
        elif "sharding" in attributes and len(results) == 1:  # a constraint, or what became of it
            results = [layout(attributes["sharding"])]
        number = ir.IntegerAttr(attributes["farrier.op"]).value
        operations[number] = results
        if "manual_axes" in attributes:
            named = sdy.ManualAxesAttr(attributes["manual_axes"])
            manual[number] = tuple(named[i] for i in range(len(named)))
        return ir.WalkResult.ADVANCE

    public.operation.walk(visit)
    return Layouts(meshes, arguments, operations, manual)


def _axes(mesh: Any) -> dict[str, int]:
    return {axis.name: axis.size for axis in map(sdy.MeshAxisAttr, mesh.axes)}
