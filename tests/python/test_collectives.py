"""Parameter sets, nccl-tests output, and the check of processes against each other."""

import dataclasses
import json

import pytest
from farrier import Target
from farrier._src import errors
from farrier._src.cli import main as cli
from farrier._src.collectives import check, drive, nccl_tests, parameters

OUTPUT = """\
# nThread 1 nGpus 8 minBytes 1048576 maxBytes 67108864 step: 8(factor) warmup iters: 5 iters: 20
# all_gather_perf
#       size         count      type   redop    root     time   algbw   busbw #wrong     time
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)
     1048576         32768     float    none      -1    31.25   33.55   29.36      0    30.90
     8388608        262144     float    none      -1    52.10  161.01  140.88      0    51.70
    67108864       2097152     float    none      -1   231.40  290.01  253.76      0   230.10
# Out of bounds values : 0 OK
"""


def test_nccl_tests_output():
    curve = nccl_tests.parse(OUTPUT)
    assert curve.kind == "all-gather" and not curve.network
    assert [size for size, _ in curve.points] == [1048576, 8388608, 67108864]
    assert [seconds for _, seconds in curve.points] == pytest.approx([31.25e-6, 52.1e-6, 231.4e-6])


def test_nccl_tests_kind_from_the_file_name():
    text = OUTPUT.replace("# all_gather_perf\n", "")
    assert nccl_tests.parse(text, "/logs/reduce_scatter_perf.8gpu.txt").kind == "reduce-scatter"
    with pytest.raises(errors.InputError, match="which collective"):
        nccl_tests.parse(text, "log.txt")
    with pytest.raises(errors.InputError, match="no rows"):
        nccl_tests.parse("all_reduce_perf: command not found")


def test_measured_set_replaces_only_what_was_measured(tmp_path):
    file = tmp_path / "all_gather_perf.txt"
    file.write_text(OUTPUT)
    measured = nccl_tests.measured_set(parameters.load("nv"), [file], name="ours")
    (curve,) = measured.comm_json()["measured"]
    assert curve["kind"] == "all-gather" and curve["points"][0] == [1048576, pytest.approx(31.25)]
    assert dataclasses.replace(measured, curves=(), name="nv") == parameters.load("nv")


def test_builtin_sets_have_sources():
    assert parameters.builtin_names() == ("gb", "gb-slow", "nv", "slow")
    for name in parameters.builtin_names():
        p = parameters.load(name)
        assert {"link", "network", "kernels"} <= p.sources.keys()
        assert p.link_latency_s < p.network_latency_s
    assert [p.name for p in parameters.for_target(Target("h100"))] == ["nv", "slow"]
    assert [p.name for p in parameters.for_target(Target("gb200"))] == ["gb", "gb-slow"]


def test_one_set_alone_is_guarded_by_itself_at_half_speed():
    nv, slow = parameters.for_target(Target("h100"))
    assert parameters.guarded((nv, slow)) == (nv, slow)
    curve = parameters.Curve(kind="all-gather", network=False, points=((1e6, 1e-5),))
    measured = dataclasses.replace(nv, curves=(curve,))
    alone, half = parameters.guarded((measured,))
    assert alone is measured and half.name == "nv/2"
    assert (half.link_bytes_per_s, half.network_latency_s) == (
        nv.link_bytes_per_s / 2,
        nv.network_latency_s * 2,
    )
    assert half.curves[0].points == ((1e6, 2e-5),)
    assert half.gemm_fraction == nv.gemm_fraction


def test_a_file_overrides_a_builtin(tmp_path):
    file = tmp_path / "ours.toml"
    curve = '[[measured]]\nkind = "all-reduce"\npoints = [[1024, 1e-5]]\n'
    file.write_text('base = "nv"\n[network]\nbytes_per_s = 90e9\n' + curve)
    p = parameters.load(file)
    assert p.name == "ours" and p.network_bytes_per_s == 90e9
    assert p.link_bytes_per_s == parameters.load("nv").link_bytes_per_s
    assert p.curves[0].points == ((1024, 1e-5),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "nv"\n[link]\nspeed = 3', "unknown key link.speed"),
        ('base = "nv"\n[link]\nbytes_per_s = 0', "must be positive"),
        ('base = "nv"\n[kernels]\ngemm_fraction = 1.5', "more than the hardware"),
        ("domain_devices = 8", "missing or not a number"),
        ('base = "nv"\n[[measured]]\nkind = "all-reduce"', "points"),
        ("base = nv", "not valid TOML"),
        ('base = "zz"', "not a built-in"),
    ],
)
def test_malformed_sets_are_named(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(errors.InputError, match=message):
        parameters.load(file)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(errors.InputError, match="slow"):
        parameters.load("slo")


def _issue(kind="all-reduce", shape="f32[4]", groups=((0, 1, 2, 3),), **more):
    fields = dict(pairs=(), channel=1, name="x", op_name="", source="a.py:1", loops=())
    return check.Issue(kind=kind, shape=shape, groups=groups, **{**fields, **more})


def test_same_programs():
    program = [_issue(), _issue("all-gather")]
    assert check.compare([program, program, program, program], 4).status == "same"


def test_swapped_collectives_deadlock():
    a, b = _issue(source="a.py:1"), _issue("all-gather", source="b.py:2")
    verdict = check.compare([[a, b], [a, b], [b, a], [a, b]], 4)
    assert verdict.status == "deadlock" and (verdict.process, verdict.other) == (0, 2)
    assert "a.py:1" in verdict.message and "b.py:2" in verdict.message


def test_a_missing_collective_deadlocks():
    verdict = check.compare([[_issue(groups=((0, 1),))], []], 2)
    assert verdict.status == "deadlock" and "process 1 has ended" in verdict.message


def test_different_shapes_deadlock():
    assert (
        check.compare([[_issue(groups=((0, 1),))], [_issue(groups=((0, 1),), shape="f32[8]")]], 2).status
        == "deadlock"
    )


def test_independent_groups_may_be_at_different_points():
    """Processes 0, 1 and 2, 3 form groups of their own: what the others do cannot hang them."""
    groups = ((0, 1), (2, 3))
    a = [_issue(groups=groups, name="first"), _issue("all-gather", groups=groups)]
    b = [_issue("all-gather", groups=groups), _issue(groups=groups, name="second")]
    verdict = check.compare([a, a, b, b], 4)
    assert verdict.status == "differ" and verdict.other == 2


def test_crossed_groups_deadlock():
    """0 waits for 1 on one group while 1 waits for 2 on another and 2 for 0 on a third."""
    ab, bc, ca = (_issue(pairs=((x, y),), groups=(), source=f"{x}.py:1") for x, y in ((0, 1), (1, 2), (2, 0)))
    assert check.compare([[ab, ca], [bc, ab], [ca, bc]], 3).status == "deadlock"
    assert check.compare([[ab, ca], [ab, bc], [bc, ca]], 3).status == "differ"


def test_only_source_lines_differ():
    verdict = check.compare([[_issue(groups=((0, 1),))], [_issue(groups=((0, 1),), source="b.py:9")]], 2)
    assert verdict.status == "differ" and "b.py:9" in verdict.message


def test_issues_round_trip():
    found = [_issue(loops=(("while.1", 8),)), _issue(pairs=((0, 1), (1, 0)), groups=())]
    assert check.from_json(check.to_json(found)) == found


def test_devices_must_divide():
    with pytest.raises(errors.InputError, match="3 devices do not divide among 2 dumps"):
        check.compare([[], []], 3)
    with pytest.raises(errors.InputError, match="device 3 of 2"):
        check.compare([[_issue()], [_issue()]], 2)


HLO = """\
HloModule step, is_scheduled=true, entry_computation_layout={(f32[8]{0}, f32[8]{0})->(f32[8]{0}, f32[16]{0})}

add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT sum = f32[] add(a, b)
}

ENTRY main {
  p = f32[8]{0} parameter(0)
  q = f32[8]{0} parameter(1)
  %s
  ROOT t = (f32[8]{0}, f32[16]{0}) tuple(ar, ag)
}
"""
METADATA = 'metadata={source_file="m.py" source_line=7}'
REDUCE = f"ar = f32[8]{{0}} all-reduce(p), replica_groups={{{{0,1}}}}, to_apply=add, {METADATA}"
GATHER = "ag = f32[16]{0} all-gather(q), replica_groups={{0,1}}, dimensions={0}"


def test_command_line(tmp_path, capsys):
    files = []
    for k, body in enumerate((f"{REDUCE}\n  {GATHER}", f"{GATHER}\n  {REDUCE}")):
        files.append(tmp_path / f"rank{k}.txt")
        files[-1].write_text(HLO.replace("%s", body))
    same = cli.main(["check-collectives", str(files[0]), str(files[0])])
    assert same == 0 and "2 collectives" in capsys.readouterr().out
    report = tmp_path / "verdict.json"
    assert cli.main(["check-collectives", *map(str, files), "--json", str(report)]) == 2
    assert "m.py:7" in capsys.readouterr().out
    assert json.loads(report.read_text())["status"] == "deadlock"


def test_command_line_reads_dump_folders_and_refuses_others(tmp_path, capsys):
    for k in range(2):
        folder = tmp_path / f"rank{k}"
        folder.mkdir()
        (folder / "module_0001.jit_step.gpu_after_optimizations.txt").write_text(
            HLO.replace("%s", f"{REDUCE}\n  {GATHER}")
        )
    assert cli.main(["check-collectives", str(tmp_path / "rank0"), str(tmp_path / "rank1")]) == 0
    (tmp_path / "noise").write_bytes(b"\x00\x01not hlo")
    assert cli.main(["check-collectives", str(tmp_path / "noise"), str(tmp_path / "rank0")]) == 1
    assert "not an HLO module" in capsys.readouterr().err


# --- driving ----------------------------------------------------------------------------------------------


def test_a_topology_that_estimates_refuse_is_compiled_without():
    asked = []

    def compile(module, options):
        asked.append(dict(options))
        if drive.STATISTICS.keys() & options.keys() or module == "broken":
            raise errors.CompileError("Non homogenous replica group")
        return module

    judge = drive._Judge(
        target=None,
        sets=(),
        scored=(),
        compile=compile,
        options=dict(drive.STATISTICS),
        left=None,
        order=True,
    )
    assert judge.compiled("program", {"a": 1}) == "program"
    assert judge.compiled("program", {}) == "program"
    assert asked == [drive.STATISTICS | {"a": 1}, {"a": 1}, {}] and judge.spent == 2
    with pytest.raises(errors.CompileError):
        judge.compiled("broken", {})
