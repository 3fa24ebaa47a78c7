"""Plans that were made before, in this process and on disk."""

from __future__ import annotations

import os

from farrier._src import errors, store
from farrier._src.plan import Plan

__all__ = ["PlanStore"]


class PlanStore:
    """Plans by key; see :func:`farrier._src.fingerprint.plan_key` for what the key holds."""

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self._memory: dict[str, Plan] = {}
        self._disk = store.JsonStore("plans", directory)

    def get(self, key: str) -> Plan | None:
        """The plan under ``key``; one that cannot be read is a miss."""
        if key not in self._memory:
            body = self._disk.get(key)
            if body is None:
                return None
            try:
                self._memory[key] = Plan.from_json(body)
            except errors.PlanError:
                return None
        return self._memory[key]

    def put(self, key: str, plan: Plan) -> None:
        """Remembers a plan."""
        self._memory[key] = plan
        self._disk.put(key, plan.to_json())
