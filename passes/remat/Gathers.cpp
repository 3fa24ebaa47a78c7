#include "passes/remat/Gathers.h"

#include "farrier/Analysis/Gathered.h"
#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Builders.h"

#include <algorithm>

using namespace mlir;

namespace farrier::remat {

/// Of a program's temporaries: a gathered weight that is less can come when it likes, and any where so much is free.
static constexpr int64_t muchOfAll = 32;

/// What `value` is a view of, or a wider copy, or of a parameter any copy: that is there anyway. `views` are the operations
/// between, last first.
static Value viewed(Value value, SmallVectorImpl<Operation *> &views) {
  while (Operation *op = value.getDefiningOp()) {
    bool copies = false;
    if (auto convert = dyn_cast<stablehlo::ConvertOp>(op))
      copies = isa<BlockArgument>(convert.getOperand()) || byteSize(convert.getOperand()) <= byteSize(value);
    if (!copies && !isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(op))
      break;
    views.push_back(op);
    value = op->getOperand(0);
  }
  return value;
}

namespace {

/// Products of one block.
class Block {
public:
  Block(mlir::Block &block, const SizeFn &size) : estimate(block, size), graph(estimate.getGraph()) {
    ofArguments.assign(graph.numValues(), false);
    for (unsigned value = 0; value < graph.numValues(); ++value) {
      int op = graph.definition[value];
      ofArguments[value] = op < 0 || (graph.isVirtual[op] && llvm::all_of(graph.inputs[op], [&](unsigned input) {
                                        return ofArguments[input];
                                      }));
    }
  }

  unsigned gatherLate() {
    std::vector<int64_t> live = estimate.getLiveness().profile();
    std::vector<unsigned> from = gatheredFrom(graph);
    int64_t much = estimate.peak() / muchOfAll;
    unsigned made = 0;
    for (unsigned op = 0; op < graph.numOps(); ++op) {
      auto dot = dyn_cast<stablehlo::DotGeneralOp>(graph.ops[op]);
      int64_t gathered = dot ? gatheredBytes(dot).operands : 0;
      if (gathered == 0 || gathered < much ||
          *std::max_element(live.begin() + from[op], live.begin() + op + 1) < estimate.peak() - much)
        continue;
      for (unsigned weight : {0u, 1u})
        if (wait(dot, weight, gathered)) {
          ++made;
          break;
        }
    }
    return made;
  }

private:
  bool wait(stablehlo::DotGeneralOp dot, unsigned weight, int64_t gathered) {
    SmallVector<Operation *> views[2];
    Value joined[2];
    for (unsigned side : {0u, 1u})
      joined[side] = viewed(dot->getOperand(side), views[side]);
    if (!llvm::all_of(joined, [&](Value value) { return graph.contains(value); }))
      return false;
    unsigned other = graph.id(joined[1 - weight]);
    // A barrier stores what it joins.
    if (!ofArguments[graph.id(joined[weight])] || ofArguments[other] || !estimate.getRoots().isRoot(other) ||
        graph.bytes[other] < gathered)
      return false;
    OpBuilder builder(dot);
    auto barrier = stablehlo::OptimizationBarrierOp::create(builder, dot.getLoc(), TypeRange(ValueRange(joined)),
                                                            ValueRange(joined), DictionaryAttr());
    for (unsigned side : {0u, 1u}) {
      Value value = barrier->getResult(side);
      for (Operation *view : llvm::reverse(views[side])) {
        Operation *copy = builder.clone(*view);
        copy->setOperand(0, value);
        value = copy->getResult(0);
      }
      dot->setOperand(side, value);
    }
    return true;
  }

  MemoryEstimate estimate;
  const BlockGraph &graph;
  std::vector<bool> ofArguments; ///< of each value: made of arguments alone, elementwise
};

} // namespace

unsigned gatherLate(ModuleOp module) {
  SizeFn size = deviceMemory(module);
  unsigned made = 0;
  for (auto function : module.getOps<func::FuncOp>())
    if (function.isPublic() && function.getBody().hasOneBlock()) {
      made += Block(function.getBody().front(), size).gatherLate();
    }
  if (made > 0)
    inferShards(module);
  return made;
}

} // namespace farrier::remat
