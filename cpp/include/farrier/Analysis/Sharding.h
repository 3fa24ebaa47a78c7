//===- Sharding.h - what one device holds of a partitioned program ---------===//
//
// A program under automatic sharding has global shapes; which part of each value a device holds is decided by
// Shardy's propagation when XLA compiles it. jaxlib can run that propagation, and says per operation over how
// many devices each result is split. Analyses read it from an attribute; a program without it is taken as it
// stands, which is right on one device and inside manual computations.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_SHARDING_H
#define FARRIER_ANALYSIS_SHARDING_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/JSON.h"

#include <optional>

namespace farrier {

/// The attribute of an operation that has, for each result, over how many devices it is split.
constexpr llvm::StringLiteral shardsAttr = "farrier.shards";

/// Over how many devices the value is split; 1 where nothing is known.
int64_t shards(mlir::Value value);

/// Bytes of the value on one device.
int64_t deviceSize(mlir::Value value);

/// The part of an operation's work that one device does: whatever it reads or makes is split over the most
/// devices says it. Replicated work counts in full.
double deviceShare(mlir::Operation *op);

/// Every operation of the public functions with its number. Private functions are called from them, and have
/// been inlined where numbers matter.
void forEachNumbered(mlir::ModuleOp module, llvm::function_ref<void(mlir::Operation *, int64_t)> visit);

/// The number that `numberOperations` gave; nothing for an operation made since.
std::optional<int64_t> numberOf(mlir::Operation *op);

/// Numbers every operation inside functions, in program order, by the attribute `farrier.op`, so that what
/// another library makes of the program can be brought back.
void numberOperations(mlir::ModuleOp module);

/// Records over how many devices values are split: {"arguments": [n] of the public function, "operations":
/// {"<number>": [n]}}, by the numbers that `numberOperations` would give. What is not named is inferred.
mlir::LogicalResult setShards(mlir::ModuleOp module, const llvm::json::Object &shards);

/// Fills in operations that lack the attribute (made by a rewriting) from what they read.
void inferShards(mlir::ModuleOp module);

/// Devices that the program around `op` is partitioned over; 1 where it does not say.
int64_t partitionsOf(mlir::Operation *op);

/// Forgets all of it, so that nothing reaches XLA.
void dropShards(mlir::ModuleOp module);

} // namespace farrier

#endif // FARRIER_ANALYSIS_SHARDING_H
