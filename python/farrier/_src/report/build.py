"""Making a `Report` out of a compiled program."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from typing import Any

from farrier._src import hlo, metrics
from farrier._src import remarks as remarks_lib
from farrier._src.report import cost, dump, estimate, kernels, memory, model, opportunities, schedule
from farrier._src.report.program import Program
from farrier._src.targets import Target, builtin_names, load_facts


def explain(
    lowered: Any,
    *,
    target: Target | None = None,
    before: Any = None,
    budget_bytes: int | None = None,
    remarks: Iterable[Any] = (),
    origins: Mapping[str, str] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    title: str = "",
) -> model.Report:
    """Compiles a lowered function and reports on it.

    Args:
      lowered: a `jax.stages.Lowered`, or any object with its `compile(compiler_options=)`.
      target: what it is compiled for; gives predicted times. None: recognised from XLA's dump for a GPU, and
      no
        predicted times on CPU.
      before: the program to compare with, lowered, or its finished `Report`.
      budget_bytes: drawn as a line.
      remarks: what the passes decided.
      origins: regular expressions on argument paths -> origin, where the data flow does not tell.
      compiler_options: XLA options of this compile.
      title: by default the module's name.

    Raises:
      farrier.CompileError: XLA refuses the program.
    """
    _, artifact = dump.compile_with_dump(lowered, compiler_options=compiler_options)
    report = from_artifact(
        artifact, target=target, budget_bytes=budget_bytes, remarks=remarks, stablehlo=_module(lowered),
        origins=origins, title=title, compiler_options=_options(compiler_options),
    )  # fmt: skip
    if before is None:
        return report
    if not isinstance(before, model.Report):
        before = explain(before, target=target, budget_bytes=budget_bytes, origins=origins, title=title)
    return report.compare(before)


def from_artifact(
    artifact: dump.Artifact,
    *,
    target: Target | None = None,
    budget_bytes: int | None = None,
    remarks: Iterable[Any] = (),
    stablehlo: Any = None,
    origins: Mapping[str, str] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    title: str = "",
) -> model.Report:
    """A report on a program that XLA described; see `explain`.

    Args:
      stablehlo: the module that was compiled, a `farrier._core.Module`; the estimate that plans are made with is
        drawn then. `explain` gives it.
      compiler_options: XLA options that it was compiled with; a diff names those that differ.
    """
    module = hlo.Module(artifact.module)
    program = Program(module)
    target = target or recognise(artifact.device, module)
    profile = memory.MemoryProfile(program, artifact.assignment, origins=dict(origins or {}))
    stacks: dict[tuple[Any, ...], int] = {}
    buffers = [_buffer(b, stacks) for b in profile.buffers]
    sources: dict[str, int] = {}
    shapes: dict[str, int] = {}
    figures = artifact.figures
    data: dict[str, Any] = {
        "schema": model.SCHEMA,
        "title": title or module.name.removeprefix("jit_"),
        "module": {
            "name": module.name,
            "fingerprint": metrics.fingerprint(module),
            "instructions": sum(len(c.instructions) for c in module.computations),
        },
        "versions": {name: _version(name) for name in ("farrier", "jax", "jaxlib")},
        "options": {name: str(value) for name, value in sorted((compiler_options or {}).items())},
        "target": target.to_json() if target is not None else None,
        "program": {
            "names": [i.name for i in program.steps],
            "sources": [sources.setdefault(program.source(i), len(sources)) for i in program.steps],
            "shapes": [
                shapes.setdefault(memory.shape_text(i.proto.shape), len(shapes)) for i in program.steps
            ],
            "shape_table": [],
            "runs": program.runs,
            "loops": [dataclasses.asdict(loop) for loop in program.loops],
        },
        "memory": {
            "figures": {**dataclasses.asdict(figures), "total": figures.total} if figures else None,
            "budget": budget_bytes,
            "allocated": profile.allocated,
            "fragmentation": profile.fragmentation,
            "peak": {
                "position": profile.peak,
                "instruction": program.steps[profile.peak].name if program.steps else "",
                "source": program.source(program.steps[profile.peak]) if program.steps else "",
                "bytes": profile.peak_bytes,
                "host_bytes": int(profile.host_live.max()),
            },
            "timeline": model.timeline(buffers, len(program)),
            "buffers": buffers,
            "allocations": [
                dataclasses.asdict(a) for a in profile.allocations if a.kind != "thread-local" and a.bytes
            ],
            "stacks": [[list(frame) for frame in stack] for stack in stacks],
            "estimate": estimate.estimate(program, stablehlo, fixed_bytes=_fixed(profile))
            if stablehlo
            else None,
        },
        "schedule": None,
        "kernels": [],
        "collectives": [],
        "opportunities": None,
        "collective_order": kernels.order(program),
        "remarks": [remarks_lib.to_json(r) for r in remarks],
        "measured": None,
    }
    if target is not None:
        costs = cost.CostModel(target)
        made = schedule.simulate(program, costs)
        data["schedule"] = {
            "step_ns": made.step_ns,
            "compute_ns": made.compute_ns,
            "communication_ns": made.communication_ns,
            "exposed_ns": made.exposed_ns,
            "slices": [_slice(s, sources) for s in made.slices],
        }
        data["kernels"] = [dataclasses.asdict(k) for k in kernels.kernels(program, costs)]
        found = kernels.explained(kernels.collectives(program, costs, made), program.module, target)
        data["collectives"] = [dataclasses.asdict(c) for c in found]
        data["opportunities"] = opportunities.find(program, costs, remarks=data["remarks"]).to_json()
    data["program"]["source_table"] = list(sources)
    data["program"]["shape_table"] = list(shapes)
    return model.Report(_plain(data))


def _options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """XLA options of a compile in this process: those of the environment too."""
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"]} if os.environ.get("XLA_FLAGS") else {}
    return {**flags, **(given or {})}


def _module(lowered: Any) -> Any:
    """The StableHLO of a lowered function as farrier's own module; None for one that does not show it."""
    show = getattr(lowered, "compiler_ir", None)
    if show is None:
        return None
    from farrier._src import interchange

    return interchange.to_core(show("stablehlo"))


def _fixed(profile: memory.MemoryProfile) -> int:
    """Device bytes that are no temporaries: arguments, results with memory of their own, constants."""
    kinds = ("argument", "output", "constant")
    return sum(a.bytes for a in profile.allocations if a.space == "device" and a.kind in kinds)


def recognise(device: str, module: hlo.Module) -> Target | None:
    """The built-in target whose description is `device`, with as many devices as the module is partitioned
    for.
    """
    for name in builtin_names():
        facts = load_facts(name)
        if facts.description == device:
            given = module.proto.device_assignment
            count = max(1, given.replica_count) * max(1, given.computation_count)
            return Target(facts, topology=f"1x1x{count}")
    return None


def _buffer(b: memory.Buffer, stacks: dict[tuple[Any, ...], int]) -> dict[str, Any]:
    return {
        "name": b.name, "opcode": b.opcode, "shape": b.shape, "bytes": b.bytes, "origin": b.origin,
        "scope": b.scope, "layer": b.layer, "source": b.source, "start": b.start, "end": b.end,
        "allocation": b.allocation, "offset": b.offset, "space": b.space, "donated": b.donated,
        "shared": b.shared, "rematerialized": b.rematerialized,
        "stack": stacks.setdefault(b.frames, len(stacks)),
    }  # fmt: skip


def _slice(s: schedule.Slice, sources: dict[str, int]) -> dict[str, Any]:
    out = {
        "track": s.track, "name": s.name, "position": s.position, "start_ns": round(s.start_ns, 1),
        "duration_ns": round(s.duration_ns, 1), "kind": s.kind,
        "source": sources.setdefault(s.source, len(sources)), "model": s.model,
    }  # fmt: skip
    if s.exposed_ns:
        out["exposed_ns"] = round(s.exposed_ns, 1)
    if s.done is not None:
        out["done"] = s.done
    return out


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a report equals itself after a round trip through JSON."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
