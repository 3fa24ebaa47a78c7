"""The text form of XLA's GpuTargetConfigProto for a GPU model.

This is how XLA:GPU compiles for a GPU that is not there: ``get_topology_desc(target_config=...)``. Field
names and type numbers are interface facts of XLA (stream_executor/device_description.proto, xla_data.proto).
"""

from __future__ import annotations

import importlib.metadata

from farrier._src.targets.facts import DeviceFacts

# XLA's numbers for element types, by the row of `matrix_ops_per_clock` that gives their rate.
_MATRIX_TYPES = {
    "int8": (2, 6),
    "float16": (10,),
    "tensorfloat32": (11,),
    "float64": (12,),
    "bfloat16": (16,),
    "float8": (19, 20, 23, 24, 25, 28, 29, 33, 35, 36),
    "float4": (32,),
}
_PEAK_ROW = {"float8": "float8_e4m3fn", "float4": "float4_e2m1fn"}
MATRIX_UNITS_PER_SM = 4


def cudnn_version() -> tuple[int, int, int]:
    """Version of the cuDNN wheel here, which XLA assumes on the target; 9.10.0 when there is none."""
    for package in ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"):
        try:
            parts = importlib.metadata.version(package).split(".")
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(parts[0]), int(parts[1]), int(parts[2])
    return 9, 10, 0


def matrix_ops_per_clock(facts: DeviceFacts) -> dict[str, int]:
    """Fused multiply-adds per clock of one matrix unit, by row name; what is not stated follows from the
    peaks."""
    clock = facts.xla.tensor_clock_hz or facts.clock_hz
    rates = {}
    for row in _MATRIX_TYPES:
        if row in facts.xla.matrix_ops_per_clock:
            rates[row] = int(facts.xla.matrix_ops_per_clock[row])
            continue
        peak = facts.peak_flops.get(_PEAK_ROW.get(row, row))
        if peak is not None:
            rates[row] = max(1, round(peak / (2 * facts.sm_count * MATRIX_UNITS_PER_SM * clock)))
    return rates


def _rates(key: int, clock_hz: float, units: int, ops: int) -> str:
    value = f"clock_rate_ghz: {clock_hz / 1e9:.9g} units_per_core: {units} ops_per_clock: {ops}"
    return f"rate_infos {{ key: {key} value {{ {value} }} }}"


def target_config_text(facts: DeviceFacts) -> str:
    """Returns the GpuTargetConfigProto text for `facts`: a function of the facts and the cuDNN version
    only."""
    xla = facts.xla
    version = facts.compute_capability.rstrip("af")
    major, minor = (int(x) for x in version.split("."))
    suffix = facts.compute_capability[len(version) :]
    feature = {"": "NONE", "a": "ACCELERATED_FEATURES", "f": "FAMILY_COMPATIBLE_FEATURES"}[suffix]
    clock = facts.clock_hz
    fp32 = xla.fp32_units_per_sm
    scalar = [
        _rates(4, clock, 64, 1),
        _rates(8, clock, 64, 1),
        _rates(10, clock, fp32, xla.fp32_ops_per_clock),
        _rates(11, clock, fp32, 1),
        _rates(12, clock, xla.fp64_units_per_sm, 1),
        _rates(16, clock, fp32, xla.fp32_ops_per_clock),
    ]
    tensor_clock = xla.tensor_clock_hz or clock
    matrix = [
        _rates(key, tensor_clock, MATRIX_UNITS_PER_SM, ops)
        for row, ops in matrix_ops_per_clock(facts).items()
        for key in _MATRIX_TYPES[row]
    ]
    dnn = cudnn_version()
    name = facts.description.replace("\\", "").replace('"', "").replace("\n", " ")
    lines = [
        "gpu_device_info {",
        "  threads_per_block_limit: 1024 threads_per_warp: 32",
        f"  shared_memory_per_block: {xla.shared_memory_per_block}",
        f"  shared_memory_per_core: {xla.shared_memory_per_sm}",
        f"  shared_memory_per_block_optin: {xla.shared_memory_per_block_optin}",
        f"  threads_per_core_limit: 2048 core_count: {facts.sm_count} fpus_per_core: {fp32}",
        "  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535",
        f"  memory_bandwidth: {int(facts.hbm_bytes_per_s)} l2_cache_size: {facts.l2_bytes}",
        f"  clock_rate_ghz: {clock / 1e9:.9g} device_memory_size: {facts.memory_bytes}",
        f"  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}",
        "  registers_per_core_limit: 65536 registers_per_block_limit: 65536",
        "  scalar_unit_description {",
        *("    " + s for s in scalar),
        "  }",
        "  matrix_unit_description {",
        *("    " + m for m in matrix),
        "  }",
        "  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64",
        f'  device_vendor: "NVIDIA Corporation" model_str: "{name}" name: "{name}"',
        f'  platform_version: "Compute Capability {facts.compute_capability}"',
        f"  device_address_bits: 64 pcie_bandwidth: {int(xla.pcie_bytes_per_s)} ecc_enabled: true",
        '  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"',
        f'  dnn_version: "{dnn[0]}.{dnn[1]}.{dnn[2]}"',
        f"  device_interconnect_info {{ active_links: {int(xla.active_nvlinks)} }}",
        "}",
        'platform_name: "CUDA"',
        f"dnn_version_info {{ major: {dnn[0]} minor: {dnn[1]} patch: {dnn[2]} }}",
        f'device_description_str: "{name}"',
    ]
    return "\n".join(lines) + "\n"
