"""Every ``jax.jit`` of a process through farrier: a test of farrier, and a way to try it on a whole program.

What JAX hands to its compiler is read into farrier's MLIR, goes through the passes and comes back. That is later
than ``farrier.optimize`` works (shardings and donation are settled, nothing is traced), so it also reaches what
libraries jit by themselves, and single operations outside of any jit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from farrier._src import compat, errors, interchange, pipeline
from farrier._src.stages import OptimizeWarning

__all__ = ["Everything", "from_environment", "optimize_all"]


def _stress(seed: int) -> str:
    """Every pass in an arbitrary order, with arbitrary legal choices: bits must not depend on them.

    Of the fusion rewrites those that keep every bit; the stacks' is left out, whose buffers only XLA:GPU has.
    """
    draw = random.Random(seed)
    passes = [
        "farrier-simplify-collectives",
        "farrier-merge-collectives{regroup=false}",
        f"farrier-chain-collectives{{bucket-bytes={1 << draw.randrange(8)}}}",
        "farrier-split-batch{min-bytes=0 regroup=false}",
        "farrier-scatter-reductions{min-bytes=0 regroup=false}",
        f"farrier-fusion{{numerics=bitwise min-bytes=0 chunks={1 + draw.randrange(4)} sink-bytes=1 fence-bytes=1 rewrites=cross-entropy,sink,fence}}",
        "farrier-forget-checkpoints",
        f"farrier-remat-loops{{stress={seed} sink-bytes=1}}",
        "inline",
        "cse",
        "canonicalize",
    ]
    draw.shuffle(passes)
    return f"builtin.module({','.join(passes)},farrier-remat{{stress={seed} small-bytes=1}})"


@dataclasses.dataclass
class Everything:
    """What went through while ``optimize_all`` was on.

    Attributes:
      programs: programs that JAX compiled.
      changed: how many of them farrier changed.
      refused: (program's name, reason) of each that was compiled as it was, because farrier failed on it.
    """

    programs: int = 0
    changed: int = 0
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


class _Everywhere:
    """The hook: takes the module that JAX is about to compile, gives the one to compile."""

    def __init__(self, stress: int | None, strict: bool):
        self.stress = stress
        self.strict = strict
        self.seen = Everything()
        self._lock = threading.Lock()
        self._warned = False

    def __call__(self, module: Any, platform: str) -> Any:
        with self._lock:
            self.seen.programs += 1
        try:
            result, changed = self._through(module, platform)
        except Exception as error:
            if self.strict:
                raise
            self._refuse(module, error)
            return module
        with self._lock:
            self.seen.changed += changed
        return result

    def _through(self, module: Any, platform: str) -> tuple[Any, bool]:
        core = interchange.to_core(module)
        before = core.print()
        # Without a budget rematerialization has nothing to decide, and nobody is there to listen.
        context = pipeline.Context(
            function=compat.module_name(module),
            platform=platform,
            partitions=1,
            target=None,
            budget_bytes=None,
            budget_binding=False,
            objective="time",
            numerics="bitwise" if self.stress is not None else "bounded",
            max_compiles=0,
            measure=None,
            remark=lambda remark: None,
        )
        # Scheduling collectives takes compiles of its own.
        drivers = pipeline.drivers_for([n for n in pipeline.default_passes() if n != "collectives"])
        pipeline.apply(core, drivers, pipeline.search(core, drivers, context).passes)
        if self.stress is not None:
            core.run(_stress(self.stress))
        return interchange.to_jaxlib(core, module.context), core.print() != before

    def _refuse(self, module: Any, error: Exception) -> None:
        text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        name = compat.module_name(module)
        with self._lock:
            self.seen.refused.append((name, text))
            first, self._warned = not self._warned, True
        if first:
            warnings.warn(
                f"farrier.optimize_all: {name} runs as it was written, because optimizing it failed: {text}; "
                "further failures are counted in silence",
                OptimizeWarning,
                stacklevel=2,
            )


@contextlib.contextmanager
def optimize_all(*, stress: int | None = None, strict: bool = False) -> Iterator[Everything]:
    """While it is on, every program that JAX compiles in this process goes through farrier first.

    JAX's caches are cleared on the way in and out, so that what was compiled before goes through as well and
    nothing stays behind. The environment variable ``FARRIER_OPTIMIZE_ALL`` does the same for a whole process
    that imports farrier: ``1``, ``stress`` or ``stress:SEED``.

    Keyword Args:
      stress: a seed: arbitrary legal choices in every program instead of good ones, for tests.
      strict: raise when a pass fails on a program, instead of compiling that one as it was.

    Yields:
      the counts of what went through (:class:`farrier.Everything`), which grow while it is on.

    >>> import jax.numpy as jnp
    >>> with optimize_all() as seen:
    ...     _ = jax.jit(lambda x: x + 1)(jnp.ones(3))
    >>> seen.programs > 0
    True
    """
    hook = _Everywhere(stress, strict)
    jax.clear_caches()
    remove = compat.before_compiles(hook)
    try:
        yield hook.seen
    finally:
        remove()
        jax.clear_caches()


_forever: list[Everything] = []


def from_environment() -> None:
    """Turns ``optimize_all`` on for the rest of the process as ``FARRIER_OPTIMIZE_ALL`` says.

    Raises:
      farrier.OptionError: the variable has a value that means nothing.
    """
    value = os.environ.get("FARRIER_OPTIMIZE_ALL", "")
    if value in ("", "0") or _forever:
        return
    match = re.fullmatch(r"1|stress(?::(\d+))?", value)
    if match is None:
        raise errors.OptionError(
            f"FARRIER_OPTIMIZE_ALL={value!r} means nothing", hint="use 1, stress or stress:SEED"
        )
    stress = None if value == "1" else int(match[1] or 0)
    hook = _Everywhere(stress, strict=False)
    compat.before_compiles(hook)
    _forever.append(hook.seen)
