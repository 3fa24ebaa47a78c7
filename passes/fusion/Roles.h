//===- Roles.h - several named axes through a part of a program -----------===//

#ifndef FARRIER_PASSES_FUSION_ROLES_H
#define FARRIER_PASSES_FUSION_ROLES_H

#include "farrier/Analysis/Axis.h"

#include "llvm/ADT/DenseMap.h"

namespace farrier::fusion {

class Maker;

/// Where each of several axes lies in a value; nullopt: the value does not vary along it.
using Roles = llvm::SmallVector<std::optional<AxisPlace>, 6>;

/// A value with the roles of its dimensions: the axes of attention scores, and one more for the feature
/// dimension that scores do not have.
struct Tensor {
  mlir::Value value;
  Roles roles; ///< axes of the scores, then the feature axis

  explicit operator bool() const { return static_cast<bool>(value); }
  bool operator==(const Tensor &other) const { return value == other.value && roles == other.roles; }
  bool operator!=(const Tensor &other) const { return !(*this == other); }
};

/// Follows widening conversions, transposes and reshapes back to where the values were made, keeping track of
/// the axes. Two tensors are the same data in the same order of axes if they have the same origin.
/// `aliases` maps values read back from a stack to what was stored there.
Tensor originOf(Tensor tensor, llvm::ArrayRef<int64_t> sizes,
                const llvm::DenseMap<mlir::Value, mlir::Value> *aliases = nullptr);

/// Roles of `value` given those of `origin`, from which it is made by conversions, transposes and reshapes
/// only; nullopt if it is not.
std::optional<Tensor> derivedFrom(mlir::Value value, const Tensor &origin, llvm::ArrayRef<int64_t> sizes);

/// Whether the roles account for every element: each dimension is exactly the product of its axes.
bool coversAll(const Tensor &tensor, llvm::ArrayRef<int64_t> sizes);

/// Where the axes lie in the operand of a broadcast, reshape or transpose, by where they lie in its result;
/// nullopt where it mixes them.
std::optional<Roles> rolesBeforeMove(mlir::Operation *op, const Roles &roles, llvm::ArrayRef<int64_t> sizes);

/// Axes of a tensor in the order in which they lie in memory.
llvm::SmallVector<unsigned> layoutOrder(const Roles &roles);

/// `value`, whose axes lie in the order `from`, as a tensor with one dimension for each axis of `to`; left as
/// it is where the orders are the same.
mlir::Value permuteAxes(Maker &make, mlir::Value value, llvm::ArrayRef<unsigned> from,
                        llvm::ArrayRef<unsigned> to, llvm::ArrayRef<int64_t> sizes);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_ROLES_H
