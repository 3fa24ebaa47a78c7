//===- OneHot.h - masks that pick a few places of each row ----------------===//
//
// Dispatch and combine tensors of a mixture of experts are giant and almost all zero: of each token's
// [experts, capacity] at most as many elements differ from zero as experts were chosen. Which ones, the
// program says itself, where it compares positions with indices. A OneHotMask finds these comparisons behind
// a tensor, proves that nothing else can be different from zero, and gives the indices.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_FUSION_ONEHOT_H
#define FARRIER_PASSES_FUSION_ONEHOT_H

#include "passes/fusion/Build.h"
#include "passes/fusion/Roles.h"

#include <limits>
#include <map>
#include <string>
#include <vector>

namespace farrier::fusion {

/// An axis that the analysis of a mask names: one of its dimensions, one that something on the way sums over,
/// or a part of another one (after a slice, or inside padding).
struct MaskAxis {
  int64_t size = 1;
  std::optional<unsigned> whole; ///< the axis whose positions these are, `offset` added; else its own
  int64_t offset = 0;
  bool bound = false; ///< summed over inside
  /// Positions at which something on the way changes: padding begins or ends.
  llvm::SmallVector<int64_t, 2> cuts;
};

/// `index == position along axis`, somewhere behind the mask: true at one place of the axis at most.
struct PositionTest {
  mlir::Operation *op = nullptr;
  unsigned axis = 0;  ///< never a part of another
  int64_t offset = 0; ///< the test holds at position index - offset
  mlir::Value index;  ///< operand of the comparison
  Roles roles;        ///< of `index`
  Tensor origin;      ///< of `index`, before broadcasts and reshapes: what is the same has the same origin
  std::optional<unsigned> bound; ///< the bound axis along which `index` varies, if one does
  bool negated = false;          ///< the operation is `!=`
};

/// One way in which the mask's elements become different from zero: outer and inner tests hold together,
/// for some position of `inner`'s bound axis.
struct Pick {
  PositionTest outer; ///< "the expert is the chosen one": its index does not vary along the other's axis
  PositionTest inner; ///< "the slot is the token's": its index may vary along the first's axis
  int64_t count = 1;  ///< how many positions a row may have by this pick
};

/// What is known of an element: an interval, and whether it is a position in a running count.
struct Range {
  double lo = -std::numeric_limits<double>::infinity(), hi = std::numeric_limits<double>::infinity();
  bool isInteger = false;
  /// It is a number >= lo that differs between any two entries that were counted, or lies in
  /// [deadLo, deadHi].
  bool counts = false;
  double deadLo = std::numeric_limits<double>::infinity(), deadHi = -std::numeric_limits<double>::infinity();
  bool is(double number) const { return !counts && lo == number && hi == number; }
};

class OneHotMask {
public:
  explicit OneHotMask(mlir::Value mask);

  /// Finds the tests behind the mask and proves that elements which no pick reaches are zero, or are
  /// multiplied by zero in `factor` (which may be null).
  bool analyse(const Tensor &factor, std::string &whyNot);
  /// Whether it is certain that by each pick, each place of the picked axes is reached from one position
  /// along `rows` at most: the inner index is a running count along them.
  bool reachesOnce(llvm::ArrayRef<unsigned> rows, std::string &whyNot);

  mlir::Value mask;
  Roles roles; ///< of the mask: one axis for each dimension that is not 1
  std::vector<MaskAxis> axes;
  llvm::SmallVector<unsigned, 2> picked; ///< axes of the outer and inner tests
  llvm::SmallVector<Pick, 2> picks;
  /// Axes of the mask that are not picked.
  llvm::SmallVector<unsigned, 4> rows() const;
  bool looksLikeOne = false; ///< positions are tested along two axes: worth a remark if it fails

  /// Where the axes lie in the operands of the operation that makes `value`; nullopt where it does not work
  /// element by element along them.
  std::optional<llvm::SmallVector<Roles, 3>> operandRoles(mlir::Value value, const Roles &roles);
  unsigned addAxis(int64_t size, bool bound);
  /// The number, in row-major order over `along`, of the element at these positions (i32, of one shape).
  mlir::Value rowMajor(Maker &make, llvm::ArrayRef<unsigned> along,
                       llvm::function_ref<mlir::Value(unsigned axis)> position) const;
  /// The axes of a value that lie in it, bound or not.
  static bool carries(const Roles &roles, unsigned axis) { return axis < roles.size() && roles[axis]; }
  /// Whether a product sums over few enough elements that these may be a row's choices.
  static bool mayChoose(stablehlo::DotGeneralOp dot);
  bool carriesPart(const Roles &roles, unsigned axis) const;

private:
  friend class RangeEval;
  void collect();
  std::optional<PositionTest> positionTest(mlir::Operation *op, const Roles &roles);
  void collectCuts(mlir::Value value, const Roles &roles, unsigned depth);
  bool provesSupport(const Tensor &factor);
  bool isDistinctAlong(const PositionTest &test) const;
  static bool sameIndex(const PositionTest &a, const PositionTest &b);
  /// Whether some occurrence of the pick's inner test varies along this bound axis.
  bool isBoundIn(const Pick &pick, unsigned axis) const;
  /// Whether positions along this axis are tested anywhere.
  bool isTested(unsigned axis) const;

  std::vector<PositionTest> tests;
  std::map<std::pair<mlir::Operation *, int64_t>, unsigned> boundAxes;
  std::map<std::pair<mlir::Operation *, unsigned>, unsigned> partAxes;
};

/// Evaluates values at the places that a mask picks, or at the places that are picked.
class Sampler {
public:
  /// Results have the dimensions `dims`, followed by one for each axis that is neither kept nor placed.
  Sampler(Maker &make, OneHotMask &mask, llvm::ArrayRef<int64_t> dims)
      : make(make), mask(mask), dims(dims), rows(mask.rows()) {}

  void keep(unsigned axis, unsigned dim) { places[axis] = {dim, mlir::Value()}; }
  /// Takes the elements at `position`, i32 of shape `dims`. Positions outside are clamped.
  void place(unsigned axis, mlir::Value position) { places[axis] = {0, position}; }

  struct Sampled {
    mlir::Value value;
    llvm::SmallVector<unsigned, 4> extras; ///< ascending
  };
  /// nullopt where an index would not fit 32 bits.
  std::optional<Sampled> at(mlir::Value value, const Roles &roles);
  /// The position along an axis, i32 of shape `dims`.
  mlir::Value position(unsigned axis);
  /// With dimensions for all of `extras`.
  mlir::Value spread(const Sampled &sampled, llvm::ArrayRef<unsigned> extras);

private:
  struct Place {
    unsigned dim = 0;
    mlir::Value position; ///< null: kept as dimension `dim`
  };
  const Place *placeOf(unsigned axis, int64_t &offset) const;
  bool isOuterProduct(stablehlo::DotGeneralOp dot, llvm::ArrayRef<Roles> inner) const;
  std::optional<Sampled> compute(mlir::Value value, const Roles &roles);
  std::optional<Sampled> leaf(mlir::Value value, const Roles &roles);
  std::optional<Sampled> sum(mlir::Operation *op, Sampled product, llvm::ArrayRef<unsigned> over,
                             mlir::Value start);
  llvm::SmallVector<int64_t> shape(llvm::ArrayRef<unsigned> extras) const;

  Maker &make;
  OneHotMask &mask;
  llvm::SmallVector<int64_t> dims;
  llvm::SmallVector<unsigned, 4> rows; ///< axes of the mask that are not picked
  llvm::DenseMap<unsigned, Place> places;
  llvm::DenseMap<mlir::Value, llvm::SmallVector<std::pair<Roles, Sampled>, 1>> memo;
};

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_ONEHOT_H
