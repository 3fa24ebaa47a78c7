"""Acknowledgements: regressions that somebody decided to accept, why, and until when."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import pathlib
from collections.abc import Mapping
from typing import Any

import tomlkit
import tomlkit.exceptions

from farrier._src.bench.result import write_text
from farrier._src.gate.baseline import GateError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acknowledgement:
    """One accepted regression.

    Attributes:
      case: glob over result ids (``case@target/options``).
      metric: glob over metric names.
      up_to: the worst value that is accepted, in the metric's unit; ``None`` accepts any.
      reason: why, for whoever reads it later.
      expires: the last day it counts.
    """

    case: str
    metric: str
    reason: str
    expires: datetime.date
    up_to: float | None = None

    def covers(self, result_id: str, metric: str, value: float, direction: str) -> bool:
        """Whether it names this metric of this result and ``value`` is no worse than accepted."""
        if not (fnmatch.fnmatchcase(result_id, self.case) and fnmatch.fnmatchcase(metric, self.metric)):
            return False
        if self.up_to is None:
            return True
        return value >= self.up_to if direction == "higher" else value <= self.up_to


def default_path(baseline: pathlib.Path) -> pathlib.Path:
    """Returns where a baseline's acknowledgements are kept."""
    return baseline.with_suffix(".acknowledged.toml")


def load(path: str | pathlib.Path) -> list[Acknowledgement]:
    """Reads acknowledgements; no file means none.

    Raises:
      GateError: the file is no TOML, or an entry lacks its reason or expiry.
    """
    path = pathlib.Path(path)
    try:
        data = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, tomlkit.exceptions.TOMLKitError) as e:
        raise GateError(f"cannot read acknowledgements {path}: {e}") from e
    entries = data.get("acknowledge", [])
    if set(data) - {"acknowledge"} or not isinstance(entries, list):
        raise GateError(f"acknowledgements {path}: only [[acknowledge]] entries are known")
    return [_entry(e, n, path) for n, e in enumerate(entries, 1)]


def _entry(data: Mapping[str, Any], number: int, path: pathlib.Path) -> Acknowledgement:
    where = f"{path}, entry {number}"
    known = {f.name for f in dataclasses.fields(Acknowledgement)}
    if unknown := sorted(set(data) - known):
        raise GateError(f"unknown {unknown}; known are {sorted(known)}", where=where)
    for key in ("case", "metric", "reason", "expires"):
        if not data.get(key):
            raise GateError(f"has no {key}", where=where, hint="give case, metric, reason and expires")
    if not isinstance(data["expires"], datetime.date) or isinstance(data["expires"], datetime.datetime):
        raise GateError(
            f"expires is {data['expires']!r}", where=where, hint="write a date without quotes: 2026-12-31"
        )
    return Acknowledgement(**data)


def append(path: str | pathlib.Path, entry: Acknowledgement) -> None:
    """Adds one entry to the file, which is made if there is none; what it holds stays as it is.

    Raises:
      GateError: the file is damaged, or the reason is empty.
    """
    path = pathlib.Path(path)
    if not entry.reason.strip():
        raise GateError("an acknowledgement needs a reason")
    load(path)
    doc = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    entries = doc.setdefault("acknowledge", tomlkit.aot())
    table = tomlkit.table()
    for f in dataclasses.fields(entry):
        value = getattr(entry, f.name)
        if value is not None:
            table[f.name] = value
    entries.append(table)
    write_text(path, tomlkit.dumps(doc))
