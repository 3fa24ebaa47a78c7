#include "farrier/Analysis/Gathered.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

GatheredBytes gatheredBytes(Operation *op) {
  auto attribute = dyn_cast_or_null<DenseI64ArrayAttr>(op->getDiscardableAttr(gatheredAttr));
  return attribute && attribute.size() == 2 ? GatheredBytes{attribute[0], attribute[1]} : GatheredBytes();
}

/// What XLA's scheduler takes for work that hides communication, or what communication waits for.
static bool isKernel(Operation *op) {
  return isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp, stablehlo::CustomCallOp, stablehlo::WhileOp,
             stablehlo::OptimizationBarrierOp>(op) &&
         !placementOf(op);
}

std::vector<unsigned> gatheredFrom(const BlockGraph &graph) {
  std::vector<unsigned> kernel(graph.numValues(), 0), from(graph.numOps(), 0);
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    for (unsigned value : graph.inputs[op])
      from[op] = std::max(from[op], kernel[value]);
    for (unsigned value : graph.outputs[op])
      kernel[value] = isKernel(graph.ops[op]) ? op : from[op];
  }
  return from;
}

std::vector<int64_t> gatheredCopies(const BlockGraph &graph) {
  unsigned numOps = graph.numOps();
  std::vector<unsigned> from = gatheredFrom(graph);
  std::vector<int64_t> operands(numOps, 0), sums(numOps, 0);
  for (unsigned op = 0; op < numOps; ++op) {
    GatheredBytes gathered = gatheredBytes(graph.ops[op]);
    sums[op] = gathered.sum;
    for (unsigned at = from[op]; gathered.operands && at <= op; ++at)
      operands[at] += gathered.operands;
  }
  for (unsigned op = 0; op < numOps; ++op)
    operands[op] = std::max(operands[op], sums[op]);
  return operands;
}

} // namespace farrier
