#ifndef FARRIER_PASSES_REGISTRY_H
#define FARRIER_PASSES_REGISTRY_H

#include "mlir/IR/DialectRegistry.h"

namespace farrier {

/// Registers the dialects farrier knows; everything else passes through unregistered.
void registerDialects(mlir::DialectRegistry &registry);

/// Registers every pass and query, and the MLIR transforms that are safe on exported modules.
/// Idempotent.
void registerPasses();

} // namespace farrier

#endif // FARRIER_PASSES_REGISTRY_H
