"""One process that trains the tiny step for five steps, optimized and as written: ``python train_in_a_process.py``.

XLA:CPU's code generation rounds by what was fused with what: with LLVM's optimizations one of the five steps differed in
a last bit of a softmax, which bf16 then made visible. The flag that turns them off works only where it is set
before the client starts, so this is a process of its own. Prints one JSON line.
"""

import json
import os
import warnings

from trust import flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join((*flags.EXACT, *flags.UNOPTIMIZED))

import comparator
import test_training

warnings.simplefilter("ignore")


def main():
    built = test_training.build()
    arguments = built.real_arguments()
    step = test_training.optimized(built, test_training.tight_budget(built, arguments))
    decision = step.lower(*arguments).decision
    comparison = comparator.compare(step, *arguments, steps=5)
    answer = {
        "source": decision.source,
        "changed": decision.changed,
        "passes": sorted(decision.plan.passes),
        "bytes": [decision.plan.measured[which]["total_bytes"] for which in ("before", "after")],
        "differences": comparison.differences,
        "added": comparison.added,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
