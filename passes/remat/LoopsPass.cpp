#include "passes/remat/LoopFrontier.h"
#include "passes/remat/Loops.h"

#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Pass/Pass.h"

#include <random>

namespace farrier::remat {

#define GEN_PASS_DECL_REMATERIALIZELOOPS
#define GEN_PASS_DEF_REMATERIALIZELOOPS
#include "passes/remat/Passes.h.inc"

using namespace mlir;

namespace {

struct RematerializeLoops : impl::RematerializeLoopsBase<RematerializeLoops>, CounterSet {
  using RematerializeLoopsBase::RematerializeLoopsBase;
  RematerializeLoops() = default;
  RematerializeLoops(const RematerializeLoops &other) : RematerializeLoopsBase(other), CounterSet(other) {}

  Counter rewritten{this, "loop-pairs-rewritten"};
  Counter missed{this, "stacks-missed"};

  void runOnOperation() override {
    ModuleOp module = getOperation();
    inlineCalls(module);
    readThroughConcatenations(module);
    CostModel costs(module);
    LoopOptions options;
    options.sinkBytes = sinkBytes;
    options.replan = replan;
    options.recomputeCollectives = collectives;
    options.offload.allowed = false;
    std::mt19937_64 random(static_cast<uint64_t>(stress));
    auto pairs = findLoopPairs(module, costs, options, [&](Operation *op, StringRef reason) {
      ++missed;
      op->emitRemark() << "missed: " << reason;
    });
    for (auto &pair : pairs) {
      LoopDecision decision = stress >= 0 ? anything(*pair, random) : best(*pair);
      if (decision.empty())
        continue;
      InFlightDiagnostic remark = pair->forward()->emitRemark("applied:");
      for (const LoopPart &part : decision) {
        const Choice &choice = part.choice;
        remark << " " << part.iterations << " iterations save " << llvm::count(choice.saved, true)
               << " and recompute " << llvm::count(choice.recomputed, true) << " values;";
      }
      remark << " stacks had " << pair->stackBytes() << " bytes";
      remark.report();
      if (failed(pair->apply(decision)))
        return signalPassFailure();
      ++rewritten;
    }
  }

private:
  /// Within `save` of the bytes that the stacks have now; empty where they fit as they are.
  LoopDecision best(const LoopPair &pair) {
    if (save >= 1)
      return {};
    auto budget = static_cast<int64_t>(save * static_cast<double>(pair.stackBytes()));
    std::vector<Choice> hull = pair.problem().frontier();
    for (size_t i = 0; i < hull.size(); ++i)
      if (hull[i].savedBytes <= budget)
        return i == 0 ? LoopDecision{{pair.problem().instances, hull[0]}}
                      : splitIterations(hull[i], hull[i - 1], pair.problem().instances, budget);
    return {{pair.problem().instances, hull.back()}};
  }

  /// Up to three ranges of iterations, each with a random set of saved values.
  static LoopDecision anything(const LoopPair &pair, std::mt19937_64 &random) {
    const Problem &problem = pair.problem();
    LoopDecision decision;
    for (int64_t left = problem.instances; left > 0;) {
      int64_t count = decision.size() == 2 ? left : 1 + static_cast<int64_t>(random() % left);
      // One in eight to all: from recomputing nearly everything to saving nearly everything.
      uint64_t share = 1 + random() % 8;
      std::vector<bool> wanted;
      for (size_t v = 0; v < problem.candidates.size(); ++v)
        wanted.push_back(random() % 8 < share);
      if (random() % 4 == 0)
        wanted.assign(wanted.size(), false);
      decision.push_back({count, problem.complete(wanted)});
      left -= count;
    }
    return decision;
  }
};

} // namespace

/// {"pairs": [{"key", "iterations", "stack_bytes", "recomputes_already", "candidates": [{"key", "bytes",
/// "seconds", "flops", "save_seconds", "operands", "group", "needed", "recomputable"}], "frontier":
/// [{"saved_bytes", "seconds", "flops", "transient_bytes", "saved": [index]}], "planned": [{"budget_bytes", "seconds"}]}]};
/// planned for each of the given "shares": stacks of so much of the way from the frontier's fewest to its most bytes.
static FailureOr<llvm::json::Value> describe(ModuleOp module, const llvm::json::Object &query) {
  OwningOpRef<ModuleOp> copy(module.clone());
  inlineCalls(*copy);
  readThroughConcatenations(*copy);
  CostModel costs(*copy, Machine::fromJSON(query.getObject("machine")));
  LoopOptions options;
  options.offload.allowed = false;
  llvm::json::Array pairs;
  for (auto &pair : findLoopPairs(*copy, costs, options, [](Operation *, StringRef) {})) {
    const Problem &problem = pair->problem();
    std::vector<Choice> hull = problem.frontier();
    llvm::json::Array candidates, frontier;
    for (const Candidate &candidate : problem.candidates)
      candidates.push_back(llvm::json::Object{{"key", candidate.key},
                                              {"bytes", candidate.bytes},
                                              {"seconds", candidate.seconds},
                                              {"flops", candidate.flops},
                                              {"save_seconds", candidate.saveSeconds},
                                              {"operands", llvm::json::Array(candidate.operands)},
                                              {"group", candidate.group},
                                              {"needed", candidate.needed},
                                              {"recomputable", candidate.recomputable}});
    for (const Choice &choice : hull) {
      llvm::json::Array saved;
      for (unsigned v = 0; v < choice.saved.size(); ++v)
        if (choice.saved[v])
          saved.push_back(v);
      frontier.push_back(llvm::json::Object{{"saved_bytes", choice.savedBytes},
                                            {"seconds", choice.seconds},
                                            {"flops", choice.flops},
                                            {"transient_bytes", choice.transientBytes},
                                            {"saved", std::move(saved)}});
    }
    llvm::json::Array planned;
    LoopFrontier between(problem, hull);
    if (const llvm::json::Array *shares = query.getArray("shares"))
      for (const llvm::json::Value &share : *shares) {
        double most = hull.front().savedBytes, least = hull.back().savedBytes;
        auto budget = static_cast<int64_t>(least + share.getAsNumber().value_or(1) * (most - least));
        planned.push_back(llvm::json::Object{
            {"budget_bytes", budget}, {"seconds", seconds(between.decide(budget), problem.instances)}});
      }
    pairs.push_back(llvm::json::Object{{"key", pair->key().str()},
                                       {"iterations", problem.instances},
                                       {"stack_bytes", pair->stackBytes()},
                                       {"recomputes_already", pair->recomputesAlready()},
                                       {"candidates", std::move(candidates)},
                                       {"frontier", std::move(frontier)},
                                       {"planned", std::move(planned)}});
  }
  return llvm::json::Value(llvm::json::Object{{"pairs", std::move(pairs)}});
}

void registerLoopsPass() {
  PassRegistration<RematerializeLoops>();
  registerQuery("remat.loops", describe);
}

} // namespace farrier::remat
