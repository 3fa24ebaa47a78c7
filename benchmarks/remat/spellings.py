"""How much XLA:GPU's own memory depends on how a program is spelt: for every unseen program (`benchmarks/unseen`) temporaries as
written, and where the same operations stand in other legal orders and half of all sums and products have their operands
exchanged, which changes no result. What differs there no estimate can tell that does not repeat XLA's choices one by one.

    python benchmarks/remat/spellings.py --output spellings.jsonl           # goes on where it was interrupted
    python benchmarks/remat/spellings.py --output spellings.jsonl --show    # only the table
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Iterator
from typing import Any

from farrier._src import oracle
from programs import lowered, measure_each
from rich.console import Console
from rich.table import Table

_SPELLINGS = 3
# An operation moves up over so many at the most that stand before it: a forward part stays one.
_NEAR = 20
_COMMUTE = ("stablehlo.add", "stablehlo.multiply")


def respell(block: Any, choices: random.Random) -> None:
    """Puts the operations of `block`, and of those inside of it, into another legal order, and exchanges operands of sums and
    products; `choices` says which.
    """
    *body, last = (each.operation for each in block.operations)
    made = {result: at for at, op in enumerate(body) for result in op.results}
    needs = [{made[v] for v in _read(op) if v in made} - {at} for at, op in enumerate(body)]
    readers: list[list[int]] = [[] for _ in body]
    for at, needed in enumerate(needs):
        for each in needed:
            readers[each].append(at)
    waiting = [len(needed) for needed in needs]
    ready = [at for at, count in enumerate(waiting) if not count]
    while ready:
        at = choices.choice([each for each in ready if each < ready[0] + _NEAR])
        ready.remove(at)
        heapq.heapify(ready)
        body[at].move_before(last)
        for reader in readers[at]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    for op in body:
        if op.name in _COMMUTE and choices.random() < 0.5:
            op.operands[0], op.operands[1] = list(op.operands)[::-1]
        for region in op.regions:
            for inner in region.blocks:
                respell(inner, choices)


def _read(op: Any) -> Iterator[Any]:
    """Values that an operation, or one inside of it, reads."""
    yield from op.operands
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _read(inner.operation)


def spellings(name: str) -> dict[str, Any]:
    """Temporary bytes on a device as written, and of other spellings."""
    step, target = lowered(name)
    text = str(step.compiler_ir("stablehlo"))

    def measured(seed: int) -> int:
        module = oracle.parse_module(text)
        with module.context:
            for function in module.body.operations:
                if function.operation.name == "func.func":
                    respell(function.regions[0].blocks[0], random.Random(seed))
            module.operation.verify()
        return oracle.measure(module, target).temp_bytes

    return {
        "written_bytes": oracle.measure(text, target).temp_bytes,
        "spelt_bytes": [measured(seed) for seed in range(_SPELLINGS)],
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("part", "program", "written", "least", "most", "apart", title="temporary MB, H100")
    apart = []
    for row in rows:
        sizes = [row["written_bytes"], *row["spelt_bytes"]]
        apart.append(max(sizes) / min(sizes) - 1)
        shown = (f"{size / 1e6:.1f}" for size in (sizes[0], min(sizes), max(sizes)))
        table.add_row(row["part"], row["program"], *shown, f"{apart[-1]:.1%}")
    console = Console()
    console.print(table)
    if apart:
        console.print(
            f"{len(apart)} programs: mean {statistics.mean(apart):.1%}, most {max(apart):.1%}; "
            f"{sum(each >= 0.01 for each in apart)} by 1 % or more, {sum(each >= 0.05 for each in apart)} by 5, "
            f"{sum(each >= 0.1 for each in apart)} by 10"
        )


if __name__ == "__main__":
    measure_each(__doc__, spellings, show)
