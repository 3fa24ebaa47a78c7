"""The estimate of a random step's memory against XLA:GPU's: ``python -m trust.estimates --programs 20 --seed 0``.

Random JAX train steps at sizes where buffers are what counts, each compiled for one H100 without a GPU. The property is
one-sided: a plan made with an estimate that is too low does not fit. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# XLA may take this much more than was estimated: FACTOR times the estimate and SLACK bytes. An operation that the
# estimate lets update in place may keep its operand as well, so what is alive can be twice as much; buffers below
# 4 MiB are small for the estimate, and it takes a few of them for parts of fusions.
FACTOR = 2
SLACK = 4 * (4 << 20)
# Activations are above 4 MiB then.
SCALE = 64


def measured(seed: int) -> dict[str, Any]:
    """Estimated and measured temporary bytes of one step; the error's first line where XLA does not compile it."""
    import farrier
    from farrier._src import interchange, oracle

    from trust import jax_programs

    function, arguments = jax_programs.step(random.Random(seed), SCALE)
    module = function.trace(*arguments).lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    estimate = json.loads(interchange.to_core(module).query("memory.estimate"))["temp"]
    try:
        # The module, not the lowering: that one is for this machine's CPU.
        temp = oracle.measure(module, farrier.Target("h100")).temp_bytes
    except farrier.CompileError as error:  # cuSOLVER's handlers need a GPU
        return {"seed": seed, "not compiled": str(error).splitlines()[0]}
    return {"seed": seed, "estimate": estimate, "temp": temp, "ratio": round(temp / max(estimate, 1), 2)}


def within(row: dict[str, Any]) -> bool:
    """Whether XLA takes no more than the bound allows."""
    return row.get("temp", 0) <= FACTOR * row.get("estimate", 0) + SLACK


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", dest="output", type=pathlib.Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seed, arguments.seed + arguments.programs):
        rows.append(measured(seed))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    above = [row for row in rows if not within(row)]
    print(json.dumps({"programs": len(rows), "above the bound": above, "rows": rows}))
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
