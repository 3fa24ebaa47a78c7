//===- Build.h - making StableHLO operations ------------------------------===//

#ifndef FARRIER_PASSES_FUSION_BUILD_H
#define FARRIER_PASSES_FUSION_BUILD_H

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"

namespace farrier::fusion {

/// Creates StableHLO operations at one insertion point and location. Shapes of results are derived.
class Maker {
public:
  Maker(mlir::OpBuilder &builder, mlir::Location loc) : b(builder), loc(loc) {}

  mlir::Operation *op(llvm::StringRef name, mlir::TypeRange results, mlir::ValueRange operands,
                      llvm::ArrayRef<mlir::NamedAttribute> attributes = {}, unsigned regions = 0);
  mlir::Value op1(llvm::StringRef name, mlir::Type result, mlir::ValueRange operands,
                  llvm::ArrayRef<mlir::NamedAttribute> attributes = {}) {
    return op(name, result, operands, attributes)->getResult(0);
  }

  mlir::Value i32(int64_t number);
  /// A tensor whose elements are all `number` (integers and floats; a scalar broadcast, so that the text
  /// stays small).
  mlir::Value splat(mlir::RankedTensorType type, double number);
  mlir::Value reshape(mlir::Value value, llvm::ArrayRef<int64_t> shape);
  mlir::Value transpose(mlir::Value value, llvm::ArrayRef<int64_t> permutation);
  mlir::Value broadcast(mlir::Value value, llvm::ArrayRef<int64_t> shape, llvm::ArrayRef<int64_t> dims);
  mlir::Value convert(mlir::Value value, mlir::Type element);
  mlir::Value iota(mlir::RankedTensorType type, int64_t dim);
  mlir::Value binary(llvm::StringRef name, mlir::Value lhs, mlir::Value rhs) {
    return op1(name, lhs.getType(), {lhs, rhs});
  }
  mlir::Value compare(mlir::Value lhs, mlir::Value rhs, stablehlo::ComparisonDirection direction);
  mlir::Value select(mlir::Value predicate, mlir::Value yes, mlir::Value no) {
    return op1("stablehlo.select", yes.getType(), {predicate, yes, no});
  }
  /// Adds up over dimensions, in the value's element type.
  mlir::Value sum(mlir::Value value, llvm::ArrayRef<int64_t> over);
  mlir::Value concatenate(llvm::ArrayRef<mlir::Value> values, int64_t dim);
  mlir::Value slice(mlir::Value value, llvm::ArrayRef<int64_t> starts, llvm::ArrayRef<int64_t> limits);
  mlir::Value dynamicSlice(mlir::Value value, mlir::ValueRange starts, llvm::ArrayRef<int64_t> sizes);
  mlir::Value dynamicUpdateSlice(mlir::Value into, mlir::Value update, mlir::ValueRange starts);
  void ret(mlir::ValueRange values) { op("stablehlo.return", {}, values); }

  mlir::NamedAttribute attr(llvm::StringRef name, mlir::Attribute value) {
    return b.getNamedAttr(name, value);
  }
  mlir::NamedAttribute dims(llvm::StringRef name, llvm::ArrayRef<int64_t> list) {
    return attr(name, b.getDenseI64ArrayAttr(list));
  }

  mlir::OpBuilder &b;
  mlir::Location loc;
};

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_BUILD_H
