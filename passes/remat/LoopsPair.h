//===- LoopsPair.h - one forward and one backward loop, matched -------------===//

#ifndef FARRIER_PASSES_REMAT_LOOPSPAIR_H
#define FARRIER_PASSES_REMAT_LOOPSPAIR_H

#include "passes/remat/Loops.h"
#include "passes/remat/LoopsWhile.h"
#include "passes/remat/ValueNumbering.h"

#include "farrier/Analysis/ValueKey.h"

#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SmallPtrSet.h"

namespace farrier::remat {

/// One stack that the forward loop writes and the backward loop reads.
struct Residual {
  unsigned forward = 0;                       ///< operand of the forward loop
  llvm::SmallVector<unsigned, 1> backward;    ///< operands of the backward loop
  mlir::Value slice;                          ///< what an iteration writes: [1, ...]
  llvm::SmallVector<mlir::Operation *> reads; ///< the backward loop's dynamic_slices
  int64_t bytes = 0;
};

/// A stack, and in which order the backward loop's iterations may belong to the forward one's by it.
struct Reading {
  Residual residual;
  bool reversed = false, inOrder = false;
};

/// How the backward loop, which is given the stack of the forward one's operand `i` as `operands`, reads it.
/// Nothing, with the reason to `leave`, where that is not proven.
std::optional<Reading> readingOf(WhileLoop &F, WhileLoop &B, unsigned i, llvm::ArrayRef<unsigned> operands,
                                 int64_t bytes, llvm::function_ref<void(llvm::StringRef)> leave);

/// Whether the backward loop goes in reverse, by what the most bytes are read in, and the stacks that are
/// read so.
std::pair<bool, std::vector<Residual>> inOneOrder(std::vector<Reading> readings, WhileLoop &F,
                                                  MissedFn missed);

/// Which values of the backward body are the same as which of the forward body, in the iteration whose
/// residuals are read: by numbering both bodies' operations by their operands, attributes and regions.
class BodyNumbering {
public:
  BodyNumbering(WhileLoop &forward, WhileLoop &backward, bool reversed, llvm::ArrayRef<Residual> residuals,
                const LoopOptions &options, ValueNumbering outer);

  /// The first forward value equal to this forward value.
  mlir::Value representative(mlir::Value forwardValue) const;
  /// The first forward value equal to this backward value, or the value itself.
  mlir::Value forwardValue(mlir::Value backwardValue);
  ValueNumbering numbers;
  /// Backward values that are read by what stays in the backward body, and their forward values.
  llvm::MapVector<mlir::Value, mlir::Value> boundary;
  /// Backward values that are the same as a forward value, because of what was read.
  llvm::DenseSet<mlir::Value> known;
  /// Operations of the backward body that need not stay: reads, and what was recomputed from them.
  llvm::SmallPtrSet<mlir::Operation *, 32> replaced;
  /// Whether `replaced` holds more than reads and reshapes of them.
  bool recomputes = false;

private:
  llvm::DenseMap<unsigned, mlir::Value> first; ///< the first forward value of a number
  llvm::DenseMap<mlir::Value, mlir::Value> representatives;
};

class MatchedPair : public LoopPair {
public:
  /// `outer`: the numbers of what is outside of the loops, as far as there are.
  MatchedPair(WhileLoop forward, WhileLoop backward, bool reversed, std::vector<Residual> residuals,
              const LoopOptions &options, ValueNumbering outer = ValueNumbering());

  llvm::StringRef key() const override { return name; }
  mlir::Operation *forward() const override { return F.op; }
  mlir::Operation *backward() const override { return B.op; }
  const Problem &problem() const override { return prob; }
  int64_t stackBytes() const override { return stacks; }
  bool recomputesAlready() const override { return numbering.recomputes; }
  const Choice &current() const override { return now; }
  mlir::LogicalResult apply(const LoopDecision &decision) override;
  bool widenForward() override;
  bool shareInner(CostModel &costs) override;
  std::vector<std::unique_ptr<LoopPair>> inner(CostModel &costs) override;

  /// Fills in the problem. False, with the reason, if something needed cannot be a candidate.
  bool formulate(CostModel &costs, std::string &reason);
  void setName(std::string text) { name = std::move(text); }

protected:
  friend class LoopRewriter;

  /// What is equal in the backward body to a value of the forward one, or that value.
  std::function<mlir::Value(mlir::Value)> inBackward();
  /// The forward iteration of which a backward one reads, in terms of the backward loop's counter.
  WhileLoop::Affine iterationRead() const;
  /// Loops of the two bodies as a pair, where the stacks of the one go to the other through stacks of these
  /// and nowhere else; null where there is none.
  std::unique_ptr<MatchedPair> innerPair(stablehlo::WhileOp once, stablehlo::WhileOp again);
  /// Free in the backward body: loop invariants, counters, what lies outside.
  bool isFree(mlir::Value value) const;
  bool isRecomputable(mlir::Operation *op) const;
  /// Rewrites the pair, whose loops are in two blocks, by one choice for all iterations. `same` gives what is
  /// equal to a value of the first block in the second one, or that value. Stacks are handed down from the
  /// first block to the second by `handDown`, as what is not there of what the forward loop reads; without it
  /// they are read from a copy of the new forward loop before the backward one. False, with the program as it
  /// was, if what the copy reads is not there.
  bool applyAcross(const Choice &choice, llvm::function_ref<mlir::Value(mlir::Value)> same,
                   llvm::function_ref<mlir::Value(mlir::Value)> handDown = nullptr);
  /// A value of the forward body in the backward one, through a stack more. What was found of the loops is
  /// stale.
  mlir::Value handDown(mlir::Value value);
  /// The largest value that the backward loop starts from and that comes after the forward one; null if there
  /// is none.
  mlir::OpOperand *carriedGradient();
  /// Much that a compile held beside the estimate while the stacks were there is copies of them in another order: as much
  /// of it stays as the decision keeps of the stacks. What is little beside them is something that the bodies hold.
  void shrinkMeasured(const LoopDecision &decision);
  /// Lets candidates wait in host memory.
  void offerHost(CostModel &costs);

  WhileLoop F, B;
  bool reversed;
  std::vector<Residual> residuals;
  LoopOptions options;
  BodyNumbering numbering;
  std::string name;
  Problem prob;
  Choice now;
  int64_t stacks = 0;
};

/// Whether two loops count the same number of iterations, so that those of one may be those of the other.
bool runAlike(const WhileLoop &first, const WhileLoop &second);

/// Whether a loop carries one sharding for each result, which says nothing of results that are added or taken away.
bool isSharded(mlir::Operation *loop);

/// The operand of `joined` that `slice` takes, if it takes exactly one; null otherwise.
mlir::Value partOf(stablehlo::ConcatenateOp joined, stablehlo::SliceOp slice);

/// What an operation reads: its operands and what its regions capture, each once.
llvm::SmallVector<mlir::Value> readsOf(mlir::Operation *op);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_LOOPSPAIR_H
