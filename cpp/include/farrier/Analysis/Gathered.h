//===- Gathered.h - what partitioned products gather or reduce -------------===//

#ifndef FARRIER_ANALYSIS_GATHERED_H
#define FARRIER_ANALYSIS_GATHERED_H

#include "farrier/Analysis/Graph.h"

#include "llvm/ADT/StringRef.h"

namespace farrier {

/// The attribute of a partitioned product that has its `GatheredBytes`; Sharding.h records it.
constexpr llvm::StringLiteral gatheredAttr = "farrier.gathered";

/// Bytes on a device beside the operands and results of a partitioned product.
struct GatheredBytes {
  int64_t operands = 0; ///< whole, of those that a device has a part of
  int64_t sum = 0;      ///< of the result, before the devices share it out
};
GatheredBytes gatheredBytes(mlir::Operation *op);

/// Of each operation of the block, the last kernel before it that it waits for: XLA starts to gather for it there.
std::vector<unsigned> gatheredFrom(const BlockGraph &graph);

/// Bytes of them that live while each operation of the block runs: what a product needs gathered arrives while the last
/// kernel runs that it waits for. Sums are made when nothing is gathered: gradients of weights wait, those of
/// activations do not.
std::vector<int64_t> gatheredCopies(const BlockGraph &graph);

} // namespace farrier

#endif // FARRIER_ANALYSIS_GATHERED_H
