//===- RaggedDot.h - what XLA:GPU makes of chlo.ragged_dot -----------------===//
//
// A ragged product multiplies each group of rows by a matrix of its own. XLA:GPU expands it into a dense product: of
// what is ragged it writes one copy for each group, with zeros where the rows are another group's, and multiplies all
// of them. So the product does its work once for each group, and reads buffers as many times the size of its operands.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_RAGGEDDOT_H
#define FARRIER_ANALYSIS_RAGGEDDOT_H

#include "farrier/Analysis/Graph.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/StringMap.h"

#include <optional>

namespace farrier {

/// The lists in `#chlo.ragged_dot<lhs_contracting_dimensions = [1], ...>` of a `chlo.ragged_dot`; the dialect is not
/// ours to know, so the attribute is read as the text it prints as. Nothing where the text is of another shape.
std::optional<llvm::StringMap<llvm::SmallVector<int64_t>>> raggedNumbers(mlir::Operation *op);

/// A ragged product of known shapes.
struct RaggedDot {
  int64_t groups = 1;
  bool sums = false; ///< the contracted dimension is ragged: one result for each group
  double flops = 0;  ///< of the dense product
  llvm::SmallVector<mlir::Value, 2> masked; ///< operands that it reads a copy of for each group

  /// Nothing for another operation, or where a shape is not known.
  static std::optional<RaggedDot> of(mlir::Operation *op);
};

/// Bytes of masked copies that live while each operation of the block runs, at the place in `time`.
///
/// Products that keep the rows read a copy in another order than those that sum over them. What the latter read of one
/// shape and one division into groups is written by one kernel, once the last of it is there, unless that needs a
/// product of an earlier one: then they run one after the other. Each copy is kept until its last product.
std::vector<int64_t> maskedCopies(const BlockGraph &graph, llvm::ArrayRef<unsigned> time);

} // namespace farrier

#endif // FARRIER_ANALYSIS_RAGGEDDOT_H
