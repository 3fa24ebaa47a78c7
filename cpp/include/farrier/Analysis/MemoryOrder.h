//===- MemoryOrder.h - how XLA orders a program's kernels to need little memory -===//
//
// XLA orders the kernels of a program in three ways and takes the one by which it needs the least memory, before anything is
// hidden (LatencyHiding.h). The facts are those of XLA's hlo_memory_scheduler; which one it took, and what each would have
// needed, it logs (TF_CPP_VMODULE=hlo_memory_scheduler=2).
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_MEMORYORDER_H
#define FARRIER_ANALYSIS_MEMORYORDER_H

#include "farrier/Analysis/SiblingKernels.h"

namespace farrier {

/// XLA's ways to order kernels.
enum class MemoryOrder {
  List,       ///< of those that could run the one that frees most, less what it makes
  DepthFirst, ///< from the results, of what a kernel reads first what most others read, then what is largest
  PostOrder,  ///< from the results, of what a kernel reads first what it names first
};

/// A block of more operations runs as it stands, as where latencies are hidden.
constexpr unsigned mostOrdered = 20000;

/// When the operations run by that order, where those that `joined` has in one kernel run together; and the constants that a
/// kernel fills for another to write into, which may be there long before that. `joined` itself for more than `mostOrdered` operations.
SiblingTimes memoryOrder(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined, MemoryOrder order);

} // namespace farrier

#endif // FARRIER_ANALYSIS_MEMORYORDER_H
