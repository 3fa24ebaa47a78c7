"""CPU time of a piece of work, and of a fixed piece of work beside it."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable
from typing import Any


def cpu_seconds() -> float:
    """Returns the CPU time that this process and its ended children have used, in seconds.

    Unlike elapsed time it hardly depends on what else the machine does.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def calibrate() -> float:
    """Returns the CPU seconds of a fixed piece of work of about 10 ms: how fast this CPU is just now."""
    start = time.process_time()
    state, table = 12345, {}
    for n in range(20_000):
        # Integer arithmetic and scattered memory, as in a compiler.
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        table[state & 0xFFFF] = n
    sum(sorted(table.values())[::7])
    return time.process_time() - start


@dataclasses.dataclass
class Clock:
    """Collects samples of several timings, with a calibration for each."""

    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    calibration: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Runs ``work`` and adds its CPU seconds as a sample of metric ``name``."""
        # Before and after, the smaller: an interruption only ever adds.
        speed = calibrate()
        start = cpu_seconds()
        out = work()
        self.add(name, cpu_seconds() - start, min(speed, calibrate()))
        return out

    def add(self, name: str, seconds: float, speed: float) -> None:
        """Adds a sample that was taken elsewhere; ``speed`` is its :func:`calibrate`."""
        self.samples.setdefault(name, []).append(seconds)
        self.calibration.setdefault(name, []).append(speed)

    def metrics(self) -> dict[str, Any]:
        """Returns the noisy metrics that were timed, by name."""
        from farrier._src.bench.metric import sampled

        return {name: sampled(name, s, self.calibration[name]) for name, s in self.samples.items()}
