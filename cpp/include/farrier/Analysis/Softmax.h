//===- Softmax.h - rows whose differences from their maximum are stored ----===//
//
// XLA:GPU computes a softmax's rows in tiles of a power of two. A kernel makes the differences from each
// row's maximum; that is made again within the kernels that read them, from the narrower scores, unless so
// much of the tiles would be padding that writing the differences, in f32, takes less time.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_SOFTMAX_H
#define FARRIER_ANALYSIS_SOFTMAX_H

#include "farrier/Analysis/Graph.h"

#include "mlir/IR/Operation.h"

namespace farrier {

/// Whether the operation takes each row's maximum from the row, and XLA stores what it makes if what that is
/// computed from is narrower.
bool storesDifferences(mlir::Operation *op);

/// Whether the operation takes each row's maximum or mean from the row, and a row is short enough to be kept in a tile: a
/// kernel that computes this, whatever else it does, writes beside what it reads, and is none with others. (Compiled: layer
/// norms, forward and backward, are such kernels, norms by the root of the mean of squares are not.)
bool keepsRow(mlir::Operation *op);

/// Whether the operation gives the logarithmic softmax of such rows. Where these are summed again, as with labels that are
/// distributions, another kernel reads them.
bool isLogSoftmax(mlir::Operation *op);

/// Whether single elements of what follows elementwise from the operation are looked up, as a label's is: what cannot do
/// that in a tile reads what such a kernel stores.
bool isLookedUp(const BlockGraph &graph, unsigned op);

} // namespace farrier

#endif // FARRIER_ANALYSIS_SOFTMAX_H
