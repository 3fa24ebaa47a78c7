//===- Kernels.h - which kernel a custom call runs -------------------------===//
//
// Under automatic sharding JAX wraps a library's kernel (cuDNN attention) in a call of its own,
// `CustomSPMDPartitioning`, whose text says nothing but the address of a Python object. Who has that object knows
// which kernel stands behind it, and says so here.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_KERNELS_H
#define FARRIER_ANALYSIS_KERNELS_H

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/Support/JSON.h"

namespace farrier {

/// The target of a custom call, or of the call that it wraps where that was said.
llvm::StringRef kernelOf(stablehlo::CustomCallOp call);

/// Records {"<number>": target} of calls that wrap others, by the numbers that `numberOperations` would give.
void setKernels(mlir::ModuleOp module, const llvm::json::Object &kernels);

/// Forgets all of them, so that nothing of it reaches XLA.
void dropKernels(mlir::ModuleOp module);

} // namespace farrier

#endif // FARRIER_ANALYSIS_KERNELS_H
