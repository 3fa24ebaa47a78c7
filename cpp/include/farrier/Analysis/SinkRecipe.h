//===- SinkRecipe.h - loop-invariant values that are cheaper made than kept ===//

#ifndef FARRIER_ANALYSIS_SINKRECIPE_H
#define FARRIER_ANALYSIS_SINKRECIPE_H

#include "farrier/Analysis/Graph.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/IRMapping.h"
#include "llvm/ADT/SetVector.h"

#include <optional>

namespace farrier {

/// How to make a value from much smaller ones by elementwise and shape operations alone: a causal mask
/// broadcast over heads, which JAX hoists out of the loop over layers, from an iota.
struct SinkRecipe {
  llvm::SetVector<mlir::Operation *> ops; ///< operands before users
  llvm::SetVector<mlir::Value> leaves;    ///< defined outside the recipe

  static std::optional<SinkRecipe> of(mlir::Value value, const SizeFn &size);
  /// Makes the value at the builder's place; leaves are looked up in `mapping`.
  mlir::Value make(mlir::OpBuilder &builder, mlir::Value value, mlir::IRMapping mapping) const;
};

} // namespace farrier

#endif // FARRIER_ANALYSIS_SINKRECIPE_H
