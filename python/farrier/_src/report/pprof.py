"""The peak as a pprof profile: bytes by the JAX source stack that made them.

`pprof -http=: step.pb.gz` then draws flame graphs and lists. The declaration covers what is written, after
pprof's proto/profile.proto.
"""

from __future__ import annotations

import functools
import gzip

from google.protobuf import message_factory

from farrier._src.hlo import proto
from farrier._src.report import model

_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Profile": (
        ("sample_type", 1, "*ValueType"),
        ("sample", 2, "*Sample"),
        ("location", 4, "*Location"),
        ("function", 5, "*Function"),
        ("string_table", 6, "*string"),
        ("comment", 13, "*int64"),
        ("default_sample_type", 14, "int64"),
    ),
    "ValueType": (("type", 1, "int64"), ("unit", 2, "int64")),
    "Sample": (("location_id", 1, "*uint64"), ("value", 2, "*int64"), ("label", 3, "*Label")),
    "Label": (("key", 1, "int64"), ("str", 2, "int64")),
    "Location": (("id", 1, "uint64"), ("line", 4, "*Line")),
    "Line": (("function_id", 1, "uint64"), ("line", 2, "int64")),
    "Function": (
        ("id", 1, "uint64"),
        ("name", 2, "int64"),
        ("system_name", 3, "int64"),
        ("filename", 4, "int64"),
    ),
}


@functools.cache
def profile_class():
    """The protobuf message class of a profile."""
    pool = proto.declare("farrier.pprof", _MESSAGES)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("farrier.pprof.Profile"))


def encode(report: model.Report) -> bytes:
    """The profile, gzipped as pprof expects.

    Samples are the buffers live at the peak; labels carry their origin.
    """
    profile = profile_class()()
    strings: dict[str, int] = {"": 0}
    functions: dict[tuple[str, str], int] = {}
    locations: dict[tuple[str, str, int], int] = {}

    def text(value: str) -> int:
        return strings.setdefault(value, len(strings))

    def location(name: str, file: str, line: int) -> int:
        found = locations.get((name, file, line))
        if found is not None:
            return found
        function = functions.get((name, file))
        if function is None:
            function = functions[(name, file)] = len(functions) + 1
            profile.function.add(id=function, name=text(name), system_name=text(name), filename=text(file))
        found = locations[(name, file, line)] = len(locations) + 1
        profile.location.add(id=found).line.add(function_id=function, line=line)
        return found

    for kind, unit in (("buffers", "count"), ("live", "bytes")):
        profile.sample_type.add(type=text(kind), unit=text(unit))
    profile.default_sample_type = text("live")
    profile.comment.append(text(f"{report.title}: device memory at the peak, as XLA assigned it"))
    stacks = report.data["memory"]["stacks"]
    for b in report.at_peak():
        stack = [location(*frame) for frame in stacks[b["stack"]]]
        leaf = location(b["name"], b["source"].rpartition(":")[0], 0)
        sample = profile.sample.add(location_id=[leaf, *stack], value=[1, b["bytes"]])
        for key in ("origin", "layer", "scope", "shape"):
            if b[key]:
                sample.label.add(key=text(key), str=text(b[key]))
    profile.string_table.extend(strings)
    return gzip.compress(profile.SerializeToString(deterministic=True), mtime=0)
