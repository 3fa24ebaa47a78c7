"""The final kernels: traffic against the ideal, work, time, place on the roofline; equal ones grouped."""

from __future__ import annotations

import collections
import dataclasses
import re

from farrier._src import hlo
from farrier._src.report import cost as cost_lib
from farrier._src.report import origin, schedule
from farrier._src.report.memory import shape_text
from farrier._src.report.program import Program
from farrier._src.targets import Target

# XLA numbers what it copies, and names what it computes again ``.remat``, ``.remat2``, ...
_NUMBER = re.compile(r"([._]\d+|\.remat\d*)+(?:_clone)?$|\.clone$")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Kernels of one shape from one source line; sums are over one step on one device."""

    name: str
    """The instructions' name without its number."""
    kind: str
    shape: str
    """Of the result."""
    operands: str
    """Shapes of what it reads."""
    count: int
    """Executions per step."""
    flops: int
    """Matrix FLOPs."""
    ideal_bytes: int
    """Each input read once, each result written once."""
    moved_bytes: int
    """Traffic that XLA's model expects, at least `ideal_bytes`."""
    ns: float
    """Predicted time, nanoseconds."""
    roofline: float
    """The roofline's time over the predicted time: 1 is the data sheet's limit."""
    intensity: float
    """Matrix FLOPs per ideal byte."""
    bound: str
    model: str
    source: str
    scope: str
    positions: tuple[int, ...]
    """First few places in program order."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the schedule."""

    name: str
    kind: str
    bytes: int
    """Payload of one execution on one device."""
    group: int
    """Devices that take part."""
    count: int
    position: int
    done: int | None
    """Position of the done; None for a synchronous one."""
    ns: float
    """Predicted time of one execution, nanoseconds."""
    exposed_ns: float
    """Of that, what the device waits for."""
    source: str
    scope: str
    why: str = ""
    """Why it waits, in words; empty where it does not, or where nobody asked."""


def stem(name: str) -> str:
    """An instruction's name without the number that makes it unique.

    >>> stem("gemm_fusion_dot.83"), stem("loop_add_fusion"), stem("all-gather.67.remat2.1.remat3")
    ('gemm_fusion_dot', 'loop_add_fusion', 'all-gather')
    """
    return _NUMBER.sub("", name)


def kernels(program: Program, model: cost_lib.CostModel) -> list[Kernel]:
    """All kernels that are no collectives, grouped, longest total time first."""
    groups: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
    for position, i in enumerate(program.steps):
        if origin.collective(i) is None and not i.opcode.endswith("-done") and model.launches(i):
            operands = ", ".join(shape_text(o.proto.shape) for o in i.operands[:6])
            key = (
                stem(i.name), schedule.kind_of(i, model), shape_text(i.proto.shape), operands,
                program.source(i), program.phase(i),
            )  # fmt: skip
            groups[key].append(position)
    out = []
    for (name, kind, shape, operands, source, _), positions in groups.items():
        count = sum(program.runs[p] for p in positions)
        flops = ideal = moved = 0
        ns = roofline = 0.0
        for p in positions:
            c, n = model.cost(program.steps[p]), program.runs[p]
            flops, ideal, moved = flops + n * c.flops, ideal + n * c.ideal_bytes, moved + n * c.moved_bytes
            ns, roofline = ns + n * c.ns, roofline + n * c.roofline_ns
        first = model.cost(program.steps[positions[0]])
        out.append(
            Kernel(
                name,
                kind,
                shape,
                operands,
                count,
                flops,
                ideal,
                moved,
                ns,
                roofline / ns if ns else 0.0,
                flops / ideal if ideal else 0.0,
                first.bound,
                first.model,
                source,
                program.scope(program.steps[positions[0]]),
                tuple(positions[:16]),
            )
        )
    return sorted(out, key=lambda k: (-k.ns, k.name, k.shape, k.source))


def collectives(program: Program, model: cost_lib.CostModel, made: schedule.Schedule) -> list[Collective]:
    """All collectives in program order."""
    out = []
    for s in made.slices:
        if s.track != schedule.COMMUNICATION:
            continue
        i = program.steps[s.position]
        c = model.cost(i)
        out.append(
            Collective(
                name=s.name,
                kind=s.kind,
                bytes=c.ideal_bytes,
                count=program.runs[s.position],
                group=cost_lib.group_size(i, model.target.device_count),
                position=s.position,
                done=s.done if s.done != s.position else None,
                ns=s.duration_ns,
                exposed_ns=s.exposed_ns,
                source=s.source,
                scope=program.scope(i),
            )
        )
    return sorted(out, key=lambda c: c.position)


def explained(found: list[Collective], module: hlo.Module, target: Target) -> list[Collective]:
    """The collectives of `found`, with why those that wait do: by the target's first parameter set."""
    if not any(c.exposed_ns for c in found):
        return found
    from farrier._src.collectives import parameters
    from farrier._src.collectives import schedule as collective_schedule

    (simulated,) = collective_schedule.simulate(module, target, parameters.for_target(target)[:1])
    why = {w.name: w.why for w in simulated.waits}
    return [dataclasses.replace(c, why=why.get(c.name, "")) if c.exposed_ns else c for c in found]


def order(program: Program) -> list[str]:
    """The collectives in the order in which a device starts them, as comparable text.

    Every process of a job must have the same list, or the job hangs: kind, shape and groups, without names.
    """
    wrapped = {c.id for i in program.steps if i.opcode == "async-start" for c in i.called}
    out = []
    for i in program.steps:
        kind = origin.collective(i)
        if kind is None or i.opcode.endswith(("-done", "-update")) or i.computation.id in wrapped:
            continue
        performer = cost_lib.performer(i)
        shapes = ",".join(shape_text(o.proto.shape) for o in performer.operands)
        out.append(f"{kind} {shapes} channel={performer.proto.channel_id} groups={_groups(performer)}")
    return out


def _groups(i: hlo.Instruction) -> str:
    p = i.proto
    if p.source_target_pairs:
        return str([(x.source, x.target) for x in p.source_target_pairs])
    listed = p.collective_device_list
    if listed.iota_replica_group_list.num_devices_per_group:
        iota = listed.iota_replica_group_list
        return (
            f"[{iota.num_replica_groups},{iota.num_devices_per_group}]<={list(iota.iota_reshape_dims)}"
            f"T{list(iota.iota_transpose_perm)}"
        )
    if p.mesh_axes_replica_groups.mesh.axes:
        mesh = p.mesh_axes_replica_groups
        sizes = [a.size for a in mesh.mesh.axes]
        axes = [(a.mesh_axis_index, a.sub_axis_info.pre_size, a.sub_axis_info.size) for a in mesh.axes]
        return f"mesh{sizes}{list(mesh.mesh.device_ids)} axes{axes}"
    return str([list(g.replica_ids) for g in (p.replica_groups or listed.replica_groups)])
