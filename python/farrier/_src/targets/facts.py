"""Facts about a GPU model, read from a small TOML file.

The built-in models are such files too (``data/*.toml``), so they double as examples of the format. Every
figure is a datasheet figure; its source is in the file's ``[sources]`` table under the same key.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from farrier._src import errors

# What a process cannot use for XLA's buffers: CUDA context, loaded kernels, NCCL's channel buffers, CUDA
# graphs, fragmentation. It depends on the job (NVIDIA/nccl issue 864 reports 1.6 GB for the first
# communicator and about 6 GB for three or more; openxla/xla pull request 10965 measured 2.6 GB for
# per-stream communicators on 8 H100), so we take what NVIDIA's JAX-Toolbox recommends for LLM training
# (docs/GPU_performance.md): XLA_PYTHON_CLIENT_MEM_FRACTION=0.9, that is one tenth kept free.
RESERVED_FRACTION = 0.10
RESERVED_SOURCE = (
    "one tenth of the device's memory, after NVIDIA JAX-Toolbox's GPU_performance.md"
    " (XLA_PYTHON_CLIENT_MEM_FRACTION=0.9)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class XlaFacts:
    """What XLA's GpuTargetConfigProto wants beyond the datasheet.

    Defaults are those of compute capability 9.0 (CUDA C++ Programming Guide, "Technical Specifications per
    Compute Capability").
    """

    tensor_clock_hz: float | None = None
    """Clock of the matrix units under load, Hz; None: the device's clock."""
    matrix_ops_per_clock: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Fused multiply-adds per clock of one matrix unit (4 units per SM), by type; absent: from
    `peak_flops`."""
    fp32_ops_per_clock: int = 2
    """Rate XLA's cost model uses for one f32 lane, operations per clock."""
    fp32_units_per_sm: int = 128
    fp64_units_per_sm: int = 64
    active_nvlinks: int = 18
    shared_memory_per_sm: int = 233472
    """Bytes."""
    shared_memory_per_block: int = 49152
    """Bytes without opt-in."""
    shared_memory_per_block_optin: int = 232448
    """Bytes with opt-in."""
    pcie_bytes_per_s: int = 34359738368
    """What XLA takes as the host link's bandwidth, bytes/s."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """Datasheet facts about one GPU model. Bandwidths are per GPU and per direction."""

    name: str
    """Short name, as in ``Target("h100")``."""
    description: str
    """The name the CUDA driver reports."""
    compute_capability: str
    """``major.minor``, with ``a`` appended for architecture-specific features: ``"9.0a"``."""
    sm_count: int
    """Streaming multiprocessors."""
    memory_bytes: int
    """Device memory, bytes."""
    hbm_bytes_per_s: float
    """Device memory bandwidth, bytes/s."""
    l2_bytes: int
    """L2 cache, bytes."""
    clock_hz: float
    """Boost clock, Hz."""
    nvlink_bytes_per_s: float
    """NVLink bandwidth of one GPU in one direction, bytes/s; 0: none."""
    host_link: str
    """``"pcie"`` or ``"nvlink-c2c"``."""
    host_link_bytes_per_s: float
    """Bandwidth between host memory and one GPU in one direction, bytes/s."""
    nic_bytes_per_s: float
    """Network bandwidth of one GPU in one direction, bytes/s."""
    devices_per_host: int
    """GPUs in one host."""
    peak_flops: Mapping[str, float]
    """Peak rates without sparsity, FLOP/s (a multiply-add counts two), by dtype name."""
    reserved_bytes: int
    """Bytes a process cannot use for XLA's buffers (context, NCCL, CUDA graphs)."""
    sources: Mapping[str, str]
    """Where each figure comes from, by field name."""
    xla: XlaFacts = dataclasses.field(default_factory=XlaFacts)

    def to_json(self) -> dict[str, Any]:
        """The facts as plain JSON data."""
        return dataclasses.asdict(self)


_POSITIVE = (
    "sm_count",
    "memory_bytes",
    "hbm_bytes_per_s",
    "l2_bytes",
    "clock_hz",
    "host_link_bytes_per_s",
    "devices_per_host",
)
_REQUIRED = {f.name for f in dataclasses.fields(DeviceFacts)} - {"reserved_bytes", "sources", "xla"}
_KNOWN = {f.name for f in dataclasses.fields(DeviceFacts)}
_KNOWN_XLA = {f.name for f in dataclasses.fields(XlaFacts)}
_DTYPES = [
    "float64",
    "float32",
    "tensorfloat32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float4_e2m1fn",
    "int8",
    "int4",
    "float8",
    "float4",
]


def builtin_names() -> tuple[str, ...]:
    """Names of the built-in GPU models, sorted."""
    data = resources.files("farrier._src.targets") / "data"
    return tuple(sorted(p.name.removesuffix(".toml") for p in data.iterdir() if p.name.endswith(".toml")))


def _suggest(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _read_toml(name: str) -> tuple[dict[str, Any], str]:
    if name in builtin_names():
        text = (resources.files("farrier._src.targets") / "data" / f"{name}.toml").read_text(encoding="utf-8")
        return tomllib.loads(text), f"built-in target {name!r}"
    path = pathlib.Path(name)
    if not (path.suffix or os.sep in name):
        raise errors.TargetError(
            f"unknown target {name!r}{_suggest(name, builtin_names())}",
            hint="for another GPU give the path of a TOML file",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise errors.TargetError(f"cannot read the target file {name!r}: {e}") from e
    try:
        return tomllib.loads(text), str(path)
    except tomllib.TOMLDecodeError as e:
        raise errors.TargetError(f"{path}: not valid TOML: {e}") from e


def _check_number(where: str, key: str, value: Any, *, positive: bool) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value < 0
        or (positive and value == 0)
    ):
        kind = "positive" if positive else "non-negative"
        raise errors.TargetError(f"{where}: {key} = {value!r} must be a {kind} number")


def _check_table(where: str, key: str, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise errors.TargetError(f"{where}: [{key}] must be a table, not {table!r}")
    return table


def load_facts(name: str | os.PathLike[str]) -> DeviceFacts:
    """Reads a GPU model: a built-in name, or the path of a TOML file.

    A file may start from a built-in model with ``base = "h100"`` and override some figures.

    Raises:
      farrier.Error: unknown name, unreadable or malformed file, unknown or missing keys, values out of
        range. The message names the file and the key.
    """
    name = os.fspath(name)
    data, where = _read_toml(name)
    base = data.pop("base", None)
    if base is not None:
        if base not in builtin_names():
            raise errors.TargetError(
                f"{where}: base = {base!r} is not a built-in target{_suggest(str(base), builtin_names())}"
            )
        merged, _ = _read_toml(base)
        # Figures derived from others must follow an override of what they were derived from.
        if "peak_flops" in data:
            merged.get("xla", {}).pop("matrix_ops_per_clock", None)
        for key, value in data.items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key].update(value)
            else:
                merged[key] = value
        if "name" not in data:
            merged["name"] = pathlib.Path(name).stem
        data = merged
    for key in data:
        if key not in _KNOWN:
            raise errors.TargetError(f"{where}: unknown key {key!r}{_suggest(key, _KNOWN | {'base'})}")
    missing = sorted(_REQUIRED - data.keys())
    if missing:
        raise errors.TargetError(
            f'{where}: missing {", ".join(missing)} (or give base = "h100" to start from a built-in)'
        )
    for key in ("name", "description", "compute_capability", "host_link"):
        if not isinstance(data[key], str):
            raise errors.TargetError(f"{where}: {key} = {data[key]!r} must be a string")
    if not re.fullmatch(r"\d+\.\d+[af]?", data["compute_capability"]):
        raise errors.TargetError(
            f'{where}: compute_capability = {data["compute_capability"]!r}; expected a form like "9.0a"'
        )
    if data["host_link"] not in ("pcie", "nvlink-c2c"):
        raise errors.TargetError(
            f'{where}: host_link = {data["host_link"]!r}; expected "pcie" or "nvlink-c2c"'
        )
    for key in (*_POSITIVE, "nvlink_bytes_per_s", "nic_bytes_per_s"):
        _check_number(where, key, data[key], positive=key in _POSITIVE)
    for key, value in _check_table(where, "peak_flops", data["peak_flops"]).items():
        if key not in _DTYPES:
            raise errors.TargetError(f"{where}: unknown type {key!r} in [peak_flops]{_suggest(key, _DTYPES)}")
        _check_number(where, f"peak_flops.{key}", value, positive=True)
    for need in ("float32", "bfloat16"):
        if need not in data["peak_flops"]:
            raise errors.TargetError(f"{where}: [peak_flops] needs {need}")
    xla = _check_table(where, "xla", data.get("xla", {}))
    for key in xla:
        if key not in _KNOWN_XLA:
            raise errors.TargetError(f"{where}: unknown key {key!r} in [xla]{_suggest(key, _KNOWN_XLA)}")
    for key, value in xla.items():
        if key == "matrix_ops_per_clock":
            for dtype, ops in _check_table(where, f"xla.{key}", value).items():
                _check_number(where, f"xla.{key}.{dtype}", ops, positive=True)
        else:
            _check_number(where, f"xla.{key}", value, positive=False)
    sources = dict(_check_table(where, "sources", data.get("sources", {})))
    for key in ("sm_count", "memory_bytes", "l2_bytes", "devices_per_host", "reserved_bytes"):
        if key in data:
            if data[key] != int(data[key]):
                raise errors.TargetError(f"{where}: {key} = {data[key]!r} must be a whole number")
            data[key] = int(data[key])
    if "reserved_bytes" in data:
        _check_number(where, "reserved_bytes", data["reserved_bytes"], positive=False)
    else:
        data["reserved_bytes"] = int(RESERVED_FRACTION * data["memory_bytes"])
        sources["reserved_bytes"] = RESERVED_SOURCE
    if data["reserved_bytes"] >= data["memory_bytes"]:
        raise errors.TargetError(
            f"{where}: reserved_bytes = {data['reserved_bytes']} leaves nothing of memory_bytes"
        )
    data.pop("xla", None)
    data.pop("sources", None)
    return DeviceFacts(**data, sources=sources, xla=XlaFacts(**xla))
