#include "passes/collectives/Devices.h"
#include "passes/collectives/Passes.h"
#include "passes/collectives/Rows.h"

#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/OpCost.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/ScalarEval.h"
#include "farrier/Support/Registry.h"

#include "mlir/IR/Matchers.h"
#include "mlir/IR/Remarks.h"
#include "llvm/ADT/EquivalenceClasses.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/Support/FormatVariadic.h"

namespace farrier::collectives {
#define GEN_PASS_DEF_SCATTERREDUCTIONS
#include "passes/collectives/Passes.h.inc"

using namespace mlir;

/// Gathers may carry this part of what the reductions carried before, and no more: a reduction is a scatter and a
/// gather, so nothing more is sent.
static constexpr double kGathered = 1.02;
/// Of the elements of loops' state that may stay whole, so many are looked at.
static constexpr int kMostTrials = 256;
static constexpr llvm::StringLiteral kFrontend = "mhlo.frontend_attributes";

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

/// A sum of floats over the axis, from nothing.
static std::optional<AxisFlow> sumFlow(stablehlo::ReduceOp reduce, AxisPlace place) {
  if (reduce.getInputs().size() != 1 || !llvm::is_contained(reduce.getDimensions(), place.dim))
    return std::nullopt;
  auto start = reduce.getInitValues()[0].getDefiningOp<stablehlo::ConstantOp>();
  auto number = start ? dyn_cast<DenseFPElementsAttr>(start.getValue()) : DenseFPElementsAttr();
  if (!number || !number.isSplat() || !number.getSplatValue<APFloat>().isZero() ||
      !isSum(reduce->getRegion(0).front()))
    return std::nullopt;
  AxisFlow flow;
  flow.kind = AxisFlow::Sum;
  flow.operands = {place, std::nullopt};
  flow.results.resize(1);
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
  if (auto reduce = dyn_cast<stablehlo::ReduceOp>(op); reduce && operand == 0)
    if (auto flow = sumFlow(reduce, place))
      return flow;
  return isUnderstood(op) ? flowFromOperand(op, operand, place, size) : std::nullopt;
}

static std::optional<AxisFlow> flowInto(Operation *op, unsigned result, AxisPlace place, int64_t size) {
  if (isa<stablehlo::DynamicSliceOp, stablehlo::DynamicUpdateSliceOp>(op))
    return dynamicSliceFlow(op, place);
  if (isa<stablehlo::ConstantOp>(op))
    return splatFlow(op, place);
  return isUnderstood(op) ? flowFromResult(op, result, place, size) : std::nullopt;
}

/// Whether `op` is a sum over devices of one value, of which nothing is said but how XLA may combine it.
static bool isPlainSum(Operation *op) {
  if (!isa<stablehlo::AllReduceOp>(op) || op->getNumOperands() != 1)
    return false;
  for (NamedAttribute attribute : op->getDiscardableAttrs()) {
    auto entries = dyn_cast<DictionaryAttr>(attribute.getValue());
    if (attribute.getName() != kFrontend || !entries || entries.size() != 1 || !entries.get("combiner_key"))
      return false;
  }
  RankedTensorType type = tensorType(op->getResult(0));
  return type && type.hasStaticShape() && op->getOperand(0).getType() == type &&
         isSum(op->getRegion(0).front());
}

namespace {

/// One element of a loop's state, or one operand of a barrier: its operands and results are one value that is
/// handed on.
using Link = std::pair<Operation *, unsigned>;

//===-- What can work on a part
//------------------------------------------------------------------------------===//

/// Operations on values that a group's devices agree on, each of which can do its part of an axis.
class Parts {
public:
  Parts(Operation *manual, const Groups &groups, const Agreement &agree, int64_t size, bool regroup)
      : manual(manual), groups(groups), agree(agree), size(size), count(groups.front().size()),
        regroup(regroup) {}

  void grow(Operation *seed, AxisPlace place, const DenseSet<Operation *> &seedable,
            const DenseSet<Link> &whole);
  /// Decides what has to be whole again, and what that costs.
  void settle();
  void emit();

  /// Bytes sent by the reductions that are scattered, by the gathers and reductions that come instead, and bytes
  /// of results of which each device makes its part only; loops count as often as they run.
  double scattered = 0, gathered = 0, worked = 0;
  int64_t reductions = 0, gathers = 0, sums = 0;
  SmallVector<Link> links;

  bool contains(Operation *op) const { return flows.contains(op) || seeds.contains(op); }
  bool pays() const {
    bool saves = gathered <= scattered / 2 || worked >= scattered / 2;
    return scattered > 0 && saves && gathered <= kGathered * scattered;
  }

private:
  void assign(Value value, AxisPlace place) {
    if (places.try_emplace(value, place).second)
      worklist.push_back(value);
  }
  bool runsAlike(Operation *op) const;
  bool fits(Value value, const std::optional<AxisPlace> &place) const;
  void tryAdd(Operation *op, const std::optional<AxisFlow> &flow);
  void tryLink(Link link, AxisPlace place, const DenseSet<Link> &whole);
  void follow(OpOperand &use, AxisPlace place, const DenseSet<Link> &whole);
  bool takesPart(OpOperand &use) const;
  bool isOwnPart(OpOperand &use) const;
  double weight(Block *block) const;
  template <typename Visit> void forEachValue(Visit visit);

  Value part(Value value, AxisPlace place);
  Value offset(int64_t rows);
  Operation *collective(OpBuilder &builder, Location loc, StringRef name, StringRef dimension, int64_t dim,
                        Value operand, Type type, Operation *like);
  void clone(Operation *op);
  void scatter(Operation *op);

  Operation *manual;
  const Groups &groups;
  const Agreement &agree;
  int64_t size, count;
  bool regroup;
  DenseMap<Value, AxisPlace> places;
  DenseMap<Operation *, AxisFlow> flows;
  DenseSet<Operation *> seeds;
  DenseSet<Link> linked;
  SmallVector<Value> worklist;
  /// Values whose whole is needed and is gathered; in program order.
  SmallVector<Value> whole;
  DenseMap<Value, Value> parts;
  DenseMap<int64_t, Value> offsets;
  Value position;
  llvm::SetVector<Operation *> fresh; ///< what was made here, and what reads parts since
  Operation *model = nullptr; ///< a reduction whose groups the new collectives have
};

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
template <typename Visit> void Parts::forEachValue(Visit visit) {
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

//===-- Rewriting
//-------------------------------------------------------------------------------------------===//

/// The first element along the axis that this device has, `rows` being those of one device.
Value Parts::offset(int64_t rows) {
  Value &found = offsets[rows];
  if (found)
    return found;
  OpBuilder builder = OpBuilder::atBlockBegin(&manual->getRegion(0).front());
  auto scalar = RankedTensorType::get({}, builder.getI32Type());
  Location loc = model->getLoc();
  if (!position) {
    // Where each device stands in its group.
    int64_t devices = 0;
    for (const SmallVector<int64_t> &group : groups)
      devices = std::max(devices, *llvm::max_element(group) + 1);
    SmallVector<int32_t> table(devices, 0);
    for (const SmallVector<int64_t> &group : groups)
      for (auto [k, device] : llvm::enumerate(group))
        table[device] = static_cast<int32_t>(k);
    auto type = RankedTensorType::get({devices}, builder.getI32Type());
    auto value = builder.getNamedAttr("value", DenseIntElementsAttr::get(type, ArrayRef<int32_t>(table)));
    Value all = make(builder, loc, "stablehlo.constant", type, {}, value)->getResult(0);
    auto unsignedScalar = RankedTensorType::get({}, builder.getIntegerType(32, /*isSigned=*/false));
    Value id = make(builder, loc, "stablehlo.partition_id", unsignedScalar, {})->getResult(0);
    auto sizes = builder.getNamedAttr("slice_sizes", builder.getDenseI64ArrayAttr({1}));
    Value row = make(builder, loc, "stablehlo.dynamic_slice",
                     RankedTensorType::get({1}, builder.getI32Type()), {all, id}, sizes)
                    ->getResult(0);
    position = make(builder, loc, "stablehlo.reshape", scalar, row)->getResult(0);
  }
  builder.setInsertionPointAfterValue(position);
  auto value = DenseIntElementsAttr::get(scalar, ArrayRef<int32_t>(static_cast<int32_t>(rows)));
  Value times =
      make(builder, loc, "stablehlo.constant", scalar, {}, builder.getNamedAttr("value", value))->getResult(0);
  found = make(builder, loc, "stablehlo.multiply", scalar, {position, times})->getResult(0);
  return found;
}

/// This device's part of a value.
Value Parts::part(Value value, AxisPlace place) {
  Value &found = parts[value];
  if (found)
    return found;
  RankedTensorType type = tensorType(value), piece = chunkedType(type, place, size / count, size);
  int64_t rows = piece.getDimSize(place.dim);
  Value start = offset(rows);
  OpBuilder builder(value.getContext());
  builder.setInsertionPointAfterValue(value);
  // Arguments of the manual computation come before everything, the offset too.
  if (isa<BlockArgument>(value) && start.getParentBlock() == value.getParentBlock())
    builder.setInsertionPointAfterValue(start);
  auto scalar = RankedTensorType::get({}, builder.getI32Type());
  auto zero = builder.getNamedAttr("value", DenseIntElementsAttr::get(scalar, ArrayRef<int32_t>(0)));
  SmallVector<Value> operands{value};
  Value none = make(builder, value.getLoc(), "stablehlo.constant", scalar, {}, zero)->getResult(0);
  for (int64_t dim = 0; dim < type.getRank(); ++dim)
    operands.push_back(dim == place.dim ? start : none);
  Operation *slice =
      make(builder, value.getLoc(), "stablehlo.dynamic_slice", piece, operands,
           builder.getNamedAttr("slice_sizes", builder.getDenseI64ArrayAttr(piece.getShape())));
  fresh.insert(slice);
  return parts[value] = slice->getResult(0);
}

/// A collective over the groups of the reductions. `dimension` is empty for a reduction.
Operation *Parts::collective(OpBuilder &builder, Location loc, StringRef name, StringRef dimension,
                             int64_t dim, Value operand, Type type, Operation *like) {
  OperationState state(loc, name, operand, type);
  for (StringRef attribute : {"replica_groups", "channel_handle", "use_global_device_ids"})
    if (Attribute value = like->getAttr(attribute))
      state.addAttribute(attribute, value);
  if (!dimension.empty())
    state.addAttribute(dimension, builder.getI64IntegerAttr(dim));
  if (Attribute value = like->getDiscardableAttr(kFrontend))
    state.addAttribute(kFrontend, value);
  if (name != stablehlo::AllGatherOp::getOperationName()) {
    Region *body = state.addRegion();
    auto scalar = RankedTensorType::get({}, cast<RankedTensorType>(type).getElementType());
    Block &block = body->emplaceBlock();
    block.addArguments({scalar, scalar}, {loc, loc});
    OpBuilder inner(builder.getContext());
    inner.setInsertionPointToEnd(&block);
    Operation *add = make(inner, loc, "stablehlo.add", scalar, block.getArguments());
    OperationState end(loc, "stablehlo.return", add->getResults(), {});
    inner.create(end);
  }
  Operation *made = builder.create(state);
  fresh.insert(made);
  return made;
}

void Parts::scatter(Operation *op) {
  AxisPlace place = places[op->getResult(0)];
  OpBuilder builder(op->getContext());
  builder.setInsertionPointAfter(op);
  parts[op->getResult(0)] =
      collective(builder, op->getLoc(), "stablehlo.reduce_scatter", "scatter_dimension", place.dim,
                 op->getOperand(0), chunkedType(tensorType(op->getResult(0)), place, size / count, size), op)
          ->getResult(0);
}

void Parts::clone(Operation *op) {
  const AxisFlow &flow = flows[op];
  SmallVector<Value> operands;
  for (auto [operand, place] : llvm::zip_equal(op->getOperands(), flow.operands))
    operands.push_back(place ? part(operand, *place) : operand);
  SmallVector<Type> types;
  for (auto [result, place] : llvm::zip_equal(op->getResults(), flow.results))
    types.push_back(place ? Type(chunkedType(tensorType(result), *place, size / count, size))
                          : result.getType());
  if (flow.kind == AxisFlow::Sum && isa<stablehlo::DotGeneralOp>(op))
    types[0] = wideSum(cast<RankedTensorType>(types[0]));
  OpBuilder builder(op->getContext());
  builder.setInsertionPointAfter(op);
  Operation *copy = cloneOnPart(builder, op, flow, operands, types);
  fresh.insert(copy);
  if (auto slice = dyn_cast<stablehlo::DynamicSliceOp>(copy))
    copy->setAttr("slice_sizes",
                  builder.getDenseI64ArrayAttr(cast<RankedTensorType>(types[0]).getShape()));
  if (flow.kind == AxisFlow::Sum) {
    Value total = collective(builder, op->getLoc(), "stablehlo.all_reduce", "", 0, copy->getResult(0),
                             types[0], model)
                      ->getResult(0);
    if (types[0] != op->getResult(0).getType())
      total = make(builder, op->getLoc(), "stablehlo.convert", op->getResult(0).getType(), total)
                  ->getResult(0);
    op->getResult(0).replaceAllUsesWith(total);
    return;
  }
  for (auto [result, made] : llvm::zip_equal(op->getResults(), copy->getResults()))
    parts[result] = made;
}

void Parts::emit() {
  SmallVector<Operation *> ordered;
  manual->getRegion(0).walk<WalkOrder::PreOrder>([&](Operation *op) {
    if (contains(op) || isa<stablehlo::WhileOp, stablehlo::OptimizationBarrierOp>(op))
      ordered.push_back(op);
  });
  auto retype = [&](Value value) {
    value.setType(chunkedType(tensorType(value), places[value], size / count, size));
    parts[value] = value;
  };
  // Own slices that the program states are the parts themselves.
  SmallVector<std::pair<Operation *, Value>> stated;
  forEachValue([&](Value value) {
    for (OpOperand &use : value.getUses())
      if (!takesPart(use) && isOwnPart(use))
        stated.emplace_back(use.getOwner(), value);
  });
  SmallVector<std::pair<Operation *, unsigned>> ends; // what loops' bodies hand on, once it exists
  for (Operation *op : ordered) {
    if (seeds.contains(op)) {
      scatter(op);
    } else if (flows.contains(op)) {
      clone(op);
    } else {
      for (unsigned k = 0; k < op->getNumOperands(); ++k) {
        if (!linked.contains({op, k}))
          continue;
        op->setOperand(k, part(op->getOperand(k), places[op->getOperand(k)]));
        for (Value value : targets({op, k}))
          retype(value);
        if (auto loop = dyn_cast<stablehlo::WhileOp>(op)) {
          loop.getCond().front().getArgument(k).setType(op->getResult(k).getType());
          ends.emplace_back(loop.getBody().front().getTerminator(), k);
        }
      }
    }
  }
  for (auto [end, k] : ends) {
    Value value = end->getOperand(k);
    end->setOperand(k, part(value, places[value]));
    fresh.insert(end);
  }
  for (auto [slice, value] : stated) {
    slice->getResult(0).replaceAllUsesWith(parts[value]);
    slice->erase();
  }
  for (Value value : whole) {
    Value piece = parts[value];
    OpBuilder builder(value.getContext());
    builder.setInsertionPointAfterValue(piece);
    AxisPlace place = places[value];
    SmallVector<int64_t> shape(tensorType(piece).getShape());
    shape[place.dim] = size * place.inner;
    auto type = RankedTensorType::get(shape, tensorType(piece).getElementType());
    Operation *gather = collective(builder, value.getLoc(), "stablehlo.all_gather", "all_gather_dim",
                                   place.dim, piece, type, model);
    value.replaceUsesWithIf(gather->getResult(0), [&](OpOperand &use) {
      if (piece != value)
        return true;
      // A loop's or a barrier's value is the part itself: whoever works on the part keeps it.
      std::optional<Link> link = linkOf(use);
      return !fresh.contains(use.getOwner()) && !(link && linked.contains(*link));
    });
  }
  for (Operation *op : llvm::reverse(ordered))
    if (contains(op) && op->use_empty())
      op->erase();
  // Parts that only whole values were made of.
  for (Operation *op : llvm::reverse(fresh))
    if (op->getNumResults() > 0 && op->use_empty())
      op->erase();
}

//===-- The pass
//--------------------------------------------------------------------------------------------===//

struct ScatterReductions : impl::ScatterReductionsBase<ScatterReductions>, CounterSet {
  ScatterReductions() = default;
  ScatterReductions(const ScatterReductions &other) : ScatterReductionsBase(other), CounterSet(other) {}
  using ScatterReductionsBase::ScatterReductionsBase;

  Counter scattered{this, "scattered-reductions"};
  Counter gathered{this, "gathers"};
  Counter sums{this, "partial-sums"};

  void runOnOperation() override {
    if (candidates().empty())
      return;
    inlineCalls(getOperation());
    DenseSet<Operation *> seen;
    // Each round rewrites one region or sets one reduction aside.
    while (true) {
      Operation *next = nullptr;
      for (Operation *op : candidates())
        if (!seen.contains(op)) {
          next = op;
          break;
        }
      if (!next)
        return;
      seen.insert(next);
      visit(next, seen);
    }
  }

private:
  /// Reductions that are worth a look, in program order.
  SmallVector<Operation *> candidates() {
    SmallVector<Operation *> found;
    getOperation().walk<WalkOrder::PreOrder>([&](Operation *op) {
      if (isPlainSum(op) && byteSize(op->getResult(0)) >= minBytes)
        found.push_back(op);
    });
    return found;
  }

  void visit(Operation *seed, DenseSet<Operation *> &seen) {
    ModuleOp module = getOperation();
    Operation *manual = enclosingManual(seed, module);
    std::optional<Groups> groups = manual ? deviceGroups(seed, module) : std::nullopt;
    if (!groups || groups->front().size() < 2)
      return;
    Agreement agree(manual, *groups, module);
    DenseSet<Operation *> seedable;
    manual->walk([&](Operation *op) {
      if (isPlainSum(op) && op->getDiscardableAttrDictionary() == seed->getDiscardableAttrDictionary())
        if (std::optional<Groups> other = deviceGroups(op, module); other && *other == *groups)
          seedable.insert(op);
    });
    std::unique_ptr<Parts> best, closest;
    RankedTensorType type = tensorType(seed->getResult(0));
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      int64_t size = type.getDimSize(dim);
      if (size % static_cast<int64_t>(groups->front().size()) != 0)
        continue;
      std::unique_ptr<Parts> parts = cheapest(seed, manual, *groups, agree, seedable, dim, size);
      std::unique_ptr<Parts> &place = parts->pays() ? best : closest;
      if (!place || parts->gathered - parts->scattered < place->gathered - place->scattered)
        place = std::move(parts);
    }
    if (!best) {
      auto megabytes = [](double bytes) { return llvm::formatv("{0:F1} MB", bytes / 1e6).str(); };
      std::string why = !closest ? "no dimension of it divides by the devices"
                                 : "with what works on its parts, " + megabytes(closest->scattered) +
                                       " would be scattered, " + megabytes(closest->gathered) +
                                       " gathered again and " + megabytes(closest->worked) + " made in parts";
      remark::missed(seed->getLoc(), remark::RemarkOpts::name("whole").category("collectives"))
          << "stays one reduction: " + why;
      return;
    }
    for (Operation *op : seedable)
      if (best->contains(op))
        seen.insert(op);
    scattered += best->reductions;
    gathered += best->gathers;
    sums += best->sums;
    remark::passed(seed->getLoc(), remark::RemarkOpts::name("scattered").category("collectives"))
        << "scattered with " << std::to_string(best->reductions - 1) << " more reductions; "
        << std::to_string(best->gathers) << " gathers where the whole is read";
    best->emit();
  }

  /// The region around `seed` with those elements of loops' states whole that are cheaper so: a stack that the next
  /// loop reads whole anyway.
  std::unique_ptr<Parts> cheapest(Operation *seed, Operation *manual, const Groups &groups,
                                  const Agreement &agree, const DenseSet<Operation *> &seedable,
                                  int64_t dim, int64_t size) {
    DenseSet<Link> whole;
    auto attempt = [&] {
      auto parts = std::make_unique<Parts>(manual, groups, agree, size, regroup);
      parts->grow(seed, AxisPlace{dim, 1, 1}, seedable, whole);
      parts->settle();
      return parts;
    };
    std::unique_ptr<Parts> best = attempt();
    // Links through which one value is handed from loop to loop are decided together.
    SmallVector<Link> links = best->links;
    llvm::EquivalenceClasses<unsigned> classes;
    DenseMap<Value, unsigned> first;
    for (auto [n, link] : llvm::enumerate(links)) {
      classes.insert(n);
      for (Value value : llvm::concat<Value>(sources(link), targets(link)))
        if (std::optional<Link> made = linkOf(value)) {
          auto [it, isNew] = first.try_emplace(value, n);
          classes.unionSets(it->second, n);
        }
    }
    int trials = 0;
    for (unsigned n = 0; n < links.size() && trials < kMostTrials; ++n) {
      if (classes.getLeaderValue(n) != n || whole.contains(links[n]))
        continue;
      ++trials;
      DenseSet<Link> before = whole;
      for (auto member = classes.findLeader(n); member != classes.member_end(); ++member)
        whole.insert(links[*member]);
      std::unique_ptr<Parts> parts = attempt();
      if (parts->gathered - parts->scattered < best->gathered - best->scattered)
        best = std::move(parts);
      else
        whole = before;
    }
    return best;
  }
};
} // namespace
} // namespace farrier::collectives
