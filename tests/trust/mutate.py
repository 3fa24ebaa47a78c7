"""Damaged inputs, in numbers: ``python -m trust.mutate --cases 20000 --seed 0``.

Programs in every form that hlo-opt reads are mutated and truncated. Two doors:

* ``bindings``: mutated text into ``farrier._core``, passes, print. It must end in a result or an exception.
* ``front``: any form into what hlo-opt runs in its child. jaxlib's own readers may abort there; nothing may hang,
  or take more than 4 GB.

Cases run in forks of a warm process, with limits; so a death is seen, and costs one case.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

SECONDS = 10
MEMORY = 4 << 30
# Cases in one process.
BATCH = 400
# Small programs that between them have loops, branches, calls, callbacks, shardings, odd types and constants.
PROGRAMS = ("scans", "branches", "nested_calls", "barriers", "donated", "decoder_step_scanned")
PIPELINE = (
    "builtin.module(cse,canonicalize,farrier-simplify-collectives,farrier-fusion{min-bytes=0},"
    "farrier-remat{stress=1 small-bytes=1},farrier-remat-loops{save=0.5 sink-bytes=1})"
)
_TOKENS = (
    b"f32", b"bf16", b"i1", b"i32", b"ui8", b"complex<f32>", b"0", b"-1", b"9223372036854775807", b"4", b"x", b"?",
    b"tensor<", b">", b"[", b"]", b"(", b")", b"{", b"}", b"%0", b"%arg0", b"^bb0", b"dense<", b"stablehlo.add",
    b"stablehlo.while", b"stablehlo.reduce", b"stablehlo.dot_general", b"stablehlo.return", b"array<i64: 7>", b"@main",
)  # fmt: skip


def corpus() -> dict[str, list[bytes]]:
    """Every form of a few programs."""
    import jax
    import programs
    from farrier._src import interchange
    from farrier._src.cli import hlo_opt_child as child
    from jax import export

    result: dict[str, list[bytes]] = collections.defaultdict(list)
    for name in PROGRAMS:
        program = programs.get(name)
        module = program.module()
        source = child.Input("mlir-text", module=module)
        result["generic text"].append(interchange.print_module(module, locations=True))
        for form in ("stablehlo", "bytecode", "artifact", "hlo-text", "hlo-proto"):
            result[form].append(child.emit(source, form, locations=False))
        function, arguments = program.build()
        jitted = function if hasattr(function, "trace") else jax.jit(function)
        result["export"].append(bytes(export.export(jitted)(*arguments).serialize()))
    return dict(result)


def mutated(data: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """A damaged copy."""
    data = bytearray(data)
    for _ in range(1 + draw.randrange(4)):
        at = draw.randrange(len(data) + 1)
        size = 1 + draw.randrange(draw.choice((1, 8, 64, 1024)))
        kind = draw.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            del data[max(at, 1) :]
        elif kind == 5:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            data[at : at + size] = other[start : start + size]
        else:
            token = draw.choice(_TOKENS)
            spot = data.find(draw.choice(_TOKENS), at)
            spot = at if spot < 0 else spot
            data[spot : spot + len(token) * (kind - 6)] = token
        if not data:
            return b""
    return bytes(data)


def bindings(data: bytes) -> str:
    from farrier import _core

    try:
        module = _core.Module.parse(data)
        module.run(PIPELINE)
        module.print()
    except (_core.DiagnosticError, UnicodeDecodeError, ValueError):
        return "refused"
    return "accepted"


def front(data: bytes) -> str:
    from farrier._src import errors
    from farrier._src.cli import hlo_opt_child as child

    request = {"name": "input", "passes": [], "emit": None, "stage": "stablehlo", "platform": "cpu"}
    try:
        child.convert(request, data, 2)
    except (child.Failed, errors.Error):
        return "refused"
    return "accepted"


def _elsewhere(work: Any) -> Any:
    """What ``work()`` returns, bytes in lists in an object, made in a fork."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            with os.fdopen(write, "w") as file:
                json.dump({name: [data.hex() for data in group] for name, group in work().items()}, file)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as file:
        made = json.load(file)
    os.waitpid(pid, 0)
    return {name: [bytes.fromhex(data) for data in group] for name, group in made.items()}


@dataclasses.dataclass(frozen=True)
class Cases:
    """The cases of a seed, each made from its number alone."""

    seed: int
    forms: dict[str, list[bytes]]

    def __getitem__(self, number: int) -> tuple[str, str, bytes]:
        """Door, form and bytes."""
        draw = random.Random(self.seed * 1_000_003 + number)
        form = draw.choice(("generic text", "generic text", "stablehlo", *sorted(self.forms)))
        door = "bindings" if form in ("generic text", "stablehlo") and draw.randrange(4) else "front"
        everything = [data for group in self.forms.values() for data in group]
        return door, form, mutated(draw.choice(self.forms[form]), draw, everything)


DOORS = {"bindings": bindings, "front": front}


def _work(cases: Cases, numbers: range, report: int) -> None:
    """In a fork: tells each case's number before it, and its outcome and peak memory after."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Address space, of which jaxlib alone maps gigabytes.
    resource.setrlimit(resource.RLIMIT_AS, (3 * MEMORY, 3 * MEMORY))
    for number in numbers:
        door, _, data = cases[number]
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        os.write(report, f"start {number}\n".encode())
        try:
            outcome = DOORS[door](data)
        except Exception:
            outcome = "raised"
        peak = re.search(r"VmHWM:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())
        os.write(report, f"end {outcome} {int(peak[1]) * 1024}\n".encode())


def _processor_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _batch(cases: Cases, numbers: range) -> Iterator[tuple[int, str, int]]:
    """Number, outcome and peak memory of each case up to the first that its process does not survive."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            _work(cases, numbers, write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    # The case that runs, the process's seconds when it began, and the clock's.
    current, used, since, killed = None, 0.0, 0.0, False
    pending = b""
    while True:
        if select.select([read], [], [], 0.5)[0]:
            chunk = os.read(read, 1 << 16)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                word, *rest = line.decode().split()
                if word == "start":
                    current = int(rest[0])
                    used, since = _processor_seconds(pid), time.monotonic()
                else:
                    yield current, rest[0], int(rest[1])
                    current = None
        elif current is not None:
            # Processor time: other work on the machine is no hang. A wait for ever shows by the clock.
            # hlo-opt itself ends a reader after 10 s, which takes a moment.
            limit = SECONDS if cases[current][0] == "bindings" else SECONDS + 2
            over = _processor_seconds(pid) - used > limit or time.monotonic() - since > 12 * SECONDS
            if over and not killed:
                killed = True
                os.kill(pid, signal.SIGKILL)
    os.close(read)
    _, status, usage = os.wait4(pid, 0)
    if current is not None:
        number = os.waitstatus_to_exitcode(status)
        # hlo-opt's own limit on a reader ends it by SIGPROF.
        name = (
            "stopped"
            if number == -signal.SIGPROF
            else signal.Signals(-number).name
            if number < 0
            else "ended"
        )
        yield current, "hang" if killed else name, usage.ru_maxrss * 1024


def outcomes(cases: Cases, numbers: range) -> Iterator[tuple[int, str, int]]:
    """Number, outcome and peak memory (bytes) of each case.

    Processes of many cases each: a death costs one fork more. A case that ends its process is run once more in one
    of its own, so that no earlier case has a part in what is said of it.
    """
    start = numbers.start
    while start < numbers.stop:
        last = start - 1
        for number, outcome, memory in _batch(cases, range(start, min(start + BATCH, numbers.stop))):
            if outcome not in ("accepted", "refused") or memory > MEMORY:
                ((_, outcome, memory),) = _batch(cases, range(number, number + 1))
            yield number, outcome, memory
            last = number
        start = last + 1


def run(seed: int, first: int, count: int, keep: pathlib.Path | None = None) -> dict[str, Any]:
    """Counts by door and outcome; what must not happen is listed under "bad"."""
    counts: collections.Counter[str] = collections.Counter()
    bad, most, start = [], 0, time.monotonic()
    # Loaded before the forks; but no MLIR context is made here: its threads would be missing in a fork.
    from farrier._src.cli import hlo_opt_child  # noqa: F401

    cases = Cases(seed, _elsewhere(corpus))
    for number, outcome, memory in outcomes(cases, range(first, first + count)):
        door, form, data = cases[number]
        counts[f"{door}: {outcome}"] += 1
        most = max(most, memory)
        died = outcome not in ("accepted", "refused")
        if outcome == "hang" or memory > MEMORY or (died and door == "bindings"):
            bad.append({"case": number, "door": door, "form": form, "outcome": outcome, "memory": memory})
            if keep:
                (keep / f"bad-{seed}-{number}").write_bytes(data)
        if number % 1000 == 999:
            print(f"{number + 1}: {dict(counts)}, {len(bad)} bad", file=sys.stderr, flush=True)
    return {
        "seed": seed, "first": first, "cases": count, **dict(sorted(counts.items())), "peak_bytes": most,
        "seconds": round(time.monotonic() - start), "bad": bad,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the inputs of bad cases")
    arguments = parser.parse_args()
    result = run(arguments.seed, arguments.first, arguments.cases, arguments.keep)
    print(json.dumps(result, indent=1))
    return 1 if result["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
