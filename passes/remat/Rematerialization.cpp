#include "passes/remat/Rematerialization.h"

#include "passes/remat/Checkpoints.h"
#include "passes/remat/Loops.h"
#include "passes/remat/PlanApply.h"
#include "passes/remat/Planner.h"
#include "passes/remat/StraightLine.h"

#include "farrier/Analysis/ConstantCases.h"
#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/Kernels.h"
#include "farrier/Analysis/Measured.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/IR/Remarks.h"
#include "mlir/Pass/Pass.h"

#include <map>
#include <set>

using namespace mlir;

namespace farrier::remat {

#define GEN_PASS_DECL_REMATERIALIZATION
#define GEN_PASS_DEF_REMATERIALIZATION
#define GEN_PASS_DEF_NUMBEROPERATIONS
#include "passes/remat/Passes.h.inc"

namespace {

struct NumberOperations : impl::NumberOperationsBase<NumberOperations> {
  void runOnOperation() override {
    inlineCalls(getOperation());
    numberOperations(getOperation());
  }
};

struct Rematerialization : impl::RematerializationBase<Rematerialization>, CounterSet {
  Rematerialization() = default;
  explicit Rematerialization(RematerializationOptions options) : RematerializationBase(std::move(options)) {}
  Rematerialization(const Rematerialization &other) : RematerializationBase(other), CounterSet(other) {}

  void runOnOperation() override {
    ModuleOp module = getOperation();
    FailureOr<llvm::json::Value> plan = readOrMakePlan();
    if (failed(plan))
      return signalPassFailure();
    const llvm::json::Object *object = plan->getAsObject();
    if (!object) {
      module.emitError("the rematerialization plan is not a JSON object");
      return signalPassFailure();
    }
    const llvm::json::Array *blocks = object->getArray("blocks");
    const llvm::json::Array *loops = object->getArray("loops");
    bool gathers = object->getBoolean("gathers").value_or(false);
    if (blocks && blocks->empty() && (!loops || loops->empty()) && !gathers &&
        object->getInteger("version") == 1) {
      markAllAnalysesPreserved();
      return;
    }
    inlined += inlineCalls(module);
    const llvm::json::Object *shards = object->getObject("shards");
    if (shards && failed(setShards(module, *shards)))
      return signalPassFailure();
    if (const llvm::json::Object *kernels = object->getObject("kernels"))
      setKernels(module, *kernels);
    uint64_t copies = 0;
    if (failed(applyPlan(module, *object, copies)))
      return signalPassFailure();
    dropKernels(module);
    dropShards(module);
    cloned += copies;
  }

  Counter inlined{this, "inlined"};
  Counter cloned{this, "cloned"};

private:
  FailureOr<llvm::json::Value> readOrMakePlan() {
    ModuleOp module = getOperation();
    if (!plan.empty())
      return readJson(module, plan, "the plan");
    PlanOptions options;
    options.budget = budget;
    options.objective = objective;
    options.smallBytes = std::max<int64_t>(1, smallBytes);
    options.offload.allowed = offload;
    options.offload.leastBytes = options.smallBytes;
    if (stress >= 0)
      options.stress = static_cast<uint64_t>(stress);
    OwningOpRef<ModuleOp> copy(module.clone());
    inlineCalls(*copy);
    return makePlan(*copy, options);
  }
};

/// What queries look at: calls inlined, concatenations read through as XLA does and, given {"shards"} (Sharding.h),
/// {"kernels"} (Kernels.h) and {"measured"} (Measured.h), one device's part, what wrapped calls run and what a compile
/// showed known.
FailureOr<OwningOpRef<ModuleOp>> inlinedCopy(ModuleOp module, const llvm::json::Object &options,
                                             bool numbered = false) {
  OwningOpRef<ModuleOp> copy(module.clone());
  inlineCalls(*copy);
  if (const llvm::json::Object *shards = options.getObject("shards"))
    if (failed(setShards(*copy, *shards)))
      return failure();
  if (const llvm::json::Object *kernels = options.getObject("kernels"))
    setKernels(*copy, *kernels);
  if (const llvm::json::Object *measured = options.getObject("measured"))
    setMeasured(*copy, *measured);
  if (numbered)
    numberOperations(*copy);
  readThroughConcatenations(*copy);
  return copy;
}

/// remat.plan: {"budget", "machine", "objective", "keep", "keep_checkpoints", "offload",
/// "offload_only_asked", "on_device", "to_host", "small_bytes", "flat_bytes", "sparing", "stress", "shards", "kernels", "measured"}
/// -> a plan.
FailureOr<llvm::json::Value> planQuery(ModuleOp module, const llvm::json::Object &options) {
  FailureOr<OwningOpRef<ModuleOp>> copy = inlinedCopy(module, options);
  if (failed(copy))
    return failure();
  return makePlan(**copy, PlanOptions::fromJSON(options));
}

/// Predicted temporary bytes over the program, as columns: for each operation "bytes" while it runs and, for
/// those whose results are buffers, "name", the place of its name stack in "names" (-1 for the others), and
/// "number" (-1 for what runs others, and for what the estimate made itself).
/// "manual": the program is partitioned by hand, so sizes inside are a device's.
llvm::json::Object curve(Block &block, const SizeFn &size, Order order) {
  llvm::json::Array bytes, name, names, number;
  llvm::StringMap<int64_t> seen;
  bool manual = false;
  visitEstimate(
      block,
      [&](Operation *op, int64_t live, bool materialised) {
        bytes.push_back(live);
        number.push_back(runsBlocks(op) ? -1 : numberOf(op).value_or(-1));
        manual |= isManualComputation(op);
        std::string stack = materialised ? nameStack(op->getLoc()) : "";
        if (stack.empty())
          return name.push_back(-1);
        auto [entry, fresh] = seen.try_emplace(stack, seen.size());
        if (fresh)
          names.push_back(stack);
        name.push_back(entry->second);
      },
      size, order);
  return llvm::json::Object{{"bytes", std::move(bytes)},
                            {"name", std::move(name)},
                            {"names", std::move(names)},
                            {"number", std::move(number)},
                            {"manual", manual}};
}

/// The results of elementwise operations that are as big as a buffer that counts, as rows: [number of the operation,
/// name stack, source line, element type, elements, whether the estimate stores it, copies that products read].
llvm::json::Array elementwise(Block &block, const SizeFn &size, int64_t smallBytes) {
  llvm::json::Array rows;
  visitBuffers(
      block,
      [&](Value value, int64_t bytes, bool stored, unsigned copies) {
        Operation *op = value.getDefiningOp();
        auto type = dyn_cast<RankedTensorType>(value.getType());
        std::optional<int64_t> number = numberOf(op);
        if (bytes < smallBytes || !number || !type || classify(op) != OpClass::Virtual ||
            op->getNumResults() != 1)
          return;
        std::string element;
        llvm::raw_string_ostream(element) << type.getElementType();
        rows.push_back(llvm::json::Array{*number, nameStack(op->getLoc()), sourceLine(op->getLoc()), element,
                                         bytes * 8 / std::max<int64_t>(1, elementBits(type)), stored,
                                         copies});
      },
      size);
  return rows;
}

/// Bytes of the arguments and results of one run that share no memory: a donated argument takes the place of
/// the result that it names, else of one of its size.
int64_t fixedBytes(func::FuncOp function) {
  int64_t total = 0;
  std::map<int64_t, int64_t> donated; // of a size, how many
  std::set<int64_t> named;
  for (BlockArgument argument : function.getArguments()) {
    total += deviceSize(argument);
    if (auto result = function.getArgAttrOfType<IntegerAttr>(argument.getArgNumber(), "tf.aliasing_output"))
      named.insert(result.getInt());
    else if (function.getArgAttr(argument.getArgNumber(), "jax.buffer_donor"))
      ++donated[deviceSize(argument)];
  }
  for (OpOperand &result : function.getBody().front().getTerminator()->getOpOperands()) {
    if (named.count(result.getOperandNumber()))
      continue;
    int64_t size = deviceSize(result.get());
    if (auto it = donated.find(size); it != donated.end() && it->second > 0)
      --it->second;
    else
      total += size;
  }
  return total;
}

/// memory.estimate: {"top": n, "curve": bool, "elementwise": bool, "small_bytes", "shards", "kernels", "measured",
/// "plan", "planned": bool} -> {"temp": predicted temporary bytes of one run, with the plan applied if one is given, "fixed": bytes of
/// arguments and results, "live": the n biggest buffers at the peak, each with "key", "source", "bytes", and "curve" and
/// "elementwise" (of values from "small_bytes" on), if asked for}. Of a program as it is written it is by the order that XLA is
/// likely to take; what is "planned", "measured" or has a "plan" is estimated as the planner does, in program order.
FailureOr<llvm::json::Value> estimateQuery(ModuleOp module, const llvm::json::Object &options) {
  bool asksCurve = options.getBoolean("curve").value_or(false),
       asksElementwise = options.getBoolean("elementwise").value_or(false);
  FailureOr<OwningOpRef<ModuleOp>> copy = inlinedCopy(module, options, asksCurve || asksElementwise);
  if (failed(copy))
    return failure();
  if (const llvm::json::Object *plan = options.getObject("plan")) {
    uint64_t cloned = 0;
    if (failed(applyPlan(**copy, *plan, cloned)))
      return failure();
    inferShards(**copy);
  }
  auto top = static_cast<size_t>(std::max<int64_t>(0, options.getInteger("top").value_or(0)));
  int64_t peak = 0, fixed = 0;
  Block *largest = nullptr;
  Order order = Order::Joined;
  bool planned = options.getBoolean("planned").value_or(false) || options.getObject("plan") || options.getObject("measured");
  if (!planned)
    inlineConstantCases(**copy);
  SizeFn size = deviceMemory(**copy);
  llvm::json::Array live;
  for (auto function : (*copy)->getOps<func::FuncOp>()) {
    if (!function.isPublic() || !function.getBody().hasOneBlock())
      continue;
    fixed = std::max(fixed, fixedBytes(function));
    Block &block = function.getBody().front();
    Order likely = planned ? Order::Joined : MemoryEstimate::likelyOrder(block, size);
    MemoryEstimate estimate(block, size, likely);
    if (estimate.peak() <= peak)
      continue;
    peak = estimate.peak();
    largest = &block;
    order = likely;
    live.clear();
    if (top == 0)
      continue;
    ValueKeys keys(block);
    std::vector<unsigned> atPeak = estimate.liveAtPeak();
    atPeak.resize(std::min(top, atPeak.size()));
    for (unsigned value : atPeak) {
      Value root = estimate.getGraph().values[value];
      live.push_back(llvm::json::Object{{"key", keys.key(root).str()},
                                        {"source", sourceLine(root.getLoc())},
                                        {"bytes", estimate.getGraph().bytes[value]}});
    }
  }
  llvm::json::Object answer{{"temp", peak}, {"fixed", fixed}, {"live", std::move(live)}};
  if (largest && asksCurve)
    answer["curve"] = curve(*largest, size, order);
  if (largest && asksElementwise)
    answer["elementwise"] =
        elementwise(*largest, size, options.getInteger("small_bytes").value_or(defaultSmallBytes));
  return llvm::json::Value(std::move(answer));
}

/// cost.total: {"machine", "shards"} -> {"flops", "seconds"} of one run of the program, loops times their
/// trip counts.
FailureOr<llvm::json::Value> costQuery(ModuleOp module, const llvm::json::Object &options) {
  FailureOr<OwningOpRef<ModuleOp>> copy = inlinedCopy(module, options);
  if (failed(copy))
    return failure();
  OpCost cost = CostModel(**copy, Machine::fromJSON(options.getObject("machine"))).total();
  return llvm::json::Value(llvm::json::Object{{"flops", cost.flops}, {"seconds", cost.seconds}});
}

} // namespace

void registerPasses() {
  PassRegistration<Rematerialization>();
  PassRegistration<NumberOperations>();
  registerLoopsPass();
  registerCheckpointsPass();
  registerUncontracted();
  registerQuery("remat.plan", planQuery);
  registerQuery("memory.estimate", estimateQuery);
  registerQuery("cost.total", costQuery);
}

} // namespace farrier::remat
