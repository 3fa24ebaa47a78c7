"""The benchmark runner: processes, limits, journal, cluster, outputs. XLA takes no part."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from farrier._src.bench import history, outputs, result, runner, stats
from farrier._src.bench.metric import SPECS, Metric, exact, format_value, sampled, spec
from farrier._src.bench.result import Result, ResultError, Run
from farrier._src.bench.suite import Case, OptionSet, SuiteError, load_suite
from farrier._src.cli.main import main

SUITE = """
import os, pathlib, signal, time
from farrier.bench import Case, Clock, OptionSet, exact

HERE = pathlib.Path(__file__).parent
TARGETS = ["h100"]
OPTION_SETS = [OptionSet("plain"), OptionSet("more", variant={"extra": 1})]
REFERENCE = "plain"


def fine(target, options, repeats):
    with open(HERE / "ran", "a") as f:
        f.write(f"{options.name}\\n")
    clock = Clock()
    for _ in range(repeats):
        clock.time("pass_seconds", lambda: sum(range(200_000)))
    return {"temp_bytes": exact("temp_bytes", 1000), "flops": exact("flops", 10 + 5 * len(options.variant)),
            **clock.metrics()}


def crash(target, options, repeats):
    print("about to die")
    os.kill(os.getpid(), signal.SIGSEGV)


def hungry(target, options, repeats):
    held = []
    while True:
        held.append(b"x" * 2**24)
        time.sleep(0.005)


def slow(target, options, repeats):
    time.sleep(60)


def raising(target, options, repeats):
    raise ValueError("nothing here is right")


def quitting(target, options, repeats):
    raise SystemExit(3)


def cases():
    plain = ("plain",)
    yield Case("fine", measure=fine)
    yield Case("crash", measure=crash, option_sets=plain)
    yield Case("hungry", measure=hungry, option_sets=plain, memory_bytes=300 * 2**20)
    yield Case("slow", measure=slow, option_sets=plain, timeout_s=2)
    yield Case("raising", measure=raising, option_sets=plain)
    yield Case("quitting", measure=quitting, option_sets=plain)
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "suite.py"
    path.write_text(SUITE)
    return str(path)


def test_failures_of_every_kind_are_results(suite, tmp_path):
    seen = []
    run = runner.run_suite(
        suite, use_cache=False, jobs=2, progress=lambda done, total, r: seen.append((done, total))
    )
    found = run.by_id()
    assert {r.case: r.status for r in run.results} == {
        "fine": "ok",
        "crash": "crashed",
        "hungry": "out-of-memory",
        "slow": "timeout",
        "raising": "failed",
        "quitting": "crashed",
    }
    assert "SIGSEGV" in found["crash@h100/plain"].message
    assert "(while measuring)" in found["crash@h100/plain"].message
    assert "nothing here is right" in found["raising@h100/plain"].message
    assert "exit code 3" in found["quitting@h100/plain"].message
    assert "limit of 0.29 GiB" in found["hungry@h100/plain"].message
    assert seen == [(n, 7) for n in range(1, 8)]
    assert found["fine@h100/more"].metrics["recomputed_flops"].value == 5
    assert len(found["fine@h100/plain"].metrics["pass_seconds"].samples) == 3


def test_resume_runs_only_what_is_missing(suite, tmp_path):
    journal = tmp_path / "journal.jsonl"
    options = {"cases": ["fine"], "use_cache": False, "journal": journal}

    class Stop(Exception):
        pass

    finished = []

    def interrupt(done, total, r):
        finished.append(r.options)
        raise Stop

    with pytest.raises(Stop):
        runner.run_suite(suite, jobs=1, progress=interrupt, **options)
    with journal.open("a") as f:
        f.write('{"key": "cut sho')
    seen = []
    run = runner.run_suite(suite, resume=True, progress=lambda done, total, r: seen.append(r.id), **options)
    assert len(run.results) == 2
    # The other job may have begun before the interruption; what had finished does not run again.
    ran = (tmp_path / "ran").read_text().split()
    assert set(ran) == {"more", "plain"} and ran.count(finished[0]) == 1
    assert not journal.exists()


def test_a_journal_of_another_suite_is_not_taken(suite, tmp_path):
    journal = tmp_path / "journal.jsonl"
    stale = Result(
        case="fine", target="h100", options="plain", metrics={"temp_bytes": exact("temp_bytes", 1)}
    )
    journal.write_text(json.dumps({"key": "other", "result": stale.to_json()}) + "\n")
    run = runner.run_suite(suite, cases=["fine"], use_cache=False, journal=journal, resume=True)
    assert run.by_id()["fine@h100/plain"].metrics["temp_bytes"].value == 1000


def test_selection(suite):
    run = runner.run_suite(suite, cases=["f*"], option_sets=["mo*"], use_cache=False)
    assert [r.id for r in run.results] == ["fine@h100/more"]
    run = runner.run_suite(suite, cases=["fine"], targets=["b200"], option_sets=["plain"], use_cache=False)
    assert [r.id for r in run.results] == ["fine@b200/plain"]
    with pytest.raises(SuiteError, match=r"nothing of .* is selected"):
        runner.run_suite(suite, cases=["nope"], use_cache=False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "no function cases"),
        ("def cases():\n    yield 3", "yields int"),
        ("def cases():\n    return []", "yields nothing"),
        ("def cases():\n    1/0", "ZeroDivisionError"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("def cases():\n    yield 'a', print\n    yield 'a', print", "two cases named 'a'"),
        ("import os\nos.abort()", "SIGABRT"),
        (
            "from farrier.bench import Case\ndef cases():\n    yield Case('a', print, option_sets=['b'])",
            "option set 'b'",
        ),
        ("OPTION_SETS = ['x']\ndef cases():\n    yield 'a', print", "holds str"),
    ],
)
def test_a_bad_suite_is_named(tmp_path, source, message):
    path = tmp_path / "s.py"
    path.write_text(source)
    with pytest.raises(SuiteError, match=message):
        runner.list_suite(str(path))


def test_no_suite(tmp_path):
    with pytest.raises(SuiteError, match="no suite at"):
        load_suite(tmp_path / "absent.py")
    with pytest.raises(SuiteError, match="no dumped module"):
        load_suite(tmp_path)


def test_a_case_is_one_thing():
    with pytest.raises(SuiteError, match="fn and build"):
        Case("a", print, build=print)
    with pytest.raises(SuiteError, match="nothing to run"):
        Case("a")
    with pytest.raises(SuiteError, match="'@'"):
        Case("a@b", print)


def test_option_sets_are_data():
    o = OptionSet("a", optimize={"memory_budget": "1GiB"}, compiler_options={"xla_x": True}, budget="1GiB")
    assert OptionSet.from_json(json.loads(json.dumps(o.to_json()))) == o


def test_results_survive_a_round_trip(tmp_path):
    m = sampled("pass_seconds", [1.0, 2.0, 4.0], [0.1, 0.1, 0.1])
    r = Result(case="a", target="t", options="o", metrics={"pass_seconds": m}, lines=({"file": "f"},))
    run = Run(
        suite="s", results=(r,), environment={"jax": "1"}, commit={"id": "x", "time": "", "dirty": False}
    )
    path = tmp_path / "r.json"
    result.save(run, path)
    assert result.load(path) == run
    for bad in ("", "[]", "{}", path.read_text().replace('"results"', '"r"')):
        path.write_text(bad)
        with pytest.raises(ResultError):
            result.load(path)


def test_statistics():
    assert stats.median([3, 1, 2]) == 2
    assert stats.spread([1.0]) is None
    assert stats.spread([1.0, 1.0, 1.0]) == 0
    assert stats.noise([1.0], [2.0]) is None
    # One outlier among many changes nothing.
    assert stats.spread([1.0] * 20 + [100.0]) == 0
    # The estimate for few samples has the right size: known standard deviation of 1.
    import random

    rng = random.Random(3)
    mean = sum(stats.spread([rng.gauss(0, 1) for _ in range(3)]) for _ in range(4000)) / 4000
    assert mean == pytest.approx(1.0, rel=0.05)
    with pytest.raises(ValueError, match="no samples"):
        stats.median([])


def test_metric_names_have_specifications():
    assert spec("collectives.all-gather.count").unit == "count"
    assert spec("pass.remat.seconds").kind == "noisy"
    assert spec("tokens") == spec("anything")
    assert not spec("tokens").threshold.gate
    assert len({s.pattern for s in SPECS}) == len(SPECS)
    with pytest.raises(ValueError, match="calibration"):
        Metric(value=1, unit="s", samples=(1.0, 2.0), calibration=(1.0,))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (512, "B", "512 B"),
        (3 * 2**30, "B", "3.00 GiB"),
        (8.5e12, "FLOP", "8.500 TFLOP"),
        (0.0123, "s", "12.3 ms"),
    ],
)
def test_formatting(value, unit, text):
    assert format_value(value, unit) == text


def sample_run():
    ok = Result(
        case="a",
        target="h100",
        options="plain",
        metrics={
            "temp_bytes": exact("temp_bytes", 2**20),
            "compile_seconds": sampled("compile_seconds", [1.0, 2.0]),
        },
    )
    bad = Result(case="b", target="h100", options="plain", status="crashed", message="SIGSEGV")
    unsupported = Result(
        case="c", target="h100", options="plain", status="unsupported", message="no such variant"
    )
    return Run(
        suite="s.py",
        results=(ok, bad, unsupported),
        environment={"jax": "1", "machine": "m", "python": "3"},
        commit={"id": "c" * 40, "time": "2026-01-01T00:00:00+00:00", "dirty": False},
    )


def test_outputs(tmp_path):
    import io
    import xml.etree.ElementTree as ET

    from rich.console import Console

    run = sample_run()
    text = io.StringIO()
    outputs.print_table(run, Console(file=text, width=120))
    assert "1.00 MiB" in text.getvalue()
    assert "SIGSEGV" in text.getvalue()
    assert "| a | h100 | plain | 1.00 MiB |" in outputs.markdown(run)
    outputs.junit(run, tmp_path / "j.xml")
    tree = ET.parse(tmp_path / "j.xml").getroot()
    assert (tree.get("tests"), tree.get("errors"), tree.get("skipped")) == ("3", "1", "1")
    data = outputs.pytest_benchmark(run)
    assert [b["stats"]["median"] for b in data["benchmarks"]] == [1.5]
    assert data["benchmarks"][0]["extra_info"]["temp_bytes"] == 2**20


def test_history(tmp_path, capsys):
    import dataclasses

    run = sample_run()
    for n, size in enumerate((100, 120, 90)):
        changed = dataclasses.replace(run.results[0], metrics={"temp_bytes": exact("temp_bytes", size)})
        commit = {"id": f"{n}" * 40, "time": f"2026-01-0{n + 1}T00:00:00+00:00", "dirty": False}
        history.add(tmp_path, dataclasses.replace(run, results=(changed,), commit=commit))
    (series,) = history.series(history.read(tmp_path), "temp_bytes")
    assert [p.value for p in series.points] == [100, 120, 90]
    assert main(["bench", "history", "temp_bytes", "--store", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "commit (in order)" in shown
    assert "temp_bytes [B]" in shown
    assert (
        main(["bench", "history", "temp_bytes", "--store", str(tmp_path), "-o", str(tmp_path / "p.png")]) == 0
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "history", "nope", "--store", str(tmp_path)]) == 1
    assert "there are temp_bytes" in capsys.readouterr().err
    assert main(["bench", "history", "temp_bytes", "--store", str(tmp_path / "absent")]) == 1


def test_the_command(suite, tmp_path, capsys):
    out = tmp_path / "r.json"
    assert main(["bench", suite, "--case", "fine", "--no-cache", "-o", str(out), "--format", "none"]) == 0
    assert len(result.load(out).results) == 2
    assert main(["bench", suite, "--case", "crash", "--no-cache"]) == 1
    assert "SIGSEGV" in capsys.readouterr().out
    assert main(["bench", str(tmp_path / "absent.py")]) == 1
    assert "no suite at" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        main(["bench", "--help"])
    assert e.value.code == 0


CLUSTER = """
import os, pathlib, time
import psutil
from farrier.bench import Case, exact

HERE = pathlib.Path(__file__).parent


def work(name):
    def measure(target, options, repeats):
        with open(HERE / "started", "a") as f:
            # A job is a fork of a server that the worker started.
            f.write(f"{name} {psutil.Process().parents()[1].pid}\\n")
        time.sleep(1.0)
        return {"temp_bytes": exact("temp_bytes", len(name))}
    return measure


def cases():
    for n in range(6):
        yield Case(f"job{n}", measure=work(f"job{n}"))
"""


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_killed_worker_of_a_cluster_loses_nothing(tmp_path):
    """Three worker processes on loopback; one is killed while it measures."""
    import signal
    import threading
    import time

    path = tmp_path / "suite.py"
    path.write_text(CLUSTER)
    env = {**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
    script = textwrap.dedent(
        """
        import sys, time
        from distributed import LocalCluster
        if __name__ == "__main__":
            c = LocalCluster(n_workers=3, host="127.0.0.1", threads_per_worker=1, dashboard_address=None)
            print(c.scheduler_address, flush=True)
            sys.stdin.read()
            c.close()
        """
    )
    program = tmp_path / "cluster.py"
    program.write_text(script)
    cluster = subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    killed = []
    done = threading.Event()

    def kill_one():
        started = tmp_path / "started"
        # However long a busy machine takes to start the workers.
        while not done.is_set():
            text = started.read_text() if started.exists() else ""
            if text.count("\n") >= 2:
                victim = int(text.splitlines()[0].split()[1])
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
                return
            time.sleep(0.02)

    try:
        address = cluster.stdout.readline().strip()
        assert address.startswith("tcp://127.0.0.1")
        thread = threading.Thread(target=kill_one)
        thread.start()
        run = runner.run_suite(str(path), use_cache=False, scheduler=address)
    finally:
        done.set()
        cluster.communicate("", timeout=60)
    thread.join()
    assert killed
    assert {r.case: r.status for r in run.results} == {f"job{n}": "ok" for n in range(6)}
    started = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    assert len({pid for _, pid in started}) >= 3
    assert len(started) > 6, "the killed worker's job was started again"


def test_no_scheduler_there(suite, monkeypatch):
    with pytest.raises(runner.RunnerError, match="no Dask scheduler answers"):
        monkeypatch.setattr("distributed.Client.__init__", _refuse)
        runner.run_suite(suite, cases=["fine"], use_cache=False, scheduler="tcp://127.0.0.1:9")


def _refuse(self, *args, **kwargs):
    raise OSError("timed out")


def test_environment_is_complete():
    from farrier._src.bench import environment

    v = environment.versions()
    assert v["jax"][0].isdigit()
    assert v["farrier"] != ""
    here = environment.commit_of(pathlib.Path(__file__))
    assert here["id"] == "none" or len(here["id"]) == 40


ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["ci", "full"])
def test_this_projects_suites_load(name):
    listing = runner.list_suite(str(ROOT / "benchmarks" / "suites" / f"{name}.py"))
    assert listing["reference"] in {o["name"] for o in listing["option_sets"]}
    found = {(j["case"], j["options"]["name"]) for j in listing["jobs"]}
    assert len(found) > (4 if name == "ci" else 80)


def test_the_plots_draw_what_the_results_say(tmp_path):
    def one(case, options, total, flops, **more):
        values = {"total_bytes": total, "flops": flops, **more}
        return Result(
            case=case,
            target="h100",
            options=options,
            metrics={k: exact(k, v, model="m") for k, v in values.items()},
        )

    shown = result.with_reference(
        [
            one("a", "unannotated", 20e9, 100),
            one("a", "checkpoint-dots", 12e9, 130),
            one("a", "farrier-12GB", 11.9e9, 110),
            one("b", "unannotated", 5e9, 7, exposed_seconds=1e-3, overlapped_seconds=2e-3),
            one("b", "flags-x", 5e9, 7, exposed_seconds=5e-4, overlapped_seconds=2e-3),
        ],
        "unannotated",
    )
    run = Run(suite="s", results=tuple(shown), environment={}, commit={"id": "x", "time": "", "dirty": False})
    result.save(run, tmp_path / "r.json")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "plots.py"),
            str(tmp_path / "r.json"),
            "-o",
            str(tmp_path / "p"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {pathlib.Path(line).name for line in done.stdout.splitlines()}
    assert names == {"a-h100-frontier.png", "b-h100-exposed.png"}
    assert all((tmp_path / "p" / n).read_bytes().startswith(b"\x89PNG") for n in names)
