//===- Loops.h - rematerialization between two loops ------------------------===//
//
// A scan and its derivative are two `stablehlo.while` loops: the forward one writes what the backward one
// reads, iteration by iteration, into *residual stacks*. A pair of such loops is one Problem, whose instances
// are the iterations; a decision says what to save and what to recompute, for consecutive ranges of forward
// iterations. Nothing is rewritten that is not proven: index expressions are evaluated for every iteration.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_REMAT_LOOPS_H
#define FARRIER_PASSES_REMAT_LOOPS_H

#include "passes/remat/Offload.h"
#include "passes/remat/Problem.h"

#include "farrier/Analysis/Graph.h"
#include "farrier/Analysis/OpCost.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/STLFunctionalExtras.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace farrier::remat {

/// Why something was left alone, at the operation that it is about.
using MissedFn = llvm::function_ref<void(mlir::Operation *, llvm::StringRef reason)>;

struct LoopOptions {
  /// Bytes per device of a value.
  SizeFn size = deviceSize;
  /// True forbids running a second copy of the operation.
  std::function<bool(mlir::Operation *)> forbid;
  /// Plan anew what the backward loop already recomputes (jax.checkpoint); false keeps those choices.
  bool replan = true;
  /// Where set, operations whose recomputation is looked for also where the backward loop has all that they
  /// read from outside, as the forward one has: chunks under jax.checkpoint, of which nothing is saved. Loops
  /// that hand each other no stack are a pair by these. Null: what the backward loop computes of residuals
  /// alone is known to be computed again.
  std::function<bool(mlir::Operation *)> shared;
  /// Price choices by FLOPs, seconds breaking ties; by seconds otherwise.
  bool byFlops = false;
  /// Let collectives be recomputed, at the price of their communication. Every device runs the same loops,
  /// so all ranks agree.
  bool recomputeCollectives = false;
  /// Loop-invariant operands at least this big that are cheap to make (masks, broadcasts) are made inside
  /// the bodies instead of living through the loops.
  int64_t sinkBytes = defaultSmallBytes;
  /// Stacks hold the elements of values from this size on in a row; 0: of none. XLA has a loop's state in the order in which
  /// the loop makes it, and writes a whole stack anew between the loops where the backward one wants another. In a row there
  /// is one order alone, and each value is reordered as it is written or read.
  int64_t flatBytes = 0;
  /// What may wait in host memory.
  OffloadRules offload;
};

/// What consecutive iterations of the forward loop do.
struct LoopPart {
  int64_t iterations = 0;
  Choice choice; ///< over the problem's candidates; its sums are for all iterations of the loop
};

/// In the order of the forward iterations; the counts add up to the trip count.
using LoopDecision = std::vector<LoopPart>;

/// How many of `trips` iterations can do `upper`, which has more bytes, while the others do `lower`, so that the saved bytes stay
/// within the budget.
int64_t iterationsOfUpper(const Choice &lower, const Choice &upper, int64_t trips, int64_t savedBytesBudget);

/// So many iterations of each. The later iterations get `upper`: their stacks are read first and free before the earlier ones
/// recompute.
LoopDecision splitIterations(const Choice &lower, const Choice &upper, int64_t trips, int64_t savedBytesBudget);

class LoopPair {
public:
  virtual ~LoopPair();

  /// Names the pair in plans: the forward loop's name stack and an ordinal among equals.
  virtual llvm::StringRef key() const = 0;
  virtual mlir::Operation *forward() const = 0;
  virtual mlir::Operation *backward() const = 0;
  virtual const Problem &problem() const = 0;
  /// Bytes of the residual stacks as the program stands.
  virtual int64_t stackBytes() const = 0;
  /// Whether the backward loop already recomputes (jax.checkpoint), so that an unchanged program costs more
  /// than `current` says.
  virtual bool recomputesAlready() const = 0;
  /// What the program does as it stands, as a choice.
  virtual const Choice &current() const = 0;

  /// Rewrites both loops. Fails, leaving the program as it was, if the decision is not legal. The pair, and
  /// every pair whose loops enclose or are enclosed by these, is stale afterwards.
  virtual mlir::LogicalResult apply(const LoopDecision &decision) = 0;

  /// Lets a loop that the forward body runs give what a loop of the backward body computes again and more; false if there is
  /// none. The pair is stale afterwards.
  virtual bool widenForward() = 0;

  /// Pairs of a loop that the forward body runs and one of the backward body, of which the one hands
  /// residuals to the other through stacks of this pair's stacks. This pair must be there while one applies a
  /// decision, for all iterations alike; all are stale afterwards, and this pair is to be found again by its
  /// key and rewritten, too, to let go what nobody reads.
  virtual std::vector<std::unique_ptr<LoopPair>> inner(CostModel &costs) = 0;

  /// Lets a loop of the backward body that computes again what a loop of the forward body does
  /// (`LoopOptions::shared`) read it from a copy of that, where saving it costs less: what is computed again
  /// is the copy then, as a whole. False if there is none. The pair is stale afterwards.
  virtual bool shareInner(CostModel &costs) = 0;
};

/// What reads one whole operand of a concatenation reads that operand instead. A scan that is unrolled altogether
/// glues the residuals of its iterations together, and its derivative takes them apart again.
void readThroughConcatenations(mlir::ModuleOp module);

/// The pairs of loops anywhere in `module` that hand residuals from one to the other, in program order. Calls
/// must have been inlined. Of nested pairs only the outermost is returned: look again after applying.
std::vector<std::unique_ptr<LoopPair>> findLoopPairs(mlir::ModuleOp module, CostModel &costs,
                                                     const LoopOptions &options, MissedFn missed);

/// Registers farrier-remat-loops and the query remat.loops.
void registerLoopsPass();

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_LOOPS_H
