"""Runs one job in a process of its own, within limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from farrier._src.bench import forked
from farrier._src.bench.result import Result

_POLL_S = 0.05
# Asking for a family's memory reads the whole process table: often enough to catch what grows, no oftener.
_MEMORY_POLL_S = 0.5
_TAIL = 2000


def _resident_bytes(process: Any) -> int:
    import psutil

    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for p in family:
        # A child may end between being listed and being asked.
        with contextlib.suppress(psutil.Error):
            total += p.memory_info().rss
    return total


def _stop(child: subprocess.Popen[bytes] | forked.Forked) -> None:
    # The whole group: XLA starts helpers such as ptxas.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _start(
    job: pathlib.Path, out: pathlib.Path, log: pathlib.Path, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as f:
        return subprocess.Popen(
            (sys.executable, "-m", "farrier._src.bench.child", str(job), str(out)),
            stdin=subprocess.DEVNULL,
            stdout=f,
            stderr=f,
            env=dict(env),
            start_new_session=True,
        )


def run_child(
    job: Mapping[str, Any], *, timeout_s: float, memory_bytes: int, stop: Any = None
) -> dict[str, Any]:
    """Runs ``job`` in a child process.

    Args:
      job: what :mod:`farrier._src.bench.child` takes; JSON values.
      timeout_s: limit in seconds of elapsed time.
      memory_bytes: limit of the resident memory of the process and its children.
      stop: a ``threading.Event``; when set the child is ended.

    Returns ``{"result" or "list": ...}``, or ``{"status", "message"}`` of a failure.
    Never raises for what the child does.
    """
    import psutil

    with tempfile.TemporaryDirectory(prefix="farrier-bench-") as folder:
        job_path, out_path = pathlib.Path(folder, "job.json"), pathlib.Path(folder, "out.json")
        job_path.write_text(json.dumps(dict(job)), encoding="utf-8")
        log_path = pathlib.Path(folder, "log")
        env = dict(os.environ)
        if not job.get("device"):
            # Deviceless: without this, jax takes hold of an attached GPU's memory.
            env["JAX_PLATFORMS"] = "cpu"
        # Where farrier was imported from a source tree that is not installed.
        import farrier._src

        root = str(pathlib.Path(next(iter(farrier._src.__path__))).parents[1])
        env["PYTHONPATH"] = os.pathsep.join(p for p in (root, env.get("PYTHONPATH", "")) if p)
        began = time.monotonic()
        child = None
        # Not for a device's jobs: what its libraries hold on to is not made for a fork.
        if not job.get("device"):
            child = forked.fork(str(job_path), str(out_path), str(log_path), env)
        if child is None:
            child = _start(job_path, out_path, log_path, env)
        outcome: tuple[str, str] | None = None
        try:
            family = psutil.Process(child.pid)
            asked = -_MEMORY_POLL_S
            used = 0
            while child.poll() is None:
                elapsed = time.monotonic() - began
                if elapsed - asked >= _MEMORY_POLL_S:
                    asked, used = elapsed, _resident_bytes(family)
                if stop is not None and stop.is_set():
                    outcome = ("failed", "interrupted")
                elif elapsed > timeout_s:
                    outcome = ("timeout", f"took longer than the limit of {timeout_s:g} s")
                elif used > memory_bytes:
                    outcome = (
                        "out-of-memory",
                        f"used {used / 2**30:.2f} GiB, above the limit of {memory_bytes / 2**30:.2f} GiB",
                    )
                if outcome is not None:
                    break
                time.sleep(_POLL_S)
        except psutil.NoSuchProcess:
            child.wait()
        finally:
            if child.poll() is None:
                _stop(child)
        wall = time.monotonic() - began
        phase = _read(pathlib.Path(f"{out_path}.phase")) or "starting"
        tail = _read(log_path)[-_TAIL:].strip()
        text = _read(out_path)
    if outcome is None and text:
        out = json.loads(text)
        out["wall_seconds"] = wall
        if "error" in out:
            return {
                "status": "failed",
                "message": f"{out['error']} (while {phase})",
                "traceback": out.get("traceback", ""),
                "wall_seconds": wall,
            }
        return out
    if outcome is None:
        code = child.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        outcome = ("crashed", f"the process {how}" + (f"; its last words: {tail}" if tail else ""))
    return {"status": outcome[0], "message": f"{outcome[1]} (while {phase})", "wall_seconds": wall}


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def run_job(job: Mapping[str, Any], stop: Any = None) -> dict[str, Any]:
    """Runs one measuring job and returns a :class:`Result` as JSON values, whatever happens to the child.

    A plain function of plain values, so that a cluster's worker can run it too.
    """
    out = run_child(job, timeout_s=job["timeout_s"], memory_bytes=job["memory_bytes"], stop=stop)
    if "result" in out:
        result = dict(out["result"])
        result["wall_seconds"] = out["wall_seconds"]
        return result
    return Result(
        case=job["case"],
        target=job["target"],
        options=job["options"]["name"],
        status=out["status"],
        message=out["message"],
        wall_seconds=out["wall_seconds"],
    ).to_json()
