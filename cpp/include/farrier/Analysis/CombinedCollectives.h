//===- CombinedCollectives.h - collectives that XLA:GPU makes one ----------===//
//
// XLA:GPU combines collectives of the same kind over the same devices that do not wait for each other, up to 30 MiB, in
// post-order from the block's results. They start when all that they send is there.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_COMBINEDCOLLECTIVES_H
#define FARRIER_ANALYSIS_COMBINEDCOLLECTIVES_H

#include "farrier/Analysis/Graph.h"

#include <vector>

namespace farrier {

/// Of each collective the first of those that it is combined with; itself, where it is with none. Operations of the same number
/// in `kernels` are one kernel already, which waits for all that one of them waits for, and `isFused` is what runs in the kernels
/// that read it.
std::vector<unsigned> combinedCollectives(const BlockGraph &graph, llvm::ArrayRef<unsigned> kernels,
                                          llvm::function_ref<bool(unsigned)> isFused);

} // namespace farrier

#endif // FARRIER_ANALYSIS_COMBINEDCOLLECTIVES_H
