"""The operations that random StableHLO is made of; see stablehlo_programs.py.

Each function writes one thing into a builder and returns a value. ``step`` is the plan of a whole program: what
looks like layers forward, then backward through what they left.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trust.stablehlo_programs import (
    COMPLEX,
    FLOATS,
    INTEGERS,
    Builder,
    Value,
    array,
    is_float,
    is_integer,
    tensor,
)

_UNARY_FLOAT = (
    "tanh", "logistic", "sine", "cosine", "negate", "abs", "exponential", "sqrt", "rsqrt", "cbrt", "log",
    "log_plus_one", "exponential_minus_one", "sign", "floor", "ceil", "round_nearest_even", "tan",
)  # fmt: skip
_UNARY_INTEGER = ("negate", "abs", "sign", "not", "popcnt", "count_leading_zeros")
_BINARY_FLOAT = ("add", "multiply", "subtract", "maximum", "minimum", "divide", "atan2", "power", "remainder")
_BINARY_INTEGER = (
    "add", "multiply", "subtract", "maximum", "minimum", "and", "or", "xor", "divide", "remainder",
    "shift_left", "shift_right_logical", "shift_right_arithmetic",
)  # fmt: skip
_UNARY_COMPLEX = ("negate", "exponential", "sine", "cosine", "tanh", "sqrt", "log", "rsqrt")
_BINARY_COMPLEX = ("add", "multiply", "subtract", "divide")
_DIRECTIONS = ("EQ", "NE", "LT", "LE", "GT", "GE")


def unary(b: Builder) -> Value:
    value = b.any_value(lambda v: v.dtype != "i1", complex_too=True)
    if value.dtype == COMPLEX:
        value = b.bounded(value)
        return b.op(b.pick(_UNARY_COMPLEX), [value], value.shape, COMPLEX)
    if is_float(value.dtype):
        name = b.pick(_UNARY_FLOAT)
        if name in ("exponential", "exponential_minus_one", "tan"):
            value = b.bounded(value)
        if name in ("sqrt", "rsqrt", "log", "log_plus_one"):
            value = b.op("abs", [value], value.shape, value.dtype)
    else:
        name = b.pick(_UNARY_INTEGER)
        if value.dtype == "i1" or (value.dtype.startswith("ui") and name in ("negate", "abs", "sign")):
            name = "not"
    return b.op(name, [value], value.shape, value.dtype)


def binary(b: Builder) -> Value:
    a = b.any_value(complex_too=True)
    other = b.fit(b.any_value(complex_too=True), a.shape, a.dtype)
    if a.dtype == "i1":
        return b.op(b.pick(("and", "or", "xor")), [a, other], a.shape, "i1")
    if a.dtype == COMPLEX:
        return b.op(b.pick(_BINARY_COMPLEX), [a, other], a.shape, COMPLEX)
    name = b.pick(_BINARY_FLOAT if is_float(a.dtype) else _BINARY_INTEGER)
    return b.op(name, [a, other] if b.chance(2) else [other, a], a.shape, a.dtype)


def choose(b: Builder) -> Value:
    a = b.any_value()
    other = b.fit(b.any_value(), a.shape, a.dtype)
    if a.dtype != "i1" and b.chance(2):
        condition = b.compare(b.pick(_DIRECTIONS), a, other)
    else:
        condition = b.fit(b.any_value(), a.shape, "i1")
    return b.op("select", [condition, a, other], a.shape, a.dtype)


def convert(b: Builder) -> Value:
    value = b.any_value(complex_too=True)
    return b.converted(value, b.pick((*FLOATS, *INTEGERS, "i1", COMPLEX)))


def refit(b: Builder) -> Value:
    value = b.any_value(complex_too=True)
    return b.fit(value, b.shape(), value.dtype)


def transpose(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 1, complex_too=True)
    order = list(range(len(value.shape)))
    b.random.shuffle(order)
    shape = [value.shape[i] for i in order]
    return b.op("transpose", [value], shape, value.dtype, f"permutation = {array(order)}")


def cut(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0)
    starts = [b.random.randrange(d) for d in value.shape]
    limits = [s + 1 + b.random.randrange(d - s) for s, d in zip(starts, value.shape, strict=True)]
    return b.slice(value, starts, limits, [1 + b.random.randrange(2) for _ in starts])


def pad(b: Builder) -> Value:
    value = b.any_value(lambda v: 0 < len(v.shape) < 4 and math.prod(v.shape) <= 64)
    low, high, inner = ([b.random.randrange(2) for _ in value.shape] for _ in range(3))
    shape = [
        d + lo + hi + max(d - 1, 0) * i for d, lo, hi, i in zip(value.shape, low, high, inner, strict=True)
    ]
    filler = b.fit(b.any_value(), (), value.dtype)
    return b.op(
        "pad", [value, filler], shape, value.dtype,
        f"edge_padding_high = {array(high)}, edge_padding_low = {array(low)}, interior_padding = {array(inner)}",
    )  # fmt: skip


def concatenate(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0 and math.prod(v.shape) <= 128)
    if not value.shape:
        return value
    axis = b.random.randrange(len(value.shape))
    shape = list(value.shape)
    shape[axis] *= 2
    other = b.fit(b.any_value(), value.shape, value.dtype)
    return b.op("concatenate", [value, other], shape, value.dtype, f"dimension = {axis} : i64")


def reverse(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0)
    dims = [i for i in range(len(value.shape)) if b.chance(2)]
    return b.op("reverse", [value], value.shape, value.dtype, f"dimensions = {array(dims)}")


def dot(b: Builder) -> Value:
    a = b.any_value(lambda v: is_float(v.dtype) and len(v.shape) >= 1)
    a = b.converted(a, a.dtype if is_float(a.dtype) else "f32")
    if not a.shape:
        return b.bounded(a)
    width = b.pick((1, 2, 3, 4, 8))
    inner = a.shape[-1]
    batch = 1 if len(a.shape) > 2 and b.chance(2) else 0
    other = b.fit(b.any_value(), (*a.shape[:batch], inner, width), a.dtype)
    result = b.op(
        "dot_general", [a, other], (*a.shape[:-1], width), a.dtype,
        "dot_dimension_numbers = #stablehlo.dot<"
        + (f"lhs_batching_dimensions = {list(range(batch))}, rhs_batching_dimensions = {list(range(batch))}, " if batch else "")
        + f"lhs_contracting_dimensions = [{len(a.shape) - 1}], rhs_contracting_dimensions = [{batch}]>, "
        "precision_config = [#stablehlo<precision DEFAULT>, #stablehlo<precision DEFAULT>]",
    )  # fmt: skip
    return b.bounded(result)


def reduce(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0 and v.dtype != "i1")
    if value.dtype == "i1":
        value = b.converted(value, "i32")
    dims = [i for i in range(len(value.shape)) if b.chance(2)] or list(range(len(value.shape)))[:1]
    shape = [d for i, d in enumerate(value.shape) if i not in dims]
    name = b.pick(("add", "maximum", "minimum", "multiply"))
    start = b.constant({"multiply": 1, "add": 0}.get(name, 0), (), value.dtype) if is_integer(value.dtype) else (
        b.constant({"multiply": "1.0", "add": "0.0", "maximum": "-3.0"}.get(name, "3.0"), (), value.dtype)
    )  # fmt: skip
    if not dims:
        return value
    region = b.combiner(name, value.dtype)
    result = b.op("reduce", [value, start], shape, value.dtype, f"dimensions = {array(dims)}", region)
    return b.bounded(result)


def window(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0 and is_float(v.dtype))
    if not value.shape or not is_float(value.dtype):
        return value
    sizes = [1 + b.random.randrange(min(d, 2)) for d in value.shape]
    shape = [d - s + 1 for d, s in zip(value.shape, sizes, strict=True)]
    start = b.constant("0.0", (), value.dtype)
    region = b.combiner(b.pick(("add", "maximum")), value.dtype)
    return b.op(
        "reduce_window", [value, start], shape, value.dtype, f"window_dimensions = {array(sizes)}", region
    )


def iota(b: Builder) -> Value:
    shape = b.shape(2) or (4,)
    dtype = b.pick((*FLOATS, *INTEGERS))
    return b.op("iota", [], shape, dtype, f"iota_dimension = {b.random.randrange(len(shape))} : i64")


def number(b: Builder) -> Value:
    dtype = b.pick((*FLOATS, *INTEGERS))
    shape = b.shape()
    if b.chance(8):
        shape = (120,)  # enough elements to be left behind by the interchange
    count = math.prod(shape)
    if b.chance(2) or count == 1:
        return b.constant(
            b.pick(("0.5", "1.5", "-2.0")) if is_float(dtype) else b.pick((0, 1, 3)), shape, dtype
        )
    seed = b.random.randrange(97)
    flat = [
        f"{((seed + 7 * i) % 13 - 6) / 4}" if is_float(dtype) else str((seed + i) % 5) for i in range(count)
    ]
    return b.constant(_nested(flat, shape), shape, dtype)


def _nested(flat: list[str], shape) -> str:
    if len(shape) <= 1:
        return "[" + ", ".join(flat) + "]"
    step = math.prod(shape[1:])
    return "[" + ", ".join(_nested(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])) + "]"


def clamp(b: Builder) -> Value:
    value = b.any_value(lambda v: v.dtype != "i1")
    if value.dtype == "i1":
        return value
    low, high = (b.fit(b.any_value(), value.shape, value.dtype) for _ in range(2))
    return b.op("clamp", [low, value, high], value.shape, value.dtype)


def dynamic_slice(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0)
    if not value.shape:
        return value
    sizes = [1 + b.random.randrange(d) for d in value.shape]
    starts = [b.index(d - s) for d, s in zip(value.shape, sizes, strict=True)]
    return b.op("dynamic_slice", [value, *starts], sizes, value.dtype, f"slice_sizes = {array(sizes)}")


def dynamic_update(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0)
    if not value.shape:
        return value
    sizes = [1 + b.random.randrange(d) for d in value.shape]
    update = b.fit(b.any_value(), sizes, value.dtype)
    starts = [b.index(d - s) for d, s in zip(value.shape, sizes, strict=True)]
    return b.op("dynamic_update_slice", [value, update, *starts], value.shape, value.dtype)


def gather(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) == 2)
    if len(value.shape) != 2:
        value = b.fit(value, (4, 3), value.dtype)
    _rows, width = value.shape
    count = b.pick((1, 2, 5))
    indices = b.fit(b.any_value(), (count, 1), "i32")
    return b.op(
        "gather", [value, indices], (count, width), value.dtype,
        "dimension_numbers = #stablehlo.gather<offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [0], "
        f"index_vector_dim = 1>, indices_are_sorted = false, slice_sizes = {array([1, width])}",
    )  # fmt: skip


def scatter(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) == 2 and v.dtype != "i1")
    if len(value.shape) != 2 or value.dtype == "i1":
        value = b.fit(value, (4, 3), "f32")
    count = b.pick((1, 2, 5))
    indices = b.fit(b.any_value(), (count, 1), "i32")
    updates = b.fit(b.any_value(), (count, value.shape[1]), value.dtype)
    return b.op(
        "scatter", [value, indices, updates], value.shape, value.dtype,
        "indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], "
        "inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = false",
        b.combiner(b.pick(("add", "maximum", "minimum")), value.dtype),
    )  # fmt: skip


def sort(b: Builder) -> Value:
    value = b.any_value(lambda v: len(v.shape) > 0 and v.dtype != "i1")
    if not value.shape or value.dtype == "i1":
        return value
    other = b.fit(b.any_value(), value.shape, b.pick(("f32", "i32")))
    x, y, p, q = (b.argument((), v.dtype) for v in (value, value, other, other))
    region = b.block([x, y, p, q], lambda: [b.compare(b.pick(("LT", "GT")), x, y)], isolated=True)
    axis = b.random.randrange(len(value.shape))
    results = b.ops(
        "sort", [value, other], [(v.shape, v.dtype) for v in (value, other)],
        f"dimension = {axis} : i64, is_stable = true", region,
    )  # fmt: skip
    return b.pick(results)


def random_bits(b: Builder) -> Value:
    state = b.fit(b.any_value(), (2,), "ui64")
    _, bits = b.ops(
        "rng_bit_generator", [state], [((2,), "ui64"), (b.shape(2), "ui32")],
        "rng_algorithm = #stablehlo<rng_algorithm THREE_FRY>",
    )  # fmt: skip
    return b.op("shift_right_logical", [bits, b.constant(20, bits.shape, "ui32")], bits.shape, "ui32")


def spectrum(b: Builder) -> Value:
    """A Fourier transform of the last axis, real to complex, complex to real, or complex both ways."""
    kind = b.pick(("FFT", "IFFT", "RFFT", "IRFFT"))
    rows, length = b.pick((1, 3)), b.pick((2, 4, 6))
    half = length // 2 + 1
    given, found = {"RFFT": (length, half), "IRFFT": (half, length)}.get(kind, (length, length))
    value = b.any_value(complex_too=True)
    value = b.fit(value, (rows, given), "f32" if kind == "RFFT" else COMPLEX)
    dtype = "f32" if kind == "IRFFT" else COMPLEX
    attributes = f"fft_length = {array([length])}, fft_type = #stablehlo<fft_type {kind}>"
    return b.bounded(b.op("fft", [value], (rows, found), dtype, attributes))


def barrier(b: Builder) -> Value:
    values = [b.any_value(complex_too=True) for _ in range(1 + b.random.randrange(2))]
    return b.ops("optimization_barrier", values, [(v.shape, v.dtype) for v in values])[0]


def layer(b: Builder, count: int) -> None:
    """``count`` random operations in the current scope."""
    for _ in range(count):
        b.pick(SIMPLE)(b)


def branch(b: Builder) -> Value:
    shape, dtype = b.shape(2), b.pick(FLOATS)
    predicate = b.fit(b.any_value(), (), "i1")

    def body():
        layer(b, b.random.randrange(3))
        return [b.fit(b.any_value(), shape, dtype)]

    if b.chance(3):
        index = b.index(2)
        regions = ", ".join(b.block([], body, isolated=False) for _ in range(3))
        return b.op("case", [index], shape, dtype, "", regions)
    regions = ", ".join(b.block([], body, isolated=False) for _ in range(2))
    return b.op("if", [predicate], shape, dtype, "", regions)


def call(b: Builder) -> Value:
    arguments = [b.any_value(complex_too=True) for _ in range(1 + b.random.randrange(2))]
    shape, dtype = b.shape(2), b.pick(FLOATS)
    name = f"call_{next(b._function_names)}"
    lines, scope, depth = b.lines, b.scope, b.depth
    inner = [b.argument(v.shape, v.dtype) for v in arguments]
    b.lines, b.scope, b.depth = [], list(inner), 2
    layer(b, 1 + b.random.randrange(3))
    result = b.fit(b.any_value(), shape, dtype)
    body, b.lines, b.scope, b.depth = b.lines, lines, scope, depth
    header = ", ".join(f"{v.name}: {v.type}" for v in inner)
    b.functions.append(
        f"  func.func private @{name}({header}) -> {result.type} {{\n"
        + "\n".join(body)
        + f"\n    func.return {result.name} : {result.type}\n  }}\n"
    )
    types = ", ".join(v.type for v in arguments)
    for _ in range(1 + b.random.randrange(2)):
        out = Value(b.fresh(), shape, dtype)
        names = ", ".join(v.name for v in arguments)
        b.write(f"{out.name} = func.call @{name}({names}) : ({types}) -> {tensor(shape, dtype)}")
        b.scope.append(out)
    return out


def loop(b: Builder) -> Value:
    """A counted loop that carries values; what it uses from outside it captures, as StableHLO allows."""
    trips = b.random.randrange(4)
    counter = b.constant(0, (), "i32")
    carried = [b.any_value(complex_too=True) for _ in range(1 + b.random.randrange(2))]
    results = _counted(b, trips, [counter, *carried], lambda i, values: _next(b, values))
    return results[-1]


def _next(b: Builder, values: list[Value]) -> list[Value]:
    layer(b, b.random.randrange(4))
    return [b.fit(b.any_value(), v.shape, v.dtype) for v in values]


def _counted(
    b: Builder,
    trips: int,
    operands: list[Value],
    body: Callable[[Value, list[Value]], list[Value]],
) -> list[Value]:
    types = [(v.shape, v.dtype) for v in operands]
    outer = [b.argument(*t) for t in types]

    def condition():
        return [b.compare("LT", outer[0], b.constant(trips, (), "i32"))]

    first = b.block(outer, condition, isolated=True)
    inner = [b.argument(*t) for t in types]

    def iteration():
        following = b.op("add", [inner[0], b.constant(1, (), "i32")], (), "i32")
        return [following, *body(inner[0], inner[1:])]

    # JAX's loops take everything as operands; others may capture.
    second = b.block(inner, iteration, isolated=not b.chance(4))
    return b.ops("while", operands, types, "", f"{first}, {second}")


def scan_pair(b: Builder) -> Value:
    """A forward loop that stacks what a backward loop reads, as scan and its derivative do."""
    trips = 1 + b.random.randrange(4)
    shape, dtype = b.shape(2), b.pick(("f32", "f32", "bf16", "f64", COMPLEX))
    count = 1 + b.random.randrange(2)
    weights = b.fit(b.any_value(), (trips, *shape), dtype)
    state = b.fit(b.any_value(), shape, dtype)
    zero = b.constant("0.0", (), dtype)
    stacks = [b.broadcast(zero, (trips, *shape), []) for _ in range(count)]

    def read(stack: Value, at: Value) -> Value:
        rest = [b.constant(0, (), "i32") for _ in shape]
        one = b.op(
            "dynamic_slice", [stack, at, *rest], (1, *shape), dtype, f"slice_sizes = {array([1, *shape])}"
        )
        return b.op("reshape", [one], shape, dtype)

    def forward(i, values):
        _x, w, *rest = values
        wi = read(w, i)
        b.scope.append(wi)
        saved = []
        for _ in rest:
            layer(b, 1 + b.random.randrange(2))
            saved.append(b.fit(b.any_value(), shape, dtype))
        new = b.bounded(b.op("multiply", [saved[-1], wi], shape, dtype))
        starts = [i, *(b.constant(0, (), "i32") for _ in shape)]
        updated = []
        for stack, value in zip(rest, saved, strict=True):
            one = b.op("reshape", [value], (1, *shape), dtype)
            updated.append(b.op("dynamic_update_slice", [stack, one, *starts], stack.shape, dtype))
        return [new, w, *updated]

    zero_index = b.constant(0, (), "i32")
    done = _counted(b, trips, [zero_index, state, weights, *stacks], forward)
    gradient = b.op("cosine", [done[1]], shape, dtype)

    def backward(i, values):
        g, w, *rest = values
        last = b.constant(trips - 1, (), "i32")
        at = b.op("subtract", [last, i], (), "i32")
        reads = [read(stack, at) for stack in (w, *rest)]
        b.scope.extend(reads)
        layer(b, b.random.randrange(2))
        for value in reads:
            g = b.op(b.pick(("multiply", "add", "subtract")), [g, value], shape, dtype)
        return [b.bounded(g), w, *rest]

    results = _counted(b, trips, [b.constant(0, (), "i32"), gradient, done[2], *done[3:]], backward)
    return results[1]


SIMPLE = (
    unary, unary, unary, binary, binary, binary, choose, convert, refit, transpose, cut, pad, concatenate, reverse,
    dot, dot, reduce, reduce, window, iota, number, clamp, dynamic_slice, dynamic_update, gather, scatter, sort,
    random_bits, spectrum, barrier,
)  # fmt: skip
NESTED = (branch, call, loop, scan_pair, scan_pair)


def step(b: Builder, shape: tuple[int, ...], dtype: str) -> list[Value]:
    """Layers forward, then a gradient that walks back over what they left."""
    x = b.scope[0]
    saved = [x]
    for _ in range(1 + b.random.randrange(5)):
        for _ in range(1 + b.random.randrange(3)):
            (b.pick(NESTED) if b.chance(8) else b.pick(SIMPLE))(b)
        x = b.bounded(b.op("add", [b.fit(b.any_value(), shape, dtype), x], shape, dtype))
        saved.append(x)
        saved.append(b.any_value())
    g = b.op("cosine", [x], shape, dtype)
    results = []
    for value in reversed(saved):
        value = b.fit(value, shape, dtype)
        g = b.op(b.pick(("multiply", "add", "subtract")), [g, value], shape, dtype)
        if b.chance(3):
            b.pick(SIMPLE)(b)
        if b.chance(3):
            g = b.fit(dot(b), shape, dtype)
        if b.chance(3):
            results.append(g)
        g = b.bounded(g)
    return [*results, g]
