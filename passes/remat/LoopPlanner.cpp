#include "passes/remat/LoopPlanner.h"

#include "passes/remat/Gradients.h"
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
/// Pairs that are decided together, at most: each trial looks all of them up for each of them.
static constexpr size_t mostTogether = 16;
/// What a budget may leave unused before another trial.
static constexpr double slack = 0.01;

static void ignoreMissed(Operation *, StringRef) {}

int64_t estimateModule(ModuleOp module) {
  inferShards(module); // of what the rewriting made
  int64_t peak = 0;
  SizeFn size = deviceMemory(module);
  for (auto function : module.getOps<func::FuncOp>())
    if (function.isPublic() && function.getBody().hasOneBlock())
      peak = std::max(peak, estimatePeak(function.getBody().front(), size, Order::Joined));
  return peak;
}

LoopOptions loopOptions(const PlanOptions &options) {
  LoopOptions result;
  result.forbid = forbidFrom(options.keep);
  result.replan = !options.keepCheckpoints;
  result.flatBytes = options.flatBytes;
  result.byFlops = options.objective == "flops";
  result.offload = options.offload;
  return result;
}

/// Seconds, or the price by FLOPs, of the decision more than of the pair as it stands: what it keeps is written, zeroed
/// and read, too.
static double addedSeconds(const LoopPair &pair, const LoopDecision &decision) {
  return seconds(decision, pair.problem().instances) - pair.current().seconds;
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

llvm::json::Object described(const LoopPair &pair, const LoopDecision &decision) {
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

/// Decisions about pairs of loops, by key, in the order in which they are applied.
using LoopDecisions = std::vector<std::pair<std::string, LoopDecision>>;

/// Rewrites the pairs of these keys, none of which is inside of another one.
static LogicalResult applyAll(ModuleOp module, const PlanOptions &options, const LoopDecisions &decisions) {
  CostModel costs(module, options.machine);
  auto pairs = findLoopPairs(module, costs, loopOptions(options), ignoreMissed);
  for (const auto &[key, decision] : decisions) {
    auto found = llvm::find_if(pairs, [&](const auto &pair) { return pair->key() == key; });
    if (found == pairs.end() || failed((*found)->apply(decision)))
      return failure();
  }
  return success();
}

/// What `next` comes to, tried with ever other bytes for stacks, which take `stacks` as they stand and raise the estimate
/// to `peak`: less or more, to where the estimate is just within the budget. `next` gives the estimated peak of what it
/// does with so many bytes, or nothing where there is nothing to do.
static void approach(int64_t budget, int64_t stacks, int64_t peak,
                     llvm::function_ref<std::optional<int64_t>(int64_t)> next) {
  int64_t allowed = std::max<int64_t>(0, stacks - (peak - budget));
  int64_t fits = -1, over = std::numeric_limits<int64_t>::max();
  for (int attempt = 0; attempt < maxTrials; ++attempt) {
    std::optional<int64_t> after = next(allowed);
    if (!after)
      break;
    int64_t excess = *after - budget;
    if (excess > 0) {
      over = allowed;
      if (allowed == 0)
        break;
      allowed = std::max<int64_t>(0, allowed - excess);
      if (allowed <= fits)
        allowed = fits + (over - fits) / 2;
    } else {
      fits = allowed;
      if (-excess <= slack * budget || allowed >= stacks)
        break;
      // Giving up a stack can free more than its bytes: what bodies hold with it, or copies of it.
      allowed = over == std::numeric_limits<int64_t>::max() ? std::min(stacks, allowed - excess)
                                                            : fits + (over - fits) / 2;
    }
    if (over - fits <= slack * budget)
      break;
  }
}

/// Whether a way to a peak is better than another one: the cheaper of two within the budget, else the lower peak.
static bool isBetter(int64_t budget, int64_t peak, double seconds, int64_t otherPeak, double otherSeconds) {
  if (peak <= budget)
    return otherPeak > budget || seconds < otherSeconds;
  return peak < otherPeak;
}

/// The problem where nothing waits in host memory but what was asked to.
static Problem withoutHost(Problem problem) {
  for (Candidate &candidate : problem.candidates)
    if (!candidate.onlyHost)
      candidate.hostSeconds = -1;
  return problem;
}

/// The problem where what is on its way to the host takes no memory: slices are while a loop runs, and not where the most is
/// in memory, if that is between the loops.
static Problem withoutTransit(Problem problem) {
  for (Candidate &candidate : problem.candidates)
    candidate.hostBytes = 0;
  return problem;
}

/// What tells decisions about pairs of loops apart.
static std::string textOf(const LoopDecisions &decisions) {
  std::string text;
  llvm::raw_string_ostream out(text);
  for (const auto &[key, decision] : decisions) {
    out << key << '\n';
    for (const LoopPart &part : decision) {
      out << part.iterations << ' ';
      for (auto [saved, onHost] : llvm::zip(part.choice.saved, part.choice.onHost))
        out << (onHost ? 'h' : saved ? 's' : '-');
      out << '\n';
    }
  }
  return text;
}

namespace {
struct Found {
  LoopDecision decision;
  int64_t peak = 0;
};

/// The loops of one module while they are planned, and rewritten, within one budget.
class Loops {
public:
  Loops(ModuleOp module, const PlanOptions &options, LoopMemo &memo) : module(module), options(options), memo(memo) {
    auto [entry, fresh] = memo.peaks.try_emplace(before);
    if (fresh)
      entry->second = estimateModule(module);
    plan.peak = *entry->second;
  }

  /// Decides about pair after pair, the biggest stacks first, until the estimate is within the budget. Pairs inside of
  /// others appear when those are rewritten.
  void planOneByOne();
  /// Decides about all pairs at once, unless there is nothing to share out. Not about pairs inside of these.
  void planTogether();
  /// Lets stacks hold the elements of their values in a row, and be otherwise what they are.
  void holdInRows();

  LoopPlan plan;

private:
  std::vector<std::unique_ptr<LoopPair>> pairs() {
    return findLoopPairs(module, costs, loopOptions(options), ignoreMissed);
  }
  /// The estimate of the program with these decisions, too; nothing where one does not apply.
  std::optional<int64_t> trial(const LoopDecisions &decisions);
  /// All that may be saved of a pair, by its problem or by one of which `kind` tells what is other in it.
  LoopFrontier &frontier(const LoopPair &pair, char kind, Problem (*other)(Problem) = nullptr);
  /// The cheapest decision about one pair of loops that brings the estimate within the budget, or the one with the
  /// smallest estimate: what stacks may take is corrected by what the rewritten program is estimated to take.
  Found search(const LoopPair &pair, LoopFrontier &frontier);
  /// As `search`, over all that is allowed; what host memory does not make cheaper does without it.
  LoopDecision best(const LoopPair &pair);
  /// Adds a decision about a pair, which stands as before it, to a plan.
  void add(LoopPlan &to, const LoopPair &pair, const LoopDecision &decision) const;
  /// The program has been rewritten as planned, by these decisions last.
  void applied(LoopPlan next, const LoopDecisions &decisions);

  ModuleOp module;
  const PlanOptions &options;
  LoopMemo &memo;
  CostModel costs{module, options.machine};
  std::string before; ///< the decisions by which the module was rewritten
  llvm::StringSet<> done;
};
} // namespace

std::optional<int64_t> Loops::trial(const LoopDecisions &decisions) {
  auto [entry, fresh] = memo.peaks.try_emplace(before + textOf(decisions));
  if (fresh) {
    OwningOpRef<ModuleOp> copy(module.clone());
    if (succeeded(applyAll(*copy, options, decisions)))
      entry->second = estimatePlanned(*copy, options.smallBytes);
  }
  return entry->second;
}

LoopFrontier &Loops::frontier(const LoopPair &pair, char kind, Problem (*other)(Problem)) {
  std::unique_ptr<LoopFrontier> &found =
      memo.frontiers[before + pair.key().str() + '\n' + kind + options.objective];
  if (!found)
    found = std::make_unique<LoopFrontier>(pair.problem(),
                                           frontierWithHost(other ? other(pair.problem()) : pair.problem()));
  return *found;
}

Found Loops::search(const LoopPair &pair, LoopFrontier &frontier) {
  Found best;
  int64_t trips = pair.problem().instances;
  approach(options.budget, pair.stackBytes(), plan.peak, [&](int64_t allowed) -> std::optional<int64_t> {
    LoopDecision next = frontier.decide(allowed);
    if (next.empty())
      return std::nullopt;
    std::optional<int64_t> after = trial({{pair.key().str(), next}});
    if (after && (best.decision.empty() || isBetter(options.budget, *after, seconds(next, trips), best.peak,
                                                    seconds(best.decision, trips))))
      best = {std::move(next), *after};
    return after;
  });
  return best;
}

LoopDecision Loops::best(const LoopPair &pair) {
  int64_t trips = pair.problem().instances;
  LoopFrontier &all = frontier(pair, 'a');
  Found found = search(pair, all);
  if (!all.sends())
    return found.decision;
  auto consider = [&](LoopFrontier &frontier) {
    Found other = search(pair, frontier);
    if (!other.decision.empty() &&
        (found.decision.empty() || isBetter(options.budget, other.peak, seconds(other.decision, trips), found.peak,
                                            seconds(found.decision, trips))))
      found = std::move(other);
  };
  consider(frontier(pair, 't', withoutTransit));
  // Also where it sends nothing: what it could send can have led the search astray.
  consider(frontier(pair, 'w', withoutHost));
  return found.decision;
}

void Loops::add(LoopPlan &to, const LoopPair &pair, const LoopDecision &decision) const {
  int64_t trips = pair.problem().instances;
  to.loops.push_back(described(pair, decision));
  double added = addedSeconds(pair, decision);
  bool byFlops = loopOptions(options).byFlops;
  to.seconds += byFlops ? secondsOfPrice(added, flops(decision, trips) - pair.current().flops) : added;
  to.flops += flops(decision, trips);
  to.hostBytes += hostBytes(decision, trips);
}

void Loops::applied(LoopPlan next, const LoopDecisions &decisions) {
  plan = std::move(next);
  before += textOf(decisions);
  // What is to be planned on gets the shards of what is new.
  inferShards(module);
  auto [entry, fresh] = memo.peaks.try_emplace(before);
  if (fresh || !entry->second) {
    OwningOpRef<ModuleOp> copy(module.clone());
    entry->second = estimatePlanned(*copy, options.smallBytes);
  }
  plan.peak = *entry->second;
}

void Loops::planOneByOne() {
  std::mt19937_64 random(options.stress.value_or(0)), randomHost(options.stress.value_or(0) + 1);
  while (options.stress || plan.peak > options.budget) {
    auto found = pairs();
    LoopPair *biggest = nullptr;
    for (auto &pair : found)
      if (!done.contains(pair->key()) && (!biggest || pair->stackBytes() > biggest->stackBytes()))
        biggest = pair.get();
    if (!biggest)
      break;
    std::string key = biggest->key().str();
    done.insert(key);
    LoopDecision decision = options.stress ? arbitrary(*biggest, random, randomHost) : best(*biggest);
    if (decision.empty())
      continue;
    LoopPlan with = plan;
    add(with, *biggest, decision);
    if (failed(biggest->apply(decision)))
      continue;
    applied(std::move(with), {{key, std::move(decision)}});
  }
}

namespace {
/// Several pairs of loops under one budget: bytes are taken where a byte costs least.
class Together {
public:
  Together(llvm::ArrayRef<std::unique_ptr<LoopPair>> pairs, std::vector<LoopFrontier *> frontiers)
      : pairs(pairs), frontiers(std::move(frontiers)) {}

  /// Whether a choice sends something.
  bool sends() const {
    return llvm::any_of(frontiers, [](const LoopFrontier *frontier) { return frontier->sends(); });
  }

  /// Decisions by which all stacks together take at most `allowed` bytes, as far as they can; empty for a pair that
  /// stays as it is.
  std::vector<LoopDecision> decideAll(int64_t allowed) const {
    // How far along its frontier each pair is: -1 as it stands.
    std::vector<int> at(pairs.size(), -1);
    int64_t sum = 0;
    for (const auto &pair : pairs)
      sum += pair->stackBytes();
    int last = -1;
    while (sum > allowed) {
      std::optional<double> least;
      last = -1;
      for (size_t i = 0; i < pairs.size(); ++i) {
        auto [bytes, seconds] = stands(i, at[i]);
        // From where it stands the first choice of fewer bytes counts, further ones as they follow.
        int next = nextOf(i, at[i]);
        if (next < 0)
          continue;
        const Choice &choice = choices(i)[next];
        double price = (choice.seconds - seconds) / (bytes - choice.savedBytes);
        if (!least || price < *least) {
          least = price;
          last = static_cast<int>(i);
        }
      }
      if (last < 0)
        break;
      int next = nextOf(last, at[last]);
      sum -= stands(last, at[last]).first - choices(last)[next].savedBytes;
      at[last] = next;
    }
    std::vector<LoopDecision> decisions(pairs.size());
    for (size_t i = 0; i < pairs.size(); ++i)
      if (at[i] >= 0)
        decisions[i] = {{pairs[i]->problem().instances, choices(i)[at[i]]}};
    // The last step was more than it had to be.
    if (last >= 0 && sum < allowed)
      decisions[last] = frontiers[last]->decide(allowed - sum + choices(last)[at[last]].savedBytes);
    return decisions;
  }

private:
  const std::vector<Choice> &choices(size_t pair) const { return frontiers[pair]->getChoices(); }
  std::pair<int64_t, double> stands(size_t pair, int at) const {
    if (at < 0)
      return {pairs[pair]->stackBytes(), pairs[pair]->current().seconds};
    return {choices(pair)[at].savedBytes, choices(pair)[at].seconds};
  }
  int nextOf(size_t pair, int at) const {
    int64_t bytes = stands(pair, at).first;
    for (size_t next = at + 1; next < choices(pair).size(); ++next)
      if (choices(pair)[next].savedBytes < bytes)
        return static_cast<int>(next);
    return -1;
  }

  llvm::ArrayRef<std::unique_ptr<LoopPair>> pairs;
  std::vector<LoopFrontier *> frontiers;
};
} // namespace

void Loops::planTogether() {
  auto pairs = this->pairs();
  if (pairs.size() < 2 || pairs.size() > mostTogether)
    return;
  // From the last on: what a pair is called depends on those before it.
  auto named = [&](const std::vector<LoopDecision> &decisions) {
    LoopDecisions result;
    for (size_t i = decisions.size(); i-- > 0;)
      if (!decisions[i].empty())
        result.push_back({pairs[i]->key().str(), decisions[i]});
    return result;
  };
  auto cost = [&](const std::vector<LoopDecision> &decisions) {
    double sum = 0;
    for (size_t i = 0; i < decisions.size(); ++i)
      sum += decisions[i].empty() ? 0 : addedSeconds(*pairs[i], decisions[i]);
    return sum;
  };
  int64_t stacks = 0;
  for (const auto &pair : pairs)
    stacks += pair->stackBytes();
  std::vector<LoopDecision> best;
  int64_t bestPeak = plan.peak;
  for (bool host : {true, false}) {
    std::vector<LoopFrontier *> frontiers;
    for (const auto &pair : pairs)
      frontiers.push_back(host ? &frontier(*pair, 'a') : &frontier(*pair, 'w', withoutHost));
    Together together(pairs, std::move(frontiers));
    approach(options.budget, stacks, plan.peak,
             [&](int64_t allowed) -> std::optional<int64_t> {
               std::vector<LoopDecision> next = together.decideAll(allowed);
               std::optional<int64_t> after = trial(named(next));
               if (after && (best.empty() || isBetter(options.budget, *after, cost(next), bestPeak, cost(best)))) {
                 best = std::move(next);
                 bestPeak = *after;
               }
               return after;
             });
    if (!together.sends())
      break;
  }
  if (best.empty())
    return;
  // Stacks that are not there at the peak were given up for nothing: the dearest first.
  std::vector<size_t> order;
  for (size_t i = 0; i < best.size(); ++i)
    if (!best[i].empty() && addedSeconds(*pairs[i], best[i]) > 0)
      order.push_back(i);
  llvm::stable_sort(order, [&](size_t a, size_t b) {
    return addedSeconds(*pairs[a], best[a]) > addedSeconds(*pairs[b], best[b]);
  });
  for (size_t i : order) {
    std::vector<LoopDecision> without = best;
    without[i].clear();
    std::optional<int64_t> after = trial(named(without));
    if (after && *after <= std::max(options.budget, bestPeak)) {
      best = std::move(without);
      bestPeak = *after;
    }
  }
  LoopPlan with = plan;
  for (size_t i = best.size(); i-- > 0;)
    if (!best[i].empty())
      add(with, *pairs[i], best[i]);
  LoopDecisions decisions = named(best);
  if (failed(applyAll(module, options, decisions)))
    return;
  for (const auto &pair : pairs)
    done.insert(pair->key());
  applied(std::move(with), decisions);
}

bool severalPairs(ModuleOp module, const PlanOptions &options) {
  CostModel costs(module, options.machine);
  size_t count = findLoopPairs(module, costs, loopOptions(options), ignoreMissed).size();
  return count > 1 && count <= mostTogether;
}

void Loops::holdInRows() {
  LoopPlan with = plan;
  LoopDecisions decisions;
  auto found = pairs();
  for (const auto &pair : llvm::reverse(found)) {
    if (pair->stackBytes() < options.flatBytes)
      continue;
    decisions.push_back({pair->key().str(), {{pair->problem().instances, pair->current()}}});
    with.loops.push_back(described(*pair, decisions.back().second));
  }
  if (!decisions.empty() && succeeded(applyAll(module, options, decisions)))
    applied(std::move(with), decisions);
}

LoopPlan planLoops(ModuleOp module, const PlanOptions &options, bool together, LoopMemo &memo) {
  Loops loops(module, options, memo);
  if (!options.stress && loops.plan.peak <= options.budget) {
    // Rows are asked for where XLA needs more than is estimated.
    if (options.flatBytes > 0)
      loops.holdInRows();
    return std::move(loops.plan);
  }
  if (together)
    loops.planTogether();
  loops.planOneByOne();
  return std::move(loops.plan);
}

static LogicalResult stale(ModuleOp module, const llvm::Twine &what) {
  return module.emitError() << "the rematerialization plan is stale: " << what.str();
}

LogicalResult applyLoops(ModuleOp module, CostModel &costs, const llvm::json::Array &plan,
                         const LoopOptions &options, DecisionRemarks &remarks) {
  for (const llvm::json::Value &value : plan) {
    const llvm::json::Object *entry = value.getAsObject();
    std::optional<StringRef> key = entry ? entry->getString("key") : std::nullopt;
    const llvm::json::Array *parts = entry ? entry->getArray("parts") : nullptr;
    if (!key || !parts)
      return stale(module, "a pair of loops without key or parts");
    std::optional<StringRef> within = entry->getString("within");
    auto pairs = findLoopPairs(module, costs, options, ignoreMissed);
    auto named = [](auto &among, StringRef name) {
      return llvm::find_if(among, [&](const auto &pair) { return pair->key() == name; });
    };
    auto found = named(pairs, within.value_or(*key));
    std::vector<std::unique_ptr<LoopPair>> inner;
    if (within && found != pairs.end()) {
      inner = (*found)->inner(costs);
      found = named(inner, *key);
    }
    if (found == (within ? inner.end() : pairs.end()))
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
    if (within ? decision.size() != 1 ||
                     !applyInner(module, costs, options, *within, **found, decision.front().choice)
               : failed((*found)->apply(decision)))
      return stale(module, "the decision for loop '" + *key + "' does not fit it");
  }
  return success();
}

} // namespace farrier::remat
