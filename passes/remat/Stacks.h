//===- Stacks.h - stacks of what a loop's iterations save --------------------===//

#ifndef FARRIER_PASSES_REMAT_STACKS_H
#define FARRIER_PASSES_REMAT_STACKS_H

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/SmallVector.h"

namespace farrier::remat {

/// A scalar integer constant.
mlir::Value integer(mlir::OpBuilder &builder, mlir::Location loc, mlir::Type type, int64_t number);

/// sign * x + offset, of a scalar integer.
mlir::Value affine(mlir::OpBuilder &builder, mlir::Location loc, mlir::Value x, int64_t sign, int64_t offset);

/// A stack of `count` values of this type, its contents of no importance.
mlir::Value emptyStack(mlir::OpBuilder &builder, mlir::Location loc, mlir::RankedTensorType type, int64_t count);

/// What one iteration writes to the stack: [1, ...].
mlir::RankedTensorType unitSlice(mlir::Value stack);

/// Where that starts.
llvm::SmallVector<mlir::Value> sliceStart(mlir::OpBuilder &builder, mlir::Value slot, int64_t rank);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_STACKS_H
