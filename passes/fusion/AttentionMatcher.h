//===- AttentionMatcher.h - the state of one attempt at a match -----------===//

#ifndef FARRIER_PASSES_FUSION_ATTENTIONMATCHER_H
#define FARRIER_PASSES_FUSION_ATTENTIONMATCHER_H

#include "passes/fusion/Attention.h"

#include "llvm/ADT/MapVector.h"

#include <random>

namespace farrier::fusion {

/// What is added to a score that shall not count is as low as this.
inline constexpr double masked = -1e4;

/// Follows the axes from one product (AttentionMatch.cpp) and evaluates what was reached
/// (AttentionEvaluate.cpp).
class Matcher {
public:
  Matcher(stablehlo::DotGeneralOp scores, Obstacle &obstacle) : obstacle(obstacle) { site.scores = scores; }

  bool run() {
    return nameAxes() && follow() && classifyAxes() && (findMask() || findBias()) && identifyProducts();
  }

  Attention site;

private:
  bool no(mlir::Operation *where, const llvm::Twine &reason) {
    obstacle = {reason.str(), where, false};
    return false;
  }
  bool notAttention() {
    obstacle.silent = true;
    return false;
  }

  bool nameAxes();
  bool follow();
  bool followOne(mlir::Operation *op);
  bool sumsOthers(stablehlo::ReduceOp reduce);
  bool classifyAxes();
  bool findMask();
  bool findBias();
  bool followLinks(Bias &bias);
  void markAxes(mlir::Value value, const Roles &roles, llvm::SmallVectorImpl<bool> &axes);
  bool readBias();
  bool identifyProducts();
  bool identifyBiasGradient();
  bool verifyRows();
  std::optional<std::vector<double>> logits(llvm::ArrayRef<int64_t> coordinates, std::vector<int64_t> columns,
                                            double score);
  /// 1 where a key is seen, 0 where it is masked.
  std::optional<std::vector<int>> seen(llvm::ArrayRef<int64_t> coordinates,
                                       const std::vector<int64_t> &columns);
  bool readScale(llvm::ArrayRef<int64_t> coordinates, int64_t column);
  llvm::SmallVector<int64_t> randomRow();
  Tensor otherOperand(stablehlo::DotGeneralOp dot, unsigned ours, const Roles &roles);
  llvm::ArrayRef<int64_t> scoreSizes() const { return llvm::ArrayRef(site.sizes).drop_back(); }

  Obstacle &obstacle;
  Roles scoreRoles;
  llvm::MapVector<mlir::Value, Roles> reached;
  struct Reader {
    stablehlo::DotGeneralOp dot;
    unsigned operand;
    bool readsGradient = false;
  };
  Roles resultRoles(const Reader &reader);
  llvm::SmallVector<Reader> readers;
  stablehlo::ExpOp exponential;
  std::optional<unsigned> columnAxis;
  std::optional<std::pair<mlir::Value, Roles>> gradientOfProbabilities;
  bool metTable = false;
  llvm::SetVector<mlir::Value> leaves; ///< known at run time only; tried with arbitrary numbers
  bool tryLeaves = false, unknownLeaves = false, roundLeaves = false;
  uint64_t seed = 0;
  llvm::SmallVector<stablehlo::ReduceOp> sums;      ///< over other axes than the softmax's
  llvm::DenseMap<mlir::Value, mlir::Value> aliases; ///< values read back from stacks, and what was stored
  std::mt19937_64 random{0x6661727269657221ull};
};

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_ATTENTIONMATCHER_H
