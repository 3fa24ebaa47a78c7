#include "passes/remat/LoopPlanner.h"

#include "passes/remat/Loops.h"
#include "passes/remat/Planner.h"
#include "passes/remat/Remarks.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/ValueKey.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/StringSet.h"
#include "llvm/Support/FormatVariadic.h"

#include <algorithm>
#include <limits>
#include <random>

using namespace mlir;

namespace farrier::remat {

/// Tries to meet the budget with one pair before what is left is accepted.
static constexpr int maxTrials = 8;
/// What a budget may leave unused before another trial.
static constexpr double slack = 0.01;

static void ignoreMissed(Operation *, StringRef) {}

int64_t estimateModule(ModuleOp module) {
  inferShards(module); // of what the rewriting made
  int64_t peak = 0;
  SizeFn size = deviceMemory(module);
  for (auto function : module.getOps<func::FuncOp>())
    if (function.isPublic() && function.getBody().hasOneBlock())
      peak = std::max(peak, estimatePeak(function.getBody().front(), size));
  return peak;
}

static LoopOptions loopOptions(const PlanOptions &options) {
  LoopOptions result;
  result.forbid = forbidFrom(options.keep);
  result.replan = !options.keepCheckpoints;
  result.byFlops = options.objective == "flops";
  result.offload = options.offload;
  return result;
}

static double seconds(const LoopDecision &decision, int64_t trips) {
  double sum = 0;
  for (const LoopPart &part : decision)
    sum += part.choice.seconds * part.iterations / trips;
  return sum;
}

static double flops(const LoopDecision &decision, int64_t trips) {
  double sum = 0;
  for (const LoopPart &part : decision)
    sum += part.choice.flops * part.iterations / trips;
  return sum;
}

static int64_t hostBytes(const LoopDecision &decision, int64_t trips) {
  int64_t sum = 0;
  for (const LoopPart &part : decision)
    sum += part.choice.hostBytes / trips * part.iterations;
  return sum;
}

/// The cheapest of `frontier` that keeps the pair's stacks within `allowed` bytes of device memory, mixed
/// with its neighbour as far as that goes; or the fewest bytes.
static LoopDecision decide(const LoopPair &pair, const std::vector<Choice> &frontier, int64_t allowed) {
  const Problem &problem = pair.problem();
  if (frontier.empty())
    return {};
  auto fits = llvm::find_if(frontier, [&](const Choice &choice) { return choice.savedBytes <= allowed; });
  if (fits == frontier.end())
    return {{problem.instances, frontier.back()}};
  if (fits == frontier.begin())
    return {{problem.instances, *fits}};
  LoopDecision best{{problem.instances, *fits}};
  LoopDecision mixed{{problem.instances, problem.refine(*fits, *std::prev(fits), allowed)}};
  if (seconds(mixed, problem.instances) < seconds(best, problem.instances))
    best = std::move(mixed);
  LoopDecision split = pair.split(*fits, *std::prev(fits), allowed);
  // A split costs a second copy of both loops: only for a gain worth having.
  return seconds(split, problem.instances) < 0.98 * seconds(best, problem.instances) ? split : best;
}

/// Two streams: what is saved does not depend on what may wait in host memory.
static LoopDecision arbitrary(const LoopPair &pair, std::mt19937_64 &random, std::mt19937_64 &randomHost) {
  const Problem &problem = pair.problem();
  LoopDecision decision;
  int64_t left = problem.instances;
  while (left > 0) {
    int64_t count = decision.size() == 1 ? left : 1 + static_cast<int64_t>(random() % left);
    std::vector<bool> wanted, onHost;
    uint64_t keepOneIn = 1 + random() % 8;
    for (size_t c = 0; c < problem.candidates.size(); ++c) {
      wanted.push_back(random() % keepOneIn == 0);
      onHost.push_back(randomHost() % 2 == 0);
    }
    decision.push_back({count, problem.complete(wanted, onHost)});
    left -= count;
  }
  return decision;
}

static llvm::json::Object describe(const LoopPair &pair, const LoopDecision &decision) {
  llvm::json::Array parts;
  for (const LoopPart &part : decision) {
    llvm::json::Array save, offload;
    for (size_t c = 0; c < part.choice.saved.size(); ++c)
      if (part.choice.saved[c])
        (part.choice.onHost[c] ? offload : save).push_back(pair.problem().candidates[c].key);
    llvm::json::Object entry{{"iterations", part.iterations}, {"save", std::move(save)}};
    if (!offload.empty())
      entry["offload"] = std::move(offload);
    parts.push_back(std::move(entry));
  }
  return llvm::json::Object{{"key", pair.key().str()}, {"parts", std::move(parts)}};
}

/// The estimate of the program with `decision` applied to the pair of that key.
static std::optional<int64_t> trial(ModuleOp module, const PlanOptions &options, StringRef key,
                                    const LoopDecision &decision) {
  OwningOpRef<ModuleOp> copy(module.clone());
  CostModel costs(*copy, options.machine);
  for (auto &pair : findLoopPairs(*copy, costs, loopOptions(options), ignoreMissed))
    if (pair->key() == key)
      return succeeded(pair->apply(decision)) ? std::optional<int64_t>(estimateModule(*copy)) : std::nullopt;
  return std::nullopt;
}

namespace {
struct Found {
  LoopDecision decision;
  int64_t peak = 0;
};
} // namespace

/// The cheapest decision about one pair of loops that brings the estimate within the budget, or the one with
/// the smallest estimate: what stacks may take is corrected by what the rewritten program is estimated to
/// take.
static Found search(ModuleOp module, const PlanOptions &options, const LoopPair &pair, StringRef key,
                    const std::vector<Choice> &frontier, int64_t peak) {
  Found best;
  int64_t fits = -1, over = std::numeric_limits<int64_t>::max();
  int64_t allowed = std::max<int64_t>(0, pair.stackBytes() - (peak - options.budget));
  for (int attempt = 0; attempt < maxTrials; ++attempt) {
    LoopDecision next = decide(pair, frontier, allowed);
    if (next.empty())
      break;
    std::optional<int64_t> after = trial(module, options, key, next);
    if (!after)
      break;
    int64_t trips = pair.problem().instances, excess = *after - options.budget;
    bool better = best.decision.empty();
    if (!better && excess <= 0)
      better = best.peak > options.budget || seconds(next, trips) < seconds(best.decision, trips);
    else if (!better)
      better = best.peak > options.budget && *after < best.peak;
    if (better)
      best = {std::move(next), *after};
    if (excess > 0) {
      over = allowed;
      if (allowed == 0)
        break;
      allowed = std::max<int64_t>(0, allowed - excess);
      if (allowed <= fits)
        allowed = fits + (over - fits) / 2;
    } else {
      fits = allowed;
      if (-excess <= slack * options.budget || over == std::numeric_limits<int64_t>::max())
        break;
      allowed = fits + (over - fits) / 2;
    }
    if (over - fits <= slack * options.budget)
      break;
  }
  return best;
}

/// As `search`, over all that is allowed; what host memory does not make cheaper does without it.
static LoopDecision best(ModuleOp module, const PlanOptions &options, const LoopPair &pair, StringRef key,
                         int64_t peak) {
  int64_t trips = pair.problem().instances;
  std::vector<Choice> frontier = frontierWithHost(pair.problem());
  Found withHost = search(module, options, pair, key, frontier, peak);
  // Also where it sends nothing: what it could send can have led the search astray.
  if (llvm::none_of(frontier, [](const Choice &choice) { return choice.hostBytes > 0; }))
    return withHost.decision;
  Problem onDevice = pair.problem();
  for (Candidate &candidate : onDevice.candidates)
    if (!candidate.onlyHost)
      candidate.hostSeconds = -1;
  Found without = search(module, options, pair, key, frontierWithHost(onDevice), peak);
  if (without.decision.empty())
    return withHost.decision;
  bool fits = withHost.peak <= options.budget, fitsWithout = without.peak <= options.budget;
  if (fits != fitsWithout)
    return fits ? withHost.decision : without.decision;
  bool keep = fits ? seconds(withHost.decision, trips) < seconds(without.decision, trips)
                   : withHost.peak < without.peak;
  return keep ? withHost.decision : without.decision;
}

FailureOr<LoopPlan> planLoops(ModuleOp module, CostModel &costs, const PlanOptions &options) {
  LoopPlan plan;
  std::mt19937_64 random(options.stress.value_or(0)), randomHost(options.stress.value_or(0) + 1);
  llvm::StringSet<> done;
  int64_t peak = estimateModule(module);
  while (options.stress || peak > options.budget) {
    // Applying makes the other pairs stale, so they are looked up again. The biggest stacks first.
    auto pairs = findLoopPairs(module, costs, loopOptions(options), ignoreMissed);
    LoopPair *biggest = nullptr;
    for (auto &pair : pairs)
      if (!done.contains(pair->key()) && (!biggest || pair->stackBytes() > biggest->stackBytes()))
        biggest = pair.get();
    if (!biggest)
      break;
    std::string key = biggest->key().str();
    done.insert(key);
    LoopDecision decision =
        options.stress ? arbitrary(*biggest, random, randomHost) : best(module, options, *biggest, key, peak);
    if (decision.empty())
      continue;
    int64_t trips = biggest->problem().instances;
    llvm::json::Object entry = describe(*biggest, decision);
    double addedSeconds = seconds(decision, trips), addedFlops = flops(decision, trips);
    int64_t addedHostBytes = hostBytes(decision, trips);
    if (failed(biggest->apply(decision)))
      continue;
    plan.loops.push_back(std::move(entry));
    plan.seconds += addedSeconds;
    plan.flops += addedFlops;
    plan.hostBytes += addedHostBytes;
    peak = estimateModule(module);
  }
  return plan;
}

static LogicalResult stale(ModuleOp module, const llvm::Twine &what) {
  return module.emitError() << "the rematerialization plan is stale: " << what.str();
}

LogicalResult applyLoops(ModuleOp module, CostModel &costs, const llvm::json::Array &plan,
                         bool keepCheckpoints, DecisionRemarks &remarks) {
  LoopOptions options;
  options.replan = !keepCheckpoints;
  for (const llvm::json::Value &value : plan) {
    const llvm::json::Object *entry = value.getAsObject();
    std::optional<StringRef> key = entry ? entry->getString("key") : std::nullopt;
    const llvm::json::Array *parts = entry ? entry->getArray("parts") : nullptr;
    if (!key || !parts)
      return stale(module, "a pair of loops without key or parts");
    auto pairs = findLoopPairs(module, costs, options, ignoreMissed);
    auto found = llvm::find_if(pairs, [&](const auto &pair) { return pair->key() == *key; });
    if (found == pairs.end())
      return stale(module, "the program has no pair of loops '" + *key + "'");
    const Problem &problem = (*found)->problem();
    llvm::StringMap<unsigned> index;
    for (size_t c = 0; c < problem.candidates.size(); ++c)
      index[problem.candidates[c].key] = c;
    LoopDecision decision;
    int64_t first = 0;
    for (const llvm::json::Value &part : *parts) {
      const llvm::json::Object *object = part.getAsObject();
      const llvm::json::Array *save = object ? object->getArray("save") : nullptr;
      std::optional<int64_t> iterations = object ? object->getInteger("iterations") : std::nullopt;
      if (!save || !iterations)
        return stale(module, "a part of '" + *key + "' without iterations or values");
      std::vector<bool> wanted(problem.candidates.size(), false), onHost(wanted);
      auto read = [&](const llvm::json::Array &names, std::vector<bool> &flags) -> LogicalResult {
        for (const llvm::json::Value &name : names) {
          auto it = index.find(name.getAsString().value_or(""));
          if (it == index.end())
            return stale(module, "loop '" + *key + "' saves a value that the program does not have: '" +
                                     name.getAsString().value_or("?") + "'");
          wanted[it->second] = flags[it->second] = true;
        }
        return success();
      };
      const llvm::json::Array *offload = object->getArray("offload");
      if (failed(read(*save, wanted)) || (offload && failed(read(*offload, onHost))))
        return failure();
      decision.push_back({*iterations, problem.complete(wanted, onHost)});
      remarks.add(problem, decision.back().choice, *iterations,
                  llvm::formatv("iterations {0} to {1}", first, first + *iterations - 1).str());
      first += *iterations;
    }
    if (failed((*found)->apply(decision)))
      return stale(module, "the decision for loop '" + *key + "' does not fit it");
  }
  return success();
}

llvm::DenseSet<Operation *> pairedLoops(ModuleOp module, CostModel &costs) {
  llvm::DenseSet<Operation *> loops;
  for (auto &pair : findLoopPairs(module, costs, LoopOptions(), ignoreMissed)) {
    loops.insert(pair->forward());
    loops.insert(pair->backward());
  }
  return loops;
}

} // namespace farrier::remat
