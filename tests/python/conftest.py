"""Shared set-up: eight CPU devices, and caches of their own."""

import os

from trust import flags

# Before JAX starts: the sharding tests need several devices.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), flags.DEVICES, *flags.EXACT]).strip()

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test sees a plan or a measurement of another one, or of the developer's machine."""
    monkeypatch.setenv("FARRIER_CACHE_DIR", str(tmp_path / "farrier-cache"))
