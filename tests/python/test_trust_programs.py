"""Random programs through random passes: same bits, verified, same bytes twice; and each failure found before."""

import random
import re
import time

import pytest
from farrier import _core
from trust import check, fuzz, stablehlo_programs


@pytest.mark.parametrize(
    ("kind", "seed", "count"), [("stablehlo", s, 48) for s in range(4)] + [("jax", 9, 8)]
)
def test_random_programs_mean_the_same(kind, seed, count):
    counts = fuzz.examine(kind, seed, count, pipelines=1)
    assert "failed" not in counts, counts
    assert counts["programs"] >= count
    assert counts["changed"] > count // 5


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
    counts = fuzz.examine("stablehlo", 1, 200, pipelines=1)
    (path,) = tmp_path.glob("found-*.mlir")
    assert counts["failed"] == path.name
    text = path.read_text()
    assert "RUN: farrier-opt %s --pass-pipeline='builtin.module(farrier-remat{stress=0" in text
    assert text.count('"stablehlo.') < 25


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
