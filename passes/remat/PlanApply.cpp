#include "passes/remat/PlanApply.h"

#include "passes/remat/Gathers.h"
#include "passes/remat/Gradients.h"
#include "passes/remat/LoopPlanner.h"
#include "passes/remat/Loops.h"
#include "passes/remat/OffloadStraight.h"
#include "passes/remat/Planner.h"
#include "passes/remat/Remarks.h"
#include "passes/remat/StraightLine.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/Support/MemoryBuffer.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;

namespace farrier::remat {

std::vector<NamedBlock> plannableBlocks(ModuleOp module) {
  std::vector<NamedBlock> result;
  std::function<void(Block &, std::string)> visit = [&](Block &block, std::string path) {
    result.push_back({path, &block});
    llvm::StringMap<unsigned> seen;
    for (Operation &op : block) {
      bool loop = isa<stablehlo::WhileOp>(op);
      if (!loop && (!isManualComputation(&op) || op.getNumRegions() == 0))
        continue;
      std::string name = path + "/" + op.getName().getStringRef().str() + ":" +
                         std::to_string(seen[op.getName().getStringRef()]++);
      Region &region = op.getRegion(loop ? 1 : 0);
      if (region.hasOneBlock())
        visit(region.front(), name);
    }
  };
  for (auto function : module.getOps<func::FuncOp>())
    if (function.isPublic() && function.getBody().hasOneBlock())
      visit(function.getBody().front(), function.getSymName().str());
  return result;
}

namespace {

/// Reads a plan's names back; the first that the block does not have is an error.
class PlanReader {
public:
  PlanReader(const StraightLine &unit, StringRef path) : unit(unit), path(path) {}

  /// Id of the value of that name.
  FailureOr<unsigned> value(const llvm::json::Value *name) {
    std::optional<StringRef> key = name ? name->getAsString() : std::nullopt;
    if (!key)
      return error("names no value");
    Value found = unit.getKeys().lookup(*key);
    if (!found)
      return error("names a value that the program does not have: '" + *key + "'");
    return unit.getGraph().id(found);
  }
  /// The operation after the one that defines the value.
  FailureOr<unsigned> after(const llvm::json::Value *name) {
    FailureOr<unsigned> id = value(name);
    if (failed(id))
      return failure();
    return static_cast<unsigned>(unit.getGraph().definition[*id] + 1);
  }
  LogicalResult error(const llvm::Twine &what) {
    return emitError(unit.getGraph().block.getParentOp()->getLoc())
           << "the rematerialization plan is stale: block '" << path << "' " << what.str();
  }

private:
  const StraightLine &unit;
  StringRef path;
};

LogicalResult applyBlock(StraightLine &unit, const llvm::json::Object &plan, StringRef path, CostModel &costs,
                         int64_t smallBytes, DecisionRemarks &remarks, uint64_t &cloned) {
  PlanReader read(unit, path);
  FailureOr<unsigned> boundary = read.after(plan.get("boundary"));
  if (failed(boundary))
    return failure();
  if (*boundary == 0)
    return read.error("has an argument for its boundary");
  unit.setBoundary(*boundary - 1);
  std::vector<unsigned> cuts;
  const llvm::json::Array *cutNames = plan.getArray("cuts"), *segments = plan.getArray("segments");
  if (!cutNames || !segments || segments->size() != cutNames->size() + 1)
    return read.error("needs one segment more than cuts");
  for (const llvm::json::Value &name : *cutNames) {
    FailureOr<unsigned> cut = read.after(&name);
    if (failed(cut))
      return failure();
    if (*cut >= *boundary || (!cuts.empty() && *cut <= cuts.back()))
      return read.error("cuts out of order");
    cuts.push_back(*cut);
  }
  Segmentation segmentation = unit.segmentAt(std::move(cuts));
  std::vector<double> before = computeBefore(unit, costs);
  // What the plan says was allowed when it was made.
  offerSegments(unit, segmentation, before, costs.getMachine(), OffloadRules());
  std::vector<Choice> owned(segments->size());
  std::vector<const Choice *> choices;
  for (size_t i = 0; i < segments->size(); ++i) {
    const llvm::json::Object *entry = (*segments)[i].getAsObject();
    const llvm::json::Array *names = entry ? entry->getArray("recompute") : nullptr;
    if (!names) {
      remarks.addUntouched(segmentation.segments[i].problem);
      choices.push_back(nullptr);
      continue;
    }
    const Problem &problem = segmentation.segments[i].problem;
    llvm::StringMap<unsigned> index;
    for (size_t c = 0; c < problem.candidates.size(); ++c)
      index[problem.candidates[c].key] = c;
    std::vector<bool> wanted(problem.candidates.size(), true), onHost(problem.candidates.size(), false);
    for (const llvm::json::Value &name : *names) {
      std::optional<StringRef> key = name.getAsString();
      auto it = key ? index.find(*key) : index.end();
      if (it == index.end())
        return read.error("recomputes a value that is not a residual here: '" + key.value_or("?") + "'");
      wanted[it->second] = false;
    }
    if (const llvm::json::Array *offload = entry->getArray("offload"))
      for (const llvm::json::Value &name : *offload) {
        std::optional<StringRef> key = name.getAsString();
        auto it = key ? index.find(*key) : index.end();
        if (it == index.end())
          return read.error("sends a value to the host that is not a residual here: '" + key.value_or("?") +
                            "'");
        onHost[it->second] = true;
      }
    owned[i] = problem.complete(wanted, onHost);
    choices.push_back(&owned[i]);
    remarks.add(problem, owned[i]);
  }
  cloned += unit.apply(segmentation, choices);
  moveSegments(unit, segmentation, choices, before, costs.getMachine(), smallBytes);
  return success();
}

} // namespace

LogicalResult rewriteAsPlanned(ModuleOp module, const llvm::json::Object &plan, uint64_t &cloned,
                               DecisionRemarks &remarks) {
  if (plan.getInteger("version").value_or(0) != 1)
    return module.emitError("the rematerialization plan has a version that this build does not know");
  const llvm::json::Array *blocks = plan.getArray("blocks");
  if (!blocks)
    return module.emitError("the rematerialization plan has no blocks");
  readThroughConcatenations(module); // as the planner saw it
  if (plan.getBoolean("gathers").value_or(false))
    gatherLate(module);
  CostModel costs(module, Machine::fromJSON(plan.getObject("machine")));
  LoopOptions options;
  options.replan = !plan.getBoolean("keep_checkpoints").value_or(false);
  options.flatBytes = plan.getInteger("flat_bytes").value_or(0);
  if (const llvm::json::Array *loops = plan.getArray("loops"))
    if (failed(applyLoops(module, costs, *loops, options, remarks)))
      return failure();
  SizeFn size = deviceMemory(module);
  // All blocks are looked up before any is rewritten: rewriting adds operations, not paths.
  llvm::StringMap<Block *> byPath;
  for (const NamedBlock &named : plannableBlocks(module))
    byPath[named.path] = named.block;
  for (const llvm::json::Value &entry : *blocks) {
    const llvm::json::Object *object = entry.getAsObject();
    StringRef path = object ? object->getString("path").value_or("") : "";
    Block *block = byPath.lookup(path);
    if (!block)
      return module.emitError() << "the rematerialization plan is stale: the program has no block '" << path
                                << "'";
    int64_t smallBytes = plan.getInteger("small_bytes").value_or(defaultSmallBytes);
    StraightLine unit(*block, costs, smallBytes, size);
    if (failed(applyBlock(unit, *object, path, costs, smallBytes, remarks, cloned)))
      return failure();
  }
  return success();
}

LogicalResult applyPlan(ModuleOp module, const llvm::json::Object &plan, uint64_t &cloned) {
  DecisionRemarks remarks;
  if (failed(rewriteAsPlanned(module, plan, cloned, remarks)))
    return failure();
  finishBeforePeak(module, plan.getInteger("small_bytes").value_or(defaultSmallBytes));
  remarks.emit();
  return success();
}

FailureOr<llvm::json::Value> readJson(ModuleOp module, StringRef path, StringRef what) {
  llvm::ErrorOr<std::unique_ptr<llvm::MemoryBuffer>> file = llvm::MemoryBuffer::getFile(path);
  if (!file)
    return module.emitError() << "cannot read " << what << " '" << path << "': " << file.getError().message();
  llvm::Expected<llvm::json::Value> value = llvm::json::parse((*file)->getBuffer());
  if (!value)
    return module.emitError() << what << " '" << path << "' is not JSON: " << llvm::toString(value.takeError());
  return std::move(*value);
}

} // namespace farrier::remat
