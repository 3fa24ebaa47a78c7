//===- TileBlocks.h - sums over tokens that devices hold ------------------===//
//
// Under automatic sharding a sum over tokens is one over what each device holds, and then one over devices. In a
// loop over chunks XLA would do both for every chunk. Here the first stays in the loop, with the devices' blocks
// as a dimension of its own, and the second comes once, behind it.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_FUSION_TILEBLOCKS_H
#define FARRIER_PASSES_FUSION_TILEBLOCKS_H

#include "passes/fusion/Build.h"
#include "passes/fusion/Tile.h"

namespace farrier::fusion {

/// The blocks over which `op`, a sum over the axis, adds up; none where it does not.
llvm::SmallVector<const TileRegion::Blocks *> summedBlocks(const TileRegion &region, mlir::Operation *op);

/// `op` on one chunk (`operands`, chunks of `chunk` elements of the axis), without adding up over `blocks`, whose
/// counts are the result's leading dimensions. In f32 at least, floats.
mlir::Value sumPerBlock(Maker &make, const TileRegion &region, mlir::Operation *op,
                        llvm::ArrayRef<mlir::Value> operands,
                        llvm::ArrayRef<const TileRegion::Blocks *> blocks, int64_t chunk, bool narrow);

/// `value` with a sharding, its dimensions as Shardy writes them, on the region's mesh.
mlir::Value pinSharding(Maker &make, const TileRegion &region, mlir::Value value, const std::string &sharding);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_TILEBLOCKS_H
