#include "farrier/Analysis/WorthStoring.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/OpInfo.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/SmallPtrSet.h"
#include "llvm/Support/MathExtras.h"

#include <numeric>

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

/// The value's dimensions as they lie in memory, outermost first: XLA has the features of what convolutions give, and of what is
/// computed from it, innermost, wherever the program has them.
static SmallVector<int64_t> orderInMemory(Value value, int64_t rank) {
  constexpr unsigned mostFollowed = 32;
  SmallVector<int64_t> order(rank);
  std::iota(order.begin(), order.end(), 0);
  llvm::SmallVector<Value> work{value};
  llvm::SmallPtrSet<Operation *, 16> seen;
  for (unsigned next = 0; next < work.size() && next < mostFollowed; ++next) {
    Operation *op = work[next].getDefiningOp();
    if (auto convolution = dyn_cast_or_null<stablehlo::ConvolutionOp>(op)) {
      auto numbers = convolution.getDimensionNumbers();
      order.assign(1, numbers.getOutputBatchDimension());
      llvm::append_range(order, numbers.getOutputSpatialDimensions());
      order.push_back(numbers.getOutputFeatureDimension());
      break;
    }
    if (op && isElementwise(op) && seen.insert(op).second)
      for (Value operand : op->getOperands())
        if (auto type = dyn_cast<RankedTensorType>(operand.getType()); type && type.getRank() == rank)
          work.push_back(operand);
  }
  return order;
}

static RowSum rowSum(Operation *op) {
  RowSum sum;
  auto reduce = dyn_cast<stablehlo::ReduceOp>(op);
  auto type = reduce ? dyn_cast<RankedTensorType>(reduce.getInputs().front().getType()) : RankedTensorType();
  if (!type || !type.hasStaticShape())
    return sum;
  for (int64_t dim : orderInMemory(reduce.getInputs().front(), type.getRank())) {
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

Value rowsSummed(Operation *op) {
  RowSum sum = rowSum(op);
  int64_t least = sum.columns >= 32 ? 32 : sum.columns >= 8 ? 64 : sum.columns >= 3 ? 128 : 256;
  return sum.columns > 1 && sum.rows >= least ? cast<stablehlo::ReduceOp>(op).getInputs().front() : Value();
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
