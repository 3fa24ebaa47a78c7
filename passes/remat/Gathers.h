//===- Gathers.h - when whole weights are gathered --------------------------===//

#ifndef FARRIER_PASSES_REMAT_GATHERS_H
#define FARRIER_PASSES_REMAT_GATHERS_H

#include "mlir/IR/BuiltinOps.h"

namespace farrier::remat {

/// Lets a partitioned product's weight be gathered when what it is multiplied with is there, where that is bigger, the
/// gathered weight is much of what the program needs, and XLA would gather it near the peak: while the former is made, most is in memory (the logits and their
/// gradient), and XLA gathers early, to hide it. Needs what Sharding.h records. Returns how many barriers it made.
unsigned gatherLate(mlir::ModuleOp module);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_GATHERS_H
