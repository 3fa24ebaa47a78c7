//===- Sink.cpp - loop-invariant values made where they are read ------------===//
//
// What a loop's body takes from outside, JAX carries through every iteration: XLA stores it once and reads it in
// each. Where it is much larger than what it is made from, by operations that fuse into whoever reads it, memory and
// bytes are saved by making it inside. XLA does not carry it out again: its code motion leaves what grows.
//
//===----------------------------------------------------------------------===//

#include "farrier/Analysis/Axis.h"
#include "passes/fusion/Build.h"
#include "passes/fusion/Fusion.h"
#include "passes/fusion/Loops.h"

#include "farrier/Analysis/OpCost.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/SinkRecipe.h"

using namespace mlir;

namespace farrier::fusion {

static Block &bodyOf(stablehlo::WhileOp loop) { return loop->getRegion(1).front(); }

/// Whether state `slot` of a loop is handed on unchanged and does not decide when the loop ends.
static bool isInvariant(stablehlo::WhileOp loop, unsigned slot) {
  return bodyOf(loop).getTerminator()->getOperand(slot) == bodyOf(loop).getArgument(slot) &&
         loop->getRegion(0).front().getArgument(slot).use_empty();
}

/// Whether everything that reads `value` inside `block` computes it where it reads it: XLA fuses it into
/// elementwise operations and reductions, not into products, kernels and loops, which want a buffer each time.
static bool isReadWhereItFuses(Value value, unsigned depth = 0) {
  bool isRead = false;
  for (OpOperand &use : value.getUses()) {
    Operation *user = use.getOwner();
    if (user->hasTrait<OpTrait::IsTerminator>())
      continue;
    isRead = true;
    if (auto loop = dyn_cast<stablehlo::WhileOp>(user)) {
      unsigned slot = use.getOperandNumber();
      if (!isInvariant(loop, slot) || !loop->getResult(slot).use_empty() || depth > 4 ||
          !isReadWhereItFuses(bodyOf(loop).getArgument(slot), depth + 1))
        return false;
      continue;
    }
    if (user->getBlock() != value.getParentBlock())
      return false;
    if (isa<stablehlo::ReduceOp>(user))
      continue;
    if (classify(user) != OpClass::Virtual)
      return false;
    // A view or a cast of it alone: what matters is who reads that.
    if (user->getNumOperands() == 1 && (depth > 8 || !isReadWhereItFuses(user->getResult(0), depth + 1)))
      return false;
  }
  return isRead;
}

/// Where the loop has this value already, or adds it.
static Value inside(stablehlo::WhileOp &loop, Value value) {
  for (unsigned slot = 0; slot < loop->getNumOperands(); ++slot)
    if (loop->getOperand(slot) == value && isInvariant(loop, slot))
      return bodyOf(loop).getArgument(slot);
  return addInvariant(loop, value);
}

static void replaceInside(stablehlo::WhileOp loop, unsigned slot, Value made) {
  bodyOf(loop).getArgument(slot).replaceUsesWithIf(
      made, [&](OpOperand &use) { return use.getOwner() != bodyOf(loop).getTerminator(); });
}

/// Whether a value is one number everywhere, known when compiling: XLA makes such values where they are read itself.
static bool isOneNumber(Value value, unsigned depth = 0) {
  Operation *op = value.getDefiningOp();
  if (auto constant = dyn_cast_or_null<stablehlo::ConstantOp>(op))
    return cast<ElementsAttr>(constant.getValue()).isSplat();
  bool keeps = op && op->getNumOperands() > 0 && depth < 16 &&
               (isElementwise(op) || isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp,
                                         stablehlo::TransposeOp, stablehlo::SliceOp>(op));
  return keeps && llvm::all_of(op->getOperands(), [&](Value operand) { return isOneNumber(operand, depth + 1); });
}

static bool sinkRecipe(stablehlo::WhileOp &loop, unsigned slot, const SizeFn &size) {
  Value value = loop->getOperand(slot);
  std::optional<SinkRecipe> recipe = SinkRecipe::of(value, size);
  if (!recipe || recipe->ops.empty() || isOneNumber(value) ||
      !isReadWhereItFuses(bodyOf(loop).getArgument(slot)))
    return false;
  for (Operation *op : recipe->ops)
    if (isForbidden(op))
      return false;
  IRMapping leaves;
  for (Value leaf : recipe->leaves)
    leaves.map(leaf, inside(loop, leaf));
  OpBuilder builder = OpBuilder::atBlockBegin(&bodyOf(loop));
  replaceInside(loop, slot, recipe->make(builder, value, leaves));
  return true;
}

/// A stack's cast: each iteration casts the slice that it reads. Only where nothing else reads the cast, which would
/// then be made as often as it is read, and where what is cast is there anyway.
static bool sinkCast(stablehlo::WhileOp &loop, unsigned slot) {
  auto cast = loop->getOperand(slot).getDefiningOp<stablehlo::ConvertOp>();
  if (!cast || !cast.getResult().hasOneUse() || isForbidden(cast))
    return false;
  Value stack = cast.getOperand();
  auto argument = dyn_cast<BlockArgument>(stack);
  RankedTensorType type = tensorType(stack);
  if (!argument || !argument.getOwner()->isEntryBlock() || !type || type.getRank() < 2 ||
      tripCount(loop) != type.getDimSize(0))
    return false;
  stablehlo::DynamicSliceOp slice;
  for (Operation *user : bodyOf(loop).getArgument(slot).getUsers()) {
    if (user == bodyOf(loop).getTerminator())
      continue;
    auto read = dyn_cast<stablehlo::DynamicSliceOp>(user);
    if (slice || !read || read.getOperand() != bodyOf(loop).getArgument(slot) ||
        read->getBlock() != &bodyOf(loop))
      return false;
    slice = read;
  }
  if (!slice || slice.getSliceSizes()[0] != 1 ||
      slice.getSliceSizes().drop_front() != type.getShape().drop_front())
    return false;
  Value whole = inside(loop, stack);
  OpBuilder builder(slice);
  Maker make(builder, cast.getLoc());
  Value part = make.dynamicSlice(whole, SmallVector<Value>(slice.getStartIndices()), slice.getSliceSizes());
  slice.getResult().replaceAllUsesWith(
      make.convert(part, tensorType(slice.getResult()).getElementType()));
  slice->erase();
  return true;
}

unsigned rewriteSinks(ModuleOp module, const Settings &settings) {
  SmallVector<stablehlo::WhileOp> loops;
  module.walk<WalkOrder::PreOrder>([&](stablehlo::WhileOp loop) { loops.push_back(loop); });
  unsigned applied = 0;
  for (stablehlo::WhileOp loop : loops) {
    if (loop->hasAttr("sdy.sharding") || isForbidden(loop) || tripCount(loop) == 1)
      continue;
    int64_t devices = isLocal(loop) ? 1 : settings.partitions, count = 0, bytes = 0;
    SizeFn size = [&](Value value) { return deviceSize(value) / devices; };
    // Loops are rebuilt as they take what is needed inside; slots keep their numbers.
    for (unsigned slot = 0, slots = loop->getNumOperands(); slot < slots; ++slot) {
      int64_t here = size(loop->getOperand(slot));
      if (here < settings.sinkBytes || !isInvariant(loop, slot))
        continue;
      // What it is behind the loop, it was before.
      loop->getResult(slot).replaceAllUsesWith(loop->getOperand(slot));
      if (!sinkRecipe(loop, slot, size) && !sinkCast(loop, slot))
        continue;
      ++count;
      bytes += here;
    }
    if (!count)
      continue;
    applied += count;
    remark::passed(loop->getLoc(), remark::RemarkOpts::name("sink").category("fusion"))
        << (Twine(count) + " values that the loop only reads are made inside").str()
        << remark::metric("Bytes", bytes)
        << remark::metric("Bound", "exact: the same operations on the same operands");
  }
  return applied;
}

} // namespace farrier::fusion
