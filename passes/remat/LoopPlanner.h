//===- LoopPlanner.h - pairs of loops under a budget ------------------------===//

#ifndef FARRIER_PASSES_REMAT_LOOPPLANNER_H
#define FARRIER_PASSES_REMAT_LOOPPLANNER_H

#include "farrier/Analysis/OpCost.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/JSON.h"

#include <functional>
#include <optional>

namespace farrier::remat {

struct PlanOptions;
class DecisionRemarks;

struct LoopPlan {
  /// [{"key", "parts": [{"iterations", "save": [key of a value], "offload": [key]}]}], in the order of
  /// application.
  llvm::json::Array loops;
  double seconds = 0, flops = 0;
  int64_t hostBytes = 0;
};

/// Plans every pair of loops until the estimate of `module` is within the budget, and rewrites `module` as
/// planned. The bytes a pair's stacks may take are what the budget leaves beside everything else; between two
/// choices the loop is split or mixed, whichever recomputes less.
mlir::FailureOr<LoopPlan> planLoops(mlir::ModuleOp module, CostModel &costs, const PlanOptions &options);

/// Predicted temporary bytes of the module's public functions, the most that one needs. Fills in what a rewriting
/// left open about shards.
int64_t estimateModule(mlir::ModuleOp module);

/// Rewrites the pairs that the plan names. Fails with a diagnostic that names what the program does not have.
mlir::LogicalResult applyLoops(mlir::ModuleOp module, CostModel &costs, const llvm::json::Array &plan,
                               bool keepCheckpoints, DecisionRemarks &remarks);

/// The loops of all pairs: they are planned as pairs, never run a second time as a whole.
llvm::DenseSet<mlir::Operation *> pairedLoops(mlir::ModuleOp module, CostModel &costs);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_LOOPPLANNER_H
