#include "farrier/Analysis/Graph.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Transforms/RegionUtils.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

BlockGraph::BlockGraph(Block &block, SizeFn size) : block(block) {
  auto add = [&](Value value, int op) {
    valueIds[value] = values.size();
    values.push_back(value);
    definition.push_back(op);
    bytes.push_back(size(value));
  };
  for (BlockArgument arg : block.getArguments())
    add(arg, -1);
  numArguments = values.size();
  for (Operation &op : block) {
    unsigned index = ops.size();
    opIds[&op] = index;
    ops.push_back(&op);
    isVirtual.push_back(classify(&op) == OpClass::Virtual);
    Ids in, out;
    for (Value operand : op.getOperands())
      if (auto it = valueIds.find(operand); it != valueIds.end())
        in.push_back(it->second);
    if (op.getNumRegions()) {
      llvm::SetVector<Value> captured;
      getUsedValuesDefinedAbove(op.getRegions(), captured);
      for (Value value : captured)
        if (auto it = valueIds.find(value); it != valueIds.end())
          in.push_back(it->second);
    }
    for (Value result : op.getResults()) {
      out.push_back(values.size());
      add(result, index);
    }
    inputs.push_back(std::move(in));
    outputs.push_back(std::move(out));
  }
  users.resize(values.size());
  for (unsigned op = 0; op < ops.size(); ++op)
    for (unsigned value : inputs[op])
      if (users[value].empty() || users[value].back() != op)
        users[value].push_back(op);
}

/// Kernels whose operands must be buffers.
static bool readsBuffers(Operation *op) {
  return isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp, stablehlo::CustomCallOp>(op);
}

/// A conversion to the type that its operand has, as JAX writes where a product's operands agree already. XLA
/// drops it: what it gives is its operand.
static bool isIdentity(Operation *op) {
  return isa<stablehlo::ConvertOp>(op) && op->getOperand(0).getType() == op->getResult(0).getType();
}

/// XLA:GPU fuses no more than this many operands into one kernel (MaxOperandsAndOutputsPerFusion in its
/// gpu_fusible.cc): what joins more is a buffer. It also bounds the work here: a chain that joins one more
/// root at each step has sets of every length otherwise.
static constexpr size_t maxFusionOperands = 96;

RootSets::RootSets(const BlockGraph &graph, const Options &options) : sets(graph.numValues()) {
  std::vector<bool> feedsKernel(graph.numValues(), false);
  if (options.materialiseKernelOperands) {
    for (unsigned op = graph.numOps(); op-- > 0;) {
      if (readsBuffers(graph.ops[op]))
        for (unsigned value : graph.inputs[op])
          feedsKernel[value] = true;
      // A layout change does not stand between a value and the kernel.
      else if ((isa<stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::BroadcastInDimOp>(
                    graph.ops[op]) ||
                isIdentity(graph.ops[op])) &&
               feedsKernel[graph.outputs[op][0]] && !graph.inputs[op].empty() &&
               graph.bytes[graph.inputs[op][0]] == graph.bytes[graph.outputs[op][0]])
        feedsKernel[graph.inputs[op][0]] = true;
    }
  }

  for (unsigned arg = 0; arg < graph.numArguments; ++arg)
    if (options.argumentIsRoot && options.argumentIsRoot(arg))
      sets[arg].push_back(arg);

  for (unsigned op = 0; op < graph.numOps(); ++op) {
    Operation *operation = graph.ops[op];
    if (isa<stablehlo::OptimizationBarrierOp>(operation) &&
        graph.inputs[op].size() == graph.outputs[op].size()) {
      for (auto [in, out] : llvm::zip(graph.inputs[op], graph.outputs[op]))
        sets[out] = sets[in];
      continue;
    }
    if (isIdentity(operation)) {
      sets[graph.outputs[op][0]] = sets[graph.inputs[op][0]];
      continue;
    }
    if (!graph.isVirtual[op]) {
      for (unsigned value : graph.outputs[op])
        sets[value].push_back(value);
      continue;
    }
    BlockGraph::Ids joined;
    for (unsigned value : graph.inputs[op])
      joined.append(sets[value].begin(), sets[value].end());
    llvm::sort(joined);
    joined.erase(std::unique(joined.begin(), joined.end()), joined.end());
    int64_t bigBytes = 0;
    unsigned big = 0;
    for (unsigned root : joined)
      if (graph.bytes[root] >= options.smallBytes) {
        bigBytes += graph.bytes[root];
        ++big;
      }
    bool isLayout = isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(operation);
    bool isPart = isa<stablehlo::SliceOp, stablehlo::DynamicSliceOp>(operation);
    for (unsigned value : graph.outputs[op]) {
      int64_t bytes = graph.bytes[value];
      bool root = joined.size() > maxFusionOperands;
      if (bytes >= options.smallBytes) {
        root |= big >= 2 && bytes < bigBytes;
        root |= isa<stablehlo::ConvertOp>(operation) && big == 1 && bytes < bigBytes;
        // To keep a part must not mean to keep the whole.
        root |= isPart && big == 1 && 2 * bytes <= bigBytes;
        root |= feedsKernel[value] && !isLayout;
      }
      if (root)
        sets[value].push_back(value);
      else
        sets[value] = joined;
    }
  }
}

} // namespace farrier
