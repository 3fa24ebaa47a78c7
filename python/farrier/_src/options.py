"""The options of ``farrier.optimize``: one frozen record, validated when the decorator is applied."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any, Literal

from farrier._src import errors, pipeline
from farrier._src.plan import Plan

__all__ = ["NUMERICS", "OBJECTIVES", "Options", "parse_bytes"]

OBJECTIVES = ("time", "flops")
NUMERICS = ("bitwise", "bounded", "relaxed")  # each level allows what the ones before it allow

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str) -> int:
    """Bytes named by text such as ``"72GiB"`` (2^30) or ``"72 GB"`` (10^9).

    Raises:
      farrier.OptionError: the text is not a number with a unit of bytes.

    >>> parse_bytes("1.5KiB"), parse_bytes("2 kB")
    (1536, 2000)
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise errors.OptionError(
            f"{text!r} is not an amount of memory",
            hint='write a number of bytes or a text such as "72GiB", "800 MB"',
        )
    return round(float(match[1]) * _UNITS[match[2].lower()])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Validated options; see :func:`farrier.optimize` for what each means.

    Build it with :meth:`make`, which also takes the short forms (texts, names, paths).
    """

    memory_budget: int | float | None = None
    target: Any = None
    passes: tuple[Any, ...] = ()
    objective: Literal["time", "flops"] = "time"
    numerics: Literal["bitwise", "bounded", "relaxed"] = "bounded"
    plan: Plan | None = None
    max_compiles: int = 3
    max_seconds: float | None = None
    max_pass_seconds: float | None = None
    strict: bool = False
    cache_dir: str | None = None

    @classmethod
    def make(cls, **given: Any) -> Options:
        """Options from keyword arguments.

        Raises:
          farrier.OptionError: an unknown name (with the nearest known one), or a value that the
            option does not take.
          farrier.TargetError: an unknown target.
          farrier.PlanError: a plan file that is none.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in given:
            if name not in known:
                raise errors.OptionError.unknown(name, known, of="farrier.optimize")
        values = dict(given)
        values["memory_budget"] = _budget(given.get("memory_budget"))
        values["target"] = _target(given.get("target"))
        values["passes"] = _passes(given.get("passes"))
        values["plan"] = _plan(given.get("plan"))
        _one_of("objective", given.get("objective", "time"), OBJECTIVES)
        _one_of("numerics", given.get("numerics", "bounded"), NUMERICS)
        compiles = given.get("max_compiles", 3)
        if isinstance(compiles, bool) or not isinstance(compiles, int) or compiles < 0:
            raise errors.OptionError(f"max_compiles={compiles!r}: expected a number of compiles, 0 or more")
        for name in ("max_seconds", "max_pass_seconds"):
            value = given.get(name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or value <= 0
            ):
                raise errors.OptionError(f"{name}={value!r}: expected seconds, more than 0, or None")
        if not isinstance(given.get("strict", False), bool):
            raise errors.OptionError(f"strict={given['strict']!r}: expected True or False")
        directory = given.get("cache_dir")
        if directory is not None:
            try:
                values["cache_dir"] = os.fspath(directory)
            except TypeError:
                raise errors.OptionError(f"cache_dir={directory!r}: expected a path") from None
        return cls(**values)

    def describe(self) -> dict[str, Any]:
        """The options that decide a plan, as JSON: what a plan records and a cache key holds."""
        return {
            "memory_budget": self.memory_budget,
            "target": None if self.target is None else self.target.to_json(),
            "passes": [
                {"name": pipeline.pass_name(entry), "options": pipeline.pass_options(entry)}
                for entry in self.passes
            ],
            "objective": self.objective,
            "numerics": self.numerics,
            "max_compiles": self.max_compiles,
        }


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        guess = errors.nearest(value, allowed) if isinstance(value, str) else None
        raise errors.OptionError(
            f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}",
            hint=f"did you mean {guess!r}?" if guess else None,
        )


def _budget(value: Any) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, str):
        if match := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", value):
            value = float(match[1]) / 100
        else:
            value = parse_bytes(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.OptionError(
            f'memory_budget={value!r}: expected bytes, a text such as "72GiB", or a fraction'
        )
    if isinstance(value, float) and not 0 < value <= 1:
        if value > 1 and value.is_integer():
            return int(value)
        raise errors.OptionError(
            f"memory_budget={value!r}: a fraction of the device's memory lies in (0, 1]",
            hint="give an amount of memory as a whole number of bytes",
        )
    if isinstance(value, int) and value <= 0:
        raise errors.OptionError(f"memory_budget={value!r}: expected a positive number of bytes")
    return value


def _target(value: Any) -> Any:
    if value is None:
        return None
    from farrier._src.targets import Target

    if isinstance(value, Target):
        return value
    if isinstance(value, str | os.PathLike):
        return Target(value)
    raise errors.OptionError(f"target={value!r}: expected a name or a farrier.Target")


def _passes(value: Any) -> tuple[Any, ...]:
    if value is None:
        return pipeline.default_passes()
    if isinstance(value, str) or not isinstance(value, Sequence):
        value = (value,)
    chosen = []
    for entry in value:
        name = pipeline.pass_name(entry)
        if name in chosen:
            raise errors.OptionError(f"passes names {name!r} twice")
        chosen.append(name)
    return tuple(value)


def _plan(value: Any) -> Plan | None:
    if value is None or isinstance(value, Plan):
        return value
    if isinstance(value, str | os.PathLike):
        return Plan.load(value)
    raise errors.OptionError(f"plan={value!r}: expected a farrier.Plan or the path of a saved one")
