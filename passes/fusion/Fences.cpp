//===- Fences.cpp - products that XLA must not merge ----------------------===//
//
// XLA's DotMerger turns products that share an operand into one larger product. Their results then exist
// together: what a program computes chunk by chunk comes out whole. A barrier around the shared operand makes
// it another value for the merger, and is gone before code is generated.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Build.h"
#include "passes/fusion/Fusion.h"

using namespace mlir;

namespace farrier::fusion {

unsigned rewriteFences(ModuleOp module) {
  SmallVector<stablehlo::DotGeneralOp> fenced;
  module.walk([&](stablehlo::DotGeneralOp dot) {
    if (hint(dot, "farrier.fence") == "on")
      fenced.push_back(dot);
  });
  unsigned applied = 0;
  for (stablehlo::DotGeneralOp dot : fenced) {
    if (dot.getLhs() == dot.getRhs())
      continue;
    // Behind one barrier with the other operand: barriers around equal operands would be merged, and then the
    // products after all. Both are needed before the product anyway, so that nothing waits longer.
    OpBuilder builder(dot);
    Maker make(builder, dot.getLoc());
    Operation *barrier =
        make.op("stablehlo.optimization_barrier", dot->getOperandTypes(), dot->getOperands());
    for (unsigned i : {0u, 1u})
      dot->setOperand(i, barrier->getResult(i));
    ++applied;
    remark::passed(dot.getLoc(), remark::RemarkOpts::name("fence").category("fusion"))
        << "is not merged with other products, as a hint asks"
        << remark::metric("Bound", "exact: the same product of the same operands");
  }
  return applied;
}

} // namespace farrier::fusion
