"""The full matrix: workloads x rivals x budgets. Hours on a laptop; a cluster's job (--scheduler).

Frontiers come from one device (memory against recomputed FLOPs); exposed communication from
eight devices of one host. Budgets are fractions of what the un-annotated program needs, set
down here in bytes so that a result is the answer to a question that does not move.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from common import workload
from farrier.bench import OptionSet
from workloads import names, rivals

TARGETS = ["h100"]
REFERENCE = "unannotated"

# Total device memory per workload, bytes of the un-annotated step times these.
BUDGETS_GB = (60, 40, 30, 20, 16, 12, 10, 8)


def farrier_budgets() -> list[OptionSet]:
    """`farrier.optimize` at each budget."""
    return [
        OptionSet(f"farrier-{n}GB", optimize={"memory_budget": f"{n}GB"}, budget=f"{n}GB") for n in BUDGETS_GB
    ]


# Needs `pip install enzyme_ad` beside farrier; unsupported where it is not.
ENZYME = OptionSet("enzyme", transform="enzyme:optimize")

REMAT = [*rivals.rematerialization(), ENZYME, *farrier_budgets()]
OVERLAP = [
    *rivals.overlap_flags(),
    OptionSet("farrier-collectives", optimize={"passes": ("collectives",)}),
    OptionSet("farrier-fusion", optimize={"passes": ("fusion",)}),
]
OPTION_SETS = [*REMAT, *OVERLAP]

EIGHT = ["h100:1x1x8"]


def cases():
    remat = [o.name for o in REMAT]
    overlap = ["unannotated", *(o.name for o in OVERLAP)]
    for name in names():
        # Weights of 70B parameters do not fit one device in any way.
        if "70b" not in name:
            yield workload(name, option_sets=remat)
        yield workload(name, case=f"{name}-sharded", targets=EIGHT, option_sets=overlap)
