//===- Stacks.cpp - stacks that loops fill need no first value ------------===//
//
// A scan's results start as zeros, which XLA writes to memory before the loop writes them again. Where every
// slice is provably written before anything can read it, the buffer needs no first value at all.
//
//===----------------------------------------------------------------------===//

#include "farrier/Analysis/Axis.h"
#include "passes/fusion/Build.h"
#include "passes/fusion/Fusion.h"
#include "passes/fusion/Loops.h"

#include "farrier/Analysis/OpCost.h"
#include "farrier/Analysis/ScalarEval.h"

#include "llvm/ADT/BitVector.h"

using namespace mlir;

namespace farrier::fusion {

/// Whether `index` takes every value from 0 to `count` - 1 while `loop` runs `count` times: proven by
/// evaluating it for each iteration.
static bool takesEveryValue(stablehlo::WhileOp loop, Value index, int64_t count) {
  Block &body = loop->getRegion(1).front();
  for (BlockArgument argument : body.getArguments()) {
    RankedTensorType type = tensorType(argument);
    if (!type || type.getRank() != 0 || !type.getElementType().isInteger() ||
        ScalarEval().evaluate(resolveInvariant(loop->getOperand(argument.getArgNumber()))) != 0)
      continue;
    Value next = body.getTerminator()->getOperand(argument.getArgNumber());
    llvm::BitVector taken(count);
    bool counts = true;
    for (int64_t i = 0; i < count && counts; ++i) {
      ScalarEval eval;
      eval.bind(argument, i);
      auto after = eval.evaluate(next), at = eval.evaluate(index);
      counts = after == i + 1 && at && *at >= 0 && *at < count;
      if (counts)
        taken.set(*at);
    }
    if (counts && taken.all())
      return true;
  }
  return false;
}

/// Whether `loop` writes every slice of its state `slot` and reads none.
static bool fills(stablehlo::WhileOp loop, unsigned slot) {
  Block &condition = loop->getRegion(0).front(), &body = loop->getRegion(1).front();
  BlockArgument argument = body.getArgument(slot);
  auto update = body.getTerminator()->getOperand(slot).getDefiningOp<stablehlo::DynamicUpdateSliceOp>();
  if (!update || update->getBlock() != &body || update.getOperand() != argument || !argument.hasOneUse() ||
      !update.getResult().hasOneUse() || !condition.getArgument(slot).use_empty())
    return false;
  RankedTensorType stack = tensorType(update.getResult()), slice = tensorType(update.getUpdate());
  if (stack.getRank() == 0 || slice.getDimSize(0) != 1 ||
      stack.getShape().drop_front() != slice.getShape().drop_front() ||
      tripCount(loop) != stack.getDimSize(0))
    return false;
  // Along the other dimensions the slice is whole, so that its start is 0 whatever it says: starts are
  // clamped.
  return takesEveryValue(loop, update.getStartIndices()[0], stack.getDimSize(0));
}

/// Whether a value is one number everywhere, known when compiling.
static bool isFill(Value value) {
  if (auto broadcast = value.getDefiningOp<stablehlo::BroadcastInDimOp>())
    return isFill(broadcast.getOperand());
  auto constant = value.getDefiningOp<stablehlo::ConstantOp>();
  auto elements = constant ? dyn_cast<DenseElementsAttr>(constant.getValue()) : DenseElementsAttr();
  return elements && elements.isSplat();
}

unsigned rewriteStacks(ModuleOp module, const Settings &settings) {
  unsigned applied = 0;
  module.walk([&](stablehlo::WhileOp loop) {
    if ((settings.partitions > 1 && !isLocal(loop)) || loop->hasAttr("sdy.sharding") || isForbidden(loop))
      return;
    int64_t count = 0, bytes = 0;
    for (unsigned slot = 0; slot < loop->getNumOperands(); ++slot) {
      RankedTensorType type = tensorType(loop->getOperand(slot));
      if (!type || !type.hasStaticShape() || !type.getElementType().isIntOrFloat())
        continue;
      int64_t size = type.getNumElements() * ((type.getElementTypeBitWidth() + 7) / 8);
      if (size < settings.minStackBytes || !isFill(loop->getOperand(slot)) || !fills(loop, slot))
        continue;
      OpBuilder builder(loop);
      Maker make(builder, loop->getOperand(slot).getLoc());
      Value buffer = make.op1("stablehlo.custom_call", type, {},
                              {make.attr("call_target_name", builder.getStringAttr("AllocateBuffer")),
                               make.attr("backend_config", builder.getDictionaryAttr({})),
                               make.attr("api_version", builder.getI32IntegerAttr(4))});
      loop->setOperand(slot, buffer);
      bytes += size;
      ++count;
    }
    if (!count)
      return;
    applied += count;
    remark::passed(loop->getLoc(), remark::RemarkOpts::name("stacks").category("fusion"))
        << (Twine(count) + " stacks that the loop fills are no longer filled with zeros first").str()
        << remark::metric("Bytes", bytes)
        << remark::metric("Bound", "exact: every slice is written before anything reads it");
  });
  return applied;
}

} // namespace farrier::fusion
