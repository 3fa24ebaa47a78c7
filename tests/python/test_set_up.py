"""The set-up scripts, with stand-ins for the system's package manager."""

import os
import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "third_party" / "install-mlir.sh"


def _install(folder, *, user, status=0):
    """Runs the script where no MLIR is found; returns it and what apt-get was asked for."""
    script = folder / "install-mlir.sh"
    script.write_text(SCRIPT.read_text().replace("/usr/lib/llvm-$major", str(folder / "nowhere")))
    bin = folder / "bin"
    bin.mkdir()
    log = folder / "log"
    log.touch()
    stands_in = {
        "id": f"echo {user}",
        "sudo": f'echo sudo >> {log}; exec "$@"',
        "apt-get": f'echo "${{DEBIAN_FRONTEND:-}} $*" >> {log}; exit {status}',
    }
    for name, text in stands_in.items():
        (bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin / name).chmod(0o755)
    environment = {"PATH": f"{bin}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    return done, log.read_text().splitlines()


@pytest.mark.parametrize("user", [0, 1000])
def test_mlir_is_installed_by_apt(tmp_path, user):
    done, asked = _install(tmp_path, user=user)
    assert done.returncode == 0, done.stderr
    assert asked.count("sudo") == (2 if user else 0)
    update, install = [line for line in asked if line != "sudo"]
    assert update.split() == ["update"]
    assert install.startswith("noninteractive install -y") and "libmlir-22-dev" in install


def test_what_to_do_is_said_where_apt_fails(tmp_path):
    done, _ = _install(tmp_path, user=0, status=100)
    assert done.returncode == 1
    assert "FARRIER_MLIR_PREFIX" in done.stderr and "libmlir-22-dev" in done.stderr


def test_a_prefix_with_mlir_needs_nothing(tmp_path):
    (tmp_path / "lib/cmake/mlir").mkdir(parents=True)
    (tmp_path / "lib/cmake/mlir/MLIRConfig.cmake").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/FileCheck").touch(mode=0o755)
    environment = os.environ | {"FARRIER_MLIR_PREFIX": str(tmp_path)}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
