//===- Rows.h - what the rewrites that cut along an axis share --------------===//

#ifndef FARRIER_PASSES_COLLECTIVES_ROWS_H
#define FARRIER_PASSES_COLLECTIVES_ROWS_H

#include "farrier/Analysis/Axis.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/IRMapping.h"

namespace farrier::collectives {

/// An operation with one result, without regions.
inline mlir::Operation *make(mlir::OpBuilder &builder, mlir::Location loc, llvm::StringRef name,
                             mlir::Type result, mlir::ValueRange operands,
                             llvm::ArrayRef<mlir::NamedAttribute> attributes = {}) {
  mlir::OperationState state(loc, name, operands, result, attributes);
  return builder.create(state);
}

/// Whether a computation of two scalars gives their sum.
inline bool isSum(mlir::Block &block) {
  if (block.getNumArguments() != 2 || !llvm::hasNItems(block, 2) ||
      !llvm::isa<stablehlo::AddOp>(block.front()) || block.back().getNumOperands() != 1)
    return false;
  mlir::Value a = block.getArgument(0), b = block.getArgument(1);
  mlir::Operation &add = block.front();
  bool both = (add.getOperand(0) == a && add.getOperand(1) == b) ||
              (add.getOperand(0) == b && add.getOperand(1) == a);
  return both && block.back().getOperand(0) == add.getResult(0);
}

/// A constant that is one number everywhere has every axis.
inline std::optional<AxisFlow> splatFlow(mlir::Operation *op, AxisPlace place) {
  auto constant = llvm::dyn_cast<stablehlo::ConstantOp>(op);
  auto dense = constant ? llvm::dyn_cast<mlir::DenseElementsAttr>(constant.getValue()) : nullptr;
  if (!dense || !dense.isSplat())
    return std::nullopt;
  AxisFlow flow;
  flow.results = {place};
  return flow;
}

/// A copy of `op`, of what it does along the axis, on `operands` that hold a part of the axis, with results of
/// `types`.
inline mlir::Operation *cloneOnPart(mlir::OpBuilder &builder, mlir::Operation *op, const AxisFlow &flow,
                                    mlir::ValueRange operands, mlir::TypeRange types) {
  if (auto constant = llvm::dyn_cast<stablehlo::ConstantOp>(op)) {
    auto value = llvm::cast<mlir::DenseElementsAttr>(constant.getValue())
                     .resizeSplat(llvm::cast<mlir::ShapedType>(types[0]));
    return make(builder, op->getLoc(), "stablehlo.constant", types[0], {},
                builder.getNamedAttr("value", value));
  }
  mlir::IRMapping none;
  mlir::Operation *copy = op->cloneWithoutRegions(none);
  builder.insert(copy);
  copy->setOperands(operands);
  for (auto [result, type] : llvm::zip_equal(copy->getResults(), types))
    result.setType(type);
  for (auto [from, to] : llvm::zip_equal(op->getRegions(), copy->getRegions()))
    from.cloneInto(&to, none);
  adaptSizesToPart(op, copy, flow);
  return copy;
}

/// The element type in which parts of a product's sum are added up: f32 for narrower floats.
inline mlir::RankedTensorType wideSum(mlir::RankedTensorType type) {
  bool narrow = llvm::isa<mlir::FloatType>(type.getElementType()) && type.getElementTypeBitWidth() < 32;
  return narrow
             ? llvm::cast<mlir::RankedTensorType>(type.clone(mlir::Float32Type::get(type.getContext())))
             : type;
}

} // namespace farrier::collectives

#endif // FARRIER_PASSES_COLLECTIVES_ROWS_H
