//===- KernelTimes.h - when operations run, by the order of their kernels --===//
//
// XLA orders kernels, we operations: those of a kernel run together, and what is fused with the first kernel that it is for.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_KERNELTIMES_H
#define FARRIER_ANALYSIS_KERNELTIMES_H

#include "farrier/Analysis/SiblingKernels.h"

namespace farrier {

/// Stands for the place of what is fused.
constexpr unsigned noPlace = ~0u;

/// The places of all operations, where `place` has those of kernels and `noPlace` for what is fused, which runs with the first
/// of its readers. The terminator is last.
std::vector<unsigned> placesOf(const BlockGraph &graph, std::vector<unsigned> place);

/// Operations by their places, those of one place as `joined` has them.
std::vector<unsigned> inOrder(llvm::ArrayRef<unsigned> place, const SiblingTimes &joined);

/// When the operations run, which stand in that order, where those that `joined` has in one kernel are in one.
SiblingTimes timesOf(llvm::ArrayRef<unsigned> order, const SiblingTimes &joined);

} // namespace farrier

#endif // FARRIER_ANALYSIS_KERNELTIMES_H
