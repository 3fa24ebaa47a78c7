//===- OpInfo.h - what an operation is to a memory planner -----------------===//

#ifndef FARRIER_ANALYSIS_OPINFO_H
#define FARRIER_ANALYSIS_OPINFO_H

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/Operation.h"

namespace farrier {

/// How XLA:GPU usually treats the result of an operation.
enum class OpClass {
  /// Elementwise and shape operations: fused into whoever reads them, rarely stored.
  Virtual,
  /// Products, reductions, gathers, loops, custom calls ...: the result is a buffer.
  Materialised,
};

OpClass classify(mlir::Operation *op);

/// Whether the operation is elementwise, or a write into a stack, which is that on a part of it.
bool accumulates(mlir::Operation *op);

/// Whether running a second copy of `op` gives the same values and no second effect. Everything that is not
/// known to be pure and deterministic is not: unknown custom calls and dialects, stateful random numbers,
/// infeed and outfeed, tokens, collectives (they cost communication and every rank must agree), and
/// scatters that add floating point numbers in an order the hardware chooses. Regions must be clonable
/// throughout.
bool isClonable(mlir::Operation *op);

/// Whether `op` is `sdy.manual_computation`, in which each device has values of its own (JAX's shard_map). The dialect is
/// not ours to know: neither its region nor a result is promised.
bool isManualComputation(mlir::Operation *op);

/// Whether `op` itself is a collective.
bool isCollective(mlir::Operation *op);

/// Whether `op` or anything inside it is a collective.
bool hasCollective(mlir::Operation *op);

/// The constant that a value is a part of, if all of its elements are the same, through broadcasts and conversions; else null.
mlir::ElementsAttr splatOf(mlir::Value value);

/// Bits that one element of a type takes in memory: a predicate a byte, a complex number its two parts; 0 for tokens.
int64_t elementBits(mlir::Type type);

/// Bytes of a value of this type on one device if it is not sharded; 0 for tokens and dynamic shapes. Types
/// narrower than a byte are counted packed, as XLA:GPU stores int4 (and predicates as one byte).
int64_t byteSize(mlir::Type type);
inline int64_t byteSize(mlir::Value value) { return byteSize(value.getType()); }

} // namespace farrier

#endif // FARRIER_ANALYSIS_OPINFO_H
