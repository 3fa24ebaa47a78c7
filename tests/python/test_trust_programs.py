"""Random programs through random passes: same bits, verified, same bytes twice; and each failure found before."""

import json
import pathlib
import random
import re
import time

import pytest
from farrier import _core
from trust import check, estimates, fuzz, pipelines, stablehlo_programs

PASSES = pathlib.Path(__file__).parents[2] / "passes"


@pytest.mark.parametrize(
    ("kind", "seed", "count"),
    [("stablehlo", s, 46) for s in range(4)] + [("jax", 9, 8), ("bounded", 50, 8)],
)
def test_random_programs_mean_the_same(kind, seed, count):
    counts = fuzz.examine(kind, seed, count, pipelines=1)
    assert "failed" not in counts, counts
    assert counts["programs"] >= count
    assert counts["changed"] > count // 5


def test_every_pass_and_option_is_drawn():
    draw = random.Random(1)
    drawn = " ".join(pipelines.pipeline(draw, numerics=n) for n in pipelines.NUMERICS for _ in range(700))
    for path in PASSES.glob("*/Passes.td"):
        for name, body in re.findall(r'Pass<"([^"]+)".*?\{(.*?)\n\}\n', path.read_text(), re.DOTALL):
            assert re.search(rf"[(,]{name}[,{{)]", drawn), name
            # A plan and what is known of a device's part are files of one program; how a mesh splits values is what Shardy
            # says of one program.
            for option in set(re.findall(r'Option<"\w+",\s*"([^"]+)"', body)) - {
                "plan",
                "known",
                "attention-split",
                "shardings",
            }:
                assert re.search(rf"[(,]{name}\{{[^}}]*\b{option}=", drawn), f"{name}: {option}"
    for name in pipelines.REWRITES:
        assert f'"{name}"' in (PASSES / "fusion" / "FusionPass.cpp").read_text()
        assert re.search(rf"rewrites=[^ }}]*{name}", drawn)


def test_a_substitution_that_is_wrong_is_found(monkeypatch):
    """Results off by a thousandth are outside of the bound, results off by a rounding are inside."""
    program = check.Checked(fuzz.program("bounded")(random.Random(7)))
    program.bounds()
    run = check.run
    monkeypatch.setattr(check, "rewrite", lambda text, pipeline: check.Outcome(True, text))

    def against(off, numerics):
        monkeypatch.setattr(check, "run", lambda *a: [(r * (1 + off)).astype(r.dtype) for r in run(*a)])
        program.against(f"builtin.module(farrier-fusion{{numerics={numerics}}})")

    against(2e-7, "bounded")
    with pytest.raises(check.Broken, match="by more than its bound"):
        against(1e-3, "bounded")
    with pytest.raises(check.Broken, match="changes results"):
        against(2e-7, "bitwise")


def test_stress_takes_any_place_for_the_boundary():
    text = stablehlo_programs.module(random.Random(3))
    module = _core.Module.parse(text)
    plans = [
        json.loads(module.query("remat.plan", json.dumps({"stress": s, "small_bytes": 1}))) for s in range(30)
    ]
    boundaries = {block["boundary"] for plan in plans for block in plan["blocks"]}
    assert len(boundaries) > 5, boundaries


def test_found_before():
    for path in sorted(check.REGRESSIONS.glob("found-*.mlir")):
        text = path.read_text()
        check.Checked(text).against(re.search(r"--pass-pipeline='([^']*)'", text)[1])


def test_a_pass_that_changes_a_result_is_found(monkeypatch):
    def wrong(text, pipeline):
        return check.Outcome(True, text.replace("stablehlo.cosine", "stablehlo.sine"))

    monkeypatch.setattr(check, "rewrite", wrong)
    program = check.Checked(stablehlo_programs.module(random.Random(0)))
    with pytest.raises(check.Broken, match="changes results"):
        program.against("builtin.module(cse)")


def test_a_failure_shrinks_to_a_small_test(monkeypatch, tmp_path):
    def wrong(text, pipeline):
        if "stablehlo.sort" in text and "stress" in pipeline:
            raise check.Broken("planted")
        return check.Outcome(False, text)

    monkeypatch.setattr(check, "rewrite", wrong)
    monkeypatch.setattr(check, "REGRESSIONS", tmp_path)
    counts = fuzz.examine("stablehlo", 2, 200, pipelines=1)
    (path,) = tmp_path.glob("found-*.mlir")
    assert counts["failed"] == path.name
    text = path.read_text()
    assert "RUN: farrier-opt %s --pass-pipeline='builtin.module(farrier-remat{stress=0" in text
    assert text.count('"stablehlo.') < 30


def test_xla_takes_no_more_than_the_estimate_and_its_bound():
    row = estimates.measured(0)
    assert row["temp"] > 2 * estimates.SLACK
    assert estimates.within(row), row
    assert not estimates.within(row | {"temp": 3 * row["temp"]})


def test_the_estimate_is_linear():
    """A chain of small values that joins one more buffer at each step: its sets of roots must not grow with it."""
    kind = "tensor<8xf32>"
    lines = [f"func.func @main(%h0: {kind}) -> {kind} {{"]
    for i in range(8000):
        lines.append(
            f'%r{i} = "stablehlo.custom_call"(%h{i}) <{{call_target_name = "f"}}> : ({kind}) -> {kind}'
        )
        lines.append(f'%h{i + 1} = "stablehlo.add"(%h{i}, %r{i}) : ({kind}, {kind}) -> {kind}')
    module = _core.Module.parse("\n".join([*lines, f"return %h8000 : {kind} }}"]))
    start = time.process_time()
    module.query("memory.estimate")
    # With a set for every length it took 0.88 s.
    assert time.process_time() - start < 0.5
