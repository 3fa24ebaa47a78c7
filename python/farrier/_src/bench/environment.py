"""What a result depends on: versions, machine, commit."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

# Two results whose entries differ here are of different compilers, not of a different program.
COMPARED = ("jax", "jaxlib", "xla_plugin", "cudnn", "xla_flags")

_PACKAGES = {
    "jax": ("jax",),
    "jaxlib": ("jaxlib",),
    "xla_plugin": ("jax-cuda13-plugin", "jax-cuda12-plugin"),
    "cudnn": ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
    "farrier": ("farrier",),
}


def _version(candidates: tuple[str, ...]) -> str:
    for name in candidates:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _processor() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Returns the versions and the machine that results of this process depend on."""
    out = {key: _version(names) for key, names in _PACKAGES.items()}
    out["python"] = platform.python_version()
    out["xla_flags"] = " ".join(sorted(os.environ.get("XLA_FLAGS", "").split()))
    out["machine"] = f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} CPUs"
    return out


def _git(folder: pathlib.Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", "-C", str(folder), *args), capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns ``id``, ``time`` (ISO 8601) and ``dirty`` of the git commit that ``path`` lies in.

    Outside of a repository ``id`` is "none".
    """
    folder = pathlib.Path(path).resolve()
    folder = folder if folder.is_dir() else folder.parent
    head = _git(folder, "log", "-1", "--format=%H %cI")
    if not head:
        return {"id": "none", "time": "", "dirty": False}
    commit, _, time = head.partition(" ")
    dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    return {"id": commit, "time": time, "dirty": dirty}


def differences(baseline: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Returns the compared entries that differ, as ``"jax 0.11.2 -> 0.12.0"``."""
    keys = [*COMPARED, *sorted(k for k in {*baseline, *current} if k.startswith("target "))]
    out = []
    for key in keys:
        old, new = baseline.get(key), current.get(key)
        # A target that only one side has is a matter of coverage, not of versions.
        if key.startswith("target ") and (old is None or new is None):
            continue
        if (old or "") != (new or ""):
            out.append(f"{key} {old or 'unknown'} -> {new or 'unknown'}")
    return out
