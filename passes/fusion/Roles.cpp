#include "passes/fusion/Roles.h"

#include "passes/fusion/Build.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

using namespace mlir;

namespace farrier::fusion {

/// A broadcast that only adds dimensions of extent 1.
static bool addsUnitsOnly(Operation *op) {
  auto broadcast = dyn_cast<stablehlo::BroadcastInDimOp>(op);
  return broadcast && tensorType(broadcast.getOperand()).getNumElements() ==
                          tensorType(broadcast.getResult()).getNumElements();
}

/// A sharding constraint that constrains nothing: partly manual programs have one behind every operation.
static bool isOpenConstraint(Operation *op) {
  if (!isAnnotation(op))
    return false;
  std::string text;
  llvm::raw_string_ostream os(text);
  if (Attribute properties = op->getPropertiesAsAttribute())
    properties.print(os);
  op->getDiscardableAttrDictionary().print(os);
  return !StringRef(text).contains('"') && StringRef(text).contains("sharding<");
}

static bool onlyMoves(Operation *op) {
  return isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(op) || addsUnitsOnly(op) || isOpenConstraint(op);
}

std::optional<Tensor> derivedFrom(Value value, const Tensor &origin, ArrayRef<int64_t> sizes) {
  SmallVector<Operation *> chain;
  for (Value at = value; at != origin.value;) {
    Operation *op = at.getDefiningOp();
    if (!op || !onlyMoves(op))
      return std::nullopt;
    chain.push_back(op);
    at = op->getOperand(0);
  }
  Tensor tensor{value, origin.roles};
  for (Operation *op : llvm::reverse(chain))
    for (auto [role, size] : llvm::zip(tensor.roles, sizes))
      if (role) {
        std::optional<AxisFlow> flow = flowFromOperand(op, 0, *role, size);
        if (!flow)
          return std::nullopt;
        role = flow->results[0];
      }
  return tensor;
}

Tensor originOf(Tensor tensor, ArrayRef<int64_t> sizes, const DenseMap<Value, Value> *aliases) {
  while (true) {
    if (Value source = aliases ? aliases->lookup(tensor.value) : Value())
      tensor.value = source;
    Operation *op = tensor.value.getDefiningOp();
    if (!op)
      break;
    if (auto convert = dyn_cast<stablehlo::ConvertOp>(op)) {
      auto from = dyn_cast<FloatType>(tensorType(convert.getOperand()).getElementType());
      auto to = dyn_cast<FloatType>(tensorType(convert.getResult()).getElementType());
      if (!from || !to || from.getWidth() > to.getWidth() || (from != to && from.getWidth() == to.getWidth()))
        break;
    } else if (!onlyMoves(op)) {
      break;
    }
    Tensor before{op->getOperand(0), tensor.roles};
    for (auto [role, size] : llvm::zip(before.roles, sizes)) {
      if (!role)
        continue;
      std::optional<AxisFlow> flow = flowFromResult(op, 0, *role, size);
      if (!flow || !flow->operands[0])
        return tensor;
      role = flow->operands[0];
    }
    tensor = before;
  }
  return tensor;
}

std::optional<Roles> rolesBeforeMove(Operation *op, const Roles &roles, ArrayRef<int64_t> sizes) {
  Roles before(roles.size());
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (roles[axis]) {
      std::optional<AxisFlow> flow = flowFromResult(op, 0, *roles[axis], sizes[axis]);
      if (!flow)
        return std::nullopt;
      before[axis] = flow->operands[0];
    }
  return before;
}

SmallVector<unsigned> layoutOrder(const Roles &roles) {
  SmallVector<unsigned> order;
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (roles[axis])
      order.push_back(axis);
  llvm::sort(order, [&](unsigned a, unsigned b) {
    return roles[a]->dim != roles[b]->dim ? roles[a]->dim < roles[b]->dim : roles[a]->inner > roles[b]->inner;
  });
  return order;
}

Value permuteAxes(Maker &make, Value value, ArrayRef<unsigned> from, ArrayRef<unsigned> to,
                  ArrayRef<int64_t> sizes) {
  SmallVector<int64_t> split, permutation;
  for (unsigned axis : from)
    split.push_back(sizes[axis]);
  for (unsigned axis : to)
    permutation.push_back(llvm::find(from, axis) - from.begin());
  bool identity = llvm::is_sorted(permutation);
  return identity ? value : make.transpose(make.reshape(value, split), permutation);
}

bool coversAll(const Tensor &tensor, ArrayRef<int64_t> sizes) {
  RankedTensorType type = tensorType(tensor.value);
  SmallVector<int64_t> product(type.getRank(), 1);
  for (auto [role, size] : llvm::zip(tensor.roles, sizes))
    if (role)
      product[role->dim] *= size;
  return llvm::equal(product, type.getShape());
}

} // namespace farrier::fusion
