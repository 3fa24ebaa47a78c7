"""Damaged inputs: a result or an error message, never a dead caller, a hang or gigabytes. See tests/trust/mutate.py."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
from farrier import _core
from farrier._src.cli import hlo_opt

TESTS = pathlib.Path(__file__).parents[1]


def test_damaged_inputs():
    # A process of its own: it forks, and this one has threads.
    environment = os.environ | {"PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "trust.mutate", "--cases", "150", "--seed", "7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert result["bad"] == []
    assert result["bindings: refused"] > 20
    assert result["front: refused"] > 50
    assert done.returncode == 0


def test_a_diagnostic_that_quotes_bytes_that_are_no_text():
    text = b'module { "stablehlo.\xb8\xff"() : () -> () }'
    with pytest.raises(_core.DiagnosticError):
        _core.Module.parse(b"#loc = loc(u\xb8)\n" + text)


def test_a_reader_that_never_ends_is_stopped_and_says_so(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    said = hlo_opt._death(-27, log, "step.bc", hlo_opt.parser().parse_args([]))
    assert "was stopped, because it took longer" in said


def test_a_loop_that_never_ends_is_not_followed_far():
    text = (TESTS / "lit" / "remat" / "loops-missed.mlir").read_text().split("// -----")[0]
    text = text.replace('"stablehlo.return"(%i1, %g', '"stablehlo.return"(%z, %g')
    module = _core.Module.parse(text)
    start = time.process_time()
    module.run("builtin.module(farrier-remat-loops{save=0})")
    # Followed for 65,536 iterations it took 0.1 s, and 12 s for all pipelines under the address sanitizer.
    assert time.process_time() - start < 0.05


def test_a_block_without_operations_takes_no_memory():
    module = _core.Module.parse("""
        func.func @main(%n: tensor<i32>) -> tensor<i32> {
          %0 = "other.loop"(%n) ({
          ^bb0(%i: tensor<i32>):
          }) : (tensor<i32>) -> tensor<i32>
          return %0 : tensor<i32>
        }""")
    request = {"curve": True, "elementwise": True, "small_bytes": 1}
    assert json.loads(module.query("memory.estimate", json.dumps(request)))["temp"] == 0


def test_a_manual_computation_without_a_body_is_not_looked_into():
    module = _core.Module.parse("""
        func.func @main(%a: tensor<2xf32>) -> tensor<2xf32> {
          %0 = "sdy.manual_computation"(%a) : (tensor<2xf32>) -> tensor<2xf32>
          return %0 : tensor<2xf32>
        }""")
    plan = json.loads(module.query("remat.plan", json.dumps({"budget": 1, "small_bytes": 1})))
    assert not plan["blocks"]


def test_the_fuzzer_runs_every_pass():
    fuzzer = (TESTS.parent / "cpp" / "tools" / "farrier-fuzz.cpp").read_text()
    for path in (TESTS.parent / "passes").glob("*/Passes.td"):
        for name in re.findall(r'Pass<"([^"]+)"', path.read_text()):
            assert name in fuzzer, f"no pipeline of farrier-fuzz has {name}"
