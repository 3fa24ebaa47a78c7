//===- OneHotSample.cpp - a mask and what it multiplies, at a few places ----===//

#include "passes/fusion/OneHot.h"

#include "mlir/IR/IRMapping.h"

using namespace mlir;

namespace farrier::fusion {

using Sampled = Sampler::Sampled;

SmallVector<int64_t> Sampler::shape(ArrayRef<unsigned> extras) const {
  SmallVector<int64_t> result(dims);
  for (unsigned axis : extras)
    result.push_back(mask.axes[axis].size);
  return result;
}

const Sampler::Place *Sampler::placeOf(unsigned axis, int64_t &offset) const {
  offset = 0;
  auto it = places.find(axis);
  if (it == places.end() && mask.axes[axis].whole) {
    offset = mask.axes[axis].offset;
    it = places.find(*mask.axes[axis].whole);
  }
  return it == places.end() ? nullptr : &it->second;
}

Value Sampler::position(unsigned axis) {
  int64_t offset;
  const Place *at = placeOf(axis, offset);
  auto type = RankedTensorType::get(dims, make.b.getI32Type());
  Value position = at->position ? at->position : make.iota(type, at->dim);
  return offset ? make.binary("stablehlo.add", position, make.splat(type, offset)) : position;
}

Value Sampler::spread(const Sampled &sampled, ArrayRef<unsigned> extras) {
  if (llvm::equal(sampled.extras, extras))
    return sampled.value;
  SmallVector<int64_t> map;
  for (unsigned dim = 0; dim < dims.size(); ++dim)
    map.push_back(dim);
  for (unsigned axis : sampled.extras)
    map.push_back(dims.size() + (llvm::find(extras, axis) - extras.begin()));
  return make.broadcast(sampled.value, shape(extras), map);
}

/// Picks elements (or rows of them along the other axes) from a value that is there as a whole.
std::optional<Sampled> Sampler::leaf(Value value, const Roles &roles) {
  SmallVector<unsigned, 6> order, indexed, kept;
  Sampled result;
  bool gathers = false;
  for (unsigned axis = 0; axis < roles.size(); ++axis) {
    if (!roles[axis])
      continue;
    order.push_back(axis);
    int64_t offset;
    const Place *at = placeOf(axis, offset);
    if (!at) {
      result.extras.push_back(axis);
      continue;
    }
    indexed.push_back(axis);
    gathers |= at->position || offset;
  }
  // Axes in the order in which they lie in memory, taken apart, then: those that are picked, and the rest.
  llvm::sort(order, [&](unsigned a, unsigned b) {
    return roles[a]->dim != roles[b]->dim ? roles[a]->dim < roles[b]->dim : roles[a]->inner > roles[b]->inner;
  });
  if (!gathers)
    llvm::sort(indexed, [&](unsigned a, unsigned b) {
      int64_t offset;
      return placeOf(a, offset)->dim < placeOf(b, offset)->dim;
    });
  SmallVector<unsigned, 6> target(indexed);
  target.append(result.extras);
  SmallVector<int64_t> split, permutation, rest;
  int64_t covered = 1, rows = 1;
  for (unsigned axis : order) {
    split.push_back(mask.axes[axis].size);
    covered *= split.back();
  }
  if (covered != tensorType(value).getNumElements())
    return std::nullopt;
  for (unsigned axis : target)
    permutation.push_back(llvm::find(order, axis) - order.begin());
  Value ordered = make.transpose(make.reshape(value, split), permutation);
  if (!gathers) {
    SmallVector<int64_t> map;
    for (unsigned axis : indexed) {
      int64_t offset;
      map.push_back(placeOf(axis, offset)->dim);
    }
    for (unsigned i = 0; i < result.extras.size(); ++i)
      map.push_back(dims.size() + i);
    result.value = make.broadcast(ordered, shape(result.extras), map);
    return result;
  }
  for (unsigned axis : indexed)
    rows *= mask.axes[axis].size;
  if (rows > std::numeric_limits<int32_t>::max())
    return std::nullopt;
  Value index = mask.rowMajor(make, indexed, [&](unsigned axis) { return position(axis); });
  SmallVector<int64_t> flat{rows}, slice{1}, offsets, indices(dims);
  for (auto [i, axis] : llvm::enumerate(result.extras)) {
    flat.push_back(mask.axes[axis].size);
    slice.push_back(mask.axes[axis].size);
    offsets.push_back(dims.size() + i);
  }
  indices.push_back(1);
  auto numbers = stablehlo::GatherDimensionNumbersAttr::get(make.b.getContext(), offsets, {0}, {}, {}, {0},
                                                            static_cast<int64_t>(dims.size()));
  result.value = make.op1("stablehlo.gather",
                          RankedTensorType::get(shape(result.extras), tensorType(value).getElementType()),
                          {make.reshape(ordered, flat), make.reshape(index, indices)},
                          {make.attr("dimension_numbers", numbers), make.dims("slice_sizes", slice)});
  return result;
}

/// Adds up over axes that the product has, as the operation does.
std::optional<Sampled> Sampler::sum(Operation *op, Sampled product, ArrayRef<unsigned> over, Value start) {
  Sampled result;
  SmallVector<unsigned, 4> all(product.extras);
  for (unsigned axis : over)
    if (!llvm::is_contained(all, axis))
      all.push_back(axis);
  llvm::sort(all);
  Value input = spread(product, all);
  SmallVector<int64_t> reduced;
  for (auto [i, axis] : llvm::enumerate(all)) {
    if (llvm::is_contained(over, axis))
      reduced.push_back(dims.size() + i);
    else
      result.extras.push_back(axis);
  }
  Type element = tensorType(input).getElementType();
  if (!op) {
    result.value = make.sum(input, reduced);
    return result;
  }
  Operation *reduce = make.op("stablehlo.reduce", RankedTensorType::get(shape(result.extras), element),
                              {input, start}, make.dims("dimensions", reduced), 1);
  IRMapping mapping;
  op->getRegion(0).cloneInto(&reduce->getRegion(0), mapping);
  result.value = reduce->getResult(0);
  return result;
}

/// Whether a product brings rows and places together, so that it is cheaper to make again where it is looked
/// at than as a whole: a gradient of the mask, or a mask times weights of its rows.
bool Sampler::isOuterProduct(stablehlo::DotGeneralOp dot, ArrayRef<Roles> inner) const {
  auto numbers = dot.getDotDimensionNumbers();
  RankedTensorType type = tensorType(dot.getLhs());
  if (llvm::all_of(numbers.getLhsContractingDimensions(),
                   [&](int64_t dim) { return type.getDimSize(dim) == 1; }))
    return true;
  return llvm::any_of(inner, [&](const Roles &roles) {
    return llvm::none_of(mask.picked, [&](unsigned axis) { return mask.carriesPart(roles, axis); }) &&
           llvm::any_of(rows, [&](unsigned axis) { return OneHotMask::carries(roles, axis); });
  });
}

std::optional<Sampled> Sampler::at(Value value, const Roles &roles) {
  for (auto &[known, sampled] : memo[value])
    if (known == roles)
      return sampled;
  bool varies = llvm::any_of(rows, [&](unsigned axis) { return OneHotMask::carries(roles, axis); });
  std::optional<Sampled> result =
      varies && mask.carriesPart(roles, mask.picked[1]) ? compute(value, roles) : leaf(value, roles);
  if (result)
    memo[value].emplace_back(roles, *result);
  return result;
}

std::optional<Sampled> Sampler::compute(Value value, const Roles &roles) {
  Operation *op = value.getDefiningOp();
  if (auto iota = dyn_cast_or_null<stablehlo::IotaOp>(op)) {
    int64_t dim = iota.getIotaDimension();
    for (unsigned axis = 0; axis < roles.size(); ++axis) {
      if (!roles[axis] || roles[axis]->dim != dim)
        continue;
      int64_t offset;
      if (roles[axis]->outer != 1 || roles[axis]->inner != 1 || !placeOf(axis, offset))
        return leaf(value, roles);
      return Sampled{make.convert(position(axis), tensorType(value).getElementType()), {}};
    }
    return leaf(value, roles);
  }
  auto dense = dyn_cast_or_null<stablehlo::ConstantOp>(op);
  if (auto elements = dense ? dyn_cast<DenseElementsAttr>(dense.getValue()) : DenseElementsAttr();
      elements && elements.isSplat()) {
    Type element = tensorType(value).getElementType();
    auto type = RankedTensorType::get(dims, element);
    return Sampled{make.op1("stablehlo.constant", type, {}, make.attr("value", elements.resizeSplat(type))),
                   {}};
  }
  std::optional<SmallVector<Roles, 3>> inner = op ? mask.operandRoles(value, roles) : std::nullopt;
  if (!inner)
    return leaf(value, roles);
  if (isa<stablehlo::OptimizationBarrierOp>(op)) {
    unsigned i = cast<OpResult>(value).getResultNumber();
    return at(op->getOperand(i), (*inner)[i]);
  }
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
  auto reduce = dyn_cast<stablehlo::ReduceOp>(op);
  if (isa<stablehlo::PadOp>(op)) {
    std::optional<Sampled> inside = at(op->getOperand(0), (*inner)[0]), outside = at(op->getOperand(1), {});
    if (!inside || !outside)
      return std::nullopt;
    auto type = RankedTensorType::get(dims, make.b.getI32Type());
    using Direction = stablehlo::ComparisonDirection;
    for (unsigned axis = 0; axis < (*inner)[0].size(); ++axis) {
      int64_t offset;
      if (!(*inner)[0][axis] || OneHotMask::carries(roles, axis))
        continue;
      if (!placeOf(axis, offset))
        return leaf(value, roles);
      Value here = position(axis);
      Value within = make.binary("stablehlo.and", make.compare(here, make.splat(type, 0), Direction::GE),
                                 make.compare(here, make.splat(type, mask.axes[axis].size), Direction::LT));
      inside->value =
          make.select(spread({within, {}}, inside->extras), inside->value, spread(*outside, inside->extras));
    }
    return inside;
  }
  if (!dot && !reduce && !isElementwise(op))
    return at(op->getOperand(0), (*inner)[0]);
  if (dot && !isOuterProduct(dot, *inner))
    return leaf(value, roles);
  SmallVector<Sampled, 3> in;
  SmallVector<unsigned, 4> extras;
  unsigned inputs = reduce ? 1 : op->getNumOperands();
  for (unsigned i = 0; i < inputs; ++i) {
    std::optional<Sampled> sampled = at(op->getOperand(i), (*inner)[i]);
    if (!sampled)
      return std::nullopt;
    for (unsigned axis : sampled->extras)
      if (!llvm::is_contained(extras, axis))
        extras.push_back(axis);
    in.push_back(*sampled);
  }
  llvm::sort(extras);
  Type element = tensorType(value).getElementType();
  SmallVector<unsigned, 2> over;
  for (unsigned axis = 0; axis < (*inner)[0].size(); ++axis)
    if (const auto &place = (*inner)[0][axis];
        place && mask.axes[axis].bound && !OneHotMask::carries(roles, axis))
      over.push_back(axis);
  if (reduce)
    return sum(op, in[0], over, op->getOperand(1));
  if (dot) {
    // In f32, as the product accumulates.
    Type wide =
        isa<FloatType>(element) && element.getIntOrFloatBitWidth() < 32 ? make.b.getF32Type() : element;
    for (Sampled &factor : in)
      factor.value = make.convert(factor.value, wide);
    Sampled product{make.binary("stablehlo.multiply", spread(in[0], extras), spread(in[1], extras)), extras};
    std::optional<Sampled> total = over.empty() ? product : sum(nullptr, product, over, {});
    total->value = make.convert(total->value, element);
    return total;
  }
  SmallVector<Value, 3> operands;
  for (const Sampled &sampled : in)
    operands.push_back(spread(sampled, extras));
  Operation *copy = make.b.clone(*op);
  copy->setOperands(operands);
  copy->getResult(0).setType(RankedTensorType::get(shape(extras), element));
  return Sampled{copy->getResult(0), extras};
}

} // namespace farrier::fusion
