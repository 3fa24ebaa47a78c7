"""Measures one program for one target with one option set. Runs in a child process."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from farrier._src import errors, installed
from farrier._src.bench import lines, overlap, pass_times
from farrier._src.bench.metric import Metric, exact, sampled
from farrier._src.bench.result import Result, ResultError, write_text
from farrier._src.bench.suite import Case, ModuleFile, OptionSet, SuiteError, Unsupported
from farrier._src.bench.timing import Clock
from farrier._src.collectives import drive, schedule
from farrier._src.collectives import parameters as parameter_sets

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
    if m.collectives:
        out.update(simulated(compiled, target))
    return out, played


def simulated(compiled: Any, target: Any) -> dict[str, Metric]:
    """Returns the step and its exposed communication by the simulator that farrier schedules by.

    Unlike :mod:`overlap` it has latencies, bandwidth by message size and what kernels and collectives cost each
    other (docs/collectives.md), under the likelier of the target's parameter sets. A program that it cannot play
    has no such metrics.
    """
    (parameters, *_) = parameter_sets.for_target(target)
    try:
        (played,) = schedule.simulate(compiled.hlo(), target, [parameters])
    except errors.Error:
        return {}
    model = f"simulator/{parameters.name}"
    return {
        name: exact(name, value, model=model)
        for name, value in (
            ("simulated_seconds", played.seconds),
            ("simulated_exposed_seconds", played.exposed_seconds),
        )
    }


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

    target = parse_target(target_name)
    env = {**environment, f"target {target_name}": target_digest(target)}
    identity = {"case": case.name, "target": target_name, "options": options.name}
    phase("building the program")
    if isinstance(case.build, ModuleFile):
        program: ModuleProgram | FunctionProgram = ModuleProgram(case, options, target)
    else:
        program = FunctionProgram(case, options, target)
    began = time.monotonic()
    phase("tracing and lowering")
    # By the program as it was written: what farrier makes of it is a function of that,
    # of the options and of farrier's own code, and a hit then costs no planning.
    parts = [program.key(), identity, options.to_json(), repeats, environment, _code_digest()]
    if options.optimize is not None:
        parts.append(installed.digest())
    cache = _Cache(cache_dir, parts)
    if (found := cache.get()) is not None:
        return dataclasses.replace(found, environment=env)
    clock = Clock()
    first: Dumped | None = None
    metrics: dict[str, Metric] = {}
    for n in range(max(1, repeats)):
        if n:
            if time.monotonic() - began > repeat_budget_s:
                break
            # A cached trace would be timed as nothing.
            jax.clear_caches()
        phase("planning" if options.optimize is not None else "tracing and lowering")
        lowered = program.lower(clock)
        phase("compiling with XLA")
        done = clock.time("compile_seconds", lambda lowered=lowered: program.compile(lowered))
        if first is None:
            first = done
            metrics.update(program.decided(lowered, clock))
    assert first is not None
    phase("reading the result")
    found_metrics, played = metrics_of(first.compiled, target, first.live_ranges)
    metrics.update(found_metrics)
    metrics.update(clock.metrics())
    if "planned_bytes" in metrics:
        total = metrics["total_bytes"].value
        metrics["plan_error"] = exact(
            "plan_error", abs(metrics["planned_bytes"].value - total) / max(total, 1)
        )
    result = Result(
        **identity,
        metrics=metrics,
        fingerprint=first.compiled.measurement.fingerprint,
        environment=env,
        lines=tuple(line_summary(first, played, source_root(suite_path))),
    )
    cache.put(result)
    return result


def _statistics(target: Any) -> dict[str, Any]:
    """The XLA options that a measurement adds: estimates of kernels, which the simulator prices them by."""
    return dict(drive.STATISTICS) if target.device_count > 1 else {}


class ModuleProgram:
    """A dumped module as a program to measure."""

    def __init__(self, case: Case, options: OptionSet, target: Any):
        from farrier._src import oracle

        if options.variant or options.optimize is not None:
            raise Unsupported(f"{case.name} is a dumped module: only compiler_options apply to it")
        assert isinstance(case.build, ModuleFile)
        self._target = target
        self._xla = {**_statistics(target), **options.compiler_options}
        self._module = oracle.parse_module(_read_module(case.build.path))

    def key(self) -> str:
        from farrier._src import oracle

        return oracle.measurement_key(self._module, self._target, compiler_options=self._xla)

    def lower(self, clock: Clock) -> Any:
        return self._module

    def compile(self, lowered: Any) -> Dumped:
        from farrier._src import oracle

        return compile_and_dump(
            lambda o: oracle.compile_module(lowered, self._target, compiler_options=o), self._xla
        )

    def decided(self, lowered: Any, clock: Clock) -> dict[str, Metric]:
        return {}


class FunctionProgram:
    """A function, as it was written or through ``farrier.optimize``, as a program to measure."""

    def __init__(self, case: Case, options: OptionSet, target: Any):
        self._case, self._options, self._target = case, options, target
        self._xla = {**_statistics(target), **options.compiler_options}

    def _build(self) -> tuple[Any, Any, Any]:
        import jax

        fn, args, kwargs = build(self._case, self._options, self._target)
        args, kwargs = abstract((args, kwargs), self._target)
        return fn if hasattr(fn, "lower") else jax.jit(fn), args, kwargs

    def key(self) -> str:
        from farrier._src import oracle

        fn, args, kwargs = self._build()
        return oracle.measurement_key(fn.lower(*args, **kwargs), self._target, compiler_options=self._xla)

    def _optimized(self, fn: Any, **more: Any) -> Any:
        import farrier

        return farrier.optimize(fn, **{"target": self._target, **(self._options.optimize or {}), **more})

    def _transformed(self, clock: Clock) -> Any:
        """The module that another tool makes of the step, lowered for the target's platform."""
        import jax

        fn, args, kwargs = self._build()
        if self._target.device_count > 1:
            raise Unsupported(f"{self._options.name} is for one device: its program carries no shardings")
        assert self._options.transform is not None
        module, _, name = self._options.transform.partition(":")
        try:
            transform = getattr(importlib.import_module(module), name)
        except ImportError as e:
            raise Unsupported(f"{self._options.transform} cannot be imported: {e}") from e
        donated = _donated(fn, args, kwargs)
        # Devices that are only described cannot be closed over by a tool that lowers by itself.
        args, kwargs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x, (args, kwargs)
        )
        step = clock.time("transform_seconds", lambda: transform(fn, donated))
        traced = clock.time("trace_seconds", lambda: step.trace(*args, **kwargs))
        lowered = clock.time("export_seconds", lambda: traced.lower(lowering_platforms=("cuda",)))
        return lowered.as_text(debug_info=True)

    def lower(self, clock: Clock) -> Any:
        import jax

        # The key's lowering must not make this one a cache hit.
        jax.clear_caches()
        if self._options.transform is not None:
            return self._transformed(clock)
        fn, args, kwargs = self._build()
        if self._options.optimize is None:
            traced = clock.time("trace_seconds", lambda: fn.trace(*args, **kwargs))
            return clock.time("export_seconds", traced.lower)
        # A plan kept by an earlier run would hide what planning costs.
        with tempfile.TemporaryDirectory(prefix="farrier-plans-") as folder:
            step = self._optimized(fn, cache_dir=folder)
            traced = clock.time("trace_seconds", lambda: step.trace(*args, **kwargs))
            with pass_times.recorded() as passes:
                lowered = clock.time("plan_seconds", traced.lower)
            for name, seconds in {"": passes.total, **passes.seconds}.items():
                metric = f"pass.{name}.seconds" if name else "pass_seconds"
                clock.add(metric, seconds, clock.calibration["plan_seconds"][-1])
        if lowered.plan is not None:
            jax.clear_caches()
            again = self._optimized(fn, plan=lowered.plan).trace(*args, **kwargs)
            clock.time("apply_seconds", again.lower)
        return lowered

    def compile(self, lowered: Any) -> Dumped:
        from farrier._src import oracle

        if isinstance(lowered, str):
            return compile_and_dump(
                lambda o: oracle.compile_module(lowered, self._target, compiler_options=o), self._xla
            )
        return compile_and_dump(
            lambda o: oracle.compile_lowered(lowered, self._target, compiler_options=o), self._xla
        )

    def decided(self, lowered: Any, clock: Clock) -> dict[str, Metric]:
        """What planning decided; the overhead is over a plain compile, which the final one stands for."""
        decision = getattr(lowered, "decision", None)
        if decision is None:
            return {}
        out = {"search_compiles": exact("search_compiles", decision.compiles)}
        spent = sum(clock.samples[k][0] for k in ("trace_seconds", "plan_seconds", "compile_seconds"))
        out["overhead"] = sampled("overhead", [spent / clock.samples["compile_seconds"][0]])
        promised = decision.plan.measured.get("planned_bytes")
        if promised is not None:
            out["planned_bytes"] = exact("planned_bytes", promised)
        if decision.run.budget_bytes is not None:
            out["budget_bytes"] = exact("budget_bytes", decision.run.budget_bytes)
        return out


def _donated(fn: Any, args: Any, kwargs: Any) -> tuple[int, ...]:
    """Positions of the arguments that the jitted ``fn`` donates."""
    import jax

    info = fn.lower(*args, **kwargs).args_info[0]
    return tuple(n for n, a in enumerate(info) if any(i.donated for i in jax.tree.leaves(a)))


def _read_module(path: pathlib.Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".jaxexport":
        from jax import export

        return export.deserialize(bytearray(data)).mlir_module_serialized
    return data


# The modules that decide what a measurement is; the rest of the runner may change without measuring anew.
_MEASURING = ("environment", "lines", "measure", "metric", "overlap", "pass_times", "stats", "timing")


def _code_digest() -> str:
    from farrier._src import metrics

    digest = hashlib.sha256(metrics.code_version().encode())
    for name in _MEASURING:
        digest.update(pathlib.Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()
