//===- StableHLO.h - the StableHLO dialect ----------------------*- C++ -*-===//

#ifndef FARRIER_DIALECT_STABLEHLO_STABLEHLO_H
#define FARRIER_DIALECT_STABLEHLO_STABLEHLO_H

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/DialectImplementation.h"
#include "mlir/IR/OpDefinition.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/PatternMatch.h"
#include "mlir/IR/SymbolTable.h"
#include "mlir/IR/TensorEncoding.h"
#include "mlir/Interfaces/ControlFlowInterfaces.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include "farrier/Dialect/StableHLO/StableHLODialect.h.inc"
#include "farrier/Dialect/StableHLO/StableHLOEnums.h.inc"

#define GET_ATTRDEF_CLASSES
#include "farrier/Dialect/StableHLO/StableHLOAttrs.h.inc"
#define GET_TYPEDEF_CLASSES
#include "farrier/Dialect/StableHLO/StableHLOTypes.h.inc"
#define GET_OP_CLASSES
#include "farrier/Dialect/StableHLO/StableHLOOps.h.inc"

namespace farrier::stablehlo {

/// Registers dialects that JAX's programs contain and farrier carries along without knowing them: chlo, mhlo,
/// sdy.
void registerPassThroughDialects(mlir::DialectRegistry &registry);

/// Whether anything beyond operands and declared attributes is attached to `op`: frontend attributes,
/// shardings, or attributes that this build does not know. A rewrite that drops such an op would drop those
/// too.
bool hasUnmodelledAttrs(mlir::Operation *op);

/// The groups of devices of a collective as a table of ids, one row a group, padding (-1) removed; failure if
/// they are given as mesh axes or `op` is no collective. Collectives whose groups are empty run on all
/// devices at once.
mlir::FailureOr<llvm::SmallVector<llvm::SmallVector<int64_t>>> getReplicaGroups(mlir::Operation *op);

/// Whether XLA accepts only constants from outside in this operation's regions: reductions, sorts, scatters
/// and collectives with a computation. Branches and loops take anything.
bool hasClosedRegions(mlir::Operation *op);

/// Clones into each closed region what it takes from outside, where that is pure and depends on nothing but
/// other such operations. MLIR's CSE merges an operation inside such a region with one outside, which XLA
/// refuses. Returns how many operations it cloned.
int64_t sinkCaptures(mlir::Operation *root);

} // namespace farrier::stablehlo

#endif // FARRIER_DIALECT_STABLEHLO_STABLEHLO_H
