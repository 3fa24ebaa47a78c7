#include "passes/collectives/Parts.h"
#include "passes/collectives/Rows.h"

#include "farrier/Analysis/OpCost.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/ScalarEval.h"

namespace farrier::collectives {

using namespace mlir;

//===-- What an operation does along the axis, beyond Analysis/Axis
//-----------------------------------------===//

static bool isZero(Value index) { return ScalarEval().evaluate(index) == 0; }

/// Slices at run time that take the axis whole.
static std::optional<AxisFlow> dynamicSliceFlow(Operation *op, AxisPlace place) {
  bool updates = isa<stablehlo::DynamicUpdateSliceOp>(op);
  unsigned tensors = updates ? 2 : 1;
  Value part = updates ? op->getOperand(1) : op->getResult(0);
  RankedTensorType from = tensorType(op->getOperand(0)), to = tensorType(part);
  if (!from || !to || from.getDimSize(place.dim) != to.getDimSize(place.dim) ||
      !isZero(op->getOperand(tensors + place.dim)))
    return std::nullopt;
  AxisFlow flow;
  flow.operands.assign(tensors, place);
  flow.operands.append(op->getNumOperands() - tensors, std::nullopt);
  flow.results = {place};
  return flow;
}

static bool isUnderstood(Operation *op) {
  return isElementwise(op) ||
         isa<stablehlo::DotGeneralOp, stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp,
             stablehlo::TransposeOp, stablehlo::ReduceOp, stablehlo::SliceOp, stablehlo::PadOp,
             stablehlo::ConcatenateOp, stablehlo::ReverseOp, stablehlo::IotaOp, stablehlo::ConstantOp>(op);
}

static std::optional<AxisFlow> flowThrough(Operation *op, unsigned operand, AxisPlace place, int64_t size) {
  if (isa<stablehlo::DynamicSliceOp, stablehlo::DynamicUpdateSliceOp>(op))
    return operand < (isa<stablehlo::DynamicSliceOp>(op) ? 1u : 2u) ? dynamicSliceFlow(op, place)
                                                                    : std::nullopt;
  return isUnderstood(op) ? flowFromOperand(op, operand, place, size) : std::nullopt;
}

static std::optional<AxisFlow> flowInto(Operation *op, unsigned result, AxisPlace place, int64_t size) {
  if (isa<stablehlo::DynamicSliceOp, stablehlo::DynamicUpdateSliceOp>(op))
    return dynamicSliceFlow(op, place);
  if (isa<stablehlo::ConstantOp>(op))
    return splatFlow(op, place);
  return isUnderstood(op) ? flowFromResult(op, result, place, size) : std::nullopt;
}

//===-- What can work on a part
//------------------------------------------------------------------------------===//

/// The link that a use of a value is: an operand of a loop or a barrier, or what a loop's body hands on.
std::optional<Link> linkOf(OpOperand &use) {
  Operation *op = use.getOwner();
  if (isa<stablehlo::WhileOp, stablehlo::OptimizationBarrierOp>(op))
    return Link{op, use.getOperandNumber()};
  auto loop = dyn_cast_or_null<stablehlo::WhileOp>(op->getParentOp());
  if (loop && op == loop.getBody().front().getTerminator())
    return Link{loop, use.getOperandNumber()};
  return std::nullopt;
}

/// The link that makes a value.
std::optional<Link> linkOf(Value value) {
  if (auto result = dyn_cast<OpResult>(value)) {
    if (isa<stablehlo::WhileOp, stablehlo::OptimizationBarrierOp>(result.getOwner()))
      return Link{result.getOwner(), result.getResultNumber()};
    return std::nullopt;
  }
  auto argument = cast<BlockArgument>(value);
  if (auto loop = dyn_cast_or_null<stablehlo::WhileOp>(argument.getOwner()->getParentOp()))
    return Link{loop, argument.getArgNumber()};
  return std::nullopt;
}

/// What a link reads.
SmallVector<Value, 2> sources(Link link) {
  auto [op, k] = link;
  SmallVector<Value, 2> found{op->getOperand(k)};
  if (auto loop = dyn_cast<stablehlo::WhileOp>(op))
    found.push_back(loop.getBody().front().getTerminator()->getOperand(k));
  return found;
}

/// What a link makes.
SmallVector<Value, 2> targets(Link link) {
  auto [op, k] = link;
  SmallVector<Value, 2> found{op->getResult(k)};
  if (auto loop = dyn_cast<stablehlo::WhileOp>(op))
    found.push_back(loop.getBody().front().getArgument(k));
  return found;
}

/// Whether all devices of a group run `op` equally often, so that a collective may stand beside it: in no branch, and
/// in loops that the devices leave together.
bool Parts::runsAlike(Operation *op) const {
  for (Operation *inner = op; (op = inner->getParentOp()) && op != manual; inner = op) {
    auto loop = dyn_cast<stablehlo::WhileOp>(op);
    if (!loop || inner->getBlock() != &loop.getBody().front() ||
        !agree(loop.getCond().front().getTerminator()->getOperand(0)))
      return false;
  }
  return op == manual;
}

bool Parts::fits(Value value, const std::optional<AxisPlace> &place) const {
  RankedTensorType type = tensorType(value);
  if (!agree(value) || !type || !type.hasStaticShape())
    return false;
  if (place && (place->outer != 1 || place->dim >= type.getRank() ||
                type.getDimSize(place->dim) != size * place->inner))
    return false;
  auto known = places.find(value);
  return known == places.end() || (place && *place == known->second);
}

void Parts::tryAdd(Operation *op, const std::optional<AxisFlow> &flow) {
  if (!flow || flows.contains(op) || stablehlo::hasUnmodelledAttrs(op) ||
      (flow->kind == AxisFlow::Sum && !regroup) || !runsAlike(op))
    return;
  for (auto [value, place] : llvm::zip_equal(op->getOperands(), flow->operands))
    if (!fits(value, place))
      return;
  for (auto [value, place] : llvm::zip_equal(op->getResults(), flow->results))
    if (flow->kind == AxisFlow::Map && !fits(value, place))
      return;
  flows[op] = *flow;
  for (auto [value, place] : llvm::zip_equal(op->getOperands(), flow->operands))
    if (place)
      assign(value, *place);
  for (auto [value, place] : llvm::zip_equal(op->getResults(), flow->results))
    if (place)
      assign(value, *place);
}

void Parts::tryLink(Link link, AxisPlace place, const DenseSet<Link> &whole) {
  if (linked.contains(link) || whole.contains(link))
    return;
  auto [op, k] = link;
  if (!runsAlike(op))
    return;
  if (auto loop = dyn_cast<stablehlo::WhileOp>(op))
    if (Block &condition = loop.getCond().front();
        !condition.getArgument(k).use_empty() || !agree(condition.getTerminator()->getOperand(0)))
      return;
  for (Value value : llvm::concat<Value>(sources(link), targets(link)))
    if (!fits(value, place) || value.getType() != op->getResult(k).getType())
      return;
  linked.insert(link);
  links.push_back(link);
  for (Value value : llvm::concat<Value>(sources(link), targets(link)))
    assign(value, place);
}

void Parts::follow(OpOperand &use, AxisPlace place, const DenseSet<Link> &whole) {
  if (std::optional<Link> link = linkOf(use))
    tryLink(*link, place, whole);
  else
    tryAdd(use.getOwner(), flowThrough(use.getOwner(), use.getOperandNumber(), place, size));
}

void Parts::grow(Operation *seed, AxisPlace place, const DenseSet<Operation *> &seedable,
                 const DenseSet<Link> &whole) {
  model = seed;
  if (!runsAlike(seed))
    return;
  seeds.insert(seed);
  assign(seed->getResult(0), place);
  while (!worklist.empty()) {
    Value value = worklist.pop_back_val();
    AxisPlace at = places[value];
    if (std::optional<Link> link = linkOf(value)) {
      tryLink(*link, at, whole);
    } else if (Operation *op = value.getDefiningOp(); op && manual->isProperAncestor(op)) {
      if (seedable.contains(op) && runsAlike(op))
        seeds.insert(op);
      else
        tryAdd(op, flowInto(op, cast<OpResult>(value).getResultNumber(), at, size));
    }
    for (OpOperand &use : value.getUses())
      follow(use, at, whole);
  }
}

/// How often the block's operations run.
double Parts::weight(Block *block) const {
  double total = 1;
  for (Operation *op = block->getParentOp(); op && op != manual; op = op->getParentOp())
    if (isa<stablehlo::WhileOp>(op))
      total *= static_cast<double>(tripCount(op).value_or(1));
  return total;
}

/// Whether a use reads its own part only.
bool Parts::takesPart(OpOperand &use) const {
  if (std::optional<Link> link = linkOf(use))
    return linked.contains(*link);
  auto flow = flows.find(use.getOwner());
  return flow != flows.end() && flow->second.operands[use.getOperandNumber()].has_value();
}

/// Whether a use is the slice that is the device's own part, as the program states it.
bool Parts::isOwnPart(OpOperand &use) const {
  auto slice = dyn_cast<stablehlo::DynamicSliceOp>(use.getOwner());
  if (!slice || use.getOperandNumber() != 0)
    return false;
  AxisPlace place = places.lookup(use.get());
  RankedTensorType from = tensorType(use.get()), to = tensorType(slice.getResult());
  if (to != chunkedType(from, place, size / count, size))
    return false;
  for (int64_t dim = 0; dim < from.getRank(); ++dim)
    if (dim != place.dim && !isZero(slice->getOperand(1 + dim)))
      return false;
  SmallVector<Value> ids;
  manual->walk([&](stablehlo::PartitionIdOp id) { ids.push_back(id.getResult()); });
  for (const SmallVector<int64_t> &group : groups)
    for (auto [k, device] : llvm::enumerate(group)) {
      ScalarEval eval;
      for (Value id : ids)
        eval.bind(id, device);
      if (eval.evaluate(slice->getOperand(1 + place.dim)) != static_cast<int64_t>(k) * to.getDimSize(place.dim))
        return false;
    }
  return true;
}

/// Every value of which parts are made here, in program order.
void Parts::forEachValue(llvm::function_ref<void(Value)> visit) {
  manual->getRegion(0).walk<WalkOrder::PreOrder>([&](Operation *op) {
    if (auto loop = dyn_cast<stablehlo::WhileOp>(op))
      for (unsigned k = 0; k < op->getNumOperands(); ++k)
        if (linked.contains({op, k}))
          visit(Value(loop.getBody().front().getArgument(k)));
    for (auto [k, result] : llvm::enumerate(op->getResults()))
      if (seeds.contains(op) || linked.contains({op, static_cast<unsigned>(k)}) ||
          (flows.contains(op) && flows[op].results[k]))
        visit(Value(result));
  });
}

void Parts::settle() {
  scattered = gathered = worked = 0;
  reductions = sums = 0;
  whole.clear();
  // Values of which each device has, or could make, the whole without a word from the others.
  DenseSet<Value> there;
  DenseSet<Value> made;
  forEachValue([&](Value value) { made.insert(value); });
  forEachValue([&](Value value) {
    Operation *op = value.getDefiningOp();
    double bytes = static_cast<double>(byteSize(value)) * weight(value.getParentBlock());
    bool remade = false;
    if (op && seeds.contains(op)) {
      scattered += bytes;
      ++reductions;
    } else if (op && flows.contains(op)) {
      remade = true;
      for (auto [operand, place] : llvm::zip_equal(op->getOperands(), flows[op].operands))
        remade &= !place || !made.contains(operand) || there.contains(operand);
      if (!remade)
        worked += bytes;
    }
    bool needed = llvm::any_of(value.getUses(),
                               [&](OpOperand &use) { return !takesPart(use) && !isOwnPart(use); });
    if (!remade && needed) {
      gathered += bytes;
      whole.push_back(value);
    }
    if (remade || needed)
      there.insert(value);
  });
  for (auto &[op, flow] : flows)
    if (flow.kind == AxisFlow::Sum) {
      ++sums;
      gathered += 2 * static_cast<double>(byteSize(op->getResult(0))) * weight(op->getBlock());
    }
  gathers = static_cast<int64_t>(whole.size());
}

} // namespace farrier::collectives
