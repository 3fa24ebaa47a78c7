"""Random pipelines of farrier's passes, every option drawn; none may change what a program computes.

``test_trust_programs.py`` holds this file to the passes' declarations: every pass and every option is drawn.
"""

from __future__ import annotations

import re
from typing import Any

# Rewrites that put other sums or kernels in a program's place stand behind "numerics=bounded".
REWRITES = ("cross-entropy", "attention", "ragged-dot", "one-hot", "sink", "fence", "stacks")
NUMERICS = ("bitwise", "bounded", "relaxed")


def pipeline(random: Any, *, numerics: str = "bitwise") -> str:
    """One to three passes with random options, as the text of a pipeline.

    Args:
      numerics: "bitwise", or "bounded": then the first pass is a substitution, whose sums round differently.
    """
    passes = [_PASSES[random.randrange(len(_PASSES))](random) for _ in range(1 + random.randrange(3))]
    if numerics != "bitwise":
        passes[0] = (_fusion if random.randrange(4) else _split)(random, numerics)
    return f"builtin.module({','.join(passes)})"


def exact(pipeline: str) -> bool:
    """Whether a pipeline that this file drew keeps every bit."""
    return not re.search("numerics=(bounded|relaxed)|regroup=true", pipeline)


def _options(name: str, options: dict[str, Any]) -> str:
    text = " ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}{{{text}}}" if text else name


def _bool(random: Any) -> str:
    return ("false", "true")[random.randrange(2)]


def _remat_stress(random: Any) -> str:
    options = {"stress": random.randrange(1000)}
    # Without a size that everything is below, nothing in a small program is worth a decision.
    options["small-bytes"] = (1, 1, 8, 64)[random.randrange(4)]
    if random.randrange(4) == 3:
        options["offload"] = "true"
    return _options("farrier-remat", options)


def _remat_budget(random: Any) -> str:
    return _options(
        "farrier-remat",
        {
            "budget": (0, 64, 256, 1024, 4096)[random.randrange(5)],
            "objective": ("time", "flops")[random.randrange(2)],
            "small-bytes": (1, 16)[random.randrange(2)],
            "offload": ("false", "false", "true")[random.randrange(3)],
        },
    )


def _loops(random: Any) -> str:
    options: dict[str, Any] = {}
    if random.randrange(2):
        options["stress"] = random.randrange(1000)
    else:
        options["save"] = (0, 0.25, 0.5, 0.75, 0.9)[random.randrange(5)]
    for name in ("replan", "collectives"):
        if random.randrange(2):
            options[name] = ("false", "true")[random.randrange(2)]
    options["sink-bytes"] = (1, 64, 1 << 20)[random.randrange(3)]
    return _options("farrier-remat-loops", options)


def _forget(random: Any) -> str:
    objective, shared = (
        ("time", "false"),
        ("time", "true"),
        ("flops", "false"),
        ("flops", "true"),
    )[random.randrange(4)]
    return _options("farrier-forget-checkpoints", {"objective": objective, "shared": shared})


def _fusion(random: Any, numerics: str = "bitwise") -> str:
    options: dict[str, Any] = {"numerics": numerics, "deterministic": _bool(random)}
    options |= {"chunks": random.randrange(4), "chunk-bytes": 1 << random.randrange(12)}
    options |= {"min-bytes": 0, "min-one-hot-flops": 0, "min-stack-bytes": (1, 256)[random.randrange(2)]}
    options["sink-bytes"] = (1, 256)[random.randrange(2)]
    options["fence-bytes"] = (1, 64, 4096)[random.randrange(3)]
    options["max-head-width"] = (256, 128, 8)[random.randrange(3)]
    if chosen := [name for name in REWRITES if random.randrange(3)]:
        options["rewrites"] = ",".join(chosen)
    return _options("farrier-fusion", options)


def _split(random: Any, numerics: str = "bitwise") -> str:
    # Sums over the halved axis add up in another order.
    regroup = "false" if numerics == "bitwise" else "true"
    return _options("farrier-split-batch", {"min-bytes": (0, 16)[random.randrange(2)], "regroup": regroup})


def _scatter(random: Any, numerics: str = "bitwise") -> str:
    # Each device sums its own part first.
    regroup = "false" if numerics == "bitwise" else "true"
    options = {"min-bytes": (0, 64)[random.randrange(2)], "regroup": regroup}
    return _options("farrier-scatter-reductions", options)


def _chain(random: Any) -> str:
    return _options(
        "farrier-chain-collectives",
        {"bucket-bytes": 1 << random.randrange(10), "combinable-bytes": 1 << random.randrange(12)},
    )


def _merge(random: Any, numerics: str = "bitwise") -> str:
    # A scatter and a gather that become one reduction add up in another order.
    regroup = "false" if numerics == "bitwise" else "true"
    return _options("farrier-merge-collectives", {"regroup": regroup})


_PASSES = (
    _remat_stress,
    _remat_stress,
    _remat_stress,
    _remat_budget,
    _remat_budget,
    _loops,
    _loops,
    _forget,
    _fusion,
    _fusion,
    _split,
    _scatter,
    _chain,
    _merge,
    lambda _: "farrier-simplify-collectives",
    lambda _: "farrier-sink-captures",
    lambda _: "farrier-number-operations",
    lambda _: "cse",
    lambda _: "canonicalize",
    lambda _: "inline",
    lambda _: "loop-invariant-code-motion",
    lambda _: "strip-debuginfo",
)
