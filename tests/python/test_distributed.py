"""Jobs of four processes on loopback: one plans, all agree, and a disagreement is an error for all."""

import json
import math
import os
import pathlib
import socket
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
COUNT = 4
SCENARIOS = ("agree", "fallback", "budget", "programs", "results", "applying")


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def run_job(directory, plan, *scenarios):
    """The answers by scenario, and in each by rank."""
    port = str(free_port())
    directory.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["FARRIER_CACHE_DIR"] = str(directory / "cache")
    outputs = [(directory / f"{rank}.out", directory / f"{rank}.err") for rank in range(COUNT)]
    processes = []
    try:
        for rank, (out, err) in enumerate(outputs):
            command = [
                sys.executable,
                str(HERE / "job.py"),
                str(rank),
                str(COUNT),
                port,
                str(plan),
                *scenarios,
            ]
            with out.open("w") as stdout, err.open("w") as stderr:
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=stdout,
                        stderr=stderr,
                        env=environment,
                        cwd=HERE,
                    )
                )
        # JAX aborts a process that outlives the first one: that one waits for the end of its input.
        codes = [process.wait(timeout=300) for process in processes[1:]]
        processes[0].stdin.close()
        codes.append(processes[0].wait(timeout=60))
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
    assert codes == [0] * COUNT, [err.read_text()[-2000:] for _, err in outputs]
    lines = [
        [json.loads(line[7:]) for line in out.read_text().splitlines() if line.startswith("ANSWER ")]
        for out, _ in outputs
    ]
    return dict(zip(scenarios, zip(*lines, strict=True), strict=True))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """One job that goes through all scenarios."""
    return run_job(tmp_path_factory.mktemp("job") / "first", "-", *SCENARIOS)


def values(answers):
    return [value for answer in answers for value in answer["value"]]


def test_the_first_process_plans_for_all(job):
    answers = job["agree"]
    assert [a["searches"] for a in answers] == [1, 0, 0, 0]
    assert [a["source"] for a in answers] == ["search"] + ["process 0"] * 3
    assert len({a["plan"] for a in answers}) == 1
    assert len({a["text"] for a in answers}) == 1
    assert values(answers) == pytest.approx([2 * math.cos(k) for k in range(2 * COUNT)], abs=1e-6)


def test_a_saved_plan_in_a_second_job(job, tmp_path):
    path = tmp_path / "step.plan.json"
    path.write_text(json.dumps(job["agree"][0]["json"]))
    answers = run_job(tmp_path / "second", path, "agree")["agree"]
    assert [a["searches"] for a in answers] == [0] * COUNT
    assert {a["source"] for a in answers} == {"plan"}
    assert {a["text"] for a in answers} == {a["text"] for a in job["agree"]}


def test_falling_back_is_one_decision(job):
    answers = job["fallback"]
    assert values(answers) == pytest.approx([2 * math.sin(k) for k in range(2 * COUNT)], abs=1e-6)
    assert [a["source"] for a in answers] == ["fallback"] + ["process 0"] * 3


@pytest.mark.parametrize(
    ("scenario", "kind", "message"),
    [
        ("programs", "DistributedError", "do not agree on the program that each traced"),
        ("results", "DistributedError", "do not agree on the program that each compiles"),
        ("budget", "BudgetError", "does not fit"),
    ],
)
def test_a_disagreement_is_an_error_on_every_process(job, scenario, kind, message):
    answers = job[scenario]
    assert [a.get("error") for a in answers] == [kind] * COUNT
    assert all(message in a["message"] for a in answers)
    assert max(a["seconds"] for a in answers) < 30


def test_one_process_that_cannot_apply_the_plan(job, tmp_path):
    answers = job["applying"]
    # The one that fails raises what it met; the others learn of it before anything runs.
    assert [a["error"] for a in answers] == ["DistributedError"] * COUNT
    assert all("process 1: failed with RuntimeError: cannot apply" in a["message"] for a in answers)
    assert max(a["seconds"] for a in answers) < 30


def test_rematerialization_by_one_plan(tmp_path):
    """A real rewrite: searched by the first process, then applied from the saved plan by another job."""
    first = run_job(tmp_path / "first", "-", "remat")["remat"]
    assert [a["searches"] for a in first] == [1, 0, 0, 0]
    assert all(a["changed"] and list(a["json"]["passes"]) == ["remat"] for a in first)
    path = tmp_path / "step.plan.json"
    path.write_text(json.dumps(first[0]["json"]))
    second = run_job(tmp_path / "second", path, "remat")["remat"]
    assert [a["searches"] for a in second] == [0] * COUNT
    assert {a["source"] for a in second} == {"plan"}
    assert len({a["text"] for a in [*first, *second]}) == 1
    # One sharded program of all processes: the plain one's loss, up to the order of its sums.
    assert values(first) == pytest.approx([a["plain"] for a in first], rel=1e-6)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A job of real passes on a sharded model."""
    return run_job(tmp_path_factory.mktemp("training") / "job", "-", "train", "disagree")


def test_a_sharded_model_trains_the_same(training):
    answers = training["train"]
    assert all(a["changed"] for a in answers)
    assert len({a["plan"] for a in answers}) == 1
    assert len({tuple(a["on"]) for a in answers}) == 1
    assert len(answers[0]["on"]) == 20
    assert answers[0]["on"][-1] < answers[0]["on"][0]
    # Partitioned and fused anew: the same operations, summed by XLA in an order of its own.
    assert answers[0]["on"] == pytest.approx(answers[0]["off"], rel=1e-6)


def test_one_process_with_another_option_is_refused_everywhere(training):
    answers = training["disagree"]
    assert [a["error"] for a in answers] == ["DistributedError"] * COUNT
    assert all("the options of farrier.optimize" in a["message"] for a in answers)
    assert max(a["seconds"] for a in answers) < 30
