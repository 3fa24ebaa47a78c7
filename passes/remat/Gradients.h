//===- Gradients.h - when weight gradients run ------------------------------===//
//
// XLA's scheduler likes to put weight gradients off, and holds all that they read: of a head over a vocabulary the
// logits' gradient, through the whole backward part of the layers.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_REMAT_GRADIENTS_H
#define FARRIER_PASSES_REMAT_GRADIENTS_H

#include "mlir/IR/Operation.h"
#include "llvm/ADT/SmallVector.h"

namespace farrier::remat {

/// What products after `boundary` and before `position`, operations of one block, give, where no kernel before
/// `position` reads that. Those of a partitioned program hide communication and are not among them.
llvm::SmallVector<mlir::Value> finishedProducts(mlir::Operation *boundary, mlir::Operation *position);

/// Lets `position`, which reads `through`, wait for the products between `boundary` and it: a barrier joins them.
void finishProducts(mlir::Operation *boundary, mlir::Operation *position, mlir::OpOperand &through);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_GRADIENTS_H
