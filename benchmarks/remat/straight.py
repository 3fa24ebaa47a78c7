"""The least that a straight line must compute again within a budget, operation by operation.

The planner cuts the forward part into segments, joins operations by the buffers they read, and decides segment by segment.
The reference knows none of that: every value of the forward part that the backward part reads, or that such a value is made
of, is kept or computed again once, right before the first operation of the backward part that reads it or what is made of it;
earlier only where that lets go of more than it makes. Its memory is counted as `Liveness` counts the rewritten program:

* kept, a value is there until it is read for the last time, by the backward part or by what is computed again;
* computed again, a value that XLA stores is there from its place to its last reader; one that XLA does not store is
  computed inside its readers' kernels, which read what it is made of;
* while a value is computed again, it and the stored values that it reads are there, and what its kernel copies;
* of products that XLA makes one all are kept or none, and all are there while an elementwise operation reads one;
* the rest is there anyway: the backward part's own values, and the forward part's until it has read them for the last time.

Times t are the operations at which any of it changes; what is computed again at t is computed right before it. Binary k[v]:
kept; q[v,t]: at t what is computed again is there, or for a value that is not stored, has been asked for. Continuous
n[v,t]: t or what comes later reads v; m[v,t]: v takes memory then; e[v,t]: and has before what t computes again.

    q[v,t] + k[v] >= 1             from the first backward read of v on
    q[u,t] + k[u] >= q[w,t]        for each operand u of w
    n[v,t] = 1                     until the last backward read
    n[u,t] >= q[w,end] - q[w,t]    for a stored w that reads u: until w is computed
    n[u,t] >= n[w,t] - k[w]        for a w that is not stored: until its last reader
    m[v,t] >= k[v] + q[v,t] + n[v,t] - 1,  e[v,t] >= k[v] + q[v,t-1] + n[v,t] - 1
    base(t) + sum bytes(v) m[v,t] <= budget
    before(t) + sum bytes(v) e[v,t] + (bytes(w) + beside(w)) (q[w,t] - q[w,t-1])
              + sum over the stored u that w reads of bytes(u) max(0, q[w,t] - q[w,t-1] - e[u,t]) <= budget
    minimise sum seconds(w) q[w,end]
"""

from __future__ import annotations

import bisect
import collections
import itertools
import json
import math
import time
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

try:
    from ortools.sat.python import cp_model
except ImportError:  # HiGHS takes longer, with more than two layers
    cp_model = None

SOLVERS = ("highs", "cp-sat") if cp_model else ("highs",)
# Costs are in microseconds.
MIB, MICROSECOND, NANOSECOND = 2**20, 1e-6, 1e-3
# What the planner keeps whatever is chosen (`defaultSmallBytes`).
SMALL = 4 * MIB


class Program:
    """A mixed integer program, built variable by variable and row by row."""

    def __init__(self):
        self._cost, self._upper, self._integer = [], [], []
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

    def solve(self, limit: float, gap: float, solver: str) -> tuple[np.ndarray | None, float]:
        """What minimises the cost, if anything was found in `limit` seconds, and what no cost is below: infinity if there is
        nothing.
        """
        return (self._search if solver == "cp-sat" else self._branch)(limit, gap)

    def _branch(self, limit: float, gap: float) -> tuple[np.ndarray | None, float]:
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

    def _search(self, limit: float, gap: float) -> tuple[np.ndarray | None, float]:
        """In whole bytes and nanoseconds, the latter rounded down, so that the bound is one. What is continuous is one or zero
        in some optimum: each is as small as sums and differences of the others let it be.
        """
        model = cp_model.CpModel()
        variables = [model.new_bool_var("") for _ in self._cost]
        rows = [collections.Counter() for _ in self._low]
        for row, column, factor in zip(self._rows, self._columns, self._factors, strict=True):
            rows[row][column] += round(factor * MIB)
        for row, low in zip(rows, self._low, strict=True):
            divisor = math.gcd(*row.values()) or 1
            terms = sum(factor // divisor * variables[column] for column, factor in row.items())
            model.add(terms >= math.ceil((low * MIB - 0.5) / divisor))
        model.minimize(
            sum(math.floor(cost / NANOSECOND) * x for cost, x in zip(self._cost, variables, strict=True))
        )
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        # Relaxations of all rows: memory decides, not logic.
        solver.parameters.linearization_level = 2
        solver.parameters.max_time_in_seconds = limit
        solver.parameters.relative_gap_limit = gap
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return None, math.inf
        bound = solver.best_objective_bound * NANOSECOND
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, bound
        return np.array([solver.value(x) for x in variables]), bound

    def at_most(self, cost: float) -> None:
        """Nothing dearer is looked for."""
        self.at_least([(i, -each) for i, each in enumerate(self._cost) if each], -cost)

    def costs(self, chosen: np.ndarray) -> float:
        return float(np.dot(self._cost, np.round(chosen)))


def simplified(block: dict) -> dict:
    """The same block without values that no optimum keeps: computed inside their readers' kernels for nothing, of values
    that together have no more bytes. What reads them reads those. Values that are always kept, and small, are there as long
    as the backward part reads them, and for nothing where only what is computed again does.
    """
    values = block["values"]
    sizes = collections.Counter(v["merged"] for v in values)
    instead, kept, place = [], [], {}
    for v, value in enumerate(values):
        operands = sorted({r for u in value["operands"] for r in instead[u]})
        gone = (
            not value["stored"]
            and value["recomputable"]
            and not value["seconds"]
            and sum(values[u]["bytes"] for u in operands) <= value["bytes"]
            and all(sizes[values[u]["merged"]] == 1 for u in operands)
        )
        instead.append(operands if gone else [v])
        if not gone:
            place[v] = len(kept)
            kept.append({**value, "operands": [place[u] for u in operands]})
    reads = {
        (op, max(op, min(until, _reach(block, u))), place[u], fused or instead[v] != [v])
        for op, until, v, fused in block["reads"]
        for u in instead[v]
    }
    return {**block, "values": kept, "reads": sorted(reads)}


def never_kept(block: dict) -> set[int]:
    """Values that some optimum does not keep. Two exchanges, each of which gives back memory and costs nothing:

    * what is made of nothing, for nothing, and needs nothing beside (a weight's cast) is made where it is first asked for,
      and takes what it would have taken from there on only;
    * what only serves to compute x, is no smaller than x and is kept no shorter by the forward part: x is kept instead, which
      lets go of it, and takes until it would have been computed no more and from there on as much.
    """
    values = block["values"]
    sizes = collections.Counter(v["merged"] for v in values)
    read = {v for _, _, v, _ in block["reads"]}
    readers = collections.defaultdict(list)
    for w, value in enumerate(values):
        if value["recomputable"]:
            for u in value["operands"]:
                readers[u].append(w)
    never, through = (
        set(),
        [None] * len(values),
    )  # what everything made of a value is made through, nearest first
    for v in range(len(values) - 1, -1, -1):
        value = values[v]
        through[v] = []
        if v not in read and readers[v]:
            common = [[w, *through[w]] for w in readers[v]]
            through[v] = [x for x in common[0] if all(x in other for other in common[1:])]
        if not value["recomputable"] or sizes[value["merged"]] > 1:
            continue
        free = not value["operands"] and not value["seconds"] and not value["beside_bytes"]
        if (free and value["stored"]) or any(
            sizes[values[x]["merged"]] == 1
            and values[x]["bytes"] <= value["bytes"]
            and values[x]["kept_from"] >= value["kept_from"]
            for x in through[v]
        ):
            never.add(v)
    return never


def _reach(block: dict, u: int) -> float:
    """The last operation at which u is needed by what is computed inside its readers: its memory may serve their result."""
    last = block["values"][u].get("last_read", math.inf)
    return last if last > block["boundary"] else math.inf


def _spans(block: dict) -> tuple[list, list, list, list]:
    """Of each value: its first and last read by the backward part (None, -1 without), and the first and last position at
    which it can be asked for, by what is computed again included (None, -1).
    """
    values = block["values"]
    first, last = [None] * len(values), [-1] * len(values)
    elementwise = collections.defaultdict(lambda: -1)
    for op, until, v, fused in block["reads"]:
        first[v] = op if first[v] is None else min(first[v], op)
        last[v] = max(last[v], until)
        if fused or until > op:
            elementwise[values[v]["merged"]] = max(elementwise[values[v]["merged"]], until)
    sizes = collections.Counter(v["merged"] for v in values)
    earliest, latest = list(first), list(last)
    for w in range(len(values) - 1, -1, -1):
        if earliest[w] is None or not values[w]["recomputable"]:
            continue
        # A stored value is computed by its first read at the latest; what is fused reads until its readers are done.
        end = latest[w] if not values[w]["stored"] or first[w] is None else first[w]
        for u in values[w]["operands"]:
            earliest[u] = earliest[w] if earliest[u] is None else min(earliest[u], earliest[w])
            latest[u] = max(latest[u], end if values[w]["stored"] else min(end, _reach(block, u)))
    for v, value in enumerate(values):
        if sizes[value["merged"]] > 1:
            last[v] = max(last[v], elementwise[value["merged"]])
            latest[v] = max(latest[v], last[v])
    for v, value in enumerate(values):
        if value["stored"] and sum(values[u]["bytes"] for u in value["operands"]) > value["bytes"]:
            earliest[v] = None if earliest[v] is None else block["boundary"] + 1
    # What is read by something that may be early may be early, too.
    for w in range(len(values) - 1, -1, -1):
        if earliest[w] is not None and values[w]["recomputable"]:
            for u in values[w]["operands"]:
                earliest[u] = min(earliest[u], earliest[w])
    return first, last, earliest, latest


class Reference:
    """The problem of one block within `budget` bytes."""

    def __init__(self, block: dict, budget: int):
        self.block = block = simplified(block)
        self.values = block["values"]
        self.never = never_kept(block)
        self.program = Program()
        self.first, self.last, self.earliest, self.latest = _spans(block)
        self.begin = block["boundary"] + 1
        self._make_times(budget)
        self._make_variables()
        for w, value in enumerate(self.values):
            self._readers(w, value)
        self._together()
        self._memory(budget)

    def _make_times(self, budget: int):
        """Positions of the backward part at which anything changes, and the most of `base_bytes` until the next. Where nothing
        that may be there can exceed the budget, a whole run of them is one: it does not matter when in it something is
        computed again.
        """
        end = len(self.block["base_bytes"])
        changes = {self.begin}
        for op, until, _, _ in self.block["reads"]:
            changes |= {op, op + 1, until + 1}
        changes |= {until + 1 for until in (*self.last, *self.latest) if until >= 0}
        times = sorted(t for t in changes if self.begin <= t < end)
        self.times, self.before, self.base, slack = [], [], [], False
        for before, t, stop in zip([-1, *times[:-1]], times, [*times[1:], end], strict=True):
            base = max(self.block["base_bytes"][t:stop])
            most = max(base, self.block["before_bytes"][t] + self._most_beside(t)) + self._most_there(t)
            # What is computed again at the first time of the backward part had no place before.
            if most > budget or not slack:
                self.times.append(t)
                self.before.append(before)
                self.base.append(base if most > budget else None)
            slack = most <= budget

    def _most_there(self, t: int) -> int:
        """No choice has more bytes of values at a time."""
        return sum(
            value["bytes"]
            for v, value in enumerate(self.values)
            if t <= max(self.last[v], self.latest[v])
            and (value["stored"] or value["recomputable"])
            and (v not in self.never or (value["stored"] and t >= self.earliest[v]))
        )

    def _most_beside(self, t: int) -> int:
        """Nothing that is computed again at a time takes more, with what it reads."""
        return max(
            (
                value["bytes"]
                + value["beside_bytes"]
                + sum(self.values[u]["bytes"] for u in set(value["operands"]))
                for v, value in enumerate(self.values)
                if self.earliest[v] is not None and self.earliest[v] <= t <= max(self.last[v], self.latest[v])
            ),
            default=0,
        )

    def _make_variables(self):
        """k, q and n: a variable, or a number where there is nothing to choose."""
        program, count = self.program, len(self.times)
        self.keep, self.placed, self.needed = [], [], []
        for v, value in enumerate(self.values):
            asked = self.earliest[v] is not None
            # Part of a merged product may be there although nothing reads it.
            keep = program.variable() if value["recomputable"] and (asked or self.last[v] >= 0) else 1.0
            if v in self.never and keep != 1.0:
                keep = 0.0
            placed, needed = [], []
            # From its first backward read on nothing changes.
            done = None if not asked else self.latest[v] if self.first[v] is None else self.first[v]
            for i, t in enumerate(self.times):
                stop = self.times[i + 1] if i + 1 < count else math.inf
                if not asked or not value["recomputable"] or stop <= self.earliest[v]:
                    placed.append(0.0)
                elif self.before[i] >= done and not isinstance(placed[-1], float):
                    placed.append(placed[-1])
                else:
                    placed.append(program.variable(integer=value["stored"]))
                if t <= self.last[v]:
                    needed.append(1.0)
                elif asked and t <= self.latest[v] and (value["recomputable"] or value["bytes"] >= SMALL):
                    needed.append(program.variable(integer=False))
                else:
                    needed.append(0.0)
            for before, after in itertools.pairwise(placed):
                if before != after:
                    program.at_least([(after, 1), (before, -1)], 0)
            if self.first[v] is not None and keep != 1.0:
                program.at_least([(placed[-1], 1), (keep, 1)], 1)
                at = bisect.bisect_right(self.times, self.first[v]) - 1
                if placed[at] != placed[-1]:
                    program.at_least([(placed[at], 1), (keep, 1)], 1)
            self.keep.append(keep)
            self.placed.append(placed)
            self.needed.append(needed)
        assert all(len(placed) == count for placed in self.placed)
        operations = {}
        for v, value in enumerate(self.values):
            if isinstance(self.placed[v][-1], float):
                continue
            if value["operation"] not in operations:
                operations[value["operation"]] = program.variable(cost=value["seconds"] / MICROSECOND)
            program.at_least([(operations[value["operation"]], 1), (self.placed[v][-1], -1)], 0)

    def _readers(self, w: int, value: dict):
        """What computing w again asks of what it reads."""
        program, placed = self.program, self.placed[w]
        if isinstance(placed[-1], float):
            return
        for u in dict.fromkeys(value["operands"]):
            if self.values[u]["operation"] == value["operation"]:
                continue
            asked = None
            for i in range(len(self.times)):
                if not isinstance(placed[i], float) and placed[i] != asked:
                    if self.keep[u] != 1.0:
                        program.at_least([(self.placed[u][i], 1), (self.keep[u], 1), (placed[i], -1)], 0)
                    asked = placed[i]
                # There anyway, or for nothing.
                if isinstance(self.needed[u][i], float):
                    continue
                if value["stored"]:
                    if placed[i] != placed[-1]:
                        program.at_least([(self.needed[u][i], 1), (placed[-1], -1), (placed[i], 1)], 0)
                elif self.needed[w][i] != 0.0:
                    program.at_least([(self.needed[u][i], 1), (self.needed[w][i], -1), (self.keep[w], 1)], 0)

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
                    self.program.at_least([(self.keep[v], 1), (self.keep[w], -1)], 0)
                    self.program.at_least([(self.keep[w], 1), (self.keep[v], -1)], 0)
                if self.earliest[v] is None or self.earliest[w] is None:
                    continue
                for i in range(len(self.times)):
                    for a, b in ((v, w), (w, v)):
                        self.program.at_least(
                            [(self.placed[a][i], 1), (self.keep[a], 1), (self.placed[b][i], -1)], 0
                        )

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
            self.made[key] = self.program.variable(integer=False)
            terms = [(self.made[key], 1), (keep, -1), (placed, -1), (needed, -1)]
            self.program.at_least(terms, -1)
        return self.made[key]

    def _memory(self, budget: int):
        program = self.program
        self.made = {}
        count = len(self.values)
        for i, t in enumerate(self.times):
            if self.base[i] is None:
                continue
            terms = [(self._there(v, i, before=False), self.values[v]["bytes"]) for v in range(count)]
            self._within(terms, self.base[i], budget)
            new = [v for v in range(count) if self.values[v]["stored"] and self._begins(v, i)]
            if not new:
                continue
            early = [(self._there(v, i, before=True), self.values[v]["bytes"]) for v in range(count)]
            for w in new:
                value, placed, earlier = (
                    self.values[w],
                    self.placed[w][i],
                    self.placed[w][i - 1] if i else 0.0,
                )
                own, terms = value["beside_bytes"], list(early)
                operands = [
                    u for u in value["operands"] if self.values[u]["stored"] and self.values[u]["bytes"]
                ]
                # What is elementwise may be written over what it reads.
                if not value["elementwise"] or all(
                    self.values[u]["bytes"] != value["bytes"] for u in operands
                ):
                    own += value["bytes"]
                terms += [(placed, own), (earlier, -own)]
                for u in operands:
                    there = early[u][0]
                    if there == 1.0:
                        continue
                    read = program.variable(integer=False)
                    program.at_least([(read, 1), (there, 1), (placed, -1), (earlier, 1)], 0)
                    terms.append((read, self.values[u]["bytes"]))
                self._within(terms, self.block["before_bytes"][t], budget)
        # While the forward part runs, only what is kept and what is there anyway.
        starts = sorted(
            {0, *(value["kept_from"] for value in self.values if value["kept_from"] < self.begin)}
        )
        for start, stop in zip(starts, [*starts[1:], self.begin], strict=True):
            terms, sure = [], max(self.block["base_bytes"][start:stop])
            for v, value in enumerate(self.values):
                if value["kept_from"] > start or (self.earliest[v] is None and self.last[v] < 0):
                    continue
                if not isinstance(self.keep[v], float):
                    terms.append((self.keep[v], value["bytes"]))
                elif self.keep[v] and value["stored"]:
                    terms.append((self.needed[v][0], value["bytes"]))
            self._within(terms, sure, budget)

    def _begins(self, v: int, i: int) -> bool:
        """Whether v may be computed again right before the i-th time."""
        return not isinstance(self.placed[v][i], float) and (
            i == 0 or self.placed[v][i] != self.placed[v][i - 1]
        )

    def _within(self, terms, sure: int, budget: int):
        """sum of bytes and what is `sure` <= budget."""
        self.program.at_least([(there, -size / MIB) for there, size in terms if size], (sure - budget) / MIB)

    def solve(
        self, limit: float, gap: float = 1e-3, *, known: float | None = None, solver: str = SOLVERS[-1]
    ) -> dict:
        """The optimum, and what the solver has proven it cannot be below when its time is up.

        Args:
          known: the seconds of some plan; nothing dearer is looked for.

        Returns:
          ``exact_seconds`` (None if nothing was found), ``bound_seconds`` (`known` if everything is dearer), sizes, and
          ``again``: the keys of the values that cost something to compute again and are.
        """
        start = time.perf_counter()
        if known is not None:
            # Sums of the same costs in another order, or rounded down, may differ by less than this.
            self.program.at_most(known / MICROSECOND * (1 + 1e-6))
        chosen, bound = self.program.solve(limit, gap, solver)
        if bound == math.inf:
            bound = (known or 0) / MICROSECOND
        variables, rows = self.program.size
        again = []
        if chosen is not None:
            again = [
                value["key"]
                for v, value in enumerate(self.values)
                if not isinstance(self.placed[v][-1], float)
                and value["seconds"]
                and chosen[self.placed[v][-1]] > 0.5
            ]
        return {
            "exact_seconds": None if chosen is None else self.program.costs(chosen) * MICROSECOND,
            "bound_seconds": bound * MICROSECOND,
            "values": len(self.values),
            "times": len(self.times),
            "variables": variables,
            "constraints": rows,
            "solver_seconds": round(time.perf_counter() - start, 1),
            "again": again,
        }


def compare(name: str, target, shares, *, layers: int, limit: float, known: list[dict]) -> Iterator[dict]:
    """A row for each budget between the floor and the need as written: the planner's seconds, and the reference's.

    Args:
      name: a workload with ``style``, ``layers`` and ``remat`` as options.
      limit: seconds of the solver for each budget and each place where the backward part may begin.
      known: rows of before; what the solver found for the same budget is taken from there, the planner plans anew.
    """
    import workloads
    from farrier import _core
    from farrier._src.drivers import remat

    def module(policy: str):
        step = (
            workloads.build(name, target, style="unrolled", layers=layers, remat=policy)
            .lower()
            .compiler_ir("stablehlo")
        )
        return _core.Module.parse(step.operation.get_asm(print_generic_op_form=True, enable_debug_info=True))

    def temp(of) -> int:
        return json.loads(of.query("memory.estimate"))["temp"]

    program, machine = module("none"), {"machine": remat.machine(target)}
    most, least = temp(program), temp(module("nothing"))
    blocks = json.loads(program.query("remat.blocks", json.dumps(machine)))["blocks"]
    total = json.loads(program.query("cost.total", json.dumps(machine)))["seconds"]
    for share in shares:
        budget = int(least + share * (most - least))
        request = json.dumps({"budget": budget, "objective": "time", "offload": False, **machine})
        plan = json.loads(program.query("remat.plan", request))["predicted"]
        row = {"workload": name, "layers": layers, "share": share, "budget_bytes": budget}
        solved = next((old for old in known if all(old[field] == row[field] for field in row)), None)
        if solved is None:
            solved = _solve(blocks, budget, limit, plan["seconds"] if plan["fits"] else None)
        yield {
            **solved,
            **row,
            "planned_bytes": plan["after"],
            "planned_seconds": plan["seconds"] if plan["fits"] else None,
            "step_seconds": total,
        }


def _solve(blocks: list[dict], budget: int, limit: float, planned: float | None) -> dict:
    """The best over the places where the backward part may begin; nothing is below the lowest of their bounds."""
    solved = [Reference(block, budget).solve(limit, known=planned) for block in blocks]
    found = [one for one in solved if one["exact_seconds"] is not None]
    return {
        **(min(found, key=lambda one: one["exact_seconds"]) if found else solved[0]),
        "bound_seconds": min(one["bound_seconds"] for one in solved),
        "solver_seconds": round(sum(one["solver_seconds"] for one in solved), 1),
    }


def main(options, shares) -> int:
    """Prints the table; with ``--json``, writes each row as it comes, beside those of other programs."""
    import farrier

    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    others = [
        row
        for row in known
        if (row["workload"], row["layers"]) not in {(n, options.layers) for n in options.workloads}
    ]

    columns = ("workload", "layers", "values", "share", "GB", "planned ms", "exact ms", "bound ms")
    table, rows = Table(*columns, "planned / bound", "solver s"), []
    for name in options.workloads:
        target = farrier.Target(options.target)
        for row in compare(name, target, shares, layers=options.layers, limit=options.limit, known=known):
            rows.append(row)
            if options.json:
                options.json.write_text(json.dumps(others + rows, indent=1) + "\n")
            planned, exact, bound = (row[f"{field}_seconds"] for field in ("planned", "exact", "bound"))
            # What is proven: where the solver's time is up, what it has found may be far above its bound.
            ratio = (
                None
                if planned is None or (bound == 0 < planned)
                else 1.0
                if planned == 0
                else planned / bound
            )
            milliseconds = ["-" if x is None else f"{x * 1e3:.3f}" for x in (planned, exact, bound)]
            table.add_row(
                name,
                str(options.layers),
                str(row["values"]),
                f"{row['share']:.0%}",
                f"{row['budget_bytes'] / 1e9:.2f}",
                *milliseconds,
                "-" if ratio is None else f"{ratio:.4f}",
                f"{row['solver_seconds']:.1f}",
            )
    Console().print(table)
    return 0
