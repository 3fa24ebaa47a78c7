#include "passes/remat/Planner.h"

#include "passes/remat/BlockUnits.h"
#include "passes/remat/Gathers.h"
#include "passes/remat/Gradients.h"
#include "passes/remat/LoopPlanner.h"
#include "passes/remat/Loops.h"
#include "passes/remat/OffloadStraight.h"
#include "passes/remat/PlanApply.h"
#include "passes/remat/Remarks.h"
#include "passes/remat/SegmentSearch.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/FormatVariadic.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <random>

using namespace mlir;

namespace farrier::remat {

PlanOptions PlanOptions::fromJSON(const llvm::json::Object &object) {
  PlanOptions options;
  options.budget = object.getInteger("budget").value_or(0);
  if (const llvm::json::Object *machine = object.getObject("machine"))
    options.machineFigures = *machine;
  options.machine = Machine::fromJSON(&options.machineFigures);
  if (std::optional<StringRef> objective = object.getString("objective"))
    options.objective = objective->str();
  options.keep = textsOf(object, "keep");
  options.keepCheckpoints = object.getBoolean("keep_checkpoints").value_or(false);
  options.flatBytes = object.getInteger("flat_bytes").value_or(0);
  options.sparing = object.getNumber("sparing").value_or(0);
  if (std::optional<int64_t> small = object.getInteger("small_bytes"))
    options.smallBytes = std::max<int64_t>(1, *small);
  if (std::optional<int64_t> seed = object.getInteger("stress"))
    options.stress = static_cast<uint64_t>(*seed);
  options.offload = OffloadRules::fromJSON(object);
  options.offload.leastBytes = options.stress ? 1 : options.smallBytes;
  return options;
}

ForbidFn forbidFrom(const std::vector<std::string> &keep) {
  if (keep.empty())
    return nullptr;
  return [keep](Operation *op) { return isNamed(op, keep); };
}

namespace {

/// Segments of a block up to which the last choice is among all mixtures: where there are more, the steps of each are fine
/// enough together.
constexpr size_t mostFine = 12;

/// Operations of a block up to which it is tried as one segment, too, which keeps nothing at borders: what is kept
/// there matters where there are few layers, and the time to decide grows faster than the block. Not where it runs on
/// several devices: with one stage nothing holds XLA's scheduler, which runs ahead there, from computing all again at once.
constexpr unsigned mostWhole = 4096;

/// Of costs that are sums of the same in another order.
constexpr double roundingError = 1e-9;
/// What all mixtures for every way to cut must cost, of what the plan without them costs. They favour few segments, whose
/// estimates are less certain: of two layers with attention written out such a plan, 0.7 % cheaper, took 3.5 % more memory
/// than estimated, and one of three segments 0.3 % less.
constexpr double worthMixing = 0.99;
/// Of a budget, what estimates are seldom wrong by less than.
constexpr double spareShare = 0.005;

/// Segment sizes to try, as fractions of all residuals: from halves to as fine as the program is.
std::vector<int64_t> segmentSizes(const StraightLine &unit, int64_t smallBytes) {
  std::vector<int64_t> sizes;
  for (int64_t size = unit.residualBytes() / 2; size >= 2 * smallBytes && sizes.size() < 10;
       size = size * 5 / 8)
    sizes.push_back(size);
  return sizes;
}

llvm::json::Object describe(const NamedBlock &named, const StraightLine &unit,
                            const Segmentation &segmentation, const std::vector<const Choice *> &choices) {
  const BlockGraph &graph = unit.getGraph();
  // A cut, like the boundary, is named by the last value before it.
  auto before = [&](unsigned op) -> llvm::json::Value {
    while (op-- > 0)
      if (!graph.outputs[op].empty())
        return unit.getKeys().key(graph.values[graph.outputs[op].back()]).str();
    return nullptr;
  };
  llvm::json::Array cuts, segments;
  for (size_t i = 0; i < choices.size(); ++i) {
    const Segment &segment = segmentation.segments[i];
    if (i + 1 < choices.size())
      cuts.push_back(before(segment.end));
    if (!choices[i]) {
      segments.push_back(nullptr);
      continue;
    }
    llvm::json::Array recompute, offload;
    for (size_t c = 0; c < segment.problem.candidates.size(); ++c) {
      if (choices[i]->recomputed[c])
        recompute.push_back(segment.problem.candidates[c].key);
      if (choices[i]->onHost[c])
        offload.push_back(segment.problem.candidates[c].key);
    }
    llvm::json::Object entry{{"recompute", std::move(recompute)}};
    if (!offload.empty())
      entry["offload"] = std::move(offload);
    segments.push_back(std::move(entry));
  }
  return llvm::json::Object{{"path", named.path},
                            {"boundary", before(unit.getBoundary() + 1)},
                            {"cuts", std::move(cuts)},
                            {"segments", std::move(segments)}};
}

/// How one block was cut, by where the backward part was said to begin and the operations after which segments end.
struct Cuts {
  std::string path;
  unsigned boundary;
  std::vector<unsigned> ends;
  bool operator==(const Cuts &other) const {
    return path == other.path && boundary == other.boundary && ends == other.ends;
  }
};

/// One pass over the program: loops first, then what is straight.
struct Draft {
  llvm::json::Object plan; ///< "loops", "blocks" and what else applying needs
  bool loops = false, blocks = false, sends = false;
  /// What the parts were chosen by; the estimate of the program as planned says it better.
  int64_t after = 0;
  double seconds = 0, flops = 0;
  int64_t hostBytes = 0;
  std::vector<Cuts> cuts;
};

/// What drafts of one program share.
struct Program {
  ModuleOp module;
  LoopMemo loops;
  /// Its blocks, once a draft found that no loop is to be rewritten before them.
  std::unique_ptr<BlockUnits> asWritten;
  /// The module with its loops as the last draft has them, their decisions, and its blocks: the next often has the same.
  OwningOpRef<ModuleOp> rewritten;
  std::string rewrittenBy;
  std::unique_ptr<BlockUnits> ofRewritten;
  /// By plans: what the module is estimated to need with them; nothing where they do not apply.
  llvm::StringMap<std::optional<int64_t>> estimates;

  /// The blocks of the module with its loops rewritten by `plan`, which `result` is.
  BlockUnits &blocksOf(OwningOpRef<ModuleOp> result, const LoopPlan &plan, const PlanOptions &options) {
    if (plan.loops.empty()) {
      if (!asWritten)
        asWritten = std::make_unique<BlockUnits>(module, options);
      return *asWritten;
    }
    std::string by = llvm::formatv("{0}", llvm::json::Value(llvm::json::Array(plan.loops)));
    if (!ofRewritten || by != rewrittenBy) {
      ofRewritten.reset();
      rewritten = std::move(result);
      rewrittenBy = std::move(by);
      ofRewritten = std::make_unique<BlockUnits>(*rewritten, options);
    }
    return *ofRewritten;
  }
};

/// Plans a program with `budget` bytes for loops and for blocks each; pairs of loops one by one or together; no block by
/// cuts that were `rejected`. With `fineEverywhere` all mixtures are tried for every way to cut a small block, else for the
/// best only.
Draft draft(Program &program, PlanOptions options, int64_t loopBudget, int64_t blockBudget, bool together,
            llvm::ArrayRef<Cuts> rejected = {}, bool fineEverywhere = false) {
  OwningOpRef<ModuleOp> rewritten(program.module.clone());
  options.budget = loopBudget;
  LoopPlan loopPlan = planLoops(*rewritten, options, together, program.loops);
  options.budget = blockBudget;
  const bool anyLoops = !loopPlan.loops.empty();
  BlockUnits &ofBlocks = program.blocksOf(std::move(rewritten), loopPlan, options);
  llvm::json::Array blocks;
  int64_t after = 0, hostBytes = loopPlan.hostBytes;
  double seconds = loopPlan.seconds, flops = loopPlan.flops;
  bool anySends = false;
  std::vector<Cuts> chosen;
  // Streams of their own: what is computed again does not depend on what may wait in host memory.
  std::mt19937_64 random(options.stress.value_or(0)), randomHost(options.stress.value_or(0) + 1),
      randomBoundary(options.stress.value_or(0) + 2);

  std::vector<BlockUnit *> units;
  for (BlockUnit &block : ofBlocks.units)
    units.push_back(&block);
  // Inner blocks first: what they give up need not be found around them.
  if (!options.stress)
    std::reverse(units.begin(), units.end());
  llvm::DenseMap<Operation *, int64_t> less; // bytes, of what holds blocks that were planned
  const int64_t wholeBudget = options.budget;
  for (BlockUnit *next : units) {
    BlockUnit &block = *next;
    const NamedBlock &named = block.named;
    options.budget = wholeBudget - block.around;
    int64_t peak = less.empty() ? block.peak : block.peakWith(less);
    auto needs = [&](int64_t bytes) {
      if (bytes < block.peak)
        less[named.block->getParentOp()] = block.peak - bytes;
    };
    needs(peak);
    StraightLine &unit = block.unit;
    unit.setBoundary(unit.getBoundaries().front());
    bool outermost = !StringRef(named.path).contains('/');
    if (outermost)
      after = std::max(after, peak);
    // Most programs have no place where much is alive: half of the time any place is the boundary.
    if (options.stress && unit.getGraph().numOps() > 2 && randomBoundary() % 2 == 0)
      unit.setBoundary(randomBoundary() % (unit.getGraph().numOps() - 2));
    if (!unit.worthwhile() || (!options.stress && peak <= options.budget))
      continue;

    const bool byFlops = options.objective == "flops";
    std::optional<Solution> best;
    const Evaluated *bestOf = nullptr;
    std::vector<std::vector<Choice>> bestFrontiers;
    bool sends = false;
    unsigned bestBoundary = unit.getBoundary();
    std::vector<unsigned> bestCuts;
    OffloadRules bestRules;
    auto consider = [&](const std::vector<unsigned> &cuts, const OffloadRules &rules, bool fine = false) {
      if (llvm::is_contained(rejected, Cuts{named.path, unit.getBoundary(), cuts}))
        return;
      const Evaluated &evaluated = block.evaluated(cuts, rules, fine, byFlops);
      const Evaluation &evaluation = *evaluated.evaluation;
      std::vector<std::vector<Choice>> stressed;
      Solution solution;
      if (options.stress) {
        // One segment in eight stays; of the others a random part is kept.
        stressed = evaluation.frontiers;
        for (size_t i = 0; i < stressed.size(); ++i) {
          std::vector<Choice> &frontier = stressed[i];
          if (frontier.empty() || random() % 8 == 0) {
            solution.options.push_back(untouched);
            continue;
          }
          const Problem &problem = evaluated.segmentation.segments[i].problem;
          uint64_t keepOneIn = 1 + random() % 8;
          std::vector<bool> wanted, onHost;
          for (size_t c = 0; c < problem.candidates.size(); ++c) {
            wanted.push_back(random() % keepOneIn == 0);
            onHost.push_back(randomHost() % 2 == 0);
          }
          frontier.push_back(problem.complete(wanted, onHost));
          solution.options.push_back(static_cast<int>(frontier.size()) - 1);
        }
        solution.fits = true;
        // Any granularity, too.
        solution.seconds = static_cast<double>(random() % 1000);
      } else {
        // The profile by segments can miss what the estimate of the whole block has; it must not conclude
        // from that that nothing needs doing.
        std::vector<int> none(evaluation.frontiers.size(), untouched);
        int64_t asWritten = evaluation.peak(none);
        bool hides = asWritten <= options.budget || peak < block.peak;
        int64_t budget = hides ? asWritten - (peak - options.budget) : options.budget;
        solution = solveOrLeast(evaluation, budget, byFlops);
      }
      // Of what costs the same, stages rather than one, and on several devices finer cuts, which come later: XLA's scheduler
      // runs ahead of few stages. Not beside loops, which are stages.
      double price = priceOf(solution.flops, solution.seconds, byFlops);
      double least = best ? priceOf(best->flops, best->seconds, byFlops) : 0;
      bool same = best && std::abs(price - least) <= roundingError * std::abs(least);
      bool finer = block.partitioned || (!anyLoops && bestCuts.empty());
      bool cheaper = best && (same ? finer : price < least);
      bool better = !best || (solution.fits && !best->fits) ||
                    (solution.fits == best->fits && (solution.fits ? cheaper : solution.peak < best->peak));
      if (better) {
        best = solution;
        bestOf = &evaluated;
        bestFrontiers = options.stress ? std::move(stressed) : evaluation.frontiers;
        bestBoundary = unit.getBoundary();
        bestCuts = cuts;
        bestRules = rules;
        sends = false;
        for (size_t i = 0; i < best->options.size(); ++i)
          sends |= best->options[i] != untouched && bestFrontiers[i][best->options[i]].hostBytes > 0;
      }
    };
    auto considerAll = [&](const OffloadRules &rules) {
      if (options.stress) {
        for (int64_t segmentBytes : segmentSizes(unit, options.smallBytes))
          consider(unit.chooseCuts(segmentBytes, /*tail=*/false), rules);
        return;
      }
      for (unsigned boundary : unit.getBoundaries()) {
        unit.setBoundary(boundary);
        std::vector<std::vector<unsigned>> seen;
        std::vector<int64_t> sizes = segmentSizes(unit, options.smallBytes);
        if (unit.getGraph().numOps() <= mostWhole && !block.partitioned)
          sizes.insert(sizes.begin(), unit.residualBytes());
        for (int64_t segmentBytes : sizes)
          for (bool tail : {false, true}) {
            std::vector<unsigned> cuts = unit.chooseCuts(segmentBytes, tail);
            if (llvm::is_contained(seen, cuts))
              continue;
            seen.push_back(cuts);
            consider(cuts, rules);
            // Not of one segment: within it nothing holds XLA's scheduler from computing a layer again before the one
            // behind it was read. With attention in chunks such plans took 6 % more than estimated.
            if (fineEverywhere && segmentBytes < unit.residualBytes() && unit.getGraph().numOps() <= mostWhole &&
                cuts.size() < mostFine)
              consider(cuts, rules, /*fine=*/true);
          }
      }
    };
    considerAll(options.offload);
    if (sends && !options.stress) {
      // The choice is greedy: with more to choose from it can end up dearer.
      OffloadRules asked = options.offload;
      asked.onlyAsked = true;
      considerAll(asked);
    }
    unit.setBoundary(bestBoundary);
    if (best && !options.stress && bestFrontiers.size() <= mostFine)
      consider(bestCuts, bestRules, /*fine=*/true);
    // What does not help must not be done, nor stand as the prediction: what is over the budget is elsewhere.
    if (!best || (!options.stress && !best->fits && best->peak > block.peak))
      continue;
    std::vector<const Choice *> choices;
    for (size_t i = 0; i < best->options.size(); ++i)
      choices.push_back(best->options[i] == untouched ? nullptr : &bestFrontiers[i][best->options[i]]);
    if (llvm::all_of(choices, [](const Choice *choice) { return !choice; }))
      continue;
    needs(std::min(peak, best->peak));
    // What waits on the host is read where it was fetched, also through values that another segment makes of
    // it: only a segment with a choice computes those again.
    std::deque<Choice> keepingAll;
    if (sends)
      for (auto [segment, choice] : llvm::zip(bestOf->segmentation.segments, choices))
        if (!choice && segment.needed() && segment.stage < unit.getGraph().numOps())
          choice = &keepingAll.emplace_back(
              segment.problem.complete(std::vector<bool>(segment.problem.candidates.size(), true)));
    blocks.push_back(describe(named, unit, bestOf->segmentation, choices));
    chosen.push_back({named.path, bestBoundary, bestCuts});
    for (const Choice *choice : choices)
      hostBytes += choice ? choice->hostBytes : 0;
    seconds += best->seconds;
    flops += best->flops;
    anySends |= sends;
    if (outermost)
      after = best->peak;
  }
  if (!options.stress)
    std::reverse(blocks.begin(), blocks.end());
  Draft result;
  result.loops = anyLoops;
  result.blocks = !blocks.empty();
  result.sends = anySends;
  result.after = after;
  result.seconds = seconds;
  result.flops = flops;
  result.hostBytes = hostBytes;
  result.cuts = std::move(chosen);
  result.plan = llvm::json::Object{{"version", 1},
                                   {"small_bytes", options.smallBytes},
                                   {"machine", llvm::json::Object(options.machineFigures)},
                                   {"keep_checkpoints", options.keepCheckpoints},
                                   {"loops", std::move(loopPlan.loops)},
                                   {"blocks", std::move(blocks)}};
  if (options.flatBytes > 0)
    result.plan["flat_bytes"] = options.flatBytes;
  return result;
}

/// Where smaller values than that are decided on, the estimate, which looks at none of them, says nothing of a straight line.
constexpr int64_t leastEstimated = 64 << 10;

/// The estimate of the program as planned; nothing where the plan does not apply.
std::optional<int64_t> estimateOf(Program &program, const Draft &draft, int64_t smallBytes) {
  // What the estimate calls small is in the segments' figures alone, and what is under way to the host may be. What the
  // segments miss (stacks and weights that bodies read, what kernels read of values computed again) is in the estimate.
  bool onlySegments = smallBytes < defaultSmallBytes;
  if (smallBytes < leastEstimated && !draft.loops)
    return draft.after;
  // Segments call other values small than the estimate does: where nothing is planned, one of the two has the word.
  if (!draft.loops && !draft.blocks)
    return onlySegments ? draft.after : estimateModule(program.module);
  std::string plan = llvm::formatv("{0}", llvm::json::Value(llvm::json::Object(draft.plan)));
  auto [entry, fresh] = program.estimates.try_emplace(plan);
  if (fresh) {
    OwningOpRef<ModuleOp> copy(program.module.clone());
    uint64_t cloned = 0;
    DecisionRemarks unsaid;
    if (succeeded(rewriteAsPlanned(*copy, draft.plan, cloned, unsaid)))
      entry->second = estimatePlanned(*copy, smallBytes);
  }
  std::optional<int64_t> whole = entry->second;
  return whole && (onlySegments || draft.sends) ? std::max(*whole, draft.after) : whole;
}

/// Drafts before what is left is accepted, and the share of a budget that is not worth another.
constexpr int maxDrafts = 5;
/// Of small programs, drafts of which the estimate says that they take more than their segments do, before that is taken
/// as what the budget is off by: other cuts may be right. Not with transfers, of which segments know more.
constexpr size_t maxRejected = 3;
constexpr double worthAnother = 0.01;
/// Programs of so many operations, whose drafts take ten seconds with transfers: they may leave more. Where the estimate says of
/// one that it takes so much more of the budget than its segments do, other cuts are drafted within the same budget: of 126
/// layers 23 cuts came to 4 % more, 124 to nothing more for 1 % more time.
constexpr size_t manyOps = 65536;
constexpr double worthAnotherOfMany = 0.02, misjudged = 0.02;
/// Of the budget, by how much more or less the loops may take in further drafts, and how many of these there are with
/// more; half as many have less.
constexpr double sharingStep = 0.01;
constexpr int sharingDrafts = 16;
/// Where no draft used as much of the budget as that, the straight part is given ever less, so often: what its segments miss
/// differs from cut to cut, by up to a quarter, and what a draft is over by says little of the next.
constexpr double wellUsed = 0.02;
constexpr double lessStep = 0.02;
constexpr int lessDrafts = 10;

size_t numOps(ModuleOp module) {
  size_t count = 0;
  module.walk([&](Operation *) { ++count; });
  return count;
}

/// Drafts with ever other shares of the budget for loops and for what is straight, each given to `consider`, which says
/// what it is estimated to need, or nothing if it does not apply. Pairs of loops are decided `together` or one by one.
void explore(Program &program, const PlanOptions &options, bool together, bool fineEverywhere,
             llvm::function_ref<std::optional<int64_t>(Draft &&)> consider) {
  int64_t smallest = options.budget / 512;
  int64_t loopBudget = options.budget, blockBudget = options.budget;
  std::vector<std::pair<int64_t, int64_t>> tried;
  bool anyLoops = false, anyBlocks = false, isWellUsed = false;
  size_t ops = numOps(program.module);
  bool small = !options.stress && ops <= mostWhole, large = !options.stress && ops > manyOps;
  std::vector<Cuts> rejected;
  size_t rejections = 0;
  for (int attempt = 0; attempt < maxDrafts; ++attempt) {
    tried.push_back({loopBudget, blockBudget});
    Draft next = draft(program, options, loopBudget, blockBudget, together, rejected, fineEverywhere);
    bool loops = next.loops, blocks = next.blocks, sends = next.sends;
    double seconds = next.seconds;
    int64_t chosenBy = next.after;
    std::vector<Cuts> cuts = next.cuts;
    anyLoops |= loops;
    anyBlocks |= blocks;
    std::optional<int64_t> after = consider(std::move(next));
    if (!after)
      break;
    // Loops are decided before the straight part, whose savings they do not know of; the straight part is decided by
    // segments, which see less than the estimate of the whole.
    int64_t left = options.budget - *after;
    bool fits = left >= 0;
    isWellUsed |= fits && (left <= wellUsed * options.budget || (!loops && seconds == 0));
    bool otherCuts = large ? *after - chosenBy > misjudged * options.budget : small && !sends;
    if (!fits && !loops && blocks && chosenBy <= options.budget && otherCuts && rejections < maxRejected) {
      llvm::append_range(rejected, cuts);
      ++rejections;
      tried.pop_back();
      attempt -= small;
      continue;
    }
    if (options.stress || (fits && left <= (large ? worthAnotherOfMany : worthAnother) * options.budget) || (!loops && !blocks))
      break;
    if (fits && !loops && seconds == 0)
      break;
    bool ofLoops = loops && (fits || !blocks);
    int64_t &budget = ofLoops ? loopBudget : blockBudget;
    // Below what this draft was believed to need: it must not come out the same again.
    budget = (fits ? budget : std::min(budget, chosenBy) - smallest) + left;
    // What those cuts come to within another budget may be right.
    rejected.clear();
    if (loopBudget <= 0 || blockBudget <= 0 ||
        llvm::is_contained(tried, std::make_pair(loopBudget, blockBudget)))
      break;
  }
  // What a pair of loops comes to is no smooth function of what it may take: values come whole, for ranges of whole
  // iterations, and the straight part makes up for some of it. So a few more are tried as they come.
  for (int step = -sharingDrafts / 2; anyLoops && !options.stress && step <= sharingDrafts; ++step) {
    auto shared = static_cast<int64_t>(options.budget * (1 + step * sharingStep));
    if (llvm::is_contained(tried, std::make_pair(shared, options.budget)))
      continue;
    consider(draft(program, options, shared, options.budget, together));
  }
  if (options.stress || large || !anyBlocks)
    return;
  // The straight part is given ever less, until the program fits; then once more between that and what did not.
  auto giveLess = [&](int64_t forLoops, int firstStep) {
    int64_t most = options.budget, before = 0;
    for (int step = firstStep; step <= lessDrafts; ++step) {
      auto less = static_cast<int64_t>(options.budget * (1 - step * lessStep));
      std::optional<int64_t> after = consider(draft(program, options, forLoops, less, together, {}, fineEverywhere));
      if (!after || *after == before)
        return;
      if (int64_t left = options.budget - *after; left >= 0) {
        if (left > worthAnother * options.budget && less < most)
          consider(draft(program, options, forLoops, (less + most) / 2, together, {}, fineEverywhere));
        return;
      }
      most = less;
      before = *after;
    }
  };
  if (!isWellUsed)
    giveLess(options.budget, /*firstStep=*/1);
  // What the straight part computes again saves what loops keep, too: a loop that runs again keeps nothing.
  if (anyLoops)
    giveLess(std::numeric_limits<int64_t>::max() / 2, /*firstStep=*/0);
}

/// The best plan that leaves loops inside of pairs as they are. `gathers`: whether the module's gathers were
/// made late.
llvm::json::Value planAsItStands(ModuleOp module, const PlanOptions &options, int64_t asWritten, bool gathers) {
  Program program{module};
  std::optional<Draft> best;
  int64_t bestAfter = 0;
  auto price = [byFlops = options.objective == "flops"](double flops, double seconds) {
    return priceOf(flops, seconds, byFlops);
  };
  OpCost step = CostModel(module, options.machine).total();
  double sparing = options.sparing * price(step.flops, step.seconds);
  auto cost = [&](const Draft &draft, int64_t after) {
    bool spares = after <= (1 - spareShare) * options.budget;
    return price(draft.flops, draft.seconds) + (spares ? 0 : sparing);
  };
  // What a draft must cost less than, of the best one's cost.
  double worth = 1;
  // Keeps the draft if it is the best; returns what it is estimated to need, or nothing if it does not apply.
  auto consider = [&](Draft &&next) -> std::optional<int64_t> {
    std::optional<int64_t> after = options.stress ? next.after : estimateOf(program, next, options.smallBytes);
    if (!after)
      return std::nullopt;
    bool fits = *after <= options.budget, bestFits = best && bestAfter <= options.budget;
    if (!best || (fits && !bestFits) ||
        (fits == bestFits &&
         (fits || *after == bestAfter ? cost(next, *after) < worth * cost(*best, bestAfter) : *after < bestAfter))) {
      best = std::move(next);
      bestAfter = *after;
    }
    return after;
  };
  auto exploreAll = [&](const PlanOptions &priced) {
    if (!options.stress && severalPairs(module, priced))
      explore(program, priced, /*together=*/true, /*fineEverywhere=*/false, consider);
    explore(program, priced, /*together=*/false, /*fineEverywhere=*/false, consider);
  };
  exploreAll(options);
  // Choices are made piece by piece, with steps of other sizes by another price: what is chosen by it may cost less by this one.
  if (best && best->loops && best->flops > 0 && !options.stress) {
    PlanOptions other = options;
    other.objective = options.objective == "flops" ? "time" : "flops";
    exploreAll(other);
  }
  // What uses a budget up by the segments' figures is over it first where the estimate has more: that is why not at once.
  worth = worthMixing;
  if (best && best->blocks && !best->loops && !options.stress && numOps(module) <= mostWhole)
    explore(program, options, /*together=*/false, /*fineEverywhere=*/true, consider);
  // What is under way to the host and back takes memory, too: without it a budget may be kept where it is not with it.
  if (best && best->hostBytes > 0 && bestAfter > options.budget && !options.offload.onlyAsked && !options.stress) {
    PlanOptions asked = options;
    asked.offload.onlyAsked = true;
    llvm::json::Value without = planAsItStands(module, asked, asWritten, gathers);
    const llvm::json::Object *predicted = without.getAsObject()->getObject("predicted");
    if (std::pair(predicted->getInteger("after").value_or(bestAfter), predicted->getNumber("seconds").value_or(0)) <
        std::pair(bestAfter, best->seconds))
      return without;
  }
  if (!best)
    best = Draft{llvm::json::Object{{"version", 1},
                                    {"small_bytes", options.smallBytes},
                                    {"loops", llvm::json::Array()},
                                    {"blocks", llvm::json::Array()}},
                 false, false, false, asWritten};
  best->plan["gathers"] = gathers && (best->loops || best->blocks || asWritten > options.budget);
  best->plan["predicted"] = llvm::json::Object{{"before", asWritten},
                                               {"after", bestAfter},
                                               {"seconds", best->seconds},
                                               {"flops", best->flops},
                                               {"host_bytes", best->hostBytes},
                                               {"fits", bestAfter <= options.budget}};
  return std::move(best->plan);
}

/// How far along the frontiers of loops inside of pairs plans are made for: what saves least time, and between, and all. Then
/// beside the best of them, ever nearer.
constexpr double innerShares[] = {0, 0.25, 0.5, 0.75, 1};
constexpr double nearestShare = 1.0 / 32;

/// Without any, no pair has loops inside of it.
bool hasNestedLoops(ModuleOp module) {
  return module
      .walk([](stablehlo::WhileOp loop) {
        return loop->getParentOfType<stablehlo::WhileOp>() ? WalkResult::interrupt() : WalkResult::advance();
      })
      .wasInterrupted();
}

/// What a plan comes to: whether it fits, and its price, or bytes where it does not.
std::pair<bool, double> worthOf(const llvm::json::Value &plan, const PlanOptions &options) {
  const llvm::json::Object &predicted = *plan.getAsObject()->getObject("predicted");
  bool fits = predicted.getBoolean("fits").value_or(false);
  double flops = predicted.getNumber("flops").value_or(0),
         seconds = predicted.getNumber("seconds").value_or(0);
  double price = priceOf(flops, seconds, options.objective == "flops");
  return {!fits, fits ? price : predicted.getNumber("after").value_or(0)};
}

} // namespace

llvm::json::Value makePlan(ModuleOp module, const PlanOptions &options) {
  readThroughConcatenations(module);
  int64_t asWritten = estimateModule(module);
  bool gathers = gatherLate(module) > 0;
  llvm::json::Value best = planAsItStands(module, options, asWritten, gathers);
  if (!hasNestedLoops(module))
    return best;
  std::vector<llvm::json::Array> tried;
  double bestShare = -1;
  auto tryShare = [&](double share) {
    OwningOpRef<ModuleOp> copy(module.clone());
    InnerPlan inner = planInner(*copy, options, share);
    if (inner.loops.empty() || llvm::is_contained(tried, inner.loops))
      return;
    tried.push_back(inner.loops);
    llvm::json::Value plan = planAsItStands(*copy, options, asWritten, gathers);
    llvm::json::Object &object = *plan.getAsObject(), &predicted = *object.getObject("predicted");
    for (llvm::json::Value &entry : *object.getArray("loops"))
      inner.loops.push_back(std::move(entry));
    object["loops"] = std::move(inner.loops);
    predicted["seconds"] = predicted.getNumber("seconds").value_or(0) + inner.seconds;
    predicted["flops"] = predicted.getNumber("flops").value_or(0) + inner.flops;
    if (options.stress || worthOf(plan, options) < worthOf(best, options)) {
      best = std::move(plan);
      bestShare = share;
    }
  };
  if (options.stress) {
    // A quarter of arbitrary choices leaves loops inside of pairs as they are.
    if (uint64_t kind = *options.stress % 4; kind < 3)
      tryShare(kind / 2.0);
    return best;
  }
  if (asWritten <= options.budget)
    return best;
  for (double share : innerShares)
    tryShare(share);
  for (double step = innerShares[1] / 2; bestShare >= 0 && step >= nearestShare; step /= 2)
    for (double share : {bestShare - step, bestShare + step})
      if (share >= 0 && share <= 1)
        tryShare(share);
  return best;
}

} // namespace farrier::remat
