//===- StraightLine.h - rematerialization inside one block -----------------===//
//
// A block that computes forward and then backward (unrolled layers, a gradient-accumulation body) holds its
// residuals across the position where long-lived bytes peak, the *boundary*. The forward part is cut into
// *segments* where little crosses; what crosses is kept (a checkpoint), and inside each segment a minimum
// cut decides what else to keep. What is not kept is computed again at the segment's *stage*: right before
// the first backward operation that needs it.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_REMAT_STRAIGHTLINE_H
#define FARRIER_PASSES_REMAT_STRAIGHTLINE_H

#include "passes/remat/Problem.h"

#include "farrier/Analysis/Graph.h"
#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/OpCost.h"
#include "farrier/Analysis/ValueKey.h"

#include "llvm/Support/JSON.h"

#include <memory>
#include <vector>

namespace farrier::remat {

/// A backward operation that reads a forward value.
struct Read {
  unsigned op, value;
};

/// Bytes that are live while the operations [first, last] run.
struct Lifetime {
  unsigned first, last;
  int64_t bytes;
};

/// Forward operations [first, end) with one decision, and where their values are computed again.
struct Segment {
  unsigned first = 0, end = 0;
  /// Backward operation before which recomputation is placed; the block's size if nothing is needed.
  unsigned stage = 0;
  Problem problem;
  /// Value id of each candidate of `problem`.
  std::vector<unsigned> values;
  bool needed() const { return !values.empty(); }
};

struct Segmentation {
  std::vector<Segment> segments;
  /// Of each value: a root that a later segment's forward operations read. It is kept whatever is chosen.
  std::vector<bool> crosses;
  /// Of each forward value that the backward part reads: the segment whose stage provides it, or -1 for a
  /// value made of checkpoints and parameters alone (a norm of a layer's input, a cast of a weight), which
  /// whichever stage reads it computes again.
  std::vector<int> owner;
  /// Of each segment: the reads that its stage provides, if anything of it is computed again.
  std::vector<std::vector<Read>> uses;
};

/// Decisions that forbid: true means the operation must not run twice.
using ForbidFn = std::function<bool(mlir::Operation *)>;

class StraightLine {
public:
  /// Values smaller than `smallBytes` are kept whatever is chosen.
  StraightLine(mlir::Block &block, CostModel &costs, int64_t smallBytes = defaultSmallBytes,
               SizeFn size = deviceSize, ForbidFn forbid = nullptr);

  /// Whether anything big crosses from a forward to a backward part at all.
  bool worthwhile() const { return boundaryBytes > 0; }

  /// Cuts of the forward part, where least crosses, into segments of at most `maxSegmentBytes` of residuals each.
  /// Fewer, bigger segments keep less at their borders and need more while they recompute. With `tail` what
  /// comes after the last residuals is a segment of its own: its values are read right after the boundary, when
  /// most is alive, and what shares a segment with them is computed again as early.
  std::vector<unsigned> chooseCuts(int64_t maxSegmentBytes, bool tail) const;

  /// Cuts before the given operations, ascending.
  Segmentation segmentAt(std::vector<unsigned> cuts) const;

  /// Where the backward part may be said to begin, at the last forward operation; the likeliest first, which is taken
  /// unless another is set.
  llvm::ArrayRef<unsigned> getBoundaries() const { return boundaries; }
  void setBoundary(unsigned op);

  /// Bytes of residuals over all of the forward part, to choose `maxSegmentBytes` from.
  int64_t residualBytes() const { return totalResidualBytes; }

  /// Applies one choice per segment; null leaves the segment as it is. The block's graph is stale
  /// afterwards. Returns the number of operations cloned.
  unsigned apply(const Segmentation &segmentation, const std::vector<const Choice *> &choices);

  const BlockGraph &getGraph() const { return *graph; }
  const Liveness &getLiveness() const { return *liveness; }
  unsigned getBoundary() const { return boundary; }
  const ValueKeys &getKeys() const { return *keys; }
  /// The block's decisions operation by operation, for an exact solver (Uncontracted.cpp).
  llvm::json::Object uncontracted() const;

  /// Live bytes during each op whatever is chosen: residuals are there until the forward part has read them for the last
  /// time.
  std::vector<int64_t> baseProfile(const Segmentation &segmentation) const;

  /// What one segment has in memory beyond that, with a choice or (null) as it stands: residuals from their last forward to
  /// their last backward read, and what is computed again from its place to its last read. What waits on the host is
  /// fetched at `fetched`.
  std::vector<Lifetime> lifetimes(const Segmentation &segmentation, unsigned which, const Choice *choice,
                                  unsigned fetched) const;

private:
  void findBoundaries();
  void findResiduals();
  bool isForward(unsigned value) const {
    return graph->definition[value] >= 0 && graph->definition[value] <= static_cast<int>(boundary);
  }
  bool isConstant(unsigned value) const { return constant[value]; }
  /// Of a segment: the operations to clone, ascending, the values that they start from, and the reads of what they make.
  struct Recomputation {
    std::vector<unsigned> chain, leaves;
    std::vector<Read> uses;
  };
  /// `recomputed` are roots; every other root is read where it is.
  Recomputation recomputation(llvm::ArrayRef<Read> uses, const llvm::DenseSet<unsigned> &recomputed) const;
  /// Whether a value stays and is read where it is.
  bool isLeaf(unsigned value, const llvm::DenseSet<unsigned> &recomputed) const;
  void findReach();
  bool isResidual(unsigned value) const { return isForward(value) && liveness->range(value).last > boundary; }
  /// Live bytes during each op, of residuals only until the forward part has read them for the last time.
  std::vector<int64_t> profileWithoutResiduals() const;
  void assignUses(Segmentation &segmentation) const;
  Segment makeSegment(unsigned first, unsigned end, const Segmentation &segmentation, int which) const;

  /// Of each operation in `chain` (ascending): the operation that its clone stands before. That is its first
  /// reader, as XLA's scheduler would have it and the estimate counts it, but `stage` for what would keep more
  /// alive by waiting than it makes.
  llvm::DenseMap<unsigned, unsigned> placeClones(llvm::ArrayRef<unsigned> chain, llvm::ArrayRef<Read> uses,
                                                 unsigned stage) const;

  /// Seconds of computing an operation's results again, with what it costs as a kernel of its own.
  double costOfAgain(unsigned op, double kernelSeconds) const;

  /// Takes away the reads of what XLA computes in its readers' kernels from kept parts of merged products, as it does in the
  /// program as it stands. Through a stage's barrier a part of a merged product would be a copy, beside the whole that others read.
  void leaveFused(const llvm::DenseSet<unsigned> &recomputed, std::vector<std::vector<Read>> &uses) const;

  /// Reads of parameters that stand in the stage of a segment without a choice: the last of `order` before them, segments with
  /// a choice, ascending by stage, makes them again. A weight would else be gathered once, for both parts, and kept whole.
  void gatherAgain(const Segmentation &segmentation, llvm::ArrayRef<const Choice *> choices, llvm::ArrayRef<unsigned> order,
                   std::vector<std::vector<Read>> &uses) const;

  /// Adds the parameters that products of one stage, to the next one in `order`, read as they are and gather.
  void tieGathered(unsigned which, const Segmentation &segmentation, llvm::ArrayRef<unsigned> order,
                   Recomputation &what) const;

  /// Of the parameters that a stage is tied to, those that are first read (by a clone at its place, or a product) after most is
  /// in memory, where the stage stands before that; and what is made there, for which their gathers can wait.
  struct Late {
    int front = -1;
    std::vector<unsigned> leaves;
  };
  Late gatheredAfterPeak(unsigned stage, const Recomputation &what, const llvm::DenseMap<unsigned, unsigned> &place) const;

  /// Takes out of a recomputation what is made of small parameters alone. In a partitioned program, computed again, it
  /// would be gathered again, and XLA may make one collective of that gather and those of later stages, for which
  /// everything that reads it then waits.
  void keepSmallParameters(Recomputation &what) const;

  /// Backward products before `stage` that, finished there, let go much more than they make: the estimate counts on it, and
  /// in a partitioned program XLA puts gradients off, to hide communication, and holds the logits' through the layers.
  llvm::DenseSet<mlir::Operation *> productsThatLetGo(unsigned stage) const;

  void castBeforeUpdate(unsigned op, mlir::Operation *cast) const;

  int64_t smallBytes;
  SizeFn size;
  ForbidFn forbid;
  CostModel &costs;
  std::unique_ptr<BlockGraph> graph;
  std::unique_ptr<RootSets> roots;    ///< for decisions
  std::unique_ptr<RootSets> buffers;  ///< for estimates
  std::unique_ptr<Liveness> liveness; ///< over `buffers`
  std::unique_ptr<ValueKeys> keys;
  llvm::DenseMap<unsigned, unsigned> merged; ///< of products that XLA makes one: the first of them
  std::vector<bool> constant;        ///< of each value: made of constants alone
  std::vector<bool> argumentOnly;    ///< of each value: made of arguments and constants by virtual operations
  std::vector<unsigned> maskShape;   ///< of each op: a number for the shape of the random mask that it is a kernel of, 0 for none
  std::vector<bool> copyable;        ///< of each op: elementwise and without effects, so that readers compute it anew
  std::vector<Read> reads;           ///< every backward read of a forward value that is not constant
  std::vector<unsigned> lastForward; ///< of each root: last forward op that reads it
  std::vector<unsigned> lastStored;  ///< of each buffer: last forward op that reads it, its own at the least
  std::vector<unsigned> reach;       ///< of each op: the last that reads what it reads through it, fused
  std::vector<bool> neededRoot;      ///< of each root: backward reads it, or its recomputation could
  std::vector<unsigned> boundaries;
  unsigned boundary = 0;
  int64_t boundaryBytes = 0;
  int64_t totalResidualBytes = 0;
};

/// Registers the query remat.blocks.
void registerUncontracted();

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_STRAIGHTLINE_H
