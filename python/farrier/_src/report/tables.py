"""The page's tables: for each a list of columns, a column being its title and what a row shows there.

A cell is text or a number, or [sort key, text], or [sort key, text, length of a bar from 0 to 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from farrier._src.remarks import figures
from farrier._src.report import model
from farrier._src.report.units import rate, short_source, size, time

Row = Mapping[str, Any]
Columns = Sequence[tuple[str, Callable[[Row], Any]]]


def _size(key: str) -> Callable[[Row], Any]:
    return lambda row: [row[key], size(row[key])]


def _time(key: str) -> Callable[[Row], Any]:
    return lambda row: [row[key] or 0, time(row[key]) if row[key] is not None else ""]


def _ratio(a: str, b: str) -> Callable[[Row], Any]:
    return lambda row: [row[a] / row[b], f"{row[a] / row[b]:.2f}"] if row[b] else [0, ""]


def _text(key: str) -> Callable[[Row], Any]:
    return lambda row: row[key]


def _source(row: Row) -> str:
    return short_source(row["source"])


KERNELS: Columns = (
    ("time per step", _time("ns")),
    ("runs", _text("count")),
    ("kernel", _text("name")),
    ("kind", _text("kind")),
    ("result", _text("shape")),
    ("operands", _text("operands")),
    ("work", lambda k: [k["flops"], rate(k["flops"], "FLOP") if k["flops"] else ""]),
    ("moved", _size("moved_bytes")),
    ("ideal", _size("ideal_bytes")),
    ("moved / ideal", _ratio("moved_bytes", "ideal_bytes")),
    ("of roofline", lambda k: [k["roofline"], f"{k['roofline']:.0%}", k["roofline"]]),
    ("bound by", _text("bound")),
    ("model", _text("model")),
    ("source", _source),
    ("scope", _text("scope")),
)

COLLECTIVES: Columns = (
    ("exposed", _time("exposed_ns")),
    ("time", _time("ns")),
    ("runs", _text("count")),
    ("kind", _text("kind")),
    ("name", _text("name")),
    ("bytes", _size("bytes")),
    ("devices", _text("group")),
    ("start", _text("position")),
    ("done", lambda c: c["done"] if c["done"] is not None else "synchronous"),
    ("why it waits", lambda c: c.get("why", "")),
    ("source", _source),
    ("scope", _text("scope")),
)

ARGUMENTS: Columns = (
    ("bytes", _size("bytes")),
    ("argument", _text("name")),
    ("shape", _text("shape")),
    ("origin", _text("origin")),
    ("donated", lambda b: "yes" if b["donated"] else "no"),
    ("values in its memory", lambda b: b["shared"] + 1),
    ("memory", _text("space")),
)


def _figure(ending: str, show: Callable[[float], str]) -> Callable[[Row], Any]:
    """The first figure whose name ends so; passes name theirs as they like (``Bytes``, ``stack_bytes``)."""

    def cell(remark: Row) -> Any:
        for name, value in remark["args"].items():
            if name.lower().endswith(ending) and isinstance(value, int | float):
                return [value, show(value)]
        return [-1, ""]

    return cell


REMARKS: Columns = (
    ("pass", _text("pass")),
    ("rule", _text("name")),
    ("kind", _text("kind")),
    ("what", _text("message")),
    ("bytes", _figure("bytes", size)),
    ("cost", _figure("seconds", lambda seconds: time(seconds * 1e9))),
    ("figures", lambda r: figures(r["args"])),
    ("where", lambda r: short_source(r["location"])),
    ("operation", _text("operation")),
)

EDGES: Columns = (
    ("removable", _size("removable_bytes")),
    ("roofline time of it", _time("removable_ns")),
    ("runs", _text("count")),
    ("value", _text("shape")),
    ("kind", _text("kind")),
    ("written by", _text("producer")),
    ("at", _source),
    ("read at", lambda e: ", ".join(dict.fromkeys(short_source(s) for s in e["consumer_sources"] if s))),
    ("advice", _text("advice")),
    ("left alone because", _text("missed")),
)

MEASURED: Columns = (
    ("measured per step", _time("total_ns")),
    ("one run", _time("ns")),
    ("predicted", _time("predicted_ns")),
    ("measured / predicted", _ratio("ns", "predicted_ns")),
    ("runs", _text("count")),
    ("instruction", _text("name")),
    ("source", _source),
)

ALLOCATOR: Columns = (("figure", _text("name")), ("bytes", _size("bytes")))

CHANGES: Columns = (
    ("what", _text("what")),
    ("change", _text("message")),
    ("by", lambda c: [c["delta"], (size if c["what"] in ("buffer", "donation") else time)(c["delta"])]),
    ("source", _source),
)


def allocator(report: model.Report) -> list[Row]:
    """What the device's allocator reported after a real run, beside what XLA planned."""
    found = (report.data["measured"] or {}).get("allocator")
    if not found:
        return []
    said = [
        {"name": k.replace("_", " "), "bytes": v} for k, v in found.items() if "bytes" in k or "size" in k
    ]
    return [{"name": "planned by XLA for this step", "bytes": report.total_bytes}, *said]


def tables(report: model.Report) -> dict[str, Any]:
    """Name -> {"columns": titles, "rows": cells} of every table that has rows."""
    arguments = sorted(
        (b for b in report.buffers if b["opcode"] == "parameter"), key=lambda b: (-b["bytes"], b["name"])
    )
    found: list[tuple[str, Columns, Iterable[Row]]] = [
        ("kernels", KERNELS, report.kernels),
        ("opportunities", EDGES, (report.opportunities or {}).get("edges", ())),
        ("collectives", COLLECTIVES, report.collectives),
        ("arguments", ARGUMENTS, arguments),
        ("remarks", REMARKS, report.remarks),
        ("measured", MEASURED, (report.data["measured"] or {}).get("ops", ())),
        ("allocator", ALLOCATOR, allocator(report)),
    ]
    if report.before is not None:
        from farrier._src.report import diff

        found.append(("changes", CHANGES, diff.compare(report.before, report).to_json()["changes"]))
    return {
        name: {
            "columns": [title for title, _ in columns],
            "rows": [[cell(r) for _, cell in columns] for r in rows],
        }
        for name, columns, rows in found
        if rows
    }
