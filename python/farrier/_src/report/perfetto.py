"""The predicted schedule as a Perfetto trace.

Written with the `perfetto` package's own message classes. Each track holds slices that nest or follow one
another; starts and dones are joined by flows; live device memory is a counter on the same time axis.
"""

from __future__ import annotations

from typing import Any

from farrier._src import errors
from farrier._src.report import model, schedule

_SEQUENCE = 1
_PROCESS, _COUNTER = 1, 2
_TRACK_NAMES = {
    schedule.LOOP: "loops",
    schedule.COMPUTE: "compute",
    schedule.WAIT: "exposed communication",
    schedule.COMMUNICATION: "communication",
    schedule.COPY: "host copies",
}


def encode(report: model.Report) -> bytes:
    """The trace.

    Raises:
      farrier.OptionError: the report has no schedule (it was made without a target).
      farrier.MissingPluginError: the `perfetto` package is not installed.
    """
    made = report.data["schedule"]
    if not made:
        raise errors.OptionError("this report has no schedule to export", hint="make it with a target")
    try:
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackDescriptor, TrackEvent
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder
    except ModuleNotFoundError as e:
        raise errors.MissingPluginError(
            "a Perfetto trace needs the `perfetto` package", hint='pip install "farrier[report]"'
        ) from e

    builder = TraceProtoBuilder()
    first = builder.add_packet()
    first.trusted_packet_sequence_id = _SEQUENCE
    first.sequence_flags = 1  # SEQ_INCREMENTAL_STATE_CLEARED
    first.track_descriptor.uuid = _PROCESS
    first.track_descriptor.process.pid = 1
    first.track_descriptor.process.process_name = f"{report.title} (predicted)"
    first.track_descriptor.child_ordering = TrackDescriptor.EXPLICIT
    uuids = {}
    for rank, track in enumerate(schedule.TRACKS):
        packet = builder.add_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        descriptor = packet.track_descriptor
        uuids[track] = descriptor.uuid = 10 + rank
        descriptor.parent_uuid = _PROCESS
        descriptor.name = _TRACK_NAMES[track]
        descriptor.sibling_order_rank = rank
    packet = builder.add_packet()
    packet.trusted_packet_sequence_id = _SEQUENCE
    packet.track_descriptor.uuid = _COUNTER
    packet.track_descriptor.parent_uuid = _PROCESS
    packet.track_descriptor.name = "live device memory"
    packet.track_descriptor.counter.unit = packet.track_descriptor.counter.UNIT_SIZE_BYTES
    packet.track_descriptor.sibling_order_rank = len(schedule.TRACKS)

    def event(at: int, uuid: int, kind: int) -> Any:
        packet = builder.add_packet()
        packet.timestamp = at
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.track_event.track_uuid = uuid
        packet.track_event.type = kind
        return packet.track_event

    sources = report.data["program"]["source_table"]
    flows = {}
    for number, s in enumerate(nested(made["slices"])):
        begin, end = s["begin"], s["end"]
        opened = event(begin, uuids[s["track"]], TrackEvent.TYPE_SLICE_BEGIN)
        opened.name = (
            s["name"] if s["kind"] not in ("more iterations", "wait") else f"{s['name']}: {s['kind']}"
        )
        opened.categories.append(s["kind"])
        for key, value in (("source", sources[s["source"]]), ("model", s.get("model", ""))):
            if value:
                opened.debug_annotations.add(name=key, string_value=value)
        if s.get("exposed_ns"):
            opened.debug_annotations.add(name="exposed_ns", double_value=s["exposed_ns"])
        if s["track"] == schedule.COMMUNICATION:
            flows[s.get("done")] = number + 1
            opened.flow_ids.append(number + 1)
        elif s["track"] == schedule.WAIT and s.get("done") in flows:
            opened.terminating_flow_ids.append(flows[s["done"]])
        event(end, uuids[s["track"]], TrackEvent.TYPE_SLICE_END)
    times = _clock(made["slices"])
    if times:
        for position, live in report.data["memory"]["timeline"]:
            at = times.get(position)
            if at is not None:
                event(at, _COUNTER, TrackEvent.TYPE_COUNTER).counter_value = live
    return builder.serialize()


def nested(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slices with whole-nanosecond `begin` and `end`, in the order that a begin/end stream needs.

    Rounding could make neighbours overlap by a nanosecond: ends are cut to the next begin on the same track,
    except where the next slice nests.
    """
    out = []
    open_until: dict[str, int] = {}
    for s in sorted(slices, key=lambda s: (s["start_ns"], -s["duration_ns"], s["position"])):
        begin = round(s["start_ns"])
        end = max(begin, round(s["start_ns"] + s["duration_ns"]))
        if s["track"] != schedule.LOOP:
            begin = max(begin, open_until.get(s["track"], 0))
            end = max(begin, end)
            open_until[s["track"]] = end
        out.append({**s, "begin": begin, "end": end})
    return out


def _clock(slices: list[dict[str, Any]]) -> dict[int, int]:
    """Position -> time at which the compute stream gets there."""
    return {s["position"]: round(s["start_ns"]) for s in slices if s["track"] == schedule.COMPUTE}
