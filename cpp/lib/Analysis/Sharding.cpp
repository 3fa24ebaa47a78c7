#include "farrier/Analysis/Sharding.h"

#include "farrier/Analysis/Gathered.h"
#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

static constexpr llvm::StringLiteral numberAttr = "farrier.op", moduleAttr = "farrier.sharded";

static DenseI64ArrayAttr recorded(Operation *op) {
  return dyn_cast_or_null<DenseI64ArrayAttr>(op->getDiscardableAttr(shardsAttr));
}

int64_t shards(Value value) {
  if (auto result = dyn_cast<OpResult>(value)) {
    DenseI64ArrayAttr attribute = recorded(result.getOwner());
    return attribute ? attribute[result.getResultNumber()] : 1;
  }
  auto argument = cast<BlockArgument>(value);
  Operation *parent = argument.getOwner()->getParentOp();
  if (auto function = dyn_cast_or_null<func::FuncOp>(parent)) {
    auto attribute = function.getArgAttrOfType<IntegerAttr>(argument.getArgNumber(), shardsAttr);
    return attribute ? attribute.getInt() : 1;
  }
  if (isa_and_nonnull<stablehlo::WhileOp>(parent))
    return shards(parent->getResult(argument.getArgNumber()));
  return 1; // a manual computation's arguments are one device's; other regions have scalars
}

int64_t deviceSize(Value value) {
  int64_t bytes = byteSize(value), count = shards(value);
  return count == 1 ? bytes : (bytes + count - 1) / count;
}

double deviceShare(Operation *op) {
  int64_t most = 1;
  for (Value operand : op->getOperands())
    most = std::max(most, shards(operand));
  for (Value result : op->getResults())
    most = std::max(most, shards(result));
  return 1.0 / static_cast<double>(most);
}

void forEachNumbered(ModuleOp module, llvm::function_ref<void(Operation *, int64_t)> visit) {
  int64_t number = 0;
  for (auto function : module.getOps<func::FuncOp>())
    if (function.isPublic())
      function.getBody().walk<WalkOrder::PreOrder>([&](Operation *op) { visit(op, number++); });
}

void numberOperations(ModuleOp module) {
  Builder builder(module.getContext());
  forEachNumbered(module, [&](Operation *op, int64_t number) {
    op->setDiscardableAttr(numberAttr, builder.getI64IntegerAttr(number));
  });
}

std::optional<int64_t> numberOf(Operation *op) {
  auto attribute = dyn_cast_or_null<IntegerAttr>(op->getDiscardableAttr(numberAttr));
  return attribute ? std::optional(attribute.getInt()) : std::nullopt;
}

LogicalResult setShards(ModuleOp module, const llvm::json::Object &given) {
  const llvm::json::Array *arguments = given.getArray("arguments");
  const llvm::json::Object *operations = given.getObject("operations");
  if (!arguments || !operations)
    return module.emitError("shards need \"arguments\" and \"operations\"");
  Builder builder(module.getContext());
  auto count = [](const llvm::json::Value &value) {
    return std::max<int64_t>(1, value.getAsInteger().value_or(1));
  };
  for (auto function : module.getOps<func::FuncOp>())
    if (function.isPublic() && function.getNumArguments() == arguments->size())
      for (auto [i, value] : llvm::enumerate(*arguments))
        function.setArgAttr(i, shardsAttr, builder.getI64IntegerAttr(count(value)));
  const llvm::json::Object *gathered = given.getObject("gathered");
  forEachNumbered(module, [&](Operation *op, int64_t number) {
    const llvm::json::Array *bytes = gathered ? gathered->getArray(std::to_string(number)) : nullptr;
    if (bytes && bytes->size() == 2) {
      auto at = [&](size_t i) { return std::max<int64_t>(0, (*bytes)[i].getAsInteger().value_or(0)); };
      op->setDiscardableAttr(gatheredAttr, builder.getDenseI64ArrayAttr({at(0), at(1)}));
    }
    const llvm::json::Array *results = operations->getArray(std::to_string(number));
    if (!results || results->size() != op->getNumResults() || results->empty())
      return;
    llvm::SmallVector<int64_t> counts;
    for (const llvm::json::Value &value : *results)
      counts.push_back(count(value));
    op->setDiscardableAttr(shardsAttr, builder.getDenseI64ArrayAttr(counts));
  });
  module->setDiscardableAttr(moduleAttr, builder.getUnitAttr());
  inferShards(module);
  return success();
}

static int64_t inferred(Operation *op, Value result) {
  if (isa<stablehlo::DynamicUpdateSliceOp>(op))
    return std::max(shards(op->getOperand(0)), shards(op->getOperand(1)));
  if (placementOf(op))
    return shards(op->getOperand(0));
  if (isa<stablehlo::SliceOp, stablehlo::DynamicSliceOp, stablehlo::ReshapeOp, stablehlo::BroadcastInDimOp,
          stablehlo::TransposeOp>(op))
    return shards(op->getOperand(0));
  if (classify(op) != OpClass::Virtual && !isa<stablehlo::OptimizationBarrierOp>(op))
    return 1;
  int64_t most = 1;
  auto type = dyn_cast<ShapedType>(result.getType());
  for (Value operand : op->getOperands())
    if (auto from = dyn_cast<ShapedType>(operand.getType());
        from && type && from.hasStaticShape() && type.hasStaticShape() && from.getShape() == type.getShape())
      most = std::max(most, shards(operand));
  return most;
}

void inferShards(ModuleOp module) {
  if (!module->hasAttr(moduleAttr))
    return;
  Builder builder(module.getContext());
  std::function<void(Region &)> visit = [&](Region &region) {
    for (Block &block : region)
      for (Operation &op : block) {
        bool known = static_cast<bool>(recorded(&op)) || op.getNumResults() == 0;
        llvm::SmallVector<int64_t> counts;
        auto record = [&] { op.setDiscardableAttr(shardsAttr, builder.getDenseI64ArrayAttr(counts)); };
        auto loop = dyn_cast<stablehlo::WhileOp>(op);
        if (loop && !known) {
          // Stacks start as zeros, which say nothing; the slices that the body writes do.
          for (Value operand : op.getOperands())
            counts.push_back(shards(operand));
          record();
        }
        for (Region &inner : op.getRegions())
          visit(inner);
        if (known)
          continue;
        if (loop) {
          for (auto [count, value] : llvm::zip(counts, loop.getBody().front().getTerminator()->getOperands()))
            count = std::max(count, shards(value));
          record();
        } else {
          for (Value result : op.getResults())
            counts.push_back(inferred(&op, result));
          if (llvm::any_of(counts, [](int64_t count) { return count != 1; }))
            record();
        }
      }
  };
  for (auto function : module.getOps<func::FuncOp>())
    visit(function.getBody());
}

int64_t partitionsOf(Operation *op) {
  auto module = dyn_cast<ModuleOp>(op);
  if (!module)
    module = op->getParentOfType<ModuleOp>();
  auto count = module ? module->getAttrOfType<IntegerAttr>("mhlo.num_partitions") : IntegerAttr();
  return count ? std::max<int64_t>(1, count.getInt()) : 1;
}

void dropShards(ModuleOp module) {
  if (!module->hasAttr(moduleAttr))
    return;
  module->removeDiscardableAttr(moduleAttr);
  for (auto function : module.getOps<func::FuncOp>())
    for (unsigned i = 0; i < function.getNumArguments(); ++i)
      function.removeArgAttr(i, shardsAttr);
  module.walk([](Operation *op) {
    op->removeDiscardableAttr(shardsAttr);
    op->removeDiscardableAttr(gatheredAttr);
  });
}

} // namespace farrier
