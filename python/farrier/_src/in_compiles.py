"""What plans ask of XLA's compile, kept until JAX compiles the modules that carry their tags.

A plan is made when JAX lowers a function; XLA compiles it later, on whatever thread and through whatever
door (a call, ``.compile()``, an enclosing ``jit``). The module's name is what the two have in common.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from farrier._src import compat, pipeline

__all__ = ["register"]

_lock = threading.Lock()
_by_tag: dict[str, pipeline.Compiling] = {}


def register(tag: str, compiling: pipeline.Compiling) -> None:
    """Has every later compile of a module with ``tag`` in its name be made as ``compiling`` asks."""
    with _lock:
        _by_tag[tag] = compiling
    compat.around_compiles(_around)


def _around(name: str) -> contextlib.AbstractContextManager[dict[str, Any]] | None:
    if "farrier_" not in name:
        return None
    with _lock:
        # Functions within one another's jit share a module: its name carries all their tags.
        found = [(tag, one) for tag, one in _by_tag.items() if tag in name]
    return _together(found) if found else None


@contextlib.contextmanager
def _together(found: list[tuple[str, pipeline.Compiling]]):
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {}
        for tag, one in found:
            options.update(stack.enter_context(one.applied(tag)))
        yield options
