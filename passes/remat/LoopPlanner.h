//===- LoopPlanner.h - pairs of loops under a budget ------------------------===//

#ifndef FARRIER_PASSES_REMAT_LOOPPLANNER_H
#define FARRIER_PASSES_REMAT_LOOPPLANNER_H

#include "passes/remat/LoopFrontier.h"
#include "passes/remat/Loops.h"

#include "farrier/Analysis/OpCost.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/JSON.h"

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

namespace farrier::remat {

struct PlanOptions;
class DecisionRemarks;

struct LoopPlan {
  /// [{"key", "parts": [{"iterations", "save": [key of a value], "offload": [key]}]}], in the order of
  /// application.
  llvm::json::Array loops;
  double seconds = 0, flops = 0; ///< more than as written; seconds of what is kept count, so they can be fewer
  int64_t hostBytes = 0;
  int64_t peak = 0; ///< estimate of the program as planned
};

/// What plans of one module within different budgets have in common. Plans by other rules of what may wait in host memory, or
/// for another machine, have another one.
struct LoopMemo {
  /// By the decisions that the module is rewritten by: what it is estimated to need; nothing where they do not apply.
  std::map<std::string, std::optional<int64_t>> peaks;
  /// By the decisions before, the pair, what may be chosen and the objective.
  std::map<std::string, std::unique_ptr<LoopFrontier>> frontiers;
};

/// Plans pairs of loops until the estimate of `module` is within the budget, and rewrites `module` as planned. The bytes
/// that stacks may take are what the budget leaves beside everything else. Pairs are decided one after the other, the
/// biggest stacks first, or `together`, each giving up what costs least. Between two choices the loop is split or mixed,
/// whichever recomputes less.
LoopPlan planLoops(mlir::ModuleOp module, const PlanOptions &options, bool together, LoopMemo &memo);

/// Whether there is something to decide together.
bool severalPairs(mlir::ModuleOp module, const PlanOptions &options);

/// Predicted temporary bytes of the module's public functions, the most that one needs. Fills in what a rewriting
/// left open about shards.
int64_t estimateModule(mlir::ModuleOp module);

/// Rewrites the pairs that the plan names. Fails with a diagnostic that names what the program does not have.
mlir::LogicalResult applyLoops(mlir::ModuleOp module, CostModel &costs, const llvm::json::Array &plan,
                               const LoopOptions &options, DecisionRemarks &remarks);

/// What loops inside of pairs are given up of the stacks that they have through stacks of those.
struct InnerPlan {
  llvm::json::Array loops; ///< as in `LoopPlan`, with the outer pair's key as "within"
  double seconds = 0, flops = 0;
};

/// Rewrites every pair of loops inside of another pair by the choice that stands so far along its frontier,
/// from its start (0) to its end (1), where that saves less than the program as it stands.
InnerPlan planInner(mlir::ModuleOp module, const PlanOptions &options, double share);

/// Rewrites a pair inside of the one of this key, and that one to save what the inner one does now. False,
/// with the program as it was, where that is not legal.
bool applyInner(mlir::ModuleOp module, CostModel &costs, const LoopOptions &options, llvm::StringRef key,
                LoopPair &inner, const Choice &choice);

/// A decision as plans name it.
llvm::json::Object described(const LoopPair &pair, const LoopDecision &decision);

LoopOptions loopOptions(const PlanOptions &options);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_LOOPPLANNER_H
