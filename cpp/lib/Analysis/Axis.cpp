#include "farrier/Analysis/Axis.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/IRMapping.h"
#include "mlir/IR/OpDefinition.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringSwitch.h"

using namespace mlir;

namespace farrier {

using Places = SmallVector<std::optional<AxisPlace>, 4>;

bool isElementwise(Operation *op) {
  if (isa<stablehlo::SelectOp, stablehlo::ClampOp>(op) || op->hasTrait<OpTrait::Elementwise>())
    return true;
  if (op->getNumOperands() == 1 && op->getNumResults() == 1 && op->getNumRegions() == 0)
    return llvm::StringSwitch<bool>(op->getName().getStringRef())
        .Cases({"chlo.erf", "chlo.erfc", "chlo.erf_inv", "chlo.lgamma", "chlo.digamma", "chlo.square"}, true)
        .Cases({"chlo.tan", "chlo.sinh", "chlo.cosh", "chlo.asin", "chlo.acos", "chlo.atan"}, true)
        .Cases({"chlo.asinh", "chlo.acosh", "chlo.atanh", "chlo.bessel_i1e", "chlo.is_inf"}, true)
        .Default(false);
  return false;
}

static bool isScalar(Value value) {
  RankedTensorType type = tensorType(value);
  return type && type.getRank() == 0;
}

static bool contains(ArrayRef<int64_t> list, int64_t element) { return llvm::is_contained(list, element); }

static int64_t indexOf(ArrayRef<int64_t> list, int64_t element) {
  auto it = llvm::find(list, element);
  return it == list.end() ? -1 : it - list.begin();
}

/// Where the axis lies after the same elements were given another shape.
static std::optional<AxisPlace> acrossReshape(RankedTensorType from, RankedTensorType to, AxisPlace place,
                                              int64_t size) {
  int64_t stride = place.inner;
  for (int64_t dim = place.dim + 1; dim < from.getRank(); ++dim)
    stride *= from.getDimSize(dim);
  // The dimension that holds the axis is the one whose trailing product divides the stride and whose extent
  // reaches past the axis.
  int64_t trailing = 1;
  for (int64_t dim = to.getRank() - 1; dim >= 0; --dim) {
    int64_t extent = to.getDimSize(dim);
    if (extent != 1 && stride % trailing == 0 && trailing * extent >= stride * size) {
      int64_t inner = stride / trailing;
      if (extent % (inner * size) != 0)
        return std::nullopt;
      return AxisPlace{dim, extent / (inner * size), inner};
    }
    trailing *= extent;
    if (trailing > stride)
      return std::nullopt; // the axis straddles dimensions
  }
  return std::nullopt;
}

static std::optional<AxisFlow> elementwise(Operation *op, AxisPlace place) {
  AxisFlow flow;
  for (Value operand : op->getOperands())
    flow.operands.push_back(isScalar(operand) ? std::nullopt : std::optional(place));
  flow.results.assign(op->getNumResults(), place);
  return flow;
}

static AxisPlace moved(AxisPlace place, int64_t dim) { return {dim, place.outer, place.inner}; }

static AxisFlow unary(std::optional<AxisPlace> operand, std::optional<AxisPlace> result) {
  AxisFlow flow;
  flow.operands = {operand};
  flow.results = {result};
  return flow;
}

//===-- Products
//---------------------------------------------------------------------------------------------===//

/// Dimensions of the result of a dot: batching, then free of lhs, then free of rhs.
static std::optional<AxisFlow> dotFromOperand(stablehlo::DotGeneralOp dot, unsigned operand,
                                              AxisPlace place) {
  auto numbers = dot.getDotDimensionNumbers();
  ArrayRef<int64_t> batch[2] = {numbers.getLhsBatchingDimensions(), numbers.getRhsBatchingDimensions()};
  ArrayRef<int64_t> contract[2] = {numbers.getLhsContractingDimensions(),
                                   numbers.getRhsContractingDimensions()};
  unsigned other = 1 - operand;
  AxisFlow flow;
  flow.operands.resize(2);
  flow.results.resize(1);
  flow.operands[operand] = place;
  if (int64_t at = indexOf(contract[operand], place.dim); at >= 0) {
    flow.kind = AxisFlow::Sum;
    flow.operands[other] = moved(place, contract[other][at]);
    return flow;
  }
  if (int64_t at = indexOf(batch[operand], place.dim); at >= 0) {
    flow.operands[other] = moved(place, batch[other][at]);
    flow.results[0] = moved(place, at);
    return flow;
  }
  int64_t position = batch[0].size();
  if (operand == 1)
    position += tensorType(dot.getLhs()).getRank() - batch[0].size() - contract[0].size();
  for (int64_t dim = 0; dim < place.dim; ++dim)
    if (!contains(batch[operand], dim) && !contains(contract[operand], dim))
      ++position;
  flow.results[0] = moved(place, position);
  return flow;
}

static std::optional<AxisFlow> dotFromResult(stablehlo::DotGeneralOp dot, AxisPlace place) {
  for (unsigned operand : {0u, 1u})
    for (int64_t dim = 0; dim < tensorType(dot->getOperand(operand)).getRank(); ++dim)
      if (auto flow = dotFromOperand(dot, operand, moved(place, dim)); flow && flow->results[0] == place)
        return flow;
  return std::nullopt;
}

//===-- Gather and scatter along batching dimensions, and along dimensions taken whole
//----------------------------------------------------------===//

/// The dimension of a gather's result (a scatter's updates) that is dimension `dim` of the operand, of which
/// every slice takes all; -1 where slices take parts.
static int64_t windowPosition(int64_t dim, int64_t rank, ArrayRef<int64_t> windowDims,
                              ArrayRef<int64_t> missing, ArrayRef<int64_t> batching,
                              ArrayRef<int64_t> indexed) {
  if (contains(missing, dim) || contains(batching, dim) || contains(indexed, dim))
    return -1;
  int64_t ordinal = 0;
  for (int64_t other = 0; other < dim && other < rank; ++other)
    ordinal += !contains(missing, other) && !contains(batching, other);
  return windowDims[ordinal];
}

/// Dimension of the result that belongs to dimension `dim` of the indices (not the index vector's).
static int64_t batchPosition(int64_t dim, int64_t indexVectorDim, ArrayRef<int64_t> offsetDims,
                             int64_t rank) {
  int64_t ordinal = dim > indexVectorDim ? dim - 1 : dim;
  for (int64_t position = 0; position < rank; ++position)
    if (!contains(offsetDims, position) && ordinal-- == 0)
      return position;
  return -1;
}

static std::optional<AxisFlow> gatherFromOperand(stablehlo::GatherOp gather, unsigned operand,
                                                 AxisPlace place) {
  auto numbers = gather.getDimensionNumbers();
  AxisFlow flow;
  flow.operands.resize(2);
  int64_t indexDim = place.dim;
  if (operand == 0) {
    RankedTensorType type = tensorType(gather.getOperand());
    if (int64_t window = windowPosition(place.dim, type.getRank(), numbers.getOffsetDims(),
                                        numbers.getCollapsedSliceDims(), numbers.getOperandBatchingDims(),
                                        numbers.getStartIndexMap());
        window >= 0 && gather.getSliceSizes()[place.dim] == type.getDimSize(place.dim)) {
      flow.operands[0] = place;
      flow.results.push_back(moved(place, window));
      return flow;
    }
    int64_t at = indexOf(numbers.getOperandBatchingDims(), place.dim);
    if (at < 0)
      return std::nullopt;
    flow.operands[0] = place;
    indexDim = numbers.getStartIndicesBatchingDims()[at];
  } else {
    if (indexDim == numbers.getIndexVectorDim())
      return std::nullopt;
    if (int64_t at = indexOf(numbers.getStartIndicesBatchingDims(), indexDim); at >= 0)
      flow.operands[0] = moved(place, numbers.getOperandBatchingDims()[at]);
  }
  flow.operands[1] = moved(place, indexDim);
  int64_t position = batchPosition(indexDim, numbers.getIndexVectorDim(), numbers.getOffsetDims(),
                                   tensorType(gather.getResult()).getRank());
  if (position < 0)
    return std::nullopt;
  flow.results.push_back(moved(place, position));
  return flow;
}

static std::optional<AxisFlow> gatherFromResult(stablehlo::GatherOp gather, AxisPlace place) {
  for (unsigned operand : {1u, 0u})
    for (int64_t dim = 0; dim < tensorType(gather->getOperand(operand)).getRank(); ++dim)
      if (auto flow = gatherFromOperand(gather, operand, moved(place, dim));
          flow && flow->results[0] == place)
        return flow;
  return std::nullopt;
}

static std::optional<AxisFlow> scatterFromInput(stablehlo::ScatterOp scatter, AxisPlace place) {
  if (scatter.getInputs().size() != 1)
    return std::nullopt;
  auto numbers = scatter.getScatterDimensionNumbers();
  RankedTensorType type = tensorType(scatter.getInputs()[0]), updates = tensorType(scatter.getUpdates()[0]);
  if (int64_t window = windowPosition(place.dim, type.getRank(), numbers.getUpdateWindowDims(),
                                      numbers.getInsertedWindowDims(), numbers.getInputBatchingDims(),
                                      numbers.getScatterDimsToOperandDims());
      window >= 0 && updates.getDimSize(window) == type.getDimSize(place.dim)) {
    AxisFlow flow;
    flow.operands = {place, std::nullopt, moved(place, window)};
    flow.results = {place};
    return flow;
  }
  int64_t at = indexOf(numbers.getInputBatchingDims(), place.dim);
  if (at < 0)
    return std::nullopt;
  int64_t indexDim = numbers.getScatterIndicesBatchingDims()[at];
  int64_t position = batchPosition(indexDim, numbers.getIndexVectorDim(), numbers.getUpdateWindowDims(),
                                   tensorType(scatter.getUpdates()[0]).getRank());
  if (position < 0)
    return std::nullopt;
  AxisFlow flow;
  flow.operands = {place, moved(place, indexDim), moved(place, position)};
  flow.results = {place};
  return flow;
}

/// From the updates or the indices: the dimension of the input that they go with, if one does.
static std::optional<AxisFlow> scatterFromOther(stablehlo::ScatterOp scatter, unsigned operand,
                                                AxisPlace place) {
  for (int64_t dim = 0; dim < tensorType(scatter.getInputs()[0]).getRank(); ++dim)
    if (auto flow = scatterFromInput(scatter, moved(place, dim)); flow && flow->operands[operand] == place)
      return flow;
  return std::nullopt;
}

//===-- Dispatch
//---------------------------------------------------------------------------------------------===//

/// Whether a value is zero everywhere. Our constants are no `ConstantLike`: MLIR's matchers do not see them.
static bool isZeroFloat(Value value) {
  while (Operation *op = value.getDefiningOp()) {
    if (!isa<stablehlo::BroadcastInDimOp, stablehlo::ConvertOp, stablehlo::ReshapeOp>(op))
      break;
    value = op->getOperand(0);
  }
  auto constant = value.getDefiningOp<stablehlo::ConstantOp>();
  auto elements = constant ? dyn_cast<DenseElementsAttr>(constant.getValue()) : DenseElementsAttr();
  return elements && elements.isSplat() && isa<FloatType>(elements.getElementType()) &&
         elements.getSplatValue<APFloat>().isZero();
}

static bool sumsFloats(stablehlo::ReduceOp reduce) {
  if (reduce.getInputs().size() != 1)
    return false;
  // The starting value would be added once per chunk.
  if (!isZeroFloat(reduce.getInitValues()[0]))
    return false;
  return isSum(reduce->getRegion(0).front()) &&
         isa<FloatType>(tensorType(reduce.getInputs()[0]).getElementType());
}

static std::optional<AxisFlow> reduceFlow(stablehlo::ReduceOp reduce, AxisPlace operandPlace) {
  unsigned inputs = reduce.getInputs().size();
  AxisFlow flow;
  flow.operands.assign(inputs, operandPlace);
  flow.operands.append(inputs, std::nullopt);
  if (contains(reduce.getDimensions(), operandPlace.dim)) {
    if (!sumsFloats(reduce))
      return std::nullopt;
    flow.kind = AxisFlow::Sum;
    flow.results.resize(1);
    return flow;
  }
  int64_t dim = operandPlace.dim;
  for (int64_t reduced : reduce.getDimensions())
    dim -= reduced < operandPlace.dim;
  flow.results.assign(inputs, moved(operandPlace, dim));
  return flow;
}

/// Slices, pads and concatenations of other dimensions work row by row.
static bool leavesAlone(Operation *op, AxisPlace place) {
  int64_t dim = place.dim;
  if (auto slice = dyn_cast<stablehlo::SliceOp>(op))
    return slice.getStartIndices()[dim] == 0 && slice.getStrides()[dim] == 1 &&
           slice.getLimitIndices()[dim] == tensorType(slice.getOperand()).getDimSize(dim);
  if (auto pad = dyn_cast<stablehlo::PadOp>(op))
    return pad.getEdgePaddingLow()[dim] == 0 && pad.getEdgePaddingHigh()[dim] == 0 &&
           pad.getInteriorPadding()[dim] == 0;
  if (auto concatenate = dyn_cast<stablehlo::ConcatenateOp>(op))
    return static_cast<int64_t>(concatenate.getDimension()) != dim;
  if (auto reverse = dyn_cast<stablehlo::ReverseOp>(op))
    return !contains(reverse.getDimensions(), dim);
  return false;
}

static std::optional<AxisFlow> sameDimension(Operation *op, AxisPlace place) {
  if (!leavesAlone(op, place))
    return std::nullopt;
  AxisFlow flow = *elementwise(op, place);
  if (isa<stablehlo::PadOp>(op))
    flow.operands[1] = std::nullopt;
  return flow;
}

bool isAnnotation(Operation *op) { return op->getName().getStringRef() == "sdy.sharding_constraint"; }

std::optional<AxisFlow> flowFromOperand(Operation *op, unsigned operand, AxisPlace place, int64_t size) {
  if (isElementwise(op) || isAnnotation(op))
    return isScalar(op->getOperand(operand)) ? std::nullopt : elementwise(op, place);
  if (auto dot = dyn_cast<stablehlo::DotGeneralOp>(op))
    return dotFromOperand(dot, operand, place);
  if (auto broadcast = dyn_cast<stablehlo::BroadcastInDimOp>(op)) {
    int64_t dim = broadcast.getBroadcastDimensions()[place.dim];
    if (tensorType(broadcast.getResult()).getDimSize(dim) !=
        tensorType(broadcast.getOperand()).getDimSize(place.dim))
      return std::nullopt;
    return unary(place, moved(place, dim));
  }
  if (auto reshape = dyn_cast<stablehlo::ReshapeOp>(op)) {
    auto result =
        acrossReshape(tensorType(reshape.getOperand()), tensorType(reshape.getResult()), place, size);
    return result ? std::optional(unary(place, *result)) : std::nullopt;
  }
  if (auto transpose = dyn_cast<stablehlo::TransposeOp>(op))
    return unary(place, moved(place, indexOf(transpose.getPermutation(), place.dim)));
  if (auto reduce = dyn_cast<stablehlo::ReduceOp>(op))
    return operand < reduce.getInputs().size() ? reduceFlow(reduce, place) : std::nullopt;
  if (auto gather = dyn_cast<stablehlo::GatherOp>(op))
    return gatherFromOperand(gather, operand, place);
  if (auto scatter = dyn_cast<stablehlo::ScatterOp>(op))
    return operand == 0 ? scatterFromInput(scatter, place) : scatterFromOther(scatter, operand, place);
  if (isa<stablehlo::SliceOp, stablehlo::PadOp, stablehlo::ConcatenateOp, stablehlo::ReverseOp>(op))
    return isScalar(op->getOperand(operand)) ? std::nullopt : sameDimension(op, place);
  return std::nullopt;
}

std::optional<AxisFlow> flowFromResult(Operation *op, unsigned result, AxisPlace place, int64_t size) {
  if (isElementwise(op) || isAnnotation(op))
    return elementwise(op, place);
  if (auto dot = dyn_cast<stablehlo::DotGeneralOp>(op))
    return dotFromResult(dot, place);
  if (auto broadcast = dyn_cast<stablehlo::BroadcastInDimOp>(op)) {
    int64_t dim = indexOf(broadcast.getBroadcastDimensions(), place.dim);
    if (dim < 0 || tensorType(broadcast.getOperand()).getDimSize(dim) == 1)
      return unary(std::nullopt, place);
    return unary(moved(place, dim), place);
  }
  if (auto reshape = dyn_cast<stablehlo::ReshapeOp>(op)) {
    auto operand =
        acrossReshape(tensorType(reshape.getResult()), tensorType(reshape.getOperand()), place, size);
    return operand ? std::optional(unary(*operand, place)) : std::nullopt;
  }
  if (auto transpose = dyn_cast<stablehlo::TransposeOp>(op))
    return unary(moved(place, transpose.getPermutation()[place.dim]), place);
  if (auto reduce = dyn_cast<stablehlo::ReduceOp>(op)) {
    int64_t dim = place.dim;
    SmallVector<int64_t> reduced(reduce.getDimensions());
    llvm::sort(reduced);
    for (int64_t r : reduced)
      dim += r <= dim;
    return reduceFlow(reduce, moved(place, dim));
  }
  if (auto gather = dyn_cast<stablehlo::GatherOp>(op))
    return gatherFromResult(gather, place);
  if (auto scatter = dyn_cast<stablehlo::ScatterOp>(op))
    return scatterFromInput(scatter, place);
  if (isa<stablehlo::SliceOp, stablehlo::PadOp, stablehlo::ConcatenateOp, stablehlo::ReverseOp>(op))
    return sameDimension(op, place);
  if (auto iota = dyn_cast<stablehlo::IotaOp>(op)) {
    if (static_cast<int64_t>(iota.getIotaDimension()) == place.dim)
      return std::nullopt; // its values depend on where the chunk lies: a sliced input
    AxisFlow flow;
    flow.results = {place};
    return flow;
  }
  return std::nullopt;
}

RankedTensorType chunkedType(RankedTensorType type, AxisPlace place, int64_t chunk, int64_t size) {
  SmallVector<int64_t> shape(type.getShape());
  shape[place.dim] = place.outer * chunk * place.inner;
  return RankedTensorType::get(shape, type.getElementType());
}

/// Adapts what a copy of `op`, whose operands hold a part of the axis, says of their sizes in attributes: where
/// slices end, how much gathers take.
static void adaptSizesToPart(Operation *op, Operation *copy, const AxisFlow &flow) {
  if (flow.operands.empty() || !flow.operands[0])
    return;
  int64_t dim = flow.operands[0]->dim;
  int64_t whole = tensorType(op->getOperand(0)).getDimSize(dim);
  int64_t part = tensorType(copy->getOperand(0)).getDimSize(dim);
  Builder builder(op->getContext());
  if (auto slice = dyn_cast<stablehlo::SliceOp>(copy)) {
    SmallVector<int64_t> limits(slice.getLimitIndices());
    limits[dim] = part;
    slice.setLimitIndicesAttr(builder.getDenseI64ArrayAttr(limits));
  }
  if (auto gather = dyn_cast<stablehlo::GatherOp>(copy)) {
    SmallVector<int64_t> sizes(gather.getSliceSizes());
    if (sizes[dim] == whole) // not one row at a time
      sizes[dim] = part;
    gather.setSliceSizesAttr(builder.getDenseI64ArrayAttr(sizes));
  }
}

Operation *cloneOnPart(OpBuilder &builder, Operation *op, const AxisFlow &flow, ValueRange operands,
                       TypeRange types) {
  if (auto constant = dyn_cast<stablehlo::ConstantOp>(op)) {
    auto value = cast<DenseElementsAttr>(constant.getValue()).resizeSplat(cast<ShapedType>(types[0]));
    OperationState state(op->getLoc(), op->getName().getStringRef(), {}, types[0],
                         builder.getNamedAttr("value", value));
    return builder.create(state);
  }
  IRMapping none;
  Operation *copy = op->cloneWithoutRegions(none);
  builder.insert(copy);
  copy->setOperands(operands);
  for (auto [result, type] : llvm::zip_equal(copy->getResults(), types))
    result.setType(type);
  for (auto [from, to] : llvm::zip_equal(op->getRegions(), copy->getRegions()))
    from.cloneInto(&to, none);
  adaptSizesToPart(op, copy, flow);
  return copy;
}

RankedTensorType wideSum(RankedTensorType type) {
  bool narrow = isa<FloatType>(type.getElementType()) && type.getElementTypeBitWidth() < 32;
  return narrow ? cast<RankedTensorType>(type.clone(Float32Type::get(type.getContext()))) : type;
}

bool isSum(Block &block) {
  if (block.getNumArguments() != 2 || !llvm::hasNItems(block, 2) || !isa<stablehlo::AddOp>(block.front()) ||
      block.back().getNumOperands() != 1)
    return false;
  Value a = block.getArgument(0), b = block.getArgument(1);
  Operation &add = block.front();
  bool both = (add.getOperand(0) == a && add.getOperand(1) == b) ||
              (add.getOperand(0) == b && add.getOperand(1) == a);
  return both && block.back().getOperand(0) == add.getResult(0);
}

} // namespace farrier
