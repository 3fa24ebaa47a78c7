"""Reads what nccl-tests prints, into measured curves for a parameter set.

The tests (``all_gather_perf``, ``all_reduce_perf``, ``reduce_scatter_perf``, ``alltoall_perf``,
``sendrecv_perf``) print one row per message size: bytes, elements, type, then the out-of-place time in
microseconds and two bandwidths. The size is counted as nccl-tests counts it: the whole message of an
all-gather or a reduce-scatter.
"""

from __future__ import annotations

import dataclasses
import os
import re

from farrier._src import errors
from farrier._src.collectives.parameters import Curve, ParameterSet

_KINDS = {
    "all_gather": "all-gather",
    "allgather": "all-gather",
    "all_reduce": "all-reduce",
    "allreduce": "all-reduce",
    "reduce_scatter": "reduce-scatter",
    "reducescatter": "reduce-scatter",
    "alltoall": "all-to-all",
    "sendrecv": "collective-permute",
    "broadcast": "collective-broadcast",
}
_NUMBER = re.compile(r"^\d+(\.\d+)?$")


def _kind(text: str, name: str) -> str:
    for source in (text, os.path.basename(name)):
        found = re.search(r"\b(" + "|".join(_KINDS) + r")(_perf)?\b", source.lower())
        if found:
            return _KINDS[found.group(1)]
    raise errors.InputError(
        f"{name}: cannot tell which collective was measured",
        hint="keep the program's name in the output or in the file's name, such as all_gather_perf.txt",
    )


def parse(text: str, name: str = "nccl-tests output", *, network: bool = False) -> Curve:
    """One run's output as a curve.

    Args:
      text: what the test printed.
      name: the file's name; the collective is recognised in the text or, failing that, in it.
      network: whether the run's ranks were on more than one NVLink domain.

    Raises:
      farrier.Error: no rows, or no hint at the collective.
    """
    kind = _kind(text, name)
    points: dict[float, float] = {}
    for line in text.splitlines():
        fields = line.split("#")[0].split()
        # size count type [redop] [root] time algbw busbw #wrong ...: the time is the first decimal number.
        if len(fields) < 6 or not fields[0].isdigit() or not fields[1].isdigit():
            continue
        times = [f for f in fields[3:] if _NUMBER.match(f) and "." in f]
        if not times or int(fields[0]) == 0:
            continue
        seconds = float(times[0]) / 1e6
        if seconds > 0:
            size = float(fields[0])
            points[size] = min(seconds, points.get(size, seconds))
    if not points:
        raise errors.InputError(f"{name}: no rows of nccl-tests (size, count, type, ..., time, bandwidths)")
    return Curve(kind=kind, network=network, points=tuple(sorted(points.items())))


def measured_set(
    base: ParameterSet,
    files: list[str | os.PathLike[str]],
    *,
    network_files: list[str | os.PathLike[str]] = (),
    name: str = "measured",
) -> ParameterSet:
    """`base` with the collectives of these output files replaced by what was measured.

    Args:
      base: gives what was not measured.
      files: output of runs within one NVLink domain.
      network_files: output of runs across domains.
      name: the set's name.

    Raises:
      farrier.Error: a file cannot be read or has no rows.
    """
    curves = []
    for network, names in ((False, files), (True, network_files)):
        for file in names:
            try:
                with open(file, encoding="utf-8") as f:
                    text = f.read()
            except (OSError, UnicodeDecodeError) as e:
                raise errors.InputError(f"cannot read {file!r}: {e}") from e
            curves.append(parse(text, os.fspath(file), network=network))
    replaced = {(c.kind, c.network) for c in curves}
    kept = [c for c in base.curves if (c.kind, c.network) not in replaced]
    return dataclasses.replace(base, name=name, curves=(*kept, *curves))
