#include "farrier/Analysis/Kernels.h"

#include "farrier/Analysis/Sharding.h"

#include "mlir/IR/Builders.h"

using namespace mlir;

namespace farrier {

static constexpr llvm::StringLiteral kernelAttr = "farrier.kernel", wrapper = "CustomSPMDPartitioning";

StringRef kernelOf(stablehlo::CustomCallOp call) {
  auto said = dyn_cast_or_null<StringAttr>(call->getDiscardableAttr(kernelAttr));
  return said && call.getCallTargetName() == wrapper ? said.getValue() : call.getCallTargetName();
}

void setKernels(ModuleOp module, const llvm::json::Object &kernels) {
  Builder builder(module.getContext());
  forEachNumbered(module, [&](Operation *op, int64_t number) {
    auto call = dyn_cast<stablehlo::CustomCallOp>(op);
    if (!call || call.getCallTargetName() != wrapper)
      return;
    if (auto name = kernels.getString(std::to_string(number)))
      op->setDiscardableAttr(kernelAttr, builder.getStringAttr(*name));
  });
}

void dropKernels(ModuleOp module) {
  module.walk([](stablehlo::CustomCallOp call) { call->removeDiscardableAttr(kernelAttr); });
}

} // namespace farrier
