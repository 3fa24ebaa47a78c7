"""Over how many devices each value of a partitioned program is split.

Shardings are written on a few values; the others get theirs when XLA propagates them. jaxlib carries the same
propagation (Shardy's), so it is run here on a numbered copy of the program and what it decides is read back.
"""

from __future__ import annotations

import dataclasses
import math
import re
import weakref
from typing import Any

from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import sdy

from farrier._src import gathered, interchange, partitioned_kernels, sharding_rules

_PROPAGATION = "builtin.module(sdy-propagation-pipeline)"


def shards(module: Any) -> dict[str, Any] | None:
    """The request entry ``"shards"`` of the planner's queries for a `farrier._core.Module`.

    Returns:
      {"arguments": [n per argument], "operations": {"<number>": [n per result]}, "gathered": {"<number>": bytes that
      each device gathers for a product, and of its sum before it is shared out}}, numbers as by
      ``farrier-number-operations``; None if the program has no Shardy mesh (it is partitioned by hand, by the older
      partitioner, or not at all) or this jaxlib cannot propagate.
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
        "gathered": {
            str(number): list(product.gathered)
            for number, product in found.products.items()
            if any(product.gathered)
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
      products: of every matrix product by its number.
      kernels: targets of the calls that wrapped calls become, by their number, where they are known.
    """

    meshes: dict[str, dict[str, int]]
    arguments: list[Layout | None]
    operations: dict[int, list[Layout | None]]
    manual: dict[int, tuple[str, ...]]
    products: dict[int, Product]
    kernels: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product: elements of its result, and how left, right and result are split, with their ranks; bytes that
    each device gathers for it."""

    elements: int
    ranks: tuple[int, ...]
    layouts: tuple[Layout | None, ...]
    gathered: tuple[int, int] = (0, 0)


def kernels(module: Any) -> dict[str, str]:
    """The request entry ``"kernels"`` of the planner's queries: targets that wrapped calls stand for, by number."""
    found = layouts(module)
    return {} if found is None else {str(number): name for number, name in found.kernels.items()}


def products(module: Any, least: int) -> list[str]:
    """How products of at least ``least`` bytes (as f32) are split over devices.

    Returns:
      Entries of the fusion pass's option ``shardings``: "NUMBER:MESH:LEFT:RIGHT:RESULT", each value its
      dimensions joined by "/", a dimension "-" or its axes "AXIS*SIZE" joined by "+". Products split along parts
      of an axis, or over axes whose names the option cannot carry, are left out.
    """
    found = layouts(module)
    if found is None:
        return []
    named = (
        (number, _entry(product))
        for number, product in sorted(found.products.items())
        if product.elements * 4 >= least
    )
    return [f"{number}:{entry}" for number, entry in named if entry]


def _entry(product: Product) -> str | None:
    """ "MESH:LEFT:RIGHT:RESULT" of a product, None if it cannot be said."""
    meshes = {layout.mesh for layout in product.layouts if layout is not None}
    axes = {
        axis
        for layout in product.layouts
        if layout is not None
        for dim in layout.dimensions
        for axis, _ in dim
    }
    if (
        len(meshes) != 1
        or None in meshes
        or not all(re.fullmatch(r"[\w.-]+", name) for name in (*meshes, *axes))
    ):
        return None
    values = [
        "/".join(
            "+".join(f"{axis}*{size}" for axis, size in dim) or "-"
            for dim in (layout.dimensions if layout is not None else ((),) * rank)
        )
        for layout, rank in zip(product.layouts, product.ranks, strict=True)
    ]
    return ":".join([*meshes, *values])


def _sharding_of(value: Any) -> Any:
    """The sharding that propagation gave a value, None where it gave none."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        # As a plain operation: a function has its symbol for a name.
        owner, number = owner.owner.operation, ir.BlockArgument(value).arg_number
        if owner.name == "func.func":
            listed = owner.attributes.get("arg_attrs", ())
            # `ir.DictAttr.get` makes a dictionary.
            given = {entry.name: entry.attr for entry in listed[number]} if number < len(listed) else {}
            return given.get("sdy.sharding")
        # A loop's argument is split as its result.
    else:
        number = ir.OpResult(value).result_number
    attributes = owner.attributes
    if "sdy.sharding" in attributes:
        listed = sdy.TensorShardingPerValueAttr(attributes["sdy.sharding"]).shardings
        return listed[number] if number < len(listed) else None
    return attributes["sharding"] if "sharding" in attributes and len(owner.results) == 1 else None


# Of each module that is still there: how many pipelines had run on it, and what was found.
_known: weakref.WeakKeyDictionary[Any, tuple[int, Layouts | None]] = weakref.WeakKeyDictionary()


def layouts(module: Any) -> Layouts | None:
    """How each value of a `farrier._core.Module` is split; None under the conditions of `shards`.

    Remembered for as long as the module is there and no pipeline runs on it: every pass asks about the same
    program, and propagation costs more than the passes.
    """
    revision, found = _known.get(module, (-1, None))
    if revision != module.revision:
        found = _propagated(module)
        _known[module] = module.revision, found
    return found


def _propagated(module: Any) -> Layouts | None:
    numbered = module.clone()
    numbered.run("builtin.module(farrier-number-operations)")
    program = interchange.to_jaxlib(numbered)
    if not any(op.operation.name == "sdy.mesh" for op in program.body.operations):
        return None
    with program.context, ir.Location.unknown(program.context):
        try:
            sharding_rules.add_rules(program)
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
    products: dict[int, Product] = {}
    kernels: dict[int, str] = {}

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
        if op.name == "stablehlo.dot_general":
            given = [_sharding_of(operand) for operand in op.operands]
            shapes = [ir.RankedTensorType(v.type).shape for v in (*op.operands, *op.results)]
            known = [None if each is None else layout(each) for each in given]
            products[number] = Product(
                math.prod(shapes[2]),
                tuple(len(shape) for shape in shapes),
                (*known, *results),
                gathered.bytes_for(op, [each and each.dimensions for each in (*known, *results)]),
            )
        if name := _wrapped(op):
            kernels[number] = name
        if "manual_axes" in attributes:
            named = sdy.ManualAxesAttr(attributes["manual_axes"])
            manual[number] = tuple(named[i] for i in range(len(named)))
        return ir.WalkResult.ADVANCE

    public.operation.walk(visit)
    return Layouts(meshes, arguments, operations, manual, products, kernels)


def _wrapped(op: Any) -> str | None:
    """The kernel behind a call that JAX wraps for partitioning, if it is known."""
    if op.name != "stablehlo.custom_call":
        return None
    attributes = op.attributes
    if ir.StringAttr(attributes["call_target_name"]).value != partitioned_kernels.WRAPPER:
        return None
    key = attributes.get("backend_config")
    return partitioned_kernels.kernel(ir.StringAttr(key).value.encode()) if key is not None else None


def _axes(mesh: Any) -> dict[str, int]:
    return {axis.name: axis.size for axis in map(sdy.MeshAxisAttr, mesh.axes)}
