//===- TileEmit.cpp - the loop that a tile region becomes -----------------===//

#include "passes/fusion/Build.h"
#include "passes/fusion/Tile.h"
#include "passes/fusion/TileBlocks.h"

#include "farrier/Analysis/OpInfo.h"

#include "mlir/IR/IRMapping.h"
#include "mlir/Transforms/RegionUtils.h"
#include "llvm/ADT/Sequence.h"
#include "llvm/ADT/SetVector.h"

using namespace mlir;

namespace farrier::fusion {

namespace {

using Place = std::optional<AxisPlace>;

/// How a value from outside reaches the loop: whole, or one chunk at a time.
struct Input {
  Value value;
  Place place;
  bool operator==(const Input &other) const { return value == other.value && place == other.place; }
};

class Emitter {
public:
  Emitter(TileRegion &region, const TileRegion::Options &options)
      : region(region), options(options), chunk(region.size / options.chunks),
        builder(region.seed->getContext()) {
    inside.insert(region.ops.begin(), region.ops.end());
  }
  void run();

private:
  /// Whether to compute `value` again inside the loop rather than to carry it in, and how.
  std::optional<AxisFlow> pull(Value value, Place place);
  bool hidesGiant(Value value, unsigned depth);
  void collect(Value value, Place place);
  Value get(Value value, Place place);
  void cloneOp(Operation *op, const AxisFlow &flow, Operation *&clone);
  /// A scatter that touches one element of each row, as a choice between two values per element: it becomes
  /// part of the kernel that makes the row, which can then overwrite what it reads. Null for other scatters.
  Operation *scatterByChoice(stablehlo::ScatterOp op, ArrayRef<Value> operands, RankedTensorType type);
  void computeInside(Operation *op);
  /// Operations that need every row reduction first (gradients), and what follows from them, when the values
  /// they make can take the place of the product's in memory.
  DenseSet<Operation *> lateOps();
  /// Whether a value of the region is one that has to pass through memory as large as the product's result.
  bool isGiant(Value value);
  bool isRecomputable(Value value);
  /// Makes everything computed so far precede what comes, which gets the giant values from the product's result
  /// again: the last kernel that reads it can then write its own result over it.
  void barrier(const DenseSet<Operation *> &late);
  /// The shape of the product's result in two dimensions, where devices' blocks allow it.
  SmallVector<int64_t> plainShape(RankedTensorType type);

  /// Shape with the axis in a dimension of its own.
  SmallVector<int64_t> split(RankedTensorType type, AxisPlace place, int64_t extent, int64_t &dim);
  Value takeChunk(Maker &make, Value whole, AxisPlace place, RankedTensorType type);
  SmallVector<Value> starts(Maker &make, int64_t rank, int64_t dim, int64_t scale);

  TileRegion &region;
  TileRegion::Options options;
  int64_t chunk;
  OpBuilder builder;
  DenseSet<Operation *> inside;
  SmallVector<Input> inputs;
  SmallVector<std::pair<Input, Value>> made; ///< pulled values and input chunks, inside the loop
  DenseMap<Value, Value> mapping;            ///< results of the region's operations, inside the loop
  Value counter, zero;
};

/// Whether a small value is a sum over a giant that exists for nothing else (labels spread over the
/// vocabulary).
bool Emitter::hidesGiant(Value value, unsigned depth) {
  constexpr unsigned limit = 8;
  Operation *op = value.getDefiningOp();
  if (!op || depth > limit || inside.contains(op))
    return false;
  if (isa<stablehlo::ReduceOp>(op))
    return region.isBig(op->getOperand(0)) || hidesGiant(op->getOperand(0), depth + 1);
  if (!isElementwise(op) && !isa<stablehlo::ReshapeOp, stablehlo::BroadcastInDimOp>(op))
    return false;
  return llvm::any_of(op->getOperands(), [&](Value operand) { return hidesGiant(operand, depth + 1); });
}

std::optional<AxisFlow> Emitter::pull(Value value, Place place) {
  Operation *op = value.getDefiningOp();
  if (!op || op->getNumResults() != 1)
    return std::nullopt;
  AxisFlow same;
  same.operands.assign(op->getNumOperands(), std::nullopt);
  same.results.assign(1, std::nullopt);
  if (auto constant = dyn_cast<stablehlo::ConstantOp>(op)) {
    auto dense = dyn_cast<DenseElementsAttr>(constant.getValue());
    return dense && dense.isSplat() ? std::optional(same) : std::nullopt;
  }
  bool cheap = isa<stablehlo::BroadcastInDimOp, stablehlo::IotaOp>(op);
  if (isa<stablehlo::ConvertOp>(op))
    cheap = elementBits(op->getOperand(0).getType()) <= elementBits(value.getType());
  if (!place)
    return cheap ? std::optional(same) : std::nullopt;
  bool light = cheap || isElementwise(op) || isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(op);
  bool worthIt = cheap || region.isBig(value) || hidesGiant(value, 0);
  bool pulls =
      light || isa<stablehlo::ScatterOp, stablehlo::PadOp, stablehlo::ConcatenateOp, stablehlo::ReduceOp>(op);
  if (!pulls || !worthIt)
    return std::nullopt;
  return flowFromResult(op, 0, *place, region.size);
}

void Emitter::collect(Value value, Place place) {
  Operation *op = value.getDefiningOp();
  if (op && inside.contains(op))
    return;
  if (auto iota = op ? dyn_cast<stablehlo::IotaOp>(op) : stablehlo::IotaOp();
      iota && place && static_cast<int64_t>(iota.getIotaDimension()) == place->dim &&
      tensorType(value).getRank() > 1) {
    // Its values depend on the chunk: count along one dimension outside and broadcast inside.
    OpBuilder before(iota);
    Maker make(before, iota.getLoc());
    RankedTensorType type = tensorType(value);
    Value line = make.iota(RankedTensorType::get({type.getDimSize(place->dim)}, type.getElementType()), 0);
    Value spread = make.broadcast(line, type.getShape(), {place->dim});
    iota.getResult().replaceAllUsesWith(spread);
    value = spread;
    op = value.getDefiningOp();
  }
  if (std::optional<AxisFlow> flow = pull(value, place)) {
    for (unsigned i = 0; i < op->getNumOperands(); ++i)
      collect(op->getOperand(i), flow->operands[i]);
    return;
  }
  Input input{value, place};
  if (!llvm::is_contained(inputs, input))
    inputs.push_back(input);
}

SmallVector<int64_t> Emitter::split(RankedTensorType type, AxisPlace place, int64_t extent, int64_t &dim) {
  SmallVector<int64_t> shape;
  for (int64_t i = 0; i < type.getRank(); ++i) {
    if (i != place.dim) {
      shape.push_back(type.getDimSize(i));
      continue;
    }
    if (place.outer != 1)
      shape.push_back(place.outer);
    dim = shape.size();
    shape.push_back(extent * place.inner);
  }
  return shape;
}

SmallVector<Value> Emitter::starts(Maker &make, int64_t rank, int64_t dim, int64_t scale) {
  SmallVector<Value> result(rank, zero);
  result[dim] = make.binary("stablehlo.multiply", counter, make.i32(scale));
  return result;
}

Value Emitter::takeChunk(Maker &make, Value whole, AxisPlace place, RankedTensorType type) {
  int64_t dim = 0;
  SmallVector<int64_t> sizes = split(type, place, chunk, dim);
  Value piece = make.dynamicSlice(whole, starts(make, sizes.size(), dim, chunk * place.inner), sizes);
  return make.reshape(piece, chunkedType(type, place, chunk, region.size).getShape());
}

void Emitter::cloneOp(Operation *op, const AxisFlow &flow, Operation *&clone) {
  SmallVector<Value> operands;
  for (auto [operand, place] : llvm::zip(op->getOperands(), flow.operands))
    operands.push_back(get(operand, place));
  Maker make(builder, op->getLoc());
  SmallVector<Type> types;
  for (auto [result, place] : llvm::zip(op->getResults(), flow.results)) {
    RankedTensorType type = tensorType(result);
    if (place)
      type = chunkedType(type, *place, chunk, region.size);
    types.push_back(type);
  }
  if (auto blocks = summedBlocks(region, op); !blocks.empty()) {
    Maker make(builder, op->getLoc());
    clone = sumPerBlock(make, region, op, operands, blocks, chunk, options.narrowProducts).getDefiningOp();
    return;
  }
  if (isa<stablehlo::DotGeneralOp>(op) && op != region.seed) {
    if (flow.kind == AxisFlow::Sum)
      types[0] = wideSum(cast<RankedTensorType>(types[0]));
    if (options.narrowProducts)
      for (Value &operand : operands)
        if (tensorType(operand).getElementType().isF32())
          operand = make.convert(operand, builder.getBF16Type());
  }
  if (auto scatter = dyn_cast<stablehlo::ScatterOp>(op))
    if ((clone = scatterByChoice(scatter, operands, cast<RankedTensorType>(types[0]))))
      return;
  clone = cloneOnPart(builder, op, flow, operands, types);
}

/// What a scatter of one update does with it: "add" or "set"; empty for anything else.
static StringRef combination(stablehlo::ScatterOp scatter) {
  Block &body = scatter->getRegion(0).front();
  Operation *end = body.getTerminator();
  if (end->getOperand(0) == body.getArgument(1))
    return "set";
  auto add = end->getOperand(0).getDefiningOp<stablehlo::AddOp>();
  bool both = add && ((add.getLhs() == body.getArgument(0) && add.getRhs() == body.getArgument(1)) ||
                      (add.getLhs() == body.getArgument(1) && add.getRhs() == body.getArgument(0)));
  return both ? "add" : "";
}

Operation *Emitter::scatterByChoice(stablehlo::ScatterOp scatter, ArrayRef<Value> operands,
                                    RankedTensorType type) {
  auto numbers = scatter.getScatterDimensionNumbers();
  ArrayRef<int64_t> rows = numbers.getInputBatchingDims(),
                    indexRows = numbers.getScatterIndicesBatchingDims();
  RankedTensorType indices = tensorType(operands[1]), updates = tensorType(operands[2]);
  int64_t count = 1;
  for (int64_t dim : rows)
    count *= type.getDimSize(dim);
  StringRef how = combination(scatter);
  if (how.empty() || numbers.getScatterDimsToOperandDims().size() != 1 ||
      static_cast<int64_t>(rows.size()) + 1 != type.getRank() || !numbers.getUpdateWindowDims().empty() ||
      indices.getNumElements() != count || updates.getNumElements() != count ||
      indices.getElementTypeBitWidth() < 32)
    return nullptr;
  int64_t column = numbers.getScatterDimsToOperandDims()[0];
  if (llvm::is_contained(rows, column))
    return nullptr;
  // The indices' dimensions in their order, and where each lies in the rows.
  SmallVector<std::pair<int64_t, int64_t>> order;
  for (auto [dim, with] : llvm::zip(rows, indexRows))
    order.emplace_back(with, dim);
  llvm::sort(order);
  SmallVector<int64_t> shape, dims;
  for (auto [with, dim] : order) {
    shape.push_back(type.getDimSize(dim));
    dims.push_back(dim);
  }
  Maker make(builder, scatter.getLoc());
  Value at = make.broadcast(make.reshape(operands[1], shape), type.getShape(), dims);
  Value update = make.broadcast(make.reshape(operands[2], shape), type.getShape(), dims);
  Value here = make.compare(at, make.iota(tensorType(at), column), stablehlo::ComparisonDirection::EQ);
  Value changed = how == "add" ? make.binary("stablehlo.add", operands[0], update) : update;
  return make.select(here, changed, operands[0]).getDefiningOp();
}

//===-- Order inside the loop
//-------------------------------------------------------------------------------===//

bool Emitter::isGiant(Value value) {
  Operation *op = value.getDefiningOp();
  return op && inside.contains(op) && region.isBig(value) &&
         (op == region.seed.getOperation() || !isa<stablehlo::DotGeneralOp>(op)) &&
         region.flows[op].kind == AxisFlow::Map;
}

bool Emitter::isRecomputable(Value value) {
  Operation *op = value.getDefiningOp();
  if (!isGiant(value) || op == region.seed.getOperation())
    return true;
  return (isElementwise(op) ||
          isa<stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::BroadcastInDimOp>(op)) &&
         llvm::all_of(op->getOperands(), [&](Value operand) { return isRecomputable(operand); });
}

DenseSet<Operation *> Emitter::lateOps() {
  DenseMap<Value, unsigned> level; // how many reductions over rows lie behind a value
  DenseSet<Operation *> late;
  unsigned highest = 0;
  for (Operation *op : region.ops) {
    unsigned most = 0;
    bool readsBig = false, makesBig = llvm::any_of(op->getResults(), [&](Value v) { return isGiant(v); });
    for (Value operand : op->getOperands()) {
      most = std::max(most, level.lookup(operand));
      readsBig |= isGiant(operand);
    }
    for (Value result : op->getResults())
      level[result] = most + (readsBig && !makesBig);
    if (makesBig)
      highest = std::max(highest, most);
  }
  if (highest == 0)
    return late;
  int64_t width = elementBits(region.seed.getType());
  bool replaces = false;
  DenseSet<Value> after;
  for (Operation *op : region.ops) {
    Value result = op->getResult(0);
    bool follows = llvm::any_of(op->getOperands(), [&](Value v) { return after.contains(v); });
    bool last = isGiant(result) && level[result] == highest;
    if (!follows && !last)
      continue;
    late.insert(op);
    after.insert_range(op->getResults());
    replaces |= last && elementBits(result.getType()) == width;
    for (Value operand : op->getOperands())
      if (Operation *from = operand.getDefiningOp();
          from && inside.contains(from) && !late.contains(from) && !isRecomputable(operand))
        return {};
  }
  if (!replaces)
    late.clear();
  return late;
}

SmallVector<int64_t> Emitter::plainShape(RankedTensorType type) {
  int64_t contracted = region.seed.getDotDimensionNumbers().getLhsContractingDimensions().size();
  int64_t left = tensorType(region.seed.getLhs()).getRank() - contracted;
  // Devices' blocks must stay what varies slowest: a merged dimension is split along its first part only.
  for (const TileRegion::Blocks &blocks : region.blocks)
    if (blocks.dim != 0 && blocks.dim != left)
      return llvm::to_vector(type.getShape());
  SmallVector<int64_t> plain{1, 1};
  for (int64_t dim = 0; dim < type.getRank(); ++dim)
    plain[dim < left ? 0 : 1] *= type.getDimSize(dim);
  return plain;
}

void Emitter::barrier(const DenseSet<Operation *> &late) {
  SmallVector<Value> values{region.seed.getResult()}, forget;
  for (Operation *op : region.ops) {
    if (late.contains(op) || op == region.seed.getOperation())
      continue;
    bool readsBig = llvm::any_of(op->getOperands(), [&](Value v) { return isGiant(v); });
    for (Value result : op->getResults())
      if (isGiant(result))
        forget.push_back(result);
      else if (readsBig)
        values.push_back(result);
  }
  SmallVector<Value> before;
  SmallVector<Type> types;
  for (Value value : values) {
    before.push_back(mapping[value]);
    types.push_back(before.back().getType());
  }
  // XLA computes a product with one dimension of rows and one of columns. What reads its result through a
  // change of shape that a barrier keeps from being fused cannot write over it.
  Maker make(builder, region.seed.getLoc());
  RankedTensorType type = tensorType(before.front());
  SmallVector<int64_t> plain = plainShape(type);
  before.front() = make.reshape(before.front(), plain);
  types.front() = before.front().getType();
  Operation *wait = make.op("stablehlo.optimization_barrier", types, before);
  for (auto [value, after] : llvm::zip(values, wait->getResults()))
    mapping[value] = after;
  mapping[values.front()] = make.reshape(wait->getResult(0), type.getShape());
  for (Value value : forget)
    mapping.erase(value);
}

void Emitter::computeInside(Operation *op) {
  Operation *clone = nullptr;
  cloneOp(op, region.flows[op], clone);
  for (auto [result, copy] : llvm::zip(op->getResults(), clone->getResults()))
    mapping[result] = copy;
}

Value Emitter::get(Value value, Place place) {
  if (auto it = mapping.find(value); it != mapping.end())
    return it->second;
  if (Operation *op = value.getDefiningOp(); op && inside.contains(op)) {
    computeInside(op); // a giant value from before the barrier
    return mapping[value];
  }
  Input key{value, place};
  for (auto &[input, chunkValue] : made)
    if (input == key)
      return chunkValue;
  std::optional<AxisFlow> flow = pull(value, place);
  Operation *clone = nullptr;
  // A constant has no operands to tell it its chunk's shape.
  if (flow && isa<stablehlo::ConstantOp>(value.getDefiningOp()))
    flow->results[0] = place;
  cloneOp(value.getDefiningOp(), *flow, clone);
  made.emplace_back(key, clone->getResult(0));
  return clone->getResult(0);
}

void Emitter::run() {
  for (Operation *op : region.ops)
    for (auto [operand, place] : llvm::zip(op->getOperands(), region.flows[op].operands))
      collect(operand, place);

  // The loop stands where the last operation of the region stood: every input exists by then. What reads
  // results of the region and stood earlier moves behind it, in order.
  Operation *last = region.ops.back();
  DenseSet<Value> dependent;
  for (Operation *op : region.ops)
    dependent.insert_range(op->getResults());
  SmallVector<Operation *> behind;
  for (Operation *op = region.seed; op != last; op = op->getNextNode()) {
    if (inside.contains(op))
      continue;
    bool depends = llvm::any_of(op->getOperands(), [&](Value v) { return dependent.contains(v); });
    if (op->getNumRegions() && !depends)
      visitUsedValuesDefinedAbove(op->getRegions(),
                                  [&](OpOperand *use) { depends |= dependent.contains(use->get()); });
    if (depends) {
      behind.push_back(op);
      dependent.insert_range(op->getResults());
    }
  }

  Location loc = region.seed.getLoc();
  builder.setInsertionPointAfter(last);
  Maker make(builder, loc);
  SmallVector<Value> state{make.i32(0)};
  for (Value value : region.sliced) {
    RankedTensorType type = tensorType(value);
    int64_t dim = 0;
    SmallVector<int64_t> shape = split(type, region.places[value], region.size, dim);
    state.push_back(make.splat(RankedTensorType::get(shape, type.getElementType()), 0));
  }
  for (Value value : region.summed) {
    RankedTensorType type = tensorType(value);
    Type element = wideSum(type).getElementType();
    SmallVector<int64_t> shape;
    for (const TileRegion::Blocks *blocks : summedBlocks(region, value.getDefiningOp()))
      shape.push_back(blocks->count);
    shape.append(type.getShape().begin(), type.getShape().end());
    state.push_back(make.splat(RankedTensorType::get(shape, element), 0));
  }
  for (Input &input : inputs) {
    RankedTensorType type = tensorType(input.value);
    int64_t dim = 0;
    Value value = input.value;
    // The loop gets what devices hold of it; gathered here, and not once a chunk.
    for (auto &[given, sharding] : region.pinned)
      if (given == value) {
        value = pinSharding(make, region, value, sharding);
        break;
      }
    state.push_back(input.place ? make.reshape(value, split(type, *input.place, region.size, dim)) : value);
  }
  SmallVector<Type> types;
  for (Value value : state)
    types.push_back(value.getType());
  SmallVector<Location> locations(types.size(), loc);
  Operation *loop = make.op("stablehlo.while", types, state, {}, 2);

  Block *condition = builder.createBlock(&loop->getRegion(0), {}, types, locations);
  make.ret(
      make.compare(condition->getArgument(0), make.i32(options.chunks), stablehlo::ComparisonDirection::LT));

  Block *body = builder.createBlock(&loop->getRegion(1), {}, types, locations);
  counter = body->getArgument(0);
  zero = make.i32(0);
  unsigned argument = 1 + region.sliced.size() + region.summed.size();
  SmallVector<Value> carried;
  for (Input &input : inputs) {
    Value value = body->getArgument(argument++);
    carried.push_back(value);
    made.emplace_back(input,
                      input.place ? takeChunk(make, value, *input.place, tensorType(input.value)) : value);
  }
  DenseSet<Operation *> late = lateOps();
  for (Operation *op : region.ops)
    if (!late.contains(op))
      computeInside(op);
  if (!late.empty())
    barrier(late);
  for (Operation *op : region.ops)
    if (late.contains(op))
      computeInside(op);
  SmallVector<Value> next{make.binary("stablehlo.add", counter, make.i32(1))};
  argument = 1;
  for (Value value : region.sliced) {
    AxisPlace place = region.places[value];
    int64_t dim = 0;
    SmallVector<int64_t> shape = split(tensorType(value), place, chunk, dim);
    Value piece = make.reshape(mapping[value], shape);
    next.push_back(make.dynamicUpdateSlice(body->getArgument(argument++), piece,
                                           starts(make, shape.size(), dim, chunk * place.inner)));
  }
  for (Value value : region.summed) {
    Value sum = body->getArgument(argument++);
    next.push_back(
        make.binary("stablehlo.add", sum, make.convert(mapping[value], tensorType(sum).getElementType())));
  }
  next.append(carried);
  make.ret(next);

  builder.setInsertionPointAfter(loop);
  unsigned result = 1;
  for (Value value : region.sliced)
    value.replaceUsesWithIf(make.reshape(loop->getResult(result++), tensorType(value).getShape()),
                            [&](OpOperand &use) { return !inside.contains(use.getOwner()); });
  for (Value value : region.summed) {
    Value sum = loop->getResult(result++);
    if (int64_t count = tensorType(sum).getRank() - tensorType(value).getRank())
      sum = make.sum(sum, llvm::to_vector(llvm::seq<int64_t>(count)));
    value.replaceUsesWithIf(make.convert(sum, tensorType(value).getElementType()),
                            [&](OpOperand &use) { return !inside.contains(use.getOwner()); });
  }
  Operation *anchor = &*std::prev(builder.getInsertionPoint());
  for (Operation *op : behind) {
    op->moveAfter(anchor);
    anchor = op;
  }
  for (Operation *op : llvm::reverse(region.ops))
    op->erase();
}

} // namespace

void TileRegion::emit(const Options &options) { Emitter(*this, options).run(); }

} // namespace farrier::fusion
