"""`Report`: one compiled program, seen.

A JSON document with methods; the schema is docs/schema/report.schema.json.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from farrier._src import errors
from farrier._src.report import units

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled step does with memory and time.

    Printing it gives tables in a terminal; a notebook shows the page's summary; `save` writes the page, the
    JSON document, the remarks, a pprof profile or a Perfetto trace by the file's suffix.

    Attributes:
      data: the document, as docs/schema/report.schema.json describes it. Sizes are bytes on one device, times
      are
        nanoseconds, positions count instructions in program order.
      before: the report to compare with in the page and in the text, or None.
    """

    data: Mapping[str, Any]
    before: Report | None = None

    # --- what people ask for first
    # ----------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The name of the program."""
        return self.data["title"]

    @property
    def peak_bytes(self) -> int:
        """Live device bytes at the peak: XLA's `peak_memory_in_bytes`."""
        return self.data["memory"]["peak"]["bytes"]

    @property
    def total_bytes(self) -> int:
        """Device bytes of all allocations: what a memory budget is compared with."""
        figures = self.data["memory"]["figures"]
        return figures["total"] if figures else self.data["memory"]["allocated"]

    @property
    def step_ns(self) -> float | None:
        """Predicted time of one step, nanoseconds; None without a target."""
        made = self.data["schedule"]
        return made["step_ns"] if made else None

    @property
    def exposed_ns(self) -> float | None:
        """Predicted time that the device only waits for communication, nanoseconds."""
        made = self.data["schedule"]
        return made["exposed_ns"] if made else None

    @property
    def buffers(self) -> Sequence[Mapping[str, Any]]:
        """Every buffer, by first position."""
        return self.data["memory"]["buffers"]

    @property
    def kernels(self) -> Sequence[Mapping[str, Any]]:
        """Kernels grouped by shape and source line, longest first."""
        return self.data["kernels"]

    @property
    def opportunities(self) -> Mapping[str, Any] | None:
        """Traffic that a better program would not have: sums, and edges and kernels ranked by removable bytes.

        None without a target. Fields as in `farrier._src.report.opportunities.Opportunities`.
        """
        return self.data.get("opportunities")

    @property
    def collectives(self) -> Sequence[Mapping[str, Any]]:
        """Collectives in program order."""
        return self.data["collectives"]

    @property
    def remarks(self) -> Sequence[Mapping[str, Any]]:
        """Decisions of the passes: pass, kind, message, location, args."""
        return self.data["remarks"]

    def at_peak(self) -> list[Mapping[str, Any]]:
        """Device buffers that are live at the peak, largest first."""
        at = self.data["memory"]["peak"]["position"]
        return sorted(
            (b for b in self.buffers if b["space"] == "device" and b["start"] <= at <= b["end"]),
            key=lambda b: (-b["bytes"], b["start"], b["name"]),
        )

    def peak_by(self, key: str) -> dict[str, int]:
        """Live bytes at the peak by ``origin``, ``scope``, ``layer``, ``source`` or ``name``, largest first.

        Raises:
          farrier.OptionError: an unknown key.
        """
        keys = ("origin", "scope", "layer", "source", "name")
        if key not in keys:
            raise errors.OptionError.unknown(key, keys, of="Report.peak_by")
        sums: collections.Counter[str] = collections.Counter()
        for b in self.at_peak():
            sums[b[key] or "(none)"] += b["bytes"]
        return dict(sums.most_common())

    # --- forms
    # --------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return dict(self.data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """A report from its document.

        Raises:
          farrier.InputError: not a report, or one of another schema version.
        """
        if not isinstance(data, Mapping) or "memory" not in data or "schema" not in data:
            raise errors.InputError("this JSON is not a farrier report")
        if data["schema"] != SCHEMA:
            raise errors.InputError(
                f"this report has schema version {data['schema']}; this farrier reads version {SCHEMA}",
                hint="make the report again from the program or its dump",
            )
        return cls(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Reads what `save` wrote as ``.json`` or ``.json.gz``.

        Raises:
          farrier.InputError: not a report.
        """
        raw = pathlib.Path(path).read_bytes()
        try:
            data = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        except (ValueError, OSError, EOFError) as e:
            raise errors.InputError(f"not JSON: {e}", where=str(path)) from e
        return cls.from_json(data)

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the report in the form that the suffix names.

        ``.html`` the page, ``.json`` or ``.json.gz`` the document, ``.jsonl`` the remarks, ``.txt`` the text,
        ``.pb.gz`` a pprof profile of the peak, ``.pftrace`` a Perfetto trace.

        Raises:
          farrier.OptionError: another suffix.
        """
        from farrier._src.report import forms

        return forms.save(self, pathlib.Path(path))

    def remarks_jsonl(self) -> str:
        """The remarks, one JSON object a line."""
        return "".join(json.dumps(r, sort_keys=True) + "\n" for r in self.remarks)

    def compare(self, before: Report) -> Report:
        """This report with `before` laid beside it."""
        return dataclasses.replace(self, before=before)

    def __str__(self) -> str:
        from farrier._src.report import text

        return text.plain(self)

    def __rich__(self) -> Any:
        from farrier._src.report import text

        return text.renderable(self)

    def _repr_html_(self) -> str:
        from farrier._src.report import text

        return text.notebook(self)

    def __repr__(self) -> str:
        return (
            f"<Report {self.title}: peak {units.size(self.peak_bytes)}, {len(self.kernels)} kinds of kernels>"
        )


def timeline(buffers: Iterable[Mapping[str, Any]], positions: int) -> list[list[int]]:
    """[position, live device bytes] wherever the sum changes."""
    delta: collections.Counter[int] = collections.Counter()
    for b in buffers:
        if b["space"] == "device":
            delta[b["start"]] += b["bytes"]
            delta[b["end"] + 1] -= b["bytes"]
    out, live = [], 0
    for position in sorted(delta):
        if delta[position] and position < positions:
            live += delta[position]
            out.append([position, live])
    return out
