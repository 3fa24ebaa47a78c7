"""Workloads as cases of a suite."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import workloads
from farrier.bench import Case, Unsupported


def workload(
    name: str,
    *,
    case: str | None = None,
    targets: list[str] | None = None,
    option_sets: list[str] | None = None,
    **defaults: Any,
) -> Case:
    """A case that builds workload ``name``; an option set's variant adds to ``defaults``.

    A variant that the workload has no option for (a checkpoint policy of a program without
    layers) is unsupported.
    """

    def build(target: Any, **variant: Any) -> tuple[Any, Any]:
        known = workloads.options(name)
        for key in variant:
            if key not in known:
                raise Unsupported(f"workload {name} has no option {key!r}")
        built = workloads.build(name, target, **{**defaults, **variant})
        return built.function, built.arguments

    return Case(case or name, build=build, targets=targets, option_sets=option_sets)
