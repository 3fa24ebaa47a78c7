#include "farrier/Analysis/Losses.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/OpInfo.h"

#include "mlir/IR/BuiltinTypes.h"

using namespace mlir;

namespace farrier {

/// The most that a loss by token takes, beside the largest value too.
static constexpr int64_t lossBytes = 256 << 10, lossShare = 64;

/// Operations whose results are as small as a loss, and only given to the block's results.
static std::vector<bool> losses(const BlockGraph &graph) {
  std::vector<bool> isLoss(graph.numOps(), false);
  if (graph.bytes.empty()) // effects alone
    return isLoss;
  int64_t small = std::min(lossBytes, *llvm::max_element(graph.bytes) / lossShare);
  for (unsigned op = graph.numOps() - 1; op-- > 0;)
    isLoss[op] = (isCollective(graph.ops[op]) || !runsBlocks(graph.ops[op])) &&
                 llvm::all_of(graph.outputs[op], [&](unsigned value) {
                   return graph.bytes[value] <= small && llvm::all_of(graph.users[value], [&](unsigned user) {
                     return graph.isTerminator(user) || isLoss[user];
                   });
                 });
  return isLoss;
}

/// What an elementwise operation of more than one element reads, with the number of elements: what kernels are joined by.
static llvm::SmallVector<std::pair<unsigned, int64_t>> readings(const BlockGraph &graph, const RootSets &roots, unsigned op) {
  auto type = graph.outputs[op].size() == 1 ? dyn_cast<RankedTensorType>(graph.values[graph.outputs[op][0]].getType())
                                            : RankedTensorType();
  llvm::SmallVector<std::pair<unsigned, int64_t>> result;
  if (type && type.hasStaticShape() && type.getNumElements() > 1 && isElementwise(graph.ops[op]))
    for (unsigned value : graph.inputs[op])
      for (unsigned root : roots.roots(value))
        if (graph.definition[root] >= 0)
          result.push_back({root, type.getNumElements()});
  return result;
}

/// Those of the losses that share a kernel with something else, with all that leads to them or is made of them.
static std::vector<bool> joinedLosses(const BlockGraph &graph, const RootSets &roots) {
  std::vector<bool> isLoss = losses(graph), isJoined(graph.numOps(), false);
  llvm::DenseSet<std::pair<unsigned, int64_t>> readByOthers;
  for (unsigned op = 0; op + 1 < graph.numOps(); ++op)
    if (!isLoss[op])
      readByOthers.insert_range(readings(graph, roots, op));
  for (unsigned op = 0; op + 1 < graph.numOps(); ++op)
    if (isLoss[op])
      isJoined[op] = llvm::any_of(graph.inputs[op],
                                  [&](unsigned value) {
                                    return graph.definition[value] >= 0 && isJoined[graph.definition[value]];
                                  }) ||
                     llvm::any_of(readings(graph, roots, op), [&](auto reading) { return readByOthers.contains(reading); });
  for (unsigned op = graph.numOps() - 1; op-- > 0;)
    for (unsigned out : graph.outputs[op])
      for (unsigned user : graph.users[out])
        if (isLoss[op] && isJoined[user])
          isJoined[op] = true;
  return isJoined;
}

void runLossesEarly(const BlockGraph &graph, const RootSets &roots, std::vector<unsigned> &place, bool all) {
  if (graph.numOps() == 0)
    return;
  std::vector<bool> isEarly = all ? losses(graph) : joinedLosses(graph, roots);
  for (unsigned op = 0; op + 1 < graph.numOps(); ++op) {
    if (!isEarly[op] || isCollective(graph.ops[op]))
      continue;
    unsigned ready = 0;
    for (unsigned value : graph.inputs[op])
      for (unsigned root : roots.roots(value))
        if (int by = graph.definition[root]; by >= 0)
          ready = std::max(ready, place[by]);
    place[op] = std::min(place[op], ready);
  }
}

} // namespace farrier
