"""hlo-opt: every input form by its content, every output form, and one clear error for what is broken."""

import io
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier._src import errors, interchange, oracle
from farrier._src.cli import hlo_opt, hlo_opt_child, hlo_opt_forms
from jax import export
from jax._src.lib import _jax
from jaxlib import _hlo
from jaxlib.mlir.dialects import stablehlo


def step(x, w):
    # Twice the same product, and a mask that is large enough to be printed as data.
    mask = np.arange(256).reshape(16, 16) % 3 == 0
    return jnp.tanh(x @ w) + jnp.tanh(x @ w), jnp.where(mask, x, 0.0)


X = np.ones((16, 16), np.float32)


@pytest.fixture(scope="module")
def lowered():
    return jax.jit(step).lower(X, X)


@pytest.fixture(scope="module")
def forms(lowered):
    """One program in every input form."""
    # A copy: writing an artifact rewrites the module, which jax's lowering cache hands to its next user.
    module = interchange.to_jaxlib(interchange.to_core(lowered.compiler_ir("stablehlo")))
    exported = export.export(jax.jit(step))(X, X)
    bytecode = io.BytesIO()
    module.operation.write_bytecode(bytecode)
    hlo = _jax.mlir.mlir_module_to_xla_computation(bytecode.getvalue(), False, False)
    proto = hlo.as_serialized_hlo_module_proto()
    size, prefix = len(proto), b"\x0a"
    while size >= 128:
        prefix += bytes([size % 128 + 128])
        size //= 128
    return {
        "mlir-text": str(module).encode(),
        "mlir-text generic": interchange.print_module(module, locations=True),
        "bytecode": bytecode.getvalue(),
        "artifact": bytes(stablehlo.serialize_portable_artifact(module, stablehlo.get_current_version())),
        "export": bytes(exported.serialize()),
        "hlo-text": hlo.as_hlo_text().encode(),
        "hlo-proto": proto,
        "hlo-proto in HloProto": prefix + bytes([size]) + proto,
    }


def convert(data, *, passes=(), emit=None, stage="stablehlo", platform="cpu", stderr=2):
    request = {"name": "input", "passes": list(passes), "emit": emit, "stage": stage, "platform": platform}
    return hlo_opt_child.convert(request, data, stderr)


FORMS = [
    "mlir-text",
    "mlir-text generic",
    "bytecode",
    "artifact",
    "export",
    "hlo-text",
    "hlo-proto",
    "hlo-proto in HloProto",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_and_optimized(forms, form):
    data = forms[form]
    assert hlo_opt_forms.detect(data, "x") == form.split()[0]
    result = convert(data, passes=["--cse"]).decode()
    assert result.count("stablehlo.dot") == 1
    assert result.count("stablehlo.dot") < convert(data).decode().count("stablehlo.dot")


@pytest.mark.parametrize("emit", ["stablehlo", "generic", "bytecode", "artifact", "hlo-text", "hlo-proto"])
def test_every_output_form_reads_back(forms, emit):
    result = convert(forms["mlir-text"], passes=["--cse"], emit=emit)
    again = convert(result).decode()
    assert again.count("stablehlo.dot") == 1
    assert again.count("stablehlo.tanh") == 1


def test_exported_artifacts_stay_callable(forms):
    result = convert(forms["export"], passes=["--cse"], emit="export")
    np.testing.assert_array_equal(export.deserialize(bytearray(result)).call(X, X)[0], step(X, X)[0])
    with pytest.raises(hlo_opt_child.Failed, match=r"only a jax\.export artifact"):
        convert(forms["bytecode"], emit="export")


def test_the_result_compiles(forms):
    assert b"HloModule" in convert(forms["hlo-text"], passes=["--cse"], stage="optimized")


def test_split_input_file(forms):
    both = forms["mlir-text"] + b"// -----\n" + forms["mlir-text"]
    result = convert(both, passes=["--cse", "--split-input-file"]).decode()
    assert result.count("// -----") == 1 and result.count("stablehlo.dot") == 2


def test_locations_on_request(forms):
    assert b"loc(" not in convert(forms["mlir-text generic"])
    assert b"test_hlo_opt.py" in convert(
        forms["mlir-text generic"], passes=["--cse", "--mlir-print-debuginfo"]
    )


def test_optimized_hlo_is_refused_with_the_reason():
    optimized = jax.jit(step).lower(X, X).compile().as_text().encode()
    with pytest.raises(hlo_opt_child.Failed, match=r"is optimized HLO.*would lose its fusions"):
        convert(optimized, passes=["--cse"])
    assert convert(optimized, stage="scheduled").startswith(b"HloModule")
    proto = convert(optimized, stage="scheduled", emit="hlo-proto")
    assert _hlo.HloModule.from_serialized_hlo_module_proto(proto).name == "jit_step"
    with pytest.raises(hlo_opt_child.Failed, match="do not run on scheduled HLO: --cse"):
        convert(optimized, stage="scheduled", passes=["--cse"])


@pytest.mark.parametrize("form", FORMS)
def test_truncated_and_damaged_input(forms, form):
    data = forms[form]
    for broken in (data[: len(data) // 2], data[: len(data) // 3] + b"\xff\x00" + data[len(data) // 3 + 2 :]):
        if form in ("bytecode", "artifact"):
            continue  # these may abort the process: test_a_reader_that_dies
        try:
            convert(broken)
        except (hlo_opt_child.Failed, errors.InputError) as error:
            assert "input" in str(error)


@pytest.mark.parametrize("data", [b"", b"  \n", b"\x89PNG\r\n\x1a\n\x00\x00", bytes(range(256))])
def test_what_is_no_program(data):
    with pytest.raises(errors.InputError, match=r"is empty|of no form"):
        hlo_opt_forms.detect(data, "x")


def run(*arguments, stdin=b""):
    return subprocess.run(
        [sys.executable, "-m", "farrier._src.cli.hlo_opt", *map(str, arguments)],
        input=stdin,
        capture_output=True,
    )


def test_standard_input_to_a_file(forms, tmp_path):
    out = tmp_path / "out.mlir"
    done = run("--cse", "--mlir-print-ir-after-all", "-o", out, stdin=forms["bytecode"])
    assert done.returncode == 0, done.stderr
    assert out.read_text().count("stablehlo.dot") == 1
    assert b"IR Dump After CSE" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.mlir"]


@pytest.mark.parametrize("kind", ["nested", "damaged", "memory", "time"])
def test_a_reader_that_dies_is_one_clear_error(forms, tmp_path, kind):
    source, out = tmp_path / "x", tmp_path / "out"
    data, limits, expected = {
        "nested": (b'"a"() ({' * 200_000, (), "cannot be read|is not valid"),
        "damaged": (
            forms["bytecode"][:700] + b"\xff" * 40 + forms["bytecode"][740:],
            (),
            "cannot be read|is not valid",
        ),
        "memory": (forms["mlir-text"], ("--memory-limit=0.2",), "cannot be read|needs more than"),
        "time": (forms["mlir-text"], ("--time-limit=0.05",), "took more than 0.05 s"),
    }[kind]
    source.write_bytes(data)
    done = run(source, "-o", out, *limits)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("hlo-opt: error: ") and len(lines) <= 3
    assert any(part in lines[0] for part in expected.split("|")), lines
    assert not out.exists()


def test_a_failing_pass_says_so(forms, capfd):
    with pytest.raises(hlo_opt_child.Failed, match="the passes failed"):
        convert(forms["mlir-text"], passes=["--no-such-pass"])
    assert "no-such-pass" in capfd.readouterr().err


def test_missing_files_and_folders(tmp_path, capsys):
    assert hlo_opt.main([str(tmp_path / "nothing")]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert hlo_opt.main([str(tmp_path)]) == 1
    assert "holds no program" in capsys.readouterr().err


def test_dump_folders(tmp_path):
    for name in (
        "module_0001.jit_step.before_optimizations.txt",
        "module_0001.jit_step.before_optimizations.hlo.pb",
    ):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "module_0001.jit_step.cpu_after_optimizations.txt").write_bytes(b"x")
    chosen = hlo_opt_forms.choose(tmp_path, None, scheduled=False)
    assert chosen.name == "module_0001.jit_step.before_optimizations.hlo.pb"
    chosen = hlo_opt_forms.choose(tmp_path, None, scheduled=True)
    assert chosen.name == "module_0001.jit_step.cpu_after_optimizations.txt"
    (tmp_path / "module_0002.jit_other.before_optimizations.txt").write_bytes(b"x")
    with pytest.raises(errors.InputError, match=r"2 modules.*jit_other"):
        hlo_opt_forms.choose(tmp_path, None, scheduled=False)
    assert "jit_other" in hlo_opt_forms.choose(tmp_path, "other", scheduled=False).name


def test_dumps_of_jax(tmp_path):
    (tmp_path / "jax_ir0000_jit_step_compile.mlir").write_bytes(b"x")
    assert hlo_opt_forms.choose(tmp_path, None, scheduled=False).suffix == ".mlir"


def test_help_and_passes(capfd):
    assert hlo_opt.main(["--list-passes"]) == 0
    assert "farrier-sink-captures" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        hlo_opt.main(["--help"])
    assert "XLA has a tool of the same name" in capfd.readouterr().out


def test_the_command_is_installed():
    assert (pathlib.Path(sys.executable).parent / "hlo-opt").exists()


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """What JAX and XLA really write: one process with their own dump flags, and an exported artifact."""
    folder = tmp_path_factory.mktemp("dumps")
    script = (
        "import pathlib, sys, jax, numpy as np\n"
        "from jax import export\n"
        "def step(x, w):\n"
        "    return jax.numpy.tanh(x @ w) + jax.numpy.tanh(x @ w)\n"
        "x = np.ones((16, 16), np.float32)\n"
        "jax.jit(step)(x, x).block_until_ready()\n"
        "pathlib.Path(sys.argv[1]).write_bytes(export.export(jax.jit(step))(x, x).serialize())\n"
    )
    environment = {
        **os.environ,
        "JAX_DUMP_IR_TO": str(folder / "jax"),
        "XLA_FLAGS": f"--xla_dump_to={folder / 'xla'} --xla_dump_hlo_as_text --xla_dump_hlo_as_proto",
    }
    command = [sys.executable, "-c", script, str(folder / "step.export")]
    subprocess.run(command, check=True, env=environment)
    return {
        "JAX_DUMP_IR_TO": next((folder / "jax").glob("*jit_step*compile.mlir")),
        "jax.export": folder / "step.export",
        "HLO text": next((folder / "xla").glob("*jit_step*.before_optimizations.txt")),
        "HLO proto": next((folder / "xla").glob("*jit_step*.before_optimizations.hlo.pb")),
    }


@pytest.mark.parametrize("written", ["JAX_DUMP_IR_TO", "jax.export", "HLO text", "HLO proto"])
def test_what_jax_and_xla_write(dumps, written):
    done = run(dumps[written], "--cse")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert text.count("stablehlo.dot") == text.count("stablehlo.tanh") == 1
    assert oracle.compile_module(text, devices=jax.devices()[:1]).measurement.flops >= 2 * 16**3


@pytest.mark.parametrize("form", [*FORMS, "empty"])
def test_half_a_file_is_one_error(forms, form, tmp_path):
    data = forms.get(form, b"")
    source, out = tmp_path / "x", tmp_path / "out"
    source.write_bytes(data[: len(data) // 2])
    done = run(source, "-o", out)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert [line.startswith("hlo-opt: error: ") for line in lines] == [True] + [False] * (len(lines) - 1)
    assert len(lines) <= 3
    assert not out.exists()
