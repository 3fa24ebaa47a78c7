"""Getting what a report needs out of XLA: the scheduled module, its buffer assignment, its estimates."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from farrier._src import errors
from farrier._src.hlo import proto
from farrier._src.report.memory import XlaFigures

_AFTER = re.compile(r"^module_\d+\.(.*?)\.?(?:sm_[^.]+_gpu_|cpu_|gpu_)?after_optimizations\.hlo\.pb$")
_DEVICE_NAME = re.compile(r'device_description_str:\s*"([^"]*)"')

DUMP_OPTIONS: Mapping[str, Any] = {
    "xla_dump_hlo_as_proto": True,
    # XLA's own time estimates, written into each instruction's backend config.
    "xla_gpu_collect_cost_model_stats": True,
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A compiled program, as XLA described it."""

    module: bytes
    """Serialized HloModuleProto after optimization."""
    assignment: Any
    """BufferAssignmentProto, as `farrier._src.hlo.proto` declares it."""
    figures: XlaFigures | None = None
    """What the executable reports; None when only a dump is at hand."""
    device: str = ""
    """The GPU's name in the dump's target configuration, if there is one."""


def compile_with_dump(
    lowered: Any, *, compiler_options: Mapping[str, Any] | None = None
) -> tuple[Any, Artifact]:
    """Compiles a `jax.stages.Lowered` and keeps XLA's own description of the result.

    The description comes from XLA's dump, so this is always a fresh compile: an executable from JAX's
    persistent cache would write none.

    Returns:
      The `jax.stages.Compiled` and the artifact.

    Raises:
      farrier.CompileError: XLA wrote no buffer assignment.
    """
    with tempfile.TemporaryDirectory(prefix="farrier-dump-") as folder:
        options = {**(compiler_options or {}), **DUMP_OPTIONS, "xla_dump_to": folder}
        with _without_compilation_cache():
            compiled = lowered.compile(compiler_options=options)
        artifact = read_folder(folder, figures=XlaFigures.of(compiled.memory_analysis()))
    return compiled, artifact


class _without_compilation_cache:
    """Keeps JAX from answering with a cached executable, and from storing one made only to be described."""

    def __enter__(self) -> None:
        import jax

        self._before = jax.config.jax_enable_compilation_cache
        jax.config.update("jax_enable_compilation_cache", False)

    def __exit__(self, *unused: object) -> None:
        import jax

        jax.config.update("jax_enable_compilation_cache", self._before)


def read_folder(
    folder: str | pathlib.Path, *, module: str = "", figures: XlaFigures | None = None
) -> Artifact:
    """Reads an XLA dump folder (``xla_dump_to`` with ``xla_dump_hlo_as_proto``).

    Args:
      folder: the dump.
      module: part of the wanted module's name; by default the module with the most instructions to describe.
      figures: what the executable itself reported.

    Raises:
      farrier.InputError: no optimized module in it, or none of that name.
    """
    folder = pathlib.Path(folder)
    found = [p for p in sorted(folder.iterdir()) if _AFTER.match(p.name)]
    if not found:
        raise errors.InputError(
            f"{folder} holds no *after_optimizations.hlo.pb",
            hint="dump with xla_dump_to=FOLDER and xla_dump_hlo_as_proto=True",
        )
    named = [p for p in found if module in p.name]
    if not named:
        names = ", ".join(sorted({_AFTER.match(p.name).group(1) for p in found})[:8])  # type: ignore[union-attr]
        raise errors.InputError(f"no module named {module!r} in {folder}", hint=f"it holds {names}")
    # A process compiles many small modules (and autotuning more); the step is the large one.
    path = max(named, key=lambda p: p.stat().st_size)
    artifact = read_proto(path.read_bytes(), str(path))
    config = list(folder.glob(path.name.split(".")[0] + ".*gpu_target_config.pbtxt"))
    found_name = _DEVICE_NAME.search(config[0].read_text()) if config else None
    return dataclasses.replace(artifact, figures=figures, device=found_name.group(1) if found_name else "")


def read_proto(data: bytes, where: str = "") -> Artifact:
    """Reads a serialized HloProto with a buffer assignment.

    Raises:
      farrier.InputError: the bytes are no HloProto, or it has no buffer assignment.
    """
    try:
        parsed = proto.parse_hlo(data)
        proto.parse_module(parsed.hlo_module)
    except DecodeError as e:
        raise errors.InputError("these bytes are not an HloProto", where=where or None) from e
    if not parsed.hlo_module or not parsed.buffer_assignment.buffer_allocations:
        raise errors.InputError(
            "this HloProto has no buffer assignment",
            where=where or None,
            hint="a report reads the *after_optimizations.hlo.pb of an XLA dump (xla_dump_hlo_as_proto=True)",
        )
    return Artifact(parsed.hlo_module, parsed.buffer_assignment)
