#include "farrier/Analysis/WorthStoring.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/OpInfo.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;

namespace farrier {

unsigned leastReadersOfDear(Operation *op) {
  int64_t bits = op->getNumResults() == 1 ? elementBits(op->getResult(0).getType()) : 0;
  if (isa<stablehlo::SineOp, stablehlo::CosineOp>(op) || op->getName().getStringRef() == "chlo.erfc")
    return 2;
  if (isa<stablehlo::TanhOp, stablehlo::PowOp>(op))
    return bits <= 16 ? 2 : 3;
  return 0;
}

bool sumsFewColumns(stablehlo::ReduceOp reduce) {
  constexpr int64_t multiprocessors = 128, columnsOfOne = 32, rowsInParts = 8192, leastRows = 256;
  auto type = dyn_cast<RankedTensorType>(reduce.getInputs().front().getType());
  if (!type || !type.hasStaticShape())
    return false;
  // Where what is summed over is not in one piece, the first is summed over first.
  int64_t outer = 1, rows = 1, columns = 1;
  for (int64_t dim = 0; dim < type.getRank(); ++dim) {
    bool summed = llvm::is_contained(reduce.getDimensions(), dim);
    int64_t extent = type.getDimSize(dim);
    (columns > 1 || (rows > 1 && !summed) ? columns : summed ? rows : outer) *= extent;
  }
  return columns > 1 && rows >= leastRows && rows < rowsInParts &&
         outer * llvm::divideCeil(columns, columnsOfOne) <= multiprocessors;
}

bool isComputed(Value value, unsigned least) {
  Operation *op = value.getDefiningOp();
  if (!op || op->getNumOperands() == 0 || classify(op) != OpClass::Virtual)
    return least == 0;
  bool passes = isa<stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::ConvertOp>(op);
  if (!passes && (!isElementwise(op) || least == 0))
    return least == 0;
  return llvm::any_of(op->getOperands(), [&](Value operand) { return isComputed(operand, passes ? least : least - 1); });
}

} // namespace farrier
