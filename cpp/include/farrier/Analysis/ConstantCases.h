//===- ConstantCases.h - branches that XLA always takes --------------------===//
//
// JAX writes what depends on the platform, and `jnp.diagonal`, as a `case` whose index is a constant. XLA puts the branch in its
// place.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_CONSTANTCASES_H
#define FARRIER_ANALYSIS_CONSTANTCASES_H

#include "mlir/IR/BuiltinOps.h"

namespace farrier {

/// Does what XLA does to such cases. For estimates: the program computes the same, but plans do not know it.
void inlineConstantCases(mlir::ModuleOp module);

} // namespace farrier

#endif // FARRIER_ANALYSIS_CONSTANTCASES_H
