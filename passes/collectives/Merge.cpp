#include "passes/collectives/Passes.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/OperationSupport.h"
#include "mlir/IR/Remarks.h"

namespace farrier::collectives {
#define GEN_PASS_DEF_MERGECOLLECTIVES
#include "passes/collectives/Passes.h.inc"

using namespace mlir;

static bool isCollective(Operation *op) {
  return isa<stablehlo::AllGatherOp, stablehlo::AllReduceOp, stablehlo::ReduceScatterOp, stablehlo::AllToAllOp,
             stablehlo::CollectivePermuteOp, stablehlo::CollectiveBroadcastOp>(op);
}

/// Whether `a` and `b` do the same on the same devices: all attributes but the channel, and the regions.
static bool doTheSame(Operation *a, Operation *b) {
  auto without = [](Operation *op) {
    NamedAttrList attributes(op->getAttrDictionary());
    attributes.erase("channel_handle");
    return attributes.getDictionary(op->getContext());
  };
  if (a->getName() != b->getName() || a->getResultTypes() != b->getResultTypes() || without(a) != without(b) ||
      a->getNumRegions() != b->getNumRegions())
    return false;
  for (auto [left, right] : llvm::zip_equal(a->getRegions(), b->getRegions()))
    if (!OperationEquivalence::isRegionEquivalentTo(&left, &right, OperationEquivalence::IgnoreLocations))
      return false;
  return true;
}

/// Whether combining a value with itself by the region of `op` gives the value: the largest, the smallest, all, any.
static bool isIdempotent(Operation *op) {
  Block &block = op->getRegion(0).front();
  if (block.getNumArguments() != 2 || !llvm::hasNItems(block, 2))
    return false;
  Operation &combine = block.front();
  return isa<stablehlo::MaxOp, stablehlo::MinOp, stablehlo::AndOp, stablehlo::OrOp>(combine) &&
         combine.getOperand(0) != combine.getOperand(1) &&
         llvm::all_of(combine.getOperands(), [&](Value v) { return v.getParentBlock() == &block; }) &&
         block.back().getNumOperands() == 1 && block.back().getOperand(0) == combine.getResult(0);
}

/// The producer of the only operand of `op`, if it is a `Producer` in the same block and has this one reader.
template <typename Producer> static Producer onlyProducer(Operation *op) {
  auto producer = op->getNumOperands() == 1 ? op->getOperand(0).getDefiningOp<Producer>() : Producer();
  if (!producer || producer->getBlock() != op->getBlock() || !producer->hasOneUse() ||
      stablehlo::hasUnmodelledAttrs(producer))
    return {};
  return producer;
}

namespace {
struct MergeCollectives : impl::MergeCollectivesBase<MergeCollectives>, CounterSet {
  MergeCollectives() = default;
  MergeCollectives(const MergeCollectives &other) : MergeCollectivesBase(other), CounterSet(other) {}
  using MergeCollectivesBase::MergeCollectivesBase;

  Counter repeated{this, "repeated-collectives"};
  Counter idempotent{this, "idempotent-reductions"};
  Counter joined{this, "joined-scatters"};
  Counter composed{this, "composed-permutes"};

  void runOnOperation() override {
    SmallVector<Operation *> found;
    getOperation().walk([&](Operation *op) {
      if (isCollective(op) && op->getNumOperands() > 0 && !stablehlo::hasUnmodelledAttrs(op))
        found.push_back(op);
    });
    for (Operation *op : found) {
      if (Operation *earlier = earlierTwin(op)) {
        replace(op, earlier->getResults(), "an earlier collective has the same result");
        ++repeated;
      } else if (isRepeatedReduction(op)) {
        replace(op, op->getOperands(), "all devices of the group have this value already");
        ++idempotent;
      } else if (regroup && joinScatter(op)) {
        ++joined;
      } else if (composePermutes(op)) {
        ++composed;
      }
    }
  }

private:
  static void replace(Operation *op, ValueRange values, StringRef why) {
    remark::passed(op->getLoc(), remark::RemarkOpts::name("merged").category("collectives")) << why.str();
    op->replaceAllUsesWith(values);
    op->erase();
  }

  /// The first collective of the block that does the same to the same operands.
  static Operation *earlierTwin(Operation *op) {
    Operation *first = nullptr;
    for (Operation *user : op->getOperand(0).getUsers())
      if (user != op && user->getBlock() == op->getBlock() && user->isBeforeInBlock(op) &&
          user->getOperands() == op->getOperands() && !stablehlo::hasUnmodelledAttrs(user) && doTheSame(user, op) &&
          (!first || user->isBeforeInBlock(first)))
        first = user;
    return first;
  }

  static bool isRepeatedReduction(Operation *op) {
    if (!isa<stablehlo::AllReduceOp>(op) || op->getNumOperands() != 1)
      return false;
    auto before = op->getOperand(0).getDefiningOp<stablehlo::AllReduceOp>();
    return before && before->getNumOperands() == 1 && !stablehlo::hasUnmodelledAttrs(before) &&
           doTheSame(before, op) && isIdempotent(op);
  }

  /// A gather of what a reduction has just scattered: one reduction that leaves the whole everywhere.
  static bool joinScatter(Operation *op) {
    auto gather = dyn_cast<stablehlo::AllGatherOp>(op);
    auto scatter = gather ? onlyProducer<stablehlo::ReduceScatterOp>(op) : stablehlo::ReduceScatterOp();
    if (!scatter || gather.getAllGatherDim() != scatter.getScatterDimension() ||
        op->getAttr("replica_groups") != scatter->getAttr("replica_groups") ||
        op->getAttr("use_global_device_ids") != scatter->getAttr("use_global_device_ids") ||
        op->getResult(0).getType() != scatter->getOperand(0).getType())
      return false;
    OpBuilder builder(op);
    OperationState state(op->getLoc(), stablehlo::AllReduceOp::getOperationName(), scatter->getOperands(),
                         op->getResultTypes());
    for (StringRef name : {"replica_groups", "channel_handle", "use_global_device_ids"})
      if (Attribute value = scatter->getAttr(name))
        state.addAttribute(name, value);
    state.addRegion()->takeBody(scatter->getRegion(0));
    Operation *reduction = builder.create(state);
    replace(op, reduction->getResults(), "scattered and gathered again: one reduction for both");
    scatter->erase();
    return true;
  }

  /// Two permutes, one after the other, are one.
  static bool composePermutes(Operation *op) {
    auto second = dyn_cast<stablehlo::CollectivePermuteOp>(op);
    auto first = second ? onlyProducer<stablehlo::CollectivePermuteOp>(op) : stablehlo::CollectivePermuteOp();
    if (!first || static_cast<bool>(first.getChannelHandle()) != static_cast<bool>(second.getChannelHandle()))
      return false;
    auto pairs = [](stablehlo::CollectivePermuteOp permute) {
      return SmallVector<int64_t>(permute.getSourceTargetPairs().getValues<int64_t>());
    };
    DenseMap<int64_t, int64_t> sentBy; // by receiver
    SmallVector<int64_t> all = pairs(first);
    for (size_t k = 0; k + 1 < all.size(); k += 2)
      sentBy[all[k + 1]] = all[k];
    SmallVector<int64_t> through;
    all = pairs(second);
    // A device that nobody sends to has zeros, and so has one that hears of such a device only.
    for (size_t k = 0; k + 1 < all.size(); k += 2)
      if (auto sender = sentBy.find(all[k]); sender != sentBy.end())
        through.append({sender->second, all[k + 1]});
    if (through.empty())
      return false;
    auto type = RankedTensorType::get({static_cast<int64_t>(through.size() / 2), 2},
                                      IntegerType::get(op->getContext(), 64));
    op->setAttr("source_target_pairs", DenseIntElementsAttr::get(type, ArrayRef<int64_t>(through)));
    op->setOperands(first->getOperands());
    remark::passed(op->getLoc(), remark::RemarkOpts::name("merged").category("collectives"))
        << "two permutes, one after the other, are one";
    first->erase();
    return true;
  }
};
} // namespace
} // namespace farrier::collectives
