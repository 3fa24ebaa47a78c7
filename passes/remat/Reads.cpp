#include "passes/remat/Reads.h"

#include "passes/remat/LoopsPair.h"

#include "farrier/Analysis/OpInfo.h"

using namespace mlir;

namespace farrier::remat {

static constexpr size_t mostCopied = 64;

Reads::Reads(Operation *place, llvm::function_ref<Value(Value)> same, bool kernels)
    : place(place), same(same), dominance(place->getParentOp()->getParentOp()), builder(place), kernels(kernels) {}

Reads::~Reads() {
  if (!kept)
    for (Operation *op : llvm::reverse(made))
      op->erase();
}

Value Reads::at(Value value) {
  if (Value copied = copies.lookupOrNull(value))
    return copied;
  if (Value equal = same(value); dominance.properlyDominates(equal, place))
    return equal;
  Operation *op = value.getDefiningOp();
  if (!op || op->getNumRegions() || !isClonable(op) || made.size() == mostCopied ||
      (!kernels && classify(op) != OpClass::Virtual))
    return {};
  for (Value operand : op->getOperands()) {
    Value there = at(operand);
    if (!there)
      return {};
    copies.map(operand, there);
  }
  made.push_back(builder.clone(*op, copies));
  return copies.lookup(value);
}

Operation *Reads::copy(Operation *op) {
  IRMapping mapping;
  for (Value read : readsOf(op)) {
    Value there = at(read);
    if (!there)
      return nullptr;
    mapping.map(read, there);
  }
  made.push_back(builder.clone(*op, mapping));
  return made.back();
}

} // namespace farrier::remat
