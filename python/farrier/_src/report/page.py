"""The report as one HTML file that needs no network.

Bokeh draws: it is a maintained canvas library with zoom, pan and image export, and its wheel carries the
one script that a page needs, so nothing is fetched at build or view time and no JavaScript is vendored here.
The document travels compressed and in columns; the page's script (assets/page.js) sums and thins what is
visible, so 100,000 instructions draw as fast as 1,000.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from farrier._src import errors
from farrier._src.report import model, origin, schedule, tables, text
from farrier._src.report.units import binary_unit, size, time

# Okabe and Ito's palette (2008), told apart by all common kinds of colour vision; the hatches tell the rest.
COLOURS: Mapping[str, tuple[str, str]] = {
    origin.PARAMETERS: ("#0072B2", " "),
    origin.OPTIMIZER: ("#56B4E9", "/"),
    origin.INPUTS: ("#8C8C8C", " "),
    origin.CONSTANTS: ("#4D4D4D", "."),
    origin.OUTPUTS: ("#F0E442", "x"),
    origin.RESIDUALS: ("#E69F00", " "),
    origin.GRADIENTS: ("#009E73", "\\"),
    origin.COLLECTIVES: ("#CC79A7", "-"),
    origin.TEMPORARIES: ("#D55E00", " "),
}
KINDS: Mapping[str, str] = {
    "gemm": "#0072B2",
    "attention": "#56B4E9",
    "fusion": "#E69F00",
    "custom-call": "#009E73",
    "copy": "#8C8C8C",
    "wait": "#B00020",
    "iteration": "#4D4D4D",
    "more iterations": "#BDBDBD",
}
OTHER_KINDS = ("#CC79A7", "#A0A0A0")
"""Collectives, and every other opcode."""


def render(report: model.Report) -> str:
    """The page.

    Raises:
      farrier.MissingPluginError: Bokeh is not installed.
    """
    try:
        from bokeh.embed import components
        from bokeh.resources import Resources
        from jinja2 import Environment
    except ModuleNotFoundError as e:
        raise errors.MissingPluginError("the page needs Bokeh", hint='pip install "farrier[report]"') from e

    script, divs = components(_figures(report))
    assets = resources.files("farrier._src.report") / "assets"
    environment = Environment(autoescape=True)
    template = environment.from_string((assets / "page.html").read_text())
    return template.render(
        title=report.title,
        headline=text.headline(report),
        cards=_cards(report),
        answer=_answer(report),
        css=(assets / "page.css").read_text(),
        bokeh=Resources(mode="inline", components=["bokeh"], minified=True).render_js(),
        figures=divs,
        figures_script=script,
        page=(assets / "page.js").read_text(),
        data=base64.b64encode(
            gzip.compress(json.dumps(_data(report), separators=(",", ":")).encode(), mtime=0)
        ).decode(),
        versions=report.data["versions"],
        module=report.data["module"],
        target=report.data["target"],
    )


def _figures(report: model.Report) -> dict[str, Any]:
    from bokeh.models import ColumnDataSource, CustomJS, NumeralTickFormatter, Range1d, Span
    from bokeh.plotting import figure

    def base(name: str, height: int, **options: Any) -> Any:
        made = figure(
            name=name,
            height=height,
            sizing_mode="stretch_width",
            tools="xpan,xwheel_zoom,xbox_zoom,reset,save",
            active_drag="xbox_zoom",
            active_scroll=None,
            output_backend="canvas",
            toolbar_location="right",
            x_range=Range1d(0, 1, bounds="auto"),
            **options,
        )
        made.toolbar.logo = None
        for event in ("mousemove", "tap", "reset"):
            made.js_on_event(event, CustomJS(code=f"window.farrier?.on('{name}', '{event}', cb_obj)"))
        for end in ("start", "end"):
            made.x_range.js_on_change(end, CustomJS(code=f"window.farrier?.on('{name}', 'range', cb_obj)"))
        made.ygrid.grid_line_alpha = 0.5
        return made

    memory = base("memory", 340, y_range=Range1d(0, 1))
    memory.xaxis.axis_label = "program order (instruction number; a loop's body stands once)"
    unit, scale = _unit(report)
    memory.yaxis.axis_label = f"live device memory ({unit})"
    memory.yaxis.formatter = NumeralTickFormatter(format="0,0.[000]")
    memory.xaxis.formatter = NumeralTickFormatter(format="0,0")
    stacked = ColumnDataSource(
        {"x": [], **{f"y{k}": [] for k in range(len(origin.ORIGINS) + 1)}}, name="stacked"
    )
    for k, name in enumerate(origin.ORIGINS):
        colour, hatch = COLOURS[name]
        # The page makes the steps itself: Bokeh 3.10's varea_step does not return from an empty source.
        memory.varea(
            x="x", y1=f"y{k}", y2=f"y{k + 1}", source=stacked, fill_color=colour, fill_alpha=0.9,
            hatch_pattern=hatch, hatch_color="#FFFFFF", hatch_alpha=0.55, hatch_weight=1,
        )  # fmt: skip
    for name, dash, colour in (
        ("before", "dashed", "#000000"),
        ("estimate", "solid", "#6A3D9A"),
        ("estimate before", "dotted", "#6A3D9A"),
        ("host", "dotdash", "#009E73"),
    ):
        source = ColumnDataSource({"x": [], "y": []}, name=name)
        memory.step("x", "y", source=source, mode="after", line_color=colour, line_dash=dash, line_width=2)
    marker = ColumnDataSource({"x": [], "y": []}, name="peak")
    memory.scatter(
        "x", "y", source=marker, marker="inverted_triangle", size=13, fill_color="#000000", line_color="white"
    )
    allocated = report.data["memory"]["allocated"] / scale
    memory.add_layout(
        Span(location=allocated, dimension="width", line_color="#666666", line_dash="dotted", line_width=1.5)
    )
    if report.data["memory"]["budget"]:
        budget = report.data["memory"]["budget"] / scale
        memory.add_layout(Span(location=budget, dimension="width", line_color="#B00020", line_width=2.5))
    memory.add_layout(Span(name="cursor", location=0, dimension="height", line_color="#000000", line_width=1))
    out = {"memory": memory}
    if report.data["schedule"]:
        chart = base("schedule", 300, y_range=Range1d(0, len(schedule.TRACKS)))
        chart.xaxis.axis_label = "predicted time (ms)"
        rows = len(schedule.TRACKS)
        chart.yaxis.ticker = [k + 0.5 for k in range(rows)]
        chart.yaxis.major_label_overrides = {rows - k - 0.5: t for k, t in enumerate(schedule.TRACKS)}
        chart.ygrid.visible = False
        slices = ColumnDataSource(
            {k: [] for k in ("left", "right", "bottom", "top", "colour", "hatch")}, name="slices"
        )
        chart.quad(
            left="left", right="right", bottom="bottom", top="top", source=slices, fill_color="colour",
            line_color="#FFFFFF", line_width=0.5, hatch_pattern="hatch", hatch_color="#FFFFFF",
            hatch_alpha=0.7,
        )  # fmt: skip
        pairs = ColumnDataSource({"x0": [], "y0": [], "x1": [], "y1": []}, name="pairs")
        chart.segment(
            "x0", "y0", "x1", "y1", source=pairs, line_color="#000000", line_alpha=0.6, line_width=1
        )
        chart.add_layout(
            Span(name="clock", location=0, dimension="height", line_color="#000000", line_width=1)
        )
        out["schedule"] = chart
    return out


def _unit(report: model.Report) -> tuple[str, int]:
    """The unit of the memory axis: that of the largest thing drawn."""
    return binary_unit(report.data["memory"]["allocated"])


def _cards(report: model.Report) -> list[tuple[str, str, str]]:
    memory, figures = report.data["memory"], report.data["memory"]["figures"]
    exact = f"{memory['peak']['bytes']:,} bytes"
    if figures and figures["peak"] is not None:
        exact += (
            ", as XLA reports"
            if figures["peak"] == memory["peak"]["bytes"]
            else f"; XLA reports {figures['peak']:,}"
        )
    out = [
        ("peak of live memory", size(memory["peak"]["bytes"]), exact),
        ("allocated", size(report.total_bytes), f"{size(memory['fragmentation'])} not live at the peak"),
    ]
    donated = sum(b["bytes"] for b in report.buffers if b["donated"])
    out.append(("donated arguments", size(donated), "their memory holds results"))
    if memory["budget"]:
        spare = memory["budget"] - report.total_bytes
        out.append(
            ("budget", size(memory["budget"]), f"{size(abs(spare))} {'spare' if spare >= 0 else 'OVER'}")
        )
    if memory["estimate"]:
        planned = memory["estimate"]["peak"]
        gap = planned - memory["peak"]["bytes"]
        side = "above" if gap >= 0 else "below"
        share = abs(gap) / max(1, memory["peak"]["bytes"])
        out.append(("StableHLO estimate", size(planned), f"{size(abs(gap))} ({share:.1%}) {side} XLA's peak"))
    if memory["peak"]["host_bytes"]:
        out.append(("host memory", size(memory["peak"]["host_bytes"]), "at its own peak"))
    if report.step_ns is not None:
        out.append(("predicted step", time(report.step_ns), f"{len(report.kernels)} kinds of kernels"))
        share = (report.exposed_ns or 0.0) / report.step_ns if report.step_ns else 0.0
        out.append(("exposed communication", time(report.exposed_ns or 0.0), f"{share:.0%} of the step"))
    if report.data["measured"]:
        measured = report.data["measured"]
        out.append(("measured work per step", time(measured["step_ns"]), measured["device"]))
        most = (measured["allocator"] or {}).get("peak_bytes_in_use")
        if most is not None:
            out.append(("allocator's peak", size(most), "of the whole process, as the device reports"))
    return out


def _answer(report: model.Report) -> str:
    if report.before is None:
        return ""
    from farrier._src.report import diff

    found = diff.compare(report.before, report)
    also = found.circumstances()
    return found.answer() + (f" (also different: {', '.join(also)})" if also else "")


class _Table:
    """Strings once, and indices to them."""

    def __init__(self) -> None:
        self.strings: dict[str, int] = {}

    def __call__(self, value: str) -> int:
        return self.strings.setdefault(value, len(self.strings))


def _buffer_columns(report: model.Report, strings: _Table) -> dict[str, list[Any]]:
    buffers = report.buffers
    out: dict[str, list[Any]] = {k: [b[k] for b in buffers] for k in ("bytes", "start", "end")}
    out["origin"] = [origin.ORIGINS.index(b["origin"]) for b in buffers]
    for k in ("name", "shape", "scope", "layer", "source"):
        out[k] = [strings(b[k]) for b in buffers]
    out["host"] = [int(b["space"] == "host") for b in buffers]
    out["notes"] = [strings(_notes(b)) for b in buffers]
    return out


def _notes(b: Mapping[str, Any]) -> str:
    said = ["donated"] * b["donated"] + ["rematerialized"] * b["rematerialized"]
    if b["shared"]:
        said.append(f"holds {b['shared'] + 1} values")
    return ", ".join(said)


def _data(report: model.Report) -> dict[str, Any]:
    strings = _Table()
    program, memory = report.data["program"], report.data["memory"]
    sources = [strings(s) for s in program["source_table"]]
    out: dict[str, Any] = {
        "origins": [[name, *COLOURS[name]] for name in origin.ORIGINS],
        "names": program["names"],
        "sources": [sources[k] for k in program["sources"]],
        "loops": program["loops"],
        "memory": {
            "buffers": _buffer_columns(report, strings),
            "peak": memory["peak"],
            "allocated": memory["allocated"],
            "budget": memory["budget"],
            "estimate": memory["estimate"],
            "before": None,
            "unit": _unit(report),
        },
        "schedule": _schedule(report, sources) if report.data["schedule"] else None,
        "tables": tables.tables(report),
    }
    if report.before is not None:
        before = report.before.data
        out["memory"]["before"] = {
            "positions": len(before["program"]["names"]),
            "timeline": before["memory"]["timeline"],
            "title": report.before.title,
            "estimate": before["memory"]["estimate"],
        }
    out["strings"] = list(strings.strings)
    return out


def _schedule(report: model.Report, sources: Sequence[int]) -> dict[str, Any]:
    slices = report.data["schedule"]["slices"]
    kinds = _Table()
    columns = {
        "track": [schedule.TRACKS.index(s["track"]) for s in slices],
        "start": [s["start_ns"] for s in slices],
        "duration": [s["duration_ns"] for s in slices],
        "position": [s["position"] for s in slices],
        "kind": [kinds(s["kind"]) for s in slices],
        "exposed": [s.get("exposed_ns", 0) for s in slices],
        "done": [s.get("done", -1) for s in slices],
        "source": [sources[s["source"]] for s in slices],
    }
    colours = [
        KINDS.get(k) or (OTHER_KINDS[0] if k.startswith(_COLLECTIVE) else OTHER_KINDS[1])
        for k in kinds.strings
    ]
    return {
        "columns": columns,
        "kinds": list(kinds.strings),
        "colours": colours,
        "tracks": schedule.TRACKS,
        "step": report.data["schedule"]["step_ns"],
    }


_COLLECTIVE = ("all-", "reduce-scatter", "collective-", "send", "recv", "ragged-all")
