//===- Tile.h - run a part of a program chunk by chunk along an axis ------===//
//
// A giant intermediate (logits) never has to exist whole when everything between it and the small values it
// is reduced to works row by row along an axis. A TileRegion is such a part of a block: it starts at one
// product, ends at products and sums, and what leaves it is small. It can then be run as a loop over chunks
// of the axis. The same operations run on the same rows, so every value that keeps the axis is bit-identical;
// sums over the axis are added up chunk by chunk.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_FUSION_TILE_H
#define FARRIER_PASSES_FUSION_TILE_H

#include "farrier/Analysis/Axis.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/MapVector.h"

#include <string>

namespace farrier::fusion {

class TileRegion {
public:
  /// The region that starts at `seed` and runs along dimension `dim` of its result; nullopt with a reason in
  /// `whyNot` (and the operation that stands in the way in `where`).
  static std::optional<TileRegion> grow(stablehlo::DotGeneralOp seed, int64_t dim, std::string &whyNot,
                                        mlir::Operation *&where);

  stablehlo::DotGeneralOp seed;
  int64_t size = 0;                         ///< extent of the axis
  llvm::SmallVector<mlir::Operation *> ops; ///< in program order
  llvm::SmallVector<mlir::Value> sliced;    ///< results that keep the axis and are read outside
  llvm::SmallVector<mlir::Value> summed;    ///< results of sums over the axis
  int64_t bigBytes = 0;                     ///< bytes of the giant values that need not exist any more

  /// Whether a value of the region is as large as what it starts from (up to a factor 4).
  bool isBig(mlir::Value value) const;

  struct Options {
    int64_t chunks = 8;
    /// Feed products with giant f32 operands in bf16 (half the bytes; rounds gradients).
    bool narrowProducts = false;
  };
  /// Replaces the region by a loop. `chunks` must divide `size`.
  void emit(const Options &options);

  llvm::DenseMap<mlir::Operation *, AxisFlow> flows;
  llvm::DenseMap<mlir::Value, AxisPlace> places;
};

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_TILE_H
