"""Reports on compiled programs beside a baseline, so that a regression can be diffed program against program.

A baseline keeps the report of each of its results, without what only a chart needs, as
``<baseline>.reports/<result>.json.gz``. A regressed result is compiled once more for its own report, and
`farrier._src.report.diff` says what changed between the two: which buffers at the peak, donations, kernels
and collectives, from which source lines.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from farrier._src import errors
from farrier._src.bench.process import run_child
from farrier._src.bench.runner import default_memory_bytes
from farrier._src.report import model


def folder_of(baseline: pathlib.Path) -> pathlib.Path:
    """Returns the folder of reports that belongs to a baseline file."""
    return baseline.with_suffix(".reports")


def file_name(result_id: str) -> str:
    """Returns a result's id as a file name without suffix."""
    return re.sub(r"[^\w.\-]+", "_", result_id)


def make(
    suite: str,
    wanted: Iterable[tuple[str, str, Mapping[str, Any]]],
    *,
    timeout_s: float = 1800.0,
    memory_bytes: int | None = None,
) -> dict[str, model.Report | str]:
    """Compiles results again for their reports, each in a process of its own.

    Args:
      suite: the suite's path.
      wanted: case, target and option set (as JSON) of each result.
      timeout_s, memory_bytes: limits of one compile (seconds, resident bytes).

    Returns a report by result id, or the text of why there is none.
    """
    out: dict[str, model.Report | str] = {}
    for case, target, options in wanted:
        job = {"kind": "report", "suite": suite, "case": case, "target": target, "options": dict(options)}
        found = run_child(job, timeout_s=timeout_s, memory_bytes=memory_bytes or default_memory_bytes())
        key = f"{case}@{target}/{options['name']}"
        out[key] = model.Report.from_json(found["report"]) if "report" in found else found["message"]
    return out


def slim(report: model.Report) -> model.Report:
    """Returns the report without what `diff.compare` and the page's "before" do not read."""
    data = dict(report.data)
    if data["schedule"]:
        data["schedule"] = {**data["schedule"], "slices": []}
    data["memory"] = {**data["memory"], "stacks": [], "allocations": []}
    data["memory"]["buffers"] = [{**b, "stack": 0} for b in data["memory"]["buffers"]]
    return model.Report(data)


def save(
    reports: Mapping[str, model.Report | str], folder: pathlib.Path, *, keep: Iterable[str] = ()
) -> None:
    """Writes the reports of a baseline and removes those of results that it no longer has.

    Args:
      reports: by result id; texts (no report) are left out.
      folder: of the baseline, see `folder_of`.
      keep: ids whose files stay as they are.
    """
    kept = {f"{file_name(key)}.json.gz" for key in keep}
    folder.mkdir(parents=True, exist_ok=True)
    for key, report in reports.items():
        if isinstance(report, model.Report):
            slim(report).save(folder / f"{file_name(key)}.json.gz")
            kept.add(f"{file_name(key)}.json.gz")
    for old in folder.glob("*.json.gz"):
        if old.name not in kept:
            old.unlink()


def load(folder: pathlib.Path, result_id: str) -> model.Report | None:
    """Returns a result's report from a baseline's folder; None where there is none that can be read."""
    try:
        return model.Report.load(folder / f"{file_name(result_id)}.json.gz")
    except (OSError, errors.InputError):
        return None
