//===- RowEval.h - evaluate rows of a softmax-like part of a program ------===//
//
// Whether a part of a program computes attention is decided by running it, not by how it looks: everything
// between the product that makes scores and the products that read probabilities works row by row, so a few
// rows, each at a few columns, evaluated in double precision, show what it computes.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_FUSION_ROWEVAL_H
#define FARRIER_PASSES_FUSION_ROWEVAL_H

#include "passes/fusion/Roles.h"

#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/SetVector.h"

#include <string>
#include <vector>

namespace farrier::fusion {

/// Evaluates values at one row: fixed coordinates along every axis but `column`, and a list of columns.
/// Reductions run over the listed columns only.
class RowEval {
public:
  RowEval(llvm::ArrayRef<int64_t> sizes, unsigned column) : sizes(sizes), column(column) {}

  using Numbers = std::vector<double>; ///< one per column, or a single one for all

  llvm::SmallVector<int64_t> coordinates; ///< of the row; that of the column axis is ignored
  std::vector<int64_t> columns;
  /// Treat every reduction as zero: what is left is elementwise.
  bool withoutReductions = false;
  /// Where not null, what is known only at run time has arbitrary numbers, the same for the same seed: values
  /// that are not computed element by element are put there, unless `leavesAreKnown`: then only what is there
  /// is one.
  llvm::SetVector<mlir::Value> *leaves = nullptr;
  bool leavesAreKnown = false;
  uint64_t seed = 0;
  bool rounds = false;  ///< conversions to 16 bits round
  bool unknown = false; ///< leaves have no number (nan), and nothing that depends on them has one

  /// Gives `value` (whose axes lie as in `roles`) these numbers.
  void bind(mlir::Value value, const Roles &roles, Numbers numbers);
  /// Says that `value` is read back from where `source`, of the same type, was stored.
  void alias(mlir::Value value, mlir::Value source) { aliases[value] = source; }
  /// The numbers of a value whose axes lie as in `roles`; nullopt with `whyNot` and `where` set.
  std::optional<Numbers> evaluate(mlir::Value value, const Roles &roles);

  std::string whyNot;
  mlir::Operation *where = nullptr;
  /// Products met on the way that were not bound, with the roles they were met with.
  llvm::SmallVector<std::pair<mlir::Value, Roles>> unboundProducts;
  bool metTable = false; ///< a constant that is not one number was read: masks may be arbitrary

  void forget() { memo.clear(); }

private:
  std::optional<Numbers> compute(mlir::Value value, const Roles &roles);
  std::optional<Numbers> fail(mlir::Operation *op, const llvm::Twine &reason);
  std::optional<Numbers> elementwise(mlir::Operation *op, const Roles &roles);
  std::optional<Numbers> reduce(mlir::Operation *op, const Roles &roles);
  /// Arbitrary numbers for a value of which nothing is known but its type.
  std::optional<Numbers> leaf(mlir::Value value, const Roles &roles);
  std::optional<Numbers> table(mlir::Value value, const Roles &roles, mlir::Operation *op);
  /// Index along `dim` of the element at column number `i`; nullopt where the axes do not account for it.
  std::optional<int64_t> index(mlir::RankedTensorType type, const Roles &roles, int64_t dim, size_t i);

  llvm::ArrayRef<int64_t> sizes;
  unsigned column;
  /// One entry per way the value is seen: positions may serve as rows and as columns.
  llvm::DenseMap<mlir::Value, llvm::SmallVector<std::pair<Roles, Numbers>, 1>> memo;
  llvm::DenseMap<mlir::Value, std::pair<Roles, Numbers>> bound;
  llvm::DenseMap<mlir::Value, mlir::Value> aliases;
  unsigned depth = 0;
};

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_ROWEVAL_H
