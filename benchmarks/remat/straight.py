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

Few of the times decide. A program that bounds the memory at these alone, with variables for these alone, is what all of it
implies: nothing is below its optimum. So the times are found one after the other (`Reference.solve`).
"""

from __future__ import annotations

import collections
import json
import math
import time
from collections.abc import Iterator

import numpy as np
from bounded import MICROSECOND, SMALL, Bounded, Places
from rich.console import Console
from rich.table import Table


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
        self.block, self.budget = simplified(block), budget
        self.values = self.block["values"]
        self.first, self.last, self.earliest, self.latest = _spans(self.block)
        self.begin = self.block["boundary"] + 1
        self._make_times()
        starts = {value["kept_from"] for value in self.values if value["kept_from"] < self.begin}
        starts = sorted({0, *starts})
        self.forward = list(zip(starts, [*starts[1:], self.begin], strict=True))
        self.readers = collections.defaultdict(list)
        self.groups = collections.defaultdict(list)
        for w, value in enumerate(self.values):
            self.groups[value["merged"]].append(w)
            for u in dict.fromkeys(value["operands"]):
                if value["recomputable"] and self.values[u]["operation"] != value["operation"]:
                    self.readers[u].append(w)

    def _make_times(self):
        """Positions of the backward part at which anything changes, and the most of `base_bytes` until the next."""
        end = len(self.block["base_bytes"])
        changes = {self.begin}
        for op, until, _, _ in self.block["reads"]:
            changes |= {op, op + 1, until + 1}
        changes |= {until + 1 for until in (*self.last, *self.latest) if until >= 0}
        self.times = sorted(t for t in changes if self.begin <= t < end)
        self.stops = [*self.times[1:], end]
        self.base = [
            max(self.block["base_bytes"][t:stop]) for t, stop in zip(self.times, self.stops, strict=True)
        ]

    def asked(self, kept: list[bool], latest: list[float]) -> list[float]:
        """The number of the time at which each value that is not `kept` is first asked for, infinity if never: as late as
        what reads it allows, and by `latest` if at all.
        """
        asked = [math.inf] * len(self.values)
        for v, first in enumerate(self.first):
            if first is not None and not kept[v]:
                asked[v] = next(i for i, stop in enumerate(self.stops) if stop > first)
        changed = True
        while changed:
            changed = False
            for v in range(len(self.values) - 1, -1, -1):
                if kept[v] or self.earliest[v] is None:
                    continue
                others = [
                    w for w in (*self.readers[v], *self.groups[self.values[v]["merged"]]) if not kept[w]
                ]
                at = min([asked[v], *(asked[w] for w in others)])
                at = min(at, latest[v]) if at < math.inf else at
                changed |= at < asked[v]
                asked[v] = at
        return asked

    def over(self, kept: list[bool], asked: list[float]) -> dict[str, dict[int, int]]:
        """Where these choices exceed the budget, and by how many bytes: by the fields of `Places`."""
        count, ever = len(self.values), [at < math.inf for at in asked]
        times, numbers = np.array(self.times), np.arange(len(self.times))
        sizes = np.array([value["bytes"] for value in self.values], dtype=np.int64)
        stored = np.array([value["stored"] for value in self.values])
        needed = np.zeros((count, len(times)), bool)
        for v in range(count - 1, -1, -1):
            value = self.values[v]
            for w in self.readers[v]:
                if not kept[w] and ever[w]:
                    needed[v] |= numbers < asked[w] if stored[w] else needed[w]
            if self.earliest[v] is None or not (value["recomputable"] or value["bytes"] >= SMALL):
                needed[v] = False
            needed[v] = (needed[v] & (times <= self.latest[v])) | (times <= self.last[v])
        # What is always kept and not stored has no buffer.
        held = np.array(
            [k and (v["stored"] or v["recomputable"]) for k, v in zip(kept, self.values, strict=True)]
        )
        result = {"after": {}, "before": {}, "forward": {}}
        for i in numbers:
            there = np.array([not k and at <= i for k, at in zip(kept, asked, strict=True)]) & stored
            result["after"][int(i)] = self.base[i] + int(sizes @ (needed[:, i] & (held | there)))
            new = [w for w in range(count) if stored[w] and not kept[w] and asked[w] == i]
            early = needed[:, i] & (held | (there & np.array([at < i for at in asked])))
            for w in new:
                own, operands = self.beside(w)
                own += sum(int(sizes[u]) for u in operands if not early[u])
                most = result["before"].get(int(i), 0)
                result["before"][int(i)] = max(
                    most, self.block["before_bytes"][self.times[i]] + int(sizes @ early) + own
                )
        for number, (start, stop) in enumerate(self.forward):
            total = max(self.block["base_bytes"][start:stop])
            for v, value in enumerate(self.values):
                if self.waits(v, start) and held[v] and (value["recomputable"] or needed[v][0]):
                    total += value["bytes"]
            result["forward"][number] = total
        return {
            kind: {i: total - self.budget for i, total in totals.items() if total > self.budget}
            for kind, totals in result.items()
        }

    def beside(self, w: int) -> tuple[int, list[int]]:
        """What computing w again takes, and which stored values it reads, which must be there, too. What is elementwise may be
        written over what it reads.
        """
        value = self.values[w]
        operands = [
            u
            for u in dict.fromkeys(value["operands"])
            if self.values[u]["stored"] and self.values[u]["bytes"]
        ]
        over = value["elementwise"] and any(self.values[u]["bytes"] == value["bytes"] for u in operands)
        return value["beside_bytes"] + (0 if over else value["bytes"]), operands

    def waits(self, v: int, start: int) -> bool:
        """Whether v, if kept, waits for the backward part while the forward part from `start` on runs."""
        return self.values[v]["kept_from"] <= start and (self.earliest[v] is not None or self.last[v] >= 0)

    def solve(self, limit: float, gap: float = 1e-3, *, known: float | None = None) -> dict:
        """The optimum, and what the solver has proven it cannot be below when its time is up.

        Of programs that bound the memory at a few places each, the first has none, and the next those too at which the
        best choice of the last, placed as late as it allows, is most over the budget. Nothing is below the optimum of any;
        the choice that fits everywhere is one.

        Args:
          known: the seconds of some plan; nothing dearer is looked for.

        Returns:
          ``exact_seconds`` (None if nothing was found), ``bound_seconds`` (`known` if everything is dearer), sizes of the last
          program, how many there were, and ``again``: the keys of the values that cost something to compute again and are.
        """
        start, places, programs, bound, found = time.perf_counter(), Places(), 0, 0.0, None
        while True:
            program = Bounded(self, places)
            programs += 1
            if known is not None:
                # Sums of the same costs in another order may differ by less than this.
                program.at_most(known / MICROSECOND * (1 + 1e-6))
            left = max(1.0, limit - (time.perf_counter() - start))
            chosen, proven = program.solve(left, gap)
            bound = max(bound, proven)
            if chosen is None:
                break
            kept, latest = program.choices(chosen)
            asked = self.asked(kept, latest)
            if not places.add(self.over(kept, asked)):
                found = (
                    program.costs(chosen),
                    [
                        value["key"]
                        for value, at in zip(self.values, asked, strict=True)
                        if value["seconds"] and at < math.inf
                    ],
                )
                break
            if time.perf_counter() - start > limit:
                break
        if bound == math.inf:
            bound = (known or 0) / MICROSECOND
        variables, rows = program.size
        return {
            "exact_seconds": None if found is None else found[0] * MICROSECOND,
            "bound_seconds": bound * MICROSECOND,
            "values": len(self.values),
            "times": len(self.times),
            "programs": programs,
            "variables": variables,
            "constraints": rows,
            "solver_seconds": round(time.perf_counter() - start, 1),
            "again": [] if found is None else found[1],
        }


def compare(name: str, target, shares, *, layers: int, limit: float) -> Iterator[dict]:
    """A row for each budget between the floor and the need as written: the planner's seconds, and the reference's.

    Args:
      name: a workload with ``style``, ``layers`` and ``remat`` as options.
      limit: seconds of the solver for each budget and each place where the backward part may begin.
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
        yield {
            "workload": name,
            "layers": layers,
            "share": share,
            "budget_bytes": budget,
            **_solve(blocks, budget, limit, plan["seconds"] if plan["fits"] else None),
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
        for row in compare(name, target, shares, layers=options.layers, limit=options.limit):
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
