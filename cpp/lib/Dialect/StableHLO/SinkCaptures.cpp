//===- SinkCaptures.cpp - make reductions' regions self-contained ----------===//

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/IRMapping.h"

using namespace mlir;
using namespace farrier::stablehlo;

/// Clones `value`'s definition to the start of `block` when it needs nothing but other clonable definitions;
/// null otherwise. Definitions are pure, so cloning one changes no result.
static Value sink(Value value, Block &block, Operation *before, IRMapping &mapping, int64_t &cloned) {
  if (Value done = mapping.lookupOrNull(value))
    return done;
  Operation *definition = value.getDefiningOp();
  if (!definition || definition->getNumRegions() || !isPure(definition))
    return {};
  for (Value operand : definition->getOperands())
    if (!sink(operand, block, before, mapping, cloned))
      return {};
  OpBuilder builder(&block, Block::iterator(before));
  builder.clone(*definition, mapping);
  ++cloned;
  return mapping.lookup(value);
}

int64_t farrier::stablehlo::sinkCaptures(Operation *root) {
  int64_t cloned = 0;
  root->walk<WalkOrder::PreOrder>([&](Operation *op) {
    if (!hasClosedRegions(op))
      return;
    for (Region &region : op->getRegions()) {
      if (region.empty() || region.front().empty())
        continue;
      Block &block = region.front();
      // Fixed before anything is cloned: clones go in front of it, in the order they are needed.
      Operation *first = &block.front();
      IRMapping mapping;
      region.walk([&](Operation *nested) {
        for (OpOperand &use : nested->getOpOperands()) {
          Region *home = use.get().getParentRegion();
          if (region.isAncestor(home))
            continue;
          if (Value inside = sink(use.get(), block, first, mapping, cloned))
            use.set(inside);
        }
      });
    }
  });
  return cloned;
}
