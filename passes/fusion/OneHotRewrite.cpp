//===- OneHotRewrite.cpp - one-hot dispatch and combine to gathers ----------===//
//
// A product with a mask of which each row picks a few places is a gather of these places. The reader of each
// product is rewritten by itself; when all of them are, nothing reads the mask any more, nor the giant
// gradient of it.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Fusion.h"
#include "passes/fusion/OneHot.h"

#include "farrier/Analysis/OpInfo.h"

using namespace mlir;

namespace farrier::fusion {

namespace {

/// A product with a mask, and which dimension of its result each axis becomes.
struct Reader {
  Operation *op = nullptr;
  unsigned operand = 0; ///< the mask
  Value other;          ///< what it is multiplied with
  Roles otherRoles;
  SmallVector<unsigned, 4> summed;   ///< axes of the mask that are not in the result
  SmallVector<unsigned, 4> features; ///< axes of `other` alone
  llvm::SmallDenseMap<unsigned, int64_t> resultDims;
  double flops = 0;
  /// In operations: what it does, and the time to read the mask, at the 230 operations that an H100 does in
  /// the time of one byte.
  double cost = 0;

  bool sums(unsigned axis) const { return llvm::is_contained(summed, axis); }
};

double readingCost(RankedTensorType type) {
  return 230.0 * byteSize(type);
}

std::optional<Reader> readerOf(OneHotMask &mask, Operation *op, unsigned operand) {
  Reader reader;
  reader.op = op;
  reader.operand = operand;
  RankedTensorType type = tensorType(op->getOperand(operand));
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
  if (!dot || !isa<FloatType>(type.getElementType()))
    return std::nullopt;
  reader.other = dot->getOperand(1 - operand);
  RankedTensorType otherType = tensorType(reader.other);
  llvm::SmallBitVector seen(otherType.getRank());
  reader.flops = 2.0 * tensorType(dot.getResult()).getNumElements();
  for (unsigned axis = 0, count = mask.roles.size(); axis < count; ++axis) {
    auto flow = flowFromOperand(dot, operand, *mask.roles[axis], mask.axes[axis].size);
    if (!flow)
      return std::nullopt;
    if (flow->kind == AxisFlow::Sum) {
      reader.summed.push_back(axis);
      reader.flops *= mask.axes[axis].size;
    } else {
      reader.resultDims[axis] = flow->results[0]->dim;
    }
    reader.otherRoles.push_back(flow->operands[1 - operand]);
    if (flow->operands[1 - operand])
      seen.set(flow->operands[1 - operand]->dim);
  }
  for (int64_t dim = 0; dim < otherType.getRank(); ++dim) {
    if (seen.test(dim) || otherType.getDimSize(dim) == 1)
      continue;
    auto flow = flowFromOperand(dot, 1 - operand, AxisPlace{dim, 1, 1}, otherType.getDimSize(dim));
    if (!flow || flow->kind == AxisFlow::Sum)
      return std::nullopt;
    unsigned axis = mask.addAxis(otherType.getDimSize(dim), false);
    reader.otherRoles.resize(axis + 1);
    reader.otherRoles[axis] = AxisPlace{dim, 1, 1};
    reader.features.push_back(axis);
    reader.resultDims[axis] = flow->results[0]->dim;
  }
  reader.cost = reader.flops + readingCost(type);
  return reader;
}

class OneHotRewriter {
public:
  OneHotRewriter(OneHotMask &mask, Reader &reader, Maker &make)
      : mask(mask), reader(reader), make(make), rows(mask.rows()) {}

  /// Rows keep their places; what each picks is summed up.
  std::optional<Value> combine();
  /// Each place gets the one row that picks it.
  std::optional<Value> dispatch();

private:
  /// The places that each row picks, over [rows ..., picks].
  struct Points {
    SmallVector<int64_t> dims;
    Value outer, inner; ///< positions, i32
    Value live;         ///< inside the axes, and not named twice
    SmallVector<int64_t, 2> counts;
  };
  std::optional<Points> points();
  Value wide(Value value) {
    Type element = tensorType(value).getElementType();
    return elementBits(element) < 32 ? make.convert(value, make.b.getF32Type()) : value;
  }
  Value zeros(Value like) { return make.splat(tensorType(like), 0); }
  /// mask times other where `live`, zero elsewhere.
  std::optional<Sampler::Sampled> products(Sampler &sampler, Value live);
  /// Puts the axes where the reader's result has them.
  Value inOrder(Value value, ArrayRef<unsigned> axes);

  OneHotMask &mask;
  Reader &reader;
  Maker &make;
  SmallVector<unsigned, 4> rows;
};

std::optional<OneHotRewriter::Points> OneHotRewriter::points() {
  Points all;
  for (unsigned axis : rows)
    all.dims.push_back(mask.axes[axis].size);
  SmallVector<Value> outers, inners, lives;
  for (const Pick &pick : mask.picks) {
    SmallVector<int64_t> dims(all.dims);
    dims.push_back(pick.count);
    auto sampler = [&] {
      Sampler sampler(make, mask, dims);
      for (auto [dim, axis] : llvm::enumerate(rows))
        sampler.keep(axis, dim);
      for (const PositionTest *test : {&pick.outer, &pick.inner})
        if (test->bound)
          sampler.keep(*test->bound, rows.size());
      return sampler;
    };
    auto type = RankedTensorType::get(dims, make.b.getI32Type());
    Value live;
    auto positionOf = [&](Sampler sampler, const PositionTest &test) -> Value {
      auto index = sampler.at(test.origin.value, test.origin.roles);
      if (!index || !index->extras.empty())
        return {};
      Value position = make.convert(index->value, make.b.getI32Type());
      // An index that is no whole number, or does not fit, names no place.
      Value same = make.compare(make.convert(position, tensorType(index->value).getElementType()),
                                index->value, stablehlo::ComparisonDirection::EQ);
      if (test.offset)
        position = make.binary("stablehlo.subtract", position, make.splat(type, test.offset));
      using Direction = stablehlo::ComparisonDirection;
      for (Value condition :
           {same, make.compare(position, make.splat(type, 0), Direction::GE),
            make.compare(position, make.splat(type, mask.axes[test.axis].size), Direction::LT)})
        live = live ? make.binary("stablehlo.and", live, condition) : condition;
      return position;
    };
    Value outer = positionOf(sampler(), pick.outer);
    if (!outer)
      return std::nullopt;
    Sampler placed = sampler();
    placed.place(pick.outer.axis, outer);
    Value inner = positionOf(placed, pick.inner);
    if (!inner)
      return std::nullopt;
    outers.push_back(outer);
    inners.push_back(inner);
    lives.push_back(live);
    all.counts.push_back(pick.count);
  }
  int64_t last = rows.size();
  auto joined = [&](ArrayRef<Value> values) { return make.concatenate(values, last); };
  all.outer = joined(outers);
  all.inner = joined(inners);
  all.live = joined(lives);
  all.dims.push_back(tensorType(all.outer).getDimSize(last));
  if (int64_t count = all.dims.back(); count > 1) {
    // Named by an earlier pick of the same row already?
    SmallVector<int64_t> square(all.dims), mine, theirs;
    square.push_back(count);
    for (int64_t dim = 0; dim <= last; ++dim) {
      mine.push_back(dim);
      theirs.push_back(dim < last ? dim : last + 1);
    }
    using Direction = stablehlo::ComparisonDirection;
    auto againstAll = [&](Value value, Direction direction) {
      return make.compare(make.broadcast(value, square, theirs), make.broadcast(value, square, mine),
                          direction);
    };
    auto index = make.iota(RankedTensorType::get(all.dims, make.b.getI32Type()), last);
    Value again = againstAll(index, Direction::LT);
    for (Value value : {all.outer, all.inner})
      again = make.binary("stablehlo.and", again, againstAll(value, Direction::EQ));
    again = make.binary("stablehlo.and", again, make.broadcast(all.live, square, theirs));
    Value times = make.sum(make.convert(again, make.b.getI32Type()), {last + 1});
    all.live = make.binary("stablehlo.and", all.live, make.compare(times, zeros(times), Direction::EQ));
  }
  return all;
}

std::optional<Sampler::Sampled> OneHotRewriter::products(Sampler &sampler, Value live) {
  auto weight = sampler.at(mask.mask, mask.roles);
  if (!weight || !weight->extras.empty())
    return std::nullopt;
  auto factor = sampler.at(reader.other, reader.otherRoles);
  if (!factor)
    return std::nullopt;
  Value b = wide(factor->value);
  Sampler::Sampled product{make.convert(wide(weight->value), tensorType(b).getElementType()), {}};
  product.value = make.binary("stablehlo.multiply", sampler.spread(product, factor->extras), b);
  product.extras = factor->extras;
  Value where = sampler.spread({live, {}}, product.extras);
  product.value = make.select(where, product.value, zeros(product.value));
  return product;
}

Value OneHotRewriter::inOrder(Value value, ArrayRef<unsigned> axes) {
  SmallVector<int64_t> permutation(axes.size());
  for (unsigned i = 0; i < axes.size(); ++i)
    permutation[i] = i;
  llvm::sort(permutation, [&](int64_t a, int64_t b) {
    return reader.resultDims.lookup(axes[a]) < reader.resultDims.lookup(axes[b]);
  });
  RankedTensorType type = tensorType(reader.op->getResult(0));
  value = make.convert(value, type.getElementType());
  return make.reshape(make.transpose(value, permutation), type.getShape());
}

std::optional<Value> OneHotRewriter::combine() {
  std::optional<Points> picked = points();
  if (!picked)
    return std::nullopt;
  Sampler sampler(make, mask, picked->dims);
  SmallVector<unsigned, 6> axes(rows.begin(), rows.end());
  for (auto [dim, axis] : llvm::enumerate(rows))
    sampler.keep(axis, dim);
  sampler.place(mask.picked[0], picked->outer);
  sampler.place(mask.picked[1], picked->inner);
  auto product = products(sampler, picked->live);
  if (!product)
    return std::nullopt;
  Value value = product->value;
  // An axis that is picked from and stays: zero but at the places that were picked.
  int64_t last = rows.size();
  SmallVector<int64_t> dims(tensorType(value).getShape());
  for (unsigned i : {0u, 1u}) {
    unsigned axis = mask.picked[i];
    if (reader.sums(axis))
      continue;
    SmallVector<int64_t> grown(dims), map, front;
    grown.insert(grown.begin() + axes.size() + 1, mask.axes[axis].size);
    for (size_t dim = 0; dim < dims.size(); ++dim)
      map.push_back(dim + (dim > axes.size()));
    for (int64_t dim = 0; dim <= last; ++dim)
      front.push_back(dim);
    Value at = make.broadcast(i ? picked->inner : picked->outer, grown, front);
    Value here =
        make.compare(make.iota(tensorType(at), axes.size() + 1), at, stablehlo::ComparisonDirection::EQ);
    value = make.broadcast(value, grown, map);
    value = make.select(here, value, zeros(value));
    axes.push_back(axis);
    dims = grown;
  }
  value = make.sum(value, {last});
  axes.append(product->extras.begin(), product->extras.end());
  return inOrder(value, axes);
}

std::optional<Value> OneHotRewriter::dispatch() {
  std::optional<Points> picked = points();
  if (!picked)
    return std::nullopt;
  // Cells: every place of the picked axes, for each of the rows that stay.
  SmallVector<unsigned, 6> cells;
  SmallVector<int64_t> dims;
  int64_t cellCount = 1, pointCount = 1, summedCount = 1;
  for (unsigned axis = 0; axis < mask.roles.size(); ++axis) {
    if (reader.sums(axis)) {
      summedCount *= mask.axes[axis].size;
      continue;
    }
    cells.push_back(axis);
    dims.push_back(mask.axes[axis].size);
    cellCount *= dims.back();
  }
  for (int64_t size : picked->dims)
    pointCount *= size;
  if (cellCount + pointCount > std::numeric_limits<int32_t>::max() ||
      summedCount > std::numeric_limits<int32_t>::max())
    return std::nullopt;

  // Which row picks each cell: its number, written there by the row.
  Builder &b = make.b;
  auto pointType = RankedTensorType::get(picked->dims, b.getI32Type());
  auto linear = [&](ArrayRef<unsigned> axes) {
    return mask.rowMajor(make, axes, [&](unsigned axis) {
      return axis == mask.picked[0]   ? picked->outer
             : axis == mask.picked[1] ? picked->inner
                                      : make.iota(pointType, llvm::find(rows, axis) - rows.begin());
    });
  };
  Value cell = linear(cells), row = linear(reader.summed);
  // Each dead one lies outside by itself, so that no two updates meet.
  Value outside = make.binary(
      "stablehlo.add",
      make.reshape(make.iota(RankedTensorType::get({pointCount}, b.getI32Type()), 0), picked->dims),
      make.splat(pointType, cellCount));
  cell = make.select(picked->live, cell, outside);
  SmallVector<Value> found;
  SmallVector<int64_t> lows(picked->dims.size(), 0), highs(picked->dims);
  int64_t last = rows.size();
  auto table = RankedTensorType::get({cellCount}, b.getI32Type());
  SmallVector<int64_t> single(dims);
  single.push_back(1);
  for (int64_t count : picked->counts) {
    highs[last] = lows[last] + count;
    Value cellsHere = make.slice(cell, lows, highs), rowsHere = make.slice(row, lows, highs);
    lows[last] = highs[last];
    int64_t updates = tensorType(cellsHere).getNumElements();
    auto numbers = stablehlo::ScatterDimensionNumbersAttr::get(b.getContext(), {}, {0}, {}, {}, {0}, 1);
    Operation *scatter = make.op(
        "stablehlo.scatter", table,
        {make.splat(table, -1), make.reshape(cellsHere, {updates, 1}), make.reshape(rowsHere, {updates})},
        {make.attr("scatter_dimension_numbers", numbers),
         make.attr("indices_are_sorted", b.getBoolAttr(false)),
         make.attr("unique_indices", b.getBoolAttr(true))},
        1);
    auto scalar = RankedTensorType::get({}, b.getI32Type());
    Block &body = scatter->getRegion(0).emplaceBlock();
    body.addArguments({scalar, scalar}, {make.loc, make.loc});
    OpBuilder inside = OpBuilder::atBlockEnd(&body);
    Maker(inside, make.loc).ret(body.getArgument(1));
    found.push_back(make.reshape(scatter->getResult(0), single));
  }
  Value rowOf = make.concatenate(found, dims.size());
  dims.push_back(found.size());
  using Direction = stablehlo::ComparisonDirection;
  Value live = make.compare(rowOf, zeros(rowOf), Direction::GE);
  // A row that two picks bring to the same cell counts once.
  for (size_t i = 1; i < found.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      Value other = make.compare(found[i], found[j], Direction::NE);
      Value column = make.compare(make.iota(tensorType(rowOf), dims.size() - 1),
                                  make.splat(tensorType(rowOf), i), Direction::NE);
      SmallVector<int64_t> map;
      for (size_t dim = 0; dim < dims.size(); ++dim)
        map.push_back(dim);
      live = make.binary("stablehlo.and", live,
                         make.binary("stablehlo.or", column, make.broadcast(other, dims, map)));
    }
  rowOf = make.binary("stablehlo.maximum", rowOf, zeros(rowOf));
  Sampler sampler(make, mask, dims);
  for (auto [dim, axis] : llvm::enumerate(cells))
    sampler.keep(axis, dim);
  int64_t stride = summedCount;
  for (unsigned axis : reader.summed) {
    stride /= mask.axes[axis].size;
    auto constant = [&](int64_t number) { return make.splat(tensorType(rowOf), number); };
    Value at = stride == 1 ? rowOf : make.binary("stablehlo.divide", rowOf, constant(stride));
    if (axis != reader.summed.front())
      at = make.binary("stablehlo.remainder", at, constant(mask.axes[axis].size));
    sampler.place(axis, at);
  }
  auto product = products(sampler, live);
  if (!product)
    return std::nullopt;
  Value value = make.sum(product->value, {static_cast<int64_t>(cells.size())});
  SmallVector<unsigned, 6> axes(cells);
  axes.append(product->extras.begin(), product->extras.end());
  return inOrder(value, axes);
}

} // namespace

/// Comparisons of positions with indices, and everything made from them that is no matrix product of others.
static llvm::DenseSet<Value> behindPositionTests(ModuleOp module) {
  llvm::DenseSet<Value> reached;
  auto isPositions = [](Value value) {
    while (Operation *op = value.getDefiningOp()) {
      if (isa<stablehlo::IotaOp>(op))
        return true;
      if (!isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp,
               stablehlo::ConvertOp>(op))
        return false;
      value = op->getOperand(0);
    }
    return false;
  };
  module.walk([&](Operation *op) {
    if (op->getNumResults() != 1)
      return;
    using Direction = stablehlo::ComparisonDirection;
    auto compare = dyn_cast<stablehlo::CompareOp>(op);
    bool seed = compare &&
                (compare.getComparisonDirection() == Direction::EQ ||
                 compare.getComparisonDirection() == Direction::NE) &&
                llvm::any_of(op->getOperands(), isPositions);
    auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
    bool flows =
        dot ? OneHotMask::mayChoose(dot)
            : isElementwise(op) || isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp,
                                       stablehlo::TransposeOp, stablehlo::SliceOp, stablehlo::ReduceOp>(op);
    if (seed || (flows && llvm::any_of(op->getOperands(), [&](Value v) { return reached.contains(v); })))
      reached.insert(op->getResult(0));
  });
  return reached;
}

/// The product that makes the gradient of a mask of which a reader takes a few elements, if it is that; its
/// left operand is the gradient of what the mask made.
static stablehlo::DotGeneralOp maskGradient(OneHotMask &mask, const Reader &reader) {
  auto dot = reader.other.getDefiningOp<stablehlo::DotGeneralOp>();
  if (!dot || dot->getBlock() != reader.op->getBlock())
    return {};
  // Its elements lie at rows and places alike.
  for (unsigned axis : mask.picked)
    if (!mask.carriesPart(reader.otherRoles, axis))
      return {};
  auto inner = mask.operandRoles(reader.other, reader.otherRoles);
  bool plain =
      inner && llvm::none_of(mask.picked, [&](unsigned axis) { return mask.carriesPart((*inner)[0], axis); });
  return plain ? dot : stablehlo::DotGeneralOp();
}

/// The first operation of the block behind the operands of `dot` and `mask`.
static Operation *afterOperands(stablehlo::DotGeneralOp dot, Value mask) {
  Operation *last = nullptr;
  for (Value value : {Value(dot.getLhs()), Value(dot.getRhs()), mask})
    if (Operation *made = value.getDefiningOp(); made && made->getBlock() == dot->getBlock())
      last = !last || last->isBeforeInBlock(made) ? made : last;
  return last ? last->getNextNode() : nullptr;
}

/// Makes whatever else reads the gradient wait for `value`: what is made of both is small, and the places
/// that it was picked from (as large as a mask's column times the features) need not be kept for it any
/// longer.
static Value beforeOthers(Maker &make, stablehlo::DotGeneralOp gradient, Value value) {
  Value from = gradient.getLhs();
  Operation *barrier =
      make.op("stablehlo.optimization_barrier", {from.getType(), value.getType()}, {from, value});
  from.replaceUsesWithIf(barrier->getResult(0), [&](OpOperand &use) {
    Operation *user = use.getOwner()->getBlock() == barrier->getBlock()
                          ? use.getOwner()
                          : barrier->getBlock()->findAncestorOpInBlock(*use.getOwner());
    return user && barrier->isBeforeInBlock(user);
  });
  return barrier->getResult(1);
}

unsigned rewriteOneHot(ModuleOp module, const Settings &settings) {
  llvm::DenseSet<Value> behind = behindPositionTests(module);
  SmallVector<Operation *> candidates;
  module.walk([&](Operation *op) {
    if (isa<stablehlo::DotGeneralOp>(op) &&
        llvm::any_of(op->getOperands(), [&](Value v) { return behind.contains(v); }))
      candidates.push_back(op);
  });
  unsigned applied = 0;
  // Readers first, so that sums that only lead to others are left for those to look through.
  for (Operation *op : llvm::reverse(candidates)) {
    if (op->use_empty())
      continue;
    std::string reason;
    for (unsigned operand : {0u, 1u}) {
      Value value = op->getOperand(operand);
      RankedTensorType type = tensorType(value);
      if (!behind.contains(value) || !type || !type.hasStaticShape() || type.getRank() < 3)
        continue;
      OneHotMask mask(value);
      std::string why;
      std::optional<Reader> reader = readerOf(mask, op, operand);
      if (!reader || reader->cost < settings.minOneHotFlops)
        continue;
      if (!mask.analyse({reader->other, reader->otherRoles}, why)) {
        if (mask.looksLikeOne)
          reason = why;
        continue;
      }
      bool combines = reader->sums(mask.picked[1]) && llvm::all_of(reader->summed, [&](unsigned axis) {
                        return llvm::is_contained(mask.picked, axis);
                      });
      bool dispatches = !reader->summed.empty() && llvm::none_of(reader->summed, [&](unsigned axis) {
        return llvm::is_contained(mask.picked, axis);
      });
      int64_t count = 0, places = 1;
      for (const Pick &pick : mask.picks)
        count += pick.count;
      for (unsigned axis : mask.picked)
        places *= mask.axes[axis].size;
      // Not sparse enough.
      if (count * 2 > places)
        continue;
      // A sum over a token's experts alone gives another mask: left to whoever reads that.
      if (!combines && !(dispatches && !reader->features.empty()))
        continue;
      reason.clear();
      if (isForbidden(op))
        reason = "a hint forbids it";
      else if (settings.partitions > 1 && !isLocal(op))
        reason = "under automatic sharding XLA would gather what is picked from on every device; shard_map "
                 "keeps it "
                 "where it is";
      else if (settings.numerics == Numerics::Bitwise)
        reason = "sums of fewer terms may round in another way, which numerics=bitwise does not allow";
      else if (dispatches && !mask.reachesOnce(reader->summed, why))
        reason = why;
      if (!reason.empty())
        break;
      stablehlo::DotGeneralOp gradient = maskGradient(mask, *reader);
      OpBuilder builder(op);
      if (gradient)
        if (Operation *first = afterOperands(gradient, value))
          builder.setInsertionPoint(first);
      Maker make(builder, op->getLoc());
      OneHotRewriter rewriter(mask, *reader, make);
      std::optional<Value> value2 = combines ? rewriter.combine() : rewriter.dispatch();
      if (!value2) {
        reason = "indices into it would not fit 32 bits";
        break;
      }
      {
        auto note = remark::passed(op->getLoc(), remark::RemarkOpts::name("one-hot").category("fusion"));
        note << (combines ? "becomes a sum over the " + Twine(count) + " places that each row names"
                          : Twine("becomes a gather of the row that names each place"))
                    .str();
        note << remark::metric("MaskElements", type.getNumElements())
             << remark::metric("Flops", reader->flops)
             << remark::metric("Bound", combines ? "the same terms that are not zero, added in f32"
                                                 : "exact for finite values: one term per element");
      }
      if (gradient)
        value2 = beforeOthers(make, gradient, *value2);
      op->getResult(0).replaceAllUsesWith(*value2);
      ++applied;
      reason.clear();
      break;
    }
    if (!reason.empty())
      missed(op, "one-hot", reason + " (" + place(op) + ")");
  }
  return applied;
}

} // namespace farrier::fusion
