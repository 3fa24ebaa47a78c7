"""Measured times of a running step beside the predicted ones, from a profile that JAX took.

The profile is read with `jax.profiler.ProfileData`. XLA tags every event that runs an HLO instruction with
its name, its module and, on most platforms, the number of the run.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import statistics
import warnings
from typing import Any

from farrier._src import errors
from farrier._src.report import model


def read_trace(path: str | os.PathLike[str], report: model.Report) -> dict[str, Any]:
    """Measured times of `report`'s module in a profile.

    Args:
      path: an ``.xplane.pb`` file, or the folder given to `jax.profiler.trace`.
      report: names the module and the predicted times.

    Returns:
      The ``measured`` part of a report's document. Times are nanoseconds: of an operation, the mean of one
      execution; of a step, what the device worked, the operations of one run summed.

    Raises:
      farrier.InputError: no profile there, or none of its events belongs to the module.
    """
    import jax.profiler

    file = _file(pathlib.Path(path))
    try:
        profile = jax.profiler.ProfileData.from_file(str(file))
    except Exception as e:  # the reader raises a bare RuntimeError for a damaged file
        raise errors.InputError(f"not a profile: {e}", where=str(file)) from e
    wanted = report.data["module"]["name"]
    durations: dict[str, list[float]] = collections.defaultdict(list)
    runs: set[Any] = set()
    device, modules = "", set()
    with warnings.catch_warnings():
        # jaxlib's event_stats type warns about its own definition on Python 3.13.
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = [(plane.name, plane) for plane in profile.planes]
        on_device = [name for name, _ in planes if name.startswith("/device:")]
        for name, plane in planes:
            if on_device and name != on_device[0]:
                continue  # one device's events: every device of a step runs the same program
            for line in plane.lines:
                for event in line.events:
                    stats = dict(event.stats)
                    op, module = stats.get("hlo_op"), stats.get("hlo_module")
                    if not op or not module:
                        continue
                    modules.add(module)
                    if module != wanted:
                        continue
                    device = name
                    durations[op].append(event.duration_ns)
                    if stats.get("run_id") is not None:
                        runs.add(stats["run_id"])
    if not durations:
        seen = ", ".join(sorted(modules)[:6]) or "no HLO events at all"
        raise errors.InputError(
            f"the profile has no event of module {wanted!r}", where=str(file), hint=f"it has {seen}"
        )
    return _summary(report, device, durations, len(runs))


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        found = sorted(path.rglob("*.xplane.pb"), key=lambda p: (p.stat().st_mtime, p.name))
        if not found:
            raise errors.InputError("no *.xplane.pb in this folder", where=str(path))
        return found[-1]
    if not path.exists():
        raise errors.InputError("no such file", where=str(path))
    return path


def _summary(
    report: model.Report, device: str, durations: dict[str, list[float]], runs: int
) -> dict[str, Any]:
    program = report.data["program"]
    position = {name: k for k, name in enumerate(program["names"])}
    predicted: dict[str, float] = {}
    for s in (report.data["schedule"] or {"slices": []})["slices"]:
        if s["kind"] != "wait":
            predicted.setdefault(s["name"], s["duration_ns"])
    # Loop bodies run several times a step, so only instructions that run once tell the number of steps.
    once = [len(v) for op, v in durations.items() if op in position and program["runs"][position[op]] == 1]
    steps = runs or (int(statistics.median(once)) if once else 1)
    ops = []
    for op, times in durations.items():
        at = position.get(op)
        if at is not None and program["names"][at] in _containers(report):
            continue  # a loop's event spans its body's
        ops.append(
            {
                "name": op,
                "ns": statistics.fmean(times),
                "count": round(len(times) / steps, 3),
                "total_ns": sum(times) / steps,
                "predicted_ns": predicted.get(op),
                "position": at,
                "source": program["source_table"][program["sources"][at]] if at is not None else "",
            }
        )
    ops.sort(key=lambda o: (-o["total_ns"], o["name"]))
    return {
        "device": device,
        "steps": steps,
        "step_ns": sum(o["total_ns"] for o in ops),
        "unmatched_ns": sum(o["total_ns"] for o in ops if o["position"] is None),
        "ops": ops,
        "allocator": None,
    }


def _containers(report: model.Report) -> set[str]:
    program = report.data["program"]
    return {program["names"][loop["position"]] for loop in program["loops"]}


def allocator(device: Any) -> dict[str, int] | None:
    """What a JAX device's allocator says of its memory, bytes; None where the platform does not say."""
    stats = device.memory_stats()
    if not stats:
        return None
    return {k: int(v) for k, v in stats.items() if isinstance(v, int)}


def lay_beside(report: model.Report, measured: dict[str, Any], *, device: Any = None) -> model.Report:
    """The report with measured times in it, and with the allocator's figures if `device` (a JAX device) has
    any.
    """
    found = dict(measured)
    if device is not None:
        found["allocator"] = allocator(device)
    return dataclasses.replace(report, data={**report.data, "measured": found})
