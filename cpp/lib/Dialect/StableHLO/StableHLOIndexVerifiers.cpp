//===- StableHLOIndexVerifiers.cpp - dimension numbers, windows, groups ----===//

#include "Verify.h"

using namespace mlir;
using namespace farrier::stablehlo;

//===-- Products and convolutions
//---------------------------------------------------------------------------===//

LogicalResult DotGeneralOp::verify() {
  auto lhs = ranked(getLhs()), rhs = ranked(getRhs());
  DotDimensionNumbersAttr dims = getDotDimensionNumbers();
  ArrayRef<int64_t> lhsBatch = dims.getLhsBatchingDimensions(), rhsBatch = dims.getRhsBatchingDimensions();
  ArrayRef<int64_t> lhsContract = dims.getLhsContractingDimensions(),
                    rhsContract = dims.getRhsContractingDimensions();
  if (failed(checkCount(*this, "rhs_batching_dimensions", rhsBatch.size(), lhsBatch.size())) ||
      failed(checkCount(*this, "rhs_contracting_dimensions", rhsContract.size(), lhsContract.size())))
    return failure();
  if (getPrecisionConfig() && getPrecisionConfig()->size() > 2)
    return emitOpError("precision_config has more than two entries");
  if (!lhs || !rhs)
    return success();
  auto joined = [](ArrayRef<int64_t> a, ArrayRef<int64_t> b) {
    SmallVector<int64_t> all(a);
    llvm::append_range(all, b);
    return all;
  };
  SmallVector<int64_t> lhsDims = joined(lhsBatch, lhsContract), rhsDims = joined(rhsBatch, rhsContract);
  if (failed(checkDims(*this, "the dimension numbers of lhs", lhsDims, lhs.getRank())) ||
      failed(checkDims(*this, "the dimension numbers of rhs", rhsDims, rhs.getRank())))
    return failure();
  for (auto [left, right] : llvm::zip_equal(lhsDims, rhsDims))
    if (failed(checkSize(*this, "a batching or contracting size of rhs", rhs.getDimSize(right),
                         lhs.getDimSize(left))))
      return failure();
  SmallVector<int64_t> shape;
  for (int64_t dim : lhsBatch)
    shape.push_back(lhs.getDimSize(dim));
  for (auto [type, used] : {std::pair(lhs, &lhsDims), std::pair(rhs, &rhsDims)})
    for (int64_t dim = 0; dim < type.getRank(); ++dim)
      if (!llvm::is_contained(*used, dim))
        shape.push_back(type.getDimSize(dim));
  return checkShape(*this, getResult(), shape);
}

template <typename OpT> static LogicalResult verifyConvolution(OpT op) {
  auto lhs = ranked(op.getLhs()), rhs = ranked(op.getRhs()), result = ranked(op.getResult());
  if (!lhs || !rhs || !result)
    return success();
  ConvDimensionNumbersAttr dims = op.getDimensionNumbers();
  auto side = [&](StringRef what, int64_t a, int64_t b, ArrayRef<int64_t> spatial, RankedTensorType type) {
    SmallVector<int64_t> all{a, b};
    llvm::append_range(all, spatial);
    return success(succeeded(checkCount(op, what, all.size(), type.getRank())) &&
                   succeeded(checkDims(op, what, all, type.getRank())));
  };
  if (failed(side("the input's dimension numbers", dims.getInputBatchDimension(),
                  dims.getInputFeatureDimension(), dims.getInputSpatialDimensions(), lhs)) ||
      failed(side("the kernel's dimension numbers", dims.getKernelInputFeatureDimension(),
                  dims.getKernelOutputFeatureDimension(), dims.getKernelSpatialDimensions(), rhs)) ||
      failed(side("the output's dimension numbers", dims.getOutputBatchDimension(),
                  dims.getOutputFeatureDimension(), dims.getOutputSpatialDimensions(), result)))
    return failure();
  size_t spatial = dims.getInputSpatialDimensions().size();
  if (failed(checkCount(op, "the kernel's spatial dimensions", dims.getKernelSpatialDimensions().size(),
                        spatial)) ||
      failed(checkCount(op, "the output's spatial dimensions", dims.getOutputSpatialDimensions().size(),
                        spatial)))
    return failure();
  if (static_cast<int64_t>(op.getFeatureGroupCount()) < 1 ||
      static_cast<int64_t>(op.getBatchGroupCount()) < 1)
    return op.emitOpError("group counts are positive");
  for (auto [what, values] :
       {std::pair("window_strides", op.getWindowStrides()), std::pair("lhs_dilation", op.getLhsDilation()),
        std::pair("rhs_dilation", op.getRhsDilation())}) {
    if (!values)
      continue;
    if (failed(checkCount(op, what, values->size(), spatial)))
      return failure();
    if (llvm::any_of(*values, [](int64_t value) { return value < 1; }))
      return op.emitOpError() << what << " are positive";
  }
  if (op.getWindowReversal() &&
      failed(checkCount(op, "window_reversal", op.getWindowReversal()->size(), spatial)))
    return failure();
  if (op.getPrecisionConfig() && op.getPrecisionConfig()->size() > 2)
    return op.emitOpError("precision_config has more than two entries");
  return success();
}

/// A table of `rows` pairs.
static LogicalResult checkPairs(Operation *op, StringRef what, std::optional<DenseIntElementsAttr> table,
                                std::optional<int64_t> rows) {
  if (!table)
    return success();
  ShapedType type = table->getType();
  if (type.getRank() != 2 || type.getDimSize(1) != 2 || (rows && type.getDimSize(0) != *rows))
    return op->emitOpError() << what << " is " << type << ", expected "
                             << (rows ? std::to_string(*rows) : "N") << " pairs";
  return success();
}

LogicalResult ConvolutionOp::verify() {
  if (failed(verifyConvolution(*this)))
    return failure();
  return checkPairs(*this, "padding", getPadding(), getDimensionNumbers().getInputSpatialDimensions().size());
}
LogicalResult DynamicConvOp::verify() { return verifyConvolution(*this); }

LogicalResult FftOp::verify() {
  auto in = ranked(getOperand());
  if (getFftLength().empty() || (in && static_cast<int64_t>(getFftLength().size()) > in.getRank()))
    return emitOpError() << "fft_length has " << getFftLength().size() << " entries";
  return success();
}

//===-- Gather and scatter
//----------------------------------------------------------------------------------===//

static LogicalResult checkGatherDims(Operation *op, GatherDimensionNumbersAttr dims, Value operand,
                                     Value indices, Value result) {
  auto in = ranked(operand), index = ranked(indices), out = ranked(result);
  if (!in || !index || !out)
    return success();
  if (failed(checkDims(op, "offset_dims", dims.getOffsetDims(), out.getRank())) ||
      failed(checkDims(op, "collapsed_slice_dims", dims.getCollapsedSliceDims(), in.getRank())) ||
      failed(checkDims(op, "operand_batching_dims", dims.getOperandBatchingDims(), in.getRank())) ||
      failed(checkDims(op, "start_indices_batching_dims", dims.getStartIndicesBatchingDims(),
                       index.getRank())) ||
      failed(checkDims(op, "start_index_map", dims.getStartIndexMap(), in.getRank())) ||
      failed(checkCount(op, "start_indices_batching_dims", dims.getStartIndicesBatchingDims().size(),
                        dims.getOperandBatchingDims().size())))
    return failure();
  // One past the end means scalar indices.
  if (failed(checkDim(op, "index_vector_dim", dims.getIndexVectorDim(), index.getRank() + 1)))
    return failure();
  return checkCount(op, "offset_dims, collapsed_slice_dims and operand_batching_dims together",
                    dims.getOffsetDims().size() + dims.getCollapsedSliceDims().size() +
                        dims.getOperandBatchingDims().size(),
                    in.getRank());
}

LogicalResult GatherOp::verify() {
  auto in = ranked(getOperand());
  if (in) {
    if (failed(checkCount(*this, "slice_sizes", getSliceSizes().size(), in.getRank())))
      return failure();
    for (auto [dim, size] : llvm::enumerate(getSliceSizes()))
      if (size < 0 || (!in.isDynamicDim(dim) && size > in.getDimSize(dim)))
        return emitOpError() << "slice_sizes has " << size << " for dimension " << dim << " of " << in;
  }
  return checkGatherDims(*this, getDimensionNumbers(), getOperand(), getStartIndices(), getResult());
}

LogicalResult DynamicGatherOp::verify() {
  return checkGatherDims(*this, getDimensionNumbers(), getOperand(), getStartIndices(), getResult());
}

LogicalResult ScatterOp::verify() {
  if (getInputs().empty() || getResults().size() != getInputs().size())
    return emitOpError() << getInputs().size() << " inputs and " << getResults().size() << " results";
  auto in = ranked(getInputs().front()), index = ranked(getScatterIndices()),
       update = ranked(getUpdates().front());
  if (!in || !index || !update)
    return success();
  ScatterDimensionNumbersAttr dims = getScatterDimensionNumbers();
  if (failed(checkDims(*this, "update_window_dims", dims.getUpdateWindowDims(), update.getRank())) ||
      failed(checkDims(*this, "inserted_window_dims", dims.getInsertedWindowDims(), in.getRank())) ||
      failed(checkDims(*this, "input_batching_dims", dims.getInputBatchingDims(), in.getRank())) ||
      failed(checkDims(*this, "scatter_indices_batching_dims", dims.getScatterIndicesBatchingDims(),
                       index.getRank())) ||
      failed(checkDims(*this, "scatter_dims_to_operand_dims", dims.getScatterDimsToOperandDims(),
                       in.getRank())) ||
      failed(checkDim(*this, "index_vector_dim", dims.getIndexVectorDim(), index.getRank() + 1)) ||
      failed(checkCount(*this, "scatter_indices_batching_dims", dims.getScatterIndicesBatchingDims().size(),
                        dims.getInputBatchingDims().size())))
    return failure();
  return checkCount(*this, "update_window_dims, inserted_window_dims and input_batching_dims together",
                    dims.getUpdateWindowDims().size() + dims.getInsertedWindowDims().size() +
                        dims.getInputBatchingDims().size(),
                    in.getRank());
}

//===-- Reductions
//------------------------------------------------------------------------------------------===//

static LogicalResult checkReduction(Operation *op, size_t inputs, Region &body) {
  if (!inputs || op->getNumResults() != inputs)
    return op->emitOpError() << inputs << " inputs and " << op->getNumResults() << " results";
  if (failed(checkCount(op, "the region's arguments", body.getNumArguments(), 2 * inputs)))
    return failure();
  if (ReturnOp last = returnOf(body))
    return checkCount(op, "what the region returns", last->getNumOperands(), inputs);
  return success();
}

LogicalResult ReduceOp::verify() {
  if (failed(checkReduction(*this, getInputs().size(), getBody())))
    return failure();
  for (auto [input, result] : llvm::zip_equal(getInputs(), getResults())) {
    auto in = ranked(input);
    if (!in)
      continue;
    if (failed(checkDims(*this, "dimensions", getDimensions(), in.getRank())))
      return failure();
    SmallVector<int64_t> shape;
    for (int64_t dim = 0; dim < in.getRank(); ++dim)
      if (!llvm::is_contained(getDimensions(), dim))
        shape.push_back(in.getDimSize(dim));
    if (failed(checkShape(*this, result, shape)))
      return failure();
  }
  return success();
}

static LogicalResult checkWindow(Operation *op, StringRef what, std::optional<ArrayRef<int64_t>> values,
                                 int64_t rank) {
  if (!values)
    return success();
  if (failed(checkCount(op, what, values->size(), rank)))
    return failure();
  if (llvm::any_of(*values, [](int64_t value) { return value < 1; }))
    return op->emitOpError() << what << " are positive";
  return success();
}

LogicalResult ReduceWindowOp::verify() {
  if (failed(checkReduction(*this, getInputs().size(), getBody())))
    return failure();
  auto in = ranked(getInputs().front());
  if (!in)
    return success();
  return success(succeeded(checkWindow(*this, "window_dimensions", getWindowDimensions(), in.getRank())) &&
                 succeeded(checkWindow(*this, "window_strides", getWindowStrides(), in.getRank())) &&
                 succeeded(checkWindow(*this, "base_dilations", getBaseDilations(), in.getRank())) &&
                 succeeded(checkWindow(*this, "window_dilations", getWindowDilations(), in.getRank())) &&
                 succeeded(checkPairs(*this, "padding", getPadding(), in.getRank())));
}

LogicalResult SelectAndScatterOp::verify() {
  auto in = ranked(getOperand());
  if (!in)
    return success();
  return success(succeeded(checkWindow(*this, "window_dimensions", getWindowDimensions(), in.getRank())) &&
                 succeeded(checkWindow(*this, "window_strides", getWindowStrides(), in.getRank())) &&
                 succeeded(checkPairs(*this, "padding", getPadding(), in.getRank())));
}

LogicalResult SortOp::verify() {
  if (getInputs().empty() || getResults().size() != getInputs().size())
    return emitOpError() << getInputs().size() << " inputs and " << getResults().size() << " results";
  if (failed(checkCount(*this, "the comparator's arguments", getComparator().getNumArguments(),
                        2 * getInputs().size())))
    return failure();
  auto in = ranked(getInputs().front());
  // Negative counts from the end; absent is the last dimension.
  int64_t dimension = static_cast<int64_t>(getDimension().value_or(-1));
  if (in && (dimension < -in.getRank() || dimension >= in.getRank()))
    return emitOpError() << "dimension " << dimension << " of rank " << in.getRank();
  return success();
}

//===-- Collectives
//-----------------------------------------------------------------------------------------===//

static LogicalResult checkGroups(Operation *op, Attribute groups) {
  auto table = dyn_cast<DenseIntElementsAttr>(groups);
  if (!table)
    return success(); // mesh axes
  if (table.getType().getRank() != 2)
    return op->emitOpError() << "replica_groups is " << table.getType() << ", expected a 2-D table";
  llvm::SmallDenseSet<int64_t> seen;
  for (int64_t id : table.getValues<int64_t>())
    if (id < -1 || (id >= 0 && !seen.insert(id).second))
      return op->emitOpError() << "replica_groups has " << id << (id < -1 ? "" : " twice");
  return success();
}

/// Operands and results pair up, and `dim` is one of each.
static LogicalResult checkAlong(Operation *op, ValueRange operands, StringRef what, int64_t dim) {
  if (operands.size() != op->getNumResults())
    return op->emitOpError() << operands.size() << " operands and " << op->getNumResults() << " results";
  for (Value operand : operands)
    if (auto type = ranked(operand); type && failed(checkDim(op, what, dim, type.getRank())))
      return failure();
  return success();
}

LogicalResult AllGatherOp::verify() {
  return success(succeeded(checkGroups(*this, getReplicaGroups())) &&
                 succeeded(checkAlong(*this, getOperands(), "all_gather_dim", getAllGatherDim())));
}

LogicalResult AllToAllOp::verify() {
  if (static_cast<int64_t>(getSplitCount()) < 1)
    return emitOpError("split_count is positive");
  return success(succeeded(checkGroups(*this, getReplicaGroups())) &&
                 succeeded(checkAlong(*this, getOperands(), "split_dimension", getSplitDimension())) &&
                 succeeded(checkAlong(*this, getOperands(), "concat_dimension", getConcatDimension())));
}

LogicalResult ReduceScatterOp::verify() {
  return success(succeeded(checkGroups(*this, getReplicaGroups())) &&
                 succeeded(checkAlong(*this, getOperand(), "scatter_dimension", getScatterDimension())));
}

LogicalResult AllReduceOp::verify() {
  if (getOperands().size() != getResults().size())
    return emitOpError() << getOperands().size() << " operands and " << getResults().size() << " results";
  return checkGroups(*this, getReplicaGroups());
}
LogicalResult CollectiveReduceOp::verify() { return checkGroups(*this, getReplicaGroups()); }
LogicalResult CollectiveBroadcastOp::verify() { return checkGroups(*this, getReplicaGroups()); }
LogicalResult CrossReplicaSumOp::verify() { return checkGroups(*this, getReplicaGroups()); }
LogicalResult CollectivePermuteOp::verify() {
  return checkPairs(*this, "source_target_pairs", getSourceTargetPairs(), std::nullopt);
}
