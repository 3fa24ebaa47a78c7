"""Modules between jaxlib's MLIR and farrier's own, as generic-form text.

jaxlib hides its MLIR symbols, so the two cannot share objects, and its bytecode may be misread by another
MLIR without an error: text is the interchange. It is lossless, with one exception that is handled here: the
contents of large constants stay behind in jaxlib's context. The text names them by their content's hash, and
they are put back by that name. So they cost neither time nor memory (hexadecimal text is twice the data), and
no data format of one MLIR (booleans are packed in one and not in the other) is ever read by the other.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.interpreters import mlir

from farrier import _core
from farrier._src import errors

ir = mlir.ir

LARGE = 100
"""A constant of more elements than this stays behind. MLIR writes larger ones as raw hexadecimal data."""

_ELIDED = b"__elided__"
_PREFIX = b"farrier_constant_"
_NAME = re.compile(r"farrier_constant_([0-9a-f]{32})_")
# jaxlib appends _1, _2, ... to the name of a resource that its context has seen before, and jax lowers many
# programs in one context: without this the text, and the fingerprint, would depend on what was lowered
# earlier.
_NUMBERED = re.compile(rb"(farrier_constant_[0-9a-f]{32}_)_[0-9]+")


def to_core(module: ir.Module, *, locations: bool = True) -> _core.Module:
    """Reads a jaxlib module into farrier's MLIR.

    The jaxlib module is unchanged afterwards. The result holds on to its large constants (and with them to
    its context) as `constants`, which `clone()` hands on.

    Args:
      module: verified StableHLO, any dialects.
      locations: whether source locations come along.

    Raises:
      farrier.InternalError: farrier's MLIR cannot read what jaxlib printed.
    """
    text = print_module(module, locations=locations, limit=LARGE)
    constants: dict[str, ir.Attribute] = {}
    if _ELIDED in text:
        del text
        text, constants = _print_without_constants(module, locations=locations)
    try:
        result = _core.Module.parse(text)
    except _core.DiagnosticError as error:
        raise errors.InternalError(
            f"farrier cannot read the module that jaxlib printed: {error}",
            hint="report it with the program and the versions of jax and jaxlib",
        ) from error
    result.constants = constants
    return result


def to_jaxlib(module: _core.Module, context: ir.Context | None = None) -> ir.Module:
    """Gives a module back to jaxlib, parsed and verified there, with its large constants in place.

    Args:
      module: what `to_core` made, or a `clone()` of it.
      context: the jaxlib context that the result lives in; by default a new one.

    Raises:
      farrier.InternalError: jaxlib's verifier refuses the module.
    """
    return text_to_jaxlib(module.print(), module.constants, context)


def text_to_jaxlib(
    text: bytes, constants: dict[str, ir.Attribute] | None, context: ir.Context | None = None
) -> ir.Module:
    """`to_jaxlib` for a module that farrier-opt printed: `constants` are those of the module it was given."""
    context = mlir.make_ir_context() if context is None else context
    try:
        with context:
            result = ir.Module.parse(text)
    except ir.MLIRError as error:
        raise errors.InternalError(
            f"jaxlib refuses the module that farrier's passes made: {error}",
            hint="report it with the passes that ran; strict=False runs the original program",
        ) from error
    if _PREFIX in text:
        _restore(result, constants or {})
    return result


def print_module(module: ir.Module, *, locations: bool, limit: int | None = None) -> bytes:
    """Generic-form text of a jaxlib module, UTF-8; constants of more than `limit` elements elided."""
    return module.operation.get_asm(
        binary=True,
        print_generic_op_form=True,
        assume_verified=True,
        enable_debug_info=locations,
        large_elements_limit=limit,
    )


def _constant_ops(module: ir.Module) -> Iterator[ir.Operation]:
    found = []

    def visit(op):
        if op.name == "stablehlo.constant":
            found.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return iter(found)


def _print_without_constants(module: ir.Module, *, locations: bool) -> tuple[bytes, dict[str, ir.Attribute]]:
    constants: dict[str, ir.Attribute] = {}
    names: dict[ir.Attribute, ir.Attribute] = {}
    replaced: list[tuple[ir.Operation, ir.Attribute]] = []
    try:
        for op in _constant_ops(module):
            value = _large_value(op)
            if value is None:
                continue
            if value not in names:
                digest = _digest(value)
                constants[digest] = value
                names[value] = ir.Attribute.parse(
                    f"dense_resource<{_PREFIX.decode()}{digest}_> : {value.type}", context=module.context
                )
            op.attributes["value"] = names[value]
            replaced.append((op, value))
        return _NUMBERED.sub(rb"\1", print_module(module, locations=locations)), constants
    finally:
        for op, value in replaced:
            op.attributes["value"] = value


def _large_value(op: ir.Operation) -> ir.DenseElementsAttr | None:
    """The constant's data if it is large and stored densely."""
    value = _value(op)
    if not isinstance(value, ir.DenseElementsAttr) or value.is_splat or len(value) <= LARGE:
        return None
    return value


def _value(op: ir.Operation) -> ir.Attribute | None:
    if isinstance(op.results[0].type.element_type, ir.ComplexType):
        return _complex_value(op)
    return op.attributes["value"]


def _complex_value(op: ir.Operation) -> ir.Attribute | None:
    """The constant's data if it is stored densely.

    jaxlib has no Python class for complex constants: whoever asks for one gets an error that quotes it whole, or the
    process is ended. But it makes them from a buffer, and equal attributes of one context are one: so the data is
    taken from the bytecode of a copy, and the attribute made from it is the one that the operation has.
    """
    kind = op.results[0].type
    copy = _alone(op)
    found = _Blobs(math.prod(kind.shape) * (8 if str(kind.element_type) == "complex<f32>" else 16))
    copy.operation.write_bytecode(found)
    (held,) = _constant_ops(copy)
    for blob in found.blobs:
        value = ir.DenseElementsAttr.get(np.frombuffer(blob, np.uint8), type=kind, context=op.context)
        held.attributes["value"] = value
        if held.is_structurally_equivalent(op):
            return value
    return None


def _alone(op: ir.Operation) -> ir.Module:
    """A module of a copy of `op`, without its location."""
    with op.context, ir.Location.unknown():
        module = ir.Module.create()
        op.clone(ip=ir.InsertionPoint(module.body))
        return module


def _holding(value: ir.DenseElementsAttr) -> ir.Module:
    """A module of nothing but a constant."""
    with value.context, ir.Location.unknown():
        module = ir.Module.create()
        ir.Operation.create(
            "stablehlo.constant",
            results=[value.type],
            attributes={"value": value},
            ip=ir.InsertionPoint(module.body),
        )
        return module


class _Blobs:
    """A file that keeps what is written in pieces of `size` bytes. MLIR writes the data of a constant in one piece."""

    def __init__(self, size: int):
        self._size = size
        self.blobs: list[bytes] = []

    def write(self, data: bytes) -> int:
        if len(data) == self._size:
            self.blobs.append(data)
        return len(data)


class _Hash:
    """A file that keeps a hash of bytecode, without the version of MLIR that it begins with."""

    def __init__(self, *before: bytes):
        self._hash = hashlib.sha256(*before)
        self._in_header = True

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        if self._in_header:
            end = data.find(b"\0")
            if end < 0:
                return len(data)
            self._in_header = False
            rest = rest[end + 1 :]
        self._hash.update(rest)
        return len(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _digest(value: ir.DenseElementsAttr) -> str:
    """32 hexadecimal digits of a hash of type and contents."""
    kind = str(value.type).encode()
    try:
        data = memoryview(value).cast("B")
    except (BufferError, TypeError):
        # jaxlib lends no buffer of narrow floats and integers. Its bytecode holds their data as it is, in the same
        # bytes for the same contents, and is written piece by piece; text would be two to eight times as long.
        digest = _Hash(kind)
        _holding(value).operation.write_bytecode(digest)
    else:
        digest = hashlib.sha256(kind)
        digest.update(data)
    return digest.hexdigest()[:32]


def _in_context(value: ir.DenseElementsAttr, context: ir.Context) -> ir.Attribute:
    """The same constant in another context of this jaxlib, which reads the bytecode that it wrote."""
    data = io.BytesIO()
    _holding(value).operation.write_bytecode(data)
    with context:
        module = ir.Module.parse(data.getvalue())
    (op,) = _constant_ops(module)
    return _value(op)


def _restore(module: ir.Module, constants: dict[str, ir.Attribute]) -> None:
    context = module.context
    for op in _constant_ops(module):
        try:
            held = op.attributes["value"]
        except TypeError:
            continue  # complex and in place
        if isinstance(held, ir.DenseElementsAttr):
            continue
        name = _NAME.search(str(held))
        if name is None:
            continue
        value = constants.get(name[1])
        if value is None:
            raise errors.InternalError(f"the contents of constant {name[1]} are lost", where=str(op.location))
        if value.context is not context:
            value = _in_context(value, context)
        op.attributes["value"] = value
