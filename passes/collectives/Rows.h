//===- Rows.h - what the rewrites that cut along an axis share --------------===//

#ifndef FARRIER_PASSES_COLLECTIVES_ROWS_H
#define FARRIER_PASSES_COLLECTIVES_ROWS_H

#include "farrier/Analysis/Axis.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"

namespace farrier::collectives {

/// An operation with one result, without regions.
inline mlir::Operation *make(mlir::OpBuilder &builder, mlir::Location loc, llvm::StringRef name,
                             mlir::Type result, mlir::ValueRange operands,
                             llvm::ArrayRef<mlir::NamedAttribute> attributes = {}) {
  mlir::OperationState state(loc, name, operands, result, attributes);
  return builder.create(state);
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

} // namespace farrier::collectives

#endif // FARRIER_PASSES_COLLECTIVES_ROWS_H
