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
#include <utility>

namespace farrier::fusion {

class TileRegion {
public:
  /// The region that starts at `seed` and runs along dimension `dim` of its result, whose extent is `outer`
  /// times the axis: with outer > 1 every chunk takes a part of each of `outer` blocks of the dimension. nullopt
  /// with a reason in `whyNot` (and the operation that stands in the way in `where`).
  static std::optional<TileRegion> grow(stablehlo::DotGeneralOp seed, int64_t dim, int64_t outer,
                                        std::string &whyNot, mlir::Operation *&where);

  /// A dimension of the product's result that is split over devices in `count` blocks. Sums over it are kept
  /// one per block until the loop is over, so that devices exchange them once and not once a chunk.
  struct Blocks {
    int64_t dim = 0, count = 1;
    std::string axes; ///< of the mesh, as Shardy writes them: {"data", "fsdp"}
    llvm::DenseMap<mlir::Operation *, AxisFlow> flows;
  };
  llvm::SmallVector<Blocks> blocks;
  std::string mesh; ///< name of the mesh of `blocks`
  /// Follows dimension `dim` of the seed's result, split in `count` blocks, through the region; false with a
  /// reason where an operation mixes blocks.
  bool addBlocks(int64_t dim, int64_t count, std::string axes, std::string &whyNot, mlir::Operation *&where);

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
  /// Shardings, as Shardy writes them, that values from outside the region get before the loop.
  llvm::SmallVector<std::pair<mlir::Value, std::string>> pinned;
};

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_TILE_H
