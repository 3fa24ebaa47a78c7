//===- ScalarEval.h - evaluate scalar integer expressions ------------------===//

#ifndef FARRIER_ANALYSIS_SCALAREVAL_H
#define FARRIER_ANALYSIS_SCALAREVAL_H

#include "mlir/IR/Value.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/SmallVector.h"

#include <optional>
#include <vector>

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

/// The same expressions, to be evaluated many times with other numbers: each operation is looked at once.
class ScalarProgram {
public:
  /// A value whose number each run is given; all are bound before the first `add`. Returns its place.
  unsigned bind(mlir::Value value);
  /// What each run is to compute. Returns its place.
  unsigned add(mlir::Value value) { return add(value, 0); }

  void set(unsigned place, int64_t number) { numbers[place] = number; }
  void run();
  /// The number there after the last run, or nullopt as from `ScalarEval`.
  std::optional<int64_t> get(unsigned place) const { return numbers[place]; }

private:
  struct Step {
    mlir::Operation *op;
    llvm::SmallVector<unsigned, 3> operands;
    unsigned result;
  };
  unsigned add(mlir::Value value, unsigned depth);

  llvm::DenseMap<mlir::Value, unsigned> places;
  std::vector<std::optional<int64_t>> numbers;
  std::vector<Step> steps;
};

} // namespace farrier

#endif // FARRIER_ANALYSIS_SCALAREVAL_H
