#include "farrier/Analysis/WorthStoring.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/OpInfo.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/SmallPtrSet.h"
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

int64_t groupsOfColumns(Operation *op) {
  constexpr int64_t columnsOfOne = 32, rowsInParts = 8192, leastRows = 256;
  auto reduce = dyn_cast<stablehlo::ReduceOp>(op);
  auto type = reduce ? dyn_cast<RankedTensorType>(reduce.getInputs().front().getType()) : RankedTensorType();
  if (!type || !type.hasStaticShape())
    return 0;
  // Where what is summed over is not in one piece, the first is summed over first.
  int64_t outer = 1, rows = 1, columns = 1;
  for (int64_t dim = 0; dim < type.getRank(); ++dim) {
    bool summed = llvm::is_contained(reduce.getDimensions(), dim);
    int64_t extent = type.getDimSize(dim);
    (columns > 1 || (rows > 1 && !summed) ? columns : summed ? rows : outer) *= extent;
  }
  bool areFew = columns > 1 && rows >= leastRows && rows < rowsInParts;
  return areFew ? outer * llvm::divideCeil(columns, columnsOfOne) : 0;
}

bool sumsFewColumns(stablehlo::ReduceOp reduce) {
  constexpr int64_t multiprocessors = 128;
  int64_t groups = groupsOfColumns(reduce);
  return groups > 0 && groups <= multiprocessors;
}

/// How many elementwise operations do arithmetic for the value, at most `most`.
static unsigned arithmeticFor(Value value, unsigned most) {
  llvm::SmallVector<Value> work{value};
  llvm::SmallPtrSet<Operation *, 16> seen;
  unsigned count = 0;
  while (!work.empty() && count < most) {
    Operation *op = work.pop_back_val().getDefiningOp();
    bool passes = isa_and_nonnull<stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::ConvertOp>(op);
    if (!op || (!passes && !isElementwise(op)) || !seen.insert(op).second)
      continue;
    count += !passes;
    for (Value operand : op->getOperands())
      if (byteSize(operand.getType()) >= byteSize(value.getType()))
        work.push_back(operand);
  }
  return count;
}

int64_t mostGroupsStored(Value value) {
  bool isNarrow = elementBits(value.getType()) <= 16;
  unsigned arithmetic = arithmeticFor(value, /*most=*/7);
  if (isNarrow && arithmetic >= 3)
    return arithmetic >= 7 ? 1024 : 512;
  return arithmetic >= 2 ? 256 : 0;
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
