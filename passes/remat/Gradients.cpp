#include "passes/remat/Gradients.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/Sharding.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/SetVector.h"

using namespace mlir;

namespace farrier::remat {

SmallVector<Value> finishedProducts(Operation *boundary, Operation *position) {
  Block &block = *position->getBlock();
  llvm::SetVector<Value> all;
  for (Operation *op = boundary->getNextNode(); op && op != position; op = op->getNextNode()) {
    if (!isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp>(op) || deviceShare(op) != 1)
      continue;
    // Layout changes and casts that follow come along: what is joined is what crosses `position`.
    llvm::SetVector<Value> reached, crossing;
    reached.insert(op->getResult(0));
    bool read = false;
    for (unsigned at = 0; at < reached.size() && !read; ++at)
      for (Operation *user : reached[at].getUsers()) {
        Operation *here = block.findAncestorOpInBlock(*user);
        if (here && !here->isBeforeInBlock(position))
          crossing.insert(reached[at]);
        else if (here && classify(here) == OpClass::Virtual)
          reached.insert(here->result_begin(), here->result_end());
        else
          read = true;
      }
    if (!read)
      all.insert(crossing.begin(), crossing.end());
  }
  return all.takeVector();
}

void finishProducts(Operation *boundary, Operation *position, OpOperand &through) {
  SmallVector<Value> joined;
  for (Value value : finishedProducts(boundary, position))
    if (value != through.get() && !llvm::is_contained(position->getOperands(), value))
      joined.push_back(value);
  if (joined.empty())
    return;
  joined.push_back(through.get());
  Block &block = *position->getBlock();
  OpBuilder builder(position);
  auto barrier = stablehlo::OptimizationBarrierOp::create(builder, position->getLoc(), TypeRange(ValueRange(joined)),
                                                          ValueRange(joined), DictionaryAttr());
  auto isAfter = [&](OpOperand &use) {
    Operation *here = block.findAncestorOpInBlock(*use.getOwner());
    return here && here != barrier && !here->isBeforeInBlock(barrier);
  };
  for (unsigned i = 0; i + 1 < joined.size(); ++i)
    joined[i].replaceUsesWithIf(barrier->getResult(i), isAfter);
  through.set(barrier->getResults().back());
}

} // namespace farrier::remat
