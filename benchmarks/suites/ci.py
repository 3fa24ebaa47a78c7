"""The quick suite that every change of this project is gated on: small programs of each kind.

One case for each thing that a pass can make worse: straight-line and scanned layers within a budget, attention given
to cuDNN, gathers by hand that wait; and what farrier leaves alone, automatic sharding with its collectives.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import small
from common import workload
from farrier.bench import Case, OptionSet

TARGETS = ["h100"]
EIGHT = ["h100:1x1x8"]
REFERENCE = "unannotated"


def within(budget: str) -> OptionSet:
    """Rematerialization to a budget, with as many compiles as it takes at least."""
    return OptionSet(
        f"farrier-remat-{budget}",
        optimize={"memory_budget": budget, "passes": ("remat",), "max_compiles": 2},
        budget=budget,
    )


STACK, SCAN = within("1.45GB"), within("3GB")
FUSION = OptionSet("farrier-fusion", optimize={"passes": ("fusion",)})
COLLECTIVES = OptionSet("farrier-collectives", optimize={"passes": ("collectives",)})
OPTION_SETS = [
    OptionSet("unannotated"),
    OptionSet("checkpoint-dots", variant={"remat": "dots"}),
    *(STACK, SCAN, FUSION, COLLECTIVES),
]


def cases():
    yield workload("llm-1b", case="llm-1b-2-layers", layers=2, option_sets=["unannotated", "checkpoint-dots"])
    yield workload("llm-1b-scan", case="llm-1b-scan-4-layers", layers=4, option_sets=["unannotated"])
    yield workload("llm-tiny", case="llm-tiny-sharded", targets=EIGHT, option_sets=["unannotated"], batch=8)
    yield Case("stack", build=small.stack, option_sets=["unannotated", STACK.name])
    yield Case("scan", build=small.scan, option_sets=["unannotated", SCAN.name])
    yield Case("attention", build=small.attention, option_sets=[FUSION.name])
    yield Case("gathered", build=small.gathered, targets=EIGHT, option_sets=["unannotated", COLLECTIVES.name])
