//===- farrier-opt.cpp - mlir-opt with farrier's dialects and passes -------===//
//
// All of mlir-opt's flags. Two differences: dialects that nobody registered pass through without a flag, and
// after the last pass, reductions' regions are made self-contained again (see passes/sink_captures).
// `hlo-opt` is the Python front.
//
//===----------------------------------------------------------------------===//

#include "passes/registry/Registry.h"
#include "passes/sink_captures/Passes.h"

#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Support/FileUtilities.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"
#include "llvm/Support/InitLLVM.h"
#include "llvm/Support/SourceMgr.h"
#include "llvm/Support/ToolOutputFile.h"

using namespace mlir;

int main(int argc, char **argv) {
  llvm::InitLLVM init(argc, argv);
  DialectRegistry registry;
  farrier::registerDialects(registry);
  farrier::registerPasses();
  auto [input, output] =
      registerAndParseCLIOptions(argc, argv, "farrier modular optimizer driver\n", registry);

  MlirOptMainConfig config = MlirOptMainConfig::createFromCLOptions();
  MlirOptMainConfig fromFlags = config;
  config.allowUnregisteredDialects(true);
  config.setPassPipelineSetupFn([&](PassManager &manager) -> LogicalResult {
    if (failed(fromFlags.setupPassPipeline(manager)))
      return failure();
    if (!manager.empty())
      manager.addPass(farrier::sink_captures::createSinkCaptures());
    return success();
  });
  if (config.shouldListPasses()) {
    printRegisteredPasses();
    return EXIT_SUCCESS;
  }

  std::string error;
  std::unique_ptr<llvm::MemoryBuffer> source = openInputFile(input, &error);
  std::unique_ptr<llvm::ToolOutputFile> destination = source ? openOutputFile(output, &error) : nullptr;
  if (!source || !destination) {
    llvm::errs() << error << "\n";
    return EXIT_FAILURE;
  }
  if (failed(MlirOptMain(destination->os(), std::move(source), registry, config)))
    return EXIT_FAILURE;
  destination->keep();
  return EXIT_SUCCESS;
}
