"""Simulating a scheduled module and finding an order that leaves less communication exposed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farrier import _core
from farrier._src import errors
from farrier._src.collectives import program as program_lib
from farrier._src.collectives import why
from farrier._src.collectives.costs import CostModel
from farrier._src.collectives.parameters import ParameterSet
from farrier._src.hlo import Module
from farrier._src.targets import Target

PLAN_VERSION = 1
# What more memory is worth is asked at these parts of what the fastest order needs.
_PARTS = (0.5, 0.25)
# A part of the step below which a gain is no reason to move memory.
_WORTHWHILE = 1e-3
# A part of the step below which nobody asks why a collective waits.
_NAMED = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wait:
    """One collective of a schedule, summed over loop iterations."""

    name: str
    kind: str
    bytes: int
    """Of one execution's result on one device."""
    group: int
    """Devices in one group."""
    network: bool
    """Whether groups leave their NVLink domain."""
    runs: int
    seconds: float
    exposed_seconds: float
    hideable_seconds: float
    """Compute of the same computation, one execution, that neither feeds it nor needs it: what it could
    hide behind."""
    queued_seconds: float
    """Issued, but the communication stream was busy with others."""
    why: str
    """Why it waits, in words; empty where it does not."""
    op_name: str
    """The JAX operation that it came from."""
    source: str
    """``file:line`` in the user's program, empty when unknown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulation:
    """A step under one parameter set. Simulated, not measured."""

    parameters: str
    seconds: float
    compute_seconds: float
    comm_seconds: float
    exposed_seconds: float
    bound_seconds: float
    """No order of the same instructions is faster: the largest of compute, communication and critical
    path."""
    critical_path_seconds: float
    collectives: int
    synchronous: int
    waits: tuple[Wait, ...]
    """By exposed time, largest first."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def source_line(module: Module, instruction: Any) -> str:
    """``file:line`` of the innermost user frame of an instruction; empty when the module does not say."""
    metadata = instruction.proto.metadata
    if metadata.source_file:
        return f"{metadata.source_file}:{metadata.source_line}"
    index = module.proto.stack_frame_index
    frame = metadata.stack_frame_id
    if not 0 < frame <= len(index.stack_frames):
        return ""
    location = index.file_locations[index.stack_frames[frame - 1].file_location_id - 1]
    return f"{index.file_names[location.file_name_id - 1]}:{location.line}"


def request(**fields: Any) -> dict[str, Any]:
    """The C++ side's answer to a request of docs/collectives.md's exchange format."""
    try:
        return json.loads(_core.schedule(json.dumps(fields)))
    except ValueError as e:
        raise errors.InternalError(f"the scheduler refused a program: {e}") from e


def simulate(
    module: Module,
    target: Target,
    parameters: Sequence[ParameterSet],
    *,
    frozen: dict[str, float] | None = None,
) -> tuple[Simulation, ...]:
    """Simulates one step of a scheduled module, once for each parameter set.

    Args:
      module: scheduled HLO; compile with ``xla_gpu_collect_cost_model_stats=True`` for XLA's estimates
        of kernels.
      target: peak rates and memory bandwidth.
      parameters: speeds; kernels are costed with the first set's fractions.
      frozen: kernel costs by fingerprint; looked up first, and new ones are added, so that two programs
        can be compared at the same prices.
    """
    costs = CostModel(target, parameters[0], frozen)
    program = program_lib.build(module, costs, parameters[0].domain_devices)
    answer = request(
        action="simulate", program=program.json, models=[p.comm_json() for p in parameters], hideable=True
    )
    return tuple(
        _simulation(module, program, p, r) for p, r in zip(parameters, answer["results"], strict=True)
    )


def _simulation(module: Module, program: Any, parameters: ParameterSet, r: Mapping[str, Any]) -> Simulation:
    bodies = {
        c["body"][k]
        for c in program.json["computations"]
        for k, r in enumerate(c["role"])
        if r == program_lib.WHILE
    }

    def explained(c: int, k: int, total: float, exposed: float, runs: int, *rest: Any) -> str:
        hideable, queued, behind = rest
        if exposed <= _NAMED * r["time"]:
            return ""
        return why.reason(
            program.instructions[c][k],
            total / 1e6,
            exposed / 1e6,
            runs,
            hideable / 1e6,
            queued / 1e6,
            program.instructions[behind[0]][behind[1]] if behind[0] >= 0 else None,
            looped=c in bodies,
        )

    waits = []
    for c, k, total, exposed, runs, hideable, queued, *behind in r["waits"]:
        start = program.instructions[c][k]
        collective = program_lib.collective_of(start)
        row = program.json["collectives"][program.json["computations"][c]["collective"][k]]
        waits.append(
            Wait(
                name=start.name,
                kind=row["kind"],
                bytes=row["bytes"],
                group=row["group"],
                network=row["domains"] > 1,
                runs=runs,
                seconds=total / 1e6,
                exposed_seconds=exposed / 1e6,
                hideable_seconds=hideable / 1e6,
                queued_seconds=queued / 1e6,
                why=explained(c, k, total, exposed, runs, hideable, queued, behind),
                op_name=start.proto.metadata.op_name or collective.proto.metadata.op_name,
                source=source_line(module, start) or source_line(module, collective),
            )
        )
    waits.sort(key=lambda w: (-w.exposed_seconds, w.name))
    return Simulation(
        parameters=parameters.name,
        seconds=r["time"] / 1e6,
        compute_seconds=r["compute"] / 1e6,
        comm_seconds=r["comm"] / 1e6,
        exposed_seconds=r["exposed"] / 1e6,
        bound_seconds=r["bound"] / 1e6,
        critical_path_seconds=r["critical_path"] / 1e6,
        collectives=r["collectives"],
        synchronous=r["synchronous"],
        waits=tuple(waits),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulePlan:
    """What it takes to schedule a program again the same way, on any machine: prices, not an order.

    The order follows from the program and these by a deterministic search in the compile itself, so the
    plan survives whatever leaves the kernels alone, and every process of a job that compiles the same
    program gets the same order.
    """

    parameters: tuple[ParameterSet, ...]
    """An order is kept only where it is not slower under any of them; the first rates the kernels."""
    peak_flops: Mapping[str, float]
    hbm_bytes_per_s: float
    costs: Mapping[str, float]
    """Microseconds of kernels by fingerprint, as the program showed them when it was planned."""
    memory_growth_bytes: int = 0
    """What the new order may hold over XLA's at the worst instant, per device."""
    work: int = 600_000
    """Instructions the search may visit; it ends there, the same on every machine."""
    pipeline: bool = False
    """Whether collectives may move across the iterations of loops, before XLA's scheduler."""
    buckets: bool = False
    """Whether XLA may only join collectives that are ready, or wanted, at about the same time."""
    order: bool = True
    """Whether to look for an order of our own, after XLA's scheduler."""
    probe: bool = dataclasses.field(default=False, compare=False)
    """Whether the search also says what more memory would be worth (`Outcome.wishes`). Of one search, not part of
    the plan: never written."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the version."""
        data = dataclasses.asdict(self)
        del data["probe"]
        return {"version": PLAN_VERSION, **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SchedulePlan:
        """Reads what `to_json` gave.

        Raises:
          farrier.Error: another version, or fields missing.
        """
        from farrier._src.collectives.parameters import Curve, Products

        data = dict(data)
        version = data.pop("version", None)
        if version != PLAN_VERSION:
            raise errors.PlanError(
                f"schedule plan of version {version!r}; this farrier reads version {PLAN_VERSION}",
                hint="plan again",
            )
        try:
            sets = []
            for p in data.pop("parameters"):
                curves = tuple(
                    Curve(kind=c["kind"], network=c["network"], points=tuple((b, t) for b, t in c["points"]))
                    for c in p["curves"]
                )
                products = tuple(
                    Products(element_type=m["element_type"], points=tuple((f, r) for f, r in m["points"]))
                    for m in p.get("products", ())
                )
                sets.append(ParameterSet(**{**p, "curves": curves, "products": products}))
            return cls(parameters=tuple(sets), **data)
        except (KeyError, TypeError) as e:
            raise errors.PlanError(f"not a schedule plan: {e}", hint="plan again") from e

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name the plan."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def tag(self) -> str:
        """What a module's name must contain for the plan to be applied to it."""
        return f"farrier_{self.fingerprint}"


@dataclasses.dataclass(frozen=True)
class Wish:
    """What an order with more memory would save."""

    bytes: int
    """On top of what the plan allows, estimated."""
    seconds: float
    """Of a step against the given order's, mean over the parameter sets, simulated."""
    growth: int
    """`SchedulePlan.memory_growth_bytes` that finds such an order."""
    pipeline: bool = False
    buckets: bool = False
    """As the plan's."""


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What a search for an order came to."""

    changed: bool
    before: tuple[float, ...]
    """Step time of the given order by parameter set, seconds, simulated."""
    after: tuple[float, ...]
    peak_before: int
    """Bytes of temporaries at the worst instant, estimated."""
    peak_after: int
    tried: int
    """Distinct orders looked at."""
    over_cap: int
    """Orders that were faster and held too much."""
    wishes: tuple[Wish, ...] = ()
    """What more memory would be worth, most memory first; empty where it was not asked or is worth nothing."""


def plan(
    module: Module,
    target: Target,
    parameters: Sequence[ParameterSet],
    *,
    memory_growth_bytes: int = 0,
    frozen: Mapping[str, float] | None = None,
    pipeline: bool = False,
    buckets: bool = False,
    probe: bool = False,
) -> SchedulePlan:
    """A plan for programs like `module` (scheduled HLO of a compile without one).

    `frozen` are prices of kernels, microseconds by fingerprint, that take precedence over the program's own;
    `pipeline` and `buckets` as in the plan.
    """
    costs = CostModel(target, parameters[0], dict(frozen or {}))
    program_lib.build(module, costs, parameters[0].domain_devices)
    return SchedulePlan(
        parameters=tuple(parameters),
        peak_flops=dict(target.peak_flops),
        hbm_bytes_per_s=target.hbm_bytes_per_s,
        costs=dict(sorted(costs.frozen.items())),
        memory_growth_bytes=memory_growth_bytes,
        pipeline=pipeline,
        buckets=buckets,
        probe=probe,
    )


def reschedule(module: Module, plan: SchedulePlan, *, spent_bytes: int = 0) -> tuple[bytes | None, Outcome]:
    """Looks for a better order of a scheduled module.

    `spent_bytes` of the plan's memory went to what was changed before the scheduler.

    Returns:
      The serialized HloModuleProto in the new order, or None when the given one stays; and the outcome.
    """
    costs = CostModel(plan, plan.parameters[0], dict(plan.costs))
    program = program_lib.build(module, costs, plan.parameters[0].domain_devices)
    models = [p.comm_json() for p in plan.parameters]
    entry = program.json["entry"]
    peak = request(action="simulate", program=program.json, models=models[:1])["peaks"][entry]
    growth = max(0, plan.memory_growth_bytes - spent_bytes)

    def within(cap_bytes: int | None) -> dict[str, Any]:
        limit = {} if cap_bytes is None else {"cap_bytes": cap_bytes}
        return request(action="optimize", program=program.json, models=models, work=plan.work, **limit)

    answer = within(peak + growth)
    changed = any(answer["orders"])
    outcome = Outcome(
        changed=changed,
        before=tuple(t / 1e6 for t in answer["before"]),
        after=tuple(t / 1e6 for t in answer["after"]),
        peak_before=answer["peak_before"],
        peak_after=answer["peak_after"],
        tried=answer["tried"],
        over_cap=answer["over_cap"],
        wishes=_wishes(within, peak + growth, answer, plan.memory_growth_bytes) if plan.probe else (),
    )
    return (program_lib.write_orders(module, program, answer["orders"]) if changed else None), outcome


def _wishes(
    within: Callable[[int | None], Mapping[str, Any]], cap: int, found: Mapping[str, Any], growth: int
) -> tuple[Wish, ...]:
    """What orders over the cap would save: the fastest of all, and within parts of what that one needs more."""
    before, after = found["before"], found["after"]

    def gain(answer: Mapping[str, Any], over: Sequence[float]) -> float:
        if any(new > old for new, old in zip(answer["after"], over, strict=True)):
            return 0.0
        return (sum(over) - sum(answer["after"])) / len(over)

    def wish(answer: Mapping[str, Any]) -> Wish | None:
        more = answer["peak_after"] - cap
        if more <= 0 or gain(answer, after) < _WORTHWHILE * min(after):
            return None
        return Wish(more, gain(answer, before) / 1e6, growth + more)

    wishes = [wish(within(None))]
    if wishes[0] is not None:
        wishes += [wish(within(cap + int(wishes[0].bytes * part))) for part in _PARTS]
    return tuple(dict.fromkeys(w for w in wishes if w is not None))
