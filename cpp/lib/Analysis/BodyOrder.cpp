#include "farrier/Analysis/BodyOrder.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/RaggedDot.h"
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

/// A product, of groups of rows too: what gives a weight's gradient.
static bool isProduct(Operation *op) {
  std::optional<RaggedDot> ragged = RaggedDot::of(op);
  return isa<stablehlo::DotGeneralOp>(op) || (ragged && ragged->sums);
}

/// Whether the loop only adds to what it carries at `at`, or writes into it: nothing else comes of it.
static bool isAccumulator(const BlockGraph &graph, unsigned at) {
  Operation *end = graph.ops.back();
  if (at >= graph.numArguments || end->getOperand(at) == graph.values[at])
    return false;
  llvm::SetVector<unsigned> reached;
  reached.insert(at);
  for (unsigned next = 0; next < reached.size(); ++next)
    for (unsigned user : graph.users[reached[next]]) {
      if (graph.isTerminator(user)) {
        for (OpOperand &use : end->getOpOperands())
          if (use.get() == graph.values[reached[next]] && use.getOperandNumber() != at)
            return false;
      } else if (accumulates(graph.ops[user])) {
        reached.insert(graph.outputs[user].begin(), graph.outputs[user].end());
      } else {
        return false;
      }
    }
  return reached.contains(graph.id(end->getOperand(at)));
}

/// Of each value, whether nothing comes of it but sums and stacks that the loop carries.
static std::vector<bool> onlyAccumulated(const BlockGraph &graph) {
  std::vector<bool> result(graph.numValues(), false), elsewhere(graph.numValues(), false);
  for (OpOperand &use : graph.ops.back()->getOpOperands())
    (isAccumulator(graph, use.getOperandNumber()) ? result : elsewhere)[graph.id(use.get())] = true;
  for (unsigned value = graph.numValues(); value-- > graph.numArguments;) {
    bool isCarried = result[value] && !elsewhere[value];
    bool only = !graph.users[value].empty();
    for (unsigned user : graph.users[value])
      only &= graph.isTerminator(user)
                  ? isCarried
                  : accumulates(graph.ops[user]) &&
                        llvm::all_of(graph.outputs[user], [&](unsigned out) { return result[out]; });
    result[value] = only;
  }
  return result;
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

std::vector<unsigned> runningOrder(const BlockGraph &graph, Order order) {
  std::vector<unsigned> time(graph.numOps());
  std::iota(time.begin(), time.end(), 0);
  if (order == Order::Program || !isBody(graph) || !copiesSlices(graph))
    return time;
  std::vector<bool> accumulated = onlyAccumulated(graph), waits(graph.numOps(), false);
  unsigned late = 0;
  for (unsigned op = 0; op + 1 < graph.numOps(); ++op) {
    waits[op] = (isProduct(graph.ops[op]) &&
                 accumulated[graph.outputs[op][0]]) ||
                llvm::any_of(graph.inputs[op], [&](unsigned value) {
                  return graph.definition[value] >= 0 && waits[graph.definition[value]];
                });
    late += waits[op];
  }
  unsigned early = 0, last = graph.numOps() - 1 - late;
  for (unsigned op = 0; op + 1 < graph.numOps(); ++op)
    time[op] = waits[op] ? last++ : early++;
  return time;
}

} // namespace farrier
