"""Baselines: what a suite measured when it was last reviewed, and what it may worsen by."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tomlkit
import tomlkit.exceptions

from farrier._src.bench.environment import COMPARED
from farrier._src.bench.lines import COLUMNS
from farrier._src.bench.metric import Metric, Threshold, spec
from farrier._src.bench.result import Run, write_text
from farrier._src.errors import Error

SCHEMA = 1

_HEADER = """\
farrier gate baseline. Values are written by `farrier gate --update` and reviewed like code.
[thresholds] and [[override]] are yours to edit; an update keeps them, comments included."""


class GateError(Error):
    """The gate cannot give a verdict: a baseline is missing, damaged or not comparable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Override:
    """A threshold for some results: globs over the result's id and the metric's name."""

    case: str = "*"
    metric: str = "*"
    threshold: Threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline file's content.

    Attributes:
      suite: the suite's path, relative to the baseline file.
      environment: versions it was measured with.
      metrics: by result id and metric name.
      fingerprints: of the compiled modules, by result id.
      thresholds: by metric name or glob; first match counts, before the built-in ones.
      overrides: by result id and metric; the last match counts, before ``thresholds``.
      lines: per-source-line summaries by result id, from the file beside it.
    """

    suite: str
    environment: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Metric]]
    fingerprints: Mapping[str, str]
    thresholds: Mapping[str, Threshold]
    overrides: tuple[Override, ...] = ()
    lines: Mapping[str, tuple[Mapping[str, Any], ...]] = dataclasses.field(default_factory=dict)

    def threshold(self, result_id: str, metric: str) -> Threshold:
        """Returns the threshold that applies to ``metric`` of result ``result_id``."""
        for o in reversed(self.overrides):
            if fnmatch.fnmatchcase(result_id, o.case) and fnmatch.fnmatchcase(metric, o.metric):
                return o.threshold
        for pattern, threshold in self.thresholds.items():
            if fnmatch.fnmatchcase(metric, pattern):
                return threshold
        return spec(metric).threshold


def lines_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the side file of a baseline that keeps the per-source-line summaries."""
    return path.with_suffix(".lines.json")


def _threshold(data: Any, metric: str, path: pathlib.Path, *, also: tuple[str, ...] = ()) -> Threshold:
    known = {f.name for f in dataclasses.fields(Threshold)}
    if not isinstance(data, Mapping):
        raise GateError(f"{path}: threshold of {metric!r} is {data!r}: write {{ rel = 0.01, abs = 0 }}")
    unknown = sorted(set(data) - known - set(also))
    if unknown:
        raise GateError(f"{path}: threshold of {metric!r} has unknown {unknown}; known are {sorted(known)}")
    default = spec(metric).threshold
    values = {k: data.get(k, getattr(default, k)) for k in known}
    for k in ("rel", "abs"):
        if not isinstance(values[k], int | float) or isinstance(values[k], bool) or values[k] < 0:
            raise GateError(f"{path}: threshold {k} of {metric!r} is {values[k]!r}: give a number >= 0")
    if not isinstance(values["gate"], bool):
        raise GateError(f"{path}: gate of {metric!r} is {values['gate']!r}: give true or false")
    return Threshold(**values)


def _metric(name: str, data: Any) -> Metric:
    known = spec(name)
    if isinstance(data, Mapping):
        samples = tuple(float(x) for x in data.get("samples", ()))
        return Metric(
            value=data["value"],
            unit=data.get("unit", known.unit),
            direction=data.get("direction", known.direction),
            kind="noisy" if samples else "deterministic",
            samples=samples,
            calibration=tuple(float(x) for x in data.get("calibration", ())),
            model=data.get("model"),
        )
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise TypeError(f"{name} is {data!r}, not a number")
    return Metric(value=data, unit=known.unit, direction=known.direction, kind="deterministic")


def _plain(metric: Metric, name: str) -> Any:
    """What is written for a metric: a bare number where the metric's name says the rest."""
    known = spec(name)
    extra: dict[str, Any] = {}
    if metric.unit != known.unit:
        extra["unit"] = metric.unit
    if metric.direction != known.direction:
        extra["direction"] = metric.direction
    if metric.model is not None:
        extra["model"] = metric.model
    if metric.samples:
        extra["samples"] = [float(f"{x:.4g}") for x in metric.samples]
        if metric.calibration:
            extra["calibration"] = [float(f"{x:.4g}") for x in metric.calibration]
    value: Any = metric.value
    if isinstance(value, float):
        # Byte and FLOP counts are whole numbers; a time has no more than four true digits.
        value = int(value) if value.is_integer() and abs(value) < 2**63 else float(f"{value:.6g}")
    if not extra:
        return value
    table = tomlkit.inline_table()
    table["value"] = float(f"{metric.value:.4g}") if metric.samples else value
    for k, v in extra.items():
        table[k] = v
    return table


def load(path: str | pathlib.Path) -> Baseline:
    """Reads a baseline and the line summaries beside it.

    Raises:
      GateError: it is missing, is no TOML, or has fields missing or of a wrong type.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GateError(
            f"no baseline at {path}",
            hint=f"write one with `farrier gate --baseline {path} --update SUITE` and commit it",
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise GateError(f"cannot read baseline {path}: {e}") from e
    restore = "restore it from version control, or write it again with --update"
    try:
        data = tomlkit.parse(text).unwrap()
    except tomlkit.exceptions.TOMLKitError as e:
        raise GateError(f"baseline {path} is not valid TOML: {e}", hint=restore) from e
    if data.get("schema") != SCHEMA:
        raise GateError(
            f"baseline {path} has schema {data.get('schema')!r}, this farrier reads {SCHEMA}", hint=restore
        )
    thresholds = {k: _threshold(v, k, path) for k, v in data.get("thresholds", {}).items()}
    overrides = tuple(
        Override(
            case=o.get("case", "*"),
            metric=o.get("metric", "*"),
            threshold=_threshold(o, o.get("metric", "*"), path, also=("case", "metric")),
        )
        for o in data.get("override", [])
    )
    try:
        results = data["results"]
        metrics = {
            key: {name: _metric(name, v) for name, v in entry.items() if name != "fingerprint"}
            for key, entry in results.items()
        }
        return Baseline(
            suite=data["suite"],
            environment=dict(data["environment"]),
            metrics=metrics,
            fingerprints={k: e.get("fingerprint", "") for k, e in results.items()},
            thresholds=thresholds,
            overrides=overrides,
            lines=_load_lines(lines_path(path)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise GateError(f"baseline {path} is damaged ({type(e).__name__}: {e})", hint=restore) from e


def _load_lines(path: pathlib.Path) -> dict[str, tuple[Mapping[str, Any], ...]]:
    # Only helps to explain a regression; without it the verdict is the same.
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise GateError(
            f"the line summaries {path} are damaged: {e}",
            hint="restore the file from version control, or delete it: the verdict does not need it",
        ) from e
    out = {}
    for key, rows in data.items():
        out[key] = tuple({**dict.fromkeys(COLUMNS, 0), "buffers": [], "code": "", **r} for r in rows)
    return out


def write(run: Run, path: str | pathlib.Path, *, suite: str, keep_others: bool = False) -> None:
    """Writes ``run`` as the new baseline, sorted, so that a review sees only what changed.

    Thresholds and overrides of an existing file, and their comments, stay.

    Args:
      run: results of which every one is ok or unsupported.
      path: the baseline file.
      suite: the suite's path as the file should name it.
      keep_others: keep the values of results that ``run`` did not measure (a selection was run).

    Raises:
      GateError: a result failed, or the old file is damaged.
    """
    path = pathlib.Path(path)
    bad = [r for r in run.results if r.status not in ("ok", "unsupported")]
    if bad:
        raise GateError(
            f"{len(bad)} results failed, the first: {bad[0].id}: {bad[0].status}, {bad[0].message}",
            hint="a baseline holds only good results: fix or deselect them",
        )
    old: Any = tomlkit.document()
    kept: dict[str, Any] = {}
    lines: dict[str, Any] = {}
    if path.exists():
        try:
            old = tomlkit.parse(path.read_text(encoding="utf-8"))
        except tomlkit.exceptions.TOMLKitError as e:
            raise GateError(
                f"baseline {path} is not valid TOML, its thresholds would be lost: {e}",
                hint="restore it from version control, or delete it to start afresh",
            ) from e
        if keep_others:
            kept = dict(old.get("results", {}))
            lines = {k: list(v) for k, v in _load_lines(lines_path(path)).items()}
    doc = tomlkit.document()
    for line in _HEADER.splitlines():
        doc.add(tomlkit.comment(line))
    doc["schema"] = SCHEMA
    doc["suite"] = suite
    if "thresholds" in old:
        doc["thresholds"] = old["thresholds"]
    else:
        doc["thresholds"] = tomlkit.table()
    if "override" in old:
        doc["override"] = old["override"]
    env = tomlkit.table()
    keep_env = (*COMPARED, "python", "farrier", "machine")
    for k, v in sorted(run.environment.items()):
        if k in keep_env or k.startswith("target "):
            env[k] = v
    doc["environment"] = env
    results = tomlkit.table(is_super_table=True)
    entries: dict[str, Any] = dict(kept)
    for r in run.results:
        if r.status != "ok":
            entries.pop(r.id, None)
            continue
        table = tomlkit.table()
        if r.fingerprint:
            table["fingerprint"] = r.fingerprint
        for name, m in sorted(r.metrics.items()):
            table[name] = _plain(m, name)
        entries[r.id] = table
        lines[r.id] = [_compact(row) for row in r.lines]
    for key in sorted(entries):
        results[key] = entries[key]
    doc["results"] = results
    write_text(path, tomlkit.dumps(doc))
    side = {k: lines[k] for k in sorted(lines) if k in entries and lines[k]}
    if side:
        # One row a line: a review sees which source lines moved.
        body = ",\n".join(
            f" {json.dumps(k)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]"
            for k, rows in side.items()
        )
        write_text(lines_path(path), "{\n" + body + "\n}\n")
    else:
        lines_path(path).unlink(missing_ok=True)


def _compact(row: Mapping[str, Any]) -> dict[str, Any]:
    out = {k: row[k] for k in ("file", "line", "function")}
    out.update({k: row[k] for k in ("code", *COLUMNS) if row[k]})
    # Names of HLO buffers change with every compiler; shape and origin identify them.
    buffers = [{k: b[k] for k in ("shape", "bytes", "op_name")} for b in row.get("buffers", ())[:2]]
    if buffers and row["bytes"]:
        out["buffers"] = buffers
    return out
