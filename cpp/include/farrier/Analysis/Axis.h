//===- Axis.h - where one logical axis lies in every tensor that carries it ===//
//
// A rewrite that cuts a computation along an axis ("tokens") must know, for every operation on the way,
// where that axis lies in its operands and results. Transposes move it, reshapes merge it with neighbours,
// reductions and products sum over it. Nothing here knows what the program means: an operation is either
// understood ("row by row along the axis"), or the answer is no.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_AXIS_H
#define FARRIER_ANALYSIS_AXIS_H

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Operation.h"
#include "llvm/ADT/SmallVector.h"

#include <optional>

namespace mlir {
class OpBuilder;
} // namespace mlir

namespace farrier {

/// The axis fills the middle of dimension `dim`, whose extent is outer * size * inner (row-major: `outer`
/// varies slowest). outer == inner == 1 where it has the dimension for itself.
struct AxisPlace {
  int64_t dim = 0, outer = 1, inner = 1;
  bool operator==(const AxisPlace &other) const {
    return dim == other.dim && outer == other.outer && inner == other.inner;
  }
  bool operator!=(const AxisPlace &other) const { return !(*this == other); }
};

/// What an operation does along the axis.
struct AxisFlow {
  /// Map: result element i along the axis needs operand elements i only. Sum: the operation adds up over
  /// the axis (a product that contracts it, a sum reduction).
  enum Kind { Map, Sum } kind = Map;
  /// Where the axis lies; nullopt: the operand is the same for the whole axis.
  llvm::SmallVector<std::optional<AxisPlace>, 4> operands, results;
};

/// The flow through `op` given where the axis lies in one of its operands; nullopt if not understood.
std::optional<AxisFlow> flowFromOperand(mlir::Operation *op, unsigned operand, AxisPlace place, int64_t size);

/// The flow through `op` (a Map) given where the axis lies in one of its results.
std::optional<AxisFlow> flowFromResult(mlir::Operation *op, unsigned result, AxisPlace place, int64_t size);

/// `type` with `size` elements of the axis replaced by `chunk`.
mlir::RankedTensorType chunkedType(mlir::RankedTensorType type, AxisPlace place, int64_t chunk, int64_t size);

/// A copy of `op`, of what it does along the axis, on `operands` that hold a part of the axis, with results of
/// `types`. A constant must be one number everywhere.
mlir::Operation *cloneOnPart(mlir::OpBuilder &builder, mlir::Operation *op, const AxisFlow &flow,
                             mlir::ValueRange operands, mlir::TypeRange types);

/// The type in which parts of a sum are added up: in f32 what is narrower, whatever the sum is rounded to at the end.
mlir::RankedTensorType wideSum(mlir::RankedTensorType type);

/// Whether a computation of two scalars gives their sum.
bool isSum(mlir::Block &block);

/// Whether every element of the result depends only on the elements at the same place of operands of the
/// same shape (scalars allowed beside them: select, clamp).
bool isElementwise(mlir::Operation *op);

/// Whether the operation passes its operand on and says only how it is split over devices.
bool isAnnotation(mlir::Operation *op);

inline mlir::RankedTensorType tensorType(mlir::Value value) {
  return llvm::dyn_cast<mlir::RankedTensorType>(value.getType());
}

} // namespace farrier

#endif // FARRIER_ANALYSIS_AXIS_H
