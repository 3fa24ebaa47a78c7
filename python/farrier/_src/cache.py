"""Plans that were made before, in this process and on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from farrier._src import errors, store
from farrier._src.plan import Plan

__all__ = ["PlanStore"]


class PlanStore:
    """Plans and the remarks that came with them, by key.

    :func:`farrier._src.fingerprint.plan_key` says what a key holds.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self._directory = directory
        self._memory: dict[str, tuple[Plan, list[Any]]] = {}

    def _disk(self) -> store.JsonStore:
        # Made when it is used: the environment may name another directory by then.
        return store.JsonStore("plans", self._directory)

    def get(self, key: str) -> tuple[Plan, list[Any]] | None:
        """The plan under ``key`` and its remarks; one that cannot be read is a miss."""
        if key not in self._memory:
            body = self._disk().get(key)
            try:
                self._memory[key] = Plan.from_json(body["plan"]), list(body["remarks"])
            except (errors.PlanError, KeyError, TypeError):
                return None
        return self._memory[key]

    def put(self, key: str, plan: Plan, remarks: Sequence[Any]) -> None:
        """Remembers a plan."""
        self._memory[key] = plan, list(remarks)
        self._disk().put(key, {"plan": plan.to_json(), "remarks": list(remarks)})
