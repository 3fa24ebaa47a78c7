#ifndef FARRIER_PASSES_COLLECTIVES_PASSES_H
#define FARRIER_PASSES_COLLECTIVES_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace farrier::collectives {
#define GEN_PASS_DECL
#include "passes/collectives/Passes.h.inc"

void registerPasses();
} // namespace farrier::collectives

#endif // FARRIER_PASSES_COLLECTIVES_PASSES_H
