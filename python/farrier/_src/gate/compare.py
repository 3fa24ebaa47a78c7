"""Compares a run with a baseline and gives a verdict."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
from collections.abc import Sequence

from farrier._src.bench import environment, lines, stats
from farrier._src.bench.metric import Metric, Threshold, format_value
from farrier._src.bench.result import Result, Run
from farrier._src.gate.acknowledge import Acknowledgement
from farrier._src.gate.baseline import Baseline, GateError


class Verdict(enum.Enum):
    """What became of a metric, or of the whole run."""

    IMPROVED = "improved"
    REGRESSED = "regressed"
    MIXED = "mixed"
    UNCHANGED = "unchanged"
    ACKNOWLEDGED = "acknowledged"
    NEW = "new"
    INFORMATION = "information"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one result, compared.

    Attributes:
      id: the result's ``case@target/options``.
      metric: its name; ``"status"`` for a result that failed or is missing.
      baseline, current: ``None`` where one side has no value.
      threshold: what applied.
      noise: change that chance explains, in the metric's unit (noisy metrics).
      verdict: see :class:`Verdict`.
      note: why, where the numbers alone do not say it.
    """

    id: str
    metric: str
    unit: str = ""
    baseline: float | None = None
    current: float | None = None
    threshold: Threshold | None = None
    noise: float | None = None
    verdict: Verdict
    note: str = ""

    @property
    def change(self) -> float | None:
        """Relative change, a fraction of the baseline; ``inf`` from zero; ``None`` if a side is missing."""
        if self.baseline is None or self.current is None:
            return None
        if self.baseline == 0:
            return 0.0 if self.current == 0 else math.copysign(math.inf, self.current)
        return (self.current - self.baseline) / abs(self.baseline)

    def describe(self) -> str:
        """One line: id, metric, from, to, change and note."""
        if self.metric == "status":
            return f"{self.id}: {self.note}"
        old = "-" if self.baseline is None else format_value(self.baseline, self.unit)
        new = "-" if self.current is None else format_value(self.current, self.unit)
        text = f"{self.id}: {self.metric} {old} -> {new}"
        if self.change is not None:
            text += f" ({format_change(self.change)})"
        return f"{text}: {self.note}" if self.note else text


def format_change(change: float) -> str:
    """Formats a relative change as a signed percentage."""
    if math.isinf(change):
        return "from zero"
    return f"{change:+.2%}" if abs(change) < 0.1 else f"{change:+.1%}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run against a baseline.

    Attributes:
      rows: every metric compared, sorted by id and name.
      labels: what a reader has to know: version changes allowed, expired acknowledgements.
      changes: source lines that changed, by result id.
      fingerprints_changed: ids whose module is another one than the baseline's.
    """

    rows: tuple[Row, ...]
    labels: tuple[str, ...] = ()
    changes: dict[str, list[lines.LineChange]] = dataclasses.field(default_factory=dict)
    fingerprints_changed: tuple[str, ...] = ()

    def of(self, verdict: Verdict) -> list[Row]:
        """Returns the rows with this verdict."""
        return [r for r in self.rows if r.verdict is verdict]

    @property
    def verdict(self) -> Verdict:
        """Improved, regressed, mixed or unchanged; what is acknowledged counts as neither."""
        worse, better = self.of(Verdict.REGRESSED), self.of(Verdict.IMPROVED)
        if worse and better:
            return Verdict.MIXED
        if worse:
            return Verdict.REGRESSED
        return Verdict.IMPROVED if better else Verdict.UNCHANGED

    @property
    def exit_code(self) -> int:
        """2 if anything regressed, else 0."""
        return 2 if self.of(Verdict.REGRESSED) else 0

    def culprits(self, row: Row, *, limit: int = 3) -> list[lines.LineChange]:
        """Returns the source lines that made this row worse, worst first."""
        growth = None if row.baseline is None or row.current is None else row.current - row.baseline
        return lines.culprits(self.changes.get(row.id, ()), row.metric, growth, limit=limit)


def compare_metric(
    result_id: str, name: str, old: Metric, new: Metric, threshold: Threshold, *, same_machine: bool = True
) -> Row:
    """Compares one metric; a noisy one has to exceed its noise as well as the threshold."""
    row = Row(
        id=result_id,
        metric=name,
        unit=new.unit,
        baseline=old.value,
        current=new.value,
        threshold=threshold,
        verdict=Verdict.UNCHANGED,
    )
    if old.unit != new.unit:
        raise GateError(
            f"{result_id}: {name} is in {old.unit!r} in the baseline and in {new.unit!r} now",
            hint="write the baseline again with --update",
        )
    if not threshold.gate or new.direction == "none":
        return dataclasses.replace(row, verdict=Verdict.INFORMATION)
    before, now = old.value, new.value
    a, b = old.samples, new.samples
    scale = 1.0
    if old.calibration and new.calibration:
        # In units of the calibrating work, brought back to the metric's unit on this machine.
        scale = stats.median(new.calibration)
        a, b = old.normalised(), new.normalised()
        before, now = stats.median(a) * scale, stats.median(b) * scale
    elif "noisy" in (old.kind, new.kind) and not same_machine:
        note = "timed on another machine, not gated"
        return dataclasses.replace(row, verdict=Verdict.INFORMATION, note=note)
    worse = now - before if new.direction == "lower" else before - now
    allowed = threshold.allowance(before)
    if abs(worse) <= allowed:
        return row
    verdict = Verdict.REGRESSED if worse > 0 else Verdict.IMPROVED
    if "noisy" not in (old.kind, new.kind):
        return dataclasses.replace(row, verdict=verdict)
    noise = stats.noise(a, b)
    if noise is None:
        note = "one sample a side, the noise is unknown: not gated"
        return dataclasses.replace(row, verdict=Verdict.INFORMATION, note=note)
    noise *= scale
    row = dataclasses.replace(row, noise=noise)
    if abs(worse) <= noise:
        return dataclasses.replace(row, note=f"within the noise of {format_value(noise, new.unit)}")
    return dataclasses.replace(row, verdict=verdict)


def _failed(result: Result) -> Row:
    return Row(
        id=result.id,
        metric="status",
        verdict=Verdict.REGRESSED,
        note=f"{result.status}: {result.message}" if result.message else result.status,
    )


def compare(
    baseline: Baseline,
    run: Run,
    *,
    acknowledgements: Sequence[Acknowledgement] = (),
    today: datetime.date | None = None,
    allow_version_change: bool = False,
    subset: bool = False,
) -> Comparison:
    """Compares ``run`` with ``baseline``.

    Args:
      acknowledgements: accepted regressions; an expired one no longer counts, and is labelled.
      today: for their expiry; default the current day (UTC).
      allow_version_change: compare across different jax, XLA, cuDNN, XLA_FLAGS or target
        facts; the comparison is labelled with the differences.
      subset: only part of the suite was run; results it lacks are no regression.

    Raises:
      GateError: versions differ and that was not allowed, or a metric's unit does.
    """
    today = today or datetime.datetime.now(datetime.UTC).date()
    labels = []
    if differing := environment.differences(baseline.environment, run.environment):
        text = "; ".join(differing)
        if not allow_version_change:
            raise GateError(
                f"the baseline was measured with other versions: {text}",
                hint="pass --allow-version-change to compare all the same (the result is labelled), "
                "or --update to write a new baseline",
            )
        labels.append(f"across versions: {text}")
    same_machine = baseline.environment.get("machine") == run.environment.get("machine")
    rows = []
    found = run.by_id()
    for key in sorted({*baseline.metrics, *found}):
        result, old = found.get(key), baseline.metrics.get(key)
        if result is None:
            if not subset:
                rows.append(
                    Row(
                        id=key,
                        metric="status",
                        verdict=Verdict.REGRESSED,
                        note="in the baseline and not in this run; --update drops it for good",
                    )
                )
            continue
        if result.status == "unsupported" and old is None:
            continue
        if result.status != "ok":
            rows.append(_failed(result))
            continue
        for name in sorted({*result.metrics, *(old or {})}):
            new = result.metrics.get(name)
            before = None if old is None else old.get(name)
            threshold = baseline.threshold(key, name)
            if new is None:
                assert before is not None
                # A metric that is no longer measured is a gap in the gate, not an improvement.
                gated = threshold.gate and before.direction != "none"
                rows.append(
                    Row(
                        id=key,
                        metric=name,
                        unit=before.unit,
                        baseline=before.value,
                        threshold=threshold,
                        verdict=Verdict.REGRESSED if gated else Verdict.INFORMATION,
                        note="no longer measured",
                    )
                )
            elif before is None:
                rows.append(
                    Row(
                        id=key,
                        metric=name,
                        unit=new.unit,
                        current=new.value,
                        threshold=threshold,
                        verdict=Verdict.NEW,
                    )
                )
            else:
                row = compare_metric(key, name, before, new, threshold, same_machine=same_machine)
                if row.verdict is Verdict.REGRESSED:
                    row = _acknowledged(row, new, acknowledgements, today)
                rows.append(row)
    for a in acknowledgements:
        if a.expires < today:
            labels.append(f"acknowledgement of {a.metric} in {a.case} expired on {a.expires}: {a.reason}")
    changes = {
        key: lines.diff(baseline.lines[key], found[key].lines)
        for key in baseline.lines
        if key in found and found[key].status == "ok"
    }
    moved = tuple(
        key
        for key, r in sorted(found.items())
        if r.fingerprint and baseline.fingerprints.get(key) and r.fingerprint != baseline.fingerprints[key]
    )
    return Comparison(rows=tuple(rows), labels=tuple(labels), changes=changes, fingerprints_changed=moved)


def _acknowledged(
    row: Row,
    new: Metric,
    acknowledgements: Sequence[Acknowledgement],
    today: datetime.date,
) -> Row:
    for a in acknowledgements:
        if a.expires >= today and a.covers(row.id, row.metric, new.value, new.direction):
            note = f"accepted until {a.expires}: {a.reason}"
            return dataclasses.replace(row, verdict=Verdict.ACKNOWLEDGED, note=note)
    return row
