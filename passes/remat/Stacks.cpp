#include "passes/remat/Stacks.h"

using namespace mlir;

namespace farrier::remat {

Value integer(OpBuilder &builder, Location loc, Type type, int64_t number) {
  auto tensor = cast<RankedTensorType>(type);
  Attribute attr = IntegerAttr::get(
      tensor.getElementType(), llvm::APInt(tensor.getElementTypeBitWidth(), static_cast<uint64_t>(number),
                                           /*isSigned=*/false, /*implicitTrunc=*/true));
  return stablehlo::ConstantOp::create(builder, loc, type, DenseElementsAttr::get(tensor, attr));
}

Value affine(OpBuilder &builder, Location loc, Value x, int64_t sign, int64_t offset) {
  if (sign > 0 && offset == 0)
    return x;
  Value constant = integer(builder, loc, x.getType(), offset);
  if (sign > 0)
    return stablehlo::AddOp::create(builder, loc, x.getType(), x, constant);
  return stablehlo::SubtractOp::create(builder, loc, x.getType(), constant, x);
}

Value emptyStack(OpBuilder &builder, Location loc, RankedTensorType type, int64_t count) {
  auto scalar = RankedTensorType::get({}, type.getElementType());
  DenseElementsAttr zero;
  if (auto complex = dyn_cast<ComplexType>(type.getElementType())) {
    llvm::APFloat part(cast<FloatType>(complex.getElementType()).getFloatSemantics());
    zero = DenseElementsAttr::get(scalar, std::complex<llvm::APFloat>(part, part));
  } else {
    zero = DenseElementsAttr::get(scalar, builder.getZeroAttr(type.getElementType()));
  }
  SmallVector<int64_t> shape{count};
  llvm::append_range(shape, type.getShape());
  Value element = stablehlo::ConstantOp::create(builder, loc, scalar, zero);
  return stablehlo::BroadcastInDimOp::create(builder, loc, RankedTensorType::get(shape, type.getElementType()), element,
                                             builder.getDenseI64ArrayAttr({}));
}

RankedTensorType unitSlice(Value stack) {
  auto type = cast<RankedTensorType>(stack.getType());
  SmallVector<int64_t> shape(type.getShape());
  shape.front() = 1;
  return RankedTensorType::get(shape, type.getElementType());
}

SmallVector<Value> sliceStart(OpBuilder &builder, Value slot, int64_t rank) {
  SmallVector<Value> start{slot};
  if (rank > 1)
    start.append(rank - 1, integer(builder, slot.getLoc(), slot.getType(), 0));
  return start;
}

} // namespace farrier::remat
