"""Random pipelines of farrier's passes, every option drawn; none may change what a program computes."""

from __future__ import annotations

from typing import Any


def pipeline(random: Any) -> str:
    """One to three passes with random options, as the text of a pipeline."""
    passes = [_PASSES[random.randrange(len(_PASSES))](random) for _ in range(1 + random.randrange(3))]
    return f"builtin.module({','.join(passes)})"


def _options(name: str, options: dict[str, Any]) -> str:
    text = " ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}{{{text}}}" if text else name


def _remat_stress(random: Any) -> str:
    options = {"stress": random.randrange(1000)}
    # Without a size that everything is below, nothing in a small program is worth a decision.
    options["small-bytes"] = (1, 1, 8, 64)[random.randrange(4)]
    return _options("farrier-remat", options)


def _remat_budget(random: Any) -> str:
    return _options(
        "farrier-remat",
        {
            "budget": (0, 64, 256, 1024, 4096)[random.randrange(5)],
            "objective": ("time", "flops")[random.randrange(2)],
            "small-bytes": (1, 16)[random.randrange(2)],
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


def _fusion(random: Any) -> str:
    # Regrouped sums round differently: those have a bound, and tests of their own.
    return _options(
        "farrier-fusion",
        {"numerics": "bitwise", "chunks": random.randrange(4), "min-bytes": 0, "deterministic": "true"},
    )


def _chain(random: Any) -> str:
    return _options(
        "farrier-chain-collectives",
        {"bucket-bytes": 1 << random.randrange(10), "combinable-bytes": 1 << random.randrange(12)},
    )


_PASSES = (
    _remat_stress,
    _remat_stress,
    _remat_stress,
    _remat_budget,
    _remat_budget,
    _loops,
    _loops,
    _fusion,
    _chain,
    lambda _: "farrier-simplify-collectives",
    lambda _: "farrier-sink-captures",
    lambda _: "cse",
    lambda _: "canonicalize",
)
