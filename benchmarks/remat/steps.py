"""Training steps under a `jax.checkpoint` policy or a budget of farrier's, compiled for H100s and measured."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import farrier
from farrier._src import oracle

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import workloads


@dataclasses.dataclass(frozen=True)
class Step:
    """A workload with options, on one H100 or several."""

    workload: str
    topology: str = "1x1x1"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def target(self) -> farrier.Target:
        """What it is compiled for."""
        return farrier.Target("h100", topology=self.topology)

    def built(self, **more: Any) -> workloads.Built:
        """The step, with more options: `remat` names a policy."""
        return workloads.build(self.workload, self.target, **self.options, **more)

    def written(self, policy: str) -> dict[str, Any]:
        """The step under a policy, measured; sizes in bytes of one device."""
        built = self.built(remat=policy)
        measurement = oracle.measure(built.lower(), self.target)
        return described(measurement.to_json()) | {"total_bytes": measurement.total_bytes}

    def plan(self, budget: int, **options: Any) -> farrier.Plan:
        """What `farrier.optimize` with these options decides within `budget` bytes in total.

        Raises:
          farrier.BudgetError: nothing keeps it.
        """
        built = self.built()
        step = farrier.optimize(built.function, memory_budget=budget, target=self.target, **options)
        return step.plan(*built.arguments)

    def searched(self, budget: int, *, host: bool, compiles: int, objective: str = "time") -> dict[str, Any]:
        """What rematerialization finds within `budget` bytes in total; the least it measured where it refuses."""
        passes = [farrier.Remat(offload=host, objective=objective)]
        try:
            plan = self.plan(budget, passes=passes, max_compiles=compiles)
        except farrier.BudgetError as error:
            return {"smallest_bytes": error.smallest_bytes}
        attempts = plan.measured.get("attempts", [])
        return described(plan.measured["after"]) | {
            "planned_bytes": plan.measured.get("planned_bytes"),
            "compiles": 1 + len(attempts),
            "attempts": attempts,
            "cost_seconds": plan.passes["remat"]["predicted"]["seconds"] if plan.passes else 0.0,
        }


def described(measurement: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a measurement."""
    return {
        "total_bytes": measurement.get("total_bytes"),
        "temp_bytes": measurement["temp_bytes"],
        "host_bytes": measurement["host_temp_bytes"],
        "flops": measurement["flops"],
    }
