"""The oracle: compile a program with the real XLA for a target, and measure the result.

Nothing is executed and no GPU is needed. Results are remembered by content (`metrics_cache`), so a program
that was measured once, here or in another process, costs no second compile.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from farrier._src import compat, errors, fingerprint, hlo, metrics, metrics_cache, reuse
from farrier._src.hlo.stablehlo_flops import stablehlo_flops
from farrier._src.targets import Target


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program and its measurement."""

    executable: Any
    """jaxlib's executable; compile-only (not loaded) when the target is not attached."""
    measurement: metrics.Measurement

    def hlo(self) -> hlo.Module:
        """The optimized module, parsed."""
        return hlo.Module.from_executable(self.executable)

    def as_text(self) -> str:
        """The optimized, scheduled HLO text."""
        return self.executable.hlo_modules()[0].to_string()


def compile_lowered(
    lowered: Any, target: Target | None = None, *, compiler_options: Mapping[str, Any] | None = None
) -> Compiled:
    """Compiles what `jax.jit(f).lower(...)` gave, for the devices its arguments' shardings name.

    Args:
      lowered: a `jax.stages.Lowered`. For a GPU that is not attached, lower with abstract arguments on the
        target's mesh (`Target.mesh`, `Target.sharding`).
      target: recorded in the measurement; the lowering must be for it.
      compiler_options: XLA options for this compile only.

    Raises:
      farrier.Error: the program was lowered for a CPU and the target is none, or XLA refuses the program; the message
        carries XLA's and says what to do.
    """
    module = lowered.compiler_ir("stablehlo")
    if target is not None and (device := _first_device(lowered)).platform == "cpu":
        # XLA would compile it for the CPU, and the figures would be taken for the target's.
        raise errors.CompileError(
            f"the program was lowered for {_platform(device)}, not for {target!r}",
            hint="lower with abstract arguments on the target's mesh (Target.sharding), or pass the module",
        )
    start = time.perf_counter()
    with _xla_errors(target):
        compiled = lowered.compile(compiler_options=dict(compiler_options) if compiler_options else None)
        executable = compiled.runtime_executable()
    seconds = time.perf_counter() - start
    return _measured(executable, module, seconds, target)


def compile_module(
    module: Any,
    target: Target | None = None,
    *,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    reusable: bool = False,
    held: bool = False,
) -> Compiled:
    """Compiles a StableHLO module for a target; donation and shardings are what the module's attributes say.

    Args:
      module: StableHLO text, a portable artifact's bytes, or a jaxlib `ir.Module` (left as it is).
      target: what to compile for; its device count must be the module's number of partitions.
      devices: the devices to compile for, in the order of the assignment: attached ones, or the target's in
        another order. By default the target's in its own order.
      compiler_options: XLA options for this compile only.
      reusable: whether the same compile, asked for by JAX next, may take this executable (see `reuse`).
      held: whether the measurement is to say what lies in temporary memory when.

    Raises:
      farrier.Error: the text is not StableHLO, the device counts differ, or XLA refuses the program.
    """
    from jax._src import compiler
    from jaxlib import _jax as jaxlib_client

    module = parse_module(module)
    devices = _devices(target, devices)
    partitions = _partitions(module)
    if partitions != len(devices):
        raise errors.CompileError(
            f"the module is for {partitions} devices and {target or devices[0].platform!r} has "
            f"{len(devices)}; use a topology with {partitions} devices"
        )
    import numpy as np

    inputs, outputs = _unsharded(module)

    def options_with(more: Mapping[str, Any]) -> Any:
        options = compiler.get_compile_options(
            num_replicas=1,
            num_partitions=partitions,
            device_assignment=np.array(devices, dtype=object).reshape(1, partitions),
            env_options_overrides={**(compiler_options or {}), **more},
            detailed_logging=compiler.use_detailed_logging(module),
            backend=devices[0].client,
        )
        build = options.executable_build_options
        # As jit does: XLA may choose the sharding of what the program leaves open.
        build.allow_spmd_sharding_propagation_to_parameters = inputs
        build.allow_spmd_sharding_propagation_to_output = outputs
        return options

    with _xla_errors(target), _Description(held) as description:
        options = options_with({})
        # jit's compile runs jaxlib's pipeline on the module in place: give it a copy.
        copy = clone_module(module)
        start = time.perf_counter()
        with copy.context:
            executable = compat.compile_and_load(
                devices[0].client,
                copy,
                jaxlib_client.DeviceList(tuple(devices)),
                options_with(description.options) if held else options,
                [],
            )
        seconds = time.perf_counter() - start
        seen = description.read()
    if reusable:
        reuse.keep(module, devices, options, executable)
    compiled = _measured(executable, module, seconds, target)
    return dataclasses.replace(compiled, measurement=dataclasses.replace(compiled.measurement, held=seen))


def measure(
    program: Any,
    target: Target | None = None,
    *,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    cache: metrics_cache.MeasurementCache | bool | None = True,
    reusable: bool = False,
    held: bool = False,
) -> metrics.Measurement:
    """Measures a program, from the cache when it was measured before.

    Args:
      program: a `jax.stages.Lowered`, or whatever `compile_module` takes (which then needs a target).
      target: what to compile for. None: `devices`, or those `program` was lowered for (attached GPU or CPU).
      devices: for a bare module, the devices to compile for, as in `compile_module`.
      compiler_options: XLA options for this compile only.
      cache: a cache, True for the default one, or False to compile anew and store nothing.
      reusable: of a bare module's compile, as in `compile_module`.
      held: of a bare module's compile, as in `compile_module`. With a target, what is in the cache and does not say it is
        compiled again.

    Raises:
      farrier.Error: as `compile_lowered` and `compile_module`.
    """
    if cache is True:
        cache = metrics_cache.MeasurementCache()
    store = cache or None
    lowered = hasattr(program, "compiler_ir")
    module = program.compiler_ir("stablehlo") if lowered else parse_module(program)
    key = ""
    if store is not None:
        key = measurement_key(
            program if lowered else module, target, devices=devices, compiler_options=compiler_options
        )
        found = store.get(key)
        # What is planned must not depend on whether somebody measured the same program before, for less.
        silent = held and found is not None and found.held is None and target is not None and not lowered
        if found is not None and not silent:
            return found
    if lowered:
        result = compile_lowered(program, target, compiler_options=compiler_options)
    else:
        result = compile_module(
            module,
            target,
            devices=devices,
            compiler_options=compiler_options,
            reusable=reusable,
            held=held,
        )
    if store is not None:
        store.put(key, result.measurement)
    return result.measurement


def measurement_key(
    program: Any,
    target: Target | None,
    *,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> str:
    """The cache key of measuring `program` (a Lowered or a jaxlib module) for `target`."""
    lowered = hasattr(program, "compiler_ir")
    module = program.compiler_ir("stablehlo") if lowered else program
    inputs, outputs = _unsharded(module)
    details: dict[str, Any] = {"open_inputs": inputs, "open_outputs": outputs}
    if lowered:
        # The mesh's device order is not in the module.
        devices = getattr(program._lowering, "_device_list", None)
        details["devices"] = [d.id for d in devices] if devices is not None else None
        details["options"] = getattr(program._lowering, "_compiler_options_kvs", ())
    if not lowered:
        devices = _devices(target, devices)
        details["devices"] = [d.id for d in devices]
    if target is not None:
        platform = target.config_text() + target.topology
    else:
        platform = _platform(devices[0] if devices else _first_device(program))
    return metrics_cache.key(
        module=module_bytes(module),
        platform=platform,
        compiler_options=compiler_options or {},
        details=details,
    )


def parse_module(module: Any) -> Any:
    """A jaxlib `ir.Module` from text, a portable artifact's bytes, or a module (returned as it is).

    Raises:
      farrier.Error: not a StableHLO module.
    """
    from jax._src.interpreters import mlir as jax_mlir
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    if isinstance(module, ir.Module):
        return module
    if not isinstance(module, str | bytes):
        raise errors.CompileError(
            f"expected StableHLO text, bytes or a jaxlib module, not {type(module).__name__}"
        )
    context = jax_mlir.make_ir_context()
    with context:
        try:
            if isinstance(module, bytes) and module.startswith(b"ML\xefR"):
                return stablehlo.deserialize_portable_artifact(context, module)
            return ir.Module.parse(module)
        except (ir.MLIRError, ValueError) as e:
            raise errors.CompileError(f"not a StableHLO module: {e}") from e


def module_bytes(module: Any) -> bytes:
    """The module as bytes without source locations, all constants in full, the same in every process.

    Addresses of partitioning callbacks are replaced by what they are, see `fingerprint.name_callbacks`.
    """
    out = io.BytesIO()
    module.operation.print(file=out, binary=True, enable_debug_info=False)
    return fingerprint.name_callbacks(out.getvalue())


def clone_module(module: Any) -> Any:
    """A jaxlib module of its own from whatever `compile_module` takes."""
    from jaxlib.mlir import ir

    module = parse_module(module)
    with module.context:
        return ir.Module.parse(_asm(module))


def _asm(module: Any) -> bytes:
    out = io.BytesIO()
    module.operation.print(file=out, binary=True, enable_debug_info=True)
    return out.getvalue()


def _measured(executable: Any, module: Any, seconds: float, target: Target | None) -> Compiled:
    flops, unknown = stablehlo_flops(module)
    name = f"{target.name} {target.topology}" if target is not None else ""
    measurement = metrics.measure_executable(
        executable, compile_seconds=seconds, target=name, stablehlo_flops=flops
    )
    if unknown:
        more = {f"before XLA: {what}": n for what, n in sorted(unknown.items())}
        measurement = dataclasses.replace(measurement, unknown={**measurement.unknown, **more})
    return Compiled(executable, measurement)


def _main(module: Any) -> Any:
    from jaxlib.mlir import ir

    for op in module.body.operations:
        op = op.operation
        if op.name == "func.func" and ir.StringAttr(op.attributes["sym_name"]).value == "main":
            return op
    raise errors.CompileError("the module has no function called main")


def _partitions(module: Any) -> int:
    from jaxlib.mlir import ir

    attributes = module.operation.attributes
    if "mhlo.num_partitions" in attributes:
        return ir.IntegerAttr(attributes["mhlo.num_partitions"]).value
    return 1


def _unsharded(module: Any) -> tuple[list[bool], list[bool]]:
    """For each argument and result of main, whether the module leaves its sharding to XLA."""
    from jaxlib.mlir import ir

    with module.context:
        main = _main(module)
        kind = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value)

        def flags(attribute: str, count: int) -> list[bool]:
            if attribute not in main.attributes:
                return [True] * count
            return [
                not any(name in ir.DictAttr(d) for name in ("sdy.sharding", "mhlo.sharding"))
                for d in ir.ArrayAttr(main.attributes[attribute])
            ]

        return flags("arg_attrs", len(kind.inputs)), flags("res_attrs", len(kind.results))


def _devices(target: Target | None, devices: Sequence[Any] | None) -> list[Any]:
    """The devices to compile a bare module for."""
    if devices:
        return list(devices)
    if target is None:
        raise errors.CompileError("a bare module says nothing about devices: pass target=farrier.Target(...)")
    return target.devices()


def _first_device(lowered: Any) -> Any:
    """A device that a Lowered is for."""
    import jax

    devices = getattr(lowered._lowering, "_device_list", None)
    return devices[0] if devices is not None else jax.devices()[0]


def _platform(device: Any) -> str:
    """Names the attached devices that a program is for."""
    return f"{device.platform} {device.device_kind} {device.client.platform_version}"


class _Description:
    """A folder for XLA's own description of one compile; nothing where it is not wanted."""

    def __init__(self, wanted: bool):
        self._folder = tempfile.TemporaryDirectory(prefix="farrier-dump-") if wanted else None
        self.options = (
            {"xla_dump_hlo_as_proto": True, "xla_dump_to": self._folder.name} if self._folder else {}
        )

    def __enter__(self) -> _Description:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def read(self) -> dict[str, Any] | None:
        """What the compiled program holds; None where XLA described nothing (it did not compile anew)."""
        from farrier._src import corrections
        from farrier._src.report import dump

        if self._folder is None:
            return None
        try:
            return corrections.held(dump.read_folder(self._folder.name))
        except errors.InputError:
            return None


# XLA's one-shot all-reduce of small values has a Triton kernel that it cannot compile for this many devices: the
# process ends (jax 0.12.0.1; 8, 16, 32, 72 and 128 devices are fine). Only XLA_FLAGS can switch it off, before XLA
# reads them: an option of the compile does not reach it.
_ENDS_WITH_ONE_SHOT = 64
_ONE_SHOT = "xla_gpu_unsupported_use_all_reduce_one_shot_kernel"


class _xla_errors:
    """Turns XLA's failures into `farrier.CompileError` with what to do next; warns of one that cannot be caught."""

    def __init__(self, target: Target | None):
        self.target = target

    def __enter__(self) -> None:
        if (
            self.target is not None
            and self.target.device_count == _ENDS_WITH_ONE_SHOT
            and _ONE_SHOT not in os.environ.get("XLA_FLAGS", "")
        ):
            warnings.warn(
                f"XLA can end this process for {self.target!r}, where {_ENDS_WITH_ONE_SHOT} devices sum a small "
                f"value: start it with XLA_FLAGS=--{_ONE_SHOT}=false",
                stacklevel=4,
            )

    def __exit__(self, kind, error, traceback) -> None:
        import jax

        if not isinstance(error, jax.errors.JaxRuntimeError | RuntimeError | ValueError):
            return
        if isinstance(error, errors.Error):
            return
        where = f" for {self.target!r}" if self.target is not None else ""
        raise errors.CompileError(
            f"XLA could not compile the program{where}: {error}", hint=_hint(str(error))
        ) from error


_HINTS = (
    (
        r"No such compile option|Unknown (flag|option)|not a (known|valid) (flag|option)",
        "check the compiler option's name; some options this XLA takes only from XLA_FLAGS",
    ),
    (r"RESOURCE_EXHAUSTED", "lower the batch: the program is too large even for the compiler"),
    (
        r"No supported config",
        "drop deterministic-ops flags: with them XLA finds no GEMM kernel unless a GPU is attached",
    ),
    (r"different platform|platform.*mismatch", "lower the program on the target's mesh (Target.mesh) first"),
    (
        r"Unsupported.*custom call|No registered implementation|custom.call.*not (found|registered)",
        "lower for the target's platform: a custom call here has no implementation on it",
    ),
)


def _hint(message: str) -> str | None:
    for pattern, text in _HINTS:
        if re.search(pattern, message, re.IGNORECASE):
            return text
    return None
