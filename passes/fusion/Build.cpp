#include "passes/fusion/Build.h"

#include "mlir/IR/BuiltinTypes.h"

using namespace mlir;

namespace farrier::fusion {

Operation *Maker::op(StringRef name, TypeRange results, ValueRange operands,
                     ArrayRef<NamedAttribute> attributes, unsigned regions) {
  OperationState state(loc, name);
  state.addTypes(results);
  state.addOperands(operands);
  state.addAttributes(attributes);
  for (unsigned i = 0; i < regions; ++i)
    state.addRegion();
  return b.create(state);
}

static RankedTensorType typed(Value like, ArrayRef<int64_t> shape) {
  return RankedTensorType::get(shape, cast<RankedTensorType>(like.getType()).getElementType());
}

Value Maker::i32(int64_t number) { return splat(RankedTensorType::get({}, b.getI32Type()), number); }

Value Maker::splat(RankedTensorType type, double number) {
  Type element = type.getElementType();
  auto scalar = RankedTensorType::get({}, element);
  Attribute value;
  if (isa<FloatType>(element))
    value = b.getFloatAttr(element, number);
  else
    value = b.getIntegerAttr(element, static_cast<int64_t>(number));
  Value constant =
      op1("stablehlo.constant", scalar, {}, attr("value", DenseElementsAttr::get(scalar, value)));
  return type.getRank() == 0 ? constant : broadcast(constant, type.getShape(), {});
}

Value Maker::reshape(Value value, ArrayRef<int64_t> shape) {
  if (cast<RankedTensorType>(value.getType()).getShape() == shape)
    return value;
  return op1("stablehlo.reshape", typed(value, shape), value);
}

Value Maker::transpose(Value value, ArrayRef<int64_t> permutation) {
  SmallVector<int64_t> shape;
  bool identity = true;
  for (auto [i, from] : llvm::enumerate(permutation)) {
    shape.push_back(cast<RankedTensorType>(value.getType()).getDimSize(from));
    identity &= static_cast<int64_t>(i) == from;
  }
  return identity ? value
                  : op1("stablehlo.transpose", typed(value, shape), value, dims("permutation", permutation));
}

Value Maker::broadcast(Value value, ArrayRef<int64_t> shape, ArrayRef<int64_t> map) {
  return op1("stablehlo.broadcast_in_dim", typed(value, shape), value, dims("broadcast_dimensions", map));
}

Value Maker::convert(Value value, Type element) {
  auto type = cast<RankedTensorType>(value.getType());
  if (type.getElementType() == element)
    return value;
  return op1("stablehlo.convert", RankedTensorType::get(type.getShape(), element), value);
}

Value Maker::iota(RankedTensorType type, int64_t dim) {
  return op1("stablehlo.iota", type, {}, attr("iota_dimension", b.getI64IntegerAttr(dim)));
}

Value Maker::compare(Value lhs, Value rhs, stablehlo::ComparisonDirection direction) {
  auto type = cast<RankedTensorType>(lhs.getType());
  auto kind = isa<FloatType>(type.getElementType()) ? stablehlo::ComparisonType::FLOAT
                                                    : stablehlo::ComparisonType::SIGNED;
  return op1(
      "stablehlo.compare", RankedTensorType::get(type.getShape(), b.getI1Type()), {lhs, rhs},
      {attr("comparison_direction", stablehlo::ComparisonDirectionAttr::get(b.getContext(), direction)),
       attr("compare_type", stablehlo::ComparisonTypeAttr::get(b.getContext(), kind))});
}

Value Maker::sum(Value value, ArrayRef<int64_t> over) {
  auto type = cast<RankedTensorType>(value.getType());
  SmallVector<int64_t> shape;
  for (int64_t dim = 0; dim < type.getRank(); ++dim)
    if (!llvm::is_contained(over, dim))
      shape.push_back(type.getDimSize(dim));
  auto scalar = RankedTensorType::get({}, type.getElementType());
  Operation *reduce =
      op("stablehlo.reduce", typed(value, shape), {value, splat(scalar, 0)}, dims("dimensions", over), 1);
  Block &body = reduce->getRegion(0).emplaceBlock();
  body.addArguments({scalar, scalar}, {loc, loc});
  OpBuilder inside = OpBuilder::atBlockEnd(&body);
  Maker make(inside, loc);
  make.ret(make.binary("stablehlo.add", body.getArgument(0), body.getArgument(1)));
  return reduce->getResult(0);
}

Value Maker::concatenate(ArrayRef<Value> values, int64_t dim) {
  if (values.size() == 1)
    return values.front();
  SmallVector<int64_t> shape(cast<RankedTensorType>(values.front().getType()).getShape());
  shape[dim] = 0;
  for (Value value : values)
    shape[dim] += cast<RankedTensorType>(value.getType()).getDimSize(dim);
  return op1("stablehlo.concatenate", typed(values.front(), shape), values,
             attr("dimension", b.getI64IntegerAttr(dim)));
}

Value Maker::slice(Value value, ArrayRef<int64_t> starts, ArrayRef<int64_t> limits) {
  SmallVector<int64_t> shape, strides(starts.size(), 1);
  for (auto [start, limit] : llvm::zip(starts, limits))
    shape.push_back(limit - start);
  if (cast<RankedTensorType>(value.getType()).getShape() == ArrayRef(shape))
    return value;
  return op1("stablehlo.slice", typed(value, shape), value,
             {dims("start_indices", starts), dims("limit_indices", limits), dims("strides", strides)});
}

Value Maker::dynamicSlice(Value value, ValueRange starts, ArrayRef<int64_t> sizes) {
  SmallVector<Value> operands{value};
  operands.append(starts.begin(), starts.end());
  return op1("stablehlo.dynamic_slice", typed(value, sizes), operands, dims("slice_sizes", sizes));
}

Value Maker::dynamicUpdateSlice(Value into, Value update, ValueRange starts) {
  SmallVector<Value> operands{into, update};
  operands.append(starts.begin(), starts.end());
  return op1("stablehlo.dynamic_update_slice", into.getType(), operands);
}

} // namespace farrier::fusion
