"""The gate: verdicts, thresholds, noise, baselines, acknowledgements. No compiler takes part."""

import dataclasses
import datetime
import json
import random
import xml.etree.ElementTree as ET

import pytest
from farrier._src.bench import result as results
from farrier._src.bench.metric import Metric, Threshold, exact, sampled
from farrier._src.bench.result import Result, Run
from farrier._src.cli.main import main
from farrier._src.errors import Error
from farrier._src.gate import acknowledge, baseline, compare, page, render
from farrier._src.gate.baseline import GateError
from farrier._src.gate.compare import Verdict

ENV = {
    "jax": "0.12.0.1",
    "jaxlib": "0.12.0.1",
    "xla_plugin": "0.12.0.1",
    "cudnn": "9",
    "xla_flags": "",
    "machine": "m",
    "target h100": "abc",
}
TODAY = datetime.date(2026, 6, 1)


def line(number, code, **columns):
    return {
        "file": "train.py",
        "line": number,
        "function": "loss",
        "code": code,
        **dict.fromkeys(("bytes", "allocated", "moved", "flops", "kernels", "exposed"), 0),
        "buffers": [],
        **columns,
    }


LINES = (
    line(10, "h = jnp.tanh(h @ w)", bytes=900, kernels=4, moved=5000),
    line(12, "return jnp.sum(h)", bytes=100, kernels=1),
)


def make(*, lines=LINES, status="ok", case="mlp", **values):
    metrics = {
        "total_bytes": exact("total_bytes", 100_000_000),
        "temp_bytes": exact("temp_bytes", 80_000_000),
        "kernels": exact("kernels", 14),
        "exposed_collectives": exact("exposed_collectives", 2),
        "alias_bytes": exact("alias_bytes", 1000),
        "pass_seconds": sampled("pass_seconds", [0.100, 0.104, 0.098], [0.01, 0.0103, 0.0099]),
    }
    for name, value in values.items():
        metrics[name] = value if isinstance(value, Metric) else exact(name, value)
    return Result(
        case=case,
        target="h100",
        options="plain",
        status=status,
        metrics=metrics,
        lines=lines,
        fingerprint="f",
    )


def run_of(*found, env=ENV):
    return Run(
        suite="suite.py", results=found, environment=env, commit={"id": "c0", "time": "", "dirty": False}
    )


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.toml"
    baseline.write(run_of(make()), path, suite="suite.py")
    return path


def verdict_of(path, run, **kwargs):
    return compare.compare(baseline.load(path), run, today=TODAY, **kwargs)


def test_unchanged_is_green(base):
    c = verdict_of(base, run_of(make()))
    assert c.verdict is Verdict.UNCHANGED
    assert c.exit_code == 0


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        ({"temp_bytes": 84_000_000}, "temp_bytes"),
        ({"exposed_collectives": 3}, "exposed_collectives"),
        ({"kernels": 15}, "kernels"),
        ({"alias_bytes": 0}, "alias_bytes"),
        (
            {"pass_seconds": sampled("pass_seconds", [0.2, 0.207, 0.197], [0.01, 0.0103, 0.0099])},
            "pass_seconds",
        ),
    ],
)
def test_each_injected_regression_is_red_in_its_row_only(base, change, metric):
    c = verdict_of(base, run_of(make(**change)))
    assert [r.metric for r in c.of(Verdict.REGRESSED)] == [metric]
    assert c.exit_code == 2


def test_improvement_and_mixture(base):
    assert verdict_of(base, run_of(make(temp_bytes=70_000_000))).verdict is Verdict.IMPROVED
    mixed = verdict_of(base, run_of(make(temp_bytes=70_000_000, kernels=15)))
    assert mixed.verdict is Verdict.MIXED
    assert mixed.exit_code == 2


def test_small_changes_of_memory_are_tolerated(base):
    assert verdict_of(base, run_of(make(temp_bytes=80_500_000))).exit_code == 0


def test_noise_does_not_turn_the_gate_red():
    rng = random.Random(7)

    def noisy(scale):
        # 15% noise: far more than a quiet machine has.
        return sampled("pass_seconds", [0.1 * scale * rng.lognormvariate(0, 0.15) for _ in range(3)])

    threshold = Threshold(rel=0.05, abs=0.001)
    red = sum(
        compare.compare_metric("r", "pass_seconds", noisy(1), noisy(1), threshold).verdict
        is Verdict.REGRESSED
        for _ in range(500)
    )
    # Three standard deviations of either side; with three samples the spread itself is uncertain.
    assert red <= 15
    # With the built-in threshold not one, and a real doubling is seen.
    wide = Threshold(rel=0.5, abs=0.005)
    same = [compare.compare_metric("r", "pass_seconds", noisy(1), noisy(1), wide) for _ in range(500)]
    assert not [r for r in same if r.verdict is Verdict.REGRESSED]


def test_a_change_within_the_noise_says_so():
    row = compare.compare_metric(
        "r",
        "pass_seconds",
        sampled("pass_seconds", [0.1, 0.2, 0.15]),
        sampled("pass_seconds", [0.2, 0.3, 0.25]),
        Threshold(rel=0.5),
    )
    assert row.verdict is Verdict.UNCHANGED
    assert "within the noise" in row.note


def test_a_slower_machine_is_not_a_slower_pass():
    old = sampled("pass_seconds", [0.1, 0.101, 0.102], [0.01, 0.01, 0.01])
    new = sampled("pass_seconds", [0.3, 0.303, 0.306], [0.03, 0.03, 0.03])
    row = compare.compare_metric("r", "pass_seconds", old, new, Threshold(rel=0.1), same_machine=False)
    assert row.verdict is Verdict.UNCHANGED
    uncalibrated = [dataclasses.replace(m, calibration=()) for m in (old, new)]
    row = compare.compare_metric("r", "pass_seconds", *uncalibrated, Threshold(rel=0.1), same_machine=False)
    assert row.verdict is Verdict.INFORMATION
    assert "another machine" in row.note


def test_one_sample_a_side_is_not_gated():
    row = compare.compare_metric(
        "r",
        "pass_seconds",
        sampled("pass_seconds", [0.1]),
        sampled("pass_seconds", [0.9]),
        Threshold(rel=0.5),
    )
    assert row.verdict is Verdict.INFORMATION


@pytest.mark.parametrize(
    ("key", "new"), [("jax", "0.11.2"), ("xla_plugin", "1"), ("target h100", "xyz"), ("cudnn", "8")]
)
def test_other_versions_are_refused_then_labelled(base, key, new):
    other = run_of(make(), env={**ENV, key: new})
    with pytest.raises(GateError, match=f"{key} .* -> {new}") as e:
        verdict_of(base, other)
    assert "--allow-version-change" in str(e.value)
    c = verdict_of(base, other, allow_version_change=True)
    assert any(f"{key} {ENV[key]} -> {new}" in label for label in c.labels)
    assert new in render.markdown(c)


def test_thresholds_of_the_file_and_overrides(base):
    text = base.read_text().replace(
        "[thresholds]\n",
        '[thresholds]\n# generous, see the review\ntemp_bytes = {rel = 0.2}\n"pass*" = {gate = false}\n'
        '\n[[override]]\ncase = "mlp@*"\nmetric = "kernels"\nabs = 1\n\n',
    )
    base.write_text(text)
    assert verdict_of(base, run_of(make(temp_bytes=90_000_000, kernels=15))).exit_code == 0
    assert verdict_of(base, run_of(make(kernels=16))).exit_code == 2
    baseline.write(run_of(make(kernels=16)), base, suite="suite.py")
    again = base.read_text()
    assert "# generous, see the review" in again
    assert verdict_of(base, run_of(make(kernels=17))).exit_code == 0


@pytest.mark.parametrize(
    ("line_", "message"),
    [
        ("temp_bytes = {relative = 0.2}", "unknown"),
        ("temp_bytes = {rel = -1}", "rel"),
        ("temp_bytes = 3", "write"),
        ('temp_bytes = {gate = "no"}', "gate"),
    ],
)
def test_a_bad_threshold_is_named(base, line_, message):
    base.write_text(base.read_text().replace("[thresholds]\n", f"[thresholds]\n{line_}\n"))
    with pytest.raises(GateError, match=message) as e:
        baseline.load(base)
    assert "temp_bytes" in str(e.value)


def test_a_baseline_is_stable_and_sorted(tmp_path):
    first, second = tmp_path / "1.toml", tmp_path / "2.toml"
    found = [make(case=c) for c in ("b", "a", "c")]
    baseline.write(run_of(*found), first, suite="s")
    baseline.write(run_of(*reversed(found)), second, suite="s")
    assert first.read_bytes() == second.read_bytes()
    assert baseline.lines_path(first).read_bytes() == baseline.lines_path(second).read_bytes()
    baseline.write(run_of(*found), first, suite="s")
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    assert text.index('"a@h100/plain"') < text.index('"b@h100/plain"') < text.index('"c@h100/plain"')


def test_an_update_of_a_selection_keeps_the_rest(tmp_path):
    path = tmp_path / "b.toml"
    baseline.write(run_of(make(case="a"), make(case="b")), path, suite="s")
    baseline.write(run_of(make(case="b", kernels=3)), path, suite="s", keep_others=True)
    loaded = baseline.load(path)
    assert loaded.metrics["a@h100/plain"]["kernels"].value == 14
    assert loaded.metrics["b@h100/plain"]["kernels"].value == 3
    assert set(loaded.lines) == {"a@h100/plain", "b@h100/plain"}


def test_lost_and_corrupt_baselines(base, tmp_path):
    with pytest.raises(GateError, match=r"(?s)no baseline at .*--update"):
        baseline.load(tmp_path / "absent.toml")
    good = base.read_text()
    for bad, message in (
        (good[: len(good) // 2] + "[[[", "not valid TOML"),
        (good.replace("schema = 1", "schema = 9"), "schema 9"),
        (good.replace("[results", "[outcomes"), "damaged"),
        (good.replace("kernels = 14", 'kernels = "many"'), "damaged.*kernels"),
    ):
        base.write_text(bad)
        with pytest.raises(GateError, match=message) as e:
            baseline.load(base)
        assert "restore it" in str(e.value)


def test_any_cut_of_a_baseline_is_an_error_of_ours_or_reads(base):
    good = base.read_bytes()
    for n in range(0, len(good), 37):
        base.write_bytes(good[:n])
        try:
            baseline.load(base)
        except Error:
            continue


def test_failed_results_are_red_and_never_a_baseline(base, tmp_path):
    broken = dataclasses.replace(make(status="crashed"), message="killed by SIGSEGV", metrics={})
    c = verdict_of(base, run_of(broken))
    assert c.exit_code == 2
    assert "SIGSEGV" in c.of(Verdict.REGRESSED)[0].describe()
    with pytest.raises(GateError, match="SIGSEGV"):
        baseline.write(run_of(broken), tmp_path / "x.toml", suite="s")


def test_missing_and_new_results(base):
    c = verdict_of(base, run_of(make(case="other")))
    assert [r.note for r in c.of(Verdict.REGRESSED)] == [
        "in the baseline and not in this run; --update drops it for good"
    ]
    assert {r.id for r in c.of(Verdict.NEW)} == {"other@h100/plain"}
    assert verdict_of(base, run_of(make(case="other")), subset=True).exit_code == 0


def test_a_metric_that_vanishes_is_red(base):
    fewer = make()
    fewer = dataclasses.replace(fewer, metrics={k: v for k, v in fewer.metrics.items() if k != "kernels"})
    assert [r.note for r in verdict_of(base, run_of(fewer)).of(Verdict.REGRESSED)] == ["no longer measured"]


def test_acknowledgements(base, tmp_path):
    path = tmp_path / "a.toml"
    entry = acknowledge.Acknowledgement(
        case="mlp@*",
        metric="kernels",
        reason="new feature, see #12",
        expires=datetime.date(2026, 7, 1),
        up_to=15,
    )
    acknowledge.append(path, entry)
    acknowledge.append(path, dataclasses.replace(entry, metric="temp_bytes", up_to=None))
    loaded = acknowledge.load(path)
    assert loaded[0] == entry
    accepted = verdict_of(base, run_of(make(kernels=15)), acknowledgements=loaded)
    assert accepted.exit_code == 0
    assert "new feature" in accepted.of(Verdict.ACKNOWLEDGED)[0].note
    assert verdict_of(base, run_of(make(kernels=16)), acknowledgements=loaded).exit_code == 2
    late = compare.compare(
        baseline.load(base),
        run_of(make(kernels=15)),
        acknowledgements=loaded,
        today=datetime.date(2026, 7, 2),
    )
    assert late.exit_code == 2
    assert "expired on 2026-07-01" in late.labels[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[acknowledge]]\ncase = "*"\nmetric = "kernels"\nexpires = 2026-07-01\n', "no reason"),
        ('[[acknowledge]]\ncase = "*"\nmetric = "kernels"\nreason = "x"\n', "no expires"),
        ('[[acknowledge]]\ncase = "*"\nmetric = "k"\nreason = "x"\nexpires = "soon"\n', "write a date"),
        ('[[acknowledge]]\ncase = "*"\nmetric = "k"\nreason = "x"\nexpires = 2026-07-01\nupto = 3\n', "upto"),
        ("[ack]\n", "only"),
        ("[[", "cannot read"),
    ],
)
def test_a_bad_acknowledgement_is_named(tmp_path, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(GateError, match=message):
        acknowledge.load(path)


def test_the_line_at_fault(base):
    grown = (
        line(3, "import jax.numpy as jnp"),
        line(11, "h = jnp.tanh(h @ w)", bytes=900, kernels=4, moved=5000),
        line(12, "keep.append(h * 2)", bytes=4_000_000, kernels=1),
        line(13, "return jnp.sum(h)", bytes=100, kernels=1),
    )
    c = verdict_of(base, run_of(make(lines=grown, temp_bytes=84_000_000, kernels=15)))
    for row in c.of(Verdict.REGRESSED):
        assert [x.where() for x in c.culprits(row)] == ["train.py:12 (loss)"]
    text = render.markdown(c)
    assert "train.py:12 (loss)" in text
    assert "keep.append(h * 2)" in text
    html = page.render("mlp@h100/plain", c, run_of(make()))
    assert "train.py:12 (loss)" in html
    assert "<script" not in html
    assert "http" not in html


def test_the_page_escapes_source(base):
    c = verdict_of(
        base,
        run_of(make(lines=(*LINES, line(20, "x = a<b & '</td>'", bytes=9_000_000)), temp_bytes=99_000_000)),
    )
    assert "a&lt;b &amp; " in page.render("mlp@h100/plain", c, run_of(make()))


def test_the_command(base, tmp_path, capsys):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    results.save(run_of(make()), good)
    results.save(run_of(make(temp_bytes=84_000_000)), bad)
    gate = ["gate", "--baseline", str(base)]
    assert main([*gate, "--results", str(good)]) == 0
    out = {n: tmp_path / n for n in ("c.md", "c.json", "c.xml")}
    assert (
        main([
            *gate, "--results", str(bad), "--markdown", str(out["c.md"]), "--json", str(out["c.json"]),
            "--junit", str(out["c.xml"]), "--pages", str(tmp_path / "pages"),
        ])
        == 2
    )  # fmt: skip
    assert "temp_bytes" in capsys.readouterr().out
    assert "| ❌ |" in out["c.md"].read_text()
    data = json.loads(out["c.json"].read_text())
    assert data["verdict"] == "regressed"
    failures = [c for c in ET.parse(out["c.xml"]).iter("testcase") if c.find("failure") is not None]
    assert [c.get("name") for c in failures] == ["temp_bytes"]
    assert len(list((tmp_path / "pages").iterdir())) == 1
    assert main([*gate, "--results", str(bad), "--acknowledge", "mlp*:temp_bytes", "--reason", "needed"]) == 0
    assert main([*gate, "--results", str(bad)]) == 0
    assert "needed" in capsys.readouterr().out
    assert main(["gate", "--baseline", str(tmp_path / "absent.toml"), "--results", str(good)]) == 1
    assert "no baseline" in capsys.readouterr().err
    assert main([*gate, "--results", str(tmp_path / "absent.json")]) == 1
    (tmp_path / "cut.json").write_text(good.read_text()[:100])
    assert main([*gate, "--results", str(tmp_path / "cut.json")]) == 1
    assert "not JSON" in capsys.readouterr().err
    # A mistyped option is no regression.
    with pytest.raises(SystemExit) as e:
        main([*gate, "--resluts", str(good)])
    assert e.value.code == 1
    assert "--resluts" in capsys.readouterr().err


def test_the_examples_call_commands_that_exist():
    import pathlib
    import shlex

    import yaml
    from farrier._src.cli.main import parser

    examples = pathlib.Path(__file__).parents[2] / "docs" / "examples"
    workflow = yaml.safe_load((examples / "github-actions.yml").read_text())
    hook = yaml.safe_load((examples / "pre-commit-config.yaml").read_text())
    steps = [s["run"] for s in workflow["jobs"]["gate"]["steps"] if "run" in s]
    commands = [s for s in steps if s.startswith("farrier ")]
    commands += [h["entry"] for repo in hook["repos"] for h in repo["hooks"]]
    assert len(commands) == 2
    for command in commands:
        arguments = shlex.split(command)[1:]
        assert parser(arguments[0]).parse_args(arguments).command == "gate"
