"""`Measurement`: what XLA's own result says about a compiled program."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from farrier._src import hlo
from farrier._src.hlo import totals
from farrier._src.hlo.totals import Collective as Collective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a compile tells about one program on one device of a target. Sizes in bytes, per device.

    Everything but `compile_seconds` is deterministic for a given compiler.
    """

    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    """Outputs that reuse a donated argument's memory."""
    temp_bytes: int
    host_argument_bytes: int = 0
    host_output_bytes: int = 0
    host_alias_bytes: int = 0
    host_temp_bytes: int = 0
    """Host memory that the program uses for offloaded values."""
    generated_code_bytes: int = 0
    flops: int = 0
    """Matrix FLOPs of the optimized program, loops times trip count (see `hlo.flops` for what counts)."""
    flops_by_kind: Mapping[str, int] = dataclasses.field(default_factory=dict)
    stablehlo_flops: int | None = None
    """Matrix FLOPs of the program as handed to XLA; of the global program under automatic sharding."""
    kernels_by_kind: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Launches per execution: ``fusion``, ``custom-call``, ``copy``, ``unfused``, ``collective``."""
    bytes_moved: int = 0
    """Device memory read and written by kernels, without collectives (see `hlo.traffic`)."""
    collectives: tuple[Collective, ...] = ()
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """What could not be counted, and how often it occurs."""
    instructions: int = 0
    """Instructions in the optimized module."""
    fingerprint: str = ""
    """SHA-256 of the optimized program without names and source locations."""
    compile_seconds: float = 0.0
    """Wall time of XLA's compile."""
    target: str = ""
    """The target's name and topology, or the platform the program was compiled for."""
    held: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False, repr=False)
    """What lies in temporary memory when (`corrections.held`); None where nobody asked."""
    from_cache: bool = dataclasses.field(default=False, compare=False)

    @property
    def total_bytes(self) -> int:
        """Device memory the program needs: arguments + outputs - aliased + temporary."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes

    @property
    def kernels(self) -> int:
        """Kernel and copy launches per execution."""
        return sum(self.kernels_by_kind.values())

    @property
    def collective_bytes(self) -> int:
        """Payload of all collectives per execution."""
        return sum(c.bytes for c in self.collectives)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` reads it back. Of figures: `held` is left out."""
        data = dataclasses.asdict(dataclasses.replace(self, held=None))
        data.pop("from_cache")
        data.pop("held")
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Reads what `to_json` wrote.

        Raises:
          TypeError, KeyError: the data has another shape.
        """
        data = dict(data)
        data["collectives"] = tuple(Collective(**c) for c in data.get("collectives", ()))
        return cls(**data)


def measure_executable(
    executable: Any, *, compile_seconds: float = 0.0, target: str = "", stablehlo_flops: int | None = None
) -> Measurement:
    """Measures a compiled program.

    Args:
      executable: jaxlib's executable (`jax.stages.Compiled.runtime_executable()` gives it).
      compile_seconds: what the compile took, recorded as it is.
      target: recorded as it is.
      stablehlo_flops: recorded as it is.
    """
    memory = executable.get_compiled_memory_stats()
    proto = executable.hlo_modules()[0].as_serialized_hlo_module_proto()
    module = hlo.Module(proto)
    counted = totals.count(module)
    return Measurement(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        host_argument_bytes=memory.host_argument_size_in_bytes,
        host_output_bytes=memory.host_output_size_in_bytes,
        host_alias_bytes=memory.host_alias_size_in_bytes,
        host_temp_bytes=memory.host_temp_size_in_bytes,
        generated_code_bytes=memory.generated_code_size_in_bytes,
        flops=counted.flops,
        flops_by_kind=totals.names(counted.flops_by_kind),
        stablehlo_flops=stablehlo_flops,
        kernels_by_kind=totals.names(counted.kernels),
        bytes_moved=counted.bytes_moved,
        collectives=counted.collective_list(),
        unknown=totals.names(counted.unknown),
        instructions=totals.instruction_count(module),
        fingerprint=fingerprint(module),
        compile_seconds=compile_seconds,
        target=target,
    )


def fingerprint(module: hlo.Module) -> str:
    """SHA-256 over the module's structure: opcodes, shapes, operands, attributes that matter to execution.

    Names, ids and source locations stay out, so that an edit elsewhere in the user's file changes nothing.
    """
    digest = hashlib.sha256()
    computation_number = {id(c): n for n, c in enumerate(module.computations)}
    for c in module.computations:
        number = {id(i): n for n, i in enumerate(c.instructions)}
        for i in c.instructions:
            p = i.proto
            record = (
                i.opcode,
                p.shape.SerializeToString(deterministic=True),
                [number[id(o)] for o in i.operands],
                [computation_number[id(k)] for k in i.called],
                p.custom_call_target,
                p.fusion_kind,
                p.parameter_number,
                p.tuple_index,
                list(p.dimensions),
                p.dot_dimension_numbers.SerializeToString(deterministic=True),
                p.backend_config,
            )
            digest.update(repr(record).encode())
        digest.update(b"|")
    return digest.hexdigest()


@functools.cache
def code_version() -> str:
    """SHA-256 of the counting code, part of every cache key: a change of what is counted makes old entries
    misses."""
    digest = hashlib.sha256()
    root = resources.files("farrier._src")
    files = [
        root / "metrics.py",
        root / "corrections.py",
        *sorted((root / "hlo").iterdir(), key=lambda p: p.name),
    ]
    for f in files:
        if f.name.endswith(".py"):
            digest.update(f.read_bytes())
    return digest.hexdigest()
