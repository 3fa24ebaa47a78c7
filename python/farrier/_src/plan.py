"""Plans: what was decided for one function, as a small versioned JSON.

Deciding (the search) and applying are apart. A plan is text that a pull request can show; applying
it needs no compile, and it refuses, by name, a program that it does not fit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from farrier._src import errors

__all__ = ["FORMAT", "Plan"]

FORMAT = 1
_KIND = "farrier.plan"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Decisions for one function on one kind of device.

    Attributes:
      function: the function's name.
      passes: per pass, in the order of application, the pass's own JSON. Its keys name values of
        the program by what survives unrelated edits, not by position. Empty: the original is best.
      fallback: why the original runs although something was asked for, or None. A fallback is part
        of the plan so that all processes of a job decide alike.
      input_fingerprint: sha256 hex of the program that was planned for.
      output_fingerprint: sha256 hex of the program that applying the plan gave.
      platform: what the program was lowered for, "cuda" or "cpu".
      partitions: number of devices that the program is partitioned over.
      options: the options that the decisions depend on (target, budget, numerics, ...).
      versions: versions of everything that took part.
      measured: what the search measured with XLA, in bytes, FLOPs and seconds; for reading only.
    """

    function: str
    passes: Mapping[str, Any]
    input_fingerprint: str
    output_fingerprint: str
    platform: str
    partitions: int
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    fallback: str | None = None
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; :meth:`from_json` is its inverse."""
        return {"kind": _KIND, "format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: Any, *, where: str | None = None) -> Plan:
        """The plan in a JSON object.

        Raises:
          farrier.PlanError: it is not a plan, or of a format that this farrier does not know.
        """
        if not isinstance(value, Mapping) or value.get("kind") != _KIND:
            raise errors.PlanError(
                "this is not a farrier plan",
                where=where,
                hint="write one with step.plan(...).save(path)",
            )
        if value.get("format") != FORMAT:
            raise errors.PlanError(
                f"the plan has format {value.get('format')!r}; this farrier reads format {FORMAT}",
                where=where,
                hint="plan again with this farrier",
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        body = {name: item for name, item in value.items() if name not in ("kind", "format")}
        unknown = sorted(set(body) - set(fields))
        missing = sorted(
            name
            for name, field in fields.items()
            if name not in body
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if unknown or missing:
            raise errors.PlanError(
                "the plan is damaged: "
                + "; ".join(
                    f"{what} {', '.join(names)}"
                    for what, names in (("unknown entries", unknown), ("missing entries", missing))
                    if names
                ),
                where=where,
            )
        for name in ("passes", "options", "versions"):
            if not isinstance(body[name], Mapping):
                raise errors.PlanError(f"the plan is damaged: {name!r} is not an object", where=where)
        return cls(**body)

    @property
    def fingerprint(self) -> str:
        """sha256 hex of what the plan decides: same decisions for the same program, same text."""
        decided = {
            "passes": self.passes,
            "fallback": self.fallback,
            "output": self.output_fingerprint,
        }
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()

    def dumps(self) -> str:
        """The text that :meth:`save` writes: sorted, indented, one decision per line."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan to a file, whole or not at all."""
        path = os.fspath(path)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".plan")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.dumps())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a saved plan.

        Raises:
          farrier.PlanError: the file does not exist or holds no plan.
        """
        path = os.fspath(path)
        try:
            with open(path, encoding="utf-8") as file:
                value = json.load(file)
        except OSError as error:
            raise errors.PlanError(f"cannot read the plan: {error.strerror}", where=path) from error
        except ValueError as error:
            raise errors.PlanError(f"the plan is not JSON: {error}", where=path) from error
        return cls.from_json(value, where=path)

    def __str__(self) -> str:
        return self.dumps()
