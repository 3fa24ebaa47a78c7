"""A report as text: tables in a terminal and in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from farrier._src import errors
from farrier._src.remarks import figures
from farrier._src.report import model, tables
from farrier._src.report.units import rate, short_source, size, time

_ROWS = 12
_REMARK_STYLES = {"applied": "green", "missed": "yellow", "failed": "red"}


def plain(report: model.Report, *, width: int = 130) -> str:
    """The tables without colours."""
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, highlight=False).print(renderable(report))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


def renderable(report: model.Report) -> Group:
    """What `rich` prints."""
    parts: list[Any] = [Text(f"{report.title}: {headline(report)}", style="bold")]
    if report.before is not None:
        from farrier._src.report import diff

        parts.append(Text(diff.compare(report.before, report).answer(), style="bold"))
    parts += [_peak_by_origin(report), _peak_buffers(report)]
    if report.kernels:
        parts.append(_kernels(report))
    if report.collectives:
        parts.append(_collectives(report))
    if report.data["measured"]:
        parts.append(_measured(report))
        if rows := tables.allocator(report):
            parts.append(_allocator(rows))
    if report.remarks:
        parts.append(remarks(report.remarks))
    return Group(*parts)


def headline(report: model.Report) -> str:
    """One line: peak, where, allocated, budget, predicted time."""
    memory = report.data["memory"]
    peak = memory["peak"]
    at = f" at {short_source(peak['source'])}" if peak["source"] else f" at {peak['instruction']}"
    said = [f"peak {size(peak['bytes'])}{at}", f"{size(report.total_bytes)} allocated"]
    if memory["fragmentation"] > 0:
        said[-1] += f" ({size(memory['fragmentation'])} of it fragmentation)"
    if memory["budget"]:
        spare = memory["budget"] - report.total_bytes
        said.append(
            f"{size(abs(spare))} {'below' if spare >= 0 else 'OVER'} the budget {size(memory['budget'])}"
        )
    if memory["estimate"]:
        planned = memory["estimate"]["peak"]
        share = abs(planned - peak["bytes"]) / max(1, peak["bytes"])
        side = "above" if planned >= peak["bytes"] else "below"
        said.append(f"the StableHLO estimate is {size(planned)}, {share:.1%} {side} that peak")
    if peak["host_bytes"]:
        said.append(f"{size(peak['host_bytes'])} on the host")
    if report.step_ns is not None:
        said.append(
            f"predicted step {time(report.step_ns)}, "
            f"{time(report.exposed_ns or 0.0)} of it exposed communication"
        )
    return "; ".join(said)


def _table(title: str, *columns: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for name, justify in columns:
        wrap = name in ("what", "read at")
        table.add_column(name, justify=justify, overflow="fold" if wrap else "ellipsis", no_wrap=not wrap)  # type: ignore[arg-type]
    return table


def _peak_by_origin(report: model.Report) -> Table:
    now = report.peak_by("origin")
    was = report.before.peak_by("origin") if report.before is not None else None
    columns = [("origin", "left"), ("bytes at the peak", "right"), ("share", "right")]
    table = _table(
        "\nLive at the peak by origin", *columns, *([("before", "right")] if was is not None else [])
    )
    for origin in sorted(set(now) | set(was or {}), key=lambda k: -now.get(k, 0)):
        n = now.get(origin, 0)
        row = [origin, size(n), f"{n / max(1, report.peak_bytes):.0%}"]
        table.add_row(*row, *([size(was.get(origin, 0))] if was is not None else []))
    return table


def _peak_buffers(report: model.Report) -> Table:
    live = report.at_peak()
    table = _table(
        f"\nLargest of {len(live)} buffers at the peak",
        ("bytes", "right"), ("shape", "left"), ("origin", "left"), ("name or scope", "left"), ("source",
        "left"),
    )  # fmt: skip
    for b in live[:_ROWS]:
        where = b["scope"] or b["name"]
        table.add_row(size(b["bytes"]), b["shape"], b["origin"], where, short_source(b["source"]))
    return table


def _kernels(report: model.Report) -> Table:
    table = _table(
        f"\nLongest of {len(report.kernels)} kinds of kernels (predicted)",
        ("time", "right"), ("runs", "right"), ("kernel", "left"), ("shape", "left"), ("work", "right"),
        ("moved", "right"), ("ideal", "right"), ("roofline", "right"), ("bound", "left"), ("source", "left"),
    )  # fmt: skip
    for k in report.kernels[:_ROWS]:
        table.add_row(
            time(k["ns"]), str(k["count"]), k["name"], k["shape"], rate(k["flops"], "FLOP") if k["flops"] else
            "", size(k["moved_bytes"]), size(k["ideal_bytes"]), f"{k['roofline']:.0%}", k["bound"],
            short_source(k["source"]),
        )  # fmt: skip
    return table


def opportunities(report: model.Report, *, rows: int = 20) -> Group:
    """Edges and kernels ranked by removable bytes.

    Raises:
      farrier.OptionError: the report was made without a target, so there is no roofline to rank against.
    """
    found = report.opportunities
    if found is None:
        raise errors.OptionError(
            "ranking kernels needs the roofline of a target", hint="pass --target, like h100"
        )
    share = found["removable_bytes"] / max(1, found["bytes"])
    head = (
        f"{report.title}: {size(found['bytes'])} moved a step, at most {size(found['removable_bytes'])} "
        f"({share:.0%}) of it removable; roofline {time(found['roofline_ns'])}, "
        f"{time(found['removable_ns'])} of it removable"
    )
    edges = _table(
        f"\nLargest of {len(found['edges'])} kinds of values between kernels",
        ("removable", "right"), ("roofline", "right"), ("runs", "right"), ("value", "left"), ("kind", "left"),
        ("written by", "left"), ("at", "left"), ("read at", "left"),
    )  # fmt: skip
    for e in found["edges"][:rows]:
        edges.add_row(
            size(e["removable_bytes"]), time(e["removable_ns"]), str(e["count"]), e["shape"], e["kind"],
            e["producer"], short_source(e["source"]),
            ", ".join(dict.fromkeys(short_source(s) for s in e["consumer_sources"] if s)),
        )  # fmt: skip
    kernels = _table(
        f"\nKernels with most to gain, of {len(found['kernels'])} kinds",
        ("removable", "right"), ("of", "right"), ("roofline", "right"), ("without", "right"), ("runs", "right"),
        ("kernel", "left"), ("result", "left"), ("source", "left"),
    )  # fmt: skip
    for k in found["kernels"][:rows]:
        kernels.add_row(
            size(k["removable_bytes"]), size(k["bytes"]), time(k["roofline_ns"]),
            time(k["roofline_ns"] - k["removable_ns"]), str(k["count"]), k["name"], k["shape"],
            short_source(k["source"]),
        )  # fmt: skip
    shown = {e["kind"]: e["advice"] for e in found["edges"][:rows]}
    advice = _table("\nWhat helps", ("kind", "left"), ("what", "left"))
    for kind, sentence in shown.items():
        advice.add_row(kind, sentence)
    for e in found["edges"][:rows]:
        if e["missed"]:
            advice.add_row(e["kind"], f"{short_source(e['source'])}: {e['missed']}")
    return Group(Text(head, style="bold"), edges, kernels, advice)


def _collectives(report: model.Report) -> Table:
    table = _table(
        f"\nMost exposed of {len(report.collectives)} collectives (predicted)",
        ("exposed", "right"), ("time", "right"), ("runs", "right"), ("kind", "left"), ("bytes", "right"),
        ("devices", "right"), ("source", "left"), ("why it waits", "left"),
    )  # fmt: skip
    for c in sorted(report.collectives, key=lambda c: -c["exposed_ns"] * c["count"])[:_ROWS]:
        table.add_row(
            time(c["exposed_ns"]), time(c["ns"]), str(c["count"]), c["kind"], size(c["bytes"]),
            str(c["group"]), short_source(c["source"]), c.get("why", ""),
        )  # fmt: skip
    return table


def _measured(report: model.Report) -> Table:
    measured = report.data["measured"]
    table = _table(
        f"\nMeasured on {measured['device']}: {time(measured['step_ns'])} per step, "
        f"mean of {measured['steps']}",
        ("measured", "right"), ("predicted", "right"), ("runs", "right"), ("instruction", "left"),
        ("source", "left"),
    )  # fmt: skip
    for op in measured["ops"][:_ROWS]:
        predicted = time(op["predicted_ns"]) if op["predicted_ns"] is not None else ""
        table.add_row(time(op["ns"]), predicted, str(op["count"]), op["name"], short_source(op["source"]))
    return table


def _allocator(rows: list[tables.Row]) -> Table:
    table = _table("\nDevice memory, as its allocator reports", ("figure", "left"), ("bytes", "right"))
    for row in rows:
        table.add_row(row["name"], size(row["bytes"]))
    return table


def remarks(found: Iterable[Mapping[str, Any]]) -> Table:
    """Decisions of the passes: which, what, why, where."""
    table = _table("\nRemarks", ("pass", "left"), ("kind", "left"), ("what", "left"), ("where", "left"))
    for r in found:
        said = figures(r["args"])
        table.add_row(
            r["pass"] + (f": {r['name']}" if r.get("name") else ""),
            r["kind"],
            r["message"] + (f" ({said})" if said else ""),
            short_source(r["location"]),
            style=_REMARK_STYLES.get(r["kind"], ""),
        )
    return table


def notebook(report: model.Report) -> str:
    """HTML for a notebook's cell: the tables, drawn by `rich`."""
    return as_html(renderable(report), "farrier report")


def as_html(shown: Any, label: str, *, width: int = 150) -> str:
    """What `rich` prints, as HTML without scripts; colours that are readable on light and on dark."""
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True, highlight=False)
    console.print(shown)
    body = console.export_html(inline_styles=True, code_format="{code}")
    return (
        f"<pre style='line-height:1.25;white-space:pre;overflow-x:auto' role='region' "
        f"aria-label='{html.escape(label, quote=True)}'>{body}</pre>"
    )
