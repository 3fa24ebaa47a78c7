//===- BlockUnits.h - the blocks of a program, prepared for any budget ------===//

#ifndef FARRIER_PASSES_REMAT_BLOCKUNITS_H
#define FARRIER_PASSES_REMAT_BLOCKUNITS_H

#include "passes/remat/OffloadStraight.h"
#include "passes/remat/PlanApply.h"
#include "passes/remat/Planner.h"
#include "passes/remat/SegmentSearch.h"

#include <deque>
#include <map>
#include <tuple>

namespace farrier::remat {

/// One way to cut a block and what every choice in it has in memory.
struct Evaluated {
  Segmentation segmentation;
  std::unique_ptr<Evaluation> evaluation; ///< refers to `segmentation`
};

/// A block with what is known of it whatever the budget. Ways to cut it are evaluated when first asked for.
class BlockUnit {
public:
  BlockUnit(const NamedBlock &named, CostModel &costs, const PlanOptions &options, SizeFn size, ForbidFn forbid);

  /// The forward part ends at the unit's boundary, which is set before. `fine`, `byFlops`: as `Evaluation` says.
  const Evaluated &evaluated(const std::vector<unsigned> &cuts, const OffloadRules &rules, bool fine, bool byFlops);

  NamedBlock named;
  StraightLine unit;
  bool partitioned;
  int64_t peak = 0;   ///< as the program has it
  int64_t around = 0; ///< what is there outside of the block while it runs, as the program has it

  /// The peak where the blocks of these operations need so many bytes less.
  int64_t peakWith(const llvm::DenseMap<mlir::Operation *, int64_t> &less) const;

private:
  Machine machine;
  std::vector<double> before;
  std::map<std::tuple<unsigned, std::vector<unsigned>, bool, bool, bool>, Evaluated> known;
};

/// The blocks of `module`, in which pairs of loops are decided; it must not change while they are used.
class BlockUnits {
public:
  BlockUnits(mlir::ModuleOp module, const PlanOptions &options);
  BlockUnits(const BlockUnits &) = delete;

  std::deque<BlockUnit> units;

private:
  CostModel costs;
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_BLOCKUNITS_H
