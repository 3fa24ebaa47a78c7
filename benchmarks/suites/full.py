"""The full matrix: workloads x rivals x budgets, and the collective workloads x flags.

What is in it, and what is not; a row is 10 to 100 seconds of processor time, all of it about two hours:

* Models keep their published widths and have fewer layers than published ones: what a pass decides for a layer
  repeats, and a compile of four layers takes seconds.
* `llm-1b`, unrolled and scanned, meets every rival there is. The other workloads ask whether the same holds for
  another architecture, sharding or device: they meet the two ends of JAX's own policies, `nothing_saveable` and
  `dots_saveable`, one of them XLA's own rematerialization too. Convolutions have no policy between keeping all and
  nothing; attention written out asks for fusion, whose result needs less memory than any policy's.
* Every pass together is asked once for a kind of program (`EVERY_PASS`): elsewhere rematerialization alone, which is
  what the policies are.
* Manual FSDP and tensor parallelism, whose communication waits most, meet the flags, each flag alone;
  `rivals.overlap_flags()` has the products. `benchmarks/results/collectives` has farrier on all ten collective
  workloads.

`budgets.toml` beside this file holds the budgets of `farrier.optimize`, in bytes, per case: the memory of
`jax.checkpoint` policies that no other policy beats, all of them for `llm-1b` and its scan, the two ends elsewhere,
so that farrier answers the very question that the policy answers. `benchmarks/matrix.py budgets` writes it from the
policies' results.
"""

from __future__ import annotations

import pathlib
import sys
import tomllib

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from common import workload
from farrier.bench import OptionSet
from workloads import rivals

TARGETS = ["h100"]
REFERENCE = "unannotated"
EIGHT = ["h100:1x1x8"]

BUDGETS: dict[str, list[int]] = tomllib.loads(
    pathlib.Path(__file__).with_name("budgets.toml").read_text(encoding="utf-8")
)

# MaxText's own two are measured at scale (benchmarks/remat/scale.py).
EVERY_POLICY = [
    one for one in rivals.checkpoint_policies() if one.variant["remat"] not in ("names-qkv", "offload-qkv")
]
MANY = rivals.checkpoint_policies(
    ["nothing", "dots", "names-mlp", "names-flash-middle", "names-qkv-flash-up", "names-flash-all"]
)
# Attention that is written out has no residuals of its own to name.
NAMES = rivals.checkpoint_policies(["nothing", "dots", "names-attention-middle"])
FLASH = rivals.checkpoint_policies(["nothing", "dots", "names-flash-middle"])
# Models whose layers do not name their values take only JAX's policies.
OF_JAX = rivals.checkpoint_policies(["nothing", "dots"])
# Below these parts of 0.8 x the device's memory XLA's own pass starts to act on programs of this size.
XLA = rivals.xla_rematerialization((15, 10, 5))
XLA_5 = XLA[-1:]
# Needs enzyme_ad beside farrier, see docs/benchmarks.md; unsupported where it is not.
ENZYME = OptionSet("enzyme", transform="enzyme:optimize")
FUSION = OptionSet("farrier-fusion", optimize={"passes": ("fusion",)})
# One setting away from XLA's defaults at a time.
FLAGS = [
    f for f in rivals.overlap_flags(together=False) if not f.name.endswith(("8M", "128M", "loops-double"))
]
COLLECTIVES = OptionSet("farrier-collectives", optimize={"passes": ("collectives",)})

# case: (workload, its options, targets, rivals)
FRONTIERS = {
    "llm-1b": ("llm-1b", {"layers": 4}, TARGETS, [*EVERY_POLICY, *XLA, ENZYME, FUSION]),
    "llm-1b-scan": ("llm-1b-scan", {"layers": 4}, TARGETS, [*MANY, *XLA, FUSION]),
    "llm-1b-naive": ("llm-1b-naive", {"layers": 4}, TARGETS, [*NAMES, *XLA_5, ENZYME, FUSION]),
    "llm-1b-accumulate": ("llm-1b-accumulate", {"layers": 4}, TARGETS, FLASH),
    "llama3-8b-fsdp": ("llama3-8b-scan", {"layers": 4}, EIGHT, OF_JAX),
    "moe-8x7b-fsdp": ("moe-8x7b-scan", {"layers": 2, "batch": 16}, EIGHT, OF_JAX),
    "vit-large": ("vit-large", {}, TARGETS, [*OF_JAX, *XLA_5]),
    "translator": ("translator", {}, TARGETS, OF_JAX),
    "lstm": ("lstm", {}, TARGETS, OF_JAX),
    # The same programs on other devices: other rates, other plans.
    "llm-1b-gb200": ("llm-1b", {"layers": 2}, ["gb200"], OF_JAX),
    "llm-1b-h200": ("llm-1b", {"layers": 2}, ["h200"], OF_JAX),
}

# case: (workload, its options, targets, rivals)
OVERLAP = {
    "fsdp-manual-scan": ("fsdp-manual-scan", {"layers": 4}, EIGHT, FLAGS),
    "tensor-manual": ("tensor-manual", {"layers": 2}, EIGHT, FLAGS),
}


# The one budget (bytes) that all passes together have, of those that rematerialization alone has.
EVERY_PASS = {"llm-1b": 9_510_000_000, "llm-1b-scan": 10_450_000_000, "vit-large": 6_470_000_000}


def farrier_within(budget: int) -> list[OptionSet]:
    """`farrier.optimize` within a budget in bytes: rematerialization alone, and every pass."""
    size = f"{budget / 1e9:.2f}GB"
    return [
        OptionSet(
            f"farrier-remat-{size}", optimize={"memory_budget": budget, "passes": ("remat",)}, budget=budget
        ),
        OptionSet(f"farrier-{size}", optimize={"memory_budget": budget}, budget=budget),
    ]


def option_sets() -> list[OptionSet]:
    """Every option set that a case names, once."""
    sets = [*rivals.unannotated(), *EVERY_POLICY, *XLA, ENZYME, FUSION, *FLAGS, COLLECTIVES]
    for budget in sorted({b for budgets in BUDGETS.values() for b in budgets}):
        sets += farrier_within(budget)
    return list({o.name: o for o in sets}.values())


OPTION_SETS = option_sets()


def cases():
    for case, (name, options, targets, others) in FRONTIERS.items():
        chosen = ["unannotated", *(o.name for o in others)]
        for budget in BUDGETS.get(case, ()):
            alone, together = farrier_within(budget)
            chosen.append(alone.name)
            if EVERY_PASS.get(case) == budget:
                chosen.append(together.name)
        yield workload(name, case=case, targets=targets, option_sets=chosen, **options)
    for case, (name, options, targets, others) in OVERLAP.items():
        chosen = ["unannotated", *(o.name for o in others), COLLECTIVES.name]
        yield workload(name, case=case, targets=targets, option_sets=chosen, **options)
