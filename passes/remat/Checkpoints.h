//===- Checkpoints.h - what jax.checkpoint computes again, kept ---------------===//

#ifndef FARRIER_PASSES_REMAT_CHECKPOINTS_H
#define FARRIER_PASSES_REMAT_CHECKPOINTS_H

#include "passes/remat/Loops.h"

#include "mlir/IR/BuiltinOps.h"

namespace farrier::remat {

/// How much of what a program computes twice was taken back.
struct Forgotten {
  unsigned merged = 0; ///< operations that gave what an earlier one had given
  unsigned pairs = 0;  ///< pairs of loops that save what the backward one computed again
};

/// Takes back recomputation: in every block what lies behind a barrier and is the same as something before it, unless an
/// all_gather reads from that barrier (weights are gathered again for the sake of memory); and what backward loops compute
/// again of products, where saving it costs less. Calls must have been inlined.
Forgotten forgetCheckpoints(mlir::ModuleOp module, CostModel &costs, const LoopOptions &options);

/// Registers farrier-forget-checkpoints.
void registerCheckpointsPass();

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_CHECKPOINTS_H
