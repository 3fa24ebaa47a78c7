#include "passes/remat/LoopsPair.h"

#include "farrier/Analysis/OpInfo.h"

#include "mlir/IR/OperationSupport.h"

#include <map>

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

/// Numbers values so that equal numbers mean equal values. Keys are compared, never ordered into the output.
class Numbers {
public:
  using Key = std::vector<uint64_t>;
  enum Tag : uint64_t { Outside, Evaluated, Operand, Result };

  unsigned fresh() { return next++; }
  unsigned of(Key key) {
    auto [it, isNew] = numbers.try_emplace(std::move(key), next);
    next += isNew;
    return it->second;
  }

private:
  std::map<Key, unsigned> numbers;
  unsigned next = 0;
};

uint64_t bits(const void *pointer) { return reinterpret_cast<uintptr_t>(pointer); }

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

class BodyNumberer {
public:
  BodyNumberer(Numbers &numbers, DenseMap<Value, unsigned> &numberOf)
      : numbers(numbers), numberOf(numberOf) {}

  unsigned valueNumber(Value value, Block &body) {
    auto it = numberOf.find(value);
    if (it != numberOf.end())
      return it->second;
    // Not of this body: the same value for both loops.
    unsigned number = numbers.of({Numbers::Outside, bits(value.getAsOpaquePointer())});
    numberOf[value] = number;
    return number;
  }

  /// `order[t]`: the iteration of this loop that belongs to forward iteration t.
  void number(WhileLoop &loop, llvm::ArrayRef<int64_t> order, llvm::function_ref<bool(Operation *)> preset) {
    Block &body = loop.body();
    auto numberEvaluated = [&](Value value) {
      const std::vector<int64_t> *list = loop.evaluate(value);
      if (!list)
        return false;
      Numbers::Key key{Numbers::Evaluated, bits(value.getType().getAsOpaquePointer())};
      for (int64_t iteration : order)
        key.push_back(static_cast<uint64_t>((*list)[iteration]));
      numberOf[value] = numbers.of(std::move(key));
      return true;
    };
    for (BlockArgument arg : body.getArguments()) {
      if (numberEvaluated(arg))
        continue;
      if (loop.kinds[arg.getArgNumber()] == WhileLoop::Kind::Invariant)
        numberOf[arg] = valueNumber(loop.op.getOperand()[arg.getArgNumber()], body);
      else
        numberOf[arg] = numbers.fresh();
    }
    for (Operation &op : body.without_terminator()) {
      if (preset(&op))
        continue;
      if (op.getNumResults() == 1 && numberEvaluated(op.getResult(0)))
        continue;
      if (isa<stablehlo::OptimizationBarrierOp>(op)) {
        for (auto [operand, result] : llvm::zip(op.getOperands(), op.getResults()))
          numberOf[result] = valueNumber(operand, body);
        continue;
      }
      if (!isClonable(&op)) {
        for (Value result : op.getResults())
          numberOf[result] = numbers.fresh();
        continue;
      }
      Numbers::Key key{Numbers::Operand, bits(op.getName().getAsOpaquePointer()),
                       bits(op.getDiscardableAttrDictionary().getAsOpaquePointer()),
                       bits(op.getPropertiesAsAttribute().getAsOpaquePointer())};
      for (Type type : op.getResultTypes())
        key.push_back(bits(type.getAsOpaquePointer()));
      for (Value read : readsOf(&op))
        key.push_back(valueNumber(read, body));
      if (op.getNumRegions())
        key.push_back(regionNumber(&op));
      unsigned whole = numbers.of(std::move(key));
      for (auto [i, result] : llvm::enumerate(op.getResults()))
        numberOf[result] = numbers.of({Numbers::Result, whole, i});
    }
  }

private:
  /// Equal for operations whose regions do the same with equal captured values.
  unsigned regionNumber(Operation *op) {
    for (auto [other, number] : withRegions)
      if (sameRegions(other, op))
        return number;
    withRegions.push_back({op, numbers.fresh()});
    return withRegions.back().second;
  }

  bool sameRegions(Operation *a, Operation *b) {
    if (a->getName() != b->getName() || a->getNumRegions() != b->getNumRegions())
      return false;
    DenseMap<Value, Value> inside;
    auto same = [&](Value left, Value right) {
      if (auto it = inside.find(left); it != inside.end())
        return success(it->second == right);
      auto l = numberOf.find(left), r = numberOf.find(right);
      if (l == numberOf.end() || r == numberOf.end())
        return success(left == right);
      return success(l->second == r->second);
    };
    auto mark = [&](Value left, Value right) { inside[left] = right; };
    for (auto [left, right] : llvm::zip(a->getRegions(), b->getRegions()))
      if (!OperationEquivalence::isRegionEquivalentTo(&left, &right, same, mark,
                                                      OperationEquivalence::IgnoreLocations))
        return false;
    return true;
  }

  Numbers &numbers;
  DenseMap<Value, unsigned> &numberOf;
  std::vector<std::pair<Operation *, unsigned>> withRegions;
};

} // namespace

BodyNumbering::BodyNumbering(WhileLoop &forward, WhileLoop &backward, bool reversed,
                             llvm::ArrayRef<Residual> residuals, bool replan) {
  Numbers numbers;
  DenseMap<Value, unsigned> numberOf;
  BodyNumberer numberer(numbers, numberOf);
  std::vector<int64_t> order(forward.trips), back(forward.trips);
  for (int64_t t = 0; t < forward.trips; ++t) {
    order[t] = t;
    back[t] = reversed ? forward.trips - 1 - t : t;
  }

  // Forward: a reshape [...] -> [1, ...] of what a stack takes counts as the value itself for readers that
  // undo it.
  numberer.number(forward, order, [](Operation *) { return false; });
  DenseMap<unsigned, Value> first; // the first forward value of a number
  auto remember = [&](Value value) {
    auto [it, isNew] = first.try_emplace(numberOf[value], value);
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
      unwrapped[numberOf[value]] = wrap->getOperand(0);
  };
  for (const Residual &residual : residuals) {
    unsigned number = numberOf[residual.slice];
    for (Operation *read : residual.reads)
      readNumber[read] = number;
    unwrap(residual.slice);
    if (Value value = unwrapped.lookup(number))
      if (auto parts = value.getDefiningOp<stablehlo::ConcatenateOp>();
          parts && parts->getBlock() == &forward.body()) {
        joined[numberOf[value]] = parts;
        llvm::for_each(parts.getInputs(), unwrap);
      }
  }
  llvm::SmallPtrSet<Operation *, 16> splits; // take one of several values out of a read
  numberer.number(backward, back, [&](Operation *op) {
    if (auto it = readNumber.find(op); it != readNumber.end()) {
      numberOf[op->getResult(0)] = it->second;
      return true;
    }
    if (auto slice = dyn_cast<stablehlo::SliceOp>(op))
      if (auto number = numberOf.find(slice.getOperand()); number != numberOf.end())
        if (auto parts = joined.find(number->second); parts != joined.end())
          if (Value part = partOf(parts->second, slice)) {
            numberOf[slice.getResult()] = numberOf[part];
            splits.insert(op);
            return true;
          }
    if (op->getNumOperands() == 1 && isUnitReshape(op))
      if (auto number = numberOf.find(op->getOperand(0)); number != numberOf.end())
        if (Value value = unwrapped.lookup(number->second);
            value && value.getType() == op->getResult(0).getType()) {
          numberOf[op->getResult(0)] = numberOf[value];
          return true;
        }
    return false;
  });

  // What follows from reads alone, and is the same as something forward, need not stay.
  for (Operation &op : backward.body().without_terminator()) {
    bool isRead = readNumber.contains(&op);
    bool depends = isRead || llvm::any_of(readsOf(&op), [&](Value v) { return known.contains(v); });
    bool unwraps = op.getNumOperands() == 1 && (isUnitReshape(&op) || splits.contains(&op)) && depends;
    bool isBarrier = isa<stablehlo::OptimizationBarrierOp>(op);
    for (Value result : op.getResults())
      if (depends && first.contains(numberOf[result]) && (isRead || unwraps || replan))
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
        boundary.insert({result, first.lookup(numberOf[result])});
    }
}

Value BodyNumbering::representative(Value value) const {
  auto it = representatives.find(value);
  return it == representatives.end() ? value : it->second;
}

} // namespace farrier::remat
