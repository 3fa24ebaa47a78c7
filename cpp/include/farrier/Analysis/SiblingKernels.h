//===- SiblingKernels.h - elementwise kernels that XLA:GPU makes one -------===//
//
// XLA:GPU gives kernels that read the same value and write as many elements to one kernel, where none waits for another:
// an activation and its derivative in a part that is computed again, two micro-batches that read one dropout mask. All of
// their results are there when it has run, which it cannot before the last of them could.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_SIBLINGKERNELS_H
#define FARRIER_ANALYSIS_SIBLINGKERNELS_H

#include "farrier/Analysis/Graph.h"

#include <vector>

namespace farrier {

/// When each operation runs where such kernels are one: `time`, a permutation of the operations' numbers by which all run
/// after what they read, with what waits for a kernel put off until that has run.
std::vector<unsigned> joinSiblings(const BlockGraph &graph, const RootSets &roots, std::vector<unsigned> time);

} // namespace farrier

#endif // FARRIER_ANALYSIS_SIBLINGKERNELS_H
