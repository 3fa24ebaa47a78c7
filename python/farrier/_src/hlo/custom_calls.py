"""Custom calls by what they do: which launch nothing, which do no matrix work, and farrier's own kernels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

LAUNCH_NOTHING = frozenset(
    (
        "AllocateBuffer",
        "AllocatePersistentBuffer",
        "CreateBuffer",
        "MoveToDevice",
        "MoveToHost",
        "PinToDeviceSram",
        "Sharding",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
        "annotate_device_placement",
        "__nop",
        "xla.sdy.FuncResultSharding",
    )
)
"""Bookkeeping: no kernel runs."""

NO_MATRIX_WORK = LAUNCH_NOTHING | {
    "SliceToDynamic",
    "PadToStatic",
    "TopK",
    "__gpu$TopK",
    "cu_threefry2x32_ffi",
}
"""Those, and kernels that are bound by memory."""

TRITON = "__gpu$xla.gpu.triton"
"""Triton text that XLA compiles."""

_GROUPED = re.compile(r'name = "farrier_grouped_(rows|sums)_([mk]{2})_([gkmn]+)_(\d+)x(\d+)x(\d+)"')


@dataclasses.dataclass(frozen=True)
class Grouped:
    """The fusion pass's grouped matrix product, as its kernel's name describes it."""

    sums: bool
    """Whether rows are summed: [g, k, n] from [m, k] and [m, n]; else [m, n] from [m, k] and [g, k, n]."""
    lhs: str
    """Letters of the axes of the left operand, in order."""
    rhs: str
    rows: int
    """Of one tile of the result."""
    columns: int
    depth: int
    """Of one step of the contraction."""

    def flops(self, lhs: Sequence[int], rhs: Sequence[int], sizes: Sequence[int]) -> int:
        """Matrix FLOPs, an upper bound over all sizes of the groups: every tile counts whole.

        ``(m + g (R - 1)) // R`` tiles of R rows, because each group starts a new one; for sums, as many steps
        along m.

        Args:
          lhs, rhs, sizes: shapes of the operands.
        """
        size = {
            **dict(zip(self.rhs, rhs, strict=True)),
            **dict(zip(self.lhs, lhs, strict=True)),
            "g": sizes[0],
        }
        groups = min(size["g"], size["m"])

        def whole(axis: str, tile: int) -> int:
            return -(-size[axis] // tile) * tile

        def ragged(tile: int) -> int:
            return (size["m"] + groups * (tile - 1)) // tile * tile

        if self.sums:
            return 2 * ragged(self.depth) * whole("n", self.columns) * whole("k", self.rows)
        return 2 * ragged(self.rows) * whole("n", self.columns) * whole("k", self.depth)


def grouped(config: str) -> Grouped | None:
    """What a Triton call's backend configuration (as text) computes; None when it is another kernel."""
    found = _GROUPED.search(config)
    if found is None:
        return None
    kind, lhs, rhs, *tile = found.groups()
    return Grouped(kind == "sums", lhs, rhs, *(int(x) for x in tile))
