"""``farrier bench``: run a suite, or plot a metric's history."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from farrier._src.bench import history, outputs, result, runner
from farrier._src.bench.result import Result, Run

_FORMATS = ("table", "markdown", "json", "pytest-benchmark", "none")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what selects and runs a suite; the gate takes the same."""
    parser.add_argument("--case", action="append", default=[], metavar="GLOB", help="only these cases")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="TARGET",
        help="only these targets, or one more: h100, b200:1x1x8",
    )
    parser.add_argument(
        "--options", action="append", default=[], metavar="GLOB", help="only these option sets"
    )
    parser.add_argument("-j", "--jobs", type=int, help="processes at once (default: one for two CPUs)")
    parser.add_argument("--repeats", type=int, default=3, help="samples of each timing (default 3)")
    parser.add_argument(
        "--repeat-budget",
        type=float,
        default=20.0,
        metavar="S",
        help="do not repeat a case beyond S seconds (20)",
    )
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="limit of one case in seconds (1800)"
    )
    parser.add_argument("--memory", metavar="SIZE", help="limit of one case's resident memory, such as 8GiB")
    parser.add_argument("--cache-dir", type=pathlib.Path, help="where results are cached by content")
    parser.add_argument("--no-cache", action="store_true", help="measure everything anew")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run of this suite")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run on a Dask cluster: tcp://host:8786")
    parser.add_argument(
        "--device", action="store_true", help="also time the steps on the attached GPU, interleaved"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command line."""
    parser.usage = (
        "farrier bench SUITE [options]\n"
        "       farrier bench history METRIC --store DIR [--select GLOB] [-o PLOT.png]"
    )
    parser.add_argument(
        "suite", metavar="SUITE", help="a Python file with cases(), a folder of modules, or 'history'"
    )
    parser.add_argument("metric", nargs="?", metavar="METRIC", help="with 'history': what to plot")
    add_run_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=pathlib.Path, help="write results as JSON (with 'history': the plot)"
    )
    parser.add_argument("--format", choices=_FORMATS, default="table", help="what to print (default table)")
    parser.add_argument("--junit", type=pathlib.Path, metavar="FILE", help="write a JUnit file")
    parser.add_argument(
        "--store", type=pathlib.Path, metavar="DIR", help="keep results by commit in this folder"
    )
    parser.add_argument(
        "--select", default="*", metavar="GLOB", help="with 'history': which results (case@target/options)"
    )
    parser.add_argument("--no-lines", action="store_true", help="leave the per-source-line summaries out")
    parser.add_argument("--keep-going", action="store_true", help="exit 0 even if a case failed")


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int, Result], None]]:
    """Shows progress on standard error: a bar in a terminal, a line a job elsewhere."""
    console = Console(stderr=True, soft_wrap=True)
    if not console.is_terminal:

        def line(done: int, total: int, r: Result) -> None:
            how = "cached" if r.cached else r.status
            console.print(Text(f"[{done}/{total}] {r.id}: {how}, {r.wall_seconds:.1f} s"))

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading the suite", total=None)

        def advance(done: int, total: int, r: Result) -> None:
            bar.update(task, total=total, completed=done, description=Text(r.id).plain)

        yield advance


def journal_path(suite: str, cache_dir: pathlib.Path | None) -> pathlib.Path:
    """Returns where an unfinished run of ``suite`` is recorded."""
    name = re.sub(r"[^\w.\-]+", "_", str(pathlib.Path(suite).resolve()))[-120:]
    return (cache_dir or runner.default_cache_dir()) / "journal" / f"{name}.jsonl"


def run_from(args: argparse.Namespace, suite: str, listing: Mapping[str, Any] | None = None) -> Run:
    """Runs ``suite`` as the arguments of :func:`add_run_arguments` say; ``listing`` as `runner.run_suite` takes it."""
    from farrier._src.bench.measure import budget_bytes

    with progress_bar() as progress:
        return runner.run_suite(
            suite,
            cases=args.case,
            targets=args.target,
            option_sets=args.options,
            jobs=args.jobs,
            repeats=args.repeats,
            repeat_budget_s=args.repeat_budget,
            timeout_s=args.timeout,
            memory_bytes=budget_bytes(args.memory) if args.memory else None,
            cache_dir=args.cache_dir,
            use_cache=not args.no_cache,
            journal=journal_path(suite, args.cache_dir),
            resume=args.resume,
            scheduler=args.scheduler,
            device=args.device,
            progress=progress,
            listing=listing,
        )


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the command. Returns 0, or 1 if a case failed."""
    if args.suite == "history":
        return _history(args, console)
    if args.metric is not None:
        raise runner.RunnerError(f"what is {args.metric!r}? One suite at a time: farrier bench SUITE")
    done = run_from(args, args.suite)
    if args.no_lines:
        done = dataclasses.replace(
            done, results=tuple(dataclasses.replace(r, lines=()) for r in done.results)
        )
    if args.output is not None:
        result.save(done, args.output)
    if args.store is not None:
        history.add(args.store, done)
    if args.junit is not None:
        outputs.junit(done, args.junit)
    if args.format == "table":
        outputs.print_table(done, console)
    elif args.format == "markdown":
        sys.stdout.write(outputs.markdown(done))
    elif args.format == "json":
        sys.stdout.write(json.dumps(done.to_json(), indent=1) + "\n")
    elif args.format == "pytest-benchmark":
        sys.stdout.write(json.dumps(outputs.pytest_benchmark(done), indent=1) + "\n")
    failed = any(r.status not in ("ok", "unsupported") for r in done.results)
    return 1 if failed and not args.keep_going else 0


def _history(args: argparse.Namespace, console: Console) -> int:
    if args.metric is None:
        raise history.HistoryError("which metric? For example: farrier bench history temp_bytes --store DIR")
    if args.store is None:
        raise history.HistoryError("where are the results? Give the folder: --store DIR")
    data = history.series(history.read(args.store), args.metric, select=args.select)
    if args.output is not None:
        history.plot_file(data, args.metric, args.output)
        console.print(Text(f"wrote {args.output}"))
        return 0
    if args.format == "json":
        out = [{"id": s.id, "unit": s.unit, "points": [vars(p) for p in s.points]} for s in data]
        sys.stdout.write(json.dumps(out, indent=1, default=str) + "\n")
        return 0
    sys.stdout.write(history.plot_text(data, args.metric, width=min(console.width, 140)) + "\n")
    return 0
