"""One process that optimizes the tiny train step: ``python plan_in_a_process.py PLAN save|apply BUDGET``.

Prints one JSON line: how often it searched, and hashes of the module and of the state after one step.
"""

import hashlib
import json
import os
import sys
import warnings

os.environ["JAX_PLATFORMS"] = "cpu"

import test_training
from farrier._src import pipeline

warnings.simplefilter("ignore")


def main(path, what, budget):
    search, searches = pipeline.search, []

    def counted(*arguments):
        searches.append(arguments)
        return search(*arguments)

    pipeline.search = counted
    built = test_training.build()
    arguments = built.real_arguments()
    step = test_training.optimized(built, int(budget), plan=path if what == "apply" else None)
    lowered = step.lower(*arguments)
    if what == "save":
        lowered.plan.save(path)
    state, loss = lowered.compile()(*arguments)
    answer = {
        "searches": len(searches),
        "source": lowered.decision.source,
        "passes": sorted(lowered.plan.passes),
        "module": hashlib.sha256(lowered.as_text(debug_info=True).encode()).hexdigest(),
        "loss": float(loss),
        "step": int(state["step"]),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
