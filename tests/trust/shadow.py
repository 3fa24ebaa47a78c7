"""pytest plugin: whatever is compiled while a suite runs goes through farrier, and runs beside the original.

``pytest -p trust.shadow`` with ``FARRIER_TRUST=1|stress:SEED`` and ``FARRIER_TRUST_REPORT=file``. Each program that
farrier changes is compiled a second time as it was; each execution runs both on the same arguments and compares
all results bit by bit (NaNs count as equal). So a difference is seen in the program that has it, whatever the
suite's own tolerances are. A program that comes back byte-identical needs no second run.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import threading
from typing import Any

import jax
import numpy as np
import pytest
from farrier._src import compat, everywhere
from jax._src import compiler, pjit
from jax._src.interpreters import pxla
from jaxlib.mlir import ir

_DONATION = re.compile(
    r",? ?(?:tf\.aliasing_output = \d+ : i32|jax\.buffer_donor = true|mhlo\.layout_mode = \"[^\"]*\")"
)
# Results that are not a function of the arguments.
_VARIES = ('stablehlo.rng"', "infeed", "recv", "callback", "stablehlo.rng ")


class Shadow:
    """Counts, and the executables that run twice."""

    def __init__(self, stress: int | None):
        self.hook = everywhere._Everywhere(stress, strict=False)
        self.counts: collections.Counter[str] = collections.Counter()
        self.differing: list[dict[str, Any]] = []
        self._local = threading.local()
        self._compile = compiler.compile_or_get_cached
        compiler.compile_or_get_cached = self.compile
        self._no_fast_path()

    def compile(self, backend, computation, *args, **kwargs):
        with computation.context:
            before = _text(computation)
            module = self.hook(computation, backend.platform)
            after = _text(module)
        executable = self._compile(backend, module, *args, **kwargs)
        if after == before:
            return executable
        if any(word in before for word in _VARIES):
            self.counts["changed, not comparable"] += 1
            return executable
        with computation.context:
            original = ir.Module.parse(_without_donation(before))
        self.counts["changed, compared"] += 1
        name = compat.module_name(computation)
        return Twice(self, name, executable, self._compile(backend, original, *args, **kwargs), before, after)

    def _no_fast_path(self) -> None:
        """JAX's C++ dispatch would call the executable itself: what runs twice stays in Python."""
        fast = pjit._get_fastpath_data

        def fastpath(executable, *args, **kwargs):
            if isinstance(getattr(executable, "xla_executable", None), Twice):
                return None
            return fast(executable, *args, **kwargs)

        pjit._get_fastpath_data = fastpath
        create = pxla.MeshExecutable.create_cpp_call

        def create_cpp_call(self, *args, **kwargs):
            if isinstance(self.xla_executable, Twice):
                return None
            return create(self, *args, **kwargs)

        pxla.MeshExecutable.create_cpp_call = create_cpp_call

    def report(self) -> dict[str, Any]:
        seen = self.hook.seen
        return {
            "programs": seen.programs,
            "changed": seen.changed,
            "refused": collections.Counter(reason for _, reason in seen.refused),
            **self.counts,
            "differing": self.differing,
        }


class Twice:
    """An executable that runs the original first and compares."""

    def __init__(self, shadow: Shadow, name: str, executable: Any, original: Any, before: str, after: str):
        self._shadow, self._name = shadow, name
        self._executable, self._original = executable, original
        self._texts = before, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executable, name)

    def execute_sharded(self, arguments, with_tokens=False):
        if with_tokens:
            self._shadow.counts["executions not compared"] += 1
            return self._executable.execute_sharded(arguments, with_tokens=True)
        expected = [
            [np.asarray(shard) for shard in shards]
            for shards in self._original.execute_sharded(arguments).disassemble_into_single_device_arrays()
        ]
        return Results(self, self._executable.execute_sharded(arguments), expected)

    def compare(self, expected, results) -> None:
        self._shadow.counts["executions compared"] += 1
        from trust.check import different

        for position, (shards, result) in enumerate(zip(expected, results, strict=True)):
            array = getattr(result, "_base_array", result)
            for want, shard in zip(shards, getattr(array, "addressable_shards", ()), strict=False):
                got = np.asarray(shard.data)
                if want.dtype != got.dtype or not different(want, got):
                    continue
                self._shadow.differing.append(
                    {
                        "program": self._name,
                        "test": os.environ.get("PYTEST_CURRENT_TEST", ""),
                        "result": position,
                        "elements": different(want, got),
                        "of": int(want.size),
                    }
                )
                self._keep()
                return

    def _keep(self) -> None:
        folder = os.environ.get("FARRIER_TRUST_KEEP")
        if folder and len(self._shadow.differing) <= 20:
            for which, text in zip(("before", "after"), self._texts, strict=True):
                path = os.path.join(folder, f"{os.getpid()}-{len(self._shadow.differing)}-{which}.mlir")
                with open(path, "w") as file:
                    file.write(text)


class Results:
    """Results that are compared when JAX takes them."""

    def __init__(self, twice: Twice, results: Any, expected: Any):
        self._twice, self._results, self._expected = twice, results, expected

    def __getattr__(self, name: str) -> Any:
        return getattr(self._results, name)

    def consume_with_handlers(self, *args, **kwargs):
        out = self._results.consume_with_handlers(*args, **kwargs)
        with jax.transfer_guard("allow"), contextlib.suppress(RuntimeError):
            self._twice.compare(self._expected, out)
        return out


def _text(module: Any) -> str:
    return module.operation.get_asm(print_generic_op_form=True)


def _without_donation(text: str) -> str:
    """The original must leave the arguments for the second run."""
    text = _DONATION.sub("", text)
    return text.replace("{, ", "{")


_shadow: Shadow | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _shadow
    value = os.environ.get("FARRIER_TRUST", "")
    if value and _shadow is None:
        _shadow = Shadow(None if value == "1" else int(value.removeprefix("stress:")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("FARRIER_TRUST_REPORT")
    if _shadow is not None and path:
        with open(f"{path}.{os.getpid()}", "w") as file:
            json.dump(_shadow.report(), file, indent=1)
