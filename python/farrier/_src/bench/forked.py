"""Jobs as forks of a process that has imported jax already; see :mod:`farrier._src.bench.fork_server`."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

# Variables that are read while modules are imported: another value of one needs another server.
_READ_AT_IMPORT = ("FARRIER_OPTIMIZE", "JAX", "LD_", "MKL", "OMP", "OPENBLAS", "PYTHON")
_START_S = 120.0


class Forked:
    """A forked job, with those of `subprocess.Popen`'s members that the runner uses."""

    def __init__(self) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.started = threading.Event()
        self.ended = threading.Event()

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal; None while the job runs."""
        return self.returncode if self.ended.is_set() else None

    def wait(self) -> int | None:
        """Waits for the end and returns the exit code."""
        self.ended.wait()
        return self.returncode


class _Server:
    def __init__(self, env: Mapping[str, str]):
        self.owner = os.getpid()
        self.dead = False
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._jobs: dict[int, Forked] = {}
        self._process = subprocess.Popen(
            (sys.executable, "-m", "farrier._src.bench.fork_server"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(env),
            # An interrupt from the terminal is for whoever asked for the jobs.
            start_new_session=True,
        )
        threading.Thread(target=self._listen, name="farrier-bench-forks", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, number, value = line.split()
            job = self._jobs[int(number)]
            if what == b"started":
                job.pid = int(value)
                job.started.set()
            else:
                job.returncode = int(value)
                job.ended.set()
                del self._jobs[int(number)]
        self.dead = True
        for job in list(self._jobs.values()):
            # Nobody would hear of their end.
            if job.pid:
                with contextlib.suppress(OSError):
                    os.killpg(job.pid, signal.SIGKILL)
            job.returncode = -signal.SIGKILL
            job.ended.set()
            job.started.set()
        self._jobs.clear()
        self._process.stdout.close()

    def fork(self, job: str, out: str, log: str, env: Mapping[str, str]) -> Forked | None:
        forked = Forked()
        with self._lock:
            number = next(self._numbers)
            self._jobs[number] = forked
            request = {"id": number, "job": job, "out": out, "log": log, "cwd": os.getcwd(), "env": dict(env)}
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                self.dead = True
                return None
        if not forked.started.wait(_START_S):
            # Or the job would run twice, should it still start.
            self._process.kill()
        return forked if forked.pid else None

    @property
    def idle(self) -> bool:
        """Whether no job of it runs."""
        return not self._jobs

    def close(self) -> None:
        """Ends the server and its jobs; in a fork of the process that started it, nothing."""
        if self.owner != os.getpid():
            return
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)


_servers: dict[tuple[tuple[str, str], ...], _Server] = {}
_lock = threading.Lock()


def fork(job: str, out: str, log: str, env: Mapping[str, str]) -> Forked | None:
    """Starts a job as a fork of this process' server, which is started if there is none for these variables.

    Args:
      job, out: paths, the arguments of :mod:`farrier._src.bench.child`.
      log: path of the file that takes what the job prints.
      env: the job's environment variables.

    Returns None where that is not possible: then start a process.
    """
    if sys.platform != "linux":
        return None  # elsewhere system libraries do not survive a fork without exec
    key = tuple(sorted((k, v) for k, v in env.items() if k.startswith(_READ_AT_IMPORT)))
    with _lock:
        server = _servers.get(key)
        if server is None or server.dead or server.owner != os.getpid():
            for old in [k for k, s in _servers.items() if s.dead or s.idle]:
                _servers.pop(old).close()
            server = _servers[key] = _Server(env)
    return server.fork(job, out, log, env)


@atexit.register
def close() -> None:
    """Ends this process' servers, and with them their jobs."""
    with _lock:
        for server in _servers.values():
            server.close()
        _servers.clear()
