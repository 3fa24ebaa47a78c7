"""The files a report is written as, each read back with an independent reader."""

import functools
import gzip
import html.parser
import json
import os
import pathlib
import types
import typing

import jax
import jax.export
import jax.numpy as jnp
import jsonschema
import pytest
import report_programs as programs
from farrier._src import errors, report
from farrier._src.cli import main
from farrier._src.hlo import proto
from farrier._src.report import perfetto, pprof, units
from farrier._src.targets import Target

SCHEMA = json.loads((pathlib.Path(__file__).parents[2] / "docs/schema/report.schema.json").read_text())


@pytest.fixture(scope="module")
def made():
    return programs.scanned()[1]


@pytest.mark.parametrize("name", ["plain", "scan", "sharded"])
def test_json_has_the_documented_schema_and_round_trips(name, tmp_path):
    made = programs.made() if name == "plain" else getattr(programs, {"scan": "scanned"}.get(name, name))()[1]
    jsonschema.validate(made.to_json(), SCHEMA)
    for suffix in (".json", ".json.gz"):
        assert report.Report.load(made.save(tmp_path / f"r{suffix}")) == made


def test_json_that_is_no_report_is_refused(tmp_path, made):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(errors.InputError, match="not a farrier report"):
        report.Report.load(tmp_path / "a.json")
    with pytest.raises(errors.InputError, match="schema version 99"):
        report.Report.from_json({**made.data, "schema": 99})
    with pytest.raises(errors.OptionError, match="known suffixes"):
        made.save(tmp_path / "a.pdf")


def test_pprof_sums_to_the_peak(made, tmp_path):
    raw = made.save(tmp_path / "peak.pb.gz").read_bytes()
    profile = pprof.profile_class().FromString(gzip.decompress(raw))
    strings = profile.string_table
    assert strings[0] == ""
    assert [(strings[t.type], strings[t.unit]) for t in profile.sample_type] == [
        ("buffers", "count"),
        ("live", "bytes"),
    ]
    assert sum(s.value[1] for s in profile.sample) == made.peak_bytes
    locations = {x.id: x for x in profile.location}
    functions = {x.id: x for x in profile.function}
    files = set()
    for sample in profile.sample:
        for k in sample.location_id:
            files.add(strings[functions[locations[k].line[0].function_id].filename])
    assert any(f.endswith("report_programs.py") for f in files)
    assert raw == made.save(tmp_path / "again.pb.gz").read_bytes()


@pytest.mark.parametrize("name", ["scan", "sharded"])
def test_perfetto_trace_is_valid_and_never_overlaps(name, tmp_path):
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

    made = programs.scanned()[1] if name == "scan" else programs.sharded()[1]
    trace = Trace.FromString(made.save(tmp_path / "t.pftrace").read_bytes())
    trace.DiscardUnknownFields()
    tracks = {
        p.track_descriptor.uuid: p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")
    }
    names = {t.name for t in tracks.values()}
    assert {"compute", "communication", "exposed communication", "live device memory"} <= names
    stack, last, slices, counters, flows = {}, {}, 0, [], []
    for p in trace.packet:
        if not p.HasField("track_event"):
            continue
        event = p.track_event
        assert event.track_uuid in tracks
        if event.type == TrackEvent.TYPE_COUNTER:
            counters.append(event.counter_value)
            continue
        # Per track: time never runs back, every end closes the last begin, and only loops nest.
        assert p.timestamp >= last.get(event.track_uuid, 0)
        last[event.track_uuid] = p.timestamp
        depth = stack.setdefault(event.track_uuid, [])
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert not depth or tracks[event.track_uuid].name == "loops"
            depth.append(event.name)
            slices += 1
            flows += [*event.flow_ids]
        else:
            depth.pop()
    assert not any(stack.values())
    assert slices == len(made.data["schedule"]["slices"])
    assert counters and max(counters) <= made.peak_bytes
    if name == "sharded":
        assert len(flows) == len(set(flows)) == len(made.collectives)


@pytest.mark.trace_processor
def test_perfetto_reads_the_trace_without_an_error(tmp_path):
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

    made = programs.sharded()[1]
    path = made.save(tmp_path / "t.pftrace")
    # Where trace_processor_shell lies; without it the package downloads one.
    config = TraceProcessorConfig(bin_path=os.environ.get("TRACE_PROCESSOR"))
    with TraceProcessor(trace=str(path), config=config) as processor:

        def ask(query):
            return [vars(row) for row in processor.query(query)]

        (count,) = ask("select count(*) as n from slice")
        assert count["n"] == len(made.data["schedule"]["slices"])
        assert ask("select name, value from stats where severity = 'error' and value > 0") == []
        nested = "select count(*) as n from slice join track on slice.track_id = track.id where depth > 0"
        assert ask(f"{nested} and track.name != 'loops'")[0]["n"] == 0


def test_slices_are_cut_where_rounding_would_overlap_them():
    slices = [
        {"track": "compute", "start_ns": 0.0, "duration_ns": 1.6, "position": 0},
        {"track": "compute", "start_ns": 1.4, "duration_ns": 3.0, "position": 1},
    ]
    assert [(s["begin"], s["end"]) for s in perfetto.nested(slices)] == [(0, 2), (2, 4)]


def test_schedule_adds_up(made):
    data = made.data["schedule"]
    by_track = {}
    for s in data["slices"]:
        by_track.setdefault(s["track"], []).append(s)
    # Outside loops a slice counts once; an iteration's block stands for the ones after it.
    loops = {s["position"]: s for s in by_track["loop"] if s["kind"] == "more iterations"}
    assert {round(s["duration_ns"] / 3) for s in loops.values()} == {
        round(s["duration_ns"]) for s in by_track["loop"] if s["kind"] == "iteration"
    }
    assert data["compute_ns"] == pytest.approx(sum(k["ns"] for k in made.kernels), rel=1e-6)
    assert data["step_ns"] >= data["compute_ns"]


def test_kernels_against_a_count_by_hand(made):
    flops = sum(k["flops"] for k in made.kernels)
    rows, width, layers = programs.ROWS, programs.WIDTH, 4
    forward = layers * 2 * (2 * rows * width * 2 * width)
    # The gradient of a product is two products; the first layer's input needs none, which a scan cannot see.
    assert flops == 3 * forward
    assert all(k["moved_bytes"] >= k["ideal_bytes"] > 0 for k in made.kernels)
    assert all(0 < k["roofline"] <= 1.0001 for k in made.kernels)


def test_text_and_notebook(made):
    said = str(made)
    assert f"peak {units.size(made.peak_bytes)}" in said
    assert "report_programs.py" in said and "residuals" in said
    assert all(len(line) <= 140 for line in said.split("\n"))
    assert "<pre" in made._repr_html_() and "<script" not in made._repr_html_()


def test_remarks_reach_every_form(tmp_path):
    class Remark:
        pass_name, kind, message, location = "remat", "missed", "costs <more> than it frees", "model.py:3"
        args = types.MappingProxyType({"bytes": 4096})

    made = report.from_artifact(programs.compiled()[1], remarks=[Remark(), {"pass": "x", "message": "m"}])
    lines = [json.loads(x) for x in made.save(tmp_path / "r.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "args": {"bytes": 4096},
        "kind": "missed",
        "location": "model.py:3",
        "message": "costs <more> than it frees",
        "name": "",
        "operation": "",
        "pass": "remat",
    }
    assert "costs <more> than it frees (bytes=4096)" in str(made)
    assert "<more>" not in made.save(tmp_path / "r.html").read_text()
    jsonschema.validate(made.to_json(), SCHEMA)


def test_page_is_one_file_without_addresses_to_load(made, tmp_path):
    page = made.save(tmp_path / "r.html").read_text()
    assert len(page) < 2.5e6

    class Reader(html.parser.HTMLParser):
        loads: typing.ClassVar[list[str]] = []

        def handle_starttag(self, tag, attributes):
            self.loads += [v for k, v in attributes if k in ("src", "href") and not v.startswith("#")]
            self.loads += [tag] if tag in ("link", "iframe", "base") else []

    Reader().feed(page)
    assert Reader.loads == []


def test_command_line(tmp_path, capsys):
    saved = programs.made().save(tmp_path / "a.json")
    other = programs.made("saved").save(tmp_path / "b.json")
    out = tmp_path / "o.html"
    assert main.main(["report", str(other), "--before", str(saved), "--diff", "-o", str(out)]) == 0
    assert "memory grew by" in capsys.readouterr().out and out.stat().st_size > 1e5
    assert main.main(["report", str(saved)]) == 0
    assert "Live at the peak by origin" in capsys.readouterr().out
    assert main.main(["report", str(saved), str(saved)]) == 0
    assert main.main(["report", str(saved), str(other)]) == 2
    assert "differs first at" in capsys.readouterr().out
    assert main.main(["report", str(tmp_path / "none")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main.main(["report", str(saved), "--diff"]) == 1


def test_command_line_compiles_a_module(tmp_path, capsys):
    text = programs.lowered().as_text()
    path = tmp_path / "step.mlir"
    path.write_text(text)
    assert main.main(["report", str(path)]) == 1
    assert "--target" in capsys.readouterr().err
    assert main.main(["report", str(path), "--target", "h100", "-o", str(tmp_path / "s.json")]) == 0
    made = report.Report.load(tmp_path / "s.json")
    assert made.peak_bytes == programs.made().peak_bytes


def test_command_line_runs_passes_and_lays_their_result_beside_the_module(tmp_path, capsys):
    """One command: before and after, remarks with the user's lines, the answer."""

    def loss(w, h, labels):
        logits = (h @ w).astype(jnp.float32)
        picked = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)

    place = Target("h100").sharding()
    array = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    fn = jax.jit(lambda w, h, labels: w - jax.grad(loss)(w, h, labels), donate_argnums=0)
    arguments = (
        array((256, 4096), jnp.bfloat16), array((1024, 256), jnp.bfloat16), array((1024,), jnp.int32),
    )  # fmt: skip
    path, out = tmp_path / "step.mlir", tmp_path / "r.jsonl"
    path.write_text(fn.lower(*arguments).as_text(debug_info=True))
    command = [
        "report",
        str(path),
        "--target",
        "h100",
        "-o",
        str(out),
        "-o",
        str(tmp_path / "r.json"),
        "--diff",
    ]
    assert main.main([*command, "--pipeline", "builtin.module(farrier-fusion{chunks=4})"]) == 0
    assert "memory shrank by" in capsys.readouterr().out
    said = [json.loads(line) for line in out.read_text().splitlines()]
    found = next(r for r in said if r["name"] == "cross-entropy" and r["kind"] == "applied")
    assert found["pass"] == "fusion" and "test_report_forms.py:" in found["location"]
    assert found["args"]["Chunks"] == 4 and "dot_general" in found["operation"]
    assert any(r["kind"] == "missed" for r in said)  # why attention was not substituted
    made = report.Report.load(tmp_path / "r.json")
    assert made.data["memory"]["estimate"]["peak"] > 0
    assert main.main([*command, "--pipeline", "builtin.module(no-such-pass)"]) == 1
    assert "no-such-pass" in capsys.readouterr().err


def test_command_line_reads_an_exported_function(tmp_path):
    place = Target("h100").sharding()
    fn = jax.jit(lambda x: jnp.tanh(x) @ x)
    exported = jax.export.export(fn, platforms=["cuda"])(
        jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=place)
    )
    (tmp_path / "f.export").write_bytes(exported.serialize())
    out = tmp_path / "r.json"
    assert main.main(["report", str(tmp_path / "f.export"), "--target", "h100", "-o", str(out)]) == 0
    assert report.Report.load(out).peak_bytes >= 2 * 256 * 256 * 4


def test_command_line_draws_a_dumps_estimate_and_writes_what_ranks_say(tmp_path):
    artifact = programs.compiled()[1]
    whole = type(proto.parse_hlo(b""))()
    whole.hlo_module = artifact.module
    whole.buffer_assignment.CopyFrom(artifact.assignment)
    (tmp_path / "step.hlo.pb").write_bytes(whole.SerializeToString())
    (tmp_path / "step.mlir").write_text(programs.lowered().as_text(debug_info=True))
    out = tmp_path / "r.json"
    command = ["report", str(tmp_path / "step.hlo.pb"), "--stablehlo", str(tmp_path / "step.mlir")]
    assert main.main([*command, "--target", "h100", "-o", str(out)]) == 0
    assert report.Report.load(out).data["memory"]["estimate"] == programs.made().data["memory"]["estimate"]
    assert main.main(["report", str(out), str(out), "-o", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["agree"] is True
    assert main.main(["report", str(out), str(out), "-o", str(tmp_path / "m.html")]) == 1
