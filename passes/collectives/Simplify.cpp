#include "passes/collectives/Passes.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/IR/Remarks.h"

namespace farrier::collectives {
#define GEN_PASS_DEF_SIMPLIFYCOLLECTIVES
#define GEN_PASS_REGISTRATION
#include "passes/collectives/Passes.h.inc"

using namespace mlir;

/// Collectives that move elements without looking at them.
static bool onlyMoves(Operation *op) {
  return isa<stablehlo::AllGatherOp, stablehlo::AllToAllOp, stablehlo::CollectivePermuteOp,
             stablehlo::CollectiveBroadcastOp>(op);
}

/// The one narrower type that all users convert the only result of `op` to; null if there is none.
static Type narrowType(Operation *op) {
  if (op->getNumOperands() != 1 || op->getNumResults() != 1 || op->use_empty())
    return {};
  auto from = dyn_cast<RankedTensorType>(op->getResult(0).getType());
  Type to;
  for (Operation *user : op->getUsers()) {
    auto convert = dyn_cast<stablehlo::ConvertOp>(user);
    if (!convert || stablehlo::hasUnmodelledAttrs(user))
      return {};
    Type type = cast<ShapedType>(convert->getResult(0).getType()).getElementType();
    if (to && type != to)
      return {};
    to = type;
  }
  auto source = from ? dyn_cast<FloatType>(from.getElementType()) : FloatType();
  auto target = dyn_cast<FloatType>(to);
  return source && target && target.getWidth() < source.getWidth() ? Type(target) : Type();
}

/// Whether every group has one device, as far as the attribute says.
static bool isAlone(Operation *op) {
  FailureOr<SmallVector<SmallVector<int64_t>>> groups = stablehlo::getReplicaGroups(op);
  if (failed(groups) || groups->empty())
    return false;
  return llvm::all_of(*groups, [](const SmallVector<int64_t> &group) { return group.size() == 1; });
}

namespace {
struct SimplifyCollectives : impl::SimplifyCollectivesBase<SimplifyCollectives>, CounterSet {
  SimplifyCollectives() = default;
  SimplifyCollectives(const SimplifyCollectives &other) : SimplifyCollectivesBase(other), CounterSet(other) {}

  Counter narrowed{this, "narrowed"};
  Counter removed{this, "removed"};

  void runOnOperation() override {
    SmallVector<Operation *> found;
    getOperation().walk([&](Operation *op) {
      if (onlyMoves(op) || isa<stablehlo::AllReduceOp, stablehlo::ReduceScatterOp>(op))
        found.push_back(op);
    });
    for (Operation *op : found) {
      if (stablehlo::hasUnmodelledAttrs(op))
        continue;
      if (!isa<stablehlo::CollectivePermuteOp>(op) && isAlone(op) &&
          op->getOperandTypes() == op->getResultTypes()) {
        remark::passed(op->getLoc(), remark::RemarkOpts::name("removed").category("collectives"))
            << "a collective over groups of one device is its operand";
        op->replaceAllUsesWith(op->getOperands());
        op->erase();
        ++removed;
      } else if (Type narrow = onlyMoves(op) ? narrowType(op) : Type()) {
        convertFirst(op, narrow);
        ++narrowed;
      }
    }
  }

private:
  static void convertFirst(Operation *op, Type narrow) {
    OpBuilder builder(op);
    Value operand = op->getOperand(0);
    auto before = cast<RankedTensorType>(operand.getType());
    auto after = cast<RankedTensorType>(op->getResult(0).getType());
    SmallVector<Operation *> converts(op->getUsers());
    // The conversion keeps the place in the user's program of the one it replaces.
    OperationState state(converts.front()->getLoc(), stablehlo::ConvertOp::getOperationName());
    state.addOperands(operand);
    state.addTypes(before.clone(narrow));
    Operation *convert = builder.create(state);
    op->setOperand(0, convert->getResult(0));
    op->getResult(0).setType(after.clone(narrow));
    for (Operation *user : converts) {
      user->getResult(0).replaceAllUsesWith(op->getResult(0));
      user->erase();
    }
    remark::passed(op->getLoc(), remark::RemarkOpts::name("narrowed").category("collectives"))
        << "its result is only used in a narrower type: converted before it is sent";
  }
};
} // namespace

void registerPasses() { registerFarrier_collectivesPasses(); }
} // namespace farrier::collectives
