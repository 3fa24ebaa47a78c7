"""CPU time of farrier's own passes: deciding and rewriting, without the compiles that a search asks for."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from farrier._src import pipeline
from farrier._src.bench.timing import cpu_seconds

# What a driver finds in its context that is XLA's work and not the pass's.
_COMPILES = ("measure", "compile")


class PassTimes:
    """CPU seconds that each pass took for all its decisions and rewrites, by the pass's name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @property
    def total(self) -> float:
        """CPU seconds of all passes."""
        return sum(self.seconds.values())

    def add(self, name: str, seconds: float) -> None:
        """Adds CPU seconds to those of pass ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@contextlib.contextmanager
def recorded() -> Iterator[PassTimes]:
    """Counts the passes of the functions that are lowered meanwhile in this context."""
    times = PassTimes()
    token = pipeline.DRIVER_WRAPPER.set(lambda driver: _Timed(driver, times))
    try:
        yield times
    finally:
        pipeline.DRIVER_WRAPPER.reset(token)


class _Timed:
    """A driver whose deciding and ``apply`` are counted; everything else is the driver's own."""

    def __init__(self, driver: Any, times: PassTimes):
        self._driver, self._times = driver, times

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        return functools.partial(self._decided, found) if name == "alternatives" else found

    def plan(self, module: Any, context: Any, **options: Any) -> Any:
        return self._decided(self._driver.plan, module, context, **options)

    def _decided(self, decide: Callable[..., Any], module: Any, context: Any, **options: Any) -> Any:
        elsewhere = 0.0

        def uncounted(work: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal elsewhere
                start = cpu_seconds()
                try:
                    return work(*args, **kwargs)
                finally:
                    elsewhere += cpu_seconds() - start

            return run

        compiles = {
            name: uncounted(getattr(context, name))
            for name in _COMPILES
            if getattr(context, name, None) is not None
        }
        start = cpu_seconds()
        try:
            return decide(module, dataclasses.replace(context, **compiles), **options)
        finally:
            self._times.add(self._driver.name, cpu_seconds() - start - elsewhere)

    def apply(self, module: Any, plan: Any, **options: Any) -> Any:
        start = cpu_seconds()
        try:
            return self._driver.apply(module, plan, **options)
        finally:
            self._times.add(self._driver.name, cpu_seconds() - start)
