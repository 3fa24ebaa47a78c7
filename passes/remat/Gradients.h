//===- Gradients.h - when weight gradients run ------------------------------===//
//
// XLA's scheduler likes to put weight gradients off, and holds all that they read: of a head over a vocabulary the
// logits' gradient, through the whole backward part of the layers.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_REMAT_GRADIENTS_H
#define FARRIER_PASSES_REMAT_GRADIENTS_H

#include "farrier/Analysis/Graph.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/SmallVector.h"

namespace farrier::remat {

/// Which products are meant; all without.
using ProductFilter = llvm::function_ref<bool(mlir::Operation *)>;

/// What products after `boundary` and before `position`, operations of one block, give, where no kernel before
/// `position` reads that. Sums over devices that follow come along.
llvm::SmallVector<mlir::Value> finishedProducts(mlir::Operation *boundary, mlir::Operation *position,
                                                ProductFilter filter = nullptr);

/// Lets `position`, which reads `through`, wait for the products between `boundary` and it: a barrier joins them.
void finishProducts(mlir::Operation *boundary, mlir::Operation *position, mlir::OpOperand &through,
                    ProductFilter filter = nullptr);

/// Weight gradients of programs of one device, also inside of loops, run before what comes next, where XLA could come near the
/// estimated peak by putting them off: by what they read, and by themselves where an update could have read them, of values
/// from `smallBytes` on.
void finishBeforePeak(mlir::ModuleOp module, int64_t smallBytes);

/// `estimateModule` of a program that was rewritten as planned, with what `finishBeforePeak` makes of it, which it may do to
/// `module`.
int64_t estimatePlanned(mlir::ModuleOp module, int64_t smallBytes);

/// Whether the program of a block runs on several devices, so that its gradients hide communication.
bool isPartitioned(mlir::Block &block);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_GRADIENTS_H
