#include "passes/collectives/Passes.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/IR/Remarks.h"

namespace farrier::collectives {
#define GEN_PASS_DEF_CHAINCOLLECTIVES
#include "passes/collectives/Passes.h.inc"

using namespace mlir;

/// Bytes of all results; failure where one has no static size.
static FailureOr<int64_t> resultBytes(Operation *op) {
  int64_t total = 0;
  for (Type type : op->getResultTypes()) {
    auto tensor = dyn_cast<RankedTensorType>(type);
    if (!tensor || !tensor.hasStaticShape() || !tensor.getElementType().isIntOrFloat())
      return failure();
    total += (tensor.getNumElements() * tensor.getElementType().getIntOrFloatBitWidth() + 7) / 8;
  }
  return total;
}

namespace {
struct ChainCollectives : impl::ChainCollectivesBase<ChainCollectives>, CounterSet {
  ChainCollectives() = default;
  ChainCollectives(const ChainCollectives &other) : ChainCollectivesBase(other), CounterSet(other) {}
  using ChainCollectivesBase::ChainCollectivesBase;

  Counter buckets{this, "buckets"};
  Counter chained{this, "chained"};

  void runOnOperation() override {
    SmallVector<Block *> blocks;
    getOperation().walk([&](Block *block) { blocks.push_back(block); });
    for (Block *block : blocks)
      chain(*block);
  }

private:
  void chain(Block &block) {
    SmallVector<Operation *> reductions;
    for (Operation &op : block)
      if (isa<stablehlo::AllReduceOp, stablehlo::ReduceScatterOp>(op))
        if (FailureOr<int64_t> bytes = resultBytes(&op); succeeded(bytes) && *bytes < combinableBytes)
          reductions.push_back(&op);
    Value previous; // a result of the bucket before the current one
    Value last;
    int64_t filled = 0;
    for (Operation *op : reductions) {
      int64_t bytes = *resultBytes(op);
      if (!last || filled + bytes > bucketBytes) {
        previous = last;
        filled = 0;
        ++buckets;
      }
      filled += bytes;
      if (previous)
        makeWait(op, previous);
      last = op->getResult(0);
    }
  }

  void makeWait(Operation *op, Value previous) {
    OpBuilder builder(op);
    SmallVector<Value> operands{op->getOperand(0), previous};
    OperationState state(op->getLoc(), stablehlo::OptimizationBarrierOp::getOperationName());
    state.addOperands(operands);
    state.addTypes({operands[0].getType(), operands[1].getType()});
    Operation *barrier = builder.create(state);
    op->setOperand(0, barrier->getResult(0));
    ++chained;
    remark::passed(op->getLoc(), remark::RemarkOpts::name("chained").category("collectives"))
        << "waits for the bucket before, so that XLA does not join them";
  }
};
} // namespace
} // namespace farrier::collectives
