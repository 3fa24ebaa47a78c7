//===- StableHLOVerifiers.cpp - what passes rely on without looking again --===//
//
// MLIR's assertions are off in distributions' builds: an attribute that indexes out of range is undefined
// behaviour in whoever uses it. These verifiers check what can be used as an index or a size. They are not
// the full rules of the specification; jaxlib checks those on every module handed back.
//
//===----------------------------------------------------------------------===//

#include "Verify.h"

#include "llvm/Support/CheckedArithmetic.h"

using namespace mlir;
using namespace farrier::stablehlo;

//===-- Shared checks
//---------------------------------------------------------------------------------------===//

LogicalResult verify::checkDims(Operation *op, StringRef what, ArrayRef<int64_t> dims, int64_t rank) {
  llvm::SmallDenseSet<int64_t> seen;
  for (int64_t dim : dims) {
    if (dim < 0 || dim >= rank)
      return op->emitOpError() << what << " has " << dim << ", outside [0, " << rank << ")";
    if (!seen.insert(dim).second)
      return op->emitOpError() << what << " has " << dim << " twice";
  }
  return success();
}

LogicalResult verify::checkDim(Operation *op, StringRef what, int64_t dim, int64_t rank) {
  return checkDims(op, what, dim, rank);
}

LogicalResult verify::checkCount(Operation *op, StringRef what, size_t count, size_t expected) {
  if (count != expected)
    return op->emitOpError() << what << " has " << count << " entries, expected " << expected;
  return success();
}

LogicalResult verify::checkSize(Operation *op, StringRef what, int64_t actual, int64_t expected) {
  if (!ShapedType::isDynamic(actual) && !ShapedType::isDynamic(expected) && actual != expected)
    return op->emitOpError() << what << " is " << actual << ", expected " << expected;
  return success();
}

LogicalResult verify::checkShape(Operation *op, Value result, ArrayRef<int64_t> expected) {
  RankedTensorType type = ranked(result);
  if (!type)
    return success();
  if (failed(checkCount(op, "the result's shape", type.getRank(), expected.size())))
    return failure();
  for (auto [dim, size] : llvm::enumerate(expected))
    if (failed(checkSize(op, "a size of the result", type.getDimSize(dim), size)))
      return failure();
  return success();
}

//===-- Making and moving
//-----------------------------------------------------------------------------------===//

LogicalResult ConstantOp::verify() {
  auto value = getValue().getShapedType(), type = cast<ShapedType>(getOutput().getType());
  // Quantized constants store the integers behind the type.
  if (!value.hasRank() || !type.hasRank() || value.getShape() != type.getShape())
    return emitOpError("the value's shape differs from the type's");
  return success();
}

LogicalResult IotaOp::verify() {
  if (auto type = ranked(getOutput()))
    return checkDim(*this, "iota_dimension", getIotaDimension(), type.getRank());
  return success();
}

LogicalResult BroadcastInDimOp::verify() {
  auto in = ranked(getOperand()), out = ranked(getResult());
  if (!in || !out)
    return success();
  ArrayRef<int64_t> dims = getBroadcastDimensions();
  if (failed(checkCount(*this, "broadcast_dimensions", dims.size(), in.getRank())) ||
      failed(checkDims(*this, "broadcast_dimensions", dims, out.getRank())))
    return failure();
  for (auto [index, dim] : llvm::enumerate(dims))
    if (in.getDimSize(index) != 1 &&
        failed(checkSize(*this, "a size of the result", out.getDimSize(dim), in.getDimSize(index))))
      return failure();
  return success();
}

LogicalResult BroadcastOp::verify() {
  auto in = ranked(getOperand());
  if (!in)
    return success();
  SmallVector<int64_t> shape(getBroadcastSizes());
  llvm::append_range(shape, in.getShape());
  return checkShape(*this, getResult(), shape);
}

LogicalResult ReshapeOp::verify() {
  auto in = ranked(getOperand()), out = ranked(getResult());
  if (in && out && in.hasStaticShape() && out.hasStaticShape() && in.getNumElements() != out.getNumElements())
    return emitOpError() << in.getNumElements() << " elements reshaped to " << out.getNumElements();
  return success();
}

LogicalResult TransposeOp::verify() {
  auto in = ranked(getOperand());
  if (!in)
    return success();
  if (failed(checkCount(*this, "permutation", getPermutation().size(), in.getRank())) ||
      failed(checkDims(*this, "permutation", getPermutation(), in.getRank())))
    return failure();
  SmallVector<int64_t> shape;
  for (int64_t dim : getPermutation())
    shape.push_back(in.getDimSize(dim));
  return checkShape(*this, getResult(), shape);
}

LogicalResult ReverseOp::verify() {
  if (auto in = ranked(getOperand()))
    return checkDims(*this, "dimensions", getDimensions(), in.getRank());
  return success();
}

LogicalResult ConcatenateOp::verify() {
  if (getInputs().empty())
    return emitOpError("has no inputs");
  auto first = ranked(getInputs().front());
  if (!first)
    return success();
  int64_t dimension = getDimension(), total = 0;
  if (failed(checkDim(*this, "dimension", dimension, first.getRank())))
    return failure();
  SmallVector<int64_t> shape(first.getShape());
  for (Value input : getInputs()) {
    auto type = ranked(input);
    if (!type)
      return success();
    if (failed(checkCount(*this, "an input's shape", type.getRank(), shape.size())))
      return failure();
    for (int64_t dim = 0; dim < type.getRank(); ++dim)
      if (dim != dimension &&
          failed(checkSize(*this, "a size of an input", type.getDimSize(dim), shape[dim])))
        return failure();
    bool dynamic = ShapedType::isDynamic(total) || type.isDynamicDim(dimension);
    std::optional<int64_t> sum =
        dynamic ? ShapedType::kDynamic : llvm::checkedAdd(total, type.getDimSize(dimension));
    if (!sum)
      return emitOpError("the result has no size in 64 bits");
    total = *sum;
  }
  shape[dimension] = total;
  return checkShape(*this, getResult(), shape);
}

LogicalResult PadOp::verify() {
  auto in = ranked(getOperand());
  if (!in)
    return success();
  SmallVector<int64_t> shape;
  for (ArrayRef<int64_t> amounts : {getEdgePaddingLow(), getEdgePaddingHigh(), getInteriorPadding()})
    if (failed(checkCount(*this, "padding", amounts.size(), in.getRank())))
      return failure();
  for (int64_t dim = 0; dim < in.getRank(); ++dim) {
    int64_t size = in.getDimSize(dim), interior = getInteriorPadding()[dim];
    if (interior < 0)
      return emitOpError("interior_padding is negative");
    if (ShapedType::isDynamic(size)) {
      shape.push_back(ShapedType::kDynamic);
      continue;
    }
    auto within = llvm::checkedMulAdd(std::max<int64_t>(size - 1, 0), interior, size);
    auto low = within ? llvm::checkedAdd(*within, getEdgePaddingLow()[dim]) : std::nullopt;
    auto all = low ? llvm::checkedAdd(*low, getEdgePaddingHigh()[dim]) : std::nullopt;
    if (!all)
      return emitOpError() << "the padded dimension " << dim << " has no size in 64 bits";
    shape.push_back(*all);
  }
  return checkShape(*this, getResult(), shape);
}

LogicalResult SliceOp::verify() {
  auto in = ranked(getOperand());
  if (!in)
    return success();
  size_t rank = in.getRank();
  if (failed(checkCount(*this, "start_indices", getStartIndices().size(), rank)) ||
      failed(checkCount(*this, "limit_indices", getLimitIndices().size(), rank)) ||
      failed(checkCount(*this, "strides", getStrides().size(), rank)))
    return failure();
  SmallVector<int64_t> shape;
  for (size_t dim = 0; dim < rank; ++dim) {
    int64_t start = getStartIndices()[dim], limit = getLimitIndices()[dim], stride = getStrides()[dim];
    if (start < 0 || limit < start || stride <= 0 || (!in.isDynamicDim(dim) && limit > in.getDimSize(dim)))
      return emitOpError() << "[" << start << ":" << limit << ":" << stride << "] is no slice of dimension "
                           << dim << " of " << in;
    shape.push_back((limit - start) / stride + ((limit - start) % stride != 0));
  }
  return checkShape(*this, getResult(), shape);
}

LogicalResult DynamicSliceOp::verify() {
  auto in = ranked(getOperand());
  if (!in)
    return success();
  if (failed(checkCount(*this, "start_indices", getStartIndices().size(), in.getRank())) ||
      failed(checkCount(*this, "slice_sizes", getSliceSizes().size(), in.getRank())))
    return failure();
  for (auto [dim, size] : llvm::enumerate(getSliceSizes()))
    if (size < 0 || (!in.isDynamicDim(dim) && size > in.getDimSize(dim)))
      return emitOpError() << "slice_sizes has " << size << " for dimension " << dim << " of " << in;
  return checkShape(*this, getResult(), getSliceSizes());
}

LogicalResult DynamicUpdateSliceOp::verify() {
  auto in = ranked(getOperand()), update = ranked(getUpdate());
  if (!in || !update)
    return success();
  if (failed(checkCount(*this, "start_indices", getStartIndices().size(), in.getRank())) ||
      failed(checkCount(*this, "the update's shape", update.getRank(), in.getRank())))
    return failure();
  for (int64_t dim = 0; dim < in.getRank(); ++dim)
    if (!in.isDynamicDim(dim) && !update.isDynamicDim(dim) && update.getDimSize(dim) > in.getDimSize(dim))
      return emitOpError() << "the update is larger than the operand in dimension " << dim;
  return checkShape(*this, getResult(), in.getShape());
}

LogicalResult GetDimensionSizeOp::verify() {
  if (auto in = ranked(getOperand()))
    return checkDim(*this, "dimension", getDimension(), in.getRank());
  return success();
}

LogicalResult SetDimensionSizeOp::verify() {
  if (auto in = ranked(getOperand()))
    return checkDim(*this, "dimension", getDimension(), in.getRank());
  return success();
}

//===-- Control flow
//----------------------------------------------------------------------------------------===//

/// MLIR takes any operation that it does not know for a terminator; passes read the values of this one.
static LogicalResult checkReturns(Operation *op) {
  for (Region &region : op->getRegions())
    if (!region.hasOneBlock() || !returnOf(region))
      return op->emitOpError("its regions are one block that ends in stablehlo.return");
  return success();
}

static LogicalResult checkBranches(Operation *op) {
  if (!op->getNumRegions())
    return op->emitOpError("has no branches");
  for (Region &region : op->getRegions())
    if (region.getNumArguments())
      return op->emitOpError("its regions take no arguments");
  return checkReturns(op);
}

LogicalResult IfOp::verify() { return checkBranches(*this); }
LogicalResult CaseOp::verify() { return checkBranches(*this); }

LogicalResult WhileOp::verify() {
  for (Region *region : {&getCond(), &getBody()})
    if (region->getArgumentTypes().size() != getOperand().size() ||
        getResults().size() != getOperand().size())
      return emitOpError() << "operands, results and region arguments differ in number: "
                           << getOperand().size() << ", " << getResults().size() << ", "
                           << region->getNumArguments();
  if (failed(checkReturns(*this)))
    return failure();
  if (returnOf(getCond())->getNumOperands() != 1)
    return emitOpError("`cond` returns one predicate");
  Operation *state = returnOf(getBody());
  if (state->getNumOperands() != getOperand().size())
    return emitOpError() << "`body` returns " << state->getNumOperands() << " values, expected "
                         << getOperand().size();
  return success();
}

LogicalResult OptimizationBarrierOp::verify() {
  if (getOperand().getTypes() != getResult().getTypes())
    return emitOpError("operand and result types differ");
  return success();
}

LogicalResult CustomCallOp::verify() {
  for (auto [what, layouts, count] :
       {std::tuple("operand_layouts", getOperandLayoutsAttr(), getInputs().size()),
        std::tuple("result_layouts", getResultLayoutsAttr(), getResults().size())})
    // A single tuple stands for its elements.
    if (layouts && layouts.size() != count && count != 1)
      return emitOpError() << what << " has " << layouts.size() << " entries, expected " << count;
  for (auto alias : getOutputOperandAliasesAttr()
                        ? getOutputOperandAliasesAttr().getAsRange<OutputOperandAliasAttr>()
                        : ArrayAttr::get(getContext(), {}).getAsRange<OutputOperandAliasAttr>())
    if (alias.getOperandIndex() < 0 || alias.getOperandIndex() >= static_cast<int64_t>(getInputs().size()))
      return emitOpError() << "output_operand_aliases names operand " << alias.getOperandIndex() << " of "
                           << getInputs().size();
  return success();
}

LogicalResult GetTupleElementOp::verify() {
  auto type = dyn_cast<TupleType>(getOperand().getType());
  if (type && getIndex() >= type.size())
    return emitOpError() << "index " << getIndex() << " of " << type.size() << " elements";
  return success();
}
