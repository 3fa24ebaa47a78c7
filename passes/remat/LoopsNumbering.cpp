#include "passes/remat/LoopsPair.h"
#include "passes/remat/ValueNumbering.h"

#include "farrier/Analysis/OpInfo.h"

using namespace mlir;

namespace farrier::remat {

SmallVector<Value> readsOf(Operation *op) {
  llvm::SetVector<Value> reads;
  reads.insert(op->operand_begin(), op->operand_end());
  if (op->getNumRegions())
    op->walk([&](Operation *inner) {
      for (Value operand : inner->getOperands())
        if (Operation *parent = operand.getParentRegion()->getParentOp(); !op->isAncestor(parent))
          reads.insert(operand);
    });
  return SmallVector<Value>(reads.begin(), reads.end());
}

Value partOf(stablehlo::ConcatenateOp joined, stablehlo::SliceOp slice) {
  auto whole = dyn_cast<RankedTensorType>(joined.getType());
  auto dim = static_cast<int64_t>(joined.getDimension());
  if (!whole || !whole.hasStaticShape() || llvm::any_of(slice.getStrides(), [](int64_t stride) { return stride != 1; }))
    return {};
  for (int64_t d = 0; d < whole.getRank(); ++d)
    if (d != dim && (slice.getStartIndices()[d] != 0 || slice.getLimitIndices()[d] != whole.getDimSize(d)))
      return {};
  int64_t start = 0;
  for (Value part : joined.getInputs()) {
    auto type = dyn_cast<RankedTensorType>(part.getType());
    if (!type || !type.hasStaticShape())
      return {};
    int64_t end = start + type.getDimSize(dim);
    if (slice.getStartIndices()[dim] == start && slice.getLimitIndices()[dim] == end &&
        part.getType() == slice.getType())
      return part;
    start = end;
  }
  return {};
}

namespace {

/// The shape-only operations by which a slice [1, ...] becomes a value and back.
bool isUnitReshape(Operation *op) {
  if (auto reshape = dyn_cast<stablehlo::ReshapeOp>(op))
    return true;
  auto broadcast = dyn_cast<stablehlo::BroadcastInDimOp>(op);
  if (!broadcast)
    return false;
  auto from = dyn_cast<RankedTensorType>(broadcast.getOperand().getType());
  auto to = dyn_cast<RankedTensorType>(broadcast.getType());
  return from && to && from.hasStaticShape() && to.hasStaticShape() &&
         from.getNumElements() == to.getNumElements() && llvm::is_sorted(broadcast.getBroadcastDimensions());
}

/// `order[t]`: the iteration of this loop that belongs to forward iteration t.
void numberLoop(ValueNumbering &numbers, WhileLoop &loop, llvm::ArrayRef<int64_t> order,
                llvm::function_ref<bool(Operation *)> preset) {
  Block &body = loop.body();
  auto numberEvaluated = [&](Value value) {
    const std::vector<int64_t> *list = loop.evaluate(value);
    if (!list)
      return false;
    SmallVector<uint64_t> ordered;
    for (int64_t iteration : order)
      ordered.push_back(static_cast<uint64_t>((*list)[iteration]));
    numbers.set(value, numbers.ofEvaluated(value.getType(), ordered));
    return true;
  };
  for (BlockArgument arg : body.getArguments()) {
    if (numberEvaluated(arg))
      continue;
    if (loop.kinds[arg.getArgNumber()] == WhileLoop::Kind::Invariant)
      numbers.set(arg, numbers[loop.op.getOperand()[arg.getArgNumber()]]);
    else
      numbers.setFresh(arg);
  }
  for (Operation &op : body.without_terminator())
    if (!preset(&op) && !(op.getNumResults() == 1 && numberEvaluated(op.getResult(0))))
      numbers.number(&op);
}

} // namespace

BodyNumbering::BodyNumbering(WhileLoop &forward, WhileLoop &backward, bool reversed,
                             llvm::ArrayRef<Residual> residuals, const LoopOptions &options,
                             ValueNumbering outer)
    : numbers(std::move(outer)) {
  std::vector<int64_t> order(forward.trips), back(forward.trips);
  for (int64_t t = 0; t < forward.trips; ++t) {
    order[t] = t;
    back[t] = reversed ? forward.trips - 1 - t : t;
  }

  // Forward: a reshape [...] -> [1, ...] of what a stack takes counts as the value itself for readers that
  // undo it.
  numberLoop(numbers, forward, order, [](Operation *) { return false; });
  auto remember = [&](Value value) {
    auto [it, isNew] = first.try_emplace(numbers[value], value);
    representatives[value] = it->second;
  };
  for (BlockArgument arg : forward.body().getArguments())
    remember(arg);
  for (Operation &op : forward.body().without_terminator())
    for (Value result : op.getResults())
      remember(result);

  DenseMap<Operation *, unsigned> readNumber;
  DenseMap<unsigned, Value> unwrapped; // number of a written slice -> the value before its reshape
  DenseMap<unsigned, stablehlo::ConcatenateOp> joined; // what an unrolled scan writes in one slice
  auto unwrap = [&](Value value) {
    Operation *wrap = value.getDefiningOp();
    if (wrap && wrap->getBlock() == &forward.body() && isUnitReshape(wrap))
      unwrapped[numbers[value]] = wrap->getOperand(0);
  };
  for (const Residual &residual : residuals) {
    unsigned number = numbers[residual.slice];
    for (Operation *read : residual.reads)
      readNumber[read] = number;
    unwrap(residual.slice);
    if (Value value = unwrapped.lookup(number))
      if (auto parts = value.getDefiningOp<stablehlo::ConcatenateOp>();
          parts && parts->getBlock() == &forward.body()) {
        joined[numbers[value]] = parts;
        llvm::for_each(parts.getInputs(), unwrap);
      }
  }
  llvm::SmallPtrSet<Operation *, 16> splits; // take one of several values out of a read
  numberLoop(numbers, backward, back, [&](Operation *op) {
    if (auto it = readNumber.find(op); it != readNumber.end()) {
      numbers.set(op->getResult(0), it->second);
      return true;
    }
    if (auto slice = dyn_cast<stablehlo::SliceOp>(op))
      if (auto parts = joined.find(numbers[slice.getOperand()]); parts != joined.end())
        if (Value part = partOf(parts->second, slice)) {
          numbers.set(slice.getResult(), numbers[part]);
          splits.insert(op);
          return true;
        }
    if (op->getNumOperands() == 1 && isUnitReshape(op))
      if (Value value = unwrapped.lookup(numbers[op->getOperand(0)]);
          value && value.getType() == op->getResult(0).getType()) {
        numbers.set(op->getResult(0), numbers[value]);
        return true;
      }
    return false;
  });

  // What is no other in each iteration is not worth a stack.
  llvm::DenseSet<Value> varying;
  for (BlockArgument arg : backward.body().getArguments())
    if (backward.kinds[arg.getArgNumber()] != WhileLoop::Kind::Invariant)
      varying.insert(arg);
  // What follows from reads alone, or from what both loops are given and is shared, and is the same as
  // something forward, need not stay.
  for (Operation &op : backward.body().without_terminator()) {
    bool isRead = readNumber.contains(&op);
    SmallVector<Value> reads = readsOf(&op);
    if (llvm::any_of(reads, [&](Value v) { return varying.contains(v); }))
      varying.insert(op.result_begin(), op.result_end());
    bool depends =
        isRead || llvm::any_of(reads, [&](Value v) { return known.contains(v); }) ||
        (options.shared && op.getNumResults() && varying.contains(op.getResult(0)) && options.shared(&op));
    bool unwraps = op.getNumOperands() == 1 && (isUnitReshape(&op) || splits.contains(&op)) && depends;
    bool isBarrier = isa<stablehlo::OptimizationBarrierOp>(op);
    for (Value result : op.getResults())
      if (depends && first.contains(numbers[result]) && (isRead || unwraps || options.replan))
        known.insert(result);
    if (op.getNumResults() && llvm::all_of(op.getResults(), [&](Value v) { return known.contains(v); })) {
      replaced.insert(&op);
      recomputes |= !isRead && !unwraps && !isBarrier;
    }
  }
  for (Operation &op : backward.body().without_terminator())
    for (Value result : op.getResults()) {
      if (!known.contains(result))
        continue;
      bool stays = llvm::any_of(result.getUses(), [&](OpOperand &use) {
        Operation *top = backward.body().findAncestorOpInBlock(*use.getOwner());
        // A barrier that also holds other values back is rebuilt without this one.
        if (isa<stablehlo::OptimizationBarrierOp>(top) &&
            known.contains(top->getResult(use.getOperandNumber())))
          return false;
        return !replaced.contains(top);
      });
      if (stays)
        boundary.insert({result, first.lookup(numbers[result])});
    }
}

Value BodyNumbering::forwardValue(Value backwardValue) {
  Value forward = first.lookup(numbers[backwardValue]);
  return forward ? forward : backwardValue;
}

Value BodyNumbering::representative(Value value) const {
  auto it = representatives.find(value);
  return it == representatives.end() ? value : it->second;
}

} // namespace farrier::remat
