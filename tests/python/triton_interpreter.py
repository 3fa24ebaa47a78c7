"""Runs Triton's dialect (MLIR text) in NumPy, one program after the other: what a kernel computes, without a GPU.

Only what the generated kernels use. Loads and stores are checked against the buffers' ends, and no element may
be stored twice: on a GPU the programs run in any order.
"""

import dataclasses

import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, scf  # noqa: F401  registers the dialects
from jaxlib.triton import dialect as triton


@dataclasses.dataclass(frozen=True)
class Pointer:
    """Elements `offset` of buffer number `buffer`."""

    buffer: int
    offset: np.ndarray


_TYPES = {"i1": bool, "i32": np.int32, "i64": np.int64}


def _is_float(text: str) -> bool:
    return text in ("bf16", "f16", "f32")


class Kernel:
    """One kernel, parsed."""

    def __init__(self, text: str):
        self.context = ir.Context()
        triton.register_dialect(self.context)
        self.context.allow_unregistered_dialects = False
        with self.context:
            self.module = ir.Module.parse(text)
            self.module.operation.verify()
            (self.function,) = self.module.body.operations

    def run(self, grid: tuple[int, int, int], *inputs: np.ndarray, output: np.ndarray) -> np.ndarray:
        """The output buffer after every program ran; `output` gives its shape, type and first content."""
        self.buffers = [b.reshape(-1) for b in (*inputs, output.copy())]
        self.stored = np.zeros(self.buffers[-1].size, np.int32)
        with self.context:
            for z in range(grid[2]):
                for y in range(grid[1]):
                    for x in range(grid[0]):
                        self._program({"x": x, "y": y, "z": z})
        assert self.stored.max() <= 1, "two programs store one element"
        self.unwritten = int((self.stored == 0).sum())
        return self.buffers[-1].reshape(output.shape)

    def _program(self, ids: dict[str, int]) -> None:
        self.ids = ids
        block = self.function.operation.regions[0].blocks[0]
        values = {a: Pointer(k, np.int64(0)) for k, a in enumerate(block.arguments)}
        self._block(block, values)

    def _block(self, block: ir.Block, values: dict) -> list:
        for wrapped in block.operations:
            op = wrapped.operation
            operands = [values[o] for o in op.operands]
            if op.name in ("scf.yield", "tt.return", "tt.scan.return", "tt.reduce.return"):
                return operands
            results = self._loop(op, operands, values) if op.name == "scf.for" else [self._op(op, operands)]
            values.update(zip(op.results, results, strict=False))
        raise AssertionError("a block without an end")

    def _loop(self, op: ir.Operation, operands: list, values: dict) -> list:
        low, high, step, *state = operands
        body = op.regions[0].blocks[0]
        for i in range(int(low), int(high), int(step)):
            inner = {**values, **dict(zip(body.arguments, [np.int32(i), *state], strict=True))}
            state = self._block(body, inner)
        return state

    def _op(self, op: ir.Operation, operands: list):
        name = op.name.removeprefix("arith.").removeprefix("tt.")
        result = op.results[0].type if len(op.results) else None
        match name:
            case "constant":
                return self._constant(op.attributes["value"], result)
            case "get_program_id":
                return np.int32(list(self.ids.values())[ir.IntegerAttr(op.attributes["axis"]).value])
            case "make_range":
                return np.arange(*(ir.IntegerAttr(op.attributes[k]).value for k in ("start", "end"))).astype(
                    np.int32
                )
            case "splat" | "broadcast":
                return _spread(operands[0], ir.RankedTensorType(result).shape)
            case "expand_dims":
                return np.expand_dims(operands[0], ir.IntegerAttr(op.attributes["axis"]).value)
            case "addptr":
                pointer, offset = operands
                return Pointer(pointer.buffer, pointer.offset + np.asarray(offset, np.int64))
            case "addi" | "subi" | "muli":
                wide = {"addi": np.add, "subi": np.subtract, "muli": np.multiply}[name](
                    np.asarray(operands[0], np.int64), np.asarray(operands[1], np.int64)
                )
                exact = wide.astype(np.asarray(operands[0]).dtype)
                assert (exact == wide).all(), "an integer overflows"
                return exact
            case "divsi":
                return operands[0] // operands[1]  # never negative here
            case "minsi":
                return np.minimum(*operands)
            case "andi":
                return np.logical_and(*operands)
            case "cmpi":
                how = ir.IntegerAttr(op.attributes["predicate"]).value
                return {0: np.equal, 2: np.less, 3: np.less_equal}[how](*operands)
            case "select":
                return np.where(*operands)
            case "extsi":
                return np.asarray(operands[0]).astype(np.int64)
            case "truncf":
                return operands[0]  # the buffer rounds when it stores
            case "scan":
                return np.cumsum(operands[0]).astype(np.int32)
            case "reduce":
                return np.sum(operands[0]).astype(np.int32)
            case "dot":
                a, b, c = operands
                return c + a.astype(np.float32) @ b.astype(np.float32)
            case "load":
                pointer, mask, other = (*operands, True, 0)[:3] if len(operands) == 1 else operands
                return self._load(pointer, mask, other)
            case "store":
                pointer, value, mask = operands if len(operands) == 3 else (*operands, True)
                return self._store(pointer, value, mask)
        raise AssertionError(f"{op.name} is not interpreted")

    def _constant(self, attribute: ir.Attribute, type_: ir.Type):
        if isinstance(attribute, ir.DenseElementsAttr):
            tensor = ir.RankedTensorType(type_)
            element = str(tensor.element_type)
            (value,) = [ir.FloatAttr(s).value if _is_float(element) else ir.IntegerAttr(s).value
                        for s in [attribute.get_splat_value()]]  # fmt: skip
            return np.full(tensor.shape, value, np.float32 if _is_float(element) else _TYPES[element])
        return _TYPES[str(type_)](ir.IntegerAttr(attribute).value)

    def _load(self, pointer: Pointer, mask, other):
        buffer = self.buffers[pointer.buffer]
        mask = np.broadcast_to(mask, pointer.offset.shape)
        inside = (pointer.offset >= 0) & (pointer.offset < buffer.size)
        assert (inside | ~mask).all(), "a load outside of its buffer"
        return np.where(mask, buffer[np.where(mask, pointer.offset, 0)], other)

    def _store(self, pointer: Pointer, value, mask) -> None:
        buffer = self.buffers[pointer.buffer]
        mask = np.broadcast_to(mask, pointer.offset.shape)
        at = pointer.offset[mask]
        assert ((at >= 0) & (at < buffer.size)).all(), "a store outside of its buffer"
        buffer[at] = value[mask].astype(buffer.dtype)
        np.add.at(self.stored, at, 1)


def _spread(value, shape):
    if isinstance(value, Pointer):
        return Pointer(value.buffer, np.broadcast_to(value.offset, shape))
    return np.broadcast_to(value, shape)
