//===- OffloadStraight.h - host memory for the segments of a block ---------===//

#ifndef FARRIER_PASSES_REMAT_OFFLOADSTRAIGHT_H
#define FARRIER_PASSES_REMAT_OFFLOADSTRAIGHT_H

#include "passes/remat/Offload.h"
#include "passes/remat/StraightLine.h"

namespace farrier::remat {

/// Seconds of compute before each operation of the block, and in all of it: numOps + 1 sums.
std::vector<double> computeBefore(const StraightLine &unit, CostModel &costs);

/// Lets the values of each segment wait in host memory. A segment's transfers hide behind as much compute as
/// the segment itself takes: what follows it while they run is about as long.
void offerSegments(const StraightLine &unit, Segmentation &segmentation, llvm::ArrayRef<double> before,
                   const Machine &machine, const OffloadRules &rules);

/// Of each segment, the operation from which on what it fetches is in device memory: the stage before its
/// own, or the boundary.
std::vector<unsigned> fetchStarts(const StraightLine &unit, const Segmentation &segmentation);

/// Sends to the host what the choices say, after `StraightLine::apply` rewrote the block; `unit` is as it was
/// before. Returns the number of values.
unsigned moveSegments(const StraightLine &unit, const Segmentation &segmentation,
                      const std::vector<const Choice *> &choices, llvm::ArrayRef<double> before,
                      const Machine &machine, int64_t smallBytes);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_OFFLOADSTRAIGHT_H
