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

const Evaluated &BlockUnit::evaluated(const std::vector<unsigned> &cuts, const OffloadRules &rules, bool fine) {
  auto [entry, fresh] = known.try_emplace({unit.getBoundary(), cuts, rules.onlyAsked, fine});
  Evaluated &result = entry->second;
  if (fresh) {
    result.segmentation = unit.segmentAt(cuts);
    offerSegments(unit, result.segmentation, before, machine, rules);
    result.evaluation = std::make_unique<Evaluation>(unit, result.segmentation, fine);
  }
  return result;
}

BlockUnits::BlockUnits(ModuleOp module, const PlanOptions &options)
    : costs(module, options.machine), paired(pairedLoops(module, costs)) {
  ForbidFn forbid = [this, named = forbidFrom(options.keep)](Operation *op) {
    return paired.contains(op) || (named && named(op));
  };
  SizeFn size = deviceMemory(module);
  for (const NamedBlock &named : plannableBlocks(module))
    units.emplace_back(named, costs, options, size, forbid);
}

} // namespace farrier::remat
