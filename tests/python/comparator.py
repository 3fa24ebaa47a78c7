"""Optimized against original on CPU, bit by bit, with proof that what was recomputed is really there.

Under the flags in ``trust/flags.py`` XLA:CPU rounds after every operation, and sums in one order: without the
first it keeps bf16 results in f32, without the second it contracts ``x*y+z`` to an FMA wherever fusion puts the
two together, so a bare barrier would already change results. XLA:CPU reads the second when its client starts (as a
compile option it is ignored), so conftest.py sets them for every test, and :func:`compare` refuses to judge
without them.

XLA's algebraic simplifier is off too: it moves a division through a product where nothing stands between
them, and a barrier does (measured on attention: 1e-6 relative without this, no bit with it).

Bitwise equality alone proves nothing when XLA has undone the rewrite: :attr:`Comparison.added` counts
the operations that the optimized program has more of after XLA's own optimizations.
"""

import collections
import dataclasses
import os
import re

import jax
import numpy as np
from trust import flags

OPTIONS = {"xla_disable_hlo_passes": "algsimp"}

# An instruction of the optimized program, in whatever computation: "%name = type opcode(operands)".
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (?:\([^=]*?\)|\S+) ([a-z][\w\-]*)\(", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Both programs' results and operations.

    Attributes:
      differences: paths of results whose bits differ, with how many elements do.
      original, optimized: how often each HLO operation occurs after XLA's optimizations.
    """

    differences: dict[str, int]
    original: collections.Counter
    optimized: collections.Counter

    @property
    def equal(self) -> bool:
        """Whether all results are bitwise the same."""
        return not self.differences

    @property
    def added(self) -> collections.Counter:
        """Operations that the optimized program has more of."""
        return self.optimized - self.original


def compare(optimized, *args, steps: int = 1, **kwargs) -> Comparison:
    """Runs ``optimized`` and its ``original`` on CPU.

    Args:
      optimized: what ``farrier.optimize`` returned.
      *args: real arrays at small shapes. None is donated: each program gets copies.
      steps: how often to run, feeding the first result back as the first argument.
    """
    assert all(flag in os.environ["XLA_FLAGS"] for flag in flags.EXACT), "XLA_FLAGS lacks the exact flags"
    compiled = [
        f.lower(*args, **kwargs).compile(compiler_options=OPTIONS) for f in (optimized.original, optimized)
    ]
    results = [_run(program, args, steps) for program in compiled]
    differences = {}
    for (path, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, results), strict=True):
        count = _different(a, b)
        if count:
            differences[jax.tree_util.keystr(path)] = count
    return Comparison(differences, *(operations(program.as_text()) for program in compiled))


def operations(text: str) -> collections.Counter:
    """How often each operation occurs in HLO text, fused ones included."""
    return collections.Counter(_INSTRUCTION.findall(text))


def _run(program, args, steps):
    args = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, args)
    for step in range(steps):
        result = program(*args)
        if step + 1 < steps:
            args = (result[0], *jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, args[1:]))
    return result


def _different(a, b) -> int:
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return max(a.size, 1)
    bits_a, bits_b = (np.frombuffer(x.tobytes(), np.uint8).reshape(max(x.size, 1), -1) for x in (a, b))
    return int((bits_a != bits_b).any(axis=1).sum()) if a.size else 0
