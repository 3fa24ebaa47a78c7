"""Runs a suite's matrix: in parallel, resumable, here or on a cluster."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from farrier._src import installed
from farrier._src.bench import environment
from farrier._src.bench.metric import sampled
from farrier._src.bench.process import run_child, run_job
from farrier._src.bench.result import Result, ResultError, Run, with_reference
from farrier._src.bench.suite import SuiteError
from farrier._src.errors import Error


class RunnerError(Error):
    """The runner was asked for something it cannot do, or the cluster failed."""


# Called after each job with (done, total, result).
Progress = Callable[[int, int, Result], None]


def default_jobs() -> int:
    """Returns how many processes to run at once: one for every two CPUs that this process may use.

    An XLA compile keeps more than one thread busy, and timings of crowded CPUs mean little.
    """
    return max(1, len(os.sched_getaffinity(0)) // 2) if hasattr(os, "sched_getaffinity") else 1


def default_memory_bytes() -> int:
    """Returns the memory limit of one job in bytes: the machine's memory over the default number of jobs."""
    import psutil

    return int(0.9 * psutil.virtual_memory().total / default_jobs())


def default_cache_dir() -> pathlib.Path:
    """Returns where results are cached by content."""
    base = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
    return pathlib.Path(base) / "farrier" / "bench"


def list_suite(path: str, *, timeout_s: float = 600.0) -> dict[str, Any]:
    """Loads a suite in a child process and returns its matrix as JSON values.

    Raises:
      SuiteError: the suite cannot be loaded, or its process died.
    """
    out = run_child({"kind": "list", "suite": path}, timeout_s=timeout_s, memory_bytes=default_memory_bytes())
    if "list" not in out:
        raise SuiteError(out["message"])
    return out["list"]


def _selected(
    job: Mapping[str, Any], cases: Sequence[str], targets: Sequence[str], options: Sequence[str]
) -> bool:
    def any_of(name: str, globs: Sequence[str]) -> bool:
        return not globs or any(fnmatch.fnmatchcase(name, g) for g in globs)

    return (
        any_of(job["case"], cases)
        and any_of(job["target"], targets)
        and any_of(job["options"]["name"], options)
    )


class _Journal:
    """Finished results, one line each: what an interrupted run has already done."""

    def __init__(self, path: pathlib.Path | None, key: str):
        self._path, self._key = path, key

    def read(self) -> dict[str, Result]:
        if self._path is None or not self._path.exists():
            return {}
        out = {}
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                result = Result.from_json(entry["result"])
            except (ValueError, KeyError, TypeError, ResultError):
                continue  # the line that was being written when the run was interrupted
            if entry.get("key") == self._key:
                out[result.id] = result
        return out

    def add(self, result: Result) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as f:
            # A line of its own even after one that was cut short.
            f.write("\n" + json.dumps({"key": self._key, "result": result.to_json()}) + "\n")

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _run_here(jobs: list[dict[str, Any]], workers: int) -> Iterator[dict[str, Any]]:
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(run_job, job, stop) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            # Reached on an interrupt too: nothing may keep compiling behind the user's back.
            stop.set()
            for future in futures:
                future.cancel()


def _run_on_cluster(jobs: list[dict[str, Any]], address: str) -> Iterator[dict[str, Any]]:
    try:
        import distributed
    except ImportError as e:
        raise RunnerError('--scheduler needs Dask: pip install "farrier[cluster]"') from e
    try:
        client = distributed.Client(address, timeout="20s", set_as_default=False)
    except OSError as e:
        raise RunnerError(f"no Dask scheduler answers at {address}: {e}") from e
    with client:
        # The scheduler gives a job of a lost worker to another one; pure=False because
        # equal jobs measured twice are two measurements.
        futures = {client.submit(run_job, job, pure=False): job for job in jobs}
        for future in distributed.as_completed(list(futures), loop=client.loop):
            job = futures[future]
            if future.status == "finished":
                yield future.result()
                continue
            error = future.exception()
            yield Result(
                case=job["case"],
                target=job["target"],
                options=job["options"]["name"],
                status="crashed",
                message=f"the cluster gave up on this job: {type(error).__name__}: {error}",
            ).to_json()


def _with_step_times(
    results: list[Result], jobs: list[dict[str, Any]], option_sets: list[dict[str, Any]], rounds: int
) -> tuple[list[Result], str]:
    """Adds ``step_seconds`` to the results, case by case: one program at a time on the device.

    Raises:
      RunnerError: a case's steps cannot be run.
    """
    kind = ""
    timed: dict[tuple[str, str], list[float]] = {}
    for case in sorted({r.case for r in results if r.status == "ok"}):
        wanted = {r.options for r in results if r.case == case and r.status == "ok"}
        first = next(j for j in jobs if j["case"] == case)
        job = {
            **first,
            "kind": "steps",
            "option_sets": [o for o in option_sets if o["name"] in wanted],
            "rounds": rounds,
        }
        out = run_child(job, timeout_s=first["timeout_s"], memory_bytes=first["memory_bytes"])
        if "steps" not in out:
            raise RunnerError(f"cannot time {case} on this machine's device: {out['message']}")
        kind = out["steps"]["device"]
        timed.update({(case, name): samples for name, samples in out["steps"]["samples"].items()})
    done = []
    for r in results:
        samples = timed.get((r.case, r.options))
        if samples:
            r = dataclasses.replace(
                r, metrics={**r.metrics, "step_seconds": sampled("step_seconds", samples)}
            )
        done.append(r)
    return done, kind


def run_suite(
    suite: str,
    *,
    cases: Sequence[str] = (),
    targets: Sequence[str] = (),
    option_sets: Sequence[str] = (),
    jobs: int | None = None,
    repeats: int = 3,
    repeat_budget_s: float = 20.0,
    timeout_s: float = 1800.0,
    memory_bytes: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    scheduler: str | None = None,
    device: bool = False,
    device_rounds: int = 10,
    progress: Progress | None = None,
    listing: Mapping[str, Any] | None = None,
) -> Run:
    """Runs a suite and returns what it measured; a case that fails is a result too.

    Args:
      suite: a Python file that defines ``cases()``, or a folder of dumped modules.
      cases, targets, option_sets: globs that select from the suite's matrix; none selects all.
        A target that the suite does not list may be named without a glob.
      jobs: processes at once; default :func:`default_jobs`.
      repeats: samples of each noisy metric.
      repeat_budget_s: seconds after which a case is not repeated again.
      timeout_s, memory_bytes: limits of one job (seconds, resident bytes), unless the case has its own.
      cache_dir: where results are kept by content; default :func:`default_cache_dir`.
      use_cache: ``False`` measures everything anew.
      journal: file that records each result at once; removed when the run is complete.
      resume: take the results that the journal of an interrupted run holds.
      scheduler: address of a Dask scheduler whose workers run the jobs. They need this
        farrier, and the suite at the same path.
      device: also time the steps on this machine's default device, ``device_rounds`` times,
        the option sets of a case in turn.
      progress: called after each job with (done, total, result).
      listing: what :func:`list_suite` said of the suite just now; loading a suite costs seconds.

    Raises:
      SuiteError: the suite cannot be loaded or nothing is selected.
      RunnerError: the cluster cannot be reached.
    """
    listing = listing or list_suite(suite)
    extra = [t for t in targets if not any(c in t for c in "*?[")]
    matrix = []
    seen = set()
    for job in listing["jobs"]:
        for target in (job["target"], *(extra if job["target"] in listing["targets"] else ())):
            entry = {**job, "target": target}
            key = (entry["case"], target, entry["options"]["name"])
            if key not in seen and _selected(entry, cases, targets, option_sets):
                seen.add(key)
                matrix.append(entry)
    if not matrix:
        raise SuiteError(
            f"nothing of {suite} is selected; it has cases {sorted({j['case'] for j in listing['jobs']})}, "
            f"targets {listing['targets']}, option sets {[o['name'] for o in listing['option_sets']]}"
        )
    env = environment.versions()
    folder = (
        str(pathlib.Path(cache_dir) if cache_dir is not None else default_cache_dir()) if use_cache else None
    )
    limit = memory_bytes if memory_bytes is not None else default_memory_bytes()
    full = [
        {
            "kind": "measure",
            "suite": os.path.abspath(suite),
            "case": j["case"],
            "target": j["target"],
            "options": j["options"],
            "repeats": repeats,
            "repeat_budget_s": repeat_budget_s,
            "timeout_s": j["timeout_s"] or timeout_s,
            "memory_bytes": j["memory_bytes"] or limit,
            "cache_dir": folder,
            "device": device,
        }
        for j in matrix
    ]
    # What a journal's results must agree with: the suite and the tools, not the limits.
    key = hashlib.sha256(
        json.dumps([listing["digest"], env, installed.digest(), repeats, device], sort_keys=True).encode()
    ).hexdigest()
    record = _Journal(pathlib.Path(journal) if journal is not None else None, key)
    done = {}
    if resume:
        wanted = {f"{j['case']}@{j['target']}/{j['options']['name']}" for j in full}
        # What failed is tried again: the failure may be why the run was interrupted.
        done = {k: r for k, r in record.read().items() if k in wanted and r.status in ("ok", "unsupported")}
    else:
        record.remove()
    todo = [j for j in full if f"{j['case']}@{j['target']}/{j['options']['name']}" not in done]
    results = list(done.values())
    if progress is not None:
        for n, r in enumerate(results, 1):
            progress(n, len(full), r)
    stream = _run_on_cluster(todo, scheduler) if scheduler else _run_here(todo, jobs or default_jobs())
    for data in stream:
        result = Result.from_json(data)
        record.add(result)
        results.append(result)
        if progress is not None:
            progress(len(results), len(full), result)
    merged = dict(env)
    if device:
        results, kind = _with_step_times(results, full, listing["option_sets"], device_rounds)
        merged["device"] = kind
    record.remove()
    for r in results:
        merged.update({k: v for k, v in r.environment.items() if k.startswith("target ")})
    return Run(
        suite=suite,
        results=tuple(sorted(with_reference(results, listing["reference"]), key=lambda r: r.id)),
        environment=merged,
        commit=environment.commit_of(suite),
    )
