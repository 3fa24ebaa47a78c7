"""A module that one supported jax wrote, opened by the other, through artifacts."""

import pathlib
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PYTHONS = [ROOT / name / "bin" / "python" for name in (".venv", ".venv-jax0.11")]

WRITE = """
import sys
sys.path.insert(0, sys.argv[1])
import pathlib, jax, programs
from farrier._src.cli import hlo_opt_child as child
for name in ("decoder_step_scanned", "branches", "nested_calls"):
    source = child.Input("mlir-text", module=programs.get(name).module())
    (pathlib.Path(sys.argv[2]) / f"{name}.artifact").write_bytes(child.emit(source, "artifact", locations=False))
print(jax.__version__)
"""
READ = """
import sys, pathlib
from farrier._src.cli import hlo_opt
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.artifact")):
    flags = ["--pass-pipeline=builtin.module(farrier-remat{stress=1 small-bytes=1})", "--emit=artifact"]
    assert hlo_opt.main([str(path), *flags, "-o", f"{path}.again"]) == 0
    assert hlo_opt.main([f"{path}.again", "-o", f"{path}.txt"]) == 0
"""


def run(python, code, *arguments):
    done = subprocess.run([python, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


HERE = pathlib.Path(sys.executable)
OTHERS = [python for python in PYTHONS if python.exists() and not python.samefile(HERE)]

if OTHERS:  # `make pytest-old` always has one; `make pytest` on a fresh machine runs before there is another

    @pytest.mark.parametrize("mine", [True, False], ids=["read by the other", "written by the other"])
    def test_artifacts_go_from_one_jax_to_the_other(tmp_path, mine):
        for other in OTHERS:
            writer, reader = (HERE, other) if mine else (other, HERE)
            folder = tmp_path / other.parts[-3]
            folder.mkdir()
            version = run(writer, WRITE, ROOT / "tests", folder).strip()
            assert (version == jax.__version__) == mine
            run(reader, READ, folder)
            written = sorted(path.read_text() for path in folder.glob("*.txt"))
            assert len(written) == 3
            assert all("stablehlo." in text for text in written)


def test_this_jax_opens_what_it_writes(tmp_path):
    run(sys.executable, WRITE, ROOT / "tests", tmp_path)
    run(sys.executable, READ, tmp_path)
    assert len(list(tmp_path.glob("*.txt"))) == 3
