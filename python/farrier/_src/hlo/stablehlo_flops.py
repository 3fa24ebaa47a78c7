"""Matrix FLOPs of a StableHLO module, with the conventions of `hlo.flops`: what the program asks for,
before XLA."""

from __future__ import annotations

import collections
import json
import math
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import chlo, stablehlo

from farrier._src.hlo import custom_calls
from farrier._src.hlo.convolution import Axis, convolution_flops


def _shape(value: ir.Value) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)


def _dot(op: ir.Operation) -> int:
    numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    lhs = _shape(op.operands[0])
    contracted = math.prod(lhs[d] for d in numbers.lhs_contracting_dimensions)
    return 2 * math.prod(_shape(op.results[0])) * contracted


def _ragged_dot(op: ir.Operation) -> int:
    numbers = chlo.RaggedDotDimensionNumbers(op.attributes["ragged_dot_dimension_numbers"])
    lhs, groups = _shape(op.operands[0]), _shape(op.operands[2])
    contracting = list(numbers.lhs_contracting_dimensions)
    flops = 2 * math.prod(_shape(op.results[0])) * math.prod(lhs[d] for d in contracting)
    if set(numbers.lhs_ragged_dimensions) & set(contracting):
        # One result per group, and the groups share the contracted rows: each row is used once.
        flops //= max(1, groups[-1])
    return flops


def _integers(op: ir.Operation, name: str, count: int, default: int) -> list[int]:
    if name not in op.attributes:
        return [default] * count
    return [int(x) for x in op.attributes[name]]


def _convolution(op: ir.Operation) -> int:
    numbers = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    image, kernel, out = _shape(op.operands[0]), _shape(op.operands[1]), _shape(op.results[0])
    count = len(numbers.kernel_spatial_dimensions)
    padding = _integers(op, "padding", 2 * count, 0)
    strides = _integers(op, "window_strides", count, 1)
    window_dilation = _integers(op, "rhs_dilation", count, 1)
    base_dilation = _integers(op, "lhs_dilation", count, 1)
    axes = [
        Axis(
            image[numbers.input_spatial_dimensions[n]],
            kernel[numbers.kernel_spatial_dimensions[n]],
            out[numbers.output_spatial_dimensions[n]],
            strides[n],
            padding[2 * n],
            window_dilation[n],
            base_dilation[n],
        )
        for n in range(count)
    ]
    return convolution_flops(
        out,
        numbers.output_batch_dimension,
        numbers.output_feature_dimension,
        kernel[numbers.kernel_input_feature_dimension],
        axes,
    )


def _backend_config(op: ir.Operation) -> dict[str, Any]:
    if "backend_config" not in op.attributes:
        return {}
    config = op.attributes["backend_config"]
    if not isinstance(config, ir.StringAttr):
        return {}
    try:
        value = json.loads(config.value)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _attention(op: ir.Operation, target: str) -> int | None:
    config = _backend_config(op).get("cudnn_fmha_backend_config", {})
    scores = [int(d) for d in config.get("intermediate_tensor_shape", {}).get("dimensions", [])]
    if len(scores) != 4:
        return None
    batch, heads, rows, columns = scores
    head_qk = math.prod(_shape(op.operands[0])) // max(1, batch * heads * rows)
    head_v = _shape(op.operands[2])[-1]
    product = 2 * batch * heads * rows * columns
    if "Backward" in target:
        return product * (3 * head_qk + 2 * head_v)
    return product * (head_qk + head_v)


def _constant(value: ir.Value) -> int | None:
    owner = value.owner
    if isinstance(owner, ir.Block):
        return None
    op = owner.operation
    if op.name == "stablehlo.convert":
        return _constant(op.operands[0])
    if op.name != "stablehlo.constant":
        return None
    attr = op.attributes["value"]
    if not isinstance(attr, ir.DenseIntElementsAttr) or len(attr) != 1:
        return None
    return int(attr[0])


def while_trip_count(op: ir.Operation) -> int | None:
    """Iterations of a counted loop ``for i = start; i < limit; i += step``; None when it has another form."""
    condition, body = op.regions[0].blocks[0], op.regions[1].blocks[0]
    terminator = condition.operations[len(condition.operations) - 1].operation
    test = terminator.operands[0].owner
    if isinstance(test, ir.Block) or test.operation.name != "stablehlo.compare":
        return None
    test = test.operation
    if "LT" not in str(test.attributes["comparison_direction"]):
        return None

    def outside(value):
        """The value a condition argument has on entry."""
        if isinstance(value.owner, ir.Block):
            return op.operands[ir.BlockArgument(value).arg_number]
        return value

    if not isinstance(test.operands[0].owner, ir.Block):
        return None
    counter = ir.BlockArgument(test.operands[0]).arg_number
    start, limit = _constant(op.operands[counter]), _constant(outside(test.operands[1]))
    step_value = body.operations[len(body.operations) - 1].operation.operands[counter]
    if isinstance(step_value.owner, ir.Block):
        return None
    step_op = step_value.owner.operation
    if step_op.name != "stablehlo.add":
        return None
    steps = [s for s in (_constant(o) for o in step_op.operands) if s is not None]
    if start is None or limit is None or not steps or steps[0] <= 0:
        return None
    return max(0, -(-(limit - start) // steps[0]))


# Targets that may hide matrix work. CustomSPMDPartitioning is what a library kernel (cuDNN attention) looks
# like under automatic sharding: its body appears only after XLA has partitioned the program.
_OPAQUE = ("CustomSPMDPartitioning", "__gpu$", "__cublas$", "__cudnn$", "cusolver", "cublas", "lapack")


class _Counter:
    def __init__(self, module: ir.Module):
        self.functions = {}
        for op in module.body.operations:
            if op.operation.name == "func.func":
                self.functions[ir.StringAttr(op.operation.attributes["sym_name"]).value] = op.operation
        self.memo: dict[str, int] = {}
        self.unknown: collections.Counter = collections.Counter()

    def function(self, name: str) -> int:
        if name not in self.memo:
            op = self.functions[name]
            self.memo[name] = sum(self.block(b) for b in op.regions[0].blocks)
        return self.memo[name]

    def block(self, block: ir.Block) -> int:
        return sum(self.op(o.operation) for o in block.operations)

    def op(self, op: ir.Operation) -> int:
        name = op.name
        if name == "stablehlo.dot_general":
            return _dot(op)
        if name == "stablehlo.convolution":
            return _convolution(op)
        if name == "stablehlo.custom_call":
            target = ir.StringAttr(op.attributes["call_target_name"]).value
            if "fmha" in target:
                flops = _attention(op, target)
                if flops is not None:
                    return flops
            if target == custom_calls.TRITON:
                kernel = custom_calls.grouped(str(op.attributes["backend_config"]))
                if kernel is not None:
                    return kernel.flops(*(_shape(o) for o in op.operands))
            if "fmha" in target or target.startswith(_OPAQUE):
                self.unknown[f"flops of {target}"] += 1
            return 0
        if name in ("func.call", "stablehlo.composite"):
            key = "callee" if name == "func.call" else "decomposition"
            callee = ir.FlatSymbolRefAttr(op.attributes[key]).value
            return self.function(callee) if callee in self.functions else 0
        if name == "stablehlo.while":
            trips = while_trip_count(op)
            if trips is None:
                self.unknown["trip count of while, taken as 1"] += 1
                trips = 1
            return trips * self.block(op.regions[1].blocks[0])
        if name in ("stablehlo.case", "stablehlo.if"):
            return max((self.block(r.blocks[0]) for r in op.regions), default=0)
        if name in ("stablehlo.cholesky", "stablehlo.triangular_solve", "stablehlo.fft"):
            self.unknown[f"flops of {name}"] += 1
            return 0
        if name.startswith("sdy.") and len(op.regions) > 0:
            return sum(self.block(b) for r in op.regions for b in r.blocks)
        if name == "chlo.ragged_dot":
            return _ragged_dot(op)
        return 0


def stablehlo_flops(module: ir.Module) -> tuple[int, dict[str, int]]:
    """Matrix FLOPs of one execution of the module's ``main``, and what could not be counted.

    Under ``shard_map`` the body's shapes are one device's and so is its count; under automatic sharding the
    count is of the global program.
    """
    with module.context:
        counter = _Counter(module)
        return counter.function("main"), dict(counter.unknown)
