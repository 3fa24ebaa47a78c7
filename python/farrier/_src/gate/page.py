"""A page for each regressed result: what changed, and which source lines and buffers are behind it."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from farrier._src.bench.lines import COLUMNS
from farrier._src.bench.metric import format_value
from farrier._src.bench.result import Run, write_text
from farrier._src.errors import MissingPluginError
from farrier._src.gate import reports
from farrier._src.gate.compare import Comparison, Row, Verdict, format_change
from farrier._src.gate.render import line_text
from farrier._src.report import diff as report_diff

# Rows of a program's diff that a page shows; they come largest first.
_ROWS = 60

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ id }}: regressed</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 75rem; padding: 0 1rem; color: #1b1b1b; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #d5d5d5; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
tr.regressed td { background: #fdeceb; } tr.improved td { background: #e9f3fb; }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.answer { border-left: .35rem solid #b3261e; padding: .4rem .8rem; background: #fdeceb; }
</style></head><body>
<h1>{{ id }}</h1>
{% for line in answers %}<p class="answer">{{ line }}</p>{% endfor %}
{% for label in labels %}<p>Note: {{ label }}</p>{% endfor %}
{% if diff %}<h2>What changed in the compiled program</h2>
<p class="answer">{{ diff.answer }}</p>
{% if picture %}<p><a href="{{ picture }}">Memory over time, schedule and kernels</a>, with the baseline's memory as
a dashed line.</p>{% endif %}
<table><thead><tr><th>what</th><th>change</th><th>source</th></tr></thead><tbody>
{% for c in diff.changes %}<tr><td>{{ c.what }}</td><td>{{ c.message }}</td><td><code>{{ c.source }}</code></td></tr>
{% endfor %}</tbody></table>
{% elif no_diff %}<p>No diff of the compiled programs: {{ no_diff }}.</p>{% endif %}
<h2>Metrics</h2>
<table><thead><tr><th>metric</th><th class="n">baseline</th><th class="n">now</th><th class="n">change</th>
<th>verdict</th><th>note</th></tr></thead><tbody>
{% for r in rows %}<tr class="{{ r.verdict }}"><td>{{ r.metric }}</td><td class="n">{{ r.old }}</td>
<td class="n">{{ r.new }}</td><td class="n">{{ r.change }}</td>
<td>{{ r.verdict }}</td><td>{{ r.note }}</td></tr>
{% endfor %}</tbody></table>
<h2>Source lines that changed</h2>
{% if changes %}<table><thead><tr><th>line</th><th>text</th>
{% for c in columns %}<th class="n">{{ c }}</th>{% endfor %}
<th>buffers at the peak: before &rarr; now</th></tr></thead><tbody>
{% for c in changes %}<tr><td><code>{{ c.where }}</code><br>{{ c.kind }}</td>
<td><code>{{ c.code }}</code></td>
{% for x in c.cells %}<td class="n">{{ x }}</td>{% endfor %}
<td>{% for b in c.before %}<code>&minus; {{ b }}</code><br>{% endfor %}
{% for b in c.after %}<code>+ {{ b }}</code><br>{% endfor %}</td></tr>
{% endfor %}</tbody></table>
{% else %}<p>No source line accounts for more or less than before.</p>{% endif %}
<p>{{ versions }}</p>
</body></html>
"""


_UNITS = {"bytes": "B", "allocated": "B", "moved": "B", "flops": "FLOP"}


def _buffers(row: Mapping[str, Any] | None) -> list[str]:
    out = []
    for b in (row or {}).get("buffers", ()):
        out.append(f"{b['shape'].partition('{')[0]} {format_value(b['bytes'], 'B')} {b['op_name']}".rstrip())
    return out


def _signed(value: int, unit: str) -> str:
    if not value:
        return "0"
    return ("+" if value > 0 else "-") + format_value(abs(value), unit)


def render(
    result_id: str,
    comparison: Comparison,
    run: Run,
    *,
    diff: report_diff.Diff | str | None = None,
    picture: str = "",
) -> str:
    """Returns the page of one result as self-contained HTML.

    Args:
      diff: the compiled programs compared, or why they are not.
      picture: link to the report's own page.
    """
    rows = [r for r in comparison.rows if r.id == result_id]
    changes = sorted(
        comparison.changes.get(result_id, ()),
        key=lambda c: (*(-abs(c.delta[k]) for k in COLUMNS), c.file, c.line),
    )
    answers = [r.describe() for r in rows if r.verdict is Verdict.REGRESSED]
    for r in rows:
        if r.verdict is Verdict.REGRESSED:
            answers += [f"{r.metric}: {line_text(c)}" for c in comparison.culprits(r, limit=1)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE).render(
        id=result_id,
        diff=None
        if diff is None or isinstance(diff, str)
        else {"answer": diff.answer(), "changes": diff.changes[:_ROWS]},
        no_diff=diff if isinstance(diff, str) else "",
        picture=picture,
        answers=answers,
        labels=comparison.labels,
        rows=[_row(r) for r in sorted(rows, key=lambda r: (r.verdict is not Verdict.REGRESSED, r.metric))],
        columns=list(COLUMNS.values()),
        changes=[
            {
                "where": c.where(),
                "kind": c.kind,
                "code": c.code,
                "cells": [_signed(c.delta[k], _UNITS.get(k, "count")) for k in COLUMNS],
                "before": _buffers(c.then),
                "after": _buffers(c.now),
            }
            for c in changes
        ],
        versions=", ".join(f"{k} {v}" for k, v in sorted(run.environment.items()) if v),
    )


def _row(r: Row) -> dict[str, str]:
    return {
        "metric": r.metric,
        "old": "" if r.baseline is None else format_value(r.baseline, r.unit),
        "new": "" if r.current is None else format_value(r.current, r.unit),
        "change": "" if r.change is None else format_change(r.change),
        "verdict": r.verdict.value,
        "note": r.note,
    }


def regressed(comparison: Comparison, run: Run) -> list[str]:
    """Returns the ids of the results that compiled and regressed, sorted: those that get a page."""
    ok = {r.id for r in run.results if r.status == "ok"}
    return sorted({r.id for r in comparison.of(Verdict.REGRESSED)} & ok)


def write_pages(
    comparison: Comparison,
    run: Run,
    folder: pathlib.Path,
    diffs: Mapping[str, report_diff.Diff | str] | None = None,
) -> dict[str, pathlib.Path]:
    """Writes a page for each regressed result that compiled, and returns their paths by id.

    Args:
      diffs: by result id the compiled programs compared, or why they are not. A comparison gets the report's
        own page beside it, if Bokeh is installed.
    """
    out = {}
    for result_id in regressed(comparison, run):
        name = reports.file_name(result_id)
        found = (diffs or {}).get(result_id)
        picture = ""
        if isinstance(found, report_diff.Diff):
            folder.mkdir(parents=True, exist_ok=True)
            # The page stands without its picture.
            with contextlib.suppress(MissingPluginError):
                found.after.compare(found.before).save(folder / f"{name}.report.html")
                picture = f"{name}.report.html"
        path = folder / f"{name}.html"
        write_text(path, render(result_id, comparison, run, diff=found, picture=picture))
        out[result_id] = path
    return out
