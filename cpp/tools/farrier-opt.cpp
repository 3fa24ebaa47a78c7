// farrier-opt: mlir-opt with farrier's dialects and passes. `hlo-opt` is the Python front over it.

#include "passes/registry/Registry.h"

#include "mlir/Tools/mlir-opt/MlirOptMain.h"

int main(int argc, char **argv) {
  mlir::DialectRegistry registry;
  farrier::registerDialects(registry);
  farrier::registerPasses();
  return mlir::asMainReturnCode(
      mlir::MlirOptMain(argc, argv, "farrier modular optimizer driver\n", registry));
}
