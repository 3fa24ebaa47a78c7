#ifndef FARRIER_PASSES_SINK_CAPTURES_PASSES_H
#define FARRIER_PASSES_SINK_CAPTURES_PASSES_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace farrier::sink_captures {
#define GEN_PASS_DECL
#include "passes/sink_captures/Passes.h.inc"

void registerPasses();
} // namespace farrier::sink_captures

#endif // FARRIER_PASSES_SINK_CAPTURES_PASSES_H
