"""Forks one process a job, with everything that every job imports already there.

Runs as ``python -m farrier._src.bench.fork_server``. Importing jax costs seconds of CPU, many times what a small
job does. This process imports it once, starts no XLA backend (whose threads a fork would lose) and forks for each
line that it reads from standard input: JSON with ``id``, ``job`` and ``out`` (the arguments of
:mod:`farrier._src.bench.child`), ``log``, ``cwd`` and ``env``. It answers ``started ID PID`` and ``ended ID CODE``,
the code negative for a signal. At the end of its input, so also when whoever started it is killed, it ends its jobs
and itself.

`multiprocessing`'s own fork server runs the main module of whoever uses it again in each child; a user's script that
calls `run_suite` would run itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

# What a measuring job imports sooner or later; none of it starts a backend.
PRELOAD = (
    "farrier.bench",
    "farrier._src.bench.child",
    "farrier._src.bench.measure",
    "farrier._src.bench.reports",
)


def _become(request: Mapping[str, Any]) -> NoReturn:
    """Turns the forked process into the job's, as if it had been started for it."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, place in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, place)
        os.closerange(3, max(log, nothing) + 1)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        # Where `python -m` looks first.
        sys.path[0] = request["cwd"]
        from farrier._src.bench import child

        code = child.main([request["job"], request["out"]])
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not sys.exit: what the server registered to happen at its end is not the job's.
        os._exit(code)


def _fork(request: Mapping[str, Any]) -> int:
    with warnings.catch_warnings():
        # Python warns of numpy's idle worker threads; OpenBLAS restarts them in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        _become(request)
    # On both sides: neither knows which one runs first.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    return pid


def main() -> None:
    """Serves until standard input ends."""
    # Whatever an import prints must not be taken for an answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    for name in PRELOAD:
        importlib.import_module(name)
    # Objects that stay: a collection in a child would touch, and so copy, their pages.
    gc.freeze()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    waiting = selectors.DefaultSelector()
    waiting.register(0, selectors.EVENT_READ)
    waiting.register(wake, selectors.EVENT_READ)
    running: dict[int, int] = {}
    unread = b""

    def answer(text: str) -> None:
        os.write(answers, text.encode() + b"\n")

    while True:
        for key, _ in waiting.select():
            if key.fd == wake:
                os.read(wake, 4096)
                while running:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == 0:
                        break
                    answer(f"ended {running.pop(pid)} {os.waitstatus_to_exitcode(status)}")
                continue
            data = os.read(0, 1 << 16)
            if not data:
                for pid in running:
                    with contextlib.suppress(OSError):
                        os.killpg(pid, signal.SIGKILL)
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = _fork(request)
                running[pid] = request["id"]
                answer(f"started {request['id']} {pid}")


if __name__ == "__main__":
    main()
