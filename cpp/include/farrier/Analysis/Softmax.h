//===- Softmax.h - rows whose differences from their maximum are stored ----===//
//
// XLA:GPU computes a softmax's rows in tiles of a power of two. A kernel makes the differences from each
// row's maximum; that is made again within the kernels that read them, from the narrower scores, unless so
// much of the tiles would be padding that writing the differences, in f32, takes less time.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_SOFTMAX_H
#define FARRIER_ANALYSIS_SOFTMAX_H

#include "mlir/IR/Operation.h"

namespace farrier {

/// Whether the operation takes each row's maximum from the row, and XLA stores what it makes if what that is
/// computed from is narrower.
bool storesDifferences(mlir::Operation *op);

} // namespace farrier

#endif // FARRIER_ANALYSIS_SOFTMAX_H
