"""Where a program's memory, kernels and exposed communication come from, per source line.

Reads XLA's own optimized HLO text and live-range dump. The summary is small
enough to be committed beside a baseline, so that a later regression can be
traced to a line without the old compile.
"""

from __future__ import annotations

import dataclasses
import linecache
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_TABLE = re.compile(r"^(FileNames|FunctionNames|FileLocations|StackFrames)$")
_NAMED = re.compile(r'^(\d+) "(.*)"$')
_FIELDS = re.compile(r"^(\d+) \{(.*)\}$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_SOURCE = re.compile(r'source_file="([^"]*)"(?: source_line=(\d+))?')
_PEAK = re.compile(r"^\s*Live ranges at \d+ \(peak\):")
_ALLOCATION = re.compile(r"^allocation \d+: .*?(preallocated-temp)?:$")
_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+)(?: \S+)? @\d+> \(size=(\d+),")
_LIVE = re.compile(r"^\s+([\w.\-]+)\{[^}]*\}: (\d+) bytes \(cumulative")

# Instructions that are no kernel of their own.
_FREE = frozenset(
    [
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
        *("replica-id", "optimization-barrier", "while", "conditional", "call"),
    ]
)
_LIBRARY = ("site-packages", "dist-packages", "/lib/python")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One level of the Python stack that an operation was traced under."""

    file: str
    function: str
    line: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of the optimized module: name, result shape, opcode, origin."""

    name: str
    shape: str
    opcode: str
    op_name: str
    stack: tuple[Frame, ...]
    entry: bool


def parse_instructions(hlo: str) -> list[Instruction]:
    """Reads the instructions of optimized HLO text with their Python stacks, innermost frame first."""
    tables: dict[str, dict[int, Any]] = defaultdict(dict)
    current: str | None = None
    stacks: dict[int, tuple[Frame, ...]] = {}
    out = []
    entry = False
    for text in hlo.splitlines():
        if _TABLE.match(text):
            current = text
            continue
        if current is not None:
            if m := _NAMED.match(text):
                tables[current][int(m[1])] = m[2]
                continue
            if m := _FIELDS.match(text):
                tables[current][int(m[1])] = {
                    k: int(v) for k, v in (pair.split("=") for pair in m[2].split()) if v.isdigit()
                }
                continue
            current = None
        if text and not text[0].isspace():
            entry = text.startswith("ENTRY")
            continue
        m = _INSTRUCTION.match(text)
        if m is None:
            continue
        stack: tuple[Frame, ...] = ()
        if f := _FRAME.search(text):
            frame_id = int(f[1])
            if frame_id not in stacks:
                stacks[frame_id] = _stack(tables, frame_id)
            stack = stacks[frame_id]
        elif s := _SOURCE.search(text):
            stack = (Frame(s[1], "", int(s[2] or 0)),)
        op = _OP_NAME.search(text)
        out.append(Instruction(m[1], m[2], m[3], op[1] if op else "", stack, entry))
    return out


def _stack(tables: Mapping[str, Mapping[int, Any]], frame_id: int) -> tuple[Frame, ...]:
    frames = []
    seen = set()
    while frame_id > 0 and frame_id not in seen:
        seen.add(frame_id)
        entry = tables["StackFrames"].get(frame_id)
        if entry is None:
            break
        where = tables["FileLocations"].get(entry.get("file_location_id", 0), {})
        frames.append(
            Frame(
                tables["FileNames"].get(where.get("file_name_id", 0), ""),
                tables["FunctionNames"].get(where.get("function_name_id", 0), ""),
                where.get("line", 0),
            )
        )
        # XLA prints the parent's id plus one, so that a root frame names itself.
        frame_id = entry.get("parent_frame_id", 1) - 1
    return tuple(frames)


def parse_peak(live_range: str) -> dict[str, int]:
    """Reads the bytes of the buffers that live at the peak, by instruction, from a live-range dump."""
    out: dict[str, int] = defaultdict(int)
    at_peak = False
    for text in live_range.splitlines():
        if _PEAK.match(text):
            at_peak = True
        elif at_peak:
            m = _LIVE.match(text)
            if m is None:
                break
            out[m[1]] += int(m[2])
    return dict(out)


def parse_allocated(buffer_assignment: str) -> dict[str, int]:
    """Reads the temporary bytes that each instruction ever allocates, from a buffer-assignment dump."""
    out: dict[str, int] = defaultdict(int)
    temporary = False
    for text in buffer_assignment.splitlines():
        if m := _ALLOCATION.match(text):
            temporary = m[1] is not None
        elif temporary and (m := _VALUE.match(text)):
            out[m[1]] += int(m[2])
    return dict(out)


def user_frame(stack: Sequence[Frame], root: pathlib.Path | None) -> Frame | None:
    """Returns the innermost frame under ``root``, else outside installed libraries, else of all."""
    if root is not None:
        for frame in stack:
            if pathlib.Path(frame.file).is_relative_to(root) and not any(x in frame.file for x in _LIBRARY):
                return frame
    for frame in stack:
        if not any(x in frame.file for x in _LIBRARY):
            return frame
    return stack[0] if stack else None


# What is counted for a line, and what it means for one step.
COLUMNS = {
    "bytes": "bytes live at the peak",
    "allocated": "temporary bytes ever allocated",
    "moved": "device memory traffic, bytes",
    "flops": "FLOPs",
    "kernels": "kernels in the entry computation",
    "exposed": "collectives that nothing overlaps",
}


def summarize(
    instructions: Iterable[Instruction],
    costs: Mapping[str, Mapping[str, int]],
    *,
    root: pathlib.Path | None = None,
    limit: int = 60,
) -> list[dict[str, Any]]:
    """Sums up a compile per source line, the lines with most bytes at the peak first.

    Args:
      instructions: of the optimized module.
      costs: by column of :data:`COLUMNS`, the figure of each instruction by name;
        ``kernels`` is counted from the instructions.
      root: the user's source tree; paths below it are written relative to it.
      limit: how many lines to keep; the others become one line named ``(other)``.

    Returns dictionaries with ``file``, ``line``, ``function``, ``code`` (the line's
    text), the columns, and ``buffers``: for the largest buffers at the peak their
    HLO name, shape, bytes and op name.
    """
    table: dict[tuple[str, int, str], dict[str, Any]] = {}
    for i in instructions:
        row = {column: costs.get(column, {}).get(i.name, 0) for column in COLUMNS}
        row["kernels"] = int(
            i.entry and i.opcode not in _FREE and not i.opcode.endswith(("-done", "-update"))
        )
        if not any(row.values()):
            continue
        frame = user_frame(i.stack, root)
        if frame is None:
            # Arguments have no frame; XLA names them after the Python argument.
            what = i.op_name if i.opcode == "parameter" and i.op_name else f"({i.opcode})"
            frame = Frame("", what, 0)
        total = table.setdefault(
            (frame.file, frame.line, frame.function), {**dict.fromkeys(COLUMNS, 0), "buffers": []}
        )
        for column, value in row.items():
            total[column] += value
        if row["bytes"]:
            total["buffers"].append(
                {"name": i.name, "shape": i.shape, "bytes": row["bytes"], "op_name": i.op_name}
            )
    rows = []
    for (file, line, function), row in table.items():
        code = linecache.getline(file, line).strip() if file and line else ""
        row["buffers"] = sorted(row["buffers"], key=lambda b: (-b["bytes"], b["name"]))[:4]
        rows.append({"file": relative(file, root), "line": line, "function": function, "code": code, **row})
    rows.sort(key=lambda r: (*(-r[c] for c in COLUMNS), r["file"], r["line"], r["function"]))
    if len(rows) > limit:
        rest = rows[limit:]
        other = {c: sum(r[c] for r in rest) for c in COLUMNS}
        rows = [
            *rows[:limit],
            {"file": "", "line": 0, "function": "(other)", "code": "", **other, "buffers": []},
        ]
    return rows


def relative(file: str, root: pathlib.Path | None) -> str:
    """Returns a source file's path relative to ``root`` or to its package folder; else its bare name."""
    if not file:
        return ""
    path = pathlib.Path(file)
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    for part in ("site-packages/", "dist-packages/"):
        if part in file:
            return file.rpartition(part)[2]
    # A path of somebody's machine says nothing in a committed file.
    return path.name


@dataclasses.dataclass(frozen=True)
class LineChange:
    """How one source line changed between two compiles.

    Attributes:
      file, line, function, code: the line as it is now (as it was, if it is gone).
      delta: for each of :data:`COLUMNS`, now less then.
      now: the current row or ``None``; then: the baseline's row or ``None``.
      kind: "changed", "new", "gone" or "edited".
    """

    file: str
    line: int
    function: str
    code: str
    delta: Mapping[str, int]
    now: Mapping[str, Any] | None
    then: Mapping[str, Any] | None
    kind: str

    def where(self) -> str:
        """``file:line (function)``."""
        place = f"{self.file}:{self.line}" if self.file else self.function
        return f"{place} ({self.function})" if self.file and self.function else place


def _change(now: Mapping[str, Any] | None, then: Mapping[str, Any] | None, kind: str) -> LineChange:
    shown = now if now is not None else then
    assert shown is not None
    delta = {c: (now or {}).get(c, 0) - (then or {}).get(c, 0) for c in COLUMNS}
    return LineChange(shown["file"], shown["line"], shown["function"], shown["code"], delta, now, then, kind)


def diff(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[LineChange]:
    """Compares two summaries line by line; rows without any change are left out.

    A line is recognised by file, function and text, so that code moving up or down
    is no change; what is left is paired within a function as edited lines.
    """

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        text = row["code"] or row["line"]
        return (row["file"], row["function"], text)

    def group(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
        out: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
        for row in sorted(rows, key=lambda r: r["line"]):
            out[key(row)].append(row)
        return out

    old, new = group(then), group(now)
    changes, added, removed = [], [], []
    for k in {**old, **new}:
        a, b = old.get(k, []), new.get(k, [])
        changes += [_change(y, x, "changed") for x, y in zip(a, b, strict=False)]
        removed += a[len(b) :]
        added += b[len(a) :]
    for row in added:
        same = [r for r in removed if (r["file"], r["function"]) == (row["file"], row["function"])]
        if row["file"] and same:
            # The nearest line of the function that is gone: most likely the one that was edited.
            mate = min(same, key=lambda r: (abs(r["line"] - row["line"]), r["line"]))
            removed.remove(mate)
            changes.append(_change(row, mate, "edited"))
        else:
            changes.append(_change(row, None, "new"))
    changes += [_change(None, row, "gone") for row in removed]
    return [c for c in changes if any(c.delta.values())]


_COLUMN_OF = (
    (("bytes_moved", "modelled_seconds", "step_seconds"), "moved"),
    (("flops", "recomputed_flops"), "flops"),
    (("total_bytes", "temp_bytes", "peak_bytes", "argument_bytes", "output_bytes", "alias_bytes"), "bytes"),
    (("exposed_collectives", "exposed_seconds"), "exposed"),
)


def culprits(
    changes: Sequence[LineChange], metric: str, growth: float | None = None, *, limit: int = 5
) -> list[LineChange]:
    """Returns the lines that made ``metric`` worse, worst first.

    Args:
      changes: what :func:`diff` gave.
      metric: a name; memory follows bytes at the peak, traffic and modelled time the
        bytes moved, exposed communication the exposed collectives, the rest kernels.
      growth: by how much the metric grew, in its unit. If the lines' bytes at the peak
        do not explain half of it (the peak moved elsewhere), bytes ever allocated are
        followed instead; if those do not either (buffers packed worse), what was edited.
    """
    column = next((c for names, c in _COLUMN_OF if metric in names), None)
    if column is None:
        column = "moved" if metric.startswith("collectives") else "kernels"

    def worse(column: str) -> list[LineChange]:
        found = [c for c in changes if c.delta[column] > 0]
        # What has a place in the user's code before what has none.
        return sorted(found, key=lambda c: (not c.file, -c.delta[column], c.file, c.line))

    found = worse(column)
    if column == "bytes" and growth is not None:

        def explains(found: list[LineChange], column: str) -> bool:
            return sum(c.delta[column] for c in found if c.file) >= 0.5 * growth

        if not explains(found, "bytes"):
            allocated = worse("allocated")
            if explains(allocated, "allocated"):
                found = allocated
            else:
                # The same bytes packed worse: what was written anew is the likeliest cause.
                written = [c for c in changes if c.kind in ("edited", "new") and c.file]
                found = sorted(written, key=lambda c: (-abs(c.delta["moved"]), c.file, c.line)) or found
    return found[:limit]
