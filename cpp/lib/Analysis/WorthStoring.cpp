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

/// How a sum over rows runs through what it sums. Where that is not in one piece, the first is summed over first.
struct RowSum {
  int64_t outer = 1, rows = 1, columns = 1;
};

static RowSum rowSum(Operation *op) {
  RowSum sum;
  auto reduce = dyn_cast<stablehlo::ReduceOp>(op);
  auto type = reduce ? dyn_cast<RankedTensorType>(reduce.getInputs().front().getType()) : RankedTensorType();
  if (!type || !type.hasStaticShape())
    return sum;
  for (int64_t dim = 0; dim < type.getRank(); ++dim) {
    bool summed = llvm::is_contained(reduce.getDimensions(), dim);
    int64_t extent = type.getDimSize(dim);
    (sum.columns > 1 || (sum.rows > 1 && !summed) ? sum.columns : summed ? sum.rows : sum.outer) *= extent;
  }
  return sum;
}

int64_t groupsOfColumns(Operation *op) {
  constexpr int64_t columnsOfOne = 32, rowsInParts = 8192, leastRows = 256;
  RowSum sum = rowSum(op);
  bool areFew = sum.columns > 1 && sum.rows >= leastRows && sum.rows < rowsInParts;
  return areFew ? sum.outer * llvm::divideCeil(sum.columns, columnsOfOne) : 0;
}

bool sumsManyRows(Operation *op) {
  RowSum sum = rowSum(op);
  int64_t least = sum.columns >= 32 ? 32 : sum.columns >= 8 ? 64 : sum.columns >= 3 ? 128 : 256;
  return sum.columns > 1 && sum.rows >= least;
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
