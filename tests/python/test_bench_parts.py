"""Parts of the benchmark that need no compile: pass times, forks, reports beside a baseline, the matrix' page."""

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from farrier._src import pipeline
from farrier._src.bench import pass_times, reports, runner
from farrier._src.bench.metric import exact
from farrier._src.bench.result import Result
from farrier._src.gate import reports as gate_reports
from farrier._src.report import model

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import matrix
import matrix_page


@dataclasses.dataclass(frozen=True)
class Context:
    measure: Callable[..., Any] | None
    compile: Callable[..., Any] | None = None


class Driver:
    name = "work"
    needs_budget = True

    def plan(self, module, context, *, temp_budget=None):
        clock.append(1.0)
        return [context.measure(module), temp_budget]

    def apply(self, module, plan, *, remark=None):
        clock.append(0.25)
        return []


clock: list[float] = []


def test_pass_times_leave_out_compiles(monkeypatch):
    """One second of deciding, ten of a compile meanwhile, a quarter of rewriting: 1.25 seconds are the pass's."""
    clock.clear()
    monkeypatch.setattr(pass_times, "cpu_seconds", lambda: sum(clock))

    def compiled(module):
        clock.append(10.0)
        return module.upper()

    with pass_times.recorded() as times:
        driver = pipeline.DRIVER_WRAPPER.get()(Driver())
        assert driver.needs_budget
        assert driver.plan("module", Context(compiled), temp_budget=3) == ["MODULE", 3]
        assert driver.apply("module", {}) == []
    assert times.seconds == {"work": pytest.approx(1.25)}
    assert times.total == pytest.approx(1.25)
    assert pipeline.DRIVER_WRAPPER.get() is None


def report(name):
    memory = {"buffers": [{"name": name, "stack": 7}], "stacks": [[["f", "g", 1]]] * 8, "allocations": [{}]}
    return model.Report(
        {"schema": 1, "title": name, "memory": memory, "schedule": {"slices": [{}], "step_ns": 1.0}}
    )


def test_reports_beside_a_baseline(tmp_path):
    folder = gate_reports.folder_of(tmp_path / "base.toml")
    assert folder.name == "base.reports"
    gate_reports.save(
        {"a@h100/plain": report("a"), "b@h100/plain": report("b"), "c": "did not compile"}, folder
    )
    assert [p.name for p in sorted(folder.iterdir())] == ["a_h100_plain.json.gz", "b_h100_plain.json.gz"]
    kept = gate_reports.load(folder, "a@h100/plain")
    assert kept.data["schedule"] == {"slices": [], "step_ns": 1.0}
    assert kept.buffers == [{"name": "a", "stack": 0}]
    # The next update: a stays as it is, b is gone, d is new; what cannot be read counts as absent.
    before = (folder / "a_h100_plain.json.gz").read_bytes()
    gate_reports.save({"d": report("d")}, folder, keep=["a@h100/plain"])
    assert [p.name for p in sorted(folder.iterdir())] == ["a_h100_plain.json.gz", "d.json.gz"]
    assert (folder / "a_h100_plain.json.gz").read_bytes() == before
    (folder / "d.json.gz").write_bytes(before[:40])
    assert gate_reports.load(folder, "d") is None
    assert gate_reports.load(folder, "never") is None


def test_reports_name_no_folder_of_a_machine():
    data = {
        "source_table": [
            "/checkout/model/layers.py:12",
            "/usr/lib/python3/site-packages/jax/_src/nn.py:3",
        ],
        "stacks": [[["/elsewhere/train.py", "step", 4]]],
        "names": ["fusion.1", 3, None],
    }
    assert reports.portable(data, pathlib.Path("/checkout")) == {
        "source_table": ["model/layers.py:12", "jax/_src/nn.py:3"],
        "stacks": [[["train.py", "step", 4]]],
        "names": ["fusion.1", 3, None],
    }


def result(options, gigabytes, flops, *, budget=None, status="ok", message=""):
    values = {
        "total_bytes": gigabytes * 1e9,
        "temp_bytes": 1e9,
        "flops": flops,
        "kernels": 3,
        "bytes_moved": 1e9,
    }
    if budget is not None:
        values["budget_bytes"] = budget * 1e9
    metrics = {k: exact(k, v) for k, v in values.items()} if status == "ok" else {}
    return Result(
        case="step", target="h100", options=options, metrics=metrics, status=status, message=message
    )


PROGRAM = [
    result("unannotated", 20, 100),
    result("checkpoint-all", 15, 100),
    result("checkpoint-some", 12, 110),
    result("checkpoint-worse", 13, 120),
    result("checkpoint-offload-x", 5, 100),
    result("checkpoint-nothing", 10, 125),
]


def test_farrier_is_judged_against_policies_that_no_other_beats():
    assert [r.options for r in matrix_page.frontier_policies(PROGRAM)] == [
        "checkpoint-nothing",
        "checkpoint-some",
        "checkpoint-all",
    ]
    assert matrix.budgets(PROGRAM, 3) == [15 * 10**9, 12 * 10**9, 10 * 10**9]
    assert matrix.budgets(PROGRAM, 2) == [15 * 10**9, 10 * 10**9]
    mine = [
        result("farrier-remat-15.00GB", 14, 100, budget=15),
        result("farrier-remat-12.00GB", 12, 112, budget=12),
        result("farrier-remat-10.00GB", 0, 0, status="failed", message="BudgetError: needs 10.5\nmore"),
        result("farrier-remat-9.00GB", 9.5, 118, budget=9),
    ]
    found = {d.policy.options: d.verdict for d in matrix_page.duels([*PROGRAM, *mine])}
    # 14 GB for nothing; within 12 GB 112 against 110; 9.5 GB for 118 against 10 GB for 125.
    assert found == {"checkpoint-all": "wins", "checkpoint-some": "loses", "checkpoint-nothing": "wins"}
    text = matrix_page.render(
        {("step", "h100"): [*PROGRAM, *mine]}, {"jax": "1.2"}, pathlib.Path("docs/results.md"), None
    )
    assert "+1.8 % FLOPs against `checkpoint-some` (12.00 GB)" in text
    assert "`farrier-remat-9.00GB` needs 0.50 GB more than its budget" in text
    assert "`farrier-remat-10.00GB`: failed: BudgetError: needs 10.5" in text
    assert "jax 1.2" in text
    assert "rematerialization alone wins 2, is even at 0, loses 1" in text


def test_collectives_are_judged_against_the_best_flags():
    def timed(options, step):
        r = result(options, 1, 100)
        metric = exact("simulated_seconds", step, model="simulator/nv")
        return dataclasses.replace(r, metrics={**r.metrics, "simulated_seconds": metric})

    rows = [timed("unannotated", 0.010), timed("flags-a", 0.009), timed("farrier-collectives", 0.008)]
    assert matrix_page.is_overlap(rows)
    text = "\n".join(matrix_page.summary({("step", "h100"): rows}))
    assert "8.00 ms, best flags (`flags-a`) 9.00 ms: faster (-11.1 %)" in text
    rows[-1] = timed("farrier-collectives", 0.0095)
    text = "\n".join(matrix_page.summary({("step", "h100"): rows}))
    assert text.index("Where it does not win") < text.index("slower (+5.6 %)")


FORKS = """
import os, signal
from farrier.bench import Case, exact

def where(target, options, repeats):
    words = [str(os.getppid()), os.getcwd(), os.environ.get("SOMETHING", ""), os.environ.get("JAX_THING", "")]
    open(os.environ["SEEN"], "a").write(" ".join(words) + "\\n")
    if os.environ.get("SOMETHING") == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return {"temp_bytes": exact("temp_bytes", 1)}

def cases():
    yield Case("where", measure=where)
"""


def test_jobs_are_forks_of_one_process_and_see_their_own_surroundings(tmp_path, monkeypatch):
    (tmp_path / "suite.py").write_text(FORKS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))

    def ran(**variables):
        for k, v in variables.items():
            monkeypatch.setenv(k, v)
        (found,) = runner.run_suite(str(tmp_path / "suite.py"), use_cache=False).results
        return found, (tmp_path / "seen").read_text().splitlines()[-1].split(" ")

    first, (server, folder, *values) = ran(SOMETHING="a")
    assert (first.status, folder, values) == ("ok", os.getcwd(), ["a", ""])
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, seen = ran(SOMETHING="b")
    assert seen == [server, str(tmp_path / "elsewhere"), "b", ""]
    # The server dies with a job: that job is lost, and said to be; the next one gets another server.
    killed, _ = ran(SOMETHING="kill")
    assert killed.status == "crashed"
    assert "SIGKILL" in killed.message
    again, (other, *_) = ran(SOMETHING="c")
    assert again.status == "ok"
    assert other != server
    # jax reads these when it is imported: a process that has imported it is of no use.
    _, (third, *_, value) = ran(JAX_THING="x")
    assert third != other
    assert value == "x"


def test_the_committed_matrix_is_whole_and_its_page_is_what_it_says(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    files = sorted((root / "benchmarks" / "results" / "matrix").glob("*.json"))
    results, environment = matrix.read(files)
    suite = runner.list_suite(str(root / "benchmarks" / "suites" / "full.py"))
    planned = {(j["case"], j["target"], j["options"]["name"]) for j in suite["jobs"]}
    assert {(r.case, r.target, r.options) for r in results} == planned
    text = matrix_page.render(
        matrix.by_case(results),
        environment,
        root / "docs" / "results.md",
        root / "benchmarks" / "results" / "plots",
    )
    assert (root / "docs" / "results.md").read_text() == text
    assert "**Incomplete**" not in text
    for picture in re.findall(r"!\[\w+\]\((.*?)\)", text):
        assert (root / "docs" / picture).exists()
