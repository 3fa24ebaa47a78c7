"""Executables that a search compiled, so that JAX need not compile the chosen program once more.

The search compiles every program that it judges, and what it chooses is what JAX compiles next: the same text but
for the module's name, the same options, the same devices. When all of that is equal JAX gets the executable that is
there already. JAX's own persistent cache lies above this and works as ever.
"""

from __future__ import annotations

import collections
import hashlib
import re
import threading
from collections.abc import Sequence
from typing import Any

from farrier._src import compat

__all__ = ["forget", "keep"]

# The programs that a search compiled last: the one it chooses is nearly always among them.
_KEPT = 2

_NAME = re.compile(rb"module @\S+")
_lock = threading.Lock()
_executables: collections.OrderedDict[str, Any] = collections.OrderedDict()


def keep(module: Any, devices: Sequence[Any], options: Any, executable: Any) -> None:
    """Keeps an executable for the compile that JAX may ask for next.

    Args:
      module: the jaxlib module that was compiled, as it was before the compile.
      devices: what it was compiled for, in the order of the assignment.
      options: jaxlib's CompileOptions.
      executable: what the compile gave.
    """
    compat.instead_of_compiles(_take)
    key = _key(module, devices, options)
    with _lock:
        _executables[key] = executable
        while len(_executables) > _KEPT:
            _executables.popitem(last=False)


def forget() -> None:
    """Lets go of what is kept: nothing will ask for it."""
    with _lock:
        _executables.clear()


def _take(name: str, module: Any, devices: Sequence[Any], options: Any) -> Any | None:
    """The executable of exactly this program, or None. JAX holds on to it from here on."""
    if "_farrier_" not in name or not _executables:
        return None
    key = _key(module, devices, options)
    with _lock:
        found = _executables.pop(key, None)
        if found is not None:
            _executables.clear()
    return found


def _key(module: Any, devices: Sequence[Any], options: Any) -> str:
    # Locations decide nothing, and the name carries the plan's fingerprint only in what JAX compiles.
    text = module.operation.get_asm(binary=True, enable_debug_info=False)
    digest = hashlib.sha256(_NAME.sub(b"module", text, count=1))
    digest.update(options.SerializeAsString())
    digest.update(repr([(device.client.platform_version, device.id) for device in devices]).encode())
    return digest.hexdigest()
