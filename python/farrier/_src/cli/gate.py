"""``farrier gate``: compare a suite with its baseline. Exit 0: fine, 2: a regression, 1: the tool failed."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from farrier._src.bench import history, result, runner
from farrier._src.bench.result import Run, write_text
from farrier._src.cli.bench import add_run_arguments, run_from
from farrier._src.gate import acknowledge, baseline, compare, page, render, reports
from farrier._src.gate.baseline import GateError
from farrier._src.report import diff as report_diff

# Case, target and option set (as JSON) of a result.
Job = tuple[str, str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the command line."""
    parser.epilog = "Exit codes: 0 no regression, 2 a regression, 1 no verdict (the message says why)."
    parser.add_argument(
        "--baseline", type=pathlib.Path, required=True, metavar="FILE", help="the baseline, a TOML file"
    )
    parser.add_argument(
        "suite", nargs="?", metavar="SUITE", help="what to run; default: the suite that the baseline names"
    )
    parser.add_argument(
        "--results", type=pathlib.Path, metavar="JSON", help="compare these results, run nothing"
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--update", action="store_true", help="write this run as the new baseline, to be reviewed"
    )
    parser.add_argument(
        "--no-reports",
        action="store_true",
        help="with --update: write no reports beside the baseline; regressions then have no diff of programs",
    )
    parser.add_argument(
        "--allow-version-change", action="store_true", help="compare across jax, XLA or target versions"
    )
    parser.add_argument(
        "--acknowledged", type=pathlib.Path, metavar="FILE", help="default: beside the baseline"
    )
    parser.add_argument(
        "--acknowledge",
        metavar="RESULT:METRIC",
        help="accept a regression of this run (globs); needs --reason",
    )
    parser.add_argument("--reason", help="with --acknowledge: why")
    parser.add_argument(
        "--expires", metavar="DATE", help="with --acknowledge: last day it counts (default: in 90 days)"
    )
    parser.add_argument("--verbose", action="store_true", help="also print what did not change")
    parser.add_argument(
        "--markdown", type=pathlib.Path, metavar="FILE", help="append a pull-request comment to FILE"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the comparison as JSON")
    parser.add_argument("--junit", type=pathlib.Path, metavar="FILE", help="write a JUnit file")
    parser.add_argument(
        "--pages", type=pathlib.Path, metavar="DIR", help="write a page for each regressed result"
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, metavar="JSON", help="write the run's results")
    parser.add_argument(
        "--store", type=pathlib.Path, metavar="DIR", help="keep the results by commit in this folder"
    )


def _suite_of(args: argparse.Namespace) -> str:
    if args.suite is not None:
        return args.suite
    named = baseline.load(args.baseline).suite
    return os.path.relpath(args.baseline.parent / named)


def _run(args: argparse.Namespace) -> tuple[Run, Callable[[], dict[str, Job]]]:
    """The results to judge, and what gives the suite's jobs by result id."""
    if args.results is not None:
        done = result.load(args.results)
        return done, lambda: _jobs(runner.list_suite(done.suite))
    suite = _suite_of(args)
    # Loaded once for the run and for the reports: it imports the user's program.
    listing = runner.list_suite(suite)
    return run_from(args, suite, listing), lambda: _jobs(listing)


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs the command. Returns 0 or 2.

    Raises:
      farrier.Error: no verdict is possible; the command then exits with 1.
    """
    if args.acknowledge and (not args.reason or ":" not in args.acknowledge):
        raise GateError("--acknowledge takes RESULT:METRIC and needs --reason")
    # Before the suite is run: a bad baseline need not cost a run.
    known = None if args.update else baseline.load(args.baseline)
    accepted_path = args.acknowledged or acknowledge.default_path(args.baseline)
    accepted = acknowledge.load(accepted_path)
    done, jobs = _run(args)
    if args.output is not None:
        result.save(done, args.output)
    if args.store is not None:
        history.add(args.store, done)
    subset = bool(args.case or args.target or args.options)
    if args.update:
        return _update(args, done, jobs, subset, console)
    assert known is not None
    options = {"allow_version_change": args.allow_version_change, "subset": subset}
    comparison = compare.compare(known, done, acknowledgements=accepted, **options)
    if args.acknowledge:
        entries = _acknowledge(args, comparison, accepted_path)
        console.print(Text(f"acknowledged {len(entries)} regressions in {accepted_path}"))
        accepted += entries
        comparison = compare.compare(known, done, acknowledgements=accepted, **options)
    diffs = _diffs(args, comparison, done, jobs) if args.pages is not None else {}
    pages = page.write_pages(comparison, done, args.pages, diffs) if args.pages is not None else {}
    answers = {key: d.answer() for key, d in diffs.items() if not isinstance(d, str)}
    render.print_table(comparison, console, verbose=args.verbose)
    for key, path in pages.items():
        if key in answers:
            console.print(Text(f"{key}: {answers[key]}", style="red"))
        console.print(Text(f"diff of {key}: {path}"))
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        with args.markdown.open("a", encoding="utf-8") as f:
            f.write(render.markdown(comparison, answers=answers))
    if args.json is not None:
        write_text(args.json, json.dumps(render.to_json(comparison), indent=1) + "\n")
    if args.junit is not None:
        render.junit(comparison, args.junit)
    return comparison.exit_code


def _update(
    args: argparse.Namespace,
    done: Run,
    jobs: Callable[[], dict[str, Job]],
    subset: bool,
    console: Console,
) -> int:
    suite = os.path.relpath(done.suite, args.baseline.resolve().parent)
    before = None
    if args.baseline.exists():
        before = baseline.load(args.baseline)
    baseline.write(done, args.baseline, suite=suite, keep_others=subset)
    if before is not None:
        moved = compare.compare(before, done, allow_version_change=True, subset=subset)
        render.print_table(moved, console)
    if not args.no_reports:
        _update_reports(args, done, jobs, before, subset)
    console.print(Text(f"wrote {args.baseline} ({len(done.results)} results): review and commit it"))
    return 0


def _jobs(listing: Mapping[str, Any]) -> dict[str, Job]:
    """Case, target and option set of each of the suite's results, by result id."""
    return {
        f"{j['case']}@{j['target']}/{j['options']['name']}": (j["case"], j["target"], j["options"])
        for j in listing["jobs"]
    }


def _update_reports(
    args: argparse.Namespace,
    done: Run,
    jobs: Callable[[], dict[str, Job]],
    before: baseline.Baseline | None,
    subset: bool,
) -> None:
    """Writes the reports beside the baseline: those of the programs that are new or others than before."""
    folder = reports.folder_of(args.baseline)
    known = {} if before is None else before.fingerprints
    same = {
        r.id
        for r in done.results
        if r.fingerprint and r.fingerprint == known.get(r.id) and reports.load(folder, r.id) is not None
    }
    keep = same | (set(known) if subset else set())
    stale = {r.id for r in done.results if r.status == "ok" and r.fingerprint} - same
    wanted = [job for key, job in jobs().items() if key in stale] if stale else []
    reports.save(reports.make(done.suite, wanted, timeout_s=args.timeout), folder, keep=keep - stale)


def _diffs(
    args: argparse.Namespace,
    comparison: compare.Comparison,
    done: Run,
    jobs: Callable[[], dict[str, Job]],
) -> dict[str, report_diff.Diff | str]:
    """The compiled programs of the regressed results compared with the baseline's, or why they are not."""
    out: dict[str, report_diff.Diff | str] = {}
    before = {}
    for key in page.regressed(comparison, done):
        found = reports.load(reports.folder_of(args.baseline), key)
        if found is None:
            out[key] = f"the baseline has no report of it in {reports.folder_of(args.baseline).name}"
        else:
            before[key] = found
    if not before:
        return out
    wanted = [job for key, job in jobs().items() if key in before]
    for key, after in reports.make(done.suite, wanted, timeout_s=args.timeout).items():
        out[key] = after if isinstance(after, str) else report_diff.compare(before[key], after)
    return out


def _acknowledge(
    args: argparse.Namespace, comparison: compare.Comparison, path: pathlib.Path
) -> list[acknowledge.Acknowledgement]:
    import fnmatch

    wanted, _, metric = args.acknowledge.rpartition(":")
    try:
        expires = (
            datetime.date.fromisoformat(args.expires)
            if args.expires
            else datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=90)
        )
    except ValueError as e:
        raise GateError(f"--expires {args.expires!r}: {e}; write 2026-12-31") from e
    entries = []
    for row in comparison.of(compare.Verdict.REGRESSED):
        if not (fnmatch.fnmatchcase(row.id, wanted) and fnmatch.fnmatchcase(row.metric, metric)):
            continue
        if row.metric == "status":
            raise GateError(
                f"{row.id} failed or is missing: that cannot be acknowledged, update the baseline instead"
            )
        # A timing's value is a sample: accepting it exactly would accept nothing the next time.
        entries.append(
            acknowledge.Acknowledgement(
                case=row.id,
                metric=row.metric,
                up_to=None if row.noise is not None else row.current,
                reason=args.reason,
                expires=expires,
            )
        )
    if not entries:
        raise GateError(f"no regression of this run matches {args.acknowledge!r}")
    for entry in entries:
        acknowledge.append(path, entry)
    return entries
