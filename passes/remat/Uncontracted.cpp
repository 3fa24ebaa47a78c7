//===- Uncontracted.cpp - straight-line blocks as an exact solver wants them -===//
//
// For benchmarks: what may be kept or computed again in a block that is planned as a straight line, operation by
// operation instead of by segments and root sets, with the memory that is there whatever is chosen.
//
//===----------------------------------------------------------------------===//

#include "passes/remat/Loops.h"
#include "passes/remat/Rematerialization.h"
#include "passes/remat/StraightLine.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Support/Registry.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

#include <algorithm>

using namespace mlir;

namespace farrier::remat {

llvm::json::Object StraightLine::uncontracted() const {
  auto recomputable = [&](unsigned value) {
    unsigned op = graph->definition[value];
    // What the planner always keeps; elementwise values of any size it computes again where they are read.
    if (graph->bytes[value] < smallBytes && !graph->isVirtual[op])
      return false;
    return isClonable(graph->ops[op]) && !(forbid && forbid(graph->ops[op]));
  };
  // Every forward value that the backward part reads, and what those can be made of.
  std::vector<bool> wanted(graph->numValues(), false);
  for (const Read &read : reads)
    wanted[read.value] = true;
  for (unsigned value = graph->numValues(); value-- > 0;)
    if (wanted[value] && recomputable(value))
      for (unsigned input : graph->inputs[graph->definition[value]])
        wanted[input] = wanted[input] || (isForward(input) && !isConstant(input));

  llvm::DenseMap<unsigned, int64_t> index;
  llvm::json::Array values, events, base, before;
  for (unsigned value = 0; value < graph->numValues(); ++value) {
    if (!wanted[value])
      continue;
    unsigned op = graph->definition[value];
    OpCost cost = costs.cost(graph->ops[op]);
    int64_t beside = liveness->innerPeak(op);
    for (unsigned copied : buffers->copiesFor(op))
      beside += graph->bytes[copied];
    llvm::json::Array operands;
    for (unsigned input : graph->inputs[op])
      if (auto it = index.find(input); it != index.end())
        operands.push_back(it->second);
    bool stored = buffers->isRoot(value);
    auto joined = merged.find(op);
    index[value] = values.size();
    values.push_back(llvm::json::Object{
        {"key", keys->key(graph->values[value]).str()},
        {"operation", op},
        {"merged", joined == merged.end() ? static_cast<int64_t>(op) : static_cast<int64_t>(joined->second)},
        {"bytes", stored && !liveness->range(value).live ? 0 : graph->bytes[value]},
        {"seconds", costOfAgain(op, cost.seconds)},
        {"recomputable", recomputable(value)},
        {"stored", stored},
        {"elementwise", bool(graph->isVirtual[op])},
        {"kept_from", lastStored[value] + 1},
        {"last_read", stored && liveness->range(value).live ? liveness->range(value).last : graph->numOps()},
        {"beside_bytes", beside},
        {"operands", std::move(operands)}});
  }
  for (const Read &read : reads) {
    // Where the program as it stands reads a value last, its memory may serve the result.
    unsigned last = reach[read.op];
    const Liveness::Range &range = liveness->range(read.value);
    if (range.live && range.last > boundary)
      last = std::min(last, range.last);
    events.push_back(llvm::json::Array{read.op, last, index.lookup(read.value), bool(graph->isVirtual[read.op])});
  }
  for (int64_t bytes : profileWithoutResiduals())
    base.push_back(bytes);
  // Right before an operation runs, what it makes is not there yet.
  std::vector<int64_t> delta(graph->numOps() + 2, 0);
  for (unsigned value = 0; value < graph->numValues(); ++value)
    if (const Liveness::Range &range = liveness->range(value); range.live && !isResidual(value)) {
      delta[range.first + 1] += graph->bytes[value];
      delta[range.last + 1] -= graph->bytes[value];
    }
  int64_t live = 0;
  for (unsigned op = 0; op < graph->numOps(); ++op)
    before.push_back(live += delta[op]);
  return llvm::json::Object{{"boundary", boundary},
                            {"values", std::move(values)},
                            {"reads", std::move(events)},
                            {"base_bytes", std::move(base)},
                            {"before_bytes", std::move(before)}};
}

/// remat.blocks: {"machine"} -> {"blocks"}: of each public function with a forward and a backward part, and of each place
/// where the backward part may be said to begin ("boundary": the last forward operation),
///  - "values" that may be kept or computed again, operands first: "key", "operation" and "merged" (the same for results
///    of one operation, and of products that XLA makes one), "bytes", "seconds" of computing it again, "recomputable",
///    "stored" (or else computed inside the kernels that read it), "elementwise", "kept_from" (the first operation from which it is there
///    only if it is kept), "last_read" (the last operation that reads it in the program as it stands, directly or through
///    values that are not stored), "beside_bytes" while it is computed, "operands" (places in the list);
///  - "reads" of the backward part: [operation, the last that reads through it, value, whether it is elementwise];
///  - "base_bytes" during each operation, whatever is chosen, and "before_bytes": right before it, in the backward part.
static FailureOr<llvm::json::Value> describe(ModuleOp module, const llvm::json::Object &options) {
  OwningOpRef<ModuleOp> copy(module.clone());
  inlineCalls(*copy);
  readThroughConcatenations(*copy);
  CostModel costs(*copy, Machine::fromJSON(options.getObject("machine")));
  SizeFn size = deviceMemory(*copy);
  llvm::json::Array blocks;
  for (auto function : copy->getOps<func::FuncOp>()) {
    if (!function.isPublic() || !function.getBody().hasOneBlock())
      continue;
    StraightLine unit(function.getBody().front(), costs, defaultSmallBytes, size);
    for (unsigned boundary : unit.worthwhile() ? unit.getBoundaries() : llvm::ArrayRef<unsigned>()) {
      unit.setBoundary(boundary);
      blocks.push_back(unit.uncontracted());
    }
  }
  return llvm::json::Value(llvm::json::Object{{"blocks", std::move(blocks)}});
}

void registerUncontracted() { registerQuery("remat.blocks", describe); }

} // namespace farrier::remat
