//===- LoopsWhile.h - what the operands of one loop are ---------------------===//

#ifndef FARRIER_PASSES_REMAT_LOOPSWHILE_H
#define FARRIER_PASSES_REMAT_LOOPSWHILE_H

#include "farrier/Analysis/ScalarEval.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/DenseMap.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace farrier::remat {

/// A `stablehlo.while` whose trip count and counters are known numbers.
class WhileLoop {
public:
  enum class Kind {
    Number,    ///< a scalar integer known at every iteration: counters, bounds
    Invariant, ///< handed on unchanged
    Stack,     ///< only ever updated by one dynamic_update_slice
    Carry,     ///< anything else
  };
  struct Affine {
    int64_t start = 0, step = 0;
  };

  /// Nullopt, with the reason, if the loop does not run a known number of times.
  static std::optional<WhileLoop> analyse(stablehlo::WhileOp op, std::string &reason);

  /// The same loop, with nothing evaluated yet.
  WhileLoop copy() const;

  mlir::Block &cond() const { return op->getRegion(0).front(); }
  mlir::Block &body() const { return op->getRegion(1).front(); }
  mlir::Operation *terminator() const { return body().getTerminator(); }
  unsigned size() const { return kinds.size(); }
  bool isBodyArgument(mlir::Value value) const;

  /// The number at the start of each iteration, and after the last one.
  llvm::ArrayRef<int64_t> numbers(unsigned operand) const { return numbersOf.find(operand)->second; }
  /// Set if the numbers of a `Number` advance by a constant.
  std::optional<Affine> affine(unsigned operand) const;
  /// A scalar integer of the body in each iteration; null if it depends on more than numbers.
  const std::vector<int64_t> *evaluate(mlir::Value value);
  /// Which slice along the first dimension each iteration touches, if it is exactly one that is in range:
  /// sizes [1, rest...] at [i, 0...].
  std::optional<std::vector<int64_t>> slots(mlir::ValueRange starts, mlir::Type whole, mlir::Type slice);
  /// The write of a `Stack`.
  stablehlo::DynamicUpdateSliceOp write(unsigned operand) const;

  stablehlo::WhileOp op;
  int64_t trips = 0;
  std::vector<Kind> kinds;
  /// An operand that counts iterations by steps of one, up or down; -1 if none.
  int counter = -1;

private:
  bool simulate(std::string &reason);
  void classify();

  llvm::DenseMap<unsigned, std::vector<int64_t>> numbersOf;
  llvm::DenseMap<mlir::Value, std::unique_ptr<std::vector<int64_t>>> evaluated;
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_LOOPSWHILE_H
