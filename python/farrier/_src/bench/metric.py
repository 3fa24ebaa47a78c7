"""The metrics of a benchmark: units, directions and what counts as a change."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any, Literal

from farrier._src.bench import stats

Direction = Literal["lower", "higher", "none"]
Kind = Literal["deterministic", "noisy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a metric may worsen by before it counts as a regression.

    A change counts when it exceeds both ``rel`` (a fraction of the baseline) and
    ``abs`` (in the metric's unit). ``gate=False`` reports a metric and never fails on it.
    """

    rel: float = 0.0
    abs: float = 0.0
    gate: bool = True

    def allowance(self, baseline: float) -> float:
        """Returns the largest change, in the metric's unit, that is still unchanged."""
        return max(self.abs, self.rel * abs(baseline))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric, or a family of metrics named by a glob."""

    pattern: str
    unit: str
    direction: Direction
    kind: Kind
    help: str
    threshold: Threshold


def _spec(
    pattern: str,
    unit: str,
    direction: Direction,
    help: str,
    *,
    kind: Kind = "deterministic",
    **threshold: Any,
) -> MetricSpec:
    return MetricSpec(
        pattern=pattern,
        unit=unit,
        direction=direction,
        kind=kind,
        help=help,
        threshold=Threshold(**threshold),
    )


# Buffer sizes come out the same for the same versions, but a fusion that differs
# between processes moves them by a little, hence 1% and not 0.
_BYTES = {"rel": 0.01, "abs": 4096}
_TIME = {"kind": "noisy", "rel": 0.5, "abs": 0.005}

SPECS: tuple[MetricSpec, ...] = (
    _spec("total_bytes", "B", "lower", "arguments + outputs - aliased + temp", **_BYTES),
    _spec("temp_bytes", "B", "lower", "temporary device memory", **_BYTES),
    _spec("peak_bytes", "B", "lower", "largest sum of live buffers over the schedule", **_BYTES),
    _spec("argument_bytes", "B", "lower", "arguments", rel=0.0, abs=0),
    _spec("output_bytes", "B", "lower", "outputs", rel=0.0, abs=0),
    _spec("alias_bytes", "B", "higher", "outputs in donated arguments' memory", rel=0.0, abs=0),
    _spec("host_temp_bytes", "B", "lower", "temporary host memory", **_BYTES),
    _spec("budget_bytes", "B", "none", "the memory budget asked for", gate=False),
    _spec("planned_bytes", "B", "none", "total memory that the plan promised", gate=False),
    _spec("plan_error", "ratio", "lower", "|planned - measured| / measured", abs=0.02),
    _spec("flops", "FLOP", "lower", "floating-point operations of one step", rel=0.001),
    _spec("recomputed_flops", "FLOP", "lower", "FLOPs above the reference option set's", rel=0.01),
    _spec("kernels", "count", "lower", "kernels launched by one step", abs=0),
    _spec("bytes_moved", "B", "lower", "device memory traffic of one step", rel=0.01),
    _spec("collectives.*.count", "count", "lower", "collectives of this kind"),
    _spec("collectives.*.bytes", "B", "lower", "payload of the collectives of this kind", rel=0.01),
    _spec("exposed_collectives", "count", "lower", "collectives with no compute beside them"),
    _spec("overlapped_collectives", "count", "none", "collectives with compute beside them", gate=False),
    _spec("exposed_seconds", "s", "lower", "modelled communication nothing hides", rel=0.02, abs=1e-6),
    _spec("overlapped_seconds", "s", "none", "modelled communication hidden by compute", gate=False),
    _spec("modelled_seconds", "s", "lower", "modelled step time", rel=0.02),
    _spec("simulated_seconds", "s", "lower", "step by farrier's simulator", rel=0.02),
    _spec("simulated_exposed_seconds", "s", "lower", "communication that waits in it", rel=0.02, abs=1e-6),
    _spec("search_compiles", "count", "lower", "compiles that the search used", abs=0),
    _spec("overhead", "ratio", "lower", "(trace + export + plan + compiles) / plain compile", **_TIME),
    _spec("pass_seconds", "s", "lower", "CPU time of farrier's passes, without XLA's compiles", **_TIME),
    _spec("pass.*.seconds", "s", "lower", "CPU time of one pass", **_TIME),
    _spec("plan_seconds", "s", "lower", "CPU time of planning and lowering, search included", **_TIME),
    _spec("apply_seconds", "s", "lower", "CPU time of lowering with the plan at hand", **_TIME),
    _spec("transform_seconds", "s", "lower", "CPU time of another tool's transformation", **_TIME),
    _spec("trace_seconds", "s", "lower", "CPU time of tracing", **_TIME),
    _spec("export_seconds", "s", "lower", "CPU time of lowering to StableHLO", **_TIME),
    _spec("compile_seconds", "s", "lower", "CPU time of the XLA compile", **_TIME),
    _spec("*_wall_seconds", "s", "lower", "elapsed time", kind="noisy", gate=False),
    _spec("step_seconds", "s", "lower", "measured time of one step", kind="noisy", rel=0.02, abs=1e-6),
    _spec("peak_rss_bytes", "B", "lower", "peak memory of the compiling process", kind="noisy", gate=False),
)

_UNKNOWN = _spec("*", "", "none", "a metric of the user's own", gate=False)


def spec(name: str) -> MetricSpec:
    """Returns the specification of metric ``name``; an unknown one is reported, not gated."""
    for candidate in SPECS:
        if fnmatch.fnmatchcase(name, candidate.pattern):
            return candidate
    return _UNKNOWN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A measured metric.

    Attributes:
      value: the value, or the median of ``samples``, in ``unit``.
      samples: repeated measurements of a noisy metric, in ``unit``.
      calibration: CPU seconds of a fixed piece of work timed beside each sample.
        Where both sides of a comparison have it, ratios are compared, so that a
        slower or a busy machine is not mistaken for a slower program.
      model: the cost model a predicted figure comes from.
    """

    value: float
    unit: str
    direction: Direction = "lower"
    kind: Kind = "deterministic"
    samples: tuple[float, ...] = ()
    calibration: tuple[float, ...] = ()
    model: str | None = None

    def __post_init__(self) -> None:
        if self.calibration and len(self.calibration) != len(self.samples):
            raise ValueError(
                f"{len(self.calibration)} calibration values for {len(self.samples)} samples: give one each"
            )

    @property
    def spread(self) -> float | None:
        """One standard deviation of the samples in ``unit``, ``None`` if unknown."""
        return stats.spread(self.samples)

    def normalised(self) -> tuple[float, ...]:
        """Returns the samples divided by their calibration (a ratio without unit)."""
        return tuple(s / c for s, c in zip(self.samples, self.calibration, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Returns the metric as JSON values (``docs/schema/results.schema.json``)."""
        out: dict[str, Any] = {
            "value": self.value,
            "unit": self.unit,
            "direction": self.direction,
            "kind": self.kind,
        }
        if self.samples:
            out["samples"] = list(self.samples)
            out["spread"] = self.spread
        if self.calibration:
            out["calibration"] = list(self.calibration)
        if self.model is not None:
            out["model"] = self.model
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Metric:
        """Reads what :meth:`to_json` wrote.

        Raises:
          KeyError: ``value`` or ``unit`` is missing.
        """
        return cls(
            value=data["value"],
            unit=data["unit"],
            direction=data.get("direction", "lower"),
            kind=data.get("kind", "deterministic"),
            samples=tuple(data.get("samples", ())),
            calibration=tuple(data.get("calibration", ())),
            model=data.get("model"),
        )


def exact(name: str, value: float, *, model: str | None = None) -> Metric:
    """Makes a deterministic metric with the unit and direction that ``name`` has."""
    known = spec(name)
    return Metric(value=value, unit=known.unit, direction=known.direction, kind="deterministic", model=model)


def sampled(
    name: str, samples: list[float] | tuple[float, ...], calibration: list[float] | tuple[float, ...] = ()
) -> Metric:
    """Makes a noisy metric whose value is the median of ``samples`` (in ``name``'s unit)."""
    known = spec(name)
    return Metric(
        value=stats.median(samples),
        unit=known.unit,
        direction=known.direction,
        kind="noisy",
        samples=tuple(samples),
        calibration=tuple(calibration),
    )


def format_value(value: float, unit: str) -> str:
    """Formats a value for a table; the exact one is in the JSON."""
    if unit == "B":
        for suffix, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= scale:
                return f"{value / scale:,.2f} {suffix}"
        return f"{value:,.0f} B"
    if unit == "FLOP":
        for suffix, scale in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
            if abs(value) >= scale:
                return f"{value / scale:,.3f} {suffix}"
        return f"{value:,.0f} FLOP"
    if unit == "s":
        for suffix, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
            if abs(value) >= scale:
                return f"{value / scale:,.3g} {suffix}"
        return f"{value:.3g} s"
    if unit == "count":
        return f"{value:,.0f}"
    return f"{value:.4g} {unit}".rstrip()
