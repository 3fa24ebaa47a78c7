//===- Split.h - a kernel on every device of a mesh ------------------------===//
//
// XLA cannot partition a custom call: it would gather its operands on every device. Under automatic sharding
// a kernel therefore stands in a manual computation, over the mesh axes that Shardy's propagation splits its
// operands by.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_FUSION_SPLIT_H
#define FARRIER_PASSES_FUSION_SPLIT_H

#include "passes/fusion/Build.h"

#include "llvm/ADT/STLFunctionalExtras.h"

#include <optional>
#include <string>

namespace farrier::fusion {

/// A value that is split: one letter for each dimension, b(atch) and h(eads) for those that are.
struct SplitValue {
  mlir::Value value;
  llvm::StringRef axes;
};

struct SplitType {
  llvm::SmallVector<int64_t> shape; ///< of all devices together
  mlir::Type element;
  llvm::StringRef axes;
  bool headMajorCall; ///< [B, S, H, D] here, [B, H, S, D] as the call returns it
};

/// The mesh axes, major first, that batch and heads are split over.
struct Split {
  std::string mesh;                                          ///< symbol
  llvm::SmallVector<std::pair<std::string, int64_t>> manual; ///< every axis and its size, in the mesh's order
  llvm::SmallVector<std::string> batch, heads;

  /// Of "mesh|x:4+y:2|x|y": symbol, all axes, those of the batch, those of the heads. "!positions:x" and
  /// "!width:x": axis x splits what the kernel needs whole. Otherwise nullopt with `whyNot`.
  static std::optional<Split> parse(llvm::StringRef text, std::string &whyNot);

  int64_t batchShards() const { return shards(batch); }
  int64_t headShards() const { return shards(heads); }
  /// How often each key head is repeated, so that all devices have as many; nullopt where there is no way.
  std::optional<int64_t> keyRepeats(int64_t heads, int64_t keyHeads) const;
  mlir::RankedTensorType local(const SplitType &type) const;
  /// Shardy's text of such a sharding.
  std::string sharding(llvm::StringRef axes) const;

private:
  int64_t shards(llvm::ArrayRef<std::string> axes) const;
};

/// Makes values of these types on every device from its part of the operands.
llvm::SmallVector<mlir::Value>
onEveryDevice(Maker &make, const Split &split, llvm::ArrayRef<SplitValue> operands,
              llvm::ArrayRef<SplitType> results,
              llvm::function_ref<llvm::SmallVector<mlir::Value>(Maker &, mlir::ValueRange)> body);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_SPLIT_H
