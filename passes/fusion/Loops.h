//===- Loops.h - values that cross from a forward loop to a backward one ---===//
//
// Autodiff of a scan makes two loops: the first stores what the second needs in stacks, one slice per
// iteration, and the second reads them back. A rewrite that spans both needs to see through the stacks, to
// add its own, and to drop those that nothing reads any more.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_FUSION_LOOPS_H
#define FARRIER_PASSES_FUSION_LOOPS_H

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include <optional>

namespace farrier::fusion {

/// The value outside that a loop's argument always equals; the value itself if it is none.
mlir::Value resolveInvariant(mlir::Value value);

/// A pair of loops joined by stacks: iteration i of `forward` writes slice i of each, `backward` reads the
/// slice at `readIndex`.
struct LoopPair {
  stablehlo::WhileOp forward, backward;
  mlir::Value writeIndex, readIndex; ///< scalars inside the bodies

  bool operator==(const LoopPair &other) const {
    return forward == other.forward && backward == other.backward && writeIndex == other.writeIndex &&
           readIndex == other.readIndex;
  }
};

/// One value that is stored by one loop and read by the other.
struct Residual {
  LoopPair loops;
  mlir::Value stored;                                 ///< [1, ...], in the body of `forward`
  llvm::SmallVector<stablehlo::DynamicSliceOp> reads; ///< [1, ...], in the body of `backward`
};

/// The residual that `update` writes, if it writes one and nothing else sees the stack.
std::optional<Residual> residualOf(stablehlo::DynamicUpdateSliceOp update);

/// All residuals stored by a loop.
llvm::SmallVector<Residual> residualsOf(stablehlo::WhileOp forward);

/// Stores `value` (in the forward body) for the backward loop as well; returns it there, at the place where
/// `readIndex` is known. The loops are rebuilt: `loops` is updated.
mlir::Value addResidual(LoopPair &loops, mlir::Value value);

/// Makes `value`, known before the loop, known inside. The loop is rebuilt: `loop` is updated.
mlir::Value addInvariant(stablehlo::WhileOp &loop, mlir::Value value);

/// Removes state of loops that nothing reads. Returns how many values were dropped.
unsigned eraseDeadState(mlir::Operation *root);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_LOOPS_H
