"""What the search for a plan knows: programs that it can start from, plans for them, what compiles of those measured, and what
follows for the next.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

# Where not even the plan of the least predicted memory keeps the budget, the cheapest one predicted this much
# above it is tried: with fewer recomputations in flight XLA can need less for it.
_NEARLY_LEAST = 1.03

# Of the budget, what plans with transfers are predicted too low by at most for another one to be worth a compile after two
# that missed.
TRANSFERS_KNOWN = 0.015

# Of the budget, what a plan is predicted too low by at least where stacks may have been written anew: where it was 23 %,
# rows needed 5.6 GB less, where it was 5 % (an encoder and decoder) 1.1 GB more.
_REORDERED = 0.08

# Of the budget, the most that what a plan was off by takes from one of another kind: of a plan with transfers from
# one without, because most of it is what was under way; of one way from another.
MOST_CARRIED = 0.08


@dataclasses.dataclass(frozen=True)
class Way:
    """A program that the passes before rematerialization can leave.

    Attributes:
      passes: what they decided.
      module: the program.
      cost: of one run as it stands, seconds or FLOPs as the objective says, over the cheapest way's.
      resort: whether it is used only where no other way keeps the budget.
      estimate: what the estimator says of it as it stands, "temp" and "fixed" bytes.
      origin: of a program without what ``jax.checkpoint`` computes again, the way that has it.
      shared: whether also what two loops compute of the same is computed once there.
    """

    passes: Mapping[str, Any]
    module: Any
    cost: float = 0.0
    resort: bool = False
    estimate: Mapping[str, int] = dataclasses.field(default_factory=dict)
    origin: Way | None = None
    shared: bool = False

    @property
    def written(self) -> Way:
        """The way with all that the program computes again as it is written."""
        return self.origin or self


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way, and what rematerialization does with it; `temp` as the estimator counts it."""

    way: Way
    plan: Mapping[str, Any] | None
    temp: int
    fits: bool
    cost: float

    @property
    def text(self) -> str:
        """What tells two choices apart."""
        decided = self.plan and [self.plan["loops"], self.plan["blocks"], self.plan.get("flat_bytes")]
        kind = [self.way.origin is not None, self.way.shared]
        return json.dumps([self.way.passes, kind, decided], sort_keys=True)

    @property
    def order(self) -> tuple:
        """Cheapest first; of those that are not believed to fit, the smallest."""
        return (False, self.way.resort, self.cost) if self.fits else (True, False, self.temp)

    @property
    def host(self) -> bool:
        """Whether anything waits in host memory."""
        return bool(self.plan and self.plan["predicted"].get("host_bytes"))


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One choice, compiled."""

    choice: Choice
    predicted_temp: int
    expected_temp: int
    """What is predicted, and what the compiles before showed of that: bytes of a device."""
    measurement: Any
    by_rules: int | None = None
    """What is predicted without what another compile showed, where that was used."""

    @property
    def wrong(self) -> int:
        """Bytes that were measured beyond the prediction."""
        return self.measurement.temp_bytes - self.predicted_temp


class Beliefs:
    """What a search believes: how many temporary bytes each way may be given, corrected by every compile.

    Attributes:
      room: temporary bytes that the budget leaves beside arguments and results.
      scale: bytes as the estimator counts them for one byte of a device; other than 1 where it counts global sizes.
      host: whether transfers may be planned.
      rows: whether stacks hold the elements of their values in a row.
      measured: of ways, what a compile of them as they stand showed of single values.
    """

    def __init__(self, room: int, scale: float):
        self.room, self.scale = room, scale
        self.host = True
        self.rows = False
        self.measured: dict[int, Mapping[str, Any]] = {}
        # What a way's estimate was wrong by says all about this way, and something about the others.
        self._corrected: dict[int, int] = {}
        self._wrong: dict[int, int] = {}
        self._latest = room
        self._missed = self._tried_nearly = False
        self._without_rows: int | None = None

    def budget_of(self, way: Way) -> int:
        """What a plan for the way may be predicted to need, bytes of a device."""
        return self._corrected.get(id(way), max(self._latest, int((1 - MOST_CARRIED) * self.room)))

    def counted_budget_of(self, way: Way) -> int:
        """`budget_of`, as the estimator counts."""
        return max(1, int(self.budget_of(way) * self.scale))

    def predicted(self, choice: Choice) -> int:
        """What a choice is predicted to need, bytes of a device."""
        return int(choice.temp / self.scale)

    def expected(self, choice: Choice) -> int:
        """What a choice is believed to need after what compiles of its way's plans measured, bytes of a device."""
        return self.predicted(choice) + self._wrong.get(id(choice.way), 0)

    def does_not_fit(self, way: Way, wrong: int) -> bool:
        """The way as it stands was believed to fit and measured not to; False if that was said before."""
        if id(way) in self._corrected:
            return False
        self._wrong[id(way)] = max(1, wrong)
        self._latest -= max(1, wrong)
        self._corrected[id(way)] = self._latest
        return True

    def allow_nearly_least(self, choice: Choice) -> bool:
        """Not even the least plan keeps the budget: asks for one predicted a little above it; once."""
        if self._tried_nearly or choice.plan is None or choice.fits:
            return False
        self._tried_nearly = True
        self._corrected[id(choice.way)] = int(_NEARLY_LEAST * choice.temp / self.scale)
        return True

    def try_rows(self, attempt: Attempt, over: int) -> bool:
        """Where a plan misses the budget by less than it was predicted too low, and that was much, XLA may have written
        stacks anew in another order: asks once for the same with stacks that have none, and keeps to them where that needs
        less.
        """
        if self._without_rows is not None:
            self.rows &= attempt.measurement.temp_bytes < self._without_rows
        elif 0 < over <= attempt.wrong and attempt.wrong >= _REORDERED * self.room:
            self._without_rows = attempt.measurement.temp_bytes
            self.rows = True
            return True
        return False

    def correct(self, attempt: Attempt, over: int, *, spare: int = 0) -> None:
        """Takes into account what a plan was measured to need; `over` the budget, bytes. The next leaves `spare` bytes of it."""
        predicted, wrong = attempt.predicted_temp, attempt.wrong
        if attempt.by_rules is not None and abs(attempt.measurement.temp_bytes - attempt.by_rules) < abs(
            wrong
        ):
            # What the way's own compile showed misleads about its plans: they may have given up just that.
            del self.measured[id(attempt.choice.way)]
            predicted, wrong = attempt.by_rules, attempt.measurement.temp_bytes - attempt.by_rules
        # What this plan was predicted too low (or high) by, the next one will be too: it is nearly the same.
        self._wrong[id(attempt.choice.way)] = wrong
        self._latest = self.room - wrong - spare
        if over > 0:
            # Never ask for the same again when the prediction was right and yet over.
            self._latest = min(self._latest, predicted - over)
            if attempt.choice.host and self._missed and wrong > TRANSFERS_KNOWN * self.room:
                self.host = False
                self._latest = max(self._latest, int((1 - MOST_CARRIED) * self.room))
            self._missed = self._missed or attempt.choice.host
        self._corrected[id(attempt.choice.way)] = self._latest
