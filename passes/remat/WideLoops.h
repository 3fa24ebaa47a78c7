//===- WideLoops.h - loops that do what others do, and more ------------------===//
//
// jax.checkpoint around a scan runs it twice: for its result, and again for its result and its residuals. The second loop is
// the first with more operands.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_REMAT_WIDELOOPS_H
#define FARRIER_PASSES_REMAT_WIDELOOPS_H

#include "passes/remat/ValueNumbering.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/STLFunctionalExtras.h"

namespace farrier::remat {

/// Lets a copy of `wide` take the place of `narrow`, if it gives all that `narrow` gives, proven by numbering both bodies
/// with operands paired by what they start from, and if all that it reads is there. `same` gives a value equal to the one it
/// is given for where `narrow` stands, or that value. False, with the program as it was, if not.
bool widen(stablehlo::WhileOp narrow, stablehlo::WhileOp wide, ValueNumbering &numbers,
           llvm::function_ref<mlir::Value(mlir::Value)> same);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_WIDELOOPS_H
