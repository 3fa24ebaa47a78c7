"""Parameter sets: how fast collectives and kernels are assumed to be.

A simulated step time is only as good as these, so every gain farrier claims has to hold under two sets
at least, and a user's own figures (`nccl-tests` output, see `nccl_tests`) replace the assumed ones.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from farrier._src import errors
from farrier._src.targets import Target

_SECTIONS = {
    "link": ("bytes_per_s", "all_reduce_bytes_per_s", "latency_s"),
    "network": ("bytes_per_s", "latency_s"),
    "kernels": ("gemm_fraction", "float32_gemm_rate", "attention_fraction", "memory_fraction", "floor_s"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Measured times of one kind of collective."""

    kind: str
    """``all-gather``, ``all-reduce``, ``reduce-scatter``, ``all-to-all``, ``collective-permute``."""
    network: bool
    """Whether the group spans more than one NVLink domain."""
    points: tuple[tuple[float, float], ...]
    """(bytes as nccl-tests counts them, seconds), ascending."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Products:
    """Measured rates of products of one element type."""

    element_type: int
    """Of the operands, by XLA's number (xla_data.proto)."""
    points: tuple[tuple[float, float], ...]
    """(FLOPs, FLOP/s), ascending."""

    def rate(self, flops: float) -> float:
        """FLOP/s of a product: between points their logarithms are interpolated, beyond them the end's holds."""
        above = bisect.bisect_left(self.points, (flops, 0.0))
        if above in (0, len(self.points)):
            return self.points[min(above, len(self.points) - 1)][1]
        (low, slow), (high, fast) = self.points[above - 1], self.points[above]
        x = math.log(flops / low) / math.log(high / low)
        return slow ** (1 - x) * fast**x


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterSet:
    """Speeds of collectives (alpha-beta) and kernels. Bandwidths are per device and direction."""

    name: str
    domain_devices: int
    """Devices that reach each other over NVLink."""
    link_bytes_per_s: float
    link_all_reduce_bytes_per_s: float
    link_latency_s: float
    network_bytes_per_s: float
    network_latency_s: float
    gemm_fraction: float
    """Of the peak of the GEMM's type that a large GEMM reaches."""
    attention_fraction: float
    memory_fraction: float
    """Of the device's memory bandwidth that a kernel bound by memory reaches."""
    floor_s: float
    """Least time of a kernel."""
    float32_gemm_rate: str = "tensorfloat32"
    """The row of the target's peak rates that float32 GEMMs are rated with."""
    two_streams: bool = False
    """NVLink and network communication run beside each other."""
    curves: tuple[Curve, ...] = ()
    products: tuple[Products, ...] = ()
    """Where there are some of its element type, they rate a product instead of `gemm_fraction`."""
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def comm_json(self) -> dict[str, Any]:
        """What the C++ simulator takes: bytes per microsecond and microseconds."""
        return {
            "name": self.name,
            "link_bytes_per_us": self.link_bytes_per_s / 1e6,
            "link_all_reduce_bytes_per_us": self.link_all_reduce_bytes_per_s / 1e6,
            "network_bytes_per_us": self.network_bytes_per_s / 1e6,
            "link_latency_us": self.link_latency_s * 1e6,
            "network_latency_us": self.network_latency_s * 1e6,
            "two_streams": self.two_streams,
            "measured": [
                {"kind": c.kind, "network": c.network, "points": [[b, t * 1e6] for b, t in c.points]}
                for c in self.curves
            ],
        }

    def with_two_streams(self) -> ParameterSet:
        """The same speeds with a communication stream for each of NVLink and network."""
        return dataclasses.replace(self, name=f"{self.name}+2streams", two_streams=True)

    def at_half_speed(self) -> ParameterSet:
        """Collectives with half the bandwidth and twice the latency; kernels as they are."""
        return dataclasses.replace(
            self,
            name=f"{self.name}/2",
            link_bytes_per_s=self.link_bytes_per_s / 2,
            link_all_reduce_bytes_per_s=self.link_all_reduce_bytes_per_s / 2,
            link_latency_s=self.link_latency_s * 2,
            network_bytes_per_s=self.network_bytes_per_s / 2,
            network_latency_s=self.network_latency_s * 2,
            curves=tuple(
                dataclasses.replace(c, points=tuple((size, 2 * time) for size, time in c.points))
                for c in self.curves
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        return dataclasses.asdict(self)


def builtin_names() -> tuple[str, ...]:
    """Names of the built-in parameter sets, sorted."""
    data = resources.files("farrier._src.collectives") / "data"
    return tuple(sorted(p.name.removesuffix(".toml") for p in data.iterdir() if p.name.endswith(".toml")))


def load(name: str | os.PathLike[str]) -> ParameterSet:
    """Reads a parameter set: a built-in name or the path of a TOML file in the same form.

    A file may say ``base = "nv"`` and override figures, and may add measured curves::

        [[measured]]
        kind = "all-gather"
        network = false
        points = [[1048576, 25e-6], [67108864, 210e-6]]   # bytes as nccl-tests counts them, seconds

    or XLA's performance tables, text or binary, by their paths from the file's folder (`perf_tables`)::

        [xla]
        collectives = ["collectives.pbtxt"]
        matmuls = ["matmuls.pb"]
        device = "sm_90"                                  # where a table has several

    Raises:
      farrier.Error: unknown name, unreadable or malformed file, missing or impossible figures.
    """
    name = os.fspath(name)
    folder = pathlib.Path(name).parent
    if name in builtin_names():
        text = (resources.files("farrier._src.collectives") / "data" / f"{name}.toml").read_text("utf-8")
        label = name
    else:
        path = pathlib.Path(name)
        if not path.suffix:
            known = builtin_names()
            near = errors.nearest(name, known)
            raise errors.InputError(
                f"unknown parameter set {name!r}",
                hint=f"did you mean {near!r}?"
                if near
                else f"known: {', '.join(known)}, or a TOML file's path",
            )
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise errors.InputError(f"cannot read the parameter set {name!r}: {e}") from e
        label = path.stem
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise errors.InputError(f"the parameter set {name!r} is not valid TOML: {e}") from e
    base = data.pop("base", None)
    figures: dict[str, Any] = {}
    if base is not None:
        if base not in builtin_names():
            raise errors.InputError(f"{name}: base = {base!r} is not a built-in parameter set")
        start = load(base)
        figures = {f.name: getattr(start, f.name) for f in dataclasses.fields(ParameterSet)}
    data.pop("description", None)
    if "domain_devices" in data:
        figures["domain_devices"] = data.pop("domain_devices")
    if "two_streams" in data:
        figures["two_streams"] = data.pop("two_streams")
    figures["sources"] = {**figures.get("sources", {}), **data.pop("sources", {})}
    tables = data.pop("xla", {})
    curves = [_curve(name, c) for c in data.pop("measured", [])]
    figures["curves"] = (*figures.get("curves", ()), *curves)
    for section, keys in _SECTIONS.items():
        for key, value in data.pop(section, {}).items():
            if key not in keys:
                raise errors.InputError(
                    f"{name}: unknown key {section}.{key}", hint=f"known: {', '.join(keys)}"
                )
            figures[key if section == "kernels" else f"{section}_{key}"] = value
    if data:
        raise errors.InputError(f"{name}: unknown section {next(iter(data))!r}")
    figures["name"] = label
    made = _checked(name, figures)
    return _with_tables(name, folder, made, tables) if tables else made


def _with_tables(name: str, folder: pathlib.Path, made: ParameterSet, tables: Any) -> ParameterSet:
    from farrier._src.collectives import perf_tables

    listed = {"collectives": [], "matmuls": [], "device": None, **tables} if isinstance(tables, dict) else {}
    paths = {key: listed.get(key) for key in ("collectives", "matmuls")}
    fits = all(isinstance(v, list) and all(isinstance(p, str) for p in v) for v in paths.values())
    if len(listed) != 3 or not fits or not isinstance(listed["device"], str | None):
        raise errors.InputError(
            f"{name}: [xla] has lists of paths, collectives and matmuls, and device, a name"
        )
    return perf_tables.measured_set(
        made,
        collectives=[folder / p for p in paths["collectives"]],
        matmuls=[folder / p for p in paths["matmuls"]],
        device=listed["device"],
        name=made.name,
    )


def _curve(name: str, data: Any) -> Curve:
    try:
        points = tuple(sorted((float(b), float(t)) for b, t in data["points"]))
        return Curve(kind=str(data["kind"]), network=bool(data.get("network", False)), points=points)
    except (KeyError, TypeError, ValueError) as e:
        raise errors.InputError(
            f"{name}: a [[measured]] table needs kind and points = [[bytes, seconds], ...]"
        ) from e


def _checked(name: str, figures: dict[str, Any]) -> ParameterSet:
    for field in dataclasses.fields(ParameterSet):
        if field.name in ("name", "curves", "products", "sources", "two_streams", "float32_gemm_rate"):
            continue
        value = figures.get(field.name)
        least_open = not field.name.endswith("latency_s")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise errors.InputError(f"{name}: {field.name} is missing or not a number")
        if value < 0 or (least_open and value == 0):
            raise errors.InputError(f"{name}: {field.name} = {value!r} must be positive")
        if field.name.endswith("fraction") and value > 1:
            raise errors.InputError(f"{name}: {field.name} = {value!r} is more than the hardware's peak")
    return ParameterSet(**figures)


def for_target(target: Target) -> tuple[ParameterSet, ParameterSet]:
    """The two built-in sets that fit a target, the likelier one first."""
    names = ("gb", "gb-slow") if target.facts.host_link == "nvlink-c2c" else ("nv", "slow")
    return load(names[0]), load(names[1])


def resolve(
    parameters: Sequence[str | os.PathLike[str] | ParameterSet] | None, target: Target
) -> tuple[ParameterSet, ...]:
    """Parameter sets from names, files or objects; None gives the target's built-in two."""
    if parameters is None:
        return for_target(target)
    return tuple(p if isinstance(p, ParameterSet) else load(p) for p in parameters)


def guarded(sets: Sequence[ParameterSet]) -> tuple[ParameterSet, ...]:
    """The sets that an order must not lose under: one alone gets a companion at half its speed.

    An order that fits one set exactly can lose under figures that are somewhat off (seen: +1.0% of a step under the
    slower of the published sets, planned with the faster alone; benchmarks/collectives/mismatch.py).
    """
    return (*sets, sets[0].at_half_speed()) if len(sets) == 1 else tuple(sets)
