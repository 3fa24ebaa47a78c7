"""A comparison as a terminal table, Markdown, JSON and JUnit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from farrier._src.bench.lines import LineChange
from farrier._src.bench.metric import format_value
from farrier._src.gate.compare import Comparison, Row, Verdict, format_change

_STYLE = {
    Verdict.REGRESSED: "bold red",
    Verdict.MIXED: "bold red",
    Verdict.IMPROVED: "green",
    Verdict.ACKNOWLEDGED: "yellow",
    Verdict.NEW: "cyan",
    Verdict.UNCHANGED: "dim",
    Verdict.INFORMATION: "dim",
}
_MARK = {
    Verdict.REGRESSED: "❌",
    Verdict.MIXED: "❌",
    Verdict.IMPROVED: "✅",
    Verdict.ACKNOWLEDGED: "☑️",
    Verdict.NEW: "🆕",
    Verdict.UNCHANGED: "✅",
    Verdict.INFORMATION: "·",
}
_SHOWN = (Verdict.REGRESSED, Verdict.ACKNOWLEDGED, Verdict.IMPROVED)


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else format_value(value, unit)


def line_text(change: LineChange) -> str:
    """One line on how a source line changed: place, what grew, its text."""
    parts = []
    for column, what in (("bytes", "at the peak"), ("allocated", "allocated"), ("moved", "moved")):
        if delta := change.delta[column]:
            parts.append(f"{'+' if delta > 0 else '-'}{format_value(abs(delta), 'B')} {what}")
    if delta := change.delta["flops"]:
        parts.append(f"{'+' if delta > 0 else '-'}{format_value(abs(delta), 'FLOP')}")
    for column, what in (("kernels", "kernels"), ("exposed", "exposed collectives")):
        if delta := change.delta[column]:
            parts.append(f"{delta:+d} {what}")
    text = f"{change.where()}: {', '.join(parts)} [{change.kind}]"
    return f"{text}: {change.code}" if change.code else text


def summary(comparison: Comparison) -> str:
    """The verdict in one sentence."""
    count = {v: len(comparison.of(v)) for v in Verdict}
    return (
        f"{comparison.verdict.value}: {count[Verdict.REGRESSED]} regressed, "
        f"{count[Verdict.IMPROVED]} improved, {count[Verdict.ACKNOWLEDGED]} acknowledged, "
        f"{count[Verdict.UNCHANGED]} unchanged, {count[Verdict.NEW]} new"
    )


def print_table(comparison: Comparison, console: Console, *, verbose: bool = False) -> None:
    """Prints what changed, with the source lines at fault; ``verbose`` also what did not."""
    rows = [r for r in comparison.rows if verbose or r.verdict in _SHOWN]
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, justify in (
            ("result", "left"),
            ("metric", "left"),
            ("baseline", "right"),
            ("now", "right"),
            ("change", "right"),
            ("verdict", "left"),
            ("note", "left"),
        ):
            table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for r in sorted(rows, key=lambda r: (_order(r), r.id, r.metric)):
            table.add_row(
                Text(r.id),
                Text(r.metric),
                _value(r.baseline, r.unit),
                _value(r.current, r.unit),
                "" if r.change is None else format_change(r.change),
                Text(r.verdict.value, style=_STYLE[r.verdict]),
                Text(r.note),
            )
        console.print(table)
    for r in comparison.of(Verdict.REGRESSED):
        for change in comparison.culprits(r):
            console.print(Text(f"  {r.id} {r.metric}: {line_text(change)}", style="red"))
    for label in comparison.labels:
        console.print(Text(f"note: {label}", style="yellow"))
    console.print(Text(summary(comparison), style=_STYLE[comparison.verdict]))


def _order(row: Row) -> int:
    return list(_MARK).index(row.verdict)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def markdown(
    comparison: Comparison,
    *,
    title: str = "farrier gate",
    pages: Mapping[str, str] | None = None,
    answers: Mapping[str, str] | None = None,
) -> str:
    """Renders a comparison for a pull-request comment or a step summary.

    Args:
      title: heading.
      pages: links to the diff pages by result id.
      answers: what changed in the compiled program, by result id.
    """
    out = [f"### {_MARK[comparison.verdict]} {title}: {comparison.verdict.value}", ""]
    out += [f"> **Note:** {label}" for label in comparison.labels]
    if comparison.labels:
        out.append("")
    shown = [r for r in comparison.rows if r.verdict in _SHOWN]
    if shown:
        out += ["| | result | metric | baseline | now | change | note |", "|---|---|---|---:|---:|---:|---|"]
        for r in sorted(shown, key=lambda r: (_order(r), r.id, r.metric)):
            name = f"[{_cell(r.id)}]({pages[r.id]})" if pages and r.id in pages else f"`{_cell(r.id)}`"
            change = "" if r.change is None else format_change(r.change)
            cells = (
                _MARK[r.verdict],
                name,
                f"`{r.metric}`",
                _value(r.baseline, r.unit),
                _value(r.current, r.unit),
                change,
                _cell(r.note),
            )
            out.append("| " + " | ".join(cells) + " |")
        out.append("")
    blamed = [(r, c) for r in comparison.of(Verdict.REGRESSED) for c in comparison.culprits(r)]
    if blamed:
        out += ["Source lines at fault:", ""]
        out += [f"- `{r.metric}` of `{r.id}`: `{line_text(c)}`" for r, c in blamed]
        out.append("")
    if answers:
        out += ["What changed in the compiled programs:", ""]
        out += [f"- `{key}`: {_cell(answer)}" for key, answer in sorted(answers.items())]
        out.append("")
    out.append(summary(comparison))
    return "\n".join(out) + "\n"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the comparison as JSON values (``docs/schema/comparison.schema.json``)."""
    return {
        "schema": "farrier-gate/1",
        "verdict": comparison.verdict.value,
        "exit_code": comparison.exit_code,
        "labels": list(comparison.labels),
        "fingerprints_changed": list(comparison.fingerprints_changed),
        "rows": [
            {
                "id": r.id,
                "metric": r.metric,
                "unit": r.unit,
                "baseline": r.baseline,
                "current": r.current,
                "threshold": None
                if r.threshold is None
                else {"rel": r.threshold.rel, "abs": r.threshold.abs, "gate": r.threshold.gate},
                "noise": r.noise,
                "verdict": r.verdict.value,
                "note": r.note,
                "source_lines": [
                    {
                        "file": c.file,
                        "line": c.line,
                        "function": c.function,
                        "code": c.code,
                        "delta": dict(c.delta),
                        "kind": c.kind,
                    }
                    for c in (comparison.culprits(r) if r.verdict is Verdict.REGRESSED else ())
                ],
            }
            for r in comparison.rows
        ],
    }


def junit(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Writes a JUnit file: one test case a metric, grouped by result; a regression is a failure."""
    import junitparser

    report = junitparser.JUnitXml("farrier gate")
    suites: dict[str, junitparser.TestSuite] = {}
    for r in comparison.rows:
        if r.id not in suites:
            suites[r.id] = junitparser.TestSuite(r.id)
        case = junitparser.TestCase(r.metric, classname=r.id)
        if r.verdict is Verdict.REGRESSED:
            blame = "\n".join(line_text(c) for c in comparison.culprits(r))
            failure = junitparser.Failure(r.describe(), "regression")
            failure.text = blame or r.describe()
            case.result = [failure]
        elif r.verdict in (Verdict.INFORMATION, Verdict.NEW, Verdict.ACKNOWLEDGED):
            case.system_out = r.describe()
        suites[r.id].add_testcase(case)
    for suite in suites.values():
        report.add_testsuite(suite)
    report.update_statistics()
    report.write(os.fspath(path), pretty=True)
