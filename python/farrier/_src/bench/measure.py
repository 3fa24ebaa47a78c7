"""Measures one program for one target with one option set. Runs in a child process."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import inspect
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from farrier._src.bench import environment as env_module
from farrier._src.bench import lines, overlap
from farrier._src.bench.child import Unsupported
from farrier._src.bench.metric import Metric, exact
from farrier._src.bench.result import Result, ResultError, write_text
from farrier._src.bench.suite import Case, ModuleFile, OptionSet, SuiteError
from farrier._src.bench.timing import Clock

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def budget_bytes(budget: int | str) -> int:
    """Reads a size such as ``"72GiB"`` or ``77309411328``; returns bytes.

    Raises:
      SuiteError: it is neither.
    """
    if isinstance(budget, int):
        return budget
    m = re.fullmatch(r"\s*([\d.]+)\s*([A-Za-z]+)\s*", budget)
    if m is None or m[2] not in _UNITS:
        raise SuiteError(f"size {budget!r}: give bytes or a number with one of {', '.join(_UNITS)}")
    return int(float(m[1]) * _UNITS[m[2]])


def parse_target(name: str) -> Any:
    """Makes a ``farrier.Target`` from ``"h100"`` or ``"h100:1x1x8"`` (model and topology).

    Raises:
      farrier.Error: no such model, or a malformed topology.
    """
    from farrier._src.targets import Target

    model, _, topology = name.partition(":")
    return Target(model, topology=topology) if topology else Target(model)


def target_digest(target: Any) -> str:
    """Returns a short digest of a target's facts, the same wherever they are equal."""
    text = json.dumps(target.to_json(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def abstract(tree: Any, target: Any) -> Any:
    """Replaces arrays by ``jax.ShapeDtypeStruct`` on the target's devices; other leaves stay.

    An array's shardings over other devices are carried over axis by axis if the
    number of devices agrees; an array without one is whole on every device.

    Raises:
      SuiteError: a sharding needs another number of devices than the target has.
    """
    import jax

    whole = target.sharding()
    known = {d.id for d in target.devices()}

    def one(x: Any) -> Any:
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            return x
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            mesh = sharding.mesh
            same = isinstance(mesh, jax.sharding.Mesh) and all(d.platform != "cpu" for d in mesh.devices.flat)
            if not same or not {d.id for d in mesh.devices.flat} <= known:
                if mesh.size != target.device_count:
                    raise SuiteError(
                        f"an argument of shape {x.shape} is sharded over {mesh.size} devices, {target!r} has "
                        f"{target.device_count}: give the target a topology, as in 'h100:1x1x{mesh.size}'"
                    )
                mesh = target.mesh(tuple(mesh.shape.values()), tuple(mesh.shape.keys()))
                sharding = jax.sharding.NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
        else:
            sharding = whole
        weak = bool(getattr(x, "weak_type", False))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=weak)

    return jax.tree.map(one, tree)


def build(
    case: Case, options: OptionSet, target: Any
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Builds the case's program: the function, its arguments and keyword arguments.

    Raises:
      Unsupported: the option set has a variant that the case cannot be built in.
      SuiteError: ``build`` does not return what it should.
    """
    if case.build is None:
        if options.variant:
            raise Unsupported(
                f"{case.name} is a fixed function: it cannot be built with {dict(options.variant)}"
            )
        assert case.fn is not None
        return case.fn, tuple(case.args), dict(case.kwargs)
    try:
        inspect.signature(case.build).bind(target, **options.variant)
    except TypeError as e:
        raise Unsupported(f"build of {case.name} does not take {dict(options.variant)}: {e}") from e
    built = case.build(target, **options.variant)
    if not isinstance(built, tuple) or not 2 <= len(built) <= 3 or not callable(built[0]):
        raise SuiteError(
            f"build of case {case.name!r} gives {type(built).__name__}: return (function, args) or "
            "(function, args, kwargs)"
        )
    return built[0], tuple(built[1]), dict(built[2]) if len(built) == 3 else {}


@dataclasses.dataclass
class Dumped:
    """What one compile left behind: an ``oracle.Compiled`` and the texts of XLA's dumps."""

    compiled: Any
    live_ranges: str
    buffers: str


def compile_and_dump(make: Callable[[Mapping[str, Any]], Any], options: Mapping[str, Any]) -> Dumped:
    """Compiles by ``make(options)`` and keeps what XLA dumps about buffers meanwhile."""
    with tempfile.TemporaryDirectory(prefix="farrier-dump-") as folder:
        compiled = make({**options, "xla_dump_to": folder})

        def read(suffix: str) -> str:
            found = sorted(glob.glob(os.path.join(folder, f"*after_optimizations-{suffix}.txt")))
            texts = [pathlib.Path(f).read_text(encoding="utf-8") for f in found]
            # The program's own dump is the largest; autotuning leaves smaller ones beside it.
            return max(texts, key=len, default="")

        return Dumped(compiled, read("live-range"), read("buffer-assignment"))


def metrics_of(
    compiled: Any, target: Any, live_ranges: str = ""
) -> tuple[dict[str, Metric], overlap.Overlap]:
    """Returns the deterministic metrics of a compile, and how its communication overlaps.

    Args:
      compiled: an ``oracle.Compiled``.
      target: what it was compiled for.
      live_ranges: XLA's live-range dump; without it ``peak_bytes`` is left out.
    """
    m = compiled.measurement
    values: dict[str, float] = {
        "total_bytes": m.total_bytes,
        "temp_bytes": m.temp_bytes,
        "argument_bytes": m.argument_bytes,
        "output_bytes": m.output_bytes,
        "alias_bytes": m.alias_bytes,
        "host_temp_bytes": m.host_temp_bytes,
        "flops": m.flops,
        "kernels": m.kernels,
        "bytes_moved": m.bytes_moved,
    }
    for c in m.collectives:
        values[f"collectives.{c.kind}.count"] = c.count
        values[f"collectives.{c.kind}.bytes"] = c.bytes
    peak = lines.parse_peak(live_ranges)
    if peak:
        values["peak_bytes"] = sum(peak.values())
    out = {name: exact(name, value) for name, value in values.items()}
    played = overlap.analyse(compiled.hlo(), compiled.as_text(), target)
    modelled = {"modelled_seconds": played.seconds}
    if m.collectives:
        out["exposed_collectives"] = exact("exposed_collectives", played.exposed_count)
        out["overlapped_collectives"] = exact("overlapped_collectives", played.overlapped_count)
        modelled["exposed_seconds"] = played.exposed_seconds
        modelled["overlapped_seconds"] = played.overlapped_seconds
    out.update({name: exact(name, value, model=overlap.MODEL) for name, value in modelled.items()})
    return out, played


def line_summary(first: Dumped, played: overlap.Overlap, root: pathlib.Path | None) -> list[dict[str, Any]]:
    """Returns the per-source-line summary of a compile; see :func:`lines.summarize`."""
    costs: dict[str, dict[str, int]] = {
        "bytes": lines.parse_peak(first.live_ranges),
        "allocated": lines.parse_allocated(first.buffers),
        "exposed": dict.fromkeys(played.exposed, 1),
        "moved": {name: moved for name, (moved, _) in played.kernels.items()},
        "flops": {name: flops for name, (_, flops) in played.kernels.items()},
    }
    return lines.summarize(lines.parse_instructions(first.compiled.as_text()), costs, root=root)


def source_root(suite_path: str) -> pathlib.Path:
    """Returns the user's source tree: the repository that the suite lies in, else its folder."""
    path = pathlib.Path(suite_path).resolve()
    folder = path if path.is_dir() else path.parent
    for parent in (folder, *folder.parents):
        if (parent / ".git").exists():
            return parent
    return folder


class _Cache:
    """Results by content. Writes are atomic, whatever cannot be read is a miss."""

    def __init__(self, folder: str | None, parts: list[Any]):
        text = json.dumps(parts, sort_keys=True, default=str)
        self._path = (
            None
            if folder is None
            else pathlib.Path(folder, hashlib.sha256(text.encode()).hexdigest() + ".json")
        )

    def get(self) -> Result | None:
        if self._path is None:
            return None
        try:
            found = Result.from_json(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ResultError):
            return None
        return dataclasses.replace(found, cached=True)

    def put(self, result: Result) -> None:
        if self._path is not None:
            write_text(self._path, json.dumps(result.to_json()))


def _optimized_metrics(step: Any) -> dict[str, Metric]:
    """What a step made by ``farrier.optimize`` says about its own planning."""
    report = getattr(step, "last_report", None)
    stats = report() if callable(report) else report
    out = {}
    for name in ("planned_bytes", "pass_seconds", "overhead", "search_compiles"):
        value = None if stats is None else stats.get(name)
        if value is not None:
            out[name] = exact(name, value)
    return out


def measure(
    case: Case,
    options: OptionSet,
    target_name: str,
    *,
    suite_path: str,
    repeats: int,
    repeat_budget_s: float,
    cache_dir: str | None,
    device: bool,
    phase: Callable[[str], None],
    environment: Mapping[str, str],
) -> Result:
    """Measures one case; see :func:`farrier._src.bench.runner.run_suite` for the arguments.

    Raises:
      Unsupported: the case cannot be built with the option set.
      farrier.Error: the target is unknown, or XLA refuses the program.
    """
    import jax

    from farrier._src import oracle

    target = parse_target(target_name)
    env = {**environment, f"target {target_name}": target_digest(target)}
    identity = {"case": case.name, "target": target_name, "options": options.name}
    clock = Clock()
    xla = dict(options.compiler_options)

    phase("building the program")
    module_file = case.build if isinstance(case.build, ModuleFile) else None
    step: Any = None

    def lower() -> Any:
        nonlocal step
        if module_file is not None:
            if options.variant or options.optimize is not None:
                raise Unsupported(f"{case.name} is a dumped module: only compiler_options apply to it")
            return _read_module(module_file.path)
        fn, args, kwargs = build(case, options, target)
        args, kwargs = abstract((args, kwargs), target)
        step = fn if hasattr(fn, "lower") else jax.jit(fn)
        if options.optimize is not None:
            import farrier

            step = farrier.optimize(step, target=target, **options.optimize)
            return clock.time("export_seconds", lambda: step.lower(*args, **kwargs))
        traced = clock.time("trace_seconds", lambda: step.trace(*args, **kwargs))
        return clock.time("export_seconds", traced.lower)

    def compile_once(lowered: Any) -> Dumped:
        if module_file is not None:
            return compile_and_dump(lambda o: oracle.compile_module(lowered, target, compiler_options=o), xla)
        return compile_and_dump(lambda o: oracle.compile_lowered(lowered, target, compiler_options=o), xla)

    began = time.monotonic()
    phase("tracing and lowering")
    lowered = lower()
    key = oracle.measurement_key(
        oracle.parse_module(lowered) if module_file is not None else lowered, target, compiler_options=xla
    )
    # Timings belong to a machine; farrier's own code matters where it takes part.
    cache = _Cache(
        cache_dir,
        [key, identity, options.to_json(), repeats, environment, _code_digest(), env_module.farrier_digest()]
        if options.optimize is not None
        else [key, identity, options.to_json(), repeats, environment, _code_digest()],
    )
    if (found := cache.get()) is not None:
        return dataclasses.replace(found, environment=env)
    phase("compiling with XLA")
    first = clock.time("compile_seconds", lambda: compile_once(lowered))
    for _ in range(repeats - 1):
        if time.monotonic() - began > repeat_budget_s:
            break
        # What the first repeat warmed up (imports, caches) is not what is measured.
        jax.clear_caches()
        again = lower()
        clock.time("compile_seconds", lambda again=again: compile_once(again))
    phase("reading the result")
    metrics, played = metrics_of(first.compiled, target, first.live_ranges)
    metrics.update(clock.metrics())
    if step is not None and options.optimize is not None:
        metrics.update(_optimized_metrics(step))
    if "planned_bytes" in metrics:
        total = metrics["total_bytes"].value
        metrics["plan_error"] = exact(
            "plan_error", abs(metrics["planned_bytes"].value - total) / max(total, 1)
        )
    rows = line_summary(first, played, source_root(suite_path))
    result = Result(
        **identity,
        metrics=metrics,
        fingerprint=first.compiled.measurement.fingerprint,
        environment=env,
        lines=tuple(rows),
    )
    cache.put(result)
    return result


def _read_module(path: pathlib.Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".jaxexport":
        from jax import export

        return export.deserialize(bytearray(data)).mlir_module_serialized
    return data


def _code_digest() -> str:
    from farrier._src import metrics

    digest = hashlib.sha256(metrics.code_version().encode())
    for f in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(f.read_bytes())
    return digest.hexdigest()
