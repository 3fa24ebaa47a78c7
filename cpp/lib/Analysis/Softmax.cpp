#include "farrier/Analysis/Softmax.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/ReadingKernels.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/TypeUtilities.h"
#include "llvm/Support/MathExtras.h"

#include <optional>

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

/// The maximum or sum of rows, as `Body` has it, that stands behind changes of shape; null for anything else.
template <typename Body>
static stablehlo::ReduceOp reducedRows(Operation *op, int64_t last) {
  auto reduce = dyn_cast_or_null<stablehlo::ReduceOp>(op);
  bool isOne = reduce && reduce.getDimensions() == ArrayRef(last) && reduce.getBody().hasOneBlock() &&
               isa<Body>(reduce.getBody().front().front());
  return isOne ? reduce : stablehlo::ReduceOp();
}

/// Whether the operation takes the maximum of its row from each element.
static bool isShifted(stablehlo::SubtractOp difference, int64_t last) {
  auto reduce = reducedRows<stablehlo::MaxOp>(behindShapes(difference.getRhs()), last);
  return reduce && reduce.getInputs().front() == difference.getLhs();
}

bool storesDifferences(Operation *op) {
  auto difference = dyn_cast<stablehlo::SubtractOp>(op);
  auto type = difference ? dyn_cast<RankedTensorType>(difference.getType()) : RankedTensorType();
  if (!type || !type.hasStaticShape() || type.getRank() == 0)
    return false;
  int64_t last = type.getRank() - 1, row = type.getDimSize(last), tile = llvm::PowerOf2Ceil(row);
  if (row < leastRow || !isShifted(difference, last))
    return false;
  return 1000 * row <= mostFilled(tile, operationsBefore(difference.getLhs()) < 2) * tile;
}

/// The rank's last dimension if the operation's result has rows that are kept in tiles. (Compiled, f32 and bf16: rows of
/// 4,096 and 16,384 are, those of 32,000 and more are not.)
static std::optional<int64_t> rowInTile(Operation *op) {
  constexpr int64_t longestRow = 16384;
  auto type = isa<stablehlo::SubtractOp>(op) ? dyn_cast<RankedTensorType>(op->getResult(0).getType()) : RankedTensorType();
  if (!type || type.getRank() == 0 || type.getShape().back() > longestRow)
    return std::nullopt;
  return type.getRank() - 1;
}

/// Whether the operation takes the mean of its row from each element.
static bool isCentred(stablehlo::SubtractOp difference, int64_t last) {
  Operation *mean = behindShapes(difference.getRhs());
  if (!isa_and_nonnull<stablehlo::DivOp, stablehlo::MulOp>(mean) || !splatOf(mean->getOperand(1)))
    return false;
  auto reduce = reducedRows<stablehlo::AddOp>(behindShapes(mean->getOperand(0)), last);
  return reduce && reduce.getInputs().front() == difference.getLhs();
}

bool keepsRow(Operation *op) {
  std::optional<int64_t> row = rowInTile(op);
  auto difference = dyn_cast<stablehlo::SubtractOp>(op);
  return row && (isShifted(difference, *row) || isCentred(difference, *row));
}

bool isLogSoftmax(Operation *op) {
  std::optional<int64_t> row = rowInTile(op);
  if (!row)
    return false;
  auto logarithm = dyn_cast_or_null<stablehlo::LogOp>(behindShapes(op->getOperand(1)));
  auto sum = logarithm ? reducedRows<stablehlo::AddOp>(behindShapes(logarithm.getOperand()), *row) : stablehlo::ReduceOp();
  auto exponential = sum ? sum.getInputs().front().getDefiningOp<stablehlo::ExpOp>() : stablehlo::ExpOp();
  Operation *difference = op->getOperand(0).getDefiningOp();
  return difference && exponential && exponential.getOperand() == op->getOperand(0) && keepsRow(difference);
}

bool isLookedUp(const BlockGraph &graph, unsigned op) {
  constexpr unsigned mostFollowed = 16;
  llvm::SmallVector<unsigned> work{graph.outputs[op][0]};
  for (unsigned next = 0; next < work.size() && next < mostFollowed; ++next)
    for (unsigned user : graph.users[work[next]]) {
      if (isa<stablehlo::GatherOp>(graph.ops[user]) && !isUnused(graph, user))
        return true;
      if (graph.isVirtual[user])
        work.append(graph.outputs[user].begin(), graph.outputs[user].end());
    }
  return false;
}

} // namespace farrier
