"""Writes docs/passes.md from the passes' Passes.td files: `make docs`.

`--check` compares instead of writing and exits 1 on a difference.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEADER = """\
# Passes

<!-- Generated from passes/*/Passes.td by `make docs`; a test compares them. -->

Run one with `hlo-opt --NAME program`, several with
`hlo-opt --pass-pipeline='builtin.module(A,B{option=1})' program`.
"""


def tblgen() -> str:
    found = (
        shutil.which("mlir-tblgen") or shutil.which("mlir-tblgen-22") or "/usr/lib/llvm-22/bin/mlir-tblgen"
    )
    if not pathlib.Path(found).exists():
        sys.exit("mlir-tblgen is missing: run third_party/install-mlir.sh")
    return found


def generate() -> str:
    """The whole page."""
    tool = tblgen()
    include = pathlib.Path(tool).resolve().parents[1] / "include"
    parts = [HEADER]
    for source in sorted((ROOT / "passes").glob("*/Passes.td")):
        with tempfile.NamedTemporaryFile(suffix=".md") as out:
            command = [tool, "-gen-pass-doc", f"-I{include}", f"-I{ROOT}", str(source), "-o", out.name]
            subprocess.run(command, check=True)
            text = pathlib.Path(out.name).read_text()
        text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
        parts.append("\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    page = ROOT / "docs" / "passes.md"
    text = generate()
    if parser.parse_args().check:
        return int(not page.exists() or page.read_text() != text)
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
