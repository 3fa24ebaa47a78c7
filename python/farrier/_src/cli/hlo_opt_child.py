"""The part of hlo-opt that touches untrusted bytes; runs in a process of its own, with limits.

`python -m farrier._src.cli.hlo_opt_child FOLDER FD`: reads FOLDER/request.json and FOLDER/input, writes
FOLDER/output and FOLDER/outcome.json (null, or what went wrong). Passes print to the file descriptor FD.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import resource
import signal
import subprocess
import sys
from typing import Any

from google.protobuf.message import DecodeError
from jax import export
from jax._src.lib import _jax
from jax.interpreters import mlir
from jaxlib import _hlo
from jaxlib.mlir.dialects import stablehlo

from farrier._src import errors, interchange
from farrier._src.cli import hlo_opt_forms as forms
from farrier._src.hlo import proto

ir = mlir.ir

_SEPARATOR = re.compile(r"^// -----[^\n]*$", re.MULTILINE)


class Failed(Exception):
    """Something that the user hears about."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None):
        super().__init__(what)
        self.outcome = {"what": what, "where": where, "hint": hint}


@dataclasses.dataclass
class Input:
    """A program in jaxlib's MLIR, or as HLO."""

    form: str
    module: Any = None
    hlo: Any = None
    exported: Any = None


def _first_line(error: Exception) -> str:
    """The message without MLIR's headline and carets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)


def _context():
    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    return context


def _parse(data: str | bytes) -> Any:
    with _context():
        return ir.Module.parse(data)


# Processor seconds for reading: what reads at all reads 20 MB a second, and jaxlib's bytecode reader was seen
# to run for ever, and to fill the memory, on a file of 20 kB with one byte changed.
READ_SECONDS = 10.0
READ_BYTES_PER_SECOND = 1e6
# Address space for reading, beyond what the process has: 67 MB of constants took 19 bytes of memory a byte.
READ_MEMORY = 3 << 30
READ_MEMORY_PER_BYTE = 60


def read(data: bytes, form: str, name: str) -> Input:
    """Turns the bytes into a program; ends the process when that takes far too long (SIGPROF) or too much.

    Raises:
      Failed: they are damaged.
    """
    signal.setitimer(signal.ITIMER_PROF, READ_SECONDS + len(data) / READ_BYTES_PER_SECOND)
    limit, most = resource.getrlimit(resource.RLIMIT_AS)
    if mapped := _address_space():
        allowed = mapped + READ_MEMORY + READ_MEMORY_PER_BYTE * len(data)
        within = allowed if limit == resource.RLIM_INFINITY else min(allowed, limit)
        resource.setrlimit(resource.RLIMIT_AS, (within, most))
    try:
        return _read(data, form, name)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _address_space() -> int | None:
    """Bytes that this process has mapped; None where the system does not say (then only hlo-opt's limit holds)."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _read(data: bytes, form: str, name: str) -> Input:
    try:
        if form == "mlir-text":
            return Input(form, module=_parse(data))
        if form == "bytecode":
            return Input(form, module=_parse(data))
        if form == "artifact":
            return Input(form, module=stablehlo.deserialize_portable_artifact(_context(), data))
        if form == "export":
            exported = export.deserialize(bytearray(data))
            module = stablehlo.deserialize_portable_artifact(_context(), exported.mlir_module_serialized)
            return Input(form, module=module, exported=exported)
        if form == "hlo-text":
            return Input(form, hlo=_hlo.hlo_module_from_text(data.decode()))
        return Input(form, hlo=_hlo.HloModule.from_serialized_hlo_module_proto(_module_bytes(data)))
    except Exception as error:
        raise Failed(
            f"{name} looks like {form} and is not valid: {_first_line(error)}", where=name
        ) from error


def _module_bytes(data: bytes) -> bytes:
    """The HloModuleProto of a file that holds it, bare or inside an HloProto."""
    try:
        inner = proto.parse_hlo(data).hlo_module
        return inner if inner and proto.parse_module(inner).computations else data
    except DecodeError:
        # The module's own first field is a string where HloProto's is a message.
        return data


def is_optimized(module: Any) -> bool:
    """Whether XLA's passes have run: fusions or a schedule."""
    message = proto.parse_module(module.as_serialized_hlo_module_proto())
    return bool(message.schedule.sequences) or any(
        instruction.opcode == "fusion"
        for computation in message.computations
        for instruction in computation.instructions
    )


def to_stablehlo(source: Input, name: str) -> None:
    """Makes StableHLO of HLO that is not optimized.

    Raises:
      Failed: it is optimized, or does not convert.
    """
    if is_optimized(source.hlo):
        raise Failed(
            f"{name} is optimized HLO: converted to StableHLO it would lose its fusions, layouts and "
            "schedule, so StableHLO passes do not take it",
            where=name,
            hint="give the before_optimizations file, or use --stage=scheduled, which stays HLO",
        )
    try:
        source.module = _parse(_jax.mlir.hlo_to_stablehlo(source.hlo.as_serialized_hlo_module_proto()))
    except Exception as error:
        raise Failed(f"{name} does not convert to StableHLO: {_first_line(error)}", where=name) from error


def run_passes(module: Any, flags: list[str], stderr: int, name: str) -> Any:
    """The module after farrier-opt."""
    core = interchange.to_core(module)
    ours = {"--mlir-print-op-generic", "--mlir-print-debuginfo"}
    command = [forms.farrier_opt(), "-", *ours, *(flag for flag in flags if flag not in ours)]
    done = subprocess.run(command, input=core.print(), stdout=subprocess.PIPE, stderr=stderr, check=False)
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else "see above"
        raise Failed(f"the passes failed on {name} ({how})", where=name)
    if not done.stdout.strip():
        raise Failed(
            "the flags leave no program to write", hint="--verify-diagnostics and the like: use farrier-opt"
        )
    return interchange.text_to_jaxlib(done.stdout, core.constants, module.context)


def emit(source: Input, form: str, *, locations: bool) -> bytes:
    """The program in an output form.

    Raises:
      Failed: this program cannot become that.
    """
    module = source.module
    asm = {"enable_debug_info": locations, "binary": True}
    if form == "stablehlo":
        return module.operation.get_asm(**asm)
    if form == "generic":
        return module.operation.get_asm(print_generic_op_form=True, **asm)
    try:
        if form == "bytecode":
            return _bytecode(module)
        if form == "artifact":
            return _artifact(module)
        if form == "export":
            if source.exported is None:
                raise Failed("only a jax.export artifact can become one: it carries the calling convention")
            return bytes(
                dataclasses.replace(source.exported, mlir_module_serialized=_artifact(module)).serialize()
            )
        computation = _jax.mlir.mlir_module_to_xla_computation(_bytecode(module), False, False)
        if form == "hlo-text":
            return computation.as_hlo_text().encode()
        return computation.as_serialized_hlo_module_proto()
    except Failed:
        raise
    except Exception as error:
        raise Failed(f"the program cannot become {form}: {_first_line(error)}") from error


def _bytecode(module: Any) -> bytes:
    class Sink:
        def __init__(self):
            self.parts = []

        def write(self, part):
            self.parts.append(bytes(part))

    sink = Sink()
    module.operation.write_bytecode(sink)
    return b"".join(sink.parts)


def _artifact(module: Any) -> bytes:
    # sdy and chlo operations go along, as in jax.export's own artifacts.
    return stablehlo.serialize_portable_artifact(module, stablehlo.get_current_version(), True)


def _chunks(data: bytes, form: str, passes: list[str]) -> list[bytes]:
    if form == "mlir-text" and any(flag.startswith("--split-input-file") for flag in passes):
        return [chunk.encode() for chunk in _SEPARATOR.split(data.decode())]
    return [data]


def convert(request: dict[str, Any], data: bytes, stderr: int) -> bytes:
    """All of it: bytes in, bytes out."""
    name, stage, passes = request["name"], request["stage"], request["passes"]
    form = forms.detect(data, name)
    if stage == "scheduled":
        return _scheduled(read(data, form, name), request)
    default = {"stablehlo": "stablehlo", "hlo": "hlo-text", "optimized": "hlo-text"}[stage]
    wanted = request["emit"] or default
    if wanted == "stablehlo" and "--mlir-print-op-generic" in passes:
        wanted = "generic"
    if stage != "stablehlo" and not wanted.startswith("hlo"):
        raise Failed(f"--stage={stage} writes HLO, not {wanted}")
    chunks = _chunks(data, form, passes)
    flags = [flag for flag in passes if not flag.startswith("--split-input-file")]
    results = []
    for chunk in chunks:
        source = read(chunk, form, name)
        if source.hlo is not None:
            to_stablehlo(source, name)
        if flags:
            source.module = run_passes(source.module, flags, stderr, name)
        if stage == "optimized":
            results.append(_optimized(source.module, wanted, request["platform"]))
        else:
            results.append(emit(source, wanted, locations="--mlir-print-debuginfo" in passes))
    return b"// -----\n".join(results)


def _scheduled(source: Input, request: dict[str, Any]) -> bytes:
    if source.hlo is None:
        raise Failed(f"--stage=scheduled reads HLO; {request['name']} is {source.form}")
    if request["passes"]:
        raise Failed(f"StableHLO passes do not run on scheduled HLO: {' '.join(request['passes'])}")
    if request["emit"] not in (None, "hlo-text", "hlo-proto"):
        raise Failed(f"--stage=scheduled writes hlo-text or hlo-proto, not {request['emit']}")
    data, table = source.hlo.as_serialized_hlo_module_proto(), ""
    if request.get("platform", "cpu") != "cpu":
        from farrier._src.collectives import stage

        data, table = stage.reschedule(data, request["platform"])
    if request["emit"] == "hlo-proto":
        return data
    comments = "".join(f"// {line}\n" for line in table.splitlines())
    return (comments + _hlo.HloModule.from_serialized_hlo_module_proto(data).to_string()).encode()


def _optimized(module: Any, form: str, platform: str) -> bytes:
    from farrier._src import oracle
    from farrier._src.targets import target as targets

    if platform == "cpu":
        import jax

        compiled = oracle.compile_module(module, devices=jax.devices("cpu")[:1])
    else:
        compiled = oracle.compile_module(
            module, targets.Target("h100" if platform in ("cuda", "gpu") else platform)
        )
    if form == "hlo-text":
        return compiled.as_text().encode()
    return _hlo.hlo_module_from_text(compiled.as_text()).as_serialized_hlo_module_proto()


def main(folder: str, stderr: str) -> None:
    where = pathlib.Path(folder)
    request = json.loads((where / "request.json").read_text())
    outcome = None
    try:
        (where / "output").write_bytes(convert(request, (where / "input").read_bytes(), int(stderr)))
    except Failed as failed:
        outcome = failed.outcome
    except errors.Error as error:
        outcome = {"what": error.what, "where": error.where, "hint": error.hint}
    (where / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
