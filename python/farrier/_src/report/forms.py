"""The files that a report can be written as."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Callable

from farrier._src import errors
from farrier._src.report import merge, model


def _json(report: model.Report) -> bytes:
    return (json.dumps(report.to_json(), separators=(",", ":")) + "\n").encode()


def _html(report: model.Report) -> bytes:
    from farrier._src.report import page

    return page.render(report).encode()


def _pprof(report: model.Report) -> bytes:
    from farrier._src.report import pprof

    return pprof.encode(report)


def _perfetto(report: model.Report) -> bytes:
    from farrier._src.report import perfetto

    return perfetto.encode(report)


FORMS: dict[str, Callable[[model.Report], bytes]] = {
    ".json.gz": lambda report: gzip.compress(_json(report), mtime=0),
    ".json": _json,
    ".jsonl": lambda report: report.remarks_jsonl().encode(),
    ".html": _html,
    ".txt": lambda report: (str(report) + "\n").encode(),
    ".pb.gz": _pprof,
    ".pftrace": _perfetto,
}


def save(report: model.Report, path: pathlib.Path) -> pathlib.Path:
    """Writes `report` to `path` in the form of its suffix.

    Raises:
      farrier.OptionError: an unknown suffix.
    """
    for suffix, encode in FORMS.items():
        if path.name.endswith(suffix):
            path.write_bytes(encode(report))
            return path
    raise errors.OptionError(
        f"cannot write a report as {path.name!r}", hint=f"known suffixes: {', '.join(FORMS)}"
    )


def save_merged(merged: merge.Merged, path: pathlib.Path) -> pathlib.Path:
    """Writes what several processes' reports say together, as ``.json`` or ``.txt``.

    Raises:
      farrier.OptionError: an unknown suffix.
    """
    if path.name.endswith(".json"):
        path.write_text(json.dumps(merged.to_json(), indent=1) + "\n")
    elif path.name.endswith(".txt"):
        path.write_text(f"{merged}\n")
    else:
        raise errors.OptionError(
            f"cannot write the ranks of a job as {path.name!r}", hint="known suffixes: .json, .txt"
        )
    return path
