//===- AttentionBiasEmit.cpp - the tensor that is added to the scores ------===//

#include "passes/fusion/Attention.h"
#include "passes/fusion/Build.h"

#include "mlir/IR/IRMapping.h"

using namespace mlir;

namespace farrier::fusion {

namespace {

/// Makes values again for the axes along which the bias varies; along all others they have one element.
class Narrower {
public:
  Narrower(const Attention &site, Maker &make, Operation *outOf)
      : site(site), bias(*site.bias), make(make), outOf(outOf) {}

  std::optional<Value> run(size_t link = 0);
  const Roles &roles(size_t link) const {
    return link < bias.links.size() ? bias.links[link].roles : bias.scoreRoles;
  }
  /// Where the axes lie in the narrow value.
  Roles places(const Roles &roles) const;

private:
  SmallVector<int64_t> shape(Value value, const Roles &roles) const;
  Value narrow(Value value, const Roles &roles);
  Value make1(Value value, const Roles &roles);
  Value again(Value value);
  bool isAvailable(Value value) const {
    return !outOf || !outOf->isAncestor(value.getParentBlock()->getParentOp());
  }

  const Attention &site;
  const Bias &bias;
  Maker &make;
  Operation *outOf; ///< a loop before which values are made; null: where they are now
  DenseMap<Value, SmallVector<std::pair<Roles, Value>, 1>> memo;
};

Roles Narrower::places(const Roles &roles) const {
  Roles result(roles.size());
  for (unsigned axis = 0; axis < roles.size(); ++axis) {
    if (!roles[axis] || !bias.axes[axis])
      continue;
    AxisPlace place{roles[axis]->dim, 1, 1};
    for (unsigned other = 0; other < roles.size(); ++other)
      if (other != axis && roles[other] && bias.axes[other] && roles[other]->dim == place.dim)
        (roles[other]->inner < roles[axis]->inner ? place.inner : place.outer) *= site.sizes[other];
    result[axis] = place;
  }
  return result;
}

SmallVector<int64_t> Narrower::shape(Value value, const Roles &roles) const {
  SmallVector<int64_t> sizes(tensorType(value).getShape());
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (roles[axis] && !bias.axes[axis])
      sizes[roles[axis]->dim] /= site.sizes[axis];
  return sizes;
}

/// The operation that makes the value, before the loop.
Value Narrower::again(Value value) {
  Operation *op = value.getDefiningOp();
  if (!op)
    return {};
  IRMapping mapping;
  for (Value operand : op->getOperands()) {
    Value made = narrow(operand, Roles(bias.axes.size()));
    if (!made)
      return {};
    mapping.map(operand, made);
  }
  return make.b.clone(*op, mapping)->getResult(cast<OpResult>(value).getResultNumber());
}

Value Narrower::narrow(Value value, const Roles &roles) {
  if (outOf)
    value = resolveInvariant(value);
  bool narrows = false;
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    narrows |= roles[axis] && !bias.axes[axis];
  if (!narrows && isAvailable(value))
    return value;
  for (auto &[seen, made] : memo[value])
    if (seen == roles)
      return made;
  Value made = make1(value, roles);
  memo[value].emplace_back(roles, made);
  return made;
}

Value Narrower::make1(Value value, const Roles &roles) {
  Operation *op = value.getDefiningOp();
  if (!op)
    return {};
  SmallVector<int64_t> sizes = shape(value, roles);
  auto type = RankedTensorType::get(sizes, tensorType(value).getElementType());
  if (auto constant = dyn_cast<stablehlo::ConstantOp>(op))
    if (auto dense = dyn_cast<DenseElementsAttr>(constant.getValue()); dense && dense.isSplat())
      return make.op1("stablehlo.constant", type, {}, make.attr("value", dense.resizeSplat(type)));
  if (auto iota = dyn_cast<stablehlo::IotaOp>(op))
    return make.iota(type, iota.getIotaDimension());
  if (isAnnotation(op))
    return narrow(op->getOperand(0), roles);
  if (isElementwise(op) && op->getNumResults() == 1) {
    SmallVector<Value> operands;
    for (Value operand : op->getOperands()) {
      bool scalar = tensorType(operand).getRank() == 0;
      operands.push_back(narrow(operand, scalar ? Roles(roles.size()) : roles));
      if (!operands.back())
        return {};
    }
    IRMapping mapping;
    mapping.map(op->getOperands(), operands);
    Operation *clone = make.b.clone(*op, mapping);
    clone->removeAttr("sdy.sharding");
    clone->getResult(0).setType(type);
    return clone->getResult(0);
  }
  if (isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(op)) {
    std::optional<Roles> inner = rolesBeforeMove(op, roles, site.sizes);
    if (!inner)
      return again(value);
    Value before = narrow(op->getOperand(0), *inner);
    if (!before)
      return before;
    if (auto broadcast = dyn_cast<stablehlo::BroadcastInDimOp>(op))
      return make.broadcast(before, sizes, broadcast.getBroadcastDimensions());
    if (auto transpose = dyn_cast<stablehlo::TransposeOp>(op))
      return make.transpose(before, transpose.getPermutation());
    return make.reshape(before, sizes);
  }
  return again(value);
}

/// What the links from this one on make of zeros: nullopt where it is zero still, null where it cannot be
/// made.
std::optional<Value> Narrower::run(size_t index) {
  if (index == bias.links.size())
    return std::nullopt;
  const Link &link = bias.links[index];
  std::optional<Value> path = run(index + 1);
  if (path && !*path)
    return path;
  Operation *op = link.op;
  Value result = op->getResult(0);
  SmallVector<int64_t> sizes = shape(result, link.roles);
  auto type = RankedTensorType::get(sizes, tensorType(result).getElementType());
  if (!path && link.kind != Link::Term && link.kind != Link::Mask)
    return std::nullopt;
  switch (link.kind) {
  case Link::Move:
    if (isa<stablehlo::ConvertOp>(op))
      return make.convert(*path, type.getElementType());
    if (auto broadcast = dyn_cast<stablehlo::BroadcastInDimOp>(op))
      return make.broadcast(*path, sizes, broadcast.getBroadcastDimensions());
    if (auto transpose = dyn_cast<stablehlo::TransposeOp>(op))
      return make.transpose(*path, transpose.getPermutation());
    return isAnnotation(op) ? *path : make.reshape(*path, sizes);
  case Link::Shift:
    return path;
  case Link::Term:
  case Link::Scale: {
    Value other = narrow(op->getOperand(1 - link.path), link.roles);
    if (!other || (!path && isa<stablehlo::AddOp>(op)))
      return other;
    StringRef name = op->getName().getStringRef();
    Value ours = path ? *path : make.splat(type, 0);
    return link.path == 0 ? make.binary(name, ours, other) : make.binary(name, other, ours);
  }
  case Link::Mask: {
    Value predicate = op->getOperand(0);
    bool scalar = tensorType(predicate).getRank() == 0;
    predicate = narrow(predicate, scalar ? Roles(link.roles.size()) : link.roles);
    if (!predicate)
      return predicate;
    Value fill = make.splat(type, maskedBias), ours = path ? *path : make.splat(type, 0);
    return link.path == 1 ? make.select(predicate, ours, fill) : make.select(predicate, fill, ours);
  }
  }
  return std::nullopt;
}

} // namespace

BiasShape Attention::biasShape() const {
  SmallVector<unsigned> batchAxes, heads;
  batchAndHeads(batchAxes, heads);
  auto any = [&](ArrayRef<unsigned> axes) {
    return llvm::any_of(axes, [&](unsigned axis) { return bias->axes[axis]; });
  };
  BiasShape shape;
  if ((shape.perBatch = any(batchAxes)))
    shape.axes.append(batchAxes);
  if ((shape.perHead = any(heads)))
    shape.axes.append(heads);
  shape.axes.append({*row, column});
  return shape;
}

Value makeBias(const Attention &site, Maker &make, Operation *outOf) {
  Narrower narrower(site, make, outOf);
  std::optional<Value> made = narrower.run();
  if (made && !*made)
    return {};
  Value value = made ? *made : make.splat(RankedTensorType::get({}, make.b.getF32Type()), 0);
  // As [batch, heads, queries, keys], axis by axis; those along which it does not vary are filled in.
  BiasShape shape = site.biasShape();
  SmallVector<unsigned> lying = layoutOrder(narrower.places(narrower.roles(0))), wanted;
  SmallVector<int64_t> split, sizes, dims;
  for (auto [i, axis] : llvm::enumerate(shape.axes)) {
    sizes.push_back(site.sizes[axis]);
    if (site.bias->axes[axis]) {
      wanted.push_back(axis);
      split.push_back(site.sizes[axis]);
      dims.push_back(i);
    }
  }
  value = make.reshape(permuteAxes(make, value, lying, wanted, site.sizes), split);
  value = make.broadcast(value, sizes, dims);
  SmallVector<int64_t> four{1, 1, site.sizes[*site.row], site.sizes[site.column]};
  for (unsigned axis : ArrayRef(shape.axes).drop_back(2))
    four[llvm::is_contained(site.batch, axis) && !site.isHead(axis) ? 0 : 1] *= site.sizes[axis];
  value = make.reshape(value, four);
  // The kernels subtract numbers, which must not overflow to infinities.
  if (site.bias->isDeep)
    value = make.binary("stablehlo.maximum", value,
                        make.splat(cast<RankedTensorType>(value.getType()), maskedBias));
  return make.convert(value, tensorType(site.query.value).getElementType());
}

} // namespace farrier::fusion
