"""Forms of a program that states its collectives: which passes make them, and what XLA has to be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from farrier._src.collectives import drive

# Made by passes.
PASSES = ("split-batch", "scatter", "chain", "simplify")
# The program as it is, with other options of XLA's; `benchmarks/collectives/sweep.py` found them.
_BY_OPTIONS: dict[str, dict[str, Any]] = {
    # Collectives issued as soon as they can be, several at once: data parallelism gains. Wherever something else than
    # reductions is sent, XLA's order gets slower.
    "early": {
        "compiler_options": {
            "xla_gpu_experimental_collective_start_as_early_as_possible": True,
            "xla_gpu_experimental_parallel_collective_overlap_limit": 4,
        },
        "unlike": frozenset(
            {"all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute"}
        ),
    },
    # Loops unrolled, as far as XLA does: what one tick of a pipeline sends can wait beside the next one's kernels.
    "unroll": {
        "compiler_options": {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_FULL_UNROLL"},
        "needs": frozenset({"while", "collective-permute"}),
    },
}
# The most promising first; each is judged by compiling it, as long as compiles are left.
NAMES = (*PASSES[:2], *_BY_OPTIONS, *PASSES[2:])
# Sums are added up in another order.
_REGROUPS = ("scatter",)

# XLA puts halves of a product on the same weights together again: products that share an operand by the
# first, kernels that share one by the second.
_SPLIT_GUARD = {"xla_disable_hlo_passes": "dot-merger,multi_output_fusion"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form(drive.Variant):
    """A form, with what makes it again."""

    plan: Mapping[str, Any]
    """"name", "pipeline" and "sites": how much each of the passes' counters found."""


def pipeline(name: str, numerics: str, min_bytes: int, bucket_bytes: int | None = None) -> str:
    """The passes that make the form `name` of `PASSES`.

    `bucket_bytes` is the size from which small reductions chained together are a bucket; None: the pass's own.
    """
    regroup = str(numerics != "bitwise").lower()
    if name == "split-batch":
        return f"farrier-split-batch{{min-bytes={min_bytes} regroup={regroup}}}"
    if name == "scatter":
        return f"farrier-scatter-reductions{{min-bytes={min_bytes}}}"
    fewer = f"farrier-simplify-collectives,farrier-merge-collectives{{regroup={regroup}}}"
    if name == "chain":
        bucket = "" if bucket_bytes is None else f"{{bucket-bytes={bucket_bytes}}}"
        return f"{fewer},farrier-chain-collectives{bucket}"
    return fewer


def variants(
    module: Any, names: Sequence[str], *, numerics: str, min_bytes: int, given: Mapping[str, Any]
) -> list[Form]:
    """The forms that differ from the program, the most promising first.

    Args:
      module: a `farrier._core.Module`, left as it is.
      names: of `NAMES`, those to try.
      numerics: "bitwise" leaves sums in the order that they have.
      min_bytes: all-reduces with a smaller result are no reason to split.
      given: the function's own compiler options.
    """
    from farrier._src import interchange

    found, seen = [], {module.fingerprint}
    for name in NAMES:
        if name not in names or (numerics == "bitwise" and name in _REGROUPS):
            continue
        if how := _BY_OPTIONS.get(name):
            # Whoever sets an option has decided.
            if not how["compiler_options"].keys() & given.keys():
                plan = {"name": name, "pipeline": "", "sites": {}}
                found.append(Form(name=name, module=interchange.to_jaxlib(module), plan=plan, **how))
            continue
        copy = module.clone()
        plan = _run(copy, name, pipeline(name, numerics, min_bytes))
        if plan is None or copy.fingerprint in seen:
            continue
        seen.add(copy.fingerprint)
        options = _merged(given, _SPLIT_GUARD) if name == "split-batch" else {}
        found.append(Form(name=name, module=interchange.to_jaxlib(copy), plan=plan, compiler_options=options))
    return found


def stressed(module: Any, names: Sequence[str], *, numerics: str, min_bytes: int) -> dict[str, Any] | None:
    """The plan that applies all of `names`, one after the other; None when they find nothing."""
    left_out = _REGROUPS if numerics == "bitwise" else ()
    taken = [name for name in reversed(PASSES) if name in names and name not in left_out]
    passes = ",".join(pipeline(name, numerics, min_bytes) for name in taken)
    return _run(module.clone(), "+".join(taken), passes) if passes else None


def apply(module: Any, plan: Mapping[str, Any]) -> list[str] | None:
    """Makes the form of `module`, in place; what the program lacks of the plan."""
    if not plan["pipeline"]:
        return None
    found = _sites(module.run(f"builtin.module({plan['pipeline']})"))
    return [
        f"{what}: {count} sites in the plan, {found.get(what, 0)} in the program"
        for what, count in plan["sites"].items()
        if found.get(what, 0) != count
    ] or None


def _run(module: Any, name: str, passes: str) -> dict[str, Any] | None:
    sites = _sites(module.run(f"builtin.module({passes})"))
    return {"name": name, "pipeline": passes, "sites": sites} if sites else None


def _sites(result: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in result.passes:
        for counter, count in record.counters.items():
            if count:
                found[counter] = found.get(counter, 0) + count
    return dict(sorted(found.items()))


def _merged(given: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, str]:
    """Options to add: lists of names go on where the function has its own."""
    return {
        option: f"{given[option]},{names}" if given.get(option) else names for option, names in asked.items()
    }
