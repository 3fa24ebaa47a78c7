"""The schedule as XLA ordered it, with predicted times: what computes, what communicates, what waits.

One step is walked in XLA's order on a clock. Kernels run one after another on the compute stream. A start
hands its work to the stream of its kind (collectives share one, host copies another) and goes on; the
matching done waits for what is left of it: that is exposed communication. Loops run their body once on the
clock, and the other iterations follow as one block of equal length.
"""

from __future__ import annotations

import dataclasses

from farrier._src import hlo
from farrier._src.hlo import totals
from farrier._src.report import cost as cost_lib
from farrier._src.report import origin
from farrier._src.report.program import Program

COMPUTE, COMMUNICATION, COPY, WAIT, LOOP = "compute", "communication", "copy", "wait", "loop"
TRACKS = (LOOP, COMPUTE, WAIT, COMMUNICATION, COPY)


@dataclasses.dataclass(frozen=True)
class Slice:
    """A stretch of one track. Slices of a track never overlap, loops excepted: those nest."""

    track: str
    name: str
    position: int
    """The instruction's place in program order; of a loop, the while's."""
    start_ns: float
    duration_ns: float
    kind: str
    """``gemm``, ``fusion``, ``all-gather``, ..., ``iteration`` and ``more iterations`` of a loop."""
    source: str = ""
    exposed_ns: float = 0.0
    """Of a communication: how much of it the compute stream waits for."""
    done: int | None = None
    """Of an asynchronous operation: the position of its done."""
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A predicted step on one device; times in nanoseconds."""

    slices: tuple[Slice, ...]
    step_ns: float
    compute_ns: float
    communication_ns: float
    exposed_ns: float
    """Time in which the device waits for communication and does nothing else."""


@dataclasses.dataclass
class _Clock:
    now: float = 0.0
    compute: float = 0.0
    communication: float = 0.0
    exposed: float = 0.0
    stream: dict[str, float] = dataclasses.field(default_factory=dict)
    flying: dict[int, tuple[float, int, float, str, str]] = dataclasses.field(default_factory=dict)


def kind_of(i: hlo.Instruction, model: cost_lib.CostModel) -> str:
    """What sort of work an instruction is, for colours and grouping."""
    collective = origin.collective(i)
    if collective:
        return collective
    if i.opcode == "fusion":
        return "gemm" if model.flops(i) else "fusion"
    if i.opcode == "custom-call":
        target = i.proto.custom_call_target
        return "attention" if "fmha" in target else "gemm" if model.flops(i) else "custom-call"
    return "copy" if i.opcode in ("copy", "copy-start") else i.opcode


def simulate(program: Program, model: cost_lib.CostModel) -> Schedule:
    """Runs one step on the clock."""
    return _Simulation(program, model).run()


class _Simulation:
    def __init__(self, program: Program, model: cost_lib.CostModel):
        self.program, self.model = program, model
        self.slices: list[Slice] = []

    def run(self) -> Schedule:
        clock = _Clock()
        self._computation(self.program.module.entry, clock)
        end = max([clock.now, *clock.stream.values()])
        self.slices.sort(key=lambda s: (s.start_ns, -s.duration_ns, s.position))
        return Schedule(tuple(self.slices), end, clock.compute, clock.communication, clock.exposed)

    def _computation(self, computation: hlo.Computation, clock: _Clock) -> None:
        for i in self.program.sequence(computation):
            self._instruction(i, clock)

    def _instruction(self, i: hlo.Instruction, clock: _Clock) -> None:
        opcode = i.opcode
        if opcode == "while":
            self._loop(i, clock)
        elif opcode == "conditional" and i.called:
            self._branches(i, clock)
        elif opcode == "call":
            for c in i.called:
                self._computation(c, clock)
        elif opcode.endswith("-start"):
            self._start(i, clock)
        elif opcode.endswith("-done"):
            self._done(i, clock)
        elif origin.collective(i) and opcode != "async-update":
            self._start(i, clock)
            self._finish(i, i, clock)
        elif self.model.launches(i):
            c = self.model.cost(i)
            self._add(COMPUTE, i, clock.now, c.ns, model=c.model)
            clock.now += c.ns
            clock.compute += c.ns

    def _start(self, i: hlo.Instruction, clock: _Clock) -> None:
        if i.opcode == "async-start" and not origin.collective(i):
            # Compute or host work on another stream of XLA's: it has no overlap model of ours.
            for c in i.called:
                self._computation(c, clock)
            return
        track = COPY if i.opcode == "copy-start" else COMMUNICATION
        c = self.model.cost(i)
        begin = max(clock.now, clock.stream.get(track, 0.0))
        clock.stream[track] = begin + c.ns
        clock.flying[i.proto.id] = (begin, self.program.position.get(i.proto.id, 0), c.ns, track, c.model)
        if track == COMMUNICATION:
            clock.communication += c.ns
        if totals.is_synchronous(i):
            self._finish(i, i, clock)

    def _done(self, i: hlo.Instruction, clock: _Clock) -> None:
        start = i.operands[0] if i.operands else None
        while start is not None and start.opcode in ("async-update", "get-tuple-element") and start.operands:
            start = start.operands[0]
        if start is not None:
            self._finish(start, i, clock)

    def _finish(self, start: hlo.Instruction, done: hlo.Instruction, clock: _Clock) -> None:
        found = clock.flying.pop(start.proto.id, None)
        if found is None:
            return
        begin, _, ns, track, model = found
        wait = max(0.0, begin + ns - clock.now)
        at = self.program.position.get(done.proto.id)
        self._add(track, start, begin, ns, exposed_ns=wait, done=at, model=model)
        if wait > 0:
            self._add(WAIT, start, clock.now, wait, kind="wait", done=at)
            clock.exposed += wait
            clock.now += wait

    def _loop(self, i: hlo.Instruction, clock: _Clock) -> None:
        trips = i.trip_count if i.trip_count is not None else 1
        before = dataclasses.replace(clock, stream=dict(clock.stream), flying={})
        begin = clock.now
        for c in sorted(i.called, key=lambda c: c.root is None or c.root.proto.shape.element_type != 1):
            self._computation(c, clock)
        once = clock.now - begin
        more = max(0, trips - 1)
        if trips > 1 and once > 0:
            self._add(LOOP, i, begin, once, kind="iteration")
            self._add(LOOP, i, begin + once, once * more, kind="more iterations")
        elif once > 0:
            self._add(LOOP, i, begin, once, kind="iteration")
        clock.now += once * more
        clock.compute += (clock.compute - before.compute) * more
        clock.communication += (clock.communication - before.communication) * more
        clock.exposed += (clock.exposed - before.exposed) * more
        for track, until in clock.stream.items():
            if until > before.stream.get(track, 0.0):
                clock.stream[track] = until + once * more

    def _branches(self, i: hlo.Instruction, clock: _Clock) -> None:
        """Takes the slowest branch: each is tried on a clock of its own first."""
        trials = []
        for k, c in enumerate(i.called):
            trial = _Simulation(self.program, self.model)
            own = _Clock(now=clock.now, stream=dict(clock.stream))
            trial._computation(c, own)
            trials.append((own.now, -k))
        self._computation(i.called[-max(trials)[1]], clock)

    def _add(
        self, track: str, i: hlo.Instruction, start: float, ns: float, *, kind: str = "", **fields: object
    ) -> None:
        self.slices.append(
            Slice(
                track=track,
                name=i.name,
                position=self.program.position.get(i.proto.id, 0),
                start_ns=start,
                duration_ns=ns,
                kind=kind or kind_of(i, self.model),
                source=self.program.source(i),
                **fields,  # type: ignore[arg-type]
            )
        )
