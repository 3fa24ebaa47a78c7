//===- Attention.h - a part of a program that computes attention ----------===//

#ifndef FARRIER_PASSES_FUSION_ATTENTION_H
#define FARRIER_PASSES_FUSION_ATTENTION_H

#include "passes/fusion/Loops.h"
#include "passes/fusion/Roles.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include <string>

namespace farrier::fusion {

/// A product that reads probabilities or score gradients, and where the axes lie in its result (the feature
/// axis last).
struct Product {
  stablehlo::DotGeneralOp dot;
  Roles result;
  explicit operator bool() const { return static_cast<bool>(dot); }
};

/// softmax(scale * q k^T + mask) v and, where present, the gradients autodiff made of it.
///
/// Axes are numbered by the dimensions of the scores' product (those of extent 1 left out); `feature` is the
/// axis of queries, keys and values that the scores contract.
struct Attention {
  stablehlo::DotGeneralOp scores;
  llvm::SmallVector<int64_t> sizes; ///< of the axes, the feature axis last
  unsigned column = 0;              ///< axis of the softmax: key positions
  std::optional<unsigned> row;      ///< axis of query positions
  llvm::SmallVector<unsigned, 4>
      batch; ///< axes both queries and keys have; the last of several is the key's head
  llvm::SmallVector<unsigned, 4> groups; ///< further axes of the queries: heads that share a key head

  Tensor query, key, value, outputGradient;
  /// The loops when the gradients stand in another loop than the scores, and the operands as that loop knows
  /// them.
  std::optional<LoopPair> loops;
  Tensor queryAgain, keyAgain, valueAgain;
  double scale = 1;
  bool causal = false;
  int64_t window = 0;         ///< a query sees this many positions up to its own; 0: no limit
  bool narrowSoftmax = false; ///< the program computes the softmax itself in 16 bits

  Product output, queryGradient, keyGradient, valueGradient;
  stablehlo::DotGeneralOp probabilityGradient; ///< makes the gradient of the probabilities

  unsigned feature() const { return sizes.size() - 1; }
  bool hasBackward() const { return static_cast<bool>(probabilityGradient); }
};

/// Why a candidate is not attention as cuDNN computes it.
struct Obstacle {
  std::string reason;
  mlir::Operation *where = nullptr;
  bool silent = false; ///< not even remotely attention: no remark
};

/// Matches the attention that starts at `scores`; nullopt with an obstacle.
std::optional<Attention> matchAttention(stablehlo::DotGeneralOp scores, Obstacle &obstacle);

/// Replaces it by cuDNN custom calls. Everything that was there only for it is left dead.
void emitAttention(Attention &attention);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_ATTENTION_H
