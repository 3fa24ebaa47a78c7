"""The forms that hlo-opt reads and writes, told apart by content. Looks at bytes only; parses nothing."""

from __future__ import annotations

import pathlib
import re

from farrier._src import errors

EMIT = ("stablehlo", "generic", "bytecode", "artifact", "export", "hlo-text", "hlo-proto")
"""Output forms: pretty and generic text, MLIR bytecode, portable artifact, jax.export artifact, HLO."""

STAGES = ("stablehlo", "hlo", "optimized", "scheduled")

BYTECODE = b"ML\xefR"
ARTIFACT = b"ML\xefR\x0dStableHLO_v"

_HLO_TEXT = re.compile(r"\s*(//[^\n]*\n\s*)*HloModule\s")
# Control characters that text does not have.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")


def farrier_opt() -> str:
    """The native driver, beside the extension."""
    path = pathlib.Path(__file__).parents[2] / "_bin" / "farrier-opt"
    if not path.exists():
        raise errors.InputError(f"{path} is missing", hint="install farrier again, or run `make build`")
    return str(path)


def detect(data: bytes, name: str) -> str:
    """`artifact`, `bytecode`, `export`, `hlo-proto`, `hlo-text` or `mlir-text`.

    Raises:
      farrier.InputError: the bytes are none of these at first sight.
    """
    if not data.strip():
        raise errors.InputError(f"{name} is empty")
    if data.startswith(ARTIFACT):
        return "artifact"
    if data.startswith(BYTECODE):
        return "bytecode"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and not _BINARY.search(data):
        return "hlo-text" if _HLO_TEXT.match(text) else "mlir-text"
    # A flatbuffer that carries a portable artifact begins with the offset of its root table.
    if ARTIFACT in data and int.from_bytes(data[:4], "little") < len(data):
        return "export"
    # Both protobuf messages begin with a length-delimited field 1.
    if data[0] == 0x0A:
        return "hlo-proto"
    raise errors.InputError(
        f"{name} is of no form that hlo-opt knows",
        hint="give StableHLO, a jax.export artifact, HLO text, an HLO proto or a dump folder",
    )


def choose(folder: pathlib.Path, module: str | None, *, scheduled: bool) -> pathlib.Path:
    """The file of a dump folder to read.

    Args:
      folder: written by --xla_dump_to or JAX_DUMP_IR_TO.
      module: part of the file name, when the folder holds several modules.
      scheduled: whether optimized, scheduled HLO is wanted instead of XLA's input.

    Raises:
      farrier.InputError: nothing, or more than one module, fits.
    """
    if scheduled:
        endings = ("after_optimizations.hlo.pb", "after_optimizations.txt")
    else:
        endings = ("before_optimizations.hlo.pb", "before_optimizations.txt", "_compile.mlir", ".mlir")
    stems: dict[str, pathlib.Path] = {}
    for ending in endings:
        for path in sorted(folder.iterdir()):
            stem = path.name.removesuffix(ending)
            if stem != path.name and path.is_file() and (module is None or module in path.name):
                stems.setdefault(stem.rstrip("._"), path)
        if stems and ending in ("before_optimizations.txt", "_compile.mlir", ".mlir"):
            break
    if len(stems) == 1:
        return next(iter(stems.values()))
    if not stems:
        wanted = f" of a module with {module!r} in its name" if module else ""
        raise errors.InputError(
            f"{folder} holds no {'scheduled ' if scheduled else ''}program{wanted}",
            hint="write it with XLA_FLAGS='--xla_dump_to=... --xla_dump_hlo_as_proto' or JAX_DUMP_IR_TO=...",
        )
    names = ", ".join(sorted(stems)[:8]) + (", ..." if len(stems) > 8 else "")
    raise errors.InputError(
        f"{folder} holds {len(stems)} modules: {names}", hint="choose one with --module=NAME"
    )
