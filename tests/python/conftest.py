"""Shared set-up: eight CPU devices, and caches of their own."""

import os

# Before JAX starts: the sharding tests need several devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # One rounding per operation, so that results can be compared bit by bit (see comparator.py).
        "--xla_allow_excess_precision=false",
        "--xla_cpu_max_isa=AVX",
    ]
).strip()

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test sees a plan or a measurement of another one, or of the developer's machine."""
    monkeypatch.setenv("FARRIER_CACHE_DIR", str(tmp_path / "farrier-cache"))
