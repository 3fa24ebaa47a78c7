//===- ScalarEval.h - evaluate scalar integer expressions ------------------===//

#ifndef FARRIER_ANALYSIS_SCALAREVAL_H
#define FARRIER_ANALYSIS_SCALAREVAL_H

#include "mlir/IR/Value.h"
#include "llvm/ADT/DenseMap.h"

#include <optional>

namespace farrier {

/// Evaluates scalar (rank 0, or one element) integer and boolean expressions of StableHLO with some values
/// given: how an index depends on a loop's iteration, proven by evaluating it for each. Values are wrapped to
/// their type's width as the program would.
class ScalarEval {
public:
  void bind(mlir::Value value, int64_t number) { known[value] = number; }

  /// The value, or nullopt when it depends on something not bound or on an operation not understood.
  std::optional<int64_t> evaluate(mlir::Value value) { return evaluate(value, 0); }

private:
  std::optional<int64_t> evaluate(mlir::Value value, unsigned depth);
  llvm::DenseMap<mlir::Value, std::optional<int64_t>> known;
};

} // namespace farrier

#endif // FARRIER_ANALYSIS_SCALAREVAL_H
