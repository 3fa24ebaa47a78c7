"""Totals over a module: every computation once, weighted by how often it runs."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from farrier._src.hlo.custom_calls import LAUNCH_NOTHING
from farrier._src.hlo.flops import instruction_flops
from farrier._src.hlo.module import Computation, Instruction, Module
from farrier._src.hlo.traffic import kernel_bytes

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
    "recv",
)

# Instructions that launch nothing on the device.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "opt-barrier",
        "add-dependency",
        "domain",
        "while",
        "call",
        "conditional",
        "async-start",
        "async-update",
        "async-done",
        "copy-done",
        "send-done",
        "recv-done",
        "infeed",
        "outfeed",
        "get-dimension-size",
        "optimization-barrier",
    ]
)
# Opcodes whose called computation is a scalar function applied per element: no kernels of its own.
_APPLY = frozenset(
    [
        "reduce",
        "reduce-window",
        "sort",
        "scatter",
        "select-and-scatter",
        "map",
        "all-reduce",
        "all-reduce-start",
        "reduce-scatter",
    ]
)
_OTHER_KERNELS = frozenset(
    [
        "copy",
        "copy-start",
        "sort",
        "reduce",
        "reduce-window",
        "scatter",
        "select-and-scatter",
        "gather",
        "slice",
        "dynamic-slice",
        "dynamic-update-slice",
        "transpose",
        "broadcast",
        "concatenate",
        "pad",
        "iota",
        "convert",
        "dot",
        "scaled-dot",
        "ragged-dot",
        "convolution",
        "fft",
        "cholesky",
        "triangular-solve",
        "rng",
        "rng-bit-generator",
        "rng-get-and-update-state",
        "partition-id",
        "replica-id",
        "select",
        "compare",
        "map",
        "reshape",
        "reverse",
        "clamp",
        "bitcast-convert",
        "reduce-precision",
        "topk",
        "set-dimension-size",
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of one kind in a module."""

    kind: str
    """``all-gather``, ``all-reduce``, ..."""
    count: int
    """Executions per step: loops times trip count."""
    bytes: int
    """Payload per device and step, bytes: the larger of what goes in and what comes out, summed over
    executions."""
    asynchronous: int
    """Executions that XLA schedules as a start and a later done."""


@dataclasses.dataclass
class Totals:
    """What a module does per execution. Everything is weighted by trip counts."""

    flops: int = 0
    flops_by_kind: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bytes_moved: int = 0
    collectives: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    unknown: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """What could not be counted, and how often it runs: never dropped silently."""

    def add(self, other: Totals, times: int) -> None:
        self.flops += times * other.flops
        self.bytes_moved += times * other.bytes_moved
        for mine, theirs in (
            (self.flops_by_kind, other.flops_by_kind),
            (self.kernels, other.kernels),
            (self.unknown, other.unknown),
        ):
            for key, n in theirs.items():
                mine[key] += times * n
        for kind, (count, size, asynchronous) in other.collectives.items():
            entry = self.collectives.setdefault(kind, [0, 0, 0])
            entry[0] += times * count
            entry[1] += times * size
            entry[2] += times * asynchronous

    def collective_list(self) -> tuple[Collective, ...]:
        return tuple(
            Collective(kind=k, count=c, bytes=b, asynchronous=a)
            for k, (c, b, a) in sorted(self.collectives.items())
        )


def collective_kind(i: Instruction) -> str | None:
    """The collective that `i` starts or performs, or None. A ``-done`` is not one: its start is."""
    opcode = i.opcode
    if opcode in COLLECTIVES:
        return opcode
    if opcode.endswith("-start") and opcode[:-6] in COLLECTIVES:
        return opcode[:-6]
    return None


def collective_bytes(i: Instruction) -> int:
    """Payload of one execution on one device: the larger of all inputs and all outputs, bytes."""
    into = sum(o.bytes for o in i.operands)
    if i.opcode.endswith("-start") and i.opcode != "async-start":
        # The start's result also carries the operands (and, for a permute, two context words).
        for user in i.users:
            if user.opcode.endswith("-done"):
                return max(into, user.bytes)
    return max(into, i.bytes)


def is_synchronous(i: Instruction) -> bool:
    """Whether XLA runs the collective without overlap although it is spelled as a start and a done."""
    return bool(i.config.get("collective_backend_config", {}).get("is_sync", False))


class Counter:
    """Counts a module with one visit per computation: linear in instructions."""

    def __init__(self) -> None:
        self._memo: dict[tuple[int, bool], Totals] = {}

    def computation(self, c: Computation, *, fused: bool = False) -> Totals:
        """Totals of one execution of `c`; inside a fusion only FLOPs count."""
        key = (id(c), fused)
        found = self._memo.get(key)
        if found is not None:
            return found
        total = Totals()
        self._memo[key] = total
        for i in c.instructions:
            self._instruction(total, i, fused)
        return total

    def instruction(self, i: Instruction) -> Totals:
        """Totals of one execution of `i`, an instruction outside any fusion."""
        total = Totals()
        self._instruction(total, i, False)
        return total

    def _instruction(self, total: Totals, i: Instruction, fused: bool) -> None:
        opcode = i.opcode
        flops = instruction_flops(i)
        if flops is None:
            what = i.proto.custom_call_target if opcode == "custom-call" else opcode
            total.unknown[f"flops of {what}"] += 1
        elif flops:
            kind = i.proto.custom_call_target if opcode == "custom-call" else opcode
            total.flops += flops
            total.flops_by_kind[kind] += flops
        if opcode == "while":
            trips = i.trip_count
            if trips is None:
                total.unknown["trip count of while, taken as 1"] += 1
            # called: condition and body in one order or the other; the condition is the one that gives a
            # predicate.
            condition, body = _while_parts(i)
            total.add(self.computation(body, fused=fused), 1 if trips is None else trips)
            if trips is None and condition is not None:
                total.add(self.computation(condition, fused=fused), 2)
            return
        if opcode == "conditional":
            branches = [self.computation(c, fused=fused) for c in i.called]
            if branches:
                total.unknown["conditional, taken as its costliest branch"] += 1
                total.add(max(branches, key=lambda b: (b.flops, b.bytes_moved)), 1)
            return
        if opcode in ("call", "async-start"):
            for c in i.called:
                if opcode == "async-start":
                    self._asynchronous(total, i, c, fused)
                else:
                    total.add(self.computation(c, fused=fused), 1)
            return
        if opcode == "fusion":
            for c in i.called:
                inner = self.computation(c, fused=True)
                total.flops += inner.flops
                total.flops_by_kind.update(inner.flops_by_kind)
                total.unknown.update(inner.unknown)
        elif i.called and opcode not in _APPLY and collective_kind(i) is None and opcode not in _FREE:
            total.unknown[f"called computation of {opcode}"] += 1
        if fused:
            return
        kind = collective_kind(i)
        if kind is not None:
            entry = total.collectives.setdefault(kind, [0, 0, 0])
            entry[0] += 1
            entry[1] += collective_bytes(i)
            entry[2] += int(i.opcode.endswith("-start") and not is_synchronous(i))
            total.kernels["collective"] += 1
            return
        self._kernel(total, i)

    def _asynchronous(self, total: Totals, start: Instruction, c: Computation, fused: bool) -> None:
        inner = self.computation(c, fused=fused)
        total.add(inner, 1)
        if not is_synchronous(start):
            for kind, (count, _, asynchronous) in inner.collectives.items():
                total.collectives[kind][2] += count - asynchronous

    def _kernel(self, total: Totals, i: Instruction) -> None:
        opcode = i.opcode
        if opcode == "custom-call":
            if i.proto.custom_call_target in LAUNCH_NOTHING:
                return
            total.kernels["custom-call"] += 1
        elif opcode in _FREE or opcode.endswith(("-done", "-update")):
            return
        elif opcode == "fusion":
            total.kernels["fusion"] += 1
        elif opcode in ("copy", "copy-start"):
            total.kernels["copy"] += 1
        else:
            total.kernels["unfused"] += 1
            if opcode not in _OTHER_KERNELS and not _elementwise(i):
                total.unknown[f"instruction {opcode}, taken as one kernel"] += 1
        total.bytes_moved += kernel_bytes(i)


def _elementwise(i: Instruction) -> bool:
    """An instruction whose operands all have the result's dimensions."""
    return bool(i.operands) and not i.called and all(o.dims == i.dims for o in i.operands)


def _while_parts(i: Instruction) -> tuple[Computation | None, Computation]:
    body, condition = i.called[0], i.called[1] if len(i.called) > 1 else None
    if condition is not None and body.root is not None and body.root.proto.shape.element_type == 1:
        body, condition = condition, body
    return condition, body


def count(module: Module) -> Totals:
    """Totals of one execution of the module's entry computation."""
    return Counter().computation(module.entry)


def instruction_count(module: Module) -> int:
    """Instructions in all computations."""
    return sum(len(c.instructions) for c in module.computations)


def names(counter: collections.Counter) -> dict[str, Any]:
    """A counter as a dict with sorted keys."""
    return {k: counter[k] for k in sorted(counter)}
