"""farrier._core: diagnostics, records of passes, reproducers, threads."""

import itertools
import pathlib
import shlex
import subprocess
import sys
import threading
import time

import pytest
from farrier import _core

GOOD = """
module {
  "func.func"() <{function_type = (tensor<4xf32>) -> tensor<4xf32>, sym_name = "main"}> ({
  ^bb0(%x: tensor<4xf32>):
    %0 = "stablehlo.sine"(%x) : (tensor<4xf32>) -> tensor<4xf32> loc("step.py":7:3)
    %1 = "stablehlo.sine"(%x) : (tensor<4xf32>) -> tensor<4xf32>
    %2 = "stablehlo.add"(%0, %1) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    "func.return"(%2) : (tensor<4xf32>) -> ()
  }) : () -> ()
}
"""
BAD_TRANSPOSE = GOOD.replace(
    "    %1 =",
    '    %3 = "stablehlo.transpose"(%x) <{permutation = array<i64: 3>}> '
    ': (tensor<4xf32>) -> tensor<4xf32> loc("step.py":8:3)\n    %1 =',
).replace(
    '"func.return"(%2)',
    '%4 = "stablehlo.add"(%2, %3) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>\n    "func.return"(%4)',
)


def test_diagnostics_have_severity_place_and_notes():
    with pytest.raises(_core.DiagnosticError) as caught:
        _core.Module.parse(BAD_TRANSPOSE)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.severity == "error"
    assert diagnostic.message == "'stablehlo.transpose' op permutation has 3, outside [0, 1)"
    assert diagnostic.location == 'loc("step.py":8:3)'
    assert [note.severity for note in diagnostic.notes] == ["note"]
    assert "see current operation" in diagnostic.notes[0].message


def test_passes_are_timed_and_reported():
    module = _core.Module.parse(GOOD)
    seen = []
    result = module.run("cse,canonicalize", on_pass=lambda record: seen.append(record.name))
    assert [record.name for record in result.passes] == ["cse", "canonicalize"] == seen
    assert all(record.seconds >= 0 and record.operation == "builtin.module" for record in result.passes)
    assert module.num_ops == 5  # module, function, sine, add, return


def test_what_the_callback_raises_comes_out():
    def refuse(record):
        raise KeyError(record.name)

    with pytest.raises(KeyError, match="cse"):
        _core.Module.parse(GOOD).run("cse", on_pass=refuse)


def test_unknown_passes_are_named():
    with pytest.raises(_core.DiagnosticError, match="no-such-pass"):
        _core.Module.parse(GOOD).run("no-such-pass")


def test_failing_pipeline_leaves_a_command_that_reproduces_it(tmp_path):
    module = _core.Module.parse(BAD_TRANSPOSE, verify=False)
    folder = tmp_path / "it's here"
    with pytest.raises(_core.DiagnosticError, match="reproduce with") as caught:
        module.run("builtin.module(cse)", reproducer_dir=str(folder))
    command = shlex.split(caught.value.reproducer)
    assert command[0] == "hlo-opt" and command[2] == "--pass-pipeline=builtin.module(cse)"
    (saved,) = folder.iterdir()
    assert command[1] == str(saved)
    binary = pathlib.Path(_core.__file__).parent / "_bin" / "farrier-opt"
    again = subprocess.run([binary, *command[1:]], capture_output=True, text=True)
    assert again.returncode == 1
    assert "step.py:8:3: error" in again.stderr


def test_no_reproducer_unless_asked():
    with pytest.raises(_core.DiagnosticError) as caught:
        _core.Module.parse(BAD_TRANSPOSE, verify=False).run("cse")
    assert caught.value.reproducer is None


def test_other_threads_run_meanwhile():
    body = "\n".join(
        f'%{i + 1} = "stablehlo.sine"(%{i}) : (tensor<f32>) -> tensor<f32>' for i in range(60_000)
    )
    text = f"""module {{ "func.func"() <{{function_type = (tensor<f32>) -> (), sym_name = "f"}}> ({{
    ^bb0(%0: tensor<f32>):
    {body}
    "func.return"() : () -> () }}) : () -> () }}"""
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    module = _core.Module.parse(text)
    module.print()
    module.run("cse")
    end = time.perf_counter()
    stop.set()
    thread.join()
    inside = [at for at in ticks if start < at < end]
    gaps = [after - before for before, after in itertools.pairwise(inside)]
    assert len(inside) > 5 and max(gaps) < (end - start) / 2


def test_parse_takes_text_and_bytes_only():
    assert _core.Module.parse(GOOD.encode()).fingerprint == _core.Module.parse(GOOD).fingerprint
    with pytest.raises(TypeError):
        _core.Module.parse(3)


def test_fingerprint_ignores_locations():
    moved = GOOD.replace("step.py", "other.py")
    assert _core.Module.parse(moved).fingerprint == _core.Module.parse(GOOD).fingerprint
    assert _core.Module.parse(moved).print() != _core.Module.parse(GOOD).print()


def test_queries_that_do_not_exist():
    with pytest.raises(KeyError):
        _core.Module.parse(GOOD).query("nothing.here")


def test_the_stub_matches_the_extension(tmp_path):
    """python/farrier/_core.pyi is what nanobind's stub generator says now."""
    made = tmp_path / "_core.pyi"
    subprocess.run(
        [sys.executable, "-m", "nanobind.stubgen", "-m", "farrier._core", "-q", "-o", made], check=True
    )
    stub = pathlib.Path(_core.__file__).with_name("_core.pyi")
    assert stub.read_text() == made.read_text(), "run `make stubs`"
