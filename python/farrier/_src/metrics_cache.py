"""A persistent cache of measurements, so that a compile whose result is known is not repeated.

One small JSON file per entry, named by the key. Writes are atomic; whatever cannot be read back is a miss.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import platformdirs

from farrier._src import metrics

_FORMAT = 1


def cache_directory(directory: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where cached results live: the argument, else ``FARRIER_CACHE_DIR``, else this system's cache
    directory."""
    if directory is not None:
        return pathlib.Path(directory)
    if env := os.environ.get("FARRIER_CACHE_DIR"):
        return pathlib.Path(env)
    return pathlib.Path(platformdirs.user_cache_dir("farrier", appauthor=False))


@functools.cache
def compiler_versions() -> dict[str, str]:
    """Versions of everything that takes part in a deviceless compile."""
    versions = {}
    for package in (
        "jax",
        "jaxlib",
        "jax-cuda13-plugin",
        "jax-cuda13-pjrt",
        "jax-cuda12-plugin",
        "jax-cuda12-pjrt",
        "nvidia-cudnn-cu13",
        "nvidia-cudnn-cu12",
        "nvidia-cuda-nvcc",
        "nvidia-cuda-nvcc-cu12",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    if ptxas := shutil.which("ptxas"):
        stat = os.stat(ptxas)
        versions["ptxas"] = f"{stat.st_size}:{stat.st_mtime_ns}"
    return versions


def key(
    *, module: bytes, platform: str, compiler_options: Mapping[str, Any], details: Mapping[str, Any]
) -> str:
    """The content address of a measurement.

    Args:
      module: the whole program, constants included.
      platform: the target's configuration and topology, or the attached device's kind.
      compiler_options: XLA options of this compile.
      details: whatever else changes the result (device assignment, sharding propagation).
    """
    import jax

    record = {
        "format": _FORMAT,
        "counting": metrics.code_version(),
        "module": hashlib.sha256(module).hexdigest(),
        "platform": platform,
        "compiler_options": {k: repr(v) for k, v in sorted(compiler_options.items())},
        "details": {k: repr(v) for k, v in sorted(details.items())},
        "versions": compiler_versions(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "jax_config": {
            name: repr(getattr(jax.config, name, None))
            for name in ("jax_use_shardy_partitioner", "jax_optimization_level", "jax_memory_fitting_level")
        },
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class MeasurementCache:
    """Measurements by key in a directory. Safe for several processes at once."""

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self.directory = cache_directory(directory) / "measurements"

    def _path(self, key: str) -> pathlib.Path:
        return self.directory / key[:2] / f"{key}.json"

    def get(self, key: str) -> metrics.Measurement | None:
        """The measurement stored under `key`, or None; a damaged entry is a miss."""
        try:
            entry = json.loads(self._path(key).read_bytes())
            body = entry["measurement"]
            if entry["key"] != key or entry["sha256"] != _checksum(body):
                return None
            return dataclasses.replace(metrics.Measurement.from_json(body), from_cache=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, measurement: metrics.Measurement) -> None:
        """Stores a measurement. A directory that cannot be written to costs the cache, never the result."""
        body = measurement.to_json()
        entry = {"key": key, "sha256": _checksum(body), "measurement": body}
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as f:
                    json.dump(entry, f, sort_keys=True)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
