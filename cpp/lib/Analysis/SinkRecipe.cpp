#include "farrier/Analysis/SinkRecipe.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

using namespace mlir;

namespace farrier {

/// A recipe runs in every iteration; beyond this it is a computation, not a mask.
static constexpr unsigned kMostOps = 64;
/// Leaves stay alive through the loop in the value's stead: together they are a small part of it.
static constexpr int64_t kLeafShare = 16;

static bool collect(Value value, int64_t leafBytes, const SizeFn &size, SinkRecipe &recipe) {
  Operation *op = value.getDefiningOp();
  if (op && recipe.ops.contains(op))
    return true;
  auto constant = dyn_cast_or_null<stablehlo::ConstantOp>(op);
  if (!constant && size(value) <= leafBytes) {
    recipe.leaves.insert(value);
    return true;
  }
  if (!op || op->getNumResults() != 1 || classify(op) != OpClass::Virtual || !isClonable(op) ||
      isa<stablehlo::DynamicSliceOp, stablehlo::ConcatenateOp>(op) || recipe.ops.size() >= kMostOps)
    return false;
  if (constant && !cast<ElementsAttr>(constant.getValue()).isSplat())
    return false;
  for (Value operand : op->getOperands())
    if (!collect(operand, leafBytes, size, recipe))
      return false;
  recipe.ops.insert(op);
  return true;
}

std::optional<SinkRecipe> SinkRecipe::of(Value value, const SizeFn &size) {
  int64_t bytes = size(value);
  // Several leaves that are small enough alone may be too much together: then from smaller ones.
  for (int64_t share = kLeafShare; share <= 256 * kLeafShare; share *= 4) {
    SinkRecipe recipe;
    if (!collect(value, bytes / share, size, recipe))
      return std::nullopt;
    int64_t leaves = 0;
    for (Value leaf : recipe.leaves)
      leaves += size(leaf);
    if (leaves * kLeafShare <= bytes)
      return recipe;
  }
  return std::nullopt;
}

Value SinkRecipe::make(OpBuilder &builder, Value value, IRMapping mapping) const {
  for (Operation *op : ops)
    builder.clone(*op, mapping);
  return mapping.lookup(value);
}

} // namespace farrier
