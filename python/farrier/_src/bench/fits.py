"""Does a step fit a budget on a target? The answer, and the lines that hold the memory."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farrier._src.bench import lines, measure
from farrier._src.bench.metric import format_value


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a step's device memory compares with a budget.

    Attributes:
      measurement: what XLA's compile says (``farrier.Measurement``).
      budget_bytes: the budget in bytes.
      lines: bytes at the peak per source line, see :func:`lines.summarize`.
    """

    measurement: Any
    budget_bytes: int
    lines: tuple[Mapping[str, Any], ...]

    @property
    def fits(self) -> bool:
        """Whether arguments + outputs - aliased + temp is within the budget."""
        return self.measurement.total_bytes <= self.budget_bytes

    def describe(self, *, limit: int = 5) -> str:
        """Says what the memory consists of and which lines hold most of it at the peak."""
        m, size = self.measurement, lambda n: format_value(n, "B")
        over = m.total_bytes - self.budget_bytes
        relation = f"{size(over)} above" if over > 0 else f"{size(-over)} within"
        out = [
            f"{size(m.total_bytes)} of device memory, {relation} the budget of {size(self.budget_bytes)}",
            f"  arguments {size(m.argument_bytes)} + outputs {size(m.output_bytes)} "
            f"- aliased {size(m.alias_bytes)} + temp {size(m.temp_bytes)}",
        ]
        held = [r for r in self.lines if r["bytes"]][:limit]
        if held:
            out.append("  largest at the peak:")
        for r in held:
            where = f"{r['file']}:{r['line']} ({r['function']})" if r["file"] else r["function"]
            out.append(f"    {size(r['bytes']):>12}  {where}" + (f": {r['code']}" if r["code"] else ""))
        return "\n".join(out)


def fit(
    step: Callable[..., Any],
    args: Sequence[Any],
    budget: int | str,
    *,
    target: Any = "h100",
    kwargs: Mapping[str, Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    root: pathlib.Path | None = None,
) -> Fit:
    """Compiles ``step`` for ``target``, without a GPU, and compares its memory with ``budget``.

    Args:
      step: a function; jitted (or made by ``farrier.optimize``) if donation matters.
      args, kwargs: arrays or ``jax.ShapeDtypeStruct``; only shapes, dtypes and shardings count.
      budget: total device memory, bytes or ``"72GiB"``.
      target: a ``farrier.Target`` or a name such as ``"h100"`` or ``"h100:1x1x8"``.
      compiler_options: XLA options of the compile.
      root: source tree whose lines are named; default the current folder.

    Raises:
      farrier.Error: the target or the budget is malformed, or XLA refuses the program.
    """
    import jax

    from farrier._src import oracle

    wanted = measure.budget_bytes(budget)
    on = measure.parse_target(target) if isinstance(target, str) else target
    abstract_args, abstract_kwargs = measure.abstract((tuple(args), dict(kwargs or {})), on)
    jitted = step if hasattr(step, "lower") else jax.jit(step)
    lowered = jitted.lower(*abstract_args, **abstract_kwargs)
    done = measure.compile_and_dump(
        lambda options: oracle.compile_lowered(lowered, on, compiler_options=options), compiler_options or {}
    )
    costs = {"bytes": lines.parse_peak(done.live_ranges)}
    rows = lines.summarize(
        lines.parse_instructions(done.compiled.as_text()), costs, root=root or pathlib.Path.cwd()
    )
    return Fit(done.compiled.measurement, wanted, tuple(rows))
