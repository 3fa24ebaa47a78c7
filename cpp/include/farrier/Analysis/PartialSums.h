//===- PartialSums.h - products that are summed in parts -------------------===//
//
// A product of few tiles over a long sum would leave most of the device idle. XLA:GPU gives parts of the sum to
// different blocks, writes each part's result in f32, and adds them up in a second kernel: buffers of up to 8 MiB,
// which decide where a program is small.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_PARTIALSUMS_H
#define FARRIER_ANALYSIS_PARTIALSUMS_H

#include "mlir/IR/Operation.h"

namespace farrier {

/// Bytes of the parts that a product adds up; 0 for what is done in one piece, stands in a program for several devices,
/// or is no product.
int64_t partialSums(mlir::Operation *op);

} // namespace farrier

#endif // FARRIER_ANALYSIS_PARTIALSUMS_H
