//===- Reads.h - what a copy of an operation reads at another place ----------===//

#ifndef FARRIER_PASSES_REMAT_READS_H
#define FARRIER_PASSES_REMAT_READS_H

#include "mlir/IR/Builders.h"
#include "mlir/IR/Dominance.h"
#include "mlir/IR/IRMapping.h"
#include "llvm/ADT/STLFunctionalExtras.h"

namespace farrier::remat {

/// What a copy of an operation reads at another place: values that are there, or copies of the little that
/// makes them (the zeros that stacks start from). Takes those copies out again unless they are kept.
class Reads {
public:
  /// `same` gives a value equal to the one it is given for, or that value. With `kernels` what makes values may be kernels.
  Reads(mlir::Operation *place, llvm::function_ref<mlir::Value(mlir::Value)> same, bool kernels = true);
  ~Reads();

  /// Null if it is not there and is not made of little.
  mlir::Value at(mlir::Value value);
  /// A copy of `op` at that place; null if something that it reads is not there.
  mlir::Operation *copy(mlir::Operation *op);
  void keep() { kept = true; }

private:
  mlir::Operation *place;
  llvm::function_ref<mlir::Value(mlir::Value)> same;
  mlir::DominanceInfo dominance;
  mlir::OpBuilder builder;
  mlir::IRMapping copies;
  llvm::SmallVector<mlir::Operation *> made;
  bool kernels, kept = false;
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_READS_H
