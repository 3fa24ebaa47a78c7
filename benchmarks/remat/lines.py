"""Results as JSON lines that a run interrupted can go on from."""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import subprocess
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import farrier
import jax
from rich.console import Console


@functools.cache
def commit() -> str:
    """The commit of this project that measures, with a "+" where files differ from it; as it was when first asked,
    because what is edited while a process runs is not what it measures.
    """
    here = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    # What only measures does not change what is measured.
    changed = git("status", "--porcelain", "--", ":/cpp", ":/passes", ":/python")
    return git("rev-parse", "--short=8", "HEAD") + ("+" if changed else "")


class Lines:
    """A file of JSON lines, each known by some of its fields; of several with the same, the last counts."""

    def __init__(self, path: pathlib.Path | None, fields: Iterable[str]):
        """Reads what `path` has; None keeps everything in memory."""
        self._path, self._fields = path, tuple(fields)
        self._rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self._rows[self._key(row)] = row

    @classmethod
    def of(cls, rows: Iterable[dict[str, Any]], fields: Iterable[str]) -> Lines:
        """These rows, in no file."""
        found = cls(None, fields)
        for row in rows:
            found.add(row)
        return found

    def _key(self, row: dict[str, Any]) -> str:
        return json.dumps([row.get(field) for field in self._fields], sort_keys=True)

    def get(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row that has the same fields."""
        return self._rows.get(self._key(row))

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Appends a row, at once, and returns it."""
        self._rows[self._key(row)] = row
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def once(
        self, row: dict[str, Any], measure: Callable[[], dict[str, Any]], *, again: bool = False
    ) -> dict[str, Any]:
        """The row with what was measured, if it is there; else, or `again`, with what `measure` gives now."""
        known = self.get(row)
        if known is None or again:
            known = self.add({**row, **measure(), "commit": commit()})
            Console().print_json(json.dumps(known), indent=None)
            jax.clear_caches()
        return known

    def rows(self) -> list[dict[str, Any]]:
        """All of them, in the order in which their keys came first."""
        return list(self._rows.values())

    def tidy(self) -> None:
        """Writes the file again without the lines that later ones replaced."""
        if self._path is not None:
            self._path.write_text("".join(json.dumps(row) + "\n" for row in self.rows()))


def memory_cells(row: dict[str, Any]) -> list[str]:
    """Temporaries of a row, on the device and in host memory."""
    return [
        f"{row['temp_bytes'] / 1e9:.2f} GB",
        f"{row['host_bytes'] / 1e9:.2f} GB" if row["host_bytes"] else "0",
    ]


def main(
    parser: argparse.ArgumentParser,
    fields: Iterable[str],
    measure: Callable[[argparse.Namespace, Lines], None],
    show: Callable[[list[dict[str, Any]]], None],
) -> None:
    """A command line that measures into a file of lines, going on where it was interrupted, and shows the file.

    Args:
      parser: with the arguments of its own; ``--output``, ``--again`` and ``--show`` are added.
      fields: those by which a row is known.
      measure: adds what is missing.
      show: prints all rows.
    """
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines, appended as they come")
    parser.add_argument("--again", action="store_true", help="search anew although the file has the row")
    parser.add_argument("--show", action="store_true", help="only print the table of the file")
    arguments = parser.parse_args()
    found = Lines(arguments.output, fields)
    if not arguments.show:
        warnings.simplefilter("ignore", farrier.OptimizeWarning)
        commit()
        measure(arguments, found)
        found.tidy()
    show(found.rows())
