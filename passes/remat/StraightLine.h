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

#include <memory>
#include <vector>

namespace farrier::remat {

/// Forward operations [first, end) with one decision, and where their values are computed again.
struct Segment {
  unsigned first = 0, end = 0;
  /// Backward operation before which recomputation is placed; the block's size if nothing is needed.
  unsigned stage = 0;
  Problem problem;
  /// Value id of each candidate of `problem`.
  std::vector<unsigned> values;
  /// Bytes the backward part reads from this segment as the program stands: XLA stores what a kernel reads
  /// as it is, joined values included.
  int64_t untouchedBytes = 0;
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

  /// Cuts the forward part where least crosses, into segments of at most `maxSegmentBytes` of residuals each.
  /// Fewer, bigger segments keep less at their borders and need more while they recompute.
  Segmentation segment(int64_t maxSegmentBytes) const { return segmentAt(chooseCuts(maxSegmentBytes)); }

  /// Cuts before the given operations, ascending.
  Segmentation segmentAt(std::vector<unsigned> cuts) const;

  /// Takes the boundary from a plan instead of finding it.
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
  /// Live bytes during each op without any residual of the forward part.
  std::vector<int64_t> baseProfile() const;

private:
  void findBoundary();
  void findResiduals();
  bool isForward(unsigned value) const {
    return graph->definition[value] >= 0 && graph->definition[value] <= static_cast<int>(boundary);
  }
  bool isConstant(unsigned value) const { return constant[value]; }
  /// A backward operation that reads a forward value.
  struct Read {
    unsigned op, value;
  };
  Segment makeSegment(unsigned first, unsigned end, const Segmentation &segmentation, int which) const;
  std::vector<unsigned> chooseCuts(int64_t maxSegmentBytes) const;

  /// Of each operation in `chain` (ascending): the operation that its clone stands before. That is its first
  /// reader, as XLA's scheduler would have it and the estimate counts it, but `stage` for what would keep more
  /// alive by waiting than it makes.
  llvm::DenseMap<unsigned, unsigned> placeClones(llvm::ArrayRef<unsigned> chain, llvm::ArrayRef<Read> uses,
                                                 unsigned stage) const;

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
  std::vector<bool> constant;        ///< of each value: made of constants alone
  std::vector<bool> argumentOnly;    ///< of each value: made of arguments and constants by virtual operations
  std::vector<Read> reads;           ///< every backward read of a forward value that is not constant
  std::vector<unsigned> lastForward; ///< of each root: last forward op that reads it
  std::vector<bool> neededRoot;      ///< of each root: backward reads it, or its recomputation could
  unsigned boundary = 0;
  int64_t boundaryBytes = 0;
  int64_t totalResidualBytes = 0;
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_STRAIGHTLINE_H
