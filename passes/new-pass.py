"""Lays out a new pass: `make new-pass NAME=my-pass`.

Writes passes/<my_pass>/ (Passes.td, MyPass.cpp, CMakeLists.txt) and tests/lit/<my_pass>/basic.mlir, and adds
the one line that registers it to passes/CMakeLists.txt. What it makes builds and its test passes: it counts
the operations of each function and changes nothing, for you to replace.
"""

import argparse
import pathlib
import re
import sys

PASSES_TD = """\
#ifndef FARRIER_PASSES_{UPPER}
#define FARRIER_PASSES_{UPPER}

include "mlir/Pass/PassBase.td"

def {Camel} : Pass<"farrier-{kebab}", "::mlir::ModuleOp"> {{
  let summary = "Count the operations of every function";
  let description = [{{
    Say here what the pass does, what it costs, and what it does not do; then show a program before and after.

    Input:

    ```mlir
    %0 = stablehlo.add %a, %b : tensor<4xf32>
    ```

    Output: the same, with the remark `2 operations` on the function.
  }}];
  let options = [
    Option<"minimum", "minimum", "int64_t", /*default=*/"0", "Smallest number of operations worth a remark">
  ];
}}

#endif // FARRIER_PASSES_{UPPER}
"""

SOURCE = """\
#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Remarks.h"
#include "mlir/Pass/Pass.h"

namespace farrier::{snake} {{
#define GEN_PASS_DECL_{UPPERCAMEL}
#define GEN_PASS_DEF_{UPPERCAMEL}
#define GEN_PASS_REGISTRATION
#include "passes/{snake}/Passes.h.inc"

namespace {{
struct {Camel} : impl::{Camel}Base<{Camel}>, CounterSet {{
  using Base = impl::{Camel}Base<{Camel}>;
  using Base::Base;
  // MLIR clones passes; counters are not copied, a clone counts for itself.
  {Camel}() = default;
  {Camel}(const {Camel} &other) : Base(other), CounterSet(other) {{}}

  Counter functions{{this, "functions"}};

  void runOnOperation() override {{
    getOperation().walk([&](mlir::func::FuncOp function) {{
      int64_t count = 0;
      function.getBody().walk([&](mlir::Operation *) {{ ++count; }});
      ++functions;
      if (count >= minimum)
        mlir::remark::analysis(function.getLoc(),
                               mlir::remark::RemarkOpts::name("count").category("farrier-{kebab}"))
            << std::to_string(count) + " operations";
    }});
  }}
}};
}} // namespace

// Called by the registry; passes and queries of this folder are registered here.
void registerPasses() {{ registerFarrier_{snake}Passes(); }}
}} // namespace farrier::{snake}
"""

CMAKE = "farrier_add_pass({snake} {Camel}.cpp)\n"

LIT = """\
// RUN: farrier-opt %s --farrier-{kebab}="minimum=2" --remarks-filter-analyse=".*" \\
// RUN:   --remark-format=emitRemark --mlir-print-op-generic 2>&1 | FileCheck %s

// CHECK: remark: {{{{.*}}}}2 operations
// CHECK: "stablehlo.add"
func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {{
  %0 = "stablehlo.add"(%a, %a) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}}
"""


def lay_out(name: str, root: pathlib.Path) -> list[pathlib.Path]:
    """Writes the files of the pass `name` below `root`; returns them.

    Raises:
      ValueError: the name is no identifier, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise ValueError(f"{name!r} is no name for a pass: lower-case words joined by hyphens")
    snake, kebab = name.replace("-", "_"), name.replace("_", "-")
    camel = "".join(word.capitalize() for word in snake.split("_"))
    words = {
        "snake": snake,
        "kebab": kebab,
        "Camel": camel,
        "UPPER": snake.upper(),
        "UPPERCAMEL": camel.upper(),
    }
    folder, tests = root / "passes" / snake, root / "tests" / "lit" / snake
    if folder.exists():
        raise ValueError(f"{folder} exists")
    files = {
        folder / "Passes.td": PASSES_TD,
        folder / f"{camel}.cpp": SOURCE,
        folder / "CMakeLists.txt": CMAKE,
        tests / "basic.mlir": LIT,
    }
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.format(**words))
    registration = root / "passes" / "CMakeLists.txt"
    text = registration.read_text()
    marker = re.search(r"^# Passes, one a line.*\n", text, re.MULTILINE)
    assert marker, "passes/CMakeLists.txt lost its marker line"
    line = f"add_subdirectory({snake})\n"
    registration.write_text(text[: marker.end()] + line + text[marker.end() :])
    return [*files, registration]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1])
    args = parser.parse_args()
    try:
        for path in lay_out(args.name, args.root):
            print(path.relative_to(args.root))
    except ValueError as error:
        print(f"new-pass: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
