"""What farrier is compared with, as option sets of `farrier bench`: always measured in the same run.

* `unannotated`: the program as written.
* `checkpoint_policies`: `jax.checkpoint` by hand, every policy of JAX and of names.
* `xla_rematerialization`: XLA's own pass, made to act by a smaller memory limit.
* `overlap_flags`: XLA's options for collectives, those a function can set for itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from farrier.bench import OptionSet

from workloads import remat_policies


def unannotated() -> list[OptionSet]:
    """The program as written: what every other option set is measured against."""
    return [OptionSet("unannotated")]


def checkpoint_policies(names: Sequence[str] | None = None) -> list[OptionSet]:
    """One option set per `jax.checkpoint` policy, for workloads with an option ``remat``.

    Args:
      names: some of `remat_policies.names()`; None: all of them.
    """
    chosen = [n for n in remat_policies.names() if n != "none"] if names is None else list(names)
    return [OptionSet(f"checkpoint-{n}", variant={"remat": n}) for n in chosen]


def xla_rematerialization(percent: Sequence[int] = (60, 40, 30, 20, 15, 10, 5)) -> list[OptionSet]:
    """XLA's own rematerialization under ever smaller limits, with the target's memory as it is.

    XLA starts to recompute where the temporaries exceed ``percent`` of 0.8 times the device's memory less
    arguments and results; 100 is its default.
    """
    return [
        OptionSet(f"xla-remat-{p}", compiler_options={"xla_gpu_memory_limit_slop_factor": p}) for p in percent
    ]


_THRESHOLDS = (
    "xla_gpu_all_gather_combine_threshold_bytes",
    "xla_gpu_all_reduce_combine_threshold_bytes",
    "xla_gpu_reduce_scatter_combine_threshold_bytes",
)


def overlap_flags(*, together: bool = True) -> list[OptionSet]:
    """A grid over the options that steer overlap: how much is combined, how much runs at once, loop
    buffering.

    Args:
      together: every combination; False: one setting away from XLA's defaults at a time.
    """
    axes: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "combine": [
            ("combine-default", {}),
            ("combine-nothing", dict.fromkeys(_THRESHOLDS, 0)),
            ("combine-8M", dict.fromkeys(_THRESHOLDS, 8 << 20)),
            ("combine-128M", dict.fromkeys(_THRESHOLDS, 128 << 20)),
            ("combine-1G", dict.fromkeys(_THRESHOLDS, 1 << 30)),
        ],
        "parallel": [
            ("one-at-a-time", {}),
            ("four-at-a-time", {"xla_gpu_experimental_parallel_collective_overlap_limit": 4}),
        ],
        "loops": [
            ("loops-plain", {}),
            ("loops-double", {"xla_gpu_enable_while_loop_double_buffering": True}),
        ],
    }
    sets = []
    for combination in itertools.product(*axes.values()):
        options = {k: v for _, settings in combination for k, v in settings.items()}
        changed = sum(bool(s) for _, s in combination)
        if changed == 1 or (changed and together):
            sets.append(
                OptionSet("flags-" + "-".join(n for n, s in combination if s), compiler_options=options)
            )
    # jax.config.jax_optimization_level's O3, as a number the compiler option takes.
    sets.append(OptionSet("flags-effort", compiler_options={"optimization_level": 39}))
    return sets


def rematerialization() -> list[OptionSet]:
    """All rivals of the rematerialization pass."""
    return unannotated() + checkpoint_policies() + xla_rematerialization()


def overlap() -> list[OptionSet]:
    """All rivals of the collectives pass."""
    return unannotated() + overlap_flags()
