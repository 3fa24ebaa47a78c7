//===- Parts.h - a region that a group's devices work on in parts ----------===//

#ifndef FARRIER_PASSES_COLLECTIVES_PARTS_H
#define FARRIER_PASSES_COLLECTIVES_PARTS_H

#include "passes/collectives/Devices.h"

#include "farrier/Analysis/Axis.h"

#include "mlir/IR/Builders.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/SetVector.h"

namespace farrier::collectives {

/// Gathers may carry this part of what the reductions carried before, and no more: a reduction is a scatter and a
/// gather, so nothing more is sent.
constexpr double kGathered = 1.02;

constexpr llvm::StringLiteral kFrontend = "mhlo.frontend_attributes";

/// One element of a loop's state, or one operand of a barrier: its operands and results are one value that is
/// handed on.
using Link = std::pair<mlir::Operation *, unsigned>;

/// The link that a use of a value is: an operand of a loop or a barrier, or what a loop's body hands on.
std::optional<Link> linkOf(mlir::OpOperand &use);

/// The link that makes a value.
std::optional<Link> linkOf(mlir::Value value);

/// What a link reads.
llvm::SmallVector<mlir::Value, 2> sources(Link link);

/// What a link makes.
llvm::SmallVector<mlir::Value, 2> targets(Link link);

/// Operations on values that a group's devices agree on, each of which can do its part of an axis.
class Parts {
public:
  Parts(mlir::Operation *manual, const Groups &groups, const Agreement &agree, int64_t size, bool regroup)
      : manual(manual), groups(groups), agree(agree), size(size), count(groups.front().size()),
        regroup(regroup) {}

  void grow(mlir::Operation *seed, AxisPlace place, const llvm::DenseSet<mlir::Operation *> &seedable,
            const llvm::DenseSet<Link> &whole);
  /// Decides what has to be whole again, and what that costs.
  void settle();
  /// Says which of the operations that were there are erased, before they are.
  void emit(llvm::function_ref<void(mlir::Operation *)> erased);

  /// Bytes sent by the reductions that are scattered, by the gathers and reductions that come instead, and bytes
  /// of results of which each device makes its part only; loops count as often as they run.
  double scattered = 0, gathered = 0, worked = 0;
  int64_t reductions = 0, gathers = 0, sums = 0;
  llvm::SmallVector<Link> links;

  bool contains(mlir::Operation *op) const { return flows.contains(op) || seeds.contains(op); }
  bool pays() const {
    bool saves = gathered <= scattered / 2 || worked >= scattered / 2;
    return scattered > 0 && saves && gathered <= kGathered * scattered;
  }

private:
  void assign(mlir::Value value, AxisPlace place) {
    if (places.try_emplace(value, place).second)
      worklist.push_back(value);
  }
  bool runsAlike(mlir::Operation *op) const;
  bool fits(mlir::Value value, const std::optional<AxisPlace> &place) const;
  void tryAdd(mlir::Operation *op, const std::optional<AxisFlow> &flow);
  void tryLink(Link link, AxisPlace place, const llvm::DenseSet<Link> &whole);
  void follow(mlir::OpOperand &use, AxisPlace place, const llvm::DenseSet<Link> &whole);
  bool takesPart(mlir::OpOperand &use) const;
  bool isOwnPart(mlir::OpOperand &use) const;
  double weight(mlir::Block *block) const;
  void forEachValue(llvm::function_ref<void(mlir::Value)> visit);

  mlir::Value part(mlir::Value value, AxisPlace place);
  mlir::Value offset(int64_t rows);
  mlir::Operation *collective(mlir::OpBuilder &builder, mlir::Location loc, llvm::StringRef name, llvm::StringRef dimension, int64_t dim,
                        mlir::Value operand, mlir::Type type, mlir::Operation *like);
  void clone(mlir::Operation *op);
  void scatter(mlir::Operation *op);

  mlir::Operation *manual;
  const Groups &groups;
  const Agreement &agree;
  int64_t size, count;
  bool regroup;
  llvm::DenseMap<mlir::Value, AxisPlace> places;
  llvm::DenseMap<mlir::Operation *, AxisFlow> flows;
  llvm::DenseSet<mlir::Operation *> seeds;
  llvm::DenseSet<Link> linked;
  llvm::SmallVector<mlir::Value> worklist;
  /// Values whose whole is needed and is gathered; in program order.
  llvm::SmallVector<mlir::Value> whole;
  llvm::DenseMap<mlir::Value, mlir::Value> parts;
  llvm::DenseMap<int64_t, mlir::Value> offsets;
  mlir::Value position;
  llvm::SetVector<mlir::Operation *> fresh; ///< what was made here, and what reads parts since
  mlir::Operation *model = nullptr; ///< a reduction whose groups the new collectives have
};

} // namespace farrier::collectives

#endif // FARRIER_PASSES_COLLECTIVES_PARTS_H
