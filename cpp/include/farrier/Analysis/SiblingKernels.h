//===- SiblingKernels.h - elementwise kernels that XLA:GPU makes one -------===//
//
// XLA:GPU gives kernels that read the same value and write as many elements to one kernel, where none waits for another:
// an activation and its derivative in a part that is computed again, two micro-batches that read one dropout mask, the
// probabilities of attention in the order that a product wants and the gradient of the scores. All of their results are
// there when it has run, which it cannot before the last of them could.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_SIBLINGKERNELS_H
#define FARRIER_ANALYSIS_SIBLINGKERNELS_H

#include "farrier/Analysis/Graph.h"

#include <vector>

namespace farrier {

/// When operations run where such kernels are one.
struct SiblingTimes {
  std::vector<unsigned> runs;         ///< of each operation, a permutation of the operations' numbers
  std::vector<unsigned> lastOfKernel; ///< of each operation, when the last one in the same kernel runs
  /// Of each operation, when it has run: a collective runs beside those between. Empty: each has when it does.
  std::vector<unsigned> ends;
  /// Constants that an operation writes into, and when they are there.
  struct Filled {
    unsigned op, from;
    int64_t bytes;
  };
  std::vector<Filled> filled;
};

/// Whether `op` is the coordinate of an axis, times what an index along it moves by, as a random generator counts the elements
/// of a mask.
bool countsElements(mlir::Operation *op);

/// Kernels that read one and the same coordinate of an axis, in program order: XLA computes it once, in a small kernel that all
/// random masks of a shape read, and makes those together that do not wait for each other.
std::vector<llvm::SmallVector<unsigned, 4>> maskKernels(const BlockGraph &graph, const RootSets &roots);

/// `time`, a permutation of the operations' numbers by which all run after what they read, with what waits for a kernel put
/// off until that has run. A product stands for the kernel that writes a copy of what it reads. With `onlyMasks` random masks
/// of one shape alone are made together.
SiblingTimes joinSiblings(const BlockGraph &graph, const RootSets &roots, std::vector<unsigned> time, bool onlyMasks);

} // namespace farrier

#endif // FARRIER_ANALYSIS_SIBLINGKERNELS_H
