#include "passes/remat/BlockUnits.h"

#include "passes/remat/Gradients.h"
#include "passes/remat/LoopPlanner.h"
#include "passes/remat/Loops.h"

#include "farrier/Analysis/HostMemory.h"

#include <algorithm>

using namespace mlir;

namespace farrier::remat {

BlockUnit::BlockUnit(const NamedBlock &named, CostModel &costs, const PlanOptions &options, SizeFn size,
                     ForbidFn forbid)
    : named(named), unit(*named.block, costs, options.smallBytes, size, std::move(forbid)),
      partitioned(isPartitioned(*named.block)), machine(options.machine), before(computeBefore(unit, costs)) {
  std::vector<int64_t> profile = unit.getLiveness().profile();
  if (!profile.empty())
    peak = *std::max_element(profile.begin(), profile.end());
}

int64_t BlockUnit::peakWith(const llvm::DenseMap<Operation *, int64_t> &less) const {
  int64_t most = 0;
  for (auto [op, bytes] : llvm::zip(unit.getGraph().ops, unit.getLiveness().profile()))
    most = std::max(most, bytes - less.lookup(op));
  return most;
}

const Evaluated &BlockUnit::evaluated(const std::vector<unsigned> &cuts, const OffloadRules &rules, bool fine,
                                      bool byFlops) {
  auto [entry, fresh] = known.try_emplace({unit.getBoundary(), cuts, rules.onlyAsked, fine, byFlops});
  Evaluated &result = entry->second;
  if (fresh) {
    result.segmentation = unit.segmentAt(cuts);
    offerSegments(unit, result.segmentation, before, machine, rules);
    result.evaluation = std::make_unique<Evaluation>(unit, result.segmentation, fine, byFlops);
  }
  return result;
}

BlockUnits::BlockUnits(ModuleOp module, const PlanOptions &options) : costs(module, options.machine) {
  ForbidFn forbid = forbidFrom(options.keep);
  SizeFn size = deviceMemory(module);
  llvm::DenseMap<Operation *, int64_t> around; // while it runs, of those that hold blocks
  for (const NamedBlock &named : plannableBlocks(module)) {
    BlockUnit &block = units.emplace_back(named, costs, options, size, forbid);
    block.around = around.lookup(named.block->getParentOp());
    if (llvm::none_of(*named.block, [](Operation &op) { return runsBlocks(&op); }))
      continue;
    MemoryEstimate estimate(*named.block, size);
    std::vector<int64_t> outside = estimate.getLiveness().profile(nullptr, /*inner=*/false);
    for (auto [op, bytes] : llvm::zip(estimate.getGraph().ops, outside))
      if (runsBlocks(op))
        around[op] = block.around + bytes;
  }
}

} // namespace farrier::remat
