"""A run as a terminal table, Markdown, pytest-benchmark JSON and JUnit."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from farrier._src.bench.metric import format_value, spec
from farrier._src.bench.result import Result, Run

COLUMNS = (
    "total_bytes",
    "temp_bytes",
    "flops",
    "recomputed_flops",
    "kernels",
    "bytes_moved",
    "exposed_collectives",
    "exposed_seconds",
    "compile_seconds",
    "pass_seconds",
    "step_seconds",
)


def _columns(results: Sequence[Result], wanted: Sequence[str]) -> list[str]:
    return [c for c in wanted if any(c in r.metrics for r in results)]


def _cell(r: Result, column: str) -> str:
    m = r.metrics.get(column)
    if m is None:
        return ""
    text = format_value(m.value, m.unit)
    if m.spread is not None and m.value:
        text += f" ±{m.spread / abs(m.value):.0%}"
    return text


def print_table(run: Run, console: Console, *, columns: Sequence[str] = COLUMNS) -> None:
    """Prints one row a result; a failed one says how."""
    shown = _columns(run.results, columns)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("case", "target", "options"):
        table.add_column(name, overflow="fold")
    for c in shown:
        unit = spec(c).unit
        table.add_column(
            c.removesuffix("_bytes").removesuffix("_seconds") if unit in ("B", "s") else c, justify="right"
        )
    for r in run.results:
        head = (Text(r.case), Text(r.target), Text(r.options))
        if r.status == "ok":
            table.add_row(*head, *(_cell(r, c) for c in shown))
        else:
            table.add_row(*head, Text(r.status, style="red" if r.status != "unsupported" else "dim"))
    console.print(table)
    for r in run.results:
        if r.status != "ok":
            style = "dim" if r.status == "unsupported" else "red"
            console.print(Text(f"{r.id}: {r.status}: {r.message}", style=style))


def markdown(run: Run, *, columns: Sequence[str] = COLUMNS) -> str:
    """Renders the results as a Markdown table."""
    shown = _columns(run.results, columns)
    out = [
        "| case | target | options | " + " | ".join(shown) + " |",
        "|---|---|---|" + "---:|" * len(shown),
    ]
    for r in run.results:
        cells = [_cell(r, c) for c in shown] if r.status == "ok" else [r.status] + [""] * (len(shown) - 1)
        out.append(f"| {r.case} | {r.target} | {r.options} | " + " | ".join(cells) + " |")
    failed = [r for r in run.results if r.status != "ok"]
    if failed:
        out.append("")
        out += [f"- `{r.id}`: {r.status}: {r.message.splitlines()[0] if r.message else ''}" for r in failed]
    return "\n".join(out) + "\n"


def pytest_benchmark(run: Run) -> dict[str, Any]:
    """Returns the run in pytest-benchmark's file format, for tools that read it.

    Its statistics describe one timing a benchmark, in seconds: the step time where a
    device was measured, else the compile time; everything else is ``extra_info``.
    """
    benchmarks = []
    for r in run.results:
        name = next(
            (n for n in ("step_seconds", "compile_seconds", "pass_seconds") if n in r.metrics),
            next((n for n, m in r.metrics.items() if m.unit == "s" and m.samples), None),
        )
        if r.status != "ok" or name is None:
            continue
        metric = r.metrics[name]
        samples = list(metric.samples) or [metric.value]
        many = len(samples) > 1
        q1, _, q3 = statistics.quantiles(samples, n=4) if many else (samples[0],) * 3
        mean = statistics.fmean(samples)
        stdev = statistics.stdev(samples) if many else 0.0
        benchmarks.append(
            {
                "group": r.case,
                "name": r.id,
                "fullname": f"{run.suite}::{r.id}",
                "params": {"target": r.target, "options": r.options},
                "param": f"{r.target}/{r.options}",
                "extra_info": {k: m.value for k, m in r.metrics.items()},
                "options": {
                    "disable_gc": False,
                    "timer": "process_time",
                    "min_rounds": len(samples),
                    "max_time": 0.0,
                    "min_time": 0.0,
                    "warmup": False,
                },
                "stats": {
                    "min": min(samples),
                    "max": max(samples),
                    "mean": mean,
                    "stddev": stdev,
                    "rounds": len(samples),
                    "median": statistics.median(samples),
                    "iqr": q3 - q1,
                    "q1": q1,
                    "q3": q3,
                    "iqr_outliers": 0,
                    "stddev_outliers": 0,
                    "outliers": "0;0",
                    "ld15iqr": min(samples),
                    "hd15iqr": max(samples),
                    "ops": 1.0 / mean if mean else 0.0,
                    "total": sum(samples),
                    "data": samples,
                    "iterations": 1,
                },
            }
        )
    env = run.environment
    return {
        "machine_info": {
            "node": "",
            "machine": env.get("machine", ""),
            "python_version": env.get("python", ""),
            "cpu": {"brand_raw": env.get("machine", "")},
        },
        "commit_info": {
            "id": run.commit["id"],
            "time": run.commit["time"],
            "dirty": run.commit["dirty"],
            "branch": "",
        },
        "benchmarks": benchmarks,
        "datetime": run.created,
        "version": "5.0.0",
    }


def junit(run: Run, path: str | os.PathLike[str]) -> None:
    """Writes a JUnit file: one test case a result; what failed to compile is an error."""
    import junitparser

    suite = junitparser.TestSuite(run.suite)
    for r in run.results:
        case = junitparser.TestCase(f"{r.target}/{r.options}", classname=r.case, time=r.wall_seconds)
        if r.status == "unsupported":
            case.result = [junitparser.Skipped(r.message)]
        elif r.status != "ok":
            error = junitparser.Error(r.message, r.status)
            case.result = [error]
        suite.add_testcase(case)
    report = junitparser.JUnitXml("farrier bench")
    report.add_testsuite(suite)
    report.update_statistics()
    report.write(os.fspath(path), pretty=True)
