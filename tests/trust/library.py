"""JAX's public functions through farrier: ``python -m trust.library --stress 1``.

Every function of ``library_calls`` becomes up to three programs: the call; its gradient; a gradient of a loop of it.
Each runs as it is and under ``farrier.optimize_all``, and all bits of all results are compared. So do the programs of
``tests/programs`` that run on CPU. Prints one JSON object of counts.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trust import flags

os.environ.setdefault("XLA_FLAGS", " ".join((flags.DEVICES, *flags.EXACT, *flags.UNOPTIMIZED)))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Two runs of one program draw different numbers.
VARIES = {"hidden_random_state"}
Program = tuple[str, Callable, list]


def _floats(arrays: list) -> tuple[int, ...]:
    import jax

    return tuple(i for i, a in enumerate(arrays) if jax.dtypes.issubdtype(a.dtype, np.floating))


def _scalar(out: Any) -> Any:
    """A number that depends on every float in ``out``, not linearly: its gradient needs what the call computed."""
    import jax
    import jax.numpy as jnp

    leaves = [leaf for leaf in jax.tree.leaves(out) if jax.dtypes.issubdtype(leaf.dtype, np.floating)]
    return sum(jnp.tanh(leaf.astype(jnp.float32)).sum() for leaf in leaves)


def forms(call: Any) -> Iterator[Program]:
    """The programs made from one call."""
    import jax
    from jax import lax

    function, arrays = call.split()
    out = jax.eval_shape(function, *arrays)
    yield call.name, function, arrays
    leaves = jax.tree.leaves(out)
    where = _floats(arrays)
    if not where or not any(jax.dtypes.issubdtype(leaf.dtype, np.floating) for leaf in leaves):
        return

    def differentiable(loss: Callable) -> Callable | None:
        gradient = jax.value_and_grad(loss, argnums=where)
        try:
            jax.eval_shape(gradient, *arrays)
        except Exception:
            return None
        return gradient

    if gradient := differentiable(lambda *given: _scalar(function(*given))):
        yield f"grad {call.name}", gradient, arrays
    first = arrays[where[0]]
    same = len(leaves) == 1 and (leaves[0].shape, leaves[0].dtype) == (first.shape, first.dtype)
    if not same:
        return

    def looped(*given):
        def body(carry, _):
            mixed = list(given)
            mixed[where[0]] = carry
            (new,) = jax.tree.leaves(function(*mixed))
            return (0.5 * carry + 0.5 * jax.numpy.tanh(new)).astype(carry.dtype), new

        return _scalar(lax.scan(body, given[where[0]], None, length=3))

    if gradient := differentiable(looped):
        yield f"grad of a loop of {call.name}", gradient, arrays


def zoo() -> Iterator[Program]:
    """The programs of tests/programs that run here, and the gradients of those that have one."""
    import jax
    import programs

    for program in programs.programs(platform="cpu", runs=True, symbolic=False):
        if program.name in VARIES or program.abstract_gpu:
            continue
        function, arguments = program.build()
        yield f"programs.{program.name}", function, list(arguments)
        if program.has_gradient:

            def loss(first, *rest, function=function):
                return _scalar(function(first, *rest))

            yield f"grad programs.{program.name}", jax.grad(loss, allow_int=True), list(arguments)


def bits(function: Callable, arguments: list) -> list[tuple[str, bytes]] | str:
    """Type and bytes of every result; the error's first line where it raises."""
    import jax

    jitted = function if hasattr(function, "trace") else jax.jit(function)
    given = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, arguments)
    try:
        results = jax.block_until_ready(jitted(*given))
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    found = []
    for leaf in jax.tree.leaves(results):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        if jax.dtypes.issubdtype(array.dtype, np.inexact):
            array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
        found.append((f"{array.dtype}{array.shape}", array.tobytes()))
    return found


def run(
    only: str,
    modes: dict[str, int | None],
    batch: int,
    seconds: float | None,
    note: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Counts; what differs, and what farrier refused, by name.

    Args:
      modes: name to seed of ``farrier.optimize_all``; None is its default mode.
      seconds: of processor time after which no further batch starts.
      note: told of the counts so far after each batch.
    """
    import farrier
    import jax

    from trust import library_calls

    calls, without = library_calls.calls(only)
    # In an order of its own, so that a run that is cut off has seen a bit of everything.
    random.Random(0).shuffle(calls)
    names = {call.name for call in calls}
    seen_names: set[str] = set()

    def everything() -> Iterator[Program]:
        for call in calls:
            seen_names.add(call.name)
            yield from forms(call)
        for entry in zoo():
            if entry[0].removeprefix("grad ").startswith(only):
                yield entry

    counts: collections.Counter[str] = collections.Counter()
    differing, refused, raising = [], collections.Counter(), []
    start, processor = time.monotonic(), time.process_time()

    def report() -> dict[str, Any]:
        return {
            "jax": jax.__version__, "only": only, "modes": modes, "functions": len(names), "functions run": len(seen_names), "calls": len(calls),
            "without arguments": without, "raise without farrier": raising, **counts, "differing": differing,
            "refused": dict(refused), "seconds": round(time.monotonic() - start),
        }  # fmt: skip

    source = everything()
    while (seconds is None or time.process_time() - processor < seconds) and (
        group := [p for _, p in zip(range(batch), source, strict=False)]
    ):
        expected = [bits(function, arguments) for _, function, arguments in group]
        for mode, seed in modes.items():
            with farrier.optimize_all(stress=seed) as seen:
                for (name, function, arguments), want in zip(group, expected, strict=True):
                    if isinstance(want, str):
                        continue
                    before = seen.changed
                    got = bits(function, arguments)
                    counts[f"{mode}: compared"] += 1
                    counts[f"{mode}: changed"] += seen.changed > before
                    if got != want:
                        differing.append(f"{mode}: {name}" + (f": {got}" if isinstance(got, str) else ""))
                refused.update(f"{mode}: {reason}" for _, reason in seen.refused)
                counts[f"{mode}: modules"] += seen.programs
        raising += [
            f"{p[0]}: {want}" for p, want in zip(group, expected, strict=True) if isinstance(want, str)
        ]
        jax.clear_caches()
        note(report())
    return report()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help="functions whose name begins so: numpy., lax., random. ..."
    )
    parser.add_argument("--stress", type=int, default=1, help="seed of the stress mode")
    parser.add_argument("--modes", nargs="*", default=["stress", "default"], choices=["stress", "default"])
    parser.add_argument("--batch", type=int, default=100, help="programs between two notes")
    parser.add_argument("--seconds", type=float, help="of processor time; then the run ends")
    parser.add_argument("-o", dest="output", type=pathlib.Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    def note(report: dict[str, Any]) -> None:
        if arguments.output:
            arguments.output.write_text(json.dumps(report, indent=1) + "\n")

    modes = {mode: arguments.stress if mode == "stress" else None for mode in arguments.modes}
    report = run(arguments.only, modes, arguments.batch, arguments.seconds, note)
    print(json.dumps(report, indent=1))
    return 1 if report["differing"] or report["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
