#include "farrier/Analysis/Softmax.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/TypeUtilities.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;

namespace farrier {

/// The most of a tile, in per mille, that a row fills where its differences are stored. What is done to the
/// scores before, a scale and a mask, each kernel would do for the padding, too. (Read off compiled softmaxes
/// of bf16 scores, deviceless, H100: rows of 136 to 5,120; of those of up to 128 only some are stored, which
/// are left out.)
static int64_t mostFilled(int64_t tile, bool isCheap) {
  if (tile <= 256)
    return 650;
  if (tile <= 512)
    return isCheap ? 695 : 720;
  if (tile <= 2048)
    return isCheap ? 710 : 760;
  return 720;
}
static constexpr int64_t leastRow = 129;

/// How many operations do arithmetic between a product, or whatever is no elementwise operation, and the
/// value.
static unsigned operationsBefore(Value value) {
  unsigned count = 0;
  for (Operation *op = value.getDefiningOp(); op && (isElementwise(op) || isa<stablehlo::ReshapeOp>(op));
       op = value.getDefiningOp()) {
    auto from = llvm::find_if(op->getOperands(), [](Value operand) {
      return !splatOf(operand) && isa<FloatType>(getElementTypeOrSelf(operand.getType()));
    });
    if (from == op->operand_end())
      break;
    count += !isa<stablehlo::ReshapeOp, stablehlo::ConvertOp>(op);
    value = *from;
  }
  return count;
}

/// What makes the value, behind changes of its shape and the maximum with -inf, which JAX takes for rows of no
/// elements; null for an argument.
static Operation *behindShapes(Value value) {
  while (Operation *op = value.getDefiningOp()) {
    if (!isa<stablehlo::MaxOp, stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp>(op))
      return op;
    value = op->getOperand(isa<stablehlo::MaxOp>(op) && splatOf(op->getOperand(0)) ? 1 : 0);
  }
  return nullptr;
}

bool storesDifferences(Operation *op) {
  auto difference = dyn_cast<stablehlo::SubtractOp>(op);
  auto type = difference ? dyn_cast<RankedTensorType>(difference.getType()) : RankedTensorType();
  if (!type || !type.hasStaticShape() || type.getRank() == 0)
    return false;
  int64_t last = type.getRank() - 1, row = type.getDimSize(last), tile = llvm::PowerOf2Ceil(row);
  if (row < leastRow)
    return false;
  auto reduce = dyn_cast_or_null<stablehlo::ReduceOp>(behindShapes(difference.getRhs()));
  if (!reduce || reduce.getInputs().front() != difference.getLhs() ||
      reduce.getDimensions() != ArrayRef(last) || !reduce.getBody().hasOneBlock() ||
      !isa<stablehlo::MaxOp>(reduce.getBody().front().front()))
    return false;
  return 1000 * row <= mostFilled(tile, operationsBefore(difference.getLhs()) < 2) * tile;
}

} // namespace farrier
