"""Predicted time of one instruction on a target: XLA's own model where it is plausible, else the roofline.

XLA writes several estimates per instruction when ``xla_gpu_collect_cost_model_stats`` is set. None is right
everywhere: on an H100 the default model takes GEMM tiles before autotuning, and the speed-of-light model
gives nearly zero for some custom kernels. An estimate counts as plausible when it lies between the roofline
of the target's data sheet and `PLAUSIBLE` times it; the first plausible one in the order of `_MODELS` is
taken.
"""

from __future__ import annotations

import dataclasses
import math

from farrier._src import hlo
from farrier._src.hlo import flops as flops_lib
from farrier._src.hlo import totals, traffic
from farrier._src.report import origin
from farrier._src.targets import Target

LAUNCH_NS = 2_000.0
"""Shortest time of a kernel, ns: what a launch inside a stream costs (about 2 us on Hopper)."""
COLLECTIVE_NS = 10_000.0
"""Shortest time of a collective, ns: NCCL's small-message latency within one host is of this order."""
PLAUSIBLE = 3.0
"""A tuned kernel reaches at least a third of the data sheet; slower estimates take untuned tiles."""
_MATRIX_MODELS = ("sol", "indexing-cost-model", "experimental-gemm-cost-model", "")
_OTHER_MODELS = ("", "sol", "indexing-cost-model")

# PrimitiveType -> the key of Target.peak_flops; a plain f32 product runs on tensor cores as TF32 by default.
_PEAK = {
    10: "float16", 11: "tensorfloat32", 12: "float64", 16: "bfloat16", 19: "float8_e5m2", 20: "float8_e4m3fn",
    2: "int8", 6: "int8",
}  # fmt: skip
_CONTRACTIONS = ("dot", "scaled-dot", "ragged-dot", "convolution", "custom-call")


@dataclasses.dataclass(frozen=True)
class Cost:
    """One execution of one instruction on one device."""

    ns: float
    """Predicted time, nanoseconds."""
    flops: int
    """Matrix FLOPs (a multiply-add is two)."""
    ideal_bytes: int
    """Device memory traffic if each input is read once and each result written once, bytes."""
    moved_bytes: int
    """Traffic that XLA's model expects (its memory time times the bandwidth), at least `ideal_bytes`."""
    roofline_ns: float
    """max(FLOPs / peak, ideal bytes / bandwidth), nanoseconds."""
    bound: str
    """``compute``, ``memory``, ``launch`` or ``network``."""
    model: str
    """Which model `ns` comes from."""


class CostModel:
    """Costs of a module's instructions on `target`; results are kept."""

    def __init__(self, target: Target):
        self.target = target
        self._counter = totals.Counter()
        self._memo: dict[int, Cost] = {}

    def cost(self, i: hlo.Instruction) -> Cost:
        """The cost of one execution of `i`, an instruction outside fusions that is no loop or call."""
        found = self._memo.get(i.proto.id)
        if found is None:
            kind = origin.collective(i)
            found = self._collective(i, kind) if kind else self._kernel(i)
            self._memo[i.proto.id] = found
        return found

    def launches(self, i: hlo.Instruction) -> bool:
        """Whether `i`, outside any fusion, runs something on the device."""
        if i.opcode in ("while", "conditional", "call", "async-start"):
            return origin.collective(i) is not None
        return bool(self._counter.instruction(i).kernels)

    def flops(self, i: hlo.Instruction) -> int:
        """Matrix FLOPs of one execution."""
        if i.opcode == "fusion":
            return sum(self._counter.computation(c, fused=True).flops for c in i.called)
        return flops_lib.instruction_flops(i) or 0

    def compute_ns(self, i: hlo.Instruction) -> float:
        """Nanoseconds that the matrix FLOPs of one execution take at the data sheet's rate."""
        flops = self.flops(i)
        return flops / self._peak(i) * 1e9 if flops else 0.0

    def _kernel(self, i: hlo.Instruction) -> Cost:
        t = self.target
        flops = self.flops(i)
        ideal = traffic.kernel_bytes(i)
        compute = self.compute_ns(i)
        bandwidth = t.hbm_bytes_per_s
        if i.opcode == "copy-start" and _crosses_host(i):
            bandwidth = t.host_link_bytes_per_s
        memory = ideal / bandwidth * 1e9
        roofline = max(compute, memory)
        estimates = _estimates(i)
        ns, model = roofline, "roofline"
        for name in _MATRIX_MODELS if flops else _OTHER_MODELS:
            value = estimates.get(name, (0.0, 0.0))[0]
            if value and roofline * 0.95 <= value <= max(roofline, LAUNCH_NS) * PLAUSIBLE:
                ns, model = value, f"xla {name or 'default'}"
                break
        expected = estimates.get("", (0.0, 0.0))[1] * 1e-9 * bandwidth
        bound = "compute" if compute > memory else "memory"
        if ns < LAUNCH_NS:
            ns, bound = LAUNCH_NS, "launch"
        return Cost(ns, flops, ideal, max(ideal, int(expected)), roofline, bound, model)

    def _peak(self, i: hlo.Instruction) -> float:
        """FLOP/s for the type of `i`'s matrix operands."""
        rates = self.target.peak_flops
        kind = _matrix_type(i)
        return rates.get(_PEAK.get(kind, "float32")) or rates.get("float32") or max(rates.values())

    def _collective(self, i: hlo.Instruction, kind: str) -> Cost:
        """A ring over the slowest link of the group, after Patarasuk and Yuan (2009)."""
        done_by = performer(i)
        payload = totals.collective_bytes(done_by)
        n = group_size(done_by, self.target.device_count)
        link = (
            self.target.nvlink_bytes_per_s
            if n <= self.target.devices_per_nvlink_domain
            else self.target.nic_bytes_per_s
        )
        share = (n - 1) / n if n > 1 else 0.0
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "send": 1.0, "recv": 1.0}.get(
            kind, share
        )
        network = payload * factor / link * 1e9
        ns, model = network, "ring"
        estimate = _estimates(done_by).get("sol") or _estimates(i).get("sol")
        if estimate and network * 0.95 <= estimate[0] <= max(network, COLLECTIVE_NS) * PLAUSIBLE:
            ns, model = estimate[0], "xla sol"
        ns = max(ns, COLLECTIVE_NS) if n > 1 else LAUNCH_NS
        return Cost(ns, 0, payload, payload, network, "network", model)


def performer(i: hlo.Instruction) -> hlo.Instruction:
    """The collective itself, inside an async wrapper or not."""
    if i.opcode == "async-start" and i.called:
        for inner in i.called[0].instructions:
            if totals.collective_kind(inner):
                return inner
    return i


def group_size(i: hlo.Instruction, devices: int) -> int:
    """Devices in one replica group of a collective; all `devices` when the groups are left open."""
    p = performer(i).proto
    if p.source_target_pairs:
        return 2
    if p.replica_groups and p.replica_groups[0].replica_ids:
        return len(p.replica_groups[0].replica_ids)
    listed = p.collective_device_list
    if listed.replica_groups and listed.replica_groups[0].replica_ids:
        return len(listed.replica_groups[0].replica_ids)
    if listed.iota_replica_group_list.num_devices_per_group:
        return listed.iota_replica_group_list.num_devices_per_group
    mesh = p.mesh_axes_replica_groups
    if mesh.mesh.axes:
        size = 1
        for axis in mesh.axes:
            size *= axis.sub_axis_info.size or mesh.mesh.axes[axis.mesh_axis_index].size
        return size
    return devices


def _estimates(i: hlo.Instruction) -> dict[str, tuple[float, float]]:
    """XLA's estimates: model -> (time, memory time), nanoseconds; non-finite ones are dropped."""
    out = {}
    for entry in i.config.get("reification_cost") or ():
        time, memory = entry.get("exec_time_us", 0), entry.get("memory_access_time_us", 0)
        if isinstance(time, int | float) and math.isfinite(time):
            out[entry.get("name", "")] = (
                1e3 * time,
                1e3 * memory if isinstance(memory, int | float) else 0.0,
            )
    return out


def _matrix_type(i: hlo.Instruction) -> int:
    """PrimitiveType of the left operand of the heaviest contraction in `i`."""
    best, kind = -1, 0
    pending = [i]
    while pending:
        x = pending.pop()
        if x.opcode in _CONTRACTIONS and x.operands:
            work = flops_lib.instruction_flops(x) or 0
            if work > best:
                best, kind = work, x.operands[0].proto.shape.element_type
        if x.opcode == "fusion":
            for c in x.called:
                pending += c.instructions
    return kind


def _crosses_host(i: hlo.Instruction) -> bool:
    spaces = {s.layout.memory_space for s in i.proto.shape.tuple_shapes[:2]}
    return 5 in spaces
