//===- ReadingKernels.h - which kernels read an elementwise value ----------===//
//
// XLA:GPU computes an elementwise value in the kernels that read it, or stores it, by how many these are and what they do. They
// are told by operations that are in them. `feedsKernel` says of each value whether a kernel ends there.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_READINGKERNELS_H
#define FARRIER_ANALYSIS_READINGKERNELS_H

#include "farrier/Analysis/Graph.h"

#include <optional>
#include <vector>

namespace farrier {

/// Whether nothing reads what the operation makes, as a loss of which only the gradient is asked for; looks `depth` deep.
bool isUnused(const BlockGraph &graph, unsigned op, unsigned depth = 4);

/// The kernels that read a value, as operations that are in them: at most `mostReaders` of those that are found within
/// `mostFollowed` elementwise values, or nothing where there are more.
std::optional<llvm::SmallVector<unsigned>> readingKernels(const BlockGraph &graph, unsigned from,
                                                          const std::vector<bool> &feedsKernel, size_t mostReaders,
                                                          size_t mostFollowed);

/// Whether two sums of so few columns as it takes to compute the value read it, and another kernel: none computes it then.
bool isReadInColumns(const BlockGraph &graph, unsigned value, const std::vector<bool> &feedsKernel);

/// Whether XLA gathers in the kernels that read what is gathered: where they are few, or where what it gathers rows from is so
/// much less than the rows that a cache has it. Not for products, nor rows too short to be read at a time.
bool fusesGather(const BlockGraph &graph, unsigned op, const std::vector<bool> &feedsKernel);

} // namespace farrier

#endif // FARRIER_ANALYSIS_READINGKERNELS_H
