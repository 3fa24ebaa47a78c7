"""What a decision depends on, as hashes: the key under which a plan is remembered."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import re
from typing import Any

import jax

from farrier._src import installed, metrics_cache, partitioned_kernels, store

__all__ = ["name_callbacks", "of_module", "plan_key", "versions"]

# jax.config values that change what a function lowers to or what XLA makes of it, without showing
# in the module that is being planned.
_CONFIG = (
    "jax_use_shardy_partitioner",
    "jax_optimization_level",
    "jax_memory_fitting_level",
    "jax_memory_fitting_effort",
    "jax_exec_time_optimization_effort",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_include_full_tracebacks_in_locations",
)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of farrier and of everything that takes part in a compile, by package."""
    return {"farrier": importlib.metadata.version("farrier"), **metrics_cache.compiler_versions()}


def text_key(text: str) -> str:
    """sha256 hex of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


_PARTITIONING = partitioned_kernels.WRAPPER.encode()
_ADDRESS = re.compile(rb'backend_config = "(\d+)"')


def name_callbacks(text: bytes) -> bytes:
    """StableHLO text with the addresses of partitioning callbacks replaced by what they are.

    A partitioning callback (`jax.experimental.custom_partitioning`, which cuDNN attention under automatic
    sharding uses) stands in the module as the address of a Python object. Its name, static arguments and mesh
    say the same in every process. One that cannot be described so keeps its address.
    """
    return _ADDRESS.sub(_describe, text) if _PARTITIONING in text else text


def _describe(match: re.Match[bytes]) -> bytes:
    info = partitioned_kernels.callback(match[1])
    if info is None:
        return match[0]
    described = (
        f"{partitioned_kernels.qualified(info)} {info.static_args!r} {getattr(info.mesh, 'shape', None)!r}"
    )
    if " at 0x" in described:
        return match[0]
    return b"backend_config = " + repr(described).encode()


def of_module(module: Any) -> str:
    """sha256 hex of a `farrier._core.Module` without locations, the same in every process of a job."""
    text = module.print(locations=False)
    if _PARTITIONING not in text:
        return module.fingerprint
    # Large constants are in the text by their content's hash.
    return hashlib.sha256(name_callbacks(text)).hexdigest()


def plan_key(module_fingerprint: str, site: Any, run: Any) -> str:
    """The key of the plan for a program: sha256 hex.

    Args:
      module_fingerprint: of the program, its constants included.
      site: the function's :class:`farrier._src.stages.FunctionSite` (its options and compiler options).
      run: where it is planned for, a :class:`farrier._src.where.Run`.
    """
    return store.content_key(
        {
            "module": module_fingerprint,
            "options": site.options.describe(),
            "budget_bytes": run.budget_bytes,
            "platform": run.platform,
            "target": None if run.target is None else run.target.to_json(),
            "attached": run.attached,
            "measured": run.measure is not None,
            "device_assignment": run.device_ids,
            "compiler_options": {name: repr(value) for name, value in sorted(site.compiler_options.items())},
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
            "jax_config": {name: repr(getattr(jax.config, name, None)) for name in _CONFIG},
            "versions": versions(),
            "build": installed.digest(),
        }
    )
