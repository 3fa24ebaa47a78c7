//===- BodyOrder.h - the order in which XLA:GPU runs a block ---------------===//
//
// XLA:GPU's scheduler hides collectives, and copies in a loop's body, of slices at its start and into stacks at its end
// (LatencyHiding.h). Other blocks run by whichever of three orders needs the least memory (MemoryOrder.h).
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_BODYORDER_H
#define FARRIER_ANALYSIS_BODYORDER_H

#include "farrier/Analysis/SiblingKernels.h"

namespace farrier {

/// In which order operations are taken to run: as they stand; as XLA:GPU schedules them and makes random masks of one
/// shape together; where all kernels that read the same value are one, too; and so in each of the three orders of which XLA
/// takes one for a program.
enum class Order { Program, Scheduled, Joined, List, DepthFirst, PostOrder };

/// When each operation runs, a permutation of their numbers that keeps the terminator last.
SiblingTimes runningOrder(const BlockGraph &graph, const RootSets &roots, Order order);

} // namespace farrier

#endif // FARRIER_ANALYSIS_BODYORDER_H
