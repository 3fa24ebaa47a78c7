"""Which build of farrier runs."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pathlib

__all__ = ["digest"]


@functools.cache
def digest() -> str:
    """Digest of the installed farrier's code, 16 hex digits: a version has many states while it is worked on."""
    import farrier._src

    found = hashlib.sha256()
    for root in sorted(pathlib.Path(p).parent for p in farrier._src.__path__):
        for f in sorted(root.rglob("*")):
            if f.suffix in (".py", ".so") and f.is_file():
                found.update(f.relative_to(root).as_posix().encode() + b"\0" + f.read_bytes())
    core = importlib.util.find_spec("farrier._core")
    if core is not None and core.origin is not None:
        found.update(pathlib.Path(core.origin).read_bytes())
    return found.hexdigest()[:16]
