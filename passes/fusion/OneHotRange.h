//===- OneHotRange.h - what the elements of a mask can be, under assumptions ===//

#ifndef FARRIER_PASSES_FUSION_ONEHOTRANGE_H
#define FARRIER_PASSES_FUSION_ONEHOTRANGE_H

#include "passes/fusion/OneHot.h"

namespace farrier::fusion {

/// Up to this number, an element type holds every whole number.
double exactIntegers(mlir::Type element);

/// What is assumed of the position tests behind a mask.
struct Assumptions {
  /// Nothing is assumed of any pick.
  explicit Assumptions(size_t picks) : fails(picks, Nothing), within(picks) {}

  enum Fails : char { Nothing, Outer, Inner, Either };
  llvm::SmallVector<Fails, 2> fails; ///< of each pick
  /// The bound axis at whose every position by itself this holds; nullopt: at all positions of all.
  llvm::SmallVector<std::optional<unsigned>, 2> within;
  /// The first and last position that is looked at along an axis, where not all are.
  std::map<unsigned, std::pair<int64_t, int64_t>> region;
  /// Or: the tests of this pick hold (at one position of their bound axis).
  std::optional<unsigned> active;
  llvm::SmallVector<unsigned, 2> rows; ///< axes along which running counts are followed
  /// Bound axes met on the way, and whether the outer test holds at the position that is looked at.
  llvm::SmallVector<std::pair<unsigned, bool>, 2> cases;
};

/// Evaluates one element of a value, wherever it lies, to an interval. Numbers are taken to be finite: zero
/// times anything is zero.
class RangeEval {
public:
  RangeEval(OneHotMask &mask, Assumptions assume) : mask(mask), assume(std::move(assume)) {}
  Range evaluate(mlir::Value value, const Roles &roles);

private:
  Range compute(mlir::Value value, const Roles &roles);
  Range elementwise(mlir::Operation *op, llvm::ArrayRef<Range> in, llvm::ArrayRef<Roles> roles);
  Range combine(mlir::Operation *op, const Range &a, const Range &b);
  Range reduction(mlir::Operation *combiner, const Range &body, double count, const Range &start);
  Range overBound(mlir::Operation *op, const llvm::SmallVector<Roles, 3> &inner);
  /// Of running sums along a dimension of `op`'s first operand.
  Range runningCount(mlir::Operation *op, int64_t along, const Roles &roles);
  std::optional<bool> truth(const PositionTest &test) const;
  /// First and last position along an axis.
  std::pair<int64_t, int64_t> positions(unsigned axis) const;
  bool isSameForAllRows(mlir::Value value, const Roles &roles);

  OneHotMask &mask;
  Assumptions assume;
  llvm::DenseMap<mlir::Value, llvm::SmallVector<std::pair<Roles, Range>, 1>> memo;
};

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_ONEHOTRANGE_H
