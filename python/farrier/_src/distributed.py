"""One decision for all processes of a job.

Processes that run different programs wait for each other for ever, so before an executable runs the
processes that own its devices compare three things through jax.distributed's key-value store: the
program that each of them traced, the plan (which the first of them makes and the others apply), and
the program that applying it gave. Any difference is an error on every one of them.
"""

from __future__ import annotations

import collections
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from farrier._src import compat, errors
from farrier._src.plan import Plan

__all__ = ["agreement"]

# How long a process waits for the others to reach the same point. They trace the same function at
# the same time, so minutes apart means that one of them is not coming.
PEER_SECONDS = 300.0
# How long the others wait for the plan: a search is some compiles, each of which can take minutes.
PLAN_SECONDS = 3600.0

_rounds: dict[tuple[int, ...], Any] = collections.defaultdict(itertools.count)

Leader = Callable[[], tuple[Plan, str, int]]


def agreement(run: Any, name: str, program: str, options: str) -> _Alone | _Group:
    """How the decision for one program is shared.

    Args:
      run: where it runs, a :class:`farrier._src.where.Run`.
      name: the function's name, for messages.
      program: the fingerprint of the program that this process traced.
      options: the fingerprint of the options that decide.

    Raises:
      farrier.DistributedError: the processes traced different programs, or were given different options.
    """
    if len(run.processes) < 2:
        return _Alone()
    client, rank = compat.distributed_client()
    if client is None or rank not in run.processes:
        return _Alone()
    return _Group(client, rank, run.processes, name, program, options)


class _Alone:
    """A single process decides for itself."""

    def plan(self, leader: Leader) -> tuple[Plan, str, int]:
        return leader()

    def confirm(self, result: str) -> None:
        del result

    def fail(self, error: BaseException) -> None:
        del error


class _Group:
    """The processes that own the devices of one executable."""

    def __init__(self, client: Any, rank: int, ranks: Sequence[int], name: str, program: str, options: str):
        self._client = client
        self._rank = rank
        self._ranks = tuple(ranks)
        self._name = name
        # The same sequence of lowerings happens on every process, so a count names the round.
        number = next(_rounds[self._ranks])
        self._prefix = f"farrier/{'.'.join(map(str, self._ranks))}/{number}"
        self._compare("program", {"function": name, "fingerprint": program, "options": options}, "traced")

    def plan(self, leader: Leader) -> tuple[Plan, str, int]:
        """The plan that the first process makes; the others wait for it and never search."""
        key = f"{self._prefix}/plan"
        if self._rank == self._ranks[0]:
            try:
                plan, source, compiles = leader()
            except BaseException as error:
                self._client.key_value_set(key, json.dumps({"error": _describe(error)}))
                raise
            self._client.key_value_set(key, json.dumps({"plan": plan.to_json()}))
            return plan, source, compiles
        answer = json.loads(self._get(key, PLAN_SECONDS, self._ranks[0], "make the plan"))
        if "error" in answer:
            raise _rebuild(answer["error"], self._ranks[0])
        return Plan.from_json(answer["plan"]), f"process {self._ranks[0]}", 0

    def confirm(self, result: str) -> None:
        """Compares what applying the plan gave.

        Raises:
          farrier.DistributedError: on every process, when it is not the same everywhere.
        """
        self._compare("result", {"fingerprint": result}, "compiles")

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process could not apply the plan, in place of :meth:`confirm`.

        Returns when it is the same failure everywhere.

        Raises:
          farrier.DistributedError: on every process, when it is not.
        """
        self._compare("result", {"failed": _describe(error)}, "compiles")

    def _compare(self, what: str, own: dict[str, Any], verb: str) -> None:
        self._client.key_value_set(f"{self._prefix}/{what}/{self._rank}", json.dumps(own))
        seen = {self._rank: own}
        for rank in self._ranks:
            if rank != self._rank:
                text = self._get(
                    f"{self._prefix}/{what}/{rank}", PEER_SECONDS, rank, f"say which program it {verb}"
                )
                seen[rank] = json.loads(text)
        if any(value != own for value in seen.values()):
            lines = "".join(f"\n  - process {rank}: {_short(seen[rank])}" for rank in sorted(seen))
            raise errors.DistributedError(
                f"the processes that run {self._name} do not agree on the program that each {verb}{lines}",
                hint="make the function, its static arguments, the shapes and shardings, and the options of "
                "farrier.optimize the same on every process; nothing has run yet",
            )

    def _get(self, key: str, seconds: float, rank: int, purpose: str) -> str:
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise errors.DistributedError(
                    f"process {rank} did not {purpose} for {self._name} within {seconds:.0f} s",
                    hint="every process that owns devices of the function must call it, in the same order",
                )
            # Short waits, so that an interrupt and the end of the job get through.
            value = compat.key_value_get(self._client, key, min(left, 5.0))
            if value is not None:
                return value


def _describe(error: BaseException) -> dict[str, Any]:
    what = error.what if isinstance(error, errors.Error) else str(error)
    return {"kind": type(error).__name__, "what": what, "hint": getattr(error, "hint", None)}


def _rebuild(described: dict[str, Any], rank: int) -> errors.Error:
    """The leader's error, as the same kind where the kind needs nothing more than its message."""
    kind = getattr(errors, described["kind"], None)
    plain = (errors.MissingPluginError, errors.OptionError, errors.PlanError, errors.TargetError)
    cls = (
        kind
        if kind in plain
        else errors.BudgetError
        if kind is errors.BudgetError
        else errors.DistributedError
    )
    fields = {"budget_bytes": 0} if cls is errors.BudgetError else {}
    return cls(f"process {rank}, which plans for all: {described['what']}", hint=described["hint"], **fields)


def _short(value: dict[str, Any]) -> str:
    if "failed" in value:
        return f"failed with {value['failed']['kind']}: {value['failed']['what']}"
    function = f"{value['function']} " if "function" in value else ""
    options = f" with options {value['options'][:8]}" if "options" in value else ""
    return f"{function}{value['fingerprint'][:16]}{options}"
