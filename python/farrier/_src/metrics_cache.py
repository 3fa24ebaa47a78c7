"""A persistent cache of measurements, so that a compile whose result is known is not repeated."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from typing import Any

from farrier._src import metrics, store

_FORMAT = 1


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
    return store.content_key(record)


class MeasurementCache:
    """Measurements by key in a directory. Safe for several processes at once."""

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self._store = store.JsonStore("measurements", directory)
        self.directory = self._store.directory

    def get(self, key: str) -> metrics.Measurement | None:
        """The measurement stored under `key`, or None; a damaged entry is a miss."""
        body = self._store.get(key)
        try:
            return (
                None
                if body is None
                else dataclasses.replace(metrics.Measurement.from_json(body), from_cache=True)
            )
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, measurement: metrics.Measurement) -> None:
        """Stores a measurement. A directory that cannot be written to costs the cache, never the result."""
        self._store.put(key, measurement.to_json() | {"held": measurement.held})
