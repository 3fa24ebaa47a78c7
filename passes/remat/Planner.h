//===- Planner.h - what to recompute where, under one budget ---------------===//

#ifndef FARRIER_PASSES_REMAT_PLANNER_H
#define FARRIER_PASSES_REMAT_PLANNER_H

#include "passes/remat/Offload.h"
#include "passes/remat/StraightLine.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/JSON.h"

#include <optional>

namespace farrier::remat {

struct PlanOptions {
  /// Temporary bytes to stay within, as the estimator counts them: the caller has taken off parameters and
  /// results, and added what an earlier compile showed the estimate to be wrong by.
  int64_t budget = 0;
  Machine machine;
  /// The figures that `machine` was read from; they stand in the plan, which prices its remarks by them.
  llvm::json::Object machineFigures;
  /// "time": least seconds; "flops": least FLOPs.
  std::string objective = "time";
  /// Operations whose name stack contains one of these are never computed twice.
  std::vector<std::string> keep;
  /// Loops keep what `jax.checkpoint` makes them compute again; false decides that anew.
  bool keepCheckpoints = false;
  /// From this size on, values are in a row in stacks (LoopOptions); 0: none.
  int64_t flatBytes = 0;
  /// What a draft may cost, of the modelled time of the program, that leaves a little of the budget where another does not.
  double sparing = 0;
  /// What may wait in host memory.
  OffloadRules offload;
  /// Values smaller than this are kept whatever is chosen.
  int64_t smallBytes = defaultSmallBytes;
  /// With a seed: arbitrary legal choices instead of good ones, to test the rewriting.
  std::optional<uint64_t> stress;

  static PlanOptions fromJSON(const llvm::json::Object &object);
};

/// Forbids operations whose name stack contains one of the texts; null when there are none.
ForbidFn forbidFrom(const std::vector<std::string> &keep);

/// Plans `module`, whose calls must be inlined. Loops and the straight part are decided one after the other; the
/// estimate of the program as planned then says whether budget is left, or missing, and both are decided again. The
/// answer is what `applyPlan` takes:
/// {"version": 1, "small_bytes", "machine", "keep_checkpoints", "flat_bytes", "loops": (LoopPlanner.h), "blocks": [{"path",
/// "boundary", "cuts": [key], "segments": [null |
/// {"recompute": [key], "offload": [key]}]}], "gathers": whether weights are gathered late (Gathers.h),
///  "predicted": {"before", "after": bytes, "seconds", "flops": of recomputation, "host_bytes": sent to
///  host memory, "fits": bool}}
llvm::json::Value makePlan(mlir::ModuleOp module, const PlanOptions &options);

/// Rewrites `module` as planned. Fails with a diagnostic that names what the plan knows and the module does
/// not. Sets `cloned` to the number of operations added.
mlir::LogicalResult applyPlan(mlir::ModuleOp module, const llvm::json::Object &plan, uint64_t &cloned);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_PLANNER_H
