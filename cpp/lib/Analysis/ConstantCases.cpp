#include "farrier/Analysis/ConstantCases.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

using namespace mlir;

namespace farrier {

/// The block of the branch that is always taken; else null. An index out of range takes the last one.
static Block *taken(stablehlo::CaseOp op) {
  ElementsAttr index = splatOf(op->getOperand(0));
  if (op->getNumRegions() == 0 || !index || !index.getElementType().isInteger())
    return nullptr;
  int64_t at = index.getSplatValue<APInt>().getSExtValue(), last = op->getNumRegions() - 1;
  Region &region = op->getRegion(at < 0 || at > last ? last : at);
  return region.hasOneBlock() && region.front().getNumArguments() == 0 ? &region.front() : nullptr;
}

void inlineConstantCases(ModuleOp module) {
  SmallVector<stablehlo::CaseOp> cases; // an index may be what another one gives
  module.walk<WalkOrder::PreOrder>([&](stablehlo::CaseOp op) { cases.push_back(op); });
  for (stablehlo::CaseOp op : cases) {
    Block *block = op ? taken(op) : nullptr;
    if (!block)
      continue;
    Operation *end = block->getTerminator();
    for (auto [result, value] : llvm::zip_equal(op->getResults(), end->getOperands()))
      result.replaceAllUsesWith(value);
    end->erase();
    op->getBlock()->getOperations().splice(op->getIterator(), block->getOperations());
    // Cases in branches that are not taken go with them.
    for (stablehlo::CaseOp &other : cases)
      if (other && other != op && op->isProperAncestor(other))
        other = nullptr;
    op->erase();
  }
}

} // namespace farrier
