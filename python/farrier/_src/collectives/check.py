"""Do the processes of a job issue matching collectives?

NCCL pairs collectives by the order in which each rank issues them on a communicator; nothing checks that
ranks agree. Ranks that issue different ones wait for each other for ever, or exchange the wrong bytes.
This module lists what each process's program issues and plays it through: a collective happens when
every member of its group is at a matching one. Where nobody can go on, the job hangs, and the first
collective that a rank waits for in vain is the divergence. Programs that differ in anything else
(kernels, names, source lines) run to the end and are reported as merely different.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from farrier._src import errors
from farrier._src.collectives import groups
from farrier._src.collectives.program import collective_of, device_count, kind_of, scheduled_instructions
from farrier._src.collectives.schedule import source_line
from farrier._src.hlo import Computation, Instruction, Module

# A loop's collectives repeat; this many rounds show any mismatch between loops of equal trip count.
_ROUNDS = 2
# What is played at most, so that a loop of a million rounds ends.
_MOST = 200_000


@dataclasses.dataclass(frozen=True)
class Issue:
    """One collective as a process issues it."""

    kind: str
    shape: str
    """Element type numbers and dimensions of the result."""
    groups: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]
    """Of a permute."""
    channel: int
    name: str
    op_name: str
    source: str
    loops: tuple[tuple[str, int], ...]
    """The loops around it, outermost first: name and trip count."""

    def matches(self, other: Issue) -> bool:
        """Whether two ranks that are at these two exchange the same thing."""
        return (self.kind, self.shape, self.groups, self.pairs) == (
            other.kind,
            other.shape,
            other.groups,
            other.pairs,
        )

    def describe(self) -> str:
        """One line for people."""
        where = f" at {self.source}" if self.source else ""
        loops = "".join(f" in loop {name} ({trips} rounds)" for name, trips in self.loops)
        return f"{self.kind} {self.name} of {self.shape}{loops}{where}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a comparison found."""

    status: str
    """``same``, ``differ`` (harmless) or ``deadlock``."""
    message: str
    process: int | None = None
    """A process that waits in vain."""
    other: int | None = None
    """The process that it waits for."""
    issue: Issue | None = None
    other_issue: Issue | None = None
    """What that one is at; None when it has ended."""


def _shape(i: Instruction) -> str:
    def one(s: Any) -> str:
        if s.tuple_shapes:
            return "(" + ", ".join(one(t) for t in s.tuple_shapes) + ")"
        return f"{_TYPES.get(s.element_type, f'type{s.element_type}')}[{','.join(map(str, s.dimensions))}]"

    return one(i.proto.shape)


_TYPES = {
    1: "pred", 2: "s8", 3: "s16", 4: "s32", 5: "s64", 6: "u8", 7: "u16", 8: "u32", 9: "u64", 10: "f16",
    11: "f32", 12: "f64", 16: "bf16",
}  # fmt: skip


def issues(module: Module) -> list[Issue]:
    """The collectives of one process's program in the order in which it issues them.

    Loops are walked `_ROUNDS` times at most; a conditional's branches are all walked, since ranks that
    take different ones are beyond what the programs say.
    """
    sequences = scheduled_instructions(module)
    devices = device_count(module)
    result: list[Issue] = []

    def walk(c: Computation, loops: tuple[tuple[str, int], ...]) -> None:
        for i in sequences[c.id]:
            if len(result) >= _MOST:
                return
            if i.opcode == "while":
                trips = i.trip_count
                for _ in range(_ROUNDS if trips is None else min(trips, _ROUNDS)):
                    for called in reversed(i.called):
                        walk(called, (*loops, (i.name, -1 if trips is None else trips)))
                continue
            collective = collective_of(i)
            if collective is not None:
                result.append(_issue(module, i, collective, devices, loops))
            elif i.opcode in ("call", "conditional"):
                for called in i.called:
                    walk(called, loops)

    walk(module.entry, ())
    return result


def _issue(module: Module, i: Instruction, collective: Instruction, devices: int, loops) -> Issue:
    pairs = tuple((p.source, p.target) for p in collective.proto.source_target_pairs)
    listed = () if pairs else groups.replica_groups(collective, devices)
    return Issue(
        kind=kind_of(collective),
        shape=_shape(collective),
        groups=tuple(tuple(int(d) for d in g) for g in listed),
        pairs=pairs,
        channel=collective.proto.channel_id,
        name=i.name,
        op_name=i.proto.metadata.op_name or collective.proto.metadata.op_name,
        source=source_line(module, i) or source_line(module, collective),
        loops=loops,
    )


def compare(programs: Sequence[Sequence[Issue]], devices: int) -> Verdict:
    """Plays the processes' collectives against each other.

    Args:
      programs: by process, what it issues; device d belongs to process d * len(programs) // devices.
      devices: devices of the job.

    Raises:
      farrier.Error: the devices do not divide among the processes.
    """
    count = len(programs)
    if count < 2 or devices % count:
        raise errors.InputError(
            f"{devices} devices do not divide among {count} dumps",
            hint="give one dump per process, in the order of jax.process_index()",
        )
    share = devices // count
    largest = max((d for p in programs for i in p for g in (*i.groups, *i.pairs) for d in g), default=0)
    if largest >= devices:
        raise errors.InputError(
            f"a collective names device {largest} of {devices}",
            hint="say how many devices the job has (--devices)",
        )
    at = [0] * count
    while True:
        heads = [p[k] if k < len(p) else None for p, k in zip(programs, at, strict=True)]
        if all(h is None for h in heads):
            break
        # All devices of a process are at the same instruction, so a process moves when for every group
        # that has one of its devices all other members' processes are at a matching one.
        ready = [h is not None and _partner(h, p, heads, share) is None for p, h in enumerate(heads)]
        if not any(ready):
            return _stuck(heads, share)
        for p, ok in enumerate(ready):
            at[p] += ok
    if all(_essence(p) == _essence(programs[0]) for p in programs):
        return Verdict(
            "same", f"{count} processes issue the same {len(programs[0])} collectives in the same order"
        )
    other = next(k for k, p in enumerate(programs) if _essence(p) != _essence(programs[0]))
    where = next(
        (a, b)
        for a, b in zip(_padded(programs[0]), _padded(programs[other]), strict=False)
        if a is None or b is None or _key(a) != _key(b)
    )
    return Verdict(
        "differ",
        f"the programs of processes 0 and {other} differ and still run to the end: process 0 has "
        f"{_text(where[0])}, process {other} has {_text(where[1])}",
        0,
        other,
        where[0],
        where[1],
    )


def _padded(issues: Sequence[Issue]) -> list[Issue | None]:
    return [*issues, None]


def _text(issue: Issue | None) -> str:
    return "ended" if issue is None else issue.describe()


def _key(i: Issue) -> tuple[Any, ...]:
    return (i.kind, i.shape, i.groups, i.pairs, i.channel, i.name, i.source, i.loops)


def _essence(issues: Sequence[Issue]) -> list[tuple[Any, ...]]:
    return [_key(i) for i in issues]


def _peers(issue: Issue, process: int, share: int) -> set[int]:
    mine = range(process * share, (process + 1) * share)
    found: set[int] = set()
    for group in issue.groups:
        members = {d // share for d in group}
        if any(d in mine for d in group):
            found |= members
    for a, b in issue.pairs:
        if a in mine or b in mine:
            found |= {a // share, b // share}
    return found - {process}


def _partner(issue: Issue, process: int, heads: Sequence[Issue | None], share: int) -> int | None:
    """The first process that `process` waits for in vain now; None when it can go on."""
    for peer in sorted(_peers(issue, process, share)):
        head = heads[peer]
        if head is None or not issue.matches(head):
            return peer
    return None


def _stuck(heads: Sequence[Issue | None], share: int) -> Verdict:
    for process, head in enumerate(heads):
        if head is None:
            continue
        peer = _partner(head, process, heads, share)
        if peer is not None:
            return Verdict(
                "deadlock",
                f"process {process} waits for ever: it is at {head.describe()}, and process {peer} "
                f"{'has ended' if heads[peer] is None else 'is at ' + heads[peer].describe()}",
                process,
                peer,
                head,
                heads[peer],
            )
    raise errors.InternalError("no process can go on and none waits")


def to_json(found: Sequence[Issue]) -> str:
    """A process's issues as text, for another process to read."""
    return json.dumps([dataclasses.asdict(i) for i in found])


def from_json(text: str) -> list[Issue]:
    """What `to_json` gave."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return [Issue(**{k: tuples(v) for k, v in row.items()}) for row in json.loads(text)]


_rounds = collections.Counter[str]()


def check_live(compiled: Any, *, timeout_s: float = 300.0) -> Verdict:
    """Compares an executable with the other processes' of a running job, before its first call.

    Every process calls this with its own ``jax.stages.Compiled``, in the same order.

    Args:
      compiled: what ``jitted.lower(...).compile()`` gave.
      timeout_s: how long to wait for the others, seconds.

    Raises:
      farrier.Error: the collectives would hang; the message names the first divergence. Or a process did
      not answer.
    """
    from farrier._src import compat

    module = Module.from_executable(compiled.runtime_executable())
    own = issues(module)
    client, rank = compat.distributed_client()
    if client is None:
        return Verdict("same", "one process: nothing to compare")
    import jax

    processes = jax.process_count()
    prefix = f"farrier/check-collectives/{_rounds['live']}"
    _rounds["live"] += 1
    client.key_value_set(f"{prefix}/{rank}", to_json(own))
    programs = []
    for peer in range(processes):
        if peer == rank:
            programs.append(own)
            continue
        text = compat.key_value_get(client, f"{prefix}/{peer}", timeout_s)
        if text is None:
            raise errors.DistributedError(
                f"process {peer} did not say which collectives it issues within {timeout_s:.0f} s",
                hint="every process must call check_live for the same executables in the same order",
            )
        programs.append(from_json(text))
    verdict = compare(programs, max(device_count(module), processes))
    if verdict.status == "deadlock":
        raise errors.DistributedError(
            verdict.message, hint="make the traced function the same on every process"
        )
    return verdict
