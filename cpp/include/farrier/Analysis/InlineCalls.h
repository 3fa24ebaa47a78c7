//===- InlineCalls.h - one flat program to plan over -----------------------===//

#ifndef FARRIER_ANALYSIS_INLINECALLS_H
#define FARRIER_ANALYSIS_INLINECALLS_H

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/BuiltinOps.h"

namespace farrier {

/// Replaces calls of private single-block functions by their bodies, everywhere in `module`, and erases the
/// functions that nothing names any more. XLA inlines the same calls; done here, values inside them can be
/// planned. A call is kept when it carries attributes (a fence, a compute type), when the callee does, or
/// when it recurses. The callee's name stack is prefixed with the call's, so scopes read as before.
/// Returns the number of calls replaced.
unsigned inlineCalls(mlir::ModuleOp module);

} // namespace farrier

#endif // FARRIER_ANALYSIS_INLINECALLS_H
