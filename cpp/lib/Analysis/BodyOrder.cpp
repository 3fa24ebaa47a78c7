#include "farrier/Analysis/BodyOrder.h"

#include "farrier/Analysis/LatencyHiding.h"
#include "farrier/Analysis/MemoryOrder.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/SetVector.h"

#include <numeric>

using namespace mlir;

namespace farrier {

/// Whether the block is what a loop runs in each iteration.
static bool isBody(const BlockGraph &graph) {
  auto loop = dyn_cast_or_null<stablehlo::WhileOp>(graph.block.getParentOp());
  return loop && graph.numOps() > 0 && graph.block.getParent() == &loop.getBody();
}

/// Whether there are copies to hide: writes into stacks, or slices that kernels read as they are, such as products, which
/// compute no more than what needs one operand. Other kernels read a slice where it lies, as they do the tokens of a part of
/// a batch.
static bool copiesSlices(const BlockGraph &graph) {
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    if (isa<stablehlo::DynamicUpdateSliceOp>(graph.ops[op]))
      return true;
    if (!isa<stablehlo::DynamicSliceOp>(graph.ops[op]))
      continue;
    llvm::SetVector<unsigned> same;
    same.insert(graph.outputs[op][0]);
    for (unsigned next = 0; next < same.size(); ++next)
      for (unsigned user : graph.users[same[next]]) {
        if (isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp, stablehlo::CustomCallOp, stablehlo::WhileOp>(
                graph.ops[user]))
          return true;
        if (graph.isVirtual[user] && graph.inputs[user].size() == 1 &&
            graph.bytes[graph.outputs[user][0]] >= graph.bytes[same[next]])
          same.insert(graph.outputs[user][0]);
      }
  }
  return false;
}

SiblingTimes runningOrder(const BlockGraph &graph, const RootSets &roots, Order order) {
  std::vector<unsigned> time(graph.numOps());
  std::iota(time.begin(), time.end(), 0);
  if (order == Order::Program)
    return {time, time, {}};
  SiblingTimes joined = joinSiblings(graph, roots, std::move(time), /*onlyMasks=*/order == Order::Scheduled);
  bool hides = (isBody(graph) && copiesSlices(graph)) || llvm::any_of(graph.ops, isCollective);
  if (hides)
    return hidingLatencies(graph, roots, joined);
  switch (order) {
  case Order::List:
    return memoryOrder(graph, roots, joined, MemoryOrder::List);
  case Order::DepthFirst:
    return memoryOrder(graph, roots, joined, MemoryOrder::DepthFirst);
  case Order::PostOrder:
    return memoryOrder(graph, roots, joined, MemoryOrder::PostOrder);
  default:
    return joined;
  }
}

} // namespace farrier
