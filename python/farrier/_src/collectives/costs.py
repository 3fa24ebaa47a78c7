"""What a kernel costs on the compute stream, microseconds, and the fingerprint it is remembered by.

Two programs are compared with the same cost for the same kernel: a cost is frozen under the kernel's
fingerprint when the first program is read and looked up for the second. Otherwise a difference in XLA's
own estimate (they move with context) would pass for a gain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from farrier._src.collectives.parameters import ParameterSet
from farrier._src.hlo import Computation, Instruction
from farrier._src.hlo.flops import custom_call_flops, instruction_flops
from farrier._src.hlo.traffic import kernel_bytes

# Backend configuration that says where and when a kernel runs, or what XLA guesses it costs: not what it
# computes.
_NOT_IDENTITY = {
    "reification_cost",
    "operation_queue_id",
    "wait_on_operation_queues",
    "force_earliest_schedule",
    "device_type",
}
_DTYPES = {10: "float16", 16: "bfloat16", 11: "float32", 12: "float64", 2: "int8", 6: "int8"}
_FLOAT8 = {19, 20, 23, 24, 25, 28, 29}
# XLA writes 0.01 us or absurdly large figures where one of its models does not apply.
_LARGEST_ESTIMATE_US = 1e6


class Rates(Protocol):
    """What costs are made from: a `Target` has it, and a plan."""

    @property
    def peak_flops(self) -> Mapping[str, float]: ...

    @property
    def hbm_bytes_per_s(self) -> float: ...


class CostModel:
    """Costs of kernels for one target and parameter set."""

    def __init__(self, target: Rates, parameters: ParameterSet, frozen: dict[str, float] | None = None):
        """`frozen`: costs by fingerprint that take precedence; new ones are added to it."""
        self.peak = {k: v / 1e6 for k, v in target.peak_flops.items()}  # FLOP per us
        self.memory = target.hbm_bytes_per_s * parameters.memory_fraction / 1e6
        self.parameters = parameters
        self.floor = parameters.floor_s * 1e6
        self.frozen = {} if frozen is None else frozen
        self._computations: dict[int, bytes] = {}
        self._work: dict[int, tuple[int, int | None]] = {}

    def kernel(self, i: Instruction) -> float:
        """Microseconds of the kernel that `i` launches."""
        key = self.fingerprint(i)
        found = self.frozen.get(key)
        if found is None:
            found = self.frozen[key] = self._estimate(i)
        return found

    def matrix(self, i: Instruction) -> float:
        """Microseconds of the products in `i` and in all that it calls, once; 0 for everything else.

        A lower bound that needs no fusion: what XLA's estimates add comes with the kernels only.
        """
        if i.called and i.opcode in ("while", "call", "conditional"):
            return sum(self.matrix(j) for c in i.called for j in c.instructions)
        return self._estimate(i) if self._matrix_work(i)[0] else 0.0

    def fingerprint(self, i: Instruction) -> str:
        """A name for what the kernel computes on what shapes, the same in every compile."""
        return hashlib.sha256(self._identity(i) + b"".join(self._shape(o) for o in i.operands)).hexdigest()[
            :20
        ]

    def _shape(self, i: Instruction) -> bytes:
        return i.proto.shape.SerializeToString(deterministic=True)

    def _identity(self, i: Instruction) -> bytes:
        p = i.proto
        config: Any = {k: v for k, v in i.config.items() if k not in _NOT_IDENTITY}
        if not i.config and p.backend_config:
            config = hashlib.sha256(p.backend_config).hexdigest()
        parts = [i.opcode, p.custom_call_target, p.fusion_kind, list(p.dimensions), config]
        numbers = p.dot_dimension_numbers.SerializeToString(deterministic=True)
        called = b"".join(self._computation(c) for c in i.called)
        return json.dumps(parts, sort_keys=True).encode() + self._shape(i) + numbers + called

    def _computation(self, c: Computation) -> bytes:
        found = self._computations.get(id(c))
        if found is None:
            position = {id(i): k for k, i in enumerate(c.instructions)}
            h = hashlib.sha256()
            for i in c.instructions:
                h.update(self._identity(i))
                h.update(repr([position[id(o)] for o in i.operands]).encode())
            found = self._computations[id(c)] = h.digest()
        return found

    def _estimate(self, i: Instruction) -> float:
        p = self.parameters
        flops, dtype = self._matrix_work(i)
        if flops:
            rate = _dtype(dtype)
            rate = p.float32_gemm_rate if rate == "float32" else rate
            peak = self.peak.get(rate) or self.peak["float32"]
            if i.opcode == "custom-call" and "fmha" in i.proto.custom_call_target:
                if "CAUSAL" in str(i.config.get("cudnn_fmha_backend_config", {}).get("mask_type", "")):
                    flops //= 2  # cuDNN skips masked tiles
                return max(self.floor, flops / (peak * p.attention_fraction))
            size = i.bytes + sum(o.bytes for o in i.operands)
            measured = next((m for m in p.products if m.element_type == dtype), None)
            gemm = measured.rate(flops) / 1e6 if measured is not None else peak * p.gemm_fraction
            return max(self.floor, flops / gemm, size / self.memory)
        if i.opcode != "custom-call":
            estimate = xla_estimate_us(i)
            if estimate is not None:
                return max(self.floor, estimate)
            return max(self.floor, kernel_bytes(i) / self.memory)
        # Of an unknown custom call nothing is known but its operands: never assume it is slow enough to
        # hide behind.
        return max(self.floor, xla_estimate_us(i) or 0.0)

    def _matrix_work(self, i: Instruction) -> tuple[int, int | None]:
        """FLOPs of dots and library calls in one kernel, and the element type of the first one's operand."""
        if i.opcode == "fusion":
            return self._computation_work(i.called[0]) if i.called else (0, None)
        flops = custom_call_flops(i) if i.opcode == "custom-call" else instruction_flops(i)
        if not flops:
            return 0, None
        return flops, i.operands[0].proto.shape.element_type if i.operands else None

    def _computation_work(self, c: Computation) -> tuple[int, int | None]:
        found = self._work.get(id(c))
        if found is None:
            total, dtype = 0, None
            for i in c.instructions:
                if i.opcode in ("dot", "fusion", "call", "convolution", "scaled-dot", "ragged-dot"):
                    inner = self._computation_work(i.called[0]) if i.called else self._matrix_work(i)
                    total += inner[0]
                    dtype = inner[1] if dtype is None else dtype
            found = self._work[id(c)] = (total, dtype)
        return found


def _dtype(element_type: int | None) -> str:
    if element_type in _FLOAT8:
        return "float8_e4m3fn"
    return _DTYPES.get(element_type or 0, "float32")


def xla_estimate_us(i: Instruction) -> float | None:
    """XLA's own estimate, where the compile ran with ``xla_gpu_collect_cost_model_stats`` and it is
    plausible."""
    costs = {
        c.get("name") or "default": c.get("exec_time_us", 0) for c in i.config.get("reification_cost", [])
    }
    for model in ("default", "sol"):
        value = costs.get(model, 0)
        if 0 < value < _LARGEST_ESTIMATE_US:
            return float(value)
    return None
