#include "passes/fusion/Tile.h"

#include "farrier/Analysis/OpInfo.h"

#include "mlir/Transforms/RegionUtils.h"

using namespace mlir;

namespace farrier::fusion {

static std::string describe(Operation *op) { return "'" + op->getName().getStringRef().str() + "'"; }

bool TileRegion::isBig(Value value) const {
  RankedTensorType type = tensorType(value);
  return type &&
         type.getNumElements() * 4 >= tensorType(stablehlo::DotGeneralOp(seed).getResult()).getNumElements();
}

/// Grows forward through every operation that works row by row, then keeps what touches a giant value or lies
/// between two of them.
std::optional<TileRegion> TileRegion::grow(stablehlo::DotGeneralOp seed, int64_t dim, int64_t outer,
                                           std::string &whyNot, Operation *&where) {
  TileRegion region;
  region.seed = seed;
  where = seed;
  RankedTensorType seedType = tensorType(seed.getResult());
  region.size = seedType.getDimSize(dim) / outer;
  AxisPlace start{dim, outer, 1};
  std::optional<AxisFlow> seedFlow = flowFromResult(seed, 0, start, region.size);
  if (!seedFlow) {
    whyNot = "the product is not understood";
    return std::nullopt;
  }

  DenseMap<Operation *, AxisFlow> &flows = region.flows;
  DenseMap<Value, AxisPlace> &places = region.places;
  flows[seed] = *seedFlow;
  places[seed.getResult()] = start;
  DenseSet<Value> outside; // depends on the region, computed after it
  SmallVector<Operation *> grown{seed};

  for (Operation *op = seed->getNextNode(); op; op = op->getNextNode()) {
    int touching = -1;
    bool after = false, captures = false;
    for (auto [i, operand] : llvm::enumerate(op->getOperands())) {
      after |= outside.contains(operand);
      if (touching < 0 && places.contains(operand))
        touching = i;
    }
    if (op->getNumRegions()) {
      visitUsedValuesDefinedAbove(op->getRegions(), [&](OpOperand *use) {
        captures |= places.contains(use->get()) || outside.contains(use->get());
      });
    }
    if (touching < 0 && !after && !captures)
      continue;
    std::optional<AxisFlow> flow;
    if (!after && !captures)
      flow = flowFromOperand(op, touching, places[op->getOperand(touching)], region.size);
    if (flow)
      for (auto [operand, place] : llvm::zip(op->getOperands(), flow->operands))
        if (auto it = places.find(operand); it != places.end() && (!place || *place != it->second))
          flow.reset();
    if (!flow) {
      outside.insert_range(op->getResults());
      continue;
    }
    grown.push_back(op);
    flows[op] = *flow;
    // Products end the region: what follows them is the rest of the network.
    if (flow->kind == AxisFlow::Sum || isa<stablehlo::DotGeneralOp>(op)) {
      outside.insert_range(op->getResults());
      continue;
    }
    for (auto [result, place] : llvm::zip(op->getResults(), flow->results))
      places[result] = *place;
  }

  DenseSet<Operation *> kept;
  auto big = [&](Value value) { return places.contains(value) && region.isBig(value); };
  for (Operation *op : llvm::reverse(grown)) {
    bool keep = op == seed || llvm::any_of(op->getOperands(), big) || llvm::any_of(op->getResults(), big);
    if (!keep && !outside.contains(op->getResult(0)))
      keep = llvm::any_of(op->getUsers(), [&](Operation *user) { return kept.contains(user); });
    if (keep)
      kept.insert(op);
  }
  for (Operation *op : grown) {
    if (!kept.contains(op))
      continue;
    region.ops.push_back(op);
    for (Value result : op->getResults()) {
      bool leaves = llvm::any_of(result.getUsers(), [&](Operation *user) { return !kept.contains(user); });
      if (!places.contains(result)) {
        bool sums = flows[op].kind == AxisFlow::Sum;
        if (leaves)
          (sums ? region.summed : region.sliced).push_back(result);
        if (!sums)
          places[result] = *flows[op].results[cast<OpResult>(result).getResultNumber()];
        continue;
      }
      if (region.isBig(result))
        region.bigBytes += byteSize(result);
      if (!leaves)
        continue;
      region.sliced.push_back(result);
      if (region.isBig(result)) {
        for (Operation *user : result.getUsers())
          if (!kept.contains(user)) {
            where = user;
            whyNot =
                user->hasTrait<OpTrait::IsTerminator>()
                    ? "the whole intermediate is returned"
                    : "the whole intermediate is read by " + describe(user) +
                          (llvm::any_of(user->getOperands(), [&](Value v) { return outside.contains(v); })
                               ? ", which depends on the result"
                               : ", which does not work row by row");
            return std::nullopt;
          }
      }
    }
  }
  return region;
}

bool TileRegion::addBlocks(int64_t dim, int64_t count, std::string axes, std::string &whyNot,
                           Operation *&where) {
  Blocks added;
  added.dim = dim;
  added.count = count;
  added.axes = std::move(axes);
  RankedTensorType type = tensorType(seed.getResult());
  DenseMap<Value, AxisPlace> at;
  AxisPlace start{dim, 1, type.getDimSize(dim) / count};
  std::optional<AxisFlow> flow = flowFromResult(seed, 0, start, count);
  for (Operation *op : ops) {
    if (op != seed.getOperation()) {
      flow.reset();
      auto *touching = llvm::find_if(op->getOpOperands(), [&](OpOperand &o) { return at.contains(o.get()); });
      if (touching == op->getOpOperands().end())
        continue; // summed over all blocks before: the same on every device
      flow = flowFromOperand(op, touching->getOperandNumber(), at[touching->get()], count);
      if (flow)
        for (auto [operand, place] : llvm::zip(op->getOperands(), flow->operands))
          if (auto it = at.find(operand); it != at.end() && (!place || *place != it->second))
            flow.reset();
    }
    if (!flow) {
      where = op;
      whyNot = describe(op) + " mixes tokens of different devices";
      return false;
    }
    if (flow->kind == AxisFlow::Map)
      for (auto [result, place] : llvm::zip(op->getResults(), flow->results))
        at[result] = *place;
    added.flows[op] = *flow;
  }
  blocks.push_back(std::move(added));
  return true;
}

} // namespace farrier::fusion
