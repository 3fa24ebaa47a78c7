"""lit configuration: farrier-opt and FileCheck on *.mlir."""

import os
import pathlib
import shutil

import lit.formats

root = pathlib.Path(__file__).resolve().parents[2]

config.name = "farrier"  # noqa: F821 - lit defines config
config.test_format = lit.formats.ShTest(execute_external=False)  # noqa: F821
config.suffixes = [".mlir"]  # noqa: F821
config.test_source_root = os.path.dirname(__file__)  # noqa: F821
config.test_exec_root = str(root / "build" / "lit")  # noqa: F821

filecheck = shutil.which("FileCheck") or shutil.which("FileCheck-22") or "/usr/lib/llvm-22/bin/FileCheck"
# Another build's: lit --param farrier-opt=PATH.
driver = lit_config.params.get("farrier-opt", str(root / "python" / "farrier" / "_bin" / "farrier-opt"))  # noqa: F821
config.substitutions.append(("farrier-opt", driver))  # noqa: F821
config.substitutions.append(("FileCheck", filecheck))  # noqa: F821
