"""Small JSON records on disk, found by the hash of what they depend on.

Writes are atomic, several processes may share a directory, and whatever cannot be read back whole
(truncated, damaged, renamed) is a miss. A directory that cannot be written to costs the memory of
the result, never the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import platformdirs

__all__ = ["JsonStore", "content_key", "default_directory"]


def default_directory(directory: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where results are kept: the argument, else ``FARRIER_CACHE_DIR``, else this system's cache."""
    if directory is not None:
        return pathlib.Path(directory)
    if env := os.environ.get("FARRIER_CACHE_DIR"):
        return pathlib.Path(env)
    return pathlib.Path(platformdirs.user_cache_dir("farrier", appauthor=False))


def content_key(record: Mapping[str, Any]) -> str:
    """sha256 hex of a JSON-serializable record; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class JsonStore:
    """Records of one kind, one file each."""

    def __init__(self, kind: str, directory: str | os.PathLike[str] | None = None):
        self.kind = kind
        self.directory = default_directory(directory) / kind

    def path(self, key: str) -> pathlib.Path:
        """The file of the record ``key``."""
        return self.directory / key[:2] / f"{key}.json"

    def get(self, key: str) -> Any | None:
        """The record, or None when there is none that can be trusted."""
        try:
            entry = json.loads(self.path(key).read_bytes())
            body = entry["body"]
            intact = entry["key"] == key and entry["kind"] == self.kind
            return body if intact and entry["sha256"] == content_key({"body": body}) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, body: Any) -> None:
        """Stores a record, replacing one under the same key."""
        entry = {"key": key, "kind": self.kind, "sha256": content_key({"body": body}), "body": body}
        path = self.path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(entry, file, sort_keys=True)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
