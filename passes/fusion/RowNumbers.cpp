//===- RowNumbers.cpp - indices that count rows become batch dimensions ----===//
//
// `logits[arange(n), labels]` names every row by its number: a gather from anywhere, as far as the program
// says. Where an index provably counts the rows, the same gather (and the scatter of its gradient) is one per
// row, which is what a chunk of rows can do by itself.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Build.h"
#include "passes/fusion/Fusion.h"

#include "farrier/Analysis/Axis.h"

using namespace mlir;

namespace farrier::fusion {

namespace {

/// The dimension along which a tensor of integers counts 0, 1, 2, ..., the same everywhere else; -1 where it is
/// not known to.
int64_t countsAlong(Value value, unsigned depth = 0) {
  constexpr unsigned limit = 16;
  Operation *op = value.getDefiningOp();
  RankedTensorType type = tensorType(value);
  if (!op || !type || !type.getElementType().isInteger() || depth > limit)
    return -1;
  if (auto iota = dyn_cast<stablehlo::IotaOp>(op))
    return iota.getIotaDimension();
  if (auto broadcast = dyn_cast<stablehlo::BroadcastInDimOp>(op)) {
    int64_t from = countsAlong(broadcast.getOperand(), depth + 1);
    if (from < 0)
      return -1;
    int64_t to = broadcast.getBroadcastDimensions()[from];
    return type.getDimSize(to) == tensorType(broadcast.getOperand()).getDimSize(from) ? to : -1;
  }
  if (auto reshape = dyn_cast<stablehlo::ReshapeOp>(op)) {
    int64_t from = countsAlong(reshape.getOperand(), depth + 1);
    if (from < 0)
      return -1;
    // Dimensions of extent 1 come and go; anything else would regroup the count.
    RankedTensorType before = tensorType(reshape.getOperand());
    int64_t extent = before.getDimSize(from), found = -1;
    auto place = flowFromOperand(op, 0, {from, 1, 1}, extent);
    if (place && place->results[0] && place->results[0]->outer == 1 && place->results[0]->inner == 1)
      found = place->results[0]->dim;
    return found >= 0 && type.getDimSize(found) == extent ? found : -1;
  }
  if (auto convert = dyn_cast<stablehlo::ConvertOp>(op)) {
    int64_t along = countsAlong(convert.getOperand(), depth + 1);
    bool holds = along >= 0 && (type.getElementTypeBitWidth() >= 32 ||
                                type.getDimSize(along) <= int64_t(1) << (type.getElementTypeBitWidth() - 1));
    return holds ? along : -1;
  }
  if (auto select = dyn_cast<stablehlo::SelectOp>(op)) {
    // Negative indices count from the end: select(i < 0, i + n, i). A count is never negative.
    auto compare = select.getPred().getDefiningOp<stablehlo::CompareOp>();
    bool never = compare && compare.getComparisonDirection() == stablehlo::ComparisonDirection::LT &&
                 compare.getLhs() == select.getOnFalse();
    Value bound = never ? compare.getRhs() : Value();
    if (auto broadcast = bound ? bound.getDefiningOp<stablehlo::BroadcastInDimOp>() : nullptr)
      bound = broadcast.getOperand();
    auto zero = never ? bound.getDefiningOp<stablehlo::ConstantOp>() : stablehlo::ConstantOp();
    auto number = zero ? dyn_cast<DenseElementsAttr>(zero.getValue()) : DenseElementsAttr();
    never = number && number.isSplat() && number.getSplatValue<APInt>().isZero();
    return never ? countsAlong(select.getOnFalse(), depth + 1) : -1;
  }
  return -1;
}

/// The columns of an index tensor, each of extent 1 along the index vector's dimension.
SmallVector<Value> columnsOf(Value indices, int64_t vectorDim) {
  SmallVector<Value> columns;
  RankedTensorType type = tensorType(indices);
  auto concatenate = indices.getDefiningOp<stablehlo::ConcatenateOp>();
  if (!concatenate || vectorDim >= type.getRank() ||
      static_cast<int64_t>(concatenate.getDimension()) != vectorDim)
    return columns;
  for (Value part : concatenate.getOperands()) {
    if (tensorType(part).getDimSize(vectorDim) != 1)
      return {};
    columns.push_back(part);
  }
  return columns;
}

/// What becomes of the dimension numbers of a gather or scatter: which operand dimensions are batch dimensions
/// now, which dimensions of the indices they go with, and what is left of the index vector.
struct Batched {
  SmallVector<int64_t> operandDims, indexDims, indexMap, windowDims;
  Value indices;
};

std::optional<Batched> batch(OpBuilder &builder, Operation *op, Value operand, Value indices,
                             ArrayRef<int64_t> indexMap, int64_t vectorDim, ArrayRef<int64_t> collapsed,
                             ArrayRef<int64_t> operandBatch, ArrayRef<int64_t> indexBatch) {
  SmallVector<Value> columns = columnsOf(indices, vectorDim);
  if (columns.size() != indexMap.size() || columns.empty())
    return std::nullopt;
  SmallVector<std::pair<int64_t, int64_t>> pairs;
  for (auto [dim, with] : llvm::zip(operandBatch, indexBatch))
    pairs.emplace_back(dim, with);
  Batched result;
  SmallVector<Value> kept;
  for (auto [column, dim] : llvm::zip(columns, indexMap)) {
    int64_t along = countsAlong(column);
    bool rows = along >= 0 && along != vectorDim && llvm::is_contained(collapsed, dim) &&
                llvm::none_of(pairs, [&](auto pair) { return pair.second == along; }) &&
                tensorType(operand).getDimSize(dim) == tensorType(column).getDimSize(along);
    if (rows) {
      pairs.emplace_back(dim, along);
    } else {
      kept.push_back(column);
      result.indexMap.push_back(dim);
    }
  }
  if (kept.size() == columns.size() || kept.empty())
    return std::nullopt;
  llvm::sort(pairs); // operand batching dimensions are listed in order
  for (auto [dim, with] : pairs) {
    result.operandDims.push_back(dim);
    result.indexDims.push_back(with);
  }
  for (int64_t dim : collapsed)
    if (!llvm::is_contained(result.operandDims, dim))
      result.windowDims.push_back(dim);
  result.indices = Maker(builder, op->getLoc()).concatenate(kept, vectorDim);
  return result;
}

} // namespace

void batchRowNumbers(ModuleOp module, int64_t least) {
  module.walk([&](Operation *op) {
    OpBuilder builder(op);
    auto big = [&](Value value) {
      RankedTensorType type = tensorType(value);
      return type && type.hasStaticShape() && type.getNumElements() * 4 >= least;
    };
    if (auto gather = dyn_cast<stablehlo::GatherOp>(op); gather && big(gather.getOperand())) {
      auto numbers = gather.getDimensionNumbers();
      std::optional<Batched> to =
          batch(builder, op, gather.getOperand(), gather.getStartIndices(), numbers.getStartIndexMap(),
                numbers.getIndexVectorDim(), numbers.getCollapsedSliceDims(), numbers.getOperandBatchingDims(),
                numbers.getStartIndicesBatchingDims());
      if (!to)
        return;
      gather.setOperand(1, to->indices);
      gather.setDimensionNumbersAttr(stablehlo::GatherDimensionNumbersAttr::get(
          op->getContext(), numbers.getOffsetDims(), to->windowDims, to->operandDims, to->indexDims,
          to->indexMap, numbers.getIndexVectorDim()));
    }
    if (auto scatter = dyn_cast<stablehlo::ScatterOp>(op);
        scatter && scatter.getInputs().size() == 1 && big(scatter.getInputs()[0])) {
      auto numbers = scatter.getScatterDimensionNumbers();
      std::optional<Batched> to =
          batch(builder, op, scatter.getInputs()[0], scatter.getScatterIndices(),
                numbers.getScatterDimsToOperandDims(), numbers.getIndexVectorDim(),
                numbers.getInsertedWindowDims(), numbers.getInputBatchingDims(),
                numbers.getScatterIndicesBatchingDims());
      if (!to)
        return;
      scatter.setOperand(1, to->indices);
      scatter.setScatterDimensionNumbersAttr(stablehlo::ScatterDimensionNumbersAttr::get(
          op->getContext(), numbers.getUpdateWindowDims(), to->windowDims, to->operandDims, to->indexDims,
          to->indexMap, numbers.getIndexVectorDim()));
    }
  });
}

} // namespace farrier::fusion
