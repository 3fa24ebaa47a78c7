"""Random well-typed StableHLO: a forward part, a backward part that reads it, loops, branches, calls.

Everything is drawn from an object with the interface of ``random.Random``. Hypothesis offers one whose choices
shrink (``st.randoms(use_true_random=False)``), so a failing program becomes a small one by itself.

Operands are *fitted*: any value can feed any operation after conversions, reductions, broadcasts and slices that
give it the type needed. So no draw is ever wasted on a program that does not type-check.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

FLOATS = ("f32", "f32", "f32", "bf16", "f16", "f64")
INTEGERS = ("i32", "i32", "ui32", "i8", "ui8", "i64", "i16")
COMPLEX = "complex<f32>"
_SIZES = (1, 2, 3, 4, 6, 8)
_MOST_ELEMENTS = 256


@dataclasses.dataclass(frozen=True)
class Value:
    """An SSA value: its name and its tensor type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def type(self) -> str:
        return tensor(self.shape, self.dtype)


def tensor(shape: Sequence[int], dtype: str) -> str:
    """The text of a tensor type."""
    return f"tensor<{''.join(f'{d}x' for d in shape)}{dtype}>"


def is_float(dtype: str) -> bool:
    return dtype.startswith(("f", "bf"))


def is_integer(dtype: str) -> bool:
    return dtype.startswith(("i", "ui")) and dtype != "i1"


class Builder:
    """Writes operations in generic form; ``scope`` holds the values that the current block sees."""

    def __init__(self, random: Any):
        self.random = random
        self.lines: list[str] = []
        self.functions: list[str] = []
        self.scope: list[Value] = []
        self.depth = 1
        self._names = itertools.count()
        self._function_names = itertools.count()

    # --- drawing ------------------------------------------------------------------------------------------

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[self.random.randrange(len(choices))]

    def chance(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == one_in - 1

    def shape(self, most_rank: int = 3) -> tuple[int, ...]:
        while True:
            shape = tuple(self.pick(_SIZES) for _ in range(self.random.randrange(most_rank + 1)))
            if math.prod(shape) <= _MOST_ELEMENTS:
                return shape
            most_rank = 2

    def any_value(
        self, want: Callable[[Value], bool] = lambda v: True, *, complex_too: bool = False
    ) -> Value:
        """A value of the scope, if possible one that is wanted; complex ones for those who can take them."""
        scope = [v for v in self.scope if complex_too or v.dtype != COMPLEX]
        if not scope:
            scope = [self.converted(self.pick(self.scope), "f32")]
        values = [v for v in scope if want(v)] or scope
        # The last ones more often: long chains are what passes cut.
        if self.random.randrange(2):
            values = values[-6:]
        return self.pick(values)

    # --- writing ------------------------------------------------------------------------------------------

    def fresh(self) -> str:
        return f"%{next(self._names)}"

    def write(self, line: str) -> None:
        self.lines.append("  " * self.depth + line)

    def op(
        self,
        name: str,
        operands: Sequence[Value],
        shape: Sequence[int],
        dtype: str,
        attributes: str = "",
        regions: str = "",
    ) -> Value:
        """One operation with one result, which enters the scope."""
        return self.ops(name, operands, [(tuple(shape), dtype)], attributes, regions)[0]

    def ops(self, name, operands, types, attributes="", regions="") -> list[Value]:
        results = [Value(self.fresh(), tuple(shape), dtype) for shape, dtype in types]
        given = ", ".join(v.name for v in operands)
        inputs = ", ".join(v.type for v in operands)
        outputs = ", ".join(v.type for v in results)
        attributes = f" <{{{attributes}}}>" if attributes else ""
        regions = f" ({regions})" if regions else ""
        left = ", ".join(v.name for v in results) + " = " if results else ""
        self.write(f'{left}"stablehlo.{name}"({given}){attributes}{regions} : ({inputs}) -> ({outputs})')
        self.scope.extend(results)
        return results

    def constant(self, value: Any, shape: Sequence[int], dtype: str) -> Value:
        if dtype == COMPLEX:
            value = f"({value}, 0.0)"
        return self.op("constant", [], shape, dtype, f"value = dense<{value}> : {tensor(shape, dtype)}")

    def block(
        self, arguments: Sequence[Value], body: Callable[[], Sequence[Value]], *, isolated: bool
    ) -> str:
        """The text of a region with one block; ``body`` returns what it yields."""
        lines, scope = self.lines, self.scope
        self.lines = []
        self.scope = [*([] if isolated else scope), *arguments]
        self.depth += 1
        results = body()
        names, types = ", ".join(v.name for v in results), ", ".join(v.type for v in results)
        self.write(f'"stablehlo.return"({names}) : ({types}) -> ()')
        inner, self.lines, self.scope = self.lines, lines, scope
        self.depth -= 1
        header = ", ".join(f"{v.name}: {v.type}" for v in arguments)
        start = f"^bb0({header}):\n" if arguments else ""
        return "{\n" + start + "\n".join(inner) + "\n" + "  " * self.depth + "}"

    def argument(self, shape: Sequence[int], dtype: str) -> Value:
        return Value(self.fresh(), tuple(shape), dtype)

    def combiner(self, name: str, dtype: str) -> str:
        """The region of a reduction: ``name`` of its two scalars."""
        a, b = self.argument((), dtype), self.argument((), dtype)
        return self.block([a, b], lambda: [self.op(name, [a, b], (), dtype)], isolated=True)

    # --- fitting ------------------------------------------------------------------------------------------

    def fit(self, value: Value, shape: Sequence[int], dtype: str) -> Value:
        """``value`` as another type, by whatever operations that takes."""
        shape = tuple(shape)
        if value.shape != shape:
            value = self._reshaped(value, shape)
        return self.converted(value, dtype)

    def converted(self, value: Value, dtype: str) -> Value:
        if value.dtype == dtype:
            return value
        if value.dtype == COMPLEX:
            part = self.op(self.pick(("real", "imag")), [value], value.shape, "f32")
            return self.converted(part, dtype)
        if dtype == COMPLEX:
            part = self.converted(value, "f32")
            return self.op("complex", [part, self.op("sine", [part], part.shape, "f32")], part.shape, dtype)
        if dtype == "i1":
            zero = self.constant("0.0" if is_float(value.dtype) else "0", value.shape, value.dtype)
            return self.compare("GT", value, zero)
        return self.op("convert", [value], value.shape, dtype)

    def compare(self, direction: str, a: Value, b: Value) -> Value:
        return self.op(
            "compare",
            [a, b],
            a.shape,
            "i1",
            f"comparison_direction = #stablehlo<comparison_direction {direction}>",
        )

    def _reshaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        if math.prod(value.shape) == math.prod(shape) and not self.chance(3):
            return self.op("reshape", [value], shape, value.dtype)
        if value.shape:
            # Cut to what the target has, then spread over what is missing.
            limits, dims, kept = [], [], []
            position = 0
            for size in value.shape:
                if position < len(shape) and size >= shape[position] > 1:
                    limits.append(shape[position])
                    kept.append(shape[position])
                    dims.append(position)
                    position += 1
                else:
                    limits.append(1)
            if tuple(limits) != value.shape:
                value = self.slice(value, [0] * len(limits), limits, [1] * len(limits))
            value = self.op("reshape", [value], kept, value.dtype)
        else:
            dims = []
        if value.shape == shape:
            return value
        return self.broadcast(value, shape, dims)

    def slice(self, value: Value, starts, limits, strides) -> Value:
        shape = [-(-(b - a) // s) for a, b, s in zip(starts, limits, strides, strict=True)]
        attributes = ", ".join(
            f"{name} = {array(items)}"
            for name, items in (("limit_indices", limits), ("start_indices", starts), ("strides", strides))
        )
        return self.op("slice", [value], shape, value.dtype, attributes)

    def broadcast(self, value: Value, shape, dims) -> Value:
        return self.op(
            "broadcast_in_dim", [value], shape, value.dtype, f"broadcast_dimensions = {array(dims)}"
        )

    def bounded(self, value: Value) -> Value:
        """Keeps floats from overflowing after products and sums."""
        if value.dtype == COMPLEX:
            parts = [self.op(part, [value], value.shape, "f32") for part in ("real", "imag")]
            return self.op("complex", [self.bounded(part) for part in parts], value.shape, COMPLEX)
        return self.op("tanh", [value], value.shape, value.dtype) if is_float(value.dtype) else value

    def index(self, most: int, dtype: str = "i32") -> Value:
        """A scalar index in [0, most], from data."""
        value = self.fit(self.any_value(lambda v: v.dtype != "i1"), (), dtype)
        low, high = self.constant(0, (), dtype), self.constant(most, (), dtype)
        return self.op("clamp", [low, value, high], (), dtype)


def array(items: Sequence[Any], type_: str = "i64") -> str:
    """A dense array attribute."""
    return f"array<{type_}: {', '.join(map(str, items))}>" if items else f"array<{type_}>"


def module(random: Any) -> str:
    """The text of a random module; its ``main`` takes and gives tensors."""
    from trust import stablehlo_operations as operations

    builder = Builder(random)
    base = builder.shape(2) or (4,)
    dtype = builder.pick(FLOATS)
    arguments = [builder.argument(base, dtype) for _ in range(1 + random.randrange(3))]
    for _ in range(random.randrange(4)):
        arguments.append(builder.argument(builder.shape(), builder.pick((*FLOATS, *INTEGERS, "i1"))))
    builder.scope.extend(arguments)
    results = operations.step(builder, base, dtype)
    for _ in range(random.randrange(3)):
        results.append(builder.any_value())
    header = ", ".join(f"{v.name}: {v.type}" for v in arguments)
    types = ", ".join(v.type for v in results)
    names = ", ".join(v.name for v in results)
    body = "\n".join(builder.lines)
    functions = "".join(builder.functions)
    return (
        f"module @random {{\n  func.func public @main({header}) -> ({types}) {{\n{body}\n"
        f"    func.return {names} : {types}\n  }}\n{functions}}}\n"
    )
