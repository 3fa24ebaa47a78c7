#include "passes/remat/LoopsPair.h"

#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/StringMap.h"

using namespace mlir;

namespace farrier::remat {

namespace {

/// Matches what one forward loop writes with what later loops of its block read.
class Matcher {
public:
  Matcher(const LoopOptions &options, MissedFn missed) : options(options), missed(missed) {}

  std::unique_ptr<MatchedPair> match(stablehlo::WhileOp forwardOp,
                                     const llvm::SmallPtrSetImpl<Operation *> &taken) {
    // The backward loop that reads the most of what this one writes.
    llvm::MapVector<Operation *, int64_t> readers;
    for (OpResult result : forwardOp->getResults())
      for (OpOperand *use : usesOf(result))
        if (Operation *user = use->getOwner(); isa<stablehlo::WhileOp>(user) &&
                                               user->getBlock() == forwardOp->getBlock() &&
                                               !taken.contains(user))
          readers[user] += options.size(result);
    if (readers.empty() && !options.shared) {
      if (Operation *glued = gluedStack(forwardOp))
        missed(glued, "a loop's stacks are left alone: they are read in other groups than they are written, as "
                      "those of a scan that is unrolled with a remainder");
      return nullptr;
    }
    std::string reason;
    std::optional<WhileLoop> forward = analyse(forwardOp, reason);
    if (!forward) {
      missed(forwardOp, "a loop that may keep residuals is left alone: " + reason);
      return nullptr;
    }
    std::unique_ptr<MatchedPair> best;
    for (auto [user, bytes] : readers) {
      std::unique_ptr<MatchedPair> pair = matchWith(*forward, cast<stablehlo::WhileOp>(user));
      if (pair && (!best || pair->stackBytes() > best->stackBytes()))
        best = std::move(pair);
    }
    return best || !options.shared ? std::move(best) : share(*forward, taken);
  }

private:
  /// The uses of a stack, seen through reshapes: an unrolled scan flattens its stacks and splits them again,
  /// which by row-major order is nothing where the type comes back.
  static SmallVector<OpOperand *> usesOf(Value stack) {
    SmallVector<OpOperand *> uses;
    SmallVector<Value> values{stack};
    while (!values.empty())
      for (OpOperand &use : values.pop_back_val().getUses()) {
        if (auto reshape = dyn_cast<stablehlo::ReshapeOp>(use.getOwner()))
          values.push_back(reshape.getResult());
        else
          uses.push_back(&use);
      }
    return uses;
  }
  static bool feeds(Value stack, Operation *loop) {
    return llvm::any_of(usesOf(stack), [&](OpOperand *use) { return use->getOwner() == loop; });
  }

  /// Where a stack of the loop is joined with more and a part of that goes to a loop; null if nowhere.
  static Operation *gluedStack(stablehlo::WhileOp loop) {
    for (OpResult result : loop->getResults())
      for (OpOperand *use : usesOf(result))
        if (auto joined = dyn_cast<stablehlo::ConcatenateOp>(use->getOwner()))
          for (Operation *user : joined->getUsers())
            if (isa<stablehlo::SliceOp>(user) &&
                llvm::any_of(usesOf(user->getResult(0)),
                             [](OpOperand *read) { return isa<stablehlo::WhileOp>(read->getOwner()); }))
              return joined;
    return nullptr;
  }

  std::optional<WhileLoop> analyse(stablehlo::WhileOp op, std::string &reason) {
    return WhileLoop::analyse(op, reason);
  }

  /// A loop that has no stack of this one, but computes again what both are given the operands of: the first
  /// of those that are given the most of what this one is.
  std::unique_ptr<MatchedPair> share(const WhileLoop &forward,
                                     const llvm::SmallPtrSetImpl<Operation *> &taken) {
    auto body = forward.body().without_terminator();
    if (llvm::none_of(body, [&](Operation &op) { return options.shared(&op); }) || isSharded(forward.op))
      return nullptr;
    llvm::MapVector<Operation *, int64_t> given;
    for (unsigned i = 0; i < forward.size(); ++i) {
      Value operand = forward.op->getOperand(i);
      if (forward.kinds[i] != WhileLoop::Kind::Invariant)
        continue;
      for (OpOperand *use : usesOf(operand))
        if (Operation *user = use->getOwner(); isa<stablehlo::WhileOp>(user) && !taken.contains(user) &&
                                               user->getBlock() == forward.op->getBlock() &&
                                               forward.op->isBeforeInBlock(user))
          given[user] += options.size(operand);
    }
    int64_t most = 0;
    for (auto [user, bytes] : given)
      most = std::max(most, bytes);
    for (auto [user, bytes] : given) {
      std::string reason;
      std::optional<WhileLoop> backward;
      if (bytes < most || isSharded(user) || !(backward = analyse(cast<stablehlo::WhileOp>(user), reason)) ||
          !runAlike(forward, *backward))
        continue;
      for (bool reversed : {true, false}) {
        auto pair = std::make_unique<MatchedPair>(forward.copy(), backward->copy(), reversed,
                                                  std::vector<Residual>(), options);
        if (pair->recomputesAlready())
          return pair;
      }
    }
    return nullptr;
  }

  std::unique_ptr<MatchedPair> matchWith(const WhileLoop &forward, stablehlo::WhileOp backwardOp) {
    std::string reason;
    std::optional<WhileLoop> analysed = analyse(backwardOp, reason);
    bool anyStack = llvm::any_of(llvm::seq(0u, forward.size()), [&](unsigned i) {
      return forward.kinds[i] == WhileLoop::Kind::Stack && feeds(forward.op->getResult(i), backwardOp);
    });
    if (!anyStack)
      return nullptr;
    if (!analysed) {
      missed(backwardOp, "a loop that reads residuals is left alone: " + reason);
      return nullptr;
    }
    for (stablehlo::WhileOp loop : {stablehlo::WhileOp(forward.op), backwardOp})
      if (isSharded(loop)) {
        missed(loop, "a loop is left alone: it carries one sharding for each result");
        return nullptr;
      }
    WhileLoop F = forward.copy(), B = std::move(*analysed);
    if (!runAlike(F, B)) {
      missed(backwardOp, "a loop that reads residuals is left alone: it and the loop that writes them do not "
                         "count the same iterations one by one");
      return nullptr;
    }
    std::vector<Reading> readings;
    for (unsigned i = 0; i < F.size(); ++i)
      if (F.kinds[i] == WhileLoop::Kind::Stack && !F.op->getResult(i).use_empty())
        if (std::optional<Reading> reading = read(F, B, i))
          readings.push_back(std::move(*reading));
    auto [reversed, residuals] = inOneOrder(std::move(readings), F, missed);
    if (residuals.empty())
      return nullptr;
    return std::make_unique<MatchedPair>(std::move(F), std::move(B), reversed, std::move(residuals), options);
  }

  std::optional<Reading> read(WhileLoop &F, WhileLoop &B, unsigned i) {
    OpResult stack = F.op->getResult(i);
    auto leave = [&](StringRef why) { missed(F.write(i), ("a residual stack is left alone: " + why).str()); };
    if (!feeds(stack, B.op))
      return std::nullopt; // an output, or another loop's
    SmallVector<unsigned> operands;
    for (OpOperand *use : usesOf(stack)) {
      if (use->getOwner() != B.op || use->get().getType() != stack.getType()) {
        leave("something else reads it too");
        return std::nullopt;
      }
      operands.push_back(use->getOperandNumber());
    }
    return readingOf(F, B, i, operands, options.size(stack), leave);
  }

  const LoopOptions &options;
  MissedFn missed;
};

} // namespace

std::optional<Reading> readingOf(WhileLoop &F, WhileLoop &B, unsigned i, llvm::ArrayRef<unsigned> operands,
                                 int64_t bytes, llvm::function_ref<void(StringRef)> leave) {
  auto left = [&](StringRef why) {
    leave(why);
    return std::nullopt;
  };
  stablehlo::DynamicUpdateSliceOp write = F.write(i);
  Type stack = F.op->getResult(i).getType();
  std::optional<std::vector<int64_t>> written =
      F.slots(write.getStartIndices(), stack, write.getUpdate().getType());
  if (!written)
    return left("it is not proven which slice an iteration writes");
  std::vector<int64_t> sorted(*written);
  llvm::sort(sorted);
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    return left("two iterations write the same slice");

  Reading reading{{}, true, true};
  reading.residual.forward = i;
  reading.residual.slice = write.getUpdate();
  reading.residual.bytes = bytes;
  for (unsigned j : operands) {
    if (B.kinds[j] != WhileLoop::Kind::Invariant || !B.op->getResult(j).use_empty() ||
        !B.cond().getArgument(j).use_empty())
      return left("the loop that reads it changes it or hands it on");
    reading.residual.backward.push_back(j);
    for (OpOperand &inner : B.body().getArgument(j).getUses()) {
      if (inner.getOwner() == B.terminator())
        continue;
      auto slice = dyn_cast<stablehlo::DynamicSliceOp>(inner.getOwner());
      if (!slice || slice->getBlock() != &B.body() || inner.getOperandNumber() != 0)
        return left("it is read other than slice by slice");
      std::optional<std::vector<int64_t>> slots = B.slots(slice.getStartIndices(), stack, slice.getType());
      if (!slots)
        return left("it is not proven which slice an iteration reads");
      for (int64_t t = 0; t < F.trips; ++t) {
        reading.reversed &= (*slots)[F.trips - 1 - t] == (*written)[t];
        reading.inOrder &= (*slots)[t] == (*written)[t];
      }
      reading.residual.reads.push_back(slice);
    }
  }
  if (!reading.reversed && !reading.inOrder)
    return left("iterations are matched neither in order nor in reverse");
  return reading;
}

std::pair<bool, std::vector<Residual>> inOneOrder(std::vector<Reading> readings, WhileLoop &F,
                                                  MissedFn missed) {
  int64_t votes[2] = {0, 0};
  for (const Reading &reading : readings) {
    votes[0] += reading.reversed * reading.residual.bytes;
    votes[1] += reading.inOrder * reading.residual.bytes;
  }
  bool reversed = votes[0] >= votes[1];
  std::vector<Residual> residuals;
  for (Reading &reading : readings) {
    if (reversed ? reading.reversed : reading.inOrder)
      residuals.push_back(std::move(reading.residual));
    else
      missed(F.write(reading.residual.forward), "a residual stack is left alone: it is read in another order "
                                                "than the others");
  }
  return {reversed, std::move(residuals)};
}

bool runAlike(const WhileLoop &first, const WhileLoop &second) {
  return first.trips == second.trips && first.counter >= 0 && second.counter >= 0;
}

bool isSharded(Operation *loop) { return loop->hasAttr("sdy.sharding") || loop->hasAttr("mhlo.sharding"); }

/// The value that a slice or a concatenation hands on unchanged; null if it makes a new one.
static Value handedOn(Operation *op) {
  if (auto joined = dyn_cast<stablehlo::ConcatenateOp>(op)) {
    Value only;
    for (Value part : joined.getInputs()) {
      auto type = dyn_cast<RankedTensorType>(part.getType());
      if (type && type.hasStaticShape() && type.getNumElements() == 0)
        continue;
      if (only)
        return {};
      only = part;
    }
    return only && only.getType() == joined.getType() ? only : Value();
  }
  auto slice = dyn_cast<stablehlo::SliceOp>(op);
  if (!slice)
    return {};
  auto type = dyn_cast<RankedTensorType>(slice.getType());
  if (!type || !type.hasStaticShape())
    return {};
  // Of the same type it takes everything, whatever its strides.
  if (slice.getOperand().getType() == type)
    return slice.getOperand();
  auto joined = slice.getOperand().getDefiningOp<stablehlo::ConcatenateOp>();
  return joined ? partOf(joined, slice) : Value();
}

void readThroughConcatenations(ModuleOp module) {
  SmallVector<Operation *> found;
  module.walk([&](Operation *op) {
    if (isa<stablehlo::SliceOp, stablehlo::ConcatenateOp>(op))
      found.push_back(op);
  });
  // Operands come before what reads them.
  llvm::SetVector<Operation *> unread;
  for (Operation *op : found)
    if (Value value = handedOn(op)) {
      op->getResult(0).replaceAllUsesWith(value);
      unread.insert(op);
    }
  while (!unread.empty()) {
    Operation *op = unread.pop_back_val();
    if (!op->use_empty())
      continue;
    SmallVector<Value> operands(op->getOperands());
    op->erase();
    for (Value operand : operands)
      if (auto joined = operand.getDefiningOp<stablehlo::ConcatenateOp>())
        unread.insert(joined);
  }
}

std::vector<std::unique_ptr<LoopPair>> findLoopPairs(ModuleOp module, CostModel &costs,
                                                     const LoopOptions &options, MissedFn missed) {
  Matcher matcher(options, missed);
  llvm::SmallPtrSet<Operation *, 8> taken;
  std::vector<std::unique_ptr<LoopPair>> pairs;
  llvm::StringMap<unsigned> names;
  // Before its body, so that of nested pairs the outermost is taken.
  module.walk<WalkOrder::PreOrder>([&](stablehlo::WhileOp op) {
    if (taken.contains(op))
      return WalkResult::skip();
    std::unique_ptr<MatchedPair> pair = matcher.match(op, taken);
    if (!pair)
      return WalkResult::advance();
    std::string reason;
    if (!pair->formulate(costs, reason)) {
      missed(op, "a pair of loops is left alone: " + reason);
      return WalkResult::advance();
    }
    std::string name = nameStack(op.getLoc());
    unsigned ordinal = names[name]++;
    pair->setName(name + "|" + std::to_string(ordinal));
    taken.insert(op);
    taken.insert(pair->backward());
    pairs.push_back(std::move(pair));
    return WalkResult::skip();
  });
  return pairs;
}

} // namespace farrier::remat
