"""Results of benchmark runs, as they are written and read."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from farrier._src.bench.metric import Metric
from farrier._src.errors import Error

SCHEMA = "farrier-bench/1"

Status = Literal["ok", "failed", "crashed", "timeout", "out-of-memory", "unsupported"]


class ResultError(Error):
    """A results file is missing, damaged or of another format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one case measured for one target with one option set.

    Attributes:
      case, target, options: names; together the identity of the result.
      status: "ok", or how it failed. A failure is a result like any other.
      message: for a failure, what happened, during which phase.
      metrics: by name.
      fingerprint: of the module that XLA compiled.
      environment: versions that the result depends on.
      lines: bytes, kernels and exposed collectives per source line
        (:mod:`farrier._src.bench.lines`).
      cached: taken from the content cache, not measured in this run.
      wall_seconds: elapsed time of the child process.
    """

    case: str
    target: str
    options: str
    status: Status = "ok"
    message: str = ""
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lines: tuple[Mapping[str, Any], ...] = ()
    cached: bool = False
    wall_seconds: float = 0.0

    @property
    def id(self) -> str:
        """``case@target/options``: the name of the row in tables and baselines."""
        return f"{self.case}@{self.target}/{self.options}"

    def to_json(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {
            "case": self.case,
            "target": self.target,
            "options": self.options,
            "status": self.status,
            "message": self.message,
            "metrics": {k: m.to_json() for k, m in sorted(self.metrics.items())},
            "fingerprint": self.fingerprint,
            "environment": dict(sorted(self.environment.items())),
            "lines": [dict(line) for line in self.lines],
            "cached": self.cached,
            "wall_seconds": self.wall_seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Reads what :meth:`to_json` wrote.

        Raises:
          KeyError, TypeError: a field is missing or has another type.
        """
        return cls(
            case=data["case"],
            target=data["target"],
            options=data["options"],
            status=data["status"],
            message=data.get("message", ""),
            metrics={k: Metric.from_json(m) for k, m in data["metrics"].items()},
            fingerprint=data.get("fingerprint", ""),
            environment=data.get("environment", {}),
            lines=tuple(data.get("lines", ())),
            cached=data.get("cached", False),
            wall_seconds=data.get("wall_seconds", 0.0),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All results of one run of one suite.

    Attributes:
      suite: the suite's path as given.
      results: sorted by id.
      environment: versions, machine, calibration (strings).
      commit: ``id``, ``time`` (ISO 8601) and ``dirty`` of the repository the suite lies in.
      created: ISO 8601, UTC.
    """

    suite: str
    results: tuple[Result, ...]
    environment: Mapping[str, str]
    commit: Mapping[str, Any]
    created: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )

    def by_id(self) -> dict[str, Result]:
        """Returns the results by :attr:`Result.id`."""
        return {r.id: r for r in self.results}

    def to_json(self) -> dict[str, Any]:
        """Returns the run as JSON values (``docs/schema/results.schema.json``)."""
        return {
            "schema": SCHEMA,
            "suite": self.suite,
            "created": self.created,
            "commit": dict(self.commit),
            "environment": dict(sorted(self.environment.items())),
            "results": [r.to_json() for r in sorted(self.results, key=lambda r: r.id)],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """Reads what :meth:`to_json` wrote.

        Raises:
          ResultError: the data are not of this format.
        """
        found = data.get("schema") if isinstance(data, Mapping) else None
        if found != SCHEMA:
            raise ResultError(
                f"results have schema {found!r}, this farrier reads {SCHEMA!r}: run the suite again"
            )
        try:
            return cls(
                suite=data["suite"],
                results=tuple(Result.from_json(r) for r in data["results"]),
                environment=data["environment"],
                commit=data["commit"],
                created=data["created"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise ResultError(f"results are damaged ({type(e).__name__}: {e}): run the suite again") from e


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file so that a reader never sees half of it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        # mkstemp makes 0600; a results file is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def save(run: Run, path: str | os.PathLike[str]) -> None:
    """Writes ``run`` as JSON, atomically."""
    write_text(path, json.dumps(run.to_json(), indent=1) + "\n")


def load(path: str | os.PathLike[str]) -> Run:
    """Reads a results file.

    Raises:
      ResultError: it is missing, not JSON, or of another format.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise ResultError(f"cannot read results {path}: {e.strerror or e}") from e
    try:
        data = json.loads(text)
    except ValueError as e:
        raise ResultError(f"results {path} are not JSON ({e}): run the suite again") from e
    try:
        return Run.from_json(data)
    except ResultError as e:
        raise ResultError(f"{path}: {e}") from e


def with_reference(results: Iterable[Result], reference: str) -> list[Result]:
    """Adds ``recomputed_flops``: FLOPs above those of option set ``reference`` for the same case and target.

    A result without a measured reference is left as it is.
    """
    from farrier._src.bench.metric import exact

    results = list(results)
    base = {
        (r.case, r.target): r.metrics["flops"].value
        for r in results
        if r.options == reference and "flops" in r.metrics
    }
    out = []
    for r in results:
        plain = base.get((r.case, r.target))
        if plain is not None and "flops" in r.metrics and r.options != reference:
            extra = exact("recomputed_flops", r.metrics["flops"].value - plain)
            r = dataclasses.replace(r, metrics={**r.metrics, "recomputed_flops": extra})
        out.append(r)
    return out
