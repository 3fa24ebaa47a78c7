//===- Attention.h - a part of a program that computes attention ----------===//

#ifndef FARRIER_PASSES_FUSION_ATTENTION_H
#define FARRIER_PASSES_FUSION_ATTENTION_H

#include "passes/fusion/Loops.h"
#include "passes/fusion/Roles.h"
#include "passes/fusion/Split.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/Support/JSON.h"

#include <string>

namespace farrier::fusion {

/// A product that reads probabilities or score gradients, and where the axes lie in its result (the feature
/// axis last).
struct Product {
  stablehlo::DotGeneralOp dot;
  Roles result;
  explicit operator bool() const { return static_cast<bool>(dot); }
};

/// One operation between the scores and the exponential.
struct Link {
  enum Kind { Move, Shift, Term, Scale, Mask } kind;
  mlir::Operation *op;
  unsigned path; ///< the operand that comes from the scores
  Roles roles;   ///< of the result
};

/// What is added to the scores before the softmax, masks included: what the links make of zeros.
struct Bias {
  Roles scoreRoles;
  llvm::SmallVector<Link> links;         ///< the exponential's operand first
  llvm::SmallVector<bool> axes;          ///< of the scores, along which it varies
  bool isDeep = false;                   ///< has numbers below maskedBias that were not selected
  llvm::SmallVector<mlir::Value> leaves; ///< what it is made of that is known at run time only
};

/// What the kernels get for a score that shall not count: so low that what is added to it is lost, so that a
/// row of which nothing is seen is averaged, as where scores are replaced. JAX gives them the same number.
inline constexpr double maskedBias = -2199023255552.0; // -2^41

/// A bias as the kernels take it, [batch or 1, heads or 1, queries, keys]: the axes that make it up.
struct BiasShape {
  bool perBatch = false, perHead = false;
  llvm::SmallVector<unsigned> axes;
};

/// The sum of score gradients that autodiff makes for the bias.
struct BiasGradient {
  stablehlo::ReduceOp sum;
  Roles result;
  explicit operator bool() const { return static_cast<bool>(sum); }
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
  int64_t window = 0;             ///< a query sees this many positions up to its own; 0: no limit
  bool wideBias = false;          ///< the bias has numbers that 16 bits do not hold
  bool wideProbabilities = false; ///< they enter their products in f32
  bool narrowSoftmax = false;     ///< the program computes the softmax itself in 16 bits

  std::optional<Bias> bias;
  BiasGradient biasGradient;
  std::optional<Split> split; ///< over the devices of a mesh, under automatic sharding

  Product output, queryGradient, keyGradient, valueGradient;
  stablehlo::DotGeneralOp probabilityGradient; ///< makes the gradient of the probabilities

  unsigned feature() const { return sizes.size() - 1; }
  /// The axes that make up the kernel's batch and its query heads, outermost first. The key heads come first
  /// among the heads.
  void batchAndHeads(llvm::SmallVectorImpl<unsigned> &batchAxes,
                     llvm::SmallVectorImpl<unsigned> &heads) const;
  bool isHead(unsigned axis) const {
    llvm::SmallVector<unsigned> batchAxes, heads;
    batchAndHeads(batchAxes, heads);
    return llvm::is_contained(heads, axis);
  }
  BiasShape biasShape() const;
  /// Why `split` does not fit, in words; empty if it does.
  std::string cannotSplit() const;
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

/// What can be the product of queries and keys, in program order.
llvm::SmallVector<stablehlo::DotGeneralOp> attentionCandidates(mlir::ModuleOp module);

/// fusion.attention: the matched sites of a program under automatic sharding: which axes lie where, and the
/// numbers (farrier-number-operations) of the values to ask Shardy about.
mlir::FailureOr<llvm::json::Value> attentionQuery(mlir::ModuleOp module, const llvm::json::Object &options);

/// Makes the tensor that is added to the scores, in 16 bits; before the loop `outOf` unless that is null.
/// Null if it depends on what the loop computes.
mlir::Value makeBias(const Attention &attention, Maker &make, mlir::Operation *outOf);

/// Replaces it by cuDNN custom calls. Everything that was there only for it is left dead.
void emitAttention(Attention &attention);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_ATTENTION_H
