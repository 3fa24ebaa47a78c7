"""Exposed and overlapped communication of a scheduled module, by a named cost model.

The model, ``two-stream/1``, runs the schedule on a compute stream and a
communication stream. A kernel takes the larger of its FLOPs over the dtype's
peak rate and its bytes over the memory bandwidth. A collective takes its ring
algorithm's traffic over the bandwidth of the slowest link in its group
(all-reduce 2(n-1)/n of the payload, gather, scatter and all-to-all (n-1)/n,
permute and broadcast all of it; Thakur, Rabenseifner and Gropp, "Optimization
of Collective Communication Operations in MPICH", 2005, bandwidth terms).
Latency and contention between streams are left out, so figures are for
comparing schedules with each other, not for predicting a step.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from farrier._src import hlo
from farrier._src.hlo import totals
from farrier._src.hlo.custom_calls import LAUNCH_NOTHING
from farrier._src.hlo.flops import instruction_flops
from farrier._src.hlo.traffic import kernel_bytes

MODEL = "two-stream/1"

# XLA's type numbers (xla_data.proto, PrimitiveType) as the targets name them.
_DTYPES = {10: "float16", 11: "float32", 12: "float64", 16: "bfloat16", 19: "float8", 20: "float8"}

_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Communication of one step, seconds by :data:`MODEL`.

    Attributes:
      exposed_seconds: compute stream idle, waiting for communication.
      overlapped_seconds: communication hidden behind compute.
      seconds: modelled step time.
      exposed: names of collectives with no kernel between start and done.
      overlapped_count, exposed_count: collectives a step, loops counted by their trips.
      kernels: bytes moved and FLOPs of each kernel by name, loops counted by their trips.
    """

    exposed_seconds: float
    overlapped_seconds: float
    seconds: float
    exposed: tuple[str, ...]
    overlapped_count: int
    exposed_count: int
    kernels: Mapping[str, tuple[int, int]]


@dataclasses.dataclass
class _Time:
    compute: float = 0.0
    communication: float = 0.0
    exposed: float = 0.0
    exposed_count: int = 0
    overlapped_count: int = 0

    def add(self, other: _Time, times: int) -> None:
        for f in dataclasses.fields(self):
            setattr(self, f.name, getattr(self, f.name) + times * getattr(other, f.name))


class _Model:
    def __init__(self, module: hlo.Module, text: str, target: Any):
        self._module, self._target = module, target
        self._order: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        for n, line in enumerate(text.splitlines()):
            m = _NAME.match(line)
            if m is None:
                continue
            # The text is in schedule order, the proto is not.
            self._order[m[1]] = n
            if g := _IOTA_GROUPS.search(line):
                self._groups[m[1]] = int(g[1])
            elif g := _LISTED_GROUPS.search(line):
                self._groups[m[1]] = g[1].count(",") + 1
        self.names: set[str] = set()
        self.kernels: dict[str, tuple[int, int]] = {}
        self._counter = totals.Counter()
        self._memo: dict[int, _Time] = {}

    def _rate(self, i: Any) -> float:
        rates = self._target.peak_flops
        kind = _dot_type(i)
        return rates.get(_DTYPES.get(kind, ""), rates["bfloat16"])

    def _kernel_seconds(self, i: Any) -> float:
        moved = kernel_bytes(i)
        flops = 0
        if i.opcode == "fusion":
            flops = sum(self._counter.computation(c, fused=True).flops for c in i.called)
        else:
            flops = instruction_flops(i) or 0
        self.kernels[i.name] = (moved, flops)
        seconds = moved / self._target.hbm_bytes_per_s
        return max(seconds, flops / self._rate(i)) if flops else seconds

    def _collective_seconds(self, i: Any, kind: str) -> float:
        n = self._groups.get(i.name, self._target.device_count)
        if n <= 1:
            return 0.0
        near = n <= self._target.devices_per_nvlink_domain
        link = self._target.nvlink_bytes_per_s if near else self._target.nic_bytes_per_s
        if kind == "all-reduce":
            share = 2 * (n - 1) / n
        elif kind in ("all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"):
            share = (n - 1) / n
        else:
            share = 1.0
        return share * totals.collective_bytes(i) / link

    def _collective(self, i: Any) -> tuple[str, Any] | None:
        """The kind and the instruction that carries the payload, if ``i`` is or starts a collective."""
        kind = totals.collective_kind(i)
        if kind is not None:
            return kind, i
        if i.opcode == "async-start":
            for c in i.called:
                for inner in c.instructions:
                    if (kind := totals.collective_kind(inner)) is not None:
                        return kind, inner
        return None

    def run(self, computation: Any) -> _Time:
        """Plays one execution of ``computation``."""
        if id(computation) in self._memo:
            return self._memo[id(computation)]
        t = _Time()
        clock = network = 0.0
        kernels = 0
        pending: dict[str, tuple[float, int]] = {}
        for i in sorted(computation.instructions, key=lambda i: self._order.get(i.name, 0)):
            found = self._collective(i)
            if found is not None:
                kind, payload = found
                seconds = self._collective_seconds(payload, kind)
                if i.opcode.endswith("-start") and not totals.is_synchronous(i):
                    network = max(network, clock) + seconds
                    pending[i.name] = (network, kernels)
                else:
                    network = max(network, clock) + seconds
                    t.exposed += network - clock
                    clock = network
                    t.exposed_count += 1
                    self.names.add(i.name)
                t.communication += seconds
                continue
            start = i.operands[0] if i.opcode.endswith("-done") and i.operands else None
            if start is not None and start.name in pending:
                finish, before = pending.pop(start.name)
                if kernels == before:
                    t.exposed_count += 1
                    self.names.add(start.name)
                else:
                    t.overlapped_count += 1
                if finish > clock:
                    t.exposed += finish - clock
                    clock = finish
                continue
            if i.opcode in ("while", "call", "conditional"):
                inner, times = self._called(i)
                t.add(dataclasses.replace(inner, compute=0.0), times)
                clock += times * inner.compute
                kernels += 1
            elif not _free(i):
                clock += self._kernel_seconds(i)
                kernels += 1
        t.compute = clock
        self._memo[id(computation)] = t
        return t

    def weighted(self, computation: Any, times: int = 1) -> dict[str, tuple[int, int]]:
        """Returns bytes moved and FLOPs of the kernels under ``computation``, times the trips of loops."""
        out: dict[str, tuple[int, int]] = {}
        for i in computation.instructions:
            if i.opcode in ("while", "call", "conditional"):
                trips = (i.trip_count or 1) if i.opcode == "while" else 1
                for c in i.called:
                    out.update(self.weighted(c, times * trips))
            elif i.name in self.kernels:
                moved, flops = self.kernels[i.name]
                out[i.name] = (times * moved, times * flops)
        return out

    def _called(self, i: Any) -> tuple[_Time, int]:
        if i.opcode == "while":
            parts = sorted(i.called, key=lambda c: len(c.instructions))
            # The condition's root is a predicate (type 1), the body's is not.
            body = next(
                (c for c in parts if c.root is not None and c.root.proto.shape.element_type != 1), parts[-1]
            )
            return self.run(body), i.trip_count or 1
        inner = [self.run(c) for c in i.called]
        if i.opcode == "conditional" or len(inner) == 1:
            return max(inner, key=lambda t: t.compute), 1
        both = _Time()
        for t in inner:
            both.add(t, 1)
        return both, 1


def _dot_type(i: Any) -> int:
    """XLA's number of the type that a GEMM multiplies, 0 where there is none."""
    if i.opcode in ("dot", "scaled-dot", "ragged-dot", "custom-call"):
        return i.operands[0].proto.shape.element_type if i.operands else 0
    for c in i.called:
        for inner in c.instructions:
            # XLA nests the tiles of a Triton GEMM as fusions in a fusion.
            if inner.opcode in ("dot", "fusion", "scaled-dot", "ragged-dot") and (kind := _dot_type(inner)):
                return kind
    return 0


def _free(i: Any) -> bool:
    if i.opcode == "custom-call":
        return i.proto.custom_call_target in LAUNCH_NOTHING
    return i.opcode in totals._FREE or i.opcode.endswith(("-done", "-update"))


def analyse(module: hlo.Module, text: str, target: Any) -> Overlap:
    """Plays the schedule of an optimized module.

    Args:
      module: the module's object model.
      text: its text, which is in schedule order.
      target: a ``farrier.Target``; gives rates and bandwidths.
    """
    model = _Model(module, text, target)
    t = model.run(module.entry)
    return Overlap(
        exposed_seconds=t.exposed,
        overlapped_seconds=max(0.0, t.communication - t.exposed),
        seconds=t.compute,
        exposed=tuple(sorted(model.names)),
        overlapped_count=t.overlapped_count,
        exposed_count=t.exposed_count,
        kernels=model.weighted(module.entry),
    )
