"""Over how many devices each value of a partitioned program is split.

Shardings are written on a few values; the others get theirs when XLA propagates them. jaxlib carries the same
propagation (Shardy's), so it is run here on a numbered copy of the program and what it decides is read back.
"""

from __future__ import annotations

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


def _read(program: Any) -> dict[str, Any] | None:
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

    def count(sharding: Any) -> int:
        of = sharding.mesh_or_ref
        by_name = isinstance(of, ir.FlatSymbolRefAttr)
        sizes = meshes.get(of.value, {}) if by_name else _axes(sdy.MeshAttr(of))
        total = 1
        for dimension in sharding.dimension_shardings:
            for axis in sdy.DimensionShardingAttr(dimension).axes:
                axis = sdy.AxisRefAttr(axis)
                part = axis.sub_axis_info
                total *= sizes.get(axis.name, 1) if part is None else sdy.SubAxisInfoAttr(part).size
        return total

    arguments = []
    for attributes in public.attributes.get("arg_attrs", ()):
        attributes = ir.DictAttr(attributes)
        known = "sdy.sharding" in attributes
        arguments.append(count(sdy.TensorShardingAttr(attributes["sdy.sharding"])) if known else 1)
    operations = {}

    def visit(op: Any) -> Any:
        attributes = op.attributes
        if "farrier.op" not in attributes:
            return ir.WalkResult.ADVANCE
        results = len(op.results)
        if "sdy.sharding" in attributes:
            listed = sdy.TensorShardingPerValueAttr(attributes["sdy.sharding"]).shardings
            counts = [count(sdy.TensorShardingAttr(each)) for each in listed]
        elif "sharding" in attributes and results == 1:  # a constraint, or what became of it
            counts = [count(sdy.TensorShardingAttr(attributes["sharding"]))]
        else:
            counts = [1] * results
        operations[str(ir.IntegerAttr(attributes["farrier.op"]).value)] = counts
        return ir.WalkResult.ADVANCE

    public.operation.walk(visit)
    return {"arguments": arguments, "operations": operations}


def _axes(mesh: Any) -> dict[str, int]:
    return {axis.name: axis.size for axis in map(sdy.MeshAxisAttr, mesh.axes)}
