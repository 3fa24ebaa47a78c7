//===- Verify.h - checks shared by the verifiers ----------------*- C++ -*-===//

#ifndef FARRIER_LIB_DIALECT_STABLEHLO_VERIFY_H
#define FARRIER_LIB_DIALECT_STABLEHLO_VERIFY_H

#include "farrier/Dialect/StableHLO/StableHLO.h"

namespace farrier::stablehlo {
namespace verify {

/// The type if its rank is known; unranked tensors are not checked further.
inline mlir::RankedTensorType ranked(mlir::Value value) {
  return llvm::dyn_cast<mlir::RankedTensorType>(value.getType());
}

/// The region's stablehlo.return, or null: verifiers run before MLIR has checked that blocks have
/// terminators.
inline ReturnOp returnOf(mlir::Region &region) {
  if (region.empty() || region.front().empty())
    return {};
  return llvm::dyn_cast<ReturnOp>(region.front().back());
}

/// Each of `dims` is in [0, rank) and there only once.
mlir::LogicalResult checkDims(mlir::Operation *op, llvm::StringRef what, llvm::ArrayRef<int64_t> dims,
                              int64_t rank);
mlir::LogicalResult checkDim(mlir::Operation *op, llvm::StringRef what, int64_t dim, int64_t rank);
mlir::LogicalResult checkCount(mlir::Operation *op, llvm::StringRef what, size_t count, size_t expected);
/// Equal, or one of them is not known.
mlir::LogicalResult checkSize(mlir::Operation *op, llvm::StringRef what, int64_t actual, int64_t expected);
mlir::LogicalResult checkShape(mlir::Operation *op, mlir::Value result, llvm::ArrayRef<int64_t> expected);

} // namespace verify
using namespace verify;
} // namespace farrier::stablehlo

#endif // FARRIER_LIB_DIALECT_STABLEHLO_VERIFY_H
