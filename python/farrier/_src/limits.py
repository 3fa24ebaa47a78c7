"""Limits on planning: wall time that ends in the original program, and memory that is checked beforehand.

A C++ pass cannot be interrupted from outside. So limited work runs on a thread of its own, on modules of its own:
when its time is up it is left behind, and what it makes later is dropped. Between compiles the search looks at the
clock itself and stops with the best plan it has. MLIR is built without exceptions, and dies where it cannot have
memory; so whether there is enough is asked before it starts.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

from farrier._src import errors

__all__ = ["Clock", "check_memory", "within"]

# Peak memory of planning, bytes for each operation of the program: benchmarks/trust/scale.py measures 0.8 kB
# at 10,000 and 2 kB at 100,000 for farrier-remat with its copies; four times that is asked for.
_BYTES_PER_OPERATION = 8000


class Clock:
    """When a search has to end."""

    def __init__(self, seconds: float | None):
        self._end = None if seconds is None else time.monotonic() + seconds

    def expired(self) -> bool:
        """Whether the time is up; never without a limit."""
        return self._end is not None and time.monotonic() >= self._end


def within(seconds: float | None, what: str, work: Callable[[], Any]) -> Any:
    """What ``work()`` returns or raises, if it ends within ``seconds`` (None: no limit, on this thread).

    ``work`` must touch nothing that is used after it was given up: it goes on until it ends by itself.

    Raises:
      farrier.PassError: the time is up.
    """
    if seconds is None:
        return work()
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="farrier-limited", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise errors.PassError(
            f"{what} took more than {seconds:g} s",
            hint="allow more with max_seconds= (the search) or max_pass_seconds= (each pass)",
        )
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def check_memory(operations: int, available: int | None = None) -> None:
    """Refuses a program that planning would run out of memory for.

    Args:
      operations: operations of the module.
      available: bytes that this process can still have; by default what the system and the limits say.

    Raises:
      farrier.PassError: there is not enough.
    """
    available = _available() if available is None else available
    need = operations * _BYTES_PER_OPERATION
    if available is not None and need > available:
        raise errors.PassError(
            f"planning {operations:,} operations takes about {need:,} bytes of this machine's memory and "
            f"{available:,} are left",
            hint="plan on a machine with more memory, save the plan and give it with plan=",
        )


def _available() -> int | None:
    found = []
    try:
        with open("/proc/meminfo") as file:
            found += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            with open("/proc/self/statm") as file:
                found.append(limit - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return None  # Not Linux: nothing is known.
    return min(found, default=None)
