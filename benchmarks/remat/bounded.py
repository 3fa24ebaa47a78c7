"""The integer program of a straight line's reference (`straight.py`), with the memory bounded at some places; solved by
HiGHS through scipy.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

# Costs are in microseconds, bytes in MiB.
MIB, MICROSECOND = 2**20, 1e-6
# What the planner keeps whatever is chosen (`defaultSmallBytes`).
SMALL = 4 * MIB


@dataclasses.dataclass
class Places:
    """Where a program bounds the memory, by number: after what is computed again for a time, before all of that is, and in
    parts of the forward part.
    """

    after: set[int] = dataclasses.field(default_factory=set)
    before: set[int] = dataclasses.field(default_factory=set)
    forward: set[int] = dataclasses.field(default_factory=set)

    def add(self, over: dict[str, dict[int, int]], most: int = 4) -> bool:
        """Of the places that are `over` the budget, by kind, and were not bounded: the worst of each run of neighbours, the
        `most` worst of each kind. Whether there was any.
        """
        found = False
        for kind, places in over.items():
            known, runs = getattr(self, kind), []
            for i in sorted(set(places) - known):
                if not runs or i > runs[-1][-1] + 1:
                    runs.append([])
                runs[-1].append(i)
            worst = sorted((max(run, key=places.get) for run in runs), key=places.get)[-most:]
            known.update(worst)
            found |= bool(worst)
        return found


class Program:
    """A mixed integer program, built variable by variable and row by row."""

    def __init__(self):
        self._cost, self._integer = [], []
        self._rows, self._columns, self._factors, self._low = [], [], [], []
        # The solver wants one; and the numbers 0.0 and 1.0, where there is nothing to choose, are no variable's index.
        self.variable(integer=False)
        self.variable(integer=False)

    def variable(self, *, integer: bool = True, cost: float = 0.0) -> int:
        self._cost.append(cost)
        self._integer.append(int(integer))
        return len(self._cost) - 1

    def at_least(self, terms, low: float) -> None:
        """sum of factor * variable >= low; a variable may be a number, too: (1.0, factor) stands for itself."""
        row = len(self._low)
        for column, factor in terms:
            if isinstance(column, float):
                low -= column * factor
            else:
                self._rows.append(row)
                self._columns.append(column)
                self._factors.append(factor)
        self._low.append(low)

    @property
    def size(self) -> tuple[int, int]:
        """Variables and rows."""
        return len(self._cost), len(self._low)

    def solve(self, limit: float, gap: float) -> tuple[np.ndarray | None, float]:
        """What minimises the cost, if anything was found in `limit` seconds, and what no cost is below: infinity if there is
        nothing.

        Args:
          gap: of what is found and what nothing is below, relative, at which that is enough.
        """
        count = len(self._cost)
        matrix = coo_matrix(
            (self._factors, (self._rows, self._columns)), shape=(len(self._low), count)
        ).tocsr()
        result = milp(
            self._cost,
            constraints=LinearConstraint(matrix, self._low),
            integrality=self._integer,
            bounds=Bounds(0, np.ones(count)),
            options={"time_limit": limit, "mip_rel_gap": gap},
        )
        infeasible = 2
        return result.x, math.inf if result.status == infeasible else float(result.mip_dual_bound or 0)

    def at_most(self, cost: float) -> None:
        """Nothing dearer is looked for."""
        self.at_least([(i, -each) for i, each in enumerate(self._cost) if each], -cost)

    def costs(self, chosen: np.ndarray) -> float:
        return float(np.dot(self._cost, np.round(chosen)))


class Bounded(Program):
    """The integer program of `reference` that bounds the memory at some places, and has the times that matter there."""

    def __init__(self, reference, places: Places):
        super().__init__()
        self.values, self.block, self.budget = reference.values, reference.block, reference.budget
        self.first, self.last = reference.first, reference.last
        self.earliest, self.latest = reference.earliest, reference.latest
        self.reference, self.places = reference, places
        # What is computed again for a time was not there at the time before; the first has what the forward part leaves, and
        # the last all that ever is computed again.
        befores = {i - 1 for i in places.before if i}
        self.numbers = sorted({0, *places.after, *places.before, *befores, len(reference.times) - 1})
        self.times = [reference.times[i] for i in self.numbers]
        self.stops = [reference.stops[i] for i in self.numbers]
        self._make_variables()
        for w, value in enumerate(self.values):
            self._readers(w, value)
        self._together()
        self._memory()

    def choices(self, chosen: np.ndarray) -> tuple[list[bool], list[float]]:
        """Which values are kept, and the time by which each stored one is computed again, infinity if that is not said."""

        def holds(variable) -> bool:
            return variable == 1.0 if isinstance(variable, float) else chosen[variable] > 0.5

        latest = [
            next(
                (i for i, x in zip(self.numbers, placed, strict=True) if value["stored"] and holds(x)),
                math.inf,
            )
            for value, placed in zip(self.values, self.placed, strict=True)
        ]
        return [holds(keep) for keep in self.keep], latest

    def _make_variables(self):
        """k, q and n: a variable, or a number where there is nothing to choose."""
        self.keep, self.placed, self.needed = [], [], []
        for v, value in enumerate(self.values):
            asked = self.earliest[v] is not None
            # Part of a merged product may be there although nothing reads it.
            keep = self.variable() if value["recomputable"] and (asked or self.last[v] >= 0) else 1.0
            placed, needed = [], []
            # From its first backward read on nothing changes.
            done = None if not asked else self.latest[v] if self.first[v] is None else self.first[v]
            for before, t, stop in zip([-1, *self.stops[:-1]], self.times, self.stops, strict=True):
                if not asked or not value["recomputable"] or stop <= self.earliest[v]:
                    placed.append(0.0)
                elif before > done and not isinstance(placed[-1], float):
                    placed.append(placed[-1])
                else:
                    placed.append(self.variable(integer=value["stored"]))
                if t <= self.last[v]:
                    needed.append(1.0)
                elif asked and t <= self.latest[v] and (value["recomputable"] or value["bytes"] >= SMALL):
                    needed.append(self.variable(integer=False))
                else:
                    needed.append(0.0)
            for before, after in itertools.pairwise(placed):
                if before != after:
                    self.at_least([(after, 1), (before, -1)], 0)
            if self.first[v] is not None and keep != 1.0:
                self.at_least([(placed[-1], 1), (keep, 1)], 1)
                at = next(i for i, stop in enumerate(self.stops) if stop > self.first[v])
                if placed[at] != placed[-1]:
                    self.at_least([(placed[at], 1), (keep, 1)], 1)
            self.keep.append(keep)
            self.placed.append(placed)
            self.needed.append(needed)
        operations = {}
        for v, value in enumerate(self.values):
            if isinstance(self.placed[v][-1], float):
                continue
            if value["operation"] not in operations:
                operations[value["operation"]] = self.variable(cost=value["seconds"] / MICROSECOND)
            self.at_least([(operations[value["operation"]], 1), (self.placed[v][-1], -1)], 0)

    def _readers(self, w: int, value: dict):
        """What computing w again asks of what it reads."""
        placed = self.placed[w]
        if isinstance(placed[-1], float):
            return
        for u in dict.fromkeys(value["operands"]):
            if self.values[u]["operation"] == value["operation"]:
                continue
            asked = None
            for i in range(len(self.times)):
                if not isinstance(placed[i], float) and placed[i] != asked:
                    if self.keep[u] != 1.0:
                        self.at_least([(self.placed[u][i], 1), (self.keep[u], 1), (placed[i], -1)], 0)
                    asked = placed[i]
                # There anyway, or for nothing.
                if isinstance(self.needed[u][i], float):
                    continue
                if value["stored"]:
                    if placed[i] != placed[-1]:
                        self.at_least([(self.needed[u][i], 1), (placed[-1], -1), (placed[i], 1)], 0)
                elif self.needed[w][i] != 0.0:
                    self.at_least([(self.needed[u][i], 1), (self.needed[w][i], -1), (self.keep[w], 1)], 0)

    def _together(self):
        """Results of one operation are computed again at once; of merged products all are kept or none."""
        groups = collections.defaultdict(list)
        for v, value in enumerate(self.values):
            if not isinstance(self.keep[v], float):
                groups[value["merged"]].append(v)
        for members in groups.values():
            for v, w in itertools.pairwise(members):
                merged = self.values[v]["operation"] != self.values[w]["operation"]
                if merged:
                    self.at_least([(self.keep[v], 1), (self.keep[w], -1)], 0)
                    self.at_least([(self.keep[w], 1), (self.keep[v], -1)], 0)
                if self.earliest[v] is None or self.earliest[w] is None:
                    continue
                for i in range(len(self.times)):
                    for a, b in ((v, w), (w, v)):
                        self.at_least([(self.placed[a][i], 1), (self.keep[a], 1), (self.placed[b][i], -1)], 0)

    def _there(self, v: int, i: int, before: bool) -> float | int:
        """Whether v takes memory at the i-th time, or did `before` anything was computed again for it: a variable, or a
        number. Each is made once.
        """
        value, keep, needed = self.values[v], self.keep[v], self.needed[v][i]
        placed = (self.placed[v][i - 1] if i else 0.0) if before else self.placed[v][i]
        if not value["stored"]:
            placed = 0.0
        if needed == 0.0 or not value["bytes"]:
            return 0.0
        if keep == 1.0:
            return needed if value["stored"] else 0.0
        if needed == 1.0 and placed == self.placed[v][-1] and self.first[v] is not None and value["stored"]:
            return 1.0
        if needed == 1.0 and isinstance(placed, float):
            return keep
        key = v, keep, placed, needed
        if key not in self.made:
            self.made[key] = self.variable(integer=False)
            terms = [(self.made[key], 1), (keep, -1), (placed, -1), (needed, -1)]
            self.at_least(terms, -1)
        return self.made[key]

    def _memory(self):
        self.made = {}
        for i, number in enumerate(self.numbers):
            if number in self.places.after:
                self._within(self._all_there(i, before=False), self.reference.base[number])
            if number in self.places.before:
                self._before(i)
        # While the forward part runs, only what is kept and what is there anyway.
        for number in sorted(self.places.forward):
            start, stop = self.reference.forward[number]
            terms = []
            for v, value in enumerate(self.values):
                if not self.reference.waits(v, start):
                    continue
                if not isinstance(self.keep[v], float):
                    terms.append((self.keep[v], value["bytes"]))
                elif self.keep[v] and value["stored"]:
                    terms.append((self.needed[v][0], value["bytes"]))
            self._within(terms, max(self.block["base_bytes"][start:stop]))

    def _all_there(self, i: int, before: bool) -> list:
        return [(self._there(v, i, before), value["bytes"]) for v, value in enumerate(self.values)]

    def _before(self, i: int):
        """Each value that is computed again right before the i-th time, beside what is there by then."""
        early = self._all_there(i, before=True)
        for w, value in enumerate(self.values):
            if not value["stored"] or not self._begins(w, i):
                continue
            placed, earlier = self.placed[w][i], self.placed[w][i - 1] if i else 0.0
            own, operands = self.reference.beside(w)
            terms = [*early, (placed, own), (earlier, -own)]
            for u in operands:
                there = early[u][0]
                if there == 1.0:
                    continue
                read = self.variable(integer=False)
                self.at_least([(read, 1), (there, 1), (placed, -1), (earlier, 1)], 0)
                terms.append((read, self.values[u]["bytes"]))
            self._within(terms, self.block["before_bytes"][self.times[i]])

    def _begins(self, v: int, i: int) -> bool:
        """Whether v may be computed again right before the i-th time."""
        return not isinstance(self.placed[v][i], float) and (
            i == 0 or self.placed[v][i] != self.placed[v][i - 1]
        )

    def _within(self, terms, sure: int):
        """sum of bytes and what is `sure` <= budget."""
        self.at_least([(there, -size / MIB) for there, size in terms if size], (sure - self.budget) / MIB)
