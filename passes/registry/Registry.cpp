#include "passes/registry/Registry.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Transforms/Passes.h"

namespace farrier {

#define FARRIER_PASS(name)                                                                                   \
  namespace name {                                                                                           \
  void registerPasses();                                                                                     \
  }
#include "passes/registry/Passes.inc"
#undef FARRIER_PASS

void registerDialects(mlir::DialectRegistry &registry) {
  registry.insert<mlir::func::FuncDialect, stablehlo::StableHLODialect>();
  stablehlo::registerPassThroughDialects(registry);
}

static bool registerOnce() {
  // MLIR's own. symbol-dce is absent on purpose: it deletes functions that only opaque attributes name.
  mlir::registerCSEPass();
  mlir::registerCanonicalizerPass();
  mlir::registerInlinerPass();
  mlir::registerLoopInvariantCodeMotionPass();
  mlir::registerStripDebugInfoPass();
#define FARRIER_PASS(name) name::registerPasses();
#include "passes/registry/Passes.inc"
#undef FARRIER_PASS
  return true;
}

void registerPasses() {
  static bool once = registerOnce();
  (void)once;
}

} // namespace farrier
