"""Other people's tests through farrier: ``python -m trust.suites --work build/suites``.

Source distributions from PyPI ship their tests. Each suite runs twice in an environment of its own, as it is and
with ``trust.shadow``; a test that fails only with it, or a program whose bits differ, is farrier's. Prints one JSON
object of counts.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from typing import Any

from trust import flags

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent
# XLA rounds after each operation, whatever it fuses: both runs have it, so both see the same failures.
FLAGS = " ".join((*flags.EXACT, *flags.UNOPTIMIZED))
NEEDS = [
    "numpy", "flatbuffers", "rich", "protobuf", "platformdirs", "pytest", "absl-py", "parameterized", "dm-tree",
    "cloudpickle", "toolz", "scikit-learn",
]  # fmt: skip
# Distribution, version, and which of its test files: those that compile programs, and run in minutes.
SUITES: dict[str, tuple[str, tuple[str, ...]]] = {
    "optax": ("0.2.8", ("optax/**/*_test.py",)),
    "chex": ("0.1.92", ("chex/**/*_test.py",)),
    "dm-haiku": ("0.0.17", ("haiku/_src/*_test.py",)),
    "rlax": ("0.1.9", ("rlax/_src/*_test.py",)),
    "flax": ("0.12.12", ("tests/linen/*_test.py", "tests/nnx/**/*_test.py", "tests/core/**/*_test.py")),
    "distrax": ("0.1.9", ("distrax/_src/**/*_test.py",)),
}


def environment(work: pathlib.Path, jax_version: str) -> pathlib.Path:
    """The Python of an environment with the suites' packages."""
    python = work / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        packages = [f"{name}=={version}" for name, (version, _) in SUITES.items()]
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"jax=={jax_version}", *NEEDS, *packages], check=True
        )
    return python


def unpacked(work: pathlib.Path, name: str) -> pathlib.Path:
    """The suite's source distribution."""
    version, _ = SUITES[name]
    stem = f"{name.replace('-', '_')}-{version}"
    folder = work / stem
    if not folder.exists():
        if not list(work.glob(f"{stem}.tar.gz")):
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name]
            subprocess.run([*command, "-d", work, f"{name}=={version}"], check=True)
        with tarfile.open(work / f"{stem}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    return folder


def outcomes(path: pathlib.Path) -> dict[str, str]:
    """Test's name to passed, failed or skipped, from a JUnit file."""
    result = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        result[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return result


def run(work: pathlib.Path, python: pathlib.Path, name: str, mode: str, limit: int) -> dict[str, Any]:
    """One suite, ``mode`` "" (as it is), "1" or "stress:SEED"."""
    folder = unpacked(work, name)
    tag = f"{name}-{mode.replace(':', '') or 'plain'}"
    files = sorted(
        {f for pattern in SUITES[name][1] for f in glob.glob(pattern, root_dir=folder, recursive=True)}
    )
    junit, report = work / f"{tag}.xml", work / f"{tag}.json"
    for old in work.glob(f"{tag}.json.*"):
        old.unlink()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:warnings"]
    command += ["--continue-on-collection-errors", f"--junitxml={junit}", *files]
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "FARRIER_TRUST": mode}
    variables |= {"FARRIER_TRUST_REPORT": str(report), "FARRIER_TRUST_KEEP": str(work)}
    variables["PYTHONPATH"] = f"{ROOT / 'python'}:{TESTS}"
    if mode:
        command += ["-p", "trust.shadow"]
    with (work / f"{tag}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            # pytest reports what ran so far; only tests of both runs are compared.
            process.send_signal(signal.SIGINT)
            process.wait()
    reports = [json.loads(path.read_text()) for path in work.glob(f"{tag}.json.*")]
    return {"tests": outcomes(junit), "files": len(files), "farrier": reports[0] if reports else None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build" / "suites")
    parser.add_argument("--suites", nargs="*", default=list(SUITES))
    parser.add_argument("--modes", nargs="*", default=["stress:1"], help="1, or stress:SEED")
    parser.add_argument("--jax", default="0.12.0.1")
    parser.add_argument("--limit", type=int, default=3600, help="seconds for one run of one suite")
    arguments = parser.parse_args()
    # A shell's background job ignores interrupts, and then so does the pytest that is to be stopped at its limit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments.work.mkdir(parents=True, exist_ok=True)
    work = arguments.work.resolve()
    python = environment(work, arguments.jax)
    bad = 0
    for name in arguments.suites:
        plain = run(work, python, name, "", arguments.limit)
        for mode in arguments.modes:
            ours = run(work, python, name, mode, arguments.limit)
            broken = [
                test
                for test, outcome in ours["tests"].items()
                if outcome == "failed" and plain["tests"].get(test) == "passed"
            ]
            counts = {
                outcome: sum(o == outcome for o in ours["tests"].values())
                for outcome in ("passed", "failed", "skipped")
            }
            bad += len(broken)
            summary = {
                "suite": name,
                "version": SUITES[name][0],
                "mode": mode,
                "files": ours["files"],
                **counts,
            }
            summary |= {"failed without farrier": sum(o == "failed" for o in plain["tests"].values())}
            summary |= {"failed only with farrier": broken, "farrier": ours.get("farrier")}
            print(json.dumps(summary), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
