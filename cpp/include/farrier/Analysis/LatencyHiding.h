//===- LatencyHiding.h - how XLA:GPU's scheduler orders a block's kernels --===//
//
// XLA's latency-hiding scheduler orders anew every computation that has something to hide: collectives, of which one is
// under way at a time, and on one device copies of slices in loops' bodies. It goes from the end to the start and takes, of
// the kernels whose readers all stand, the one that waits for nothing on its way, has most latency before it, fits best
// beside what is on its way, makes most others ready and stood last before. A kernel of less than a microsecond makes what it
// reads wait, so that something else comes between the two.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_LATENCYHIDING_H
#define FARRIER_ANALYSIS_LATENCYHIDING_H

#include "farrier/Analysis/SiblingKernels.h"

namespace farrier {

/// When the operations run by that order, where those that `joined` has in one kernel run together. What is fused runs with the
/// first kernel that it is for, and a slice is there from the start of its copy, what a collective gives from its start on.
/// `joined` itself for very many operations.
SiblingTimes hidingLatencies(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined);

} // namespace farrier

#endif // FARRIER_ANALYSIS_LATENCYHIDING_H
