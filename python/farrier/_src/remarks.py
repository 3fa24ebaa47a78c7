"""Remarks: what a pass decided, and why not where it did not, as plain data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

# MLIR prints a location as loc("name stack"(callsite("function"("file":line:column to :column) at ...))): the
# innermost frame comes first.
_FRAME = re.compile(r'"([^"]+)":(\d+):\d+')
_NAME = re.compile(r'loc\("([^"]*)"[(\)]')
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][-+]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Remark:
    """What a pass written in Python says, with the attributes of `farrier._core.Remark`."""

    pass_name: str
    message: str
    kind: str = "analysis"
    location: str | None = None
    operation: str = ""
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def milliseconds(seconds: float, digits: int = 2) -> str:
    """A time for a message, without its unit."""
    return f"{seconds * 1e3:.{digits}f}"


def to_json(remark: Any) -> dict[str, Any]:
    """A remark as JSON: a mapping, or an object with attributes like `farrier._core.Remark`'s.

    Returns:
      ``pass`` and ``name`` (what decided, and by which rule), ``kind`` (``applied``, ``missed``, ``analysis``,
      ``failed``), ``message``, ``location`` (``file:line`` of the user's code), ``operation`` (JAX's name stack)
      and ``args``, the figures, with numbers as numbers.
    """
    if isinstance(remark, Mapping):
        get = remark.get
    else:

        def get(name: str, default: Any = None) -> Any:
            return getattr(remark, name, default)

    location = str(get("location") or "")
    frame, name = _FRAME.search(location), _NAME.match(location)
    return {
        "pass": str(get("pass") or get("pass_name") or get("category") or ""),
        "name": str(get("name") or ""),
        "kind": str(get("kind") or "analysis"),
        "message": str(get("message") or ("" if isinstance(remark, Mapping) else remark)),
        "location": f"{frame[1]}:{frame[2]}" if frame else str(get("source") or _plain(location)),
        "operation": str(get("operation") or (name[1] if name and not _FRAME.match(location[4:]) else "")),
        "args": {str(k): _number(v) for k, v in dict(get("args") or {}).items()},
    }


def _plain(location: str) -> str:
    """A location that is no MLIR location, such as ``model.py:3``."""
    return "" if location == "unknown" or location.startswith("loc(") else location


def figures(args: Mapping[str, Any]) -> str:
    """The figures of a remark in one line."""
    return ", ".join(f"{k}={v}" for k, v in args.items())


def _number(value: Any) -> Any:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    return float(value) if set(value) & set(".eE") else int(value)
