#include "passes/remat/Checkpoints.h"

#include "passes/remat/LoopsPair.h"
#include "passes/remat/PlanApply.h"
#include "passes/remat/ValueNumbering.h"
#include "passes/remat/WideLoops.h"

#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/Kernels.h"
#include "farrier/Analysis/Sharding.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/Pass/Pass.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/StringSet.h"

#include <optional>

using namespace mlir;

namespace farrier::remat {

#define GEN_PASS_DECL_FORGETCHECKPOINTS
#define GEN_PASS_DEF_FORGETCHECKPOINTS
#include "passes/remat/Passes.h.inc"

namespace {

using Barriers = llvm::SetVector<Operation *>;

/// What one block computes again.
class Recomputed {
public:
  explicit Recomputed(Block &block) : block(block) {
    for (size_t before = 0;; before = held.size()) {
      search();
      if (held.size() == before)
        break;
    }
  }

  /// Lets a loop that is run again for more take the place of an earlier one; what was found is stale then.
  bool widenOne();
  /// Lets what was found give way to what it is the same as; returns the number of operations.
  unsigned merge();

private:
  void search();

  Block &block;
  Barriers held; ///< barriers that keep what is behind them apart: an all_gather reads from them
  ValueNumbering numbers;
  DenseMap<Value, Value> original; ///< of values behind barriers, what they are the same as
  SmallVector<Operation *> merged; ///< operations whose results all have an original, in program order
  Barriers barriers;               ///< what these are behind
  SmallVector<stablehlo::WhileOp> loops, again; ///< loops, and those of them that are behind barriers and not merged
};

void Recomputed::search() {
  numbers = ValueNumbering(/*collectives=*/true);
  original.clear();
  merged.clear();
  barriers.clear();
  loops.clear();
  again.clear();
  DenseMap<unsigned, Value> first; // the first value of a number
  DenseMap<Value, Operation *> behind;
  for (BlockArgument argument : block.getArguments())
    first[numbers[argument]] = argument;
  for (Operation &op : block.without_terminator()) {
    bool isBarrier = isa<stablehlo::OptimizationBarrierOp>(op);
    if (held.contains(&op)) {
      for (Value result : op.getResults())
        first[numbers.setFresh(result)] = result;
      continue;
    }
    numbers.number(&op);
    Barriers sources;
    for (Value read : readsOf(&op))
      if (Operation *source = behind.lookup(read))
        sources.insert(source);
    if (isa<stablehlo::AllGatherOp>(op))
      held.insert(sources.begin(), sources.end());
    if (isBarrier)
      sources.insert(&op);
    bool all = !sources.empty() && op.getNumResults() > 0;
    for (OpResult result : op.getResults()) {
      Value self = isBarrier ? op.getOperand(result.getResultNumber()) : Value(result);
      Value same = first.try_emplace(numbers[result], self).first->second;
      if (sources.empty() || same == result) {
        all = false;
        continue;
      }
      original[result] = same;
      behind[result] = sources.back();
    }
    if (all && !isBarrier) {
      merged.push_back(&op);
      barriers.insert(sources.begin(), sources.end());
    }
    if (auto loop = dyn_cast<stablehlo::WhileOp>(op)) {
      if (!sources.empty() && !all)
        again.push_back(loop);
      loops.push_back(loop);
    }
  }
}

bool Recomputed::widenOne() {
  auto same = [&](Value value) {
    Value equal = original.lookup(value);
    return equal ? equal : value;
  };
  for (stablehlo::WhileOp wide : again)
    for (stablehlo::WhileOp narrow : loops) {
      if (narrow == wide)
        break;
      if (widen(narrow, wide, numbers, same))
        return true;
    }
  return false;
}

unsigned Recomputed::merge() {
  auto replace = [&](Operation *op) {
    for (Value result : op->getResults())
      result.replaceAllUsesWith(original.lookup(result));
  };
  llvm::for_each(merged, replace);
  llvm::for_each(barriers, replace);
  for (Operation *op : llvm::reverse(merged))
    op->erase();
  for (Operation *op : llvm::reverse(barriers))
    op->erase();
  return merged.size();
}

/// Returns the number of operations merged.
unsigned mergeRecomputed(Block &block) {
  // Each loop is widened once, at most: its copy is the same as the wide one.
  auto loops = block.getOps<stablehlo::WhileOp>();
  auto left = std::distance(loops.begin(), loops.end());
  std::optional<Recomputed> found(std::in_place, block);
  while (left-- > 0 && found->widenOne())
    found.emplace(block);
  return found->merge();
}

/// Lets one forward loop run loops of its body that the backward one repeats for more; false if there is none.
bool widenOnePair(ModuleOp module, CostModel &costs, const LoopOptions &options) {
  for (auto &pair : findLoopPairs(module, costs, options, [](Operation *, StringRef) {}))
    if (pair->widenForward())
      return true;
  return false;
}

/// Whether what both loops compute is a product, and by time takes longer than to write it to a stack and
/// read it. What follows from it is no reason to keep more: XLA fuses that into readers.
bool isWorthStack(Operation *op, CostModel &costs, const LoopOptions &options) {
  OpCost cost = costs.cost(op);
  int64_t bytes = 0;
  for (Value result : op->getResults())
    bytes += options.size(result);
  return cost.flops > 0 &&
         (options.byFlops || cost.seconds > 2.0 * bytes / costs.getMachine().bytesPerSecond);
}

/// Lets one loop of a backward body read from a stack what a loop of the forward body computes; false if
/// there is none.
bool shareOneInner(ModuleOp module, CostModel &costs, const LoopOptions &options) {
  for (auto &pair : findLoopPairs(module, costs, options, [](Operation *, StringRef) {}))
    if (pair->shareInner(costs))
      return true;
  return false;
}

/// Rewrites pairs of loops whose backward loop computes products again, where saving them costs less, but for
/// those that are `done`; how many.
unsigned savePairs(ModuleOp module, CostModel &costs, const LoopOptions &options, llvm::StringSet<> &done) {
  unsigned saved = 0;
  for (auto &pair : findLoopPairs(module, costs, options, [](Operation *, StringRef) {})) {
    if (!pair->recomputesAlready() || !done.insert(pair->key()).second)
      continue;
    const Problem &problem = pair->problem();
    std::vector<Choice> frontier = problem.frontier();
    if (!frontier.empty() && frontier.front().flops < pair->current().flops &&
        succeeded(pair->apply({{problem.instances, frontier.front()}})))
      ++saved;
  }
  return saved;
}

struct ForgetCheckpoints : impl::ForgetCheckpointsBase<ForgetCheckpoints>, CounterSet {
  using ForgetCheckpointsBase::ForgetCheckpointsBase;
  ForgetCheckpoints() = default;
  ForgetCheckpoints(const ForgetCheckpoints &other) : ForgetCheckpointsBase(other), CounterSet(other) {}

  Counter merged{this, "operations-merged"};
  Counter pairs{this, "loop-pairs-rewritten"};

  void runOnOperation() override {
    ModuleOp module = getOperation();
    FailureOr<llvm::json::Object> sizes = readKnown();
    if (failed(sizes))
      return signalPassFailure();
    inlineCalls(module);
    if (const llvm::json::Object *shards = sizes->getObject("shards"); shards && failed(setShards(module, *shards)))
      return signalPassFailure();
    if (const llvm::json::Object *kernels = sizes->getObject("kernels"))
      setKernels(module, *kernels);
    readThroughConcatenations(module);
    CostModel costs(module);
    LoopOptions options;
    options.byFlops = objective == "flops";
    options.offload.allowed = false;
    if (shared)
      options.shared = [&](Operation *op) { return isWorthStack(op, costs, options); };
    Forgotten forgotten = forgetCheckpoints(module, costs, options);
    merged += forgotten.merged;
    pairs += forgotten.pairs;
    dropKernels(module);
    dropShards(module);
  }

private:
  FailureOr<llvm::json::Object> readKnown() {
    if (known.empty())
      return llvm::json::Object();
    FailureOr<llvm::json::Value> value = readJson(getOperation(), known, "what is known");
    if (failed(value))
      return failure();
    if (llvm::json::Object *object = value->getAsObject())
      return std::move(*object);
    return getOperation()->emitError() << "what is known is not a JSON object";
  }
};

} // namespace

Forgotten forgetCheckpoints(ModuleOp module, CostModel &costs, const LoopOptions &options) {
  Forgotten forgotten;
  module.walk([&](Block *block) {
    if (block->mightHaveTerminator())
      forgotten.merged += mergeRecomputed(*block);
  });
  llvm::StringSet<> done;
  size_t loops = 0;
  module.walk([&](stablehlo::WhileOp) { ++loops; });
  // What loops of a body share comes last: until then a loop that is run again is the same as the first.
  size_t shared = 0;
  do {
    for (unsigned saved = 1; saved > 0; forgotten.pairs += saved) {
      size_t left = 0;
      module.walk([&](stablehlo::WhileOp) { ++left; });
      while (left-- > 0 && widenOnePair(module, costs, options))
        ;
      saved = savePairs(module, costs, options, done);
    }
    done.clear();
  } while (options.shared && shared++ < loops && shareOneInner(module, costs, options));
  return forgotten;
}

void registerCheckpointsPass() { PassRegistration<ForgetCheckpoints>(); }

} // namespace farrier::remat
