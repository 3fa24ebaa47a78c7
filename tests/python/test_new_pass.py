"""`make new-pass` and docs/passes.md."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location("loaded", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "passes").mkdir()
    shutil.copy(ROOT / "passes" / "CMakeLists.txt", tmp_path / "passes")
    return tmp_path


def test_a_new_pass_is_a_folder_and_a_line(checkout):
    new_pass = load(ROOT / "passes" / "new-pass.py")
    before = (checkout / "passes" / "CMakeLists.txt").read_text().splitlines()
    new_pass.lay_out("count-things", checkout)
    after = (checkout / "passes" / "CMakeLists.txt").read_text().splitlines()
    assert [line for line in after if line not in before] == ["add_subdirectory(count_things)"]
    assert sorted(path.name for path in (checkout / "passes" / "count_things").iterdir()) == [
        "CMakeLists.txt",
        "CountThings.cpp",
        "Passes.td",
    ]
    with pytest.raises(ValueError, match="exists"):
        new_pass.lay_out("count-things", checkout)


@pytest.mark.parametrize("name", ["", "Bad", "a b", "../up", "-x", "x;rm"])
def test_bad_names(checkout, name):
    with pytest.raises(ValueError, match="no name for a pass"):
        load(ROOT / "passes" / "new-pass.py").lay_out(name, checkout)


def test_the_new_pass_compiles(checkout, tmp_path):
    """Tablegen accepts the declaration and the compiler the source."""
    load(ROOT / "passes" / "new-pass.py").lay_out("count-things", checkout)
    generate = load(ROOT / "docs" / "generate-passes.py")
    llvm = pathlib.Path(generate.tblgen()).resolve().parents[1]
    folder = checkout / "passes" / "count_things"
    header = folder / "Passes.h.inc"
    command = [generate.tblgen(), "-gen-pass-decls", "-name=Farrier_count_things", f"-I{llvm / 'include'}"]
    subprocess.run([*command, folder / "Passes.td", "-o", header], check=True)
    includes = [
        ROOT / "cpp" / "include",
        ROOT / "build" / "dev" / "cpp" / "include",
        checkout,
        llvm / "include",
    ]
    compiler = [shutil.which("c++") or "g++", "-std=c++17", "-fsyntax-only", "-DNDEBUG", "-fno-exceptions"]
    subprocess.run([*compiler, *(f"-I{path}" for path in includes), folder / "CountThings.cpp"], check=True)


def test_passes_md_is_what_the_td_files_say():
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate-passes.py", "--check"])
    assert done.returncode == 0, "run `make docs`"
