#include "farrier/Analysis/OpInfo.h"

#include "farrier/Analysis/Kernels.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/TypeUtilities.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/ADT/StringSwitch.h"

using namespace mlir;

namespace farrier {

static bool isVirtualName(StringRef dialect, StringRef name) {
  if (dialect == "stablehlo") {
    static const llvm::StringSet<> names = {
        "abs",
        "add",
        "and",
        "atan2",
        "bitcast_convert",
        "broadcast",
        "broadcast_in_dim",
        "cbrt",
        "ceil",
        "clamp",
        "compare",
        "complex",
        "concatenate",
        "constant",
        "convert",
        "cosine",
        "count_leading_zeros",
        "divide",
        "exponential",
        "exponential_minus_one",
        "floor",
        "imag",
        "iota",
        "is_finite",
        "log",
        "log_plus_one",
        "logistic",
        "maximum",
        "minimum",
        "multiply",
        "negate",
        "not",
        "or",
        "pad",
        "popcnt",
        "power",
        "real",
        "reduce_precision",
        "remainder",
        "reshape",
        "reverse",
        "round_nearest_afz",
        "round_nearest_even",
        "rsqrt",
        "select",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sine",
        "slice",
        "sqrt",
        "subtract",
        "tan",
        "tanh",
        "transpose",
        "xor",
        "dynamic_slice",
        "partition_id",
        "replica_id",
    };
    return names.contains(name);
  }
  // What JAX emits of chlo is elementwise but for top_k and ragged_dot.
  if (dialect == "chlo")
    return name != "top_k" && name != "ragged_dot" && name != "scan";
  return dialect == "sdy" && (name == "sharding_constraint" || name == "propagation_barrier");
}

OpClass classify(Operation *op) {
  OperationName name = op->getName();
  return isVirtualName(name.getDialectNamespace(), name.stripDialect()) ? OpClass::Virtual
                                                                        : OpClass::Materialised;
}

bool accumulates(Operation *op) {
  return classify(op) == OpClass::Virtual || isa<stablehlo::DynamicUpdateSliceOp>(op);
}

static bool isCollectiveName(StringRef name) {
  return llvm::StringSwitch<bool>(name)
      .Cases({"stablehlo.all_gather", "stablehlo.all_reduce", "stablehlo.all_to_all",
              "stablehlo.collective_broadcast", "stablehlo.collective_permute", "stablehlo.cross-replica-sum",
              "stablehlo.reduce_scatter"},
             true)
      .Default(false);
}

bool isCollective(Operation *op) { return isCollectiveName(op->getName().getStringRef()); }

bool isManualComputation(Operation *op) { return op->getName().getStringRef() == "sdy.manual_computation"; }

bool hasCollective(Operation *op) {
  return op
      ->walk([](Operation *inner) {
        return isCollective(inner) ? WalkResult::interrupt() : WalkResult::advance();
      })
      .wasInterrupted();
}

/// farrier's own kernels are functions of their operands; of another's text nothing is known.
static bool isOwnKernel(stablehlo::CustomCallOp call) {
  auto config = dyn_cast_or_null<DictionaryAttr>(call.getBackendConfigAttr());
  auto name = config ? config.getAs<StringAttr>("name") : StringAttr();
  return call.getCallTargetName() == "__gpu$xla.gpu.triton" && name &&
         name.getValue().starts_with("farrier_grouped_");
}

/// Custom calls known to be functions of their operands.
static bool isPureCustomCall(stablehlo::CustomCallOp call) {
  if (call.getHasSideEffect().value_or(false))
    return false;
  if (isOwnKernel(call))
    return true;
  return llvm::StringSwitch<bool>(kernelOf(call))
      .Cases({"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}, true)
      // cuDNN's forward attention; its dropout variant draws its own random numbers.
      .Cases({"__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"}, true)
      .Cases({"mhlo.topk", "mhlo.erf", "mhlo.tan", "mhlo.asin", "mhlo.acos", "mhlo.sinh", "mhlo.cosh"}, true)
      .Default(false);
}

static bool isClonableAlone(Operation *op) {
  StringRef dialect = op->getName().getDialectNamespace(), name = op->getName().stripDialect();
  // A manual computation is what it holds (attention's forward on every device).
  if (dialect == "sdy")
    return name == "sharding_constraint" || name == "manual_computation" || name == "return";
  if (dialect == "chlo")
    return true;
  if (dialect == "func")
    return name == "return";
  if (dialect != "stablehlo" || !op->isRegistered() || isCollectiveName(op->getName().getStringRef()))
    return false;
  if (auto call = dyn_cast<stablehlo::CustomCallOp>(op))
    return isPureCustomCall(call);
  if (auto scatter = dyn_cast<stablehlo::ScatterOp>(op)) {
    // Overlapping updates of floating point numbers are added in an order that the hardware chooses.
    if (scatter.getUniqueIndices().value_or(false))
      return true;
    return llvm::all_of(scatter.getResultTypes(),
                        [](Type type) { return isa<IntegerType>(getElementTypeOrSelf(type)); });
  }
  return llvm::StringSwitch<bool>(name)
      .Cases({"rng", "infeed", "outfeed", "send", "recv", "create_token", "after_all"}, false)
      .Cases({"async_start", "async_done", "composite", "optimization_barrier", "select_and_scatter"}, false)
      .Cases({"tuple", "get_tuple_element"}, false)
      .Default(true);
}

bool isClonable(Operation *op) {
  return !op->walk([op](Operation *inner) {
              // Inside of what is cloned a barrier goes on holding what it held.
              if (inner != op && isa<stablehlo::OptimizationBarrierOp>(inner))
                return WalkResult::advance();
              return isClonableAlone(inner) ? WalkResult::advance() : WalkResult::interrupt();
            }).wasInterrupted();
}

ElementsAttr splatOf(Value value) {
  Operation *op = value.getDefiningOp();
  while (isa_and_nonnull<stablehlo::BroadcastInDimOp, stablehlo::ConvertOp>(op))
    op = op->getOperand(0).getDefiningOp();
  auto constant = dyn_cast_or_null<stablehlo::ConstantOp>(op);
  auto elements = constant ? dyn_cast<ElementsAttr>(constant.getValue()) : ElementsAttr();
  return elements && elements.isSplat() ? elements : ElementsAttr();
}

int64_t elementBits(Type type) {
  Type element = getElementTypeOrSelf(type);
  if (auto complex = dyn_cast<ComplexType>(element))
    return 2 * complex.getElementType().getIntOrFloatBitWidth();
  if (!element.isIntOrFloat())
    return 0;
  return element.isInteger(1) ? 8 : element.getIntOrFloatBitWidth();
}

int64_t byteSize(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  if (!tensor || !tensor.hasStaticShape())
    return 0;
  return (tensor.getNumElements() * elementBits(tensor) + 7) / 8;
}

} // namespace farrier
