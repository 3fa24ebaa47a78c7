#include "passes/collectives/Passes.h"
#include "passes/collectives/Rows.h"

#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/Remarks.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/Support/JSON.h"

namespace farrier::collectives {
#define GEN_PASS_DEF_SPLITBATCH
#include "passes/collectives/Passes.h.inc"

using namespace mlir;

//===-- What an operation does along the axis, beyond Analysis/Axis
//-----------------------------------------===//

/// cuDNN attention without bias, masks of its own or dropout: every operand and result but the workspace has
/// the batch as dimension 0, and batches do not meet.
static bool isPlainAttention(Operation *op) {
  auto call = dyn_cast<stablehlo::CustomCallOp>(op);
  if (!call)
    return false;
  return (call.getCallTargetName() == "__cudnn$fmhaSoftmax" && op->getNumOperands() == 3) ||
         (call.getCallTargetName() == "__cudnn$fmhaSoftmaxBackward" && op->getNumOperands() == 6);
}

static std::optional<AxisFlow> attentionFlow(Operation *op, AxisPlace place, int64_t size) {
  if (place != AxisPlace{0, 1, 1})
    return std::nullopt;
  AxisFlow flow;
  auto batched = [&](Value value) {
    RankedTensorType type = tensorType(value);
    return type && type.getRank() >= 3 && type.getDimSize(0) == size;
  };
  if (!llvm::all_of(op->getOperands(), batched))
    return std::nullopt;
  flow.operands.assign(op->getNumOperands(), place);
  for (Value result : op->getResults()) {
    if (batched(result))
      flow.results.push_back(place);
    else if (result.use_empty())
      flow.results.push_back(std::nullopt); // the workspace
    else
      return std::nullopt;
  }
  return flow;
}

/// The batch in cuDNN's own description of the intermediate; failure if it is not where it is expected.
static FailureOr<StringAttr> halvedConfig(Operation *op, int64_t size) {
  auto text = op->getAttrOfType<StringAttr>("backend_config");
  if (!text)
    return failure();
  llvm::Expected<llvm::json::Value> parsed = llvm::json::parse(text.getValue());
  if (!parsed) {
    llvm::consumeError(parsed.takeError());
    return failure();
  }
  llvm::json::Object *fmha =
      parsed->getAsObject() ? parsed->getAsObject()->getObject("cudnn_fmha_backend_config") : nullptr;
  llvm::json::Object *shape = fmha ? fmha->getObject("intermediate_tensor_shape") : nullptr;
  llvm::json::Array *dimensions = shape ? shape->getArray("dimensions") : nullptr;
  if (!dimensions || dimensions->empty() || (*dimensions)[0].getAsString() != std::to_string(size))
    return failure();
  (*dimensions)[0] = std::to_string(size / 2);
  std::string result;
  llvm::raw_string_ostream(result) << *parsed;
  return StringAttr::get(op->getContext(), result);
}

/// Collectives work on each element by itself, except along the dimension that they gather or scatter.
static std::optional<AxisFlow> collectiveFlow(Operation *op, AxisPlace place) {
  if (op->getNumOperands() != 1 || op->getNumResults() != 1)
    return std::nullopt;
  if (auto gather = dyn_cast<stablehlo::AllGatherOp>(op)) {
    if (static_cast<int64_t>(gather.getAllGatherDim()) == place.dim)
      return std::nullopt;
  } else if (auto scatter = dyn_cast<stablehlo::ReduceScatterOp>(op)) {
    if (static_cast<int64_t>(scatter.getScatterDimension()) == place.dim)
      return std::nullopt;
  } else if (!isa<stablehlo::AllReduceOp>(op)) {
    return std::nullopt;
  }
  AxisFlow flow;
  flow.operands = {place};
  flow.results = {place};
  return flow;
}

static bool isCollective(Operation *op) {
  return isa<stablehlo::AllReduceOp, stablehlo::AllGatherOp, stablehlo::ReduceScatterOp>(op);
}

static std::optional<AxisFlow> flowThrough(Operation *op, unsigned operand, AxisPlace place, int64_t size) {
  if (isPlainAttention(op))
    return attentionFlow(op, place, size);
  return isCollective(op) ? collectiveFlow(op, place) : flowFromOperand(op, operand, place, size);
}

static std::optional<AxisFlow> flowInto(Operation *op, unsigned result, AxisPlace place, int64_t size) {
  if (isPlainAttention(op))
    return attentionFlow(op, place, size);
  if (isCollective(op))
    return collectiveFlow(op, place);
  if (isa<stablehlo::ConstantOp>(op))
    return splatFlow(op, place);
  return flowFromResult(op, result, place, size);
}

namespace {

//===-- Which operations can run in halves
//------------------------------------------------------------------===//

/// Operations of one block that work row by row along an axis, found from one collective in all directions.
class Halves {
public:
  Halves(Block &block, int64_t size, bool regroup) : block(block), size(size), regroup(regroup) {}

  void grow(Operation *seed, AxisPlace place) {
    assign(seed->getResult(0), place);
    while (!worklist.empty()) {
      Value value = worklist.pop_back_val();
      AxisPlace at = places[value];
      if (Operation *op = value.getDefiningOp(); op && op->getBlock() == &block)
        tryAdd(op, flowInto(op, cast<OpResult>(value).getResultNumber(), at, size));
      for (OpOperand &use : value.getUses())
        if (use.getOwner()->getBlock() == &block)
          tryAdd(use.getOwner(), flowThrough(use.getOwner(), use.getOperandNumber(), at, size));
    }
  }

  /// Replaces every operation found by one on each half.
  void emit();

  bool contains(Operation *op) const { return flows.contains(op); }
  int64_t operations() const { return flows.size(); }
  int64_t sums = 0; ///< sums over the axis that are now added up from two parts

private:
  void assign(Value value, AxisPlace place) {
    if (places.try_emplace(value, place).second)
      worklist.push_back(value);
  }

  void tryAdd(Operation *op, const std::optional<AxisFlow> &flow) {
    if (!flow || flows.contains(op) || stablehlo::hasUnmodelledAttrs(op))
      return;
    if (flow->kind == AxisFlow::Sum && !regroup)
      return;
    auto fits = [&](Value value, const std::optional<AxisPlace> &place) {
      if (place && (place->outer != 1 || !tensorType(value) || !tensorType(value).hasStaticShape()))
        return false;
      auto known = places.find(value);
      return known == places.end() || (place && *place == known->second);
    };
    for (auto [value, place] : llvm::zip_equal(op->getOperands(), flow->operands))
      if (!fits(value, place))
        return;
    for (auto [value, place] : llvm::zip_equal(op->getResults(), flow->results))
      if (!fits(value, place))
        return;
    if (isPlainAttention(op) && failed(halvedConfig(op, size)))
      return;
    flows[op] = *flow;
    sums += flow->kind == AxisFlow::Sum;
    for (auto [value, place] : llvm::zip_equal(op->getOperands(), flow->operands))
      if (place)
        assign(value, *place);
    for (auto [value, place] : llvm::zip_equal(op->getResults(), flow->results))
      if (place)
        assign(value, *place);
  }

  Value half(Value value, AxisPlace place, int which);
  Operation *clone(OpBuilder &builder, Operation *op, const AxisFlow &flow, int which);

  Block &block;
  int64_t size;
  bool regroup;
  DenseMap<Operation *, AxisFlow> flows;
  DenseMap<Value, AxisPlace> places;
  SmallVector<Value> worklist;
  DenseMap<Value, std::array<Value, 2>> halves; // of values made in halves, and slices of others
};

Value Halves::half(Value value, AxisPlace place, int which) {
  auto [it, isNew] = halves.try_emplace(value);
  if (isNew) {
    OpBuilder builder(value.getContext());
    builder.setInsertionPointAfterValue(value);
    RankedTensorType type = tensorType(value);
    int64_t rows = size / 2 * place.inner;
    for (int k : {0, 1}) {
      SmallVector<int64_t> starts(type.getRank(), 0), limits(type.getShape()), strides(type.getRank(), 1);
      starts[place.dim] = k * rows;
      limits[place.dim] = (k + 1) * rows;
      it->second[k] =
          make(builder, value.getLoc(), "stablehlo.slice", chunkedType(type, place, size / 2, size), value,
               {builder.getNamedAttr("start_indices", builder.getDenseI64ArrayAttr(starts)),
                builder.getNamedAttr("limit_indices", builder.getDenseI64ArrayAttr(limits)),
                builder.getNamedAttr("strides", builder.getDenseI64ArrayAttr(strides))})
              ->getResult(0);
    }
  }
  return it->second[which];
}

Operation *Halves::clone(OpBuilder &builder, Operation *op, const AxisFlow &flow, int which) {
  SmallVector<Value> operands;
  for (auto [operand, place] : llvm::zip_equal(op->getOperands(), flow.operands))
    operands.push_back(place ? half(operand, *place, which) : operand);
  SmallVector<Type> types;
  for (auto [result, place] : llvm::zip_equal(op->getResults(), flow.results)) {
    Type type = result.getType();
    if (place)
      type = chunkedType(tensorType(result), *place, size / 2, size);
    types.push_back(type);
  }
  if (isa<stablehlo::DotGeneralOp>(op) && flow.kind == AxisFlow::Sum)
    types[0] = wideSum(cast<RankedTensorType>(types[0]));
  Operation *copy = cloneOnPart(builder, op, flow, operands, types);
  if (isPlainAttention(copy))
    copy->setAttr("backend_config", *halvedConfig(op, size));
  if (isCollective(copy)) {
    // Keeps XLA from combining one half's collective with the other's.
    auto key = builder.getNamedAttr("combiner_key", builder.getStringAttr("farrier_half_" + Twine(which)));
    copy->setAttr("mhlo.frontend_attributes", builder.getDictionaryAttr(key));
  }
  return copy;
}

void Halves::emit() {
  SmallVector<Operation *> found;
  for (Operation &op : block)
    if (flows.contains(&op))
      found.push_back(&op);
  SmallVector<std::pair<Value, Operation *>> joins;
  for (Operation *op : found) {
    const AxisFlow &flow = flows[op];
    OpBuilder builder(op->getContext());
    builder.setInsertionPointAfter(op);
    std::array<Operation *, 2> parts{clone(builder, op, flow, 0), nullptr};
    parts[1] = clone(builder, op, flow, 1);
    if (flow.kind == AxisFlow::Sum) {
      Type type = parts[0]->getResult(0).getType();
      Operation *sum = make(builder, op->getLoc(), "stablehlo.add", type,
                            {parts[0]->getResult(0), parts[1]->getResult(0)});
      if (type != op->getResult(0).getType())
        sum = make(builder, op->getLoc(), "stablehlo.convert", op->getResult(0).getType(), sum->getResult(0));
      op->getResult(0).replaceAllUsesWith(sum->getResult(0));
      continue;
    }
    for (auto [k, place] : llvm::enumerate(flow.results))
      if (place) {
        halves[op->getResult(k)] = {parts[0]->getResult(k), parts[1]->getResult(k)};
        joins.emplace_back(op->getResult(k), parts[1]);
      }
  }
  // What is left reads whole values: both halves, one after the other.
  DenseSet<Operation *> replaced(found.begin(), found.end());
  for (auto &[value, after] : joins) {
    auto outside = [&](OpOperand &use) { return !replaced.contains(use.getOwner()); };
    if (llvm::none_of(value.getUses(), outside))
      continue;
    OpBuilder builder(value.getContext());
    builder.setInsertionPointAfter(after);
    auto dim = builder.getNamedAttr("dimension", builder.getI64IntegerAttr(places[value].dim));
    Operation *whole =
        make(builder, value.getLoc(), "stablehlo.concatenate", value.getType(), halves[value], dim);
    value.replaceUsesWithIf(whole->getResult(0), outside);
  }
  for (Operation *op : llvm::reverse(found))
    op->erase();
}

//===-- The pass
//--------------------------------------------------------------------------------------------===//

struct SplitBatch : impl::SplitBatchBase<SplitBatch>, CounterSet {
  SplitBatch() = default;
  SplitBatch(const SplitBatch &other) : SplitBatchBase(other), CounterSet(other) {}
  using SplitBatchBase::SplitBatchBase;

  Counter regions{this, "regions"};
  Counter halved{this, "halved-collectives"};
  Counter sums{this, "regrouped-sums"};

  void runOnOperation() override {
    SmallVector<Block *> blocks;
    auto find = [&] {
      blocks.clear();
      getOperation().walk([&](Block *block) {
        if (seeds(*block).size() > 1)
          blocks.push_back(block);
      });
    };
    find();
    if (blocks.empty())
      return;
    inlineCalls(getOperation());
    find();
    for (Block *block : blocks)
      split(*block);
  }

private:
  /// Reductions that are worth halving, in program order.
  SmallVector<Operation *> seeds(Block &block) {
    SmallVector<Operation *> found;
    for (Operation &op : block)
      if (isa<stablehlo::AllReduceOp>(op) && op.getNumResults() == 1 &&
          byteSize(op.getResult(0)) >= minBytes)
        found.push_back(&op);
    return found;
  }

  void split(Block &block) {
    SmallVector<Operation *> all = seeds(block);
    std::unique_ptr<Halves> best;
    int64_t most = 1; // one reduction alone has nothing in halves beside it
    Operation *from = nullptr;
    DenseSet<std::pair<Operation *, int64_t>> seen;
    for (Operation *seed : all) {
      RankedTensorType type = tensorType(seed->getResult(0));
      for (int64_t dim = 0; dim < type.getRank(); ++dim) {
        int64_t size = type.getDimSize(dim);
        if (size < 2 || size % 2)
          continue;
        auto halves = std::make_unique<Halves>(block, size, regroup);
        halves->grow(seed, AxisPlace{dim, 1, 1});
        int64_t covered = llvm::count_if(all, [&](Operation *op) { return halves->contains(op); });
        if (covered > most) {
          most = covered;
          best = std::move(halves);
          from = seed;
        }
      }
      if (best && most * 2 > static_cast<int64_t>(all.size()))
        break; // no other region holds more
    }
    if (!best)
      return;
    ++regions;
    halved += most;
    sums += best->sums;
    remark::passed(from->getLoc(), remark::RemarkOpts::name("halved").category("collectives"))
        << "runs in halves with " << std::to_string(most - 1)
        << " more reductions: one half computes while the other is sent";
    best->emit();
  }
};
} // namespace
} // namespace farrier::collectives
