#include "passes/remat/Gradients.h"
#include "passes/remat/Offload.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"

using namespace mlir;

namespace farrier::remat {

namespace {

class Mover {
public:
  Mover(Block &block, Operation *boundary, llvm::ArrayRef<HostMove> moves,
        llvm::function_ref<bool(Value)> tiable)
      : block(block), boundary(boundary), tiable(tiable), builder(block.getParentOp()) {
    for (const HostMove &move : moves)
      moved.insert(move.value);
  }

  void run(llvm::ArrayRef<HostMove> moves) {
    llvm::MapVector<Operation *, SmallVector<unsigned>> sent, fetched;
    SmallVector<Value> onHost(moves.size());
    for (auto [i, move] : llvm::enumerate(moves)) {
      if (llvm::none_of(move.value.getUsers(), [&](Operation *user) { return isAfter(user); }))
        continue;
      builder.setInsertionPointAfterValue(move.value);
      onHost[i] = place(builder, move.value.getLoc(), move.value, Placement::PinnedHost);
      sending.insert(onHost[i].getDefiningOp());
      sent[move.sentBefore].push_back(i);
      fetched[move.fetchedBefore].push_back(i);
    }
    for (auto &[position, which] : sent)
      waitUntilSent(position, which, moves, onHost);
    for (auto &[position, which] : fetched) {
      if (Value through = held(position))
        join(position, which, onHost, through, finishedProducts(boundary, position), [&](OpOperand &use) {
          Operation *here = inBlock(use.getOwner());
          return here && !here->isBeforeInBlock(position) && !here->hasTrait<OpTrait::IsTerminator>();
        });
      builder.setInsertionPoint(position);
      for (unsigned i : which) {
        Value value = moves[i].value;
        Value back = place(builder, value.getLoc(), onHost[i], Placement::Device);
        value.replaceUsesWithIf(back, [&](OpOperand &use) {
          return isAfter(use.getOwner()) && !sending.contains(use.getOwner());
        });
      }
    }
  }

private:
  Operation *inBlock(Operation *op) const { return block.findAncestorOpInBlock(*op); }
  /// Whether it belongs to the backward part.
  bool isAfter(Operation *op) const {
    Operation *here = inBlock(op);
    return here && boundary->isBeforeInBlock(here);
  }

  /// Whether a kernel at or after `position`, of the forward part if asked for, reads the value itself or
  /// what fuses into its readers. Forward parts also hold what only the backward part reads: to hold that
  /// back holds back nothing.
  bool leadsOn(Value value, Operation *position, bool forward) const {
    llvm::SetVector<Value> reached;
    reached.insert(value);
    for (unsigned at = 0; at < reached.size(); ++at)
      for (Operation *user : reached[at].getUsers()) {
        Operation *here = inBlock(user);
        if (!here || here->isBeforeInBlock(position) || here->hasTrait<OpTrait::IsTerminator>() ||
            (forward && isAfter(here)) || sending.contains(here))
          continue;
        if (classify(here) == OpClass::Materialised && !isa<stablehlo::OptimizationBarrierOp>(here))
          return true;
        reached.insert(here->result_begin(), here->result_end());
      }
    return false;
  }

  /// The latest value before `position` that what follows waits for.
  Value held(Operation *position) const {
    for (Operation *op = position->getPrevNode(); op; op = op->getPrevNode())
      for (Value value : op->getResults())
        if (!moved.contains(value) && tiable(value) && leadsOn(value, position, /*forward=*/false))
          return value;
    return Value();
  }

  /// The biggest operand of a kernel that the block itself makes, or null. What the backward part reads of moved
  /// values is fetched right before it, and not there yet.
  Value operandOf(Operation *kernel) const {
    Value best;
    for (Value operand : kernel->getOperands()) {
      Operation *maker = operand.getDefiningOp();
      if (!maker || maker->getBlock() != &block || (moved.contains(operand) && isAfter(kernel)))
        continue;
      if (!best || byteSize(operand.getType()) > byteSize(best.getType()))
        best = operand;
    }
    return best;
  }

  /// The first kernel at or after `position` that later ones wait for.
  Operation *nextKernel(Operation *position) const {
    for (Operation *op = position; op && !op->hasTrait<OpTrait::IsTerminator>(); op = op->getNextNode()) {
      if (classify(op) != OpClass::Materialised || isa<stablehlo::OptimizationBarrierOp>(op) ||
          placementOf(op) || !operandOf(op))
        continue;
      bool forward = !isAfter(op);
      if (llvm::any_of(op->getResults(),
                       [&](Value result) { return leadsOn(result, op->getNextNode(), forward); }))
        return op;
    }
    return nullptr;
  }

  /// Lets the first kernel at or after `position` wait for transfers. What it reads is joined, and only
  /// there: any other value may be one that is not read again before the backward part, which holds back
  /// nothing.
  void waitUntilSent(Operation *position, llvm::ArrayRef<unsigned> which, llvm::ArrayRef<HostMove> moves,
                     SmallVectorImpl<Value> &onHost) {
    Operation *kernel = nextKernel(position);
    if (!kernel)
      return;
    SmallVector<unsigned> first;
    for (unsigned i : which)
      if (!moves[i].fetchedBefore->isBeforeInBlock(kernel))
        first.push_back(i);
    if (!first.empty())
      join(kernel, first, onHost, operandOf(kernel), {},
           [&](OpOperand &use) { return use.getOwner() == kernel; });
  }

  /// A barrier before `position` over what lies on the host, a value whose uses that `there` accepts read the
  /// barrier's, and what must be finished by then.
  void join(Operation *position, llvm::ArrayRef<unsigned> which, SmallVectorImpl<Value> &onHost,
            Value through, llvm::ArrayRef<Value> done, llvm::function_ref<bool(OpOperand &)> there) {
    SmallVector<Value> operands;
    for (unsigned i : which)
      operands.push_back(onHost[i]);
    for (Value value : done)
      if (value != through)
        operands.push_back(value);
    operands.push_back(through);
    builder.setInsertionPoint(position);
    auto barrier = stablehlo::OptimizationBarrierOp::create(
        builder, position->getLoc(), TypeRange(ValueRange(operands)), ValueRange(operands), DictionaryAttr());
    for (auto [at, i] : llvm::enumerate(which))
      onHost[i] = barrier->getResult(at);
    for (Value value : done)
      if (value != through)
        value.replaceUsesWithIf(barrier->getResult(llvm::find(operands, value) - operands.begin()),
                                [&](OpOperand &use) {
                                  Operation *here = inBlock(use.getOwner());
                                  return here != barrier && !here->isBeforeInBlock(barrier);
                                });
    Value tied = barrier->getResults().back();
    through.replaceUsesWithIf(tied, [&](OpOperand &use) { return use.getOwner() != barrier && there(use); });
  }

  Block &block;
  Operation *boundary;
  llvm::function_ref<bool(Value)> tiable;
  OpBuilder builder;
  llvm::DenseSet<Value> moved;
  llvm::DenseSet<Operation *> sending; ///< right after the value, which may be the boundary's
};

} // namespace

void moveToHost(Block &block, Operation *boundary, llvm::ArrayRef<HostMove> moves,
                llvm::function_ref<bool(Value)> tiable) {
  Mover(block, boundary, moves, tiable).run(moves);
}

} // namespace farrier::remat
