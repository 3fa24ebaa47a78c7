//===- GroupedKernel.h - Triton text of grouped matrix products -----------===//

#ifndef FARRIER_PASSES_FUSION_GROUPEDKERNEL_H
#define FARRIER_PASSES_FUSION_GROUPEDKERNEL_H

#include "mlir/IR/BuiltinTypes.h"

#include <string>

namespace farrier::fusion {

/// A product in which consecutive rows belong to groups, `sizes[g]` rows to group g. Letters name axes: m
/// rows, g groups, k and n the others.
struct GroupedProduct {
  /// false: y[m, n] = sum over k of x[m, k] w[group of m, k, n]; rows behind the last group are zero.
  /// true: y[g, k, n] = sum over the rows m of group g of x[m, k] w[m, n].
  bool sums = false;
  std::string lhs; ///< x's axes in its order: "mk" or "km"
  std::string rhs; ///< w's axes in its order: a permutation of "gkn", or of "mn" for sums
  int64_t m = 0, g = 0, k = 0, n = 0;
  mlir::Type element, result; ///< of x and w; of y
};

/// How the product is cut into programs of one kernel.
struct GroupedTiling {
  int64_t rows = 0;    ///< of y's tile: along m, or along k for sums
  int64_t columns = 0; ///< of y's tile, along n
  int64_t depth = 0;   ///< of one step of the contraction: along k, or along m for sums
  int64_t grid[3] = {1, 1, 1};
  int64_t warps = 4, stages = 3;

  /// Floating point operations of all programs together, whatever the groups' sizes; tiles are counted whole.
  int64_t flops = 0;
  /// The same for one dense product per group.
  int64_t denseFlops = 0;
};

GroupedTiling tile(const GroupedProduct &product);

/// The kernel's name: what it computes and its tile, e.g. "farrier_grouped_rows_mk_gkn_128x128x64".
std::string kernelName(const GroupedProduct &product, const GroupedTiling &tiling);

/// The kernel as Triton's dialect (MLIR text), taking pointers to x, w, sizes and y.
std::string kernelText(const GroupedProduct &product, const GroupedTiling &tiling);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_GROUPEDKERNEL_H
