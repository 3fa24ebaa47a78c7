"""What changed between two reports, and the one line that says why.

Memory is accounted at each program's own peak, so the changes of the groups sum to the change of the peak.
Code moves: source lines are first aligned, file by file, by the instructions that come from them, so that an
edit above a line does not make everything below it look new.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from farrier._src.report import model
from farrier._src.report.kernels import stem
from farrier._src.report.units import short_source, size, time

BUFFER, DONATION, KERNEL, COLLECTIVE = "buffer", "donation", "kernel", "collective"


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that differs."""

    what: str
    """`BUFFER` (bytes at the peak), `DONATION` (bytes), `KERNEL` (nanoseconds per step) or `COLLECTIVE`
    (exposed nanoseconds per step)."""
    name: str
    """Origin, kernel or collective, and shape."""
    before: float
    after: float
    source: str
    """``file:line`` in the newer program; in the older one for what vanished."""
    message: str

    @property
    def delta(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclasses.dataclass(frozen=True)
class Diff:
    """Two reports compared; changes are largest first within their kind."""

    before: model.Report
    after: model.Report
    changes: tuple[Change, ...]

    def of(self, what: str) -> list[Change]:
        """The changes of one kind."""
        return [c for c in self.changes if c.what == what]

    def answer(self) -> str:
        """One line: how memory and time changed, and what did it."""
        grown = self.after.peak_bytes - self.before.peak_bytes
        said = []
        if grown:
            word = "grew" if grown > 0 else "shrank"
            said.append(f"memory {word} by {size(abs(grown))} (to {size(self.after.peak_bytes)} at the peak)")
            causes = self._causes(grown)
            if causes:
                said[-1] += ": " + "; ".join(causes)
        else:
            said.append(f"memory is unchanged ({size(self.after.peak_bytes)} at the peak)")
        was, now = self.before.step_ns, self.after.step_ns
        if was and now and abs(now - was) > 1e-3 * was:
            slower = [
                c for c in self.changes if c.what in (KERNEL, COLLECTIVE) and (c.delta > 0) == (now > was)
            ]
            slower.sort(key=lambda c: -abs(c.delta))
            word = "slower" if now > was else "faster"
            why = f": {slower[0].message}" if slower else ""
            said.append(f"the predicted step is {time(abs(now - was))} {word}{why}")
        return "; ".join(said)

    def circumstances(self) -> list[str]:
        """What else differs: versions, compiler options, target."""
        a, b = self.before.data, self.after.data
        out = []
        for what in ("versions", "options"):
            was, now = a.get(what) or {}, b.get(what) or {}
            for name in sorted(set(was) | set(now)):
                if was.get(name) != now.get(name):
                    out.append(f"{name} {was.get(name, 'unset')} -> {now.get(name, 'unset')}")
        was, now = ((x["target"] or {}) for x in (a, b))
        named = [f"{t.get('name', 'none')} {t.get('topology', '')}".strip() for t in (was, now)]
        if named[0] != named[1]:
            out.append(f"target {named[0]} -> {named[1]}")
        return out

    def _causes(self, grown: int) -> list[str]:
        lost = [c for c in self.of(DONATION) if (c.delta > 0) == (grown > 0)]
        explained = sum(c.delta for c in lost)
        out = []
        if lost:
            names = ", ".join(c.name for c in lost[:3]) + (
                f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            )
            verb = "no longer donated" if grown > 0 else "now donated"
            out.append(f"{names} {verb} ({'+' if grown > 0 else '-'}{size(abs(explained))})")
        covered = abs(explained) >= 0.5 * abs(grown)
        rows = [c for c in self.of(BUFFER) if (c.delta > 0) == (grown > 0)]
        # The second copy of an undonated argument is an output: it has been named above.
        rows = [c for c in rows if not (lost and c.name.startswith("outputs"))]
        rows.sort(key=lambda c: -abs(c.delta))
        limit = 1 if covered else 2
        out += [c.message for c in rows[:limit] if abs(c.delta) >= 0.1 * abs(grown)]
        return out

    def to_json(self) -> dict[str, Any]:
        """The answer and every change."""
        return {
            "answer": self.answer(),
            "circumstances": self.circumstances(),
            "changes": [{**dataclasses.asdict(c), "delta": c.delta} for c in self.changes],
        }

    def __str__(self) -> str:
        return "\n".join([self.answer(), *self._also(), *(f"  {c.message}" for c in self.changes)])

    def _also(self) -> list[str]:
        found = self.circumstances()
        return [f"also different: {', '.join(found)}"] if found else []

    def __rich__(self) -> Any:
        from rich.console import Group

        table = Table(box=None, pad_edge=False)
        for column in ("what", "change", "source"):
            table.add_column(column, overflow="fold")
        for c in self.changes[:60]:
            table.add_row(c.what, c.message, short_source(c.source))
        return Group(Text(self.answer(), style="bold"), *map(Text, self._also()), table)


def compare(before: model.Report, after: model.Report) -> Diff:
    """Compares two reports of what is meant to be the same step."""
    lines = align(before, after)
    changes = [
        *_donations(before, after),
        *_buffers(before, after, lines),
        *_kernels(before, after, lines),
        *_collectives(before, after, lines),
    ]
    rank = {DONATION: 0, BUFFER: 1, KERNEL: 2, COLLECTIVE: 3}
    changes.sort(key=lambda c: (rank[c.what], -abs(c.delta), c.name, c.source))
    return Diff(before, after, tuple(changes))


def align(before: model.Report, after: model.Report) -> dict[str, str]:
    """Maps source lines of `after` to those of `before` that hold the same code; others are absent."""
    was, now = _by_file(before), _by_file(after)
    names: dict[str, list[str]] = collections.defaultdict(list)
    for file in was:
        names[file.rsplit("/", 1)[-1]].append(file)
    out = {}
    for file, lines in now.items():
        # Two checkouts of one repository: the same file under another folder.
        same = [file] if file in was else names.get(file.rsplit("/", 1)[-1], [])
        if len(same) != 1:
            continue
        old = was[same[0]]
        a, b = sorted(old), sorted(lines)
        matcher = difflib.SequenceMatcher(None, [old[k] for k in a], [lines[k] for k in b], autojunk=False)
        moved = {}
        for tag, a1, a2, b1, b2 in matcher.get_opcodes():
            if tag == "equal" or (tag == "replace" and a2 - a1 == b2 - b1):
                moved.update(zip(b[b1:b2], a[a1:a2], strict=True))
        # A file that was not edited, compiled in another way: kernels differ on its lines, its lines do not.
        unmoved = {k: k for k in old.keys() & lines.keys()}
        best = max((unmoved, moved), key=lambda pairs: _likeness(old, lines, pairs))
        out |= {f"{file}:{y}": f"{same[0]}:{x}" for y, x in best.items()}
    return out


def _likeness(
    was: Mapping[int, frozenset[str]], now: Mapping[int, frozenset[str]], pairs: Mapping[int, int]
) -> float:
    """How alike the lines are that `pairs` (now -> was) puts together: the sum of their Jaccard indices."""
    return sum(len(now[y] & was[x]) / len(now[y] | was[x]) for y, x in pairs.items())


def _by_file(report: model.Report) -> dict[str, dict[int, frozenset[str]]]:
    """File -> line -> the kinds of instructions that come from it."""
    program = report.data["program"]
    out: dict[str, dict[int, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    for name, index in zip(program["names"], program["sources"], strict=True):
        file, _, line = program["source_table"][index].rpartition(":")
        if file and line.isdigit():
            out[file][int(line)].add(stem(name))
    return {file: {k: frozenset(v) for k, v in lines.items()} for file, lines in out.items()}


def _donations(before: model.Report, after: model.Report) -> Iterable[Change]:
    was = {b["name"]: b for b in before.buffers if b["opcode"] == "parameter"}
    for b in after.buffers:
        old = was.get(b["name"])
        if b["opcode"] != "parameter" or old is None or old["donated"] == b["donated"]:
            continue
        lost = old["donated"]
        verb = "is no longer donated" if lost else "is now donated"
        sizes = (0, b["bytes"]) if lost else (b["bytes"], 0)
        yield Change(
            DONATION, b["name"], *sizes, "",
            f"argument {b['name']} {verb} ({'+' if lost else '-'}{size(b['bytes'])})",
        )  # fmt: skip


def _buffers(before: model.Report, after: model.Report, lines: Mapping[str, str]) -> Iterable[Change]:
    def key(b: Mapping[str, Any], translate: bool) -> tuple[str, ...]:
        if b["opcode"] == "parameter":
            return (b["origin"], b["name"], "", "")
        source = lines.get(b["source"], b["source"]) if translate else b["source"]
        return (b["origin"], source or stem(b["name"]), b["shape"], "")

    was, now = (
        _grouped(before.at_peak(), lambda b: key(b, False)),
        _grouped(after.at_peak(), lambda b: key(b, True)),
    )
    for k in sorted(set(was) | set(now)):
        old, new = was.get(k, []), now.get(k, [])
        a, b = sum(x["bytes"] for x in old), sum(x["bytes"] for x in new)
        if a == b:
            continue
        one = (new or old)[0]
        source = one["source"]
        where = f"from {short_source(source)}" if source else f"of {one['name']}"
        scope = f" in {one['scope']}" if one["scope"] else ""
        count = f"{len(old)} -> {len(new)} x {one['shape']}" if len(old) != len(new) else one["shape"]
        word = "new" if not old else "gone" if not new else size(b)
        yield Change(
            BUFFER, f"{one['origin']} {one['shape']}", a, b, source,
            f"{'+' if b > a else '-'}{size(abs(b - a))} {one['origin']} {where}{scope} ({word}: {count})",
        )  # fmt: skip


def _kernels(before: model.Report, after: model.Report, lines: Mapping[str, str]) -> Iterable[Change]:
    was = _grouped(before.kernels, lambda k: (k["source"],))
    now = _grouped(after.kernels, lambda k: (lines.get(k["source"], k["source"]),))
    for k in sorted(set(was) | set(now)):
        old, new = was.get(k, []), now.get(k, [])
        a, b = sum(x["ns"] for x in old), sum(x["ns"] for x in new)
        runs = [sum(x["count"] for x in side) for side in (old, new)]
        moved = [sum(x["moved_bytes"] for x in side) for side in (old, new)]
        if runs[0] == runs[1] and abs(moved[1] - moved[0]) <= 0.01 * max(moved):
            continue
        source = (new or old)[0]["source"]
        seen = {(x["name"], x["shape"]) for x in old}
        fresh = [x["name"] for x in new if (x["name"], x["shape"]) not in seen]
        named = f" (new: {', '.join(sorted(set(fresh))[:3])})" if fresh else ""
        yield Change(
            KERNEL, ", ".join(sorted({x["name"] for x in new or old})[:3]), a, b, source,
            f"kernels of {short_source(source) or 'no source line'}: {runs[0]} -> {runs[1]} launches, "
            f"{size(moved[0])} -> {size(moved[1])} moved, {time(a)} -> {time(b)}{named}",
        )  # fmt: skip


def _collectives(before: model.Report, after: model.Report, lines: Mapping[str, str]) -> Iterable[Change]:
    was = _grouped(before.collectives, lambda c: (c["kind"], c["source"]))
    now = _grouped(after.collectives, lambda c: (c["kind"], lines.get(c["source"], c["source"])))
    for k in sorted(set(was) | set(now)):
        old, new = was.get(k, []), now.get(k, [])
        exposed = [sum(c["exposed_ns"] * c["count"] for c in side) for side in (old, new)]
        count = [sum(c["count"] for c in side) for side in (old, new)]
        payload = [sum(c["bytes"] * c["count"] for c in side) for side in (old, new)]
        overlapped = [sum(c["done"] is not None for c in side) for side in (old, new)]
        still = count[0] == count[1] and payload[0] == payload[1] and overlapped[0] == overlapped[1]
        if still and abs(exposed[1] - exposed[0]) < max(1e3, 0.05 * max(exposed)):
            continue
        source = (new or old)[0]["source"]
        yield Change(
            COLLECTIVE, k[0], *exposed, source,
            f"{k[0]} of {short_source(source) or 'no source line'}: {count[0]} -> {count[1]} runs, "
            f"{size(payload[0])} -> {size(payload[1])}, exposed {time(exposed[0])} -> {time(exposed[1])}, "
            f"{overlapped[0]} -> {overlapped[1]} asynchronous",
        )  # fmt: skip


def _grouped(items: Iterable[Mapping[str, Any]], key: Any) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    out: dict[tuple[str, ...], list[Mapping[str, Any]]] = collections.defaultdict(list)
    for item in items:
        out[key(item)].append(item)
    return out
