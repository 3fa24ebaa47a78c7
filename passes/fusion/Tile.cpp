#include "passes/fusion/Tile.h"

#include "passes/fusion/Build.h"

#include "mlir/IR/IRMapping.h"
#include "mlir/Transforms/RegionUtils.h"
#include "llvm/ADT/SetVector.h"

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
std::optional<TileRegion> TileRegion::grow(stablehlo::DotGeneralOp seed, int64_t dim, std::string &whyNot,
                                           Operation *&where) {
  TileRegion region;
  region.seed = seed;
  where = seed;
  RankedTensorType seedType = tensorType(seed.getResult());
  region.size = seedType.getDimSize(dim);
  AxisPlace start{dim, 1, 1};
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
        region.bigBytes +=
            tensorType(result).getNumElements() * tensorType(result).getElementTypeBitWidth() / 8;
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

//===-- Emission
//---------------------------------------------------------------------------------------------===//

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
    cheap =
        tensorType(op->getOperand(0)).getElementTypeBitWidth() <= tensorType(value).getElementTypeBitWidth();
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
  if (isa<stablehlo::DotGeneralOp>(op) && op != region.seed) {
    // Partial products are added up in f32 whatever the product is rounded to at the end.
    if (flow.kind == AxisFlow::Sum && isa<FloatType>(tensorType(op->getResult(0)).getElementType()))
      if (auto type = cast<RankedTensorType>(types[0]); type.getElementTypeBitWidth() < 32)
        types[0] = RankedTensorType::get(type.getShape(), builder.getF32Type());
    if (options.narrowProducts)
      for (Value &operand : operands)
        if (tensorType(operand).getElementType().isF32())
          operand = make.convert(operand, builder.getBF16Type());
  }
  if (auto constant = dyn_cast<stablehlo::ConstantOp>(op)) {
    auto type = cast<RankedTensorType>(types[0]);
    auto value = cast<DenseElementsAttr>(constant.getValue()).resizeSplat(type);
    clone = make.op("stablehlo.constant", type, {}, make.attr("value", value));
    return;
  }
  IRMapping none;
  clone = op->cloneWithoutRegions(none);
  builder.insert(clone);
  clone->setOperands(operands);
  for (auto [result, type] : llvm::zip(clone->getResults(), types))
    result.setType(type);
  for (auto [from, to] : llvm::zip(op->getRegions(), clone->getRegions()))
    from.cloneInto(&to, none);
  if (auto slice = dyn_cast<stablehlo::SliceOp>(clone); slice && flow.operands[0]) {
    SmallVector<int64_t> limits(slice.getLimitIndices());
    limits[flow.operands[0]->dim] = tensorType(operands[0]).getDimSize(flow.operands[0]->dim);
    slice.setLimitIndicesAttr(builder.getDenseI64ArrayAttr(limits));
  }
}

Value Emitter::get(Value value, Place place) {
  if (auto it = mapping.find(value); it != mapping.end())
    return it->second;
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
    Type element = type.getElementType();
    if (isa<FloatType>(element) && element.getIntOrFloatBitWidth() < 32)
      element = builder.getF32Type();
    state.push_back(make.splat(RankedTensorType::get(type.getShape(), element), 0));
  }
  for (Input &input : inputs) {
    RankedTensorType type = tensorType(input.value);
    int64_t dim = 0;
    state.push_back(input.place ? make.reshape(input.value, split(type, *input.place, region.size, dim))
                                : input.value);
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
  for (Operation *op : region.ops) {
    Operation *clone = nullptr;
    cloneOp(op, region.flows[op], clone);
    for (auto [result, copy] : llvm::zip(op->getResults(), clone->getResults()))
      mapping[result] = copy;
  }
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
  for (Value value : region.summed)
    value.replaceUsesWithIf(make.convert(loop->getResult(result++), tensorType(value).getElementType()),
                            [&](OpOperand &use) { return !inside.contains(use.getOwner()); });
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
