#include "farrier/Analysis/OpCost.h"

#include "farrier/Analysis/Kernels.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/RaggedDot.h"
#include "farrier/Analysis/ScalarEval.h"
#include "farrier/Analysis/Sharding.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/TypeUtilities.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

Machine Machine::fromJSON(const llvm::json::Object *object) {
  Machine machine;
  if (!object)
    return machine;
  auto read = [&](StringRef key, double &field) {
    if (std::optional<double> value = object->getNumber(key))
      field = *value;
  };
  read("flops_half", machine.flopsHalf);
  read("flops_full", machine.flopsFull);
  read("flops_double", machine.flopsDouble);
  read("flops_byte", machine.flopsByte);
  read("bytes_per_second", machine.bytesPerSecond);
  read("host_bytes_per_second", machine.hostBytesPerSecond);
  read("interconnect_bytes_per_second", machine.interconnectBytesPerSecond);
  read("kernel_seconds", machine.kernelSeconds);
  return machine;
}

/// Product of the extents; dynamic ones count once.
static double elements(Type type) {
  auto shaped = dyn_cast<RankedTensorType>(type);
  double count = shaped ? 1 : 0;
  if (shaped)
    for (int64_t extent : shaped.getShape())
      count *= ShapedType::isDynamic(extent) ? 1 : static_cast<double>(extent);
  return count;
}

static double extent(Type type, int64_t dim) {
  auto shaped = dyn_cast<RankedTensorType>(type);
  if (!shaped || dim < 0 || dim >= shaped.getRank() || shaped.isDynamicDim(dim))
    return 1;
  return static_cast<double>(shaped.getDimSize(dim));
}

/// 2 * batch * rows * columns * contracted.
static double dotFlops(stablehlo::DotGeneralOp dot) {
  double contracted = 1;
  for (int64_t dim : dot.getDotDimensionNumbers().getLhsContractingDimensions())
    contracted *= extent(dot.getLhs().getType(), dim);
  return 2 * elements(dot.getType()) * contracted;
}

/// 2 * output elements * kernel elements per output feature. XLA:GPU gives cuDNN a dilated kernel with its
/// holes filled with zeros (two taps 32 apart are 33), but for the gradient of a strided convolution's
/// kernel, which it recognises: there the kernel is larger than the result.
static double convolutionFlops(stablehlo::ConvolutionOp conv) {
  Type kernel = conv.getRhs().getType();
  auto numbers = conv.getDimensionNumbers();
  double outputFeatures = extent(kernel, numbers.getKernelOutputFeatureDimension());
  double taps = 1;
  if (auto dilation = conv.getRhsDilation())
    for (auto [by, dim, outer] :
         llvm::zip(*dilation, numbers.getKernelSpatialDimensions(), numbers.getOutputSpatialDimensions()))
      if (double size = extent(kernel, dim); by > 1 && size > 0 && size <= extent(conv.getType(), outer))
        taps *= ((size - 1) * static_cast<double>(by) + 1) / size;
  return 2 * elements(conv.getType()) * elements(kernel) * taps / std::max(outputFeatures, 1.0);
}

/// Fused attention, as jax.nn.dot_product_attention(implementation="cudnn") emits it: q, k: [B, S, H, D],
/// [B, T, H, D]. Forward: two products of B*H*S*T*D, backward five (the scores are computed again). Causal
/// masks are counted in full, as hand-written attention's products are.
static double attentionFlops(stablehlo::CustomCallOp call) {
  if (call.getInputs().size() < 2)
    return 0;
  auto q = dyn_cast<RankedTensorType>(call.getInputs()[0].getType());
  auto k = dyn_cast<RankedTensorType>(call.getInputs()[1].getType());
  if (!q || !k || q.getRank() != 4 || k.getRank() != 4)
    return 0;
  double products = kernelOf(call).contains("Backward") ? 5 : 2;
  return products * 2 * elements(q) * extent(k, 1);
}

/// Bytes that `op` reads and writes: operands and results in whole, but for what touches only a part.
static double bytesTouched(Operation *op) {
  // What is handed on or only seen in another shape stays where it is.
  if (op->hasTrait<OpTrait::IsTerminator>() ||
      isa<stablehlo::ReshapeOp, stablehlo::OptimizationBarrierOp>(op))
    return 0;
  auto size = [](Value value) { return static_cast<double>(deviceSize(value)); };
  // A slice reads what it yields; an update in place reads and writes what it is given.
  if (isa<stablehlo::SliceOp, stablehlo::DynamicSliceOp, stablehlo::GatherOp>(op))
    return 2 * size(op->getResult(0)) + (isa<stablehlo::GatherOp>(op) ? size(op->getOperand(1)) : 0);
  if (auto update = dyn_cast<stablehlo::DynamicUpdateSliceOp>(op))
    return 2 * size(update.getUpdate());
  double bytes = 0;
  for (Value operand : op->getOperands())
    bytes += size(operand);
  for (Value value : op->getResults())
    bytes += size(value);
  return bytes;
}

static double peakFor(Operation *op, const Machine &machine) {
  Type type = op->getNumOperands() ? getElementTypeOrSelf(op->getOperand(0).getType()) : Type();
  if (!type || !type.isIntOrFloat())
    return machine.flopsFull;
  switch (type.getIntOrFloatBitWidth()) {
  case 64:
    return machine.flopsDouble;
  case 32:
    return machine.flopsFull;
  case 16:
    return machine.flopsHalf;
  default:
    return machine.flopsByte;
  }
}

std::optional<int64_t> tripCount(Operation *op) {
  auto loop = dyn_cast<stablehlo::WhileOp>(op);
  if (!loop || !loop.getCond().hasOneBlock() || !loop.getBody().hasOneBlock())
    return std::nullopt;
  Block &cond = loop.getCond().front(), &body = loop.getBody().front();
  auto compare = cond.getTerminator()->getNumOperands() == 1
                     ? cond.getTerminator()->getOperand(0).getDefiningOp<stablehlo::CompareOp>()
                     : stablehlo::CompareOp();
  if (!compare || compare.getComparisonDirection() != stablehlo::ComparisonDirection::LT)
    return std::nullopt;
  auto counter = dyn_cast<BlockArgument>(compare.getLhs());
  if (!counter || counter.getOwner() != &cond)
    return std::nullopt;
  // Bound: a constant inside, or a loop operand that the body hands on unchanged.
  ScalarEval outside;
  std::optional<int64_t> bound;
  if (auto arg = dyn_cast<BlockArgument>(compare.getRhs()); arg && arg.getOwner() == &cond) {
    unsigned index = arg.getArgNumber();
    if (body.getTerminator()->getOperand(index) == body.getArgument(index))
      bound = outside.evaluate(loop.getOperand()[index]);
  } else {
    bound = outside.evaluate(compare.getRhs());
  }
  unsigned index = counter.getArgNumber();
  std::optional<int64_t> start = outside.evaluate(loop.getOperand()[index]);
  ScalarEval inside;
  inside.bind(body.getArgument(index), 0);
  std::optional<int64_t> step = inside.evaluate(body.getTerminator()->getOperand(index));
  if (!bound || !start || !step || *step <= 0)
    return std::nullopt;
  return std::max<int64_t>(0, (*bound - *start + *step - 1) / *step);
}

OpCost CostModel::cost(Block &block) {
  OpCost sum;
  for (Operation &op : block)
    sum += cost(&op);
  return sum;
}

OpCost CostModel::cost(Operation *op) {
  OpCost result;
  if (auto loop = dyn_cast<stablehlo::WhileOp>(op)) {
    if (!loop.getBody().hasOneBlock())
      return result;
    OpCost body = cost(loop.getBody().front());
    double trips = static_cast<double>(tripCount(op).value_or(1));
    return {body.flops * trips, body.bytes * trips, body.seconds * trips};
  }
  if (isa<stablehlo::IfOp, stablehlo::CaseOp>(op)) {
    for (Region &region : op->getRegions())
      for (Block &block : region) {
        OpCost branch = cost(block);
        if (branch.seconds > result.seconds)
          result = branch;
      }
    return result;
  }
  if (auto call = dyn_cast<func::CallOp>(op)) {
    Operation *callee = symbols.lookupSymbol(call.getCallee());
    if (!callee || callee->getNumRegions() == 0 || callee->getRegion(0).empty())
      return result;
    // Inserted before the walk, so that recursion (which XLA refuses) ends here too.
    auto [it, fresh] = functions.try_emplace(callee);
    if (fresh) {
      OpCost body = cost(callee->getRegion(0).front());
      functions[callee] = body;
      return body;
    }
    return it->second;
  }
  if (isManualComputation(op) || isa<func::FuncOp>(op)) {
    for (Region &region : op->getRegions())
      for (Block &block : region)
        result += cost(block);
    return result;
  }

  result.bytes = bytesTouched(op);
  if (auto dot = dyn_cast<stablehlo::DotGeneralOp>(op))
    result.flops = dotFlops(dot);
  else if (auto conv = dyn_cast<stablehlo::ConvolutionOp>(op))
    result.flops = convolutionFlops(conv);
  else if (auto custom = dyn_cast<stablehlo::CustomCallOp>(op);
           custom && kernelOf(custom).contains("fmha"))
    result.flops = attentionFlops(custom);
  else if (std::optional<RaggedDot> ragged = RaggedDot::of(op)) {
    // Each group's rows are written and read in whole.
    result.flops = ragged->flops;
    for (Value operand : ragged->masked)
      result.bytes += 2.0 * static_cast<double>(ragged->groups) * static_cast<double>(deviceSize(operand));
  }
  if (result.flops > 0)
    result.flops *= deviceShare(op);
  result.seconds = std::max(result.flops / peakFor(op, machine), result.bytes / machine.bytesPerSecond);
  if (classify(op) == OpClass::Materialised)
    result.seconds = std::max(result.seconds, machine.kernelSeconds);
  return result;
}

OpCost CostModel::total() {
  OpCost sum;
  for (auto function : symbols.getOps<func::FuncOp>())
    if (function.isPublic() && !function.getBody().empty())
      sum += cost(function.getBody().front());
  return sum;
}

} // namespace farrier
