//===- StableHLOFolds.cpp - rewrites that lose nothing ---------------------===//
//
// Only identities and compositions of pure data movement. Arithmetic is left to XLA, whose folding decides
// rounding. An operation that carries frontend attributes, a sharding or anything unknown is left alone:
// those would vanish.
//
//===----------------------------------------------------------------------===//

#include "farrier/Dialect/StableHLO/StableHLO.h"

using namespace mlir;
using namespace farrier::stablehlo;

static bool isIota(ArrayRef<int64_t> dims) { return llvm::equal(dims, llvm::seq<int64_t>(0, dims.size())); }

/// `from` if it can stand for `op`'s only result.
static OpFoldResult identity(Operation *op, Value from) {
  Type type = op->getResult(0).getType();
  auto ranked = dyn_cast<RankedTensorType>(type);
  if (!ranked || !ranked.hasStaticShape() || from.getType() != type || hasUnmodelledAttrs(op))
    return {};
  return from;
}

OpFoldResult ConvertOp::fold(FoldAdaptor) { return identity(*this, getOperand()); }
OpFoldResult BitcastConvertOp::fold(FoldAdaptor) { return identity(*this, getOperand()); }
OpFoldResult ReshapeOp::fold(FoldAdaptor) { return identity(*this, getOperand()); }

OpFoldResult BroadcastInDimOp::fold(FoldAdaptor) {
  return isIota(getBroadcastDimensions()) ? identity(*this, getOperand()) : OpFoldResult();
}

OpFoldResult TransposeOp::fold(FoldAdaptor) {
  return isIota(getPermutation()) ? identity(*this, getOperand()) : OpFoldResult();
}

OpFoldResult ReverseOp::fold(FoldAdaptor) {
  return getDimensions().empty() ? identity(*this, getOperand()) : OpFoldResult();
}

OpFoldResult ConcatenateOp::fold(FoldAdaptor) {
  return getInputs().size() == 1 ? identity(*this, getInputs().front()) : OpFoldResult();
}

OpFoldResult SliceOp::fold(FoldAdaptor) {
  // Strides of one and equal types leave only the whole operand.
  return llvm::all_of(getStrides(), [](int64_t stride) { return stride == 1; })
             ? identity(*this, getOperand())
             : OpFoldResult();
}

OpFoldResult SelectOp::fold(FoldAdaptor) {
  return getOnTrue() == getOnFalse() ? identity(*this, getOnTrue()) : OpFoldResult();
}

namespace {
struct TransposeOfTranspose : OpRewritePattern<TransposeOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(TransposeOp op, PatternRewriter &rewriter) const override {
    auto inner = op.getOperand().getDefiningOp<TransposeOp>();
    if (!inner)
      return rewriter.notifyMatchFailure(op, "the operand is no transpose");
    if (hasUnmodelledAttrs(op) || hasUnmodelledAttrs(inner))
      return rewriter.notifyMatchFailure(op, "attributes would be lost");
    SmallVector<int64_t> permutation;
    for (int64_t dim : op.getPermutation())
      permutation.push_back(inner.getPermutation()[dim]);
    rewriter.replaceOpWithNewOp<TransposeOp>(op, op.getType(), inner.getOperand(), permutation);
    return success();
  }
};

struct ReshapeOfReshape : OpRewritePattern<ReshapeOp> {
  using OpRewritePattern::OpRewritePattern;
  LogicalResult matchAndRewrite(ReshapeOp op, PatternRewriter &rewriter) const override {
    auto inner = op.getOperand().getDefiningOp<ReshapeOp>();
    if (!inner)
      return rewriter.notifyMatchFailure(op, "the operand is no reshape");
    if (hasUnmodelledAttrs(op) || hasUnmodelledAttrs(inner))
      return rewriter.notifyMatchFailure(op, "attributes would be lost");
    rewriter.replaceOpWithNewOp<ReshapeOp>(op, op.getType(), inner.getOperand());
    return success();
  }
};
} // namespace

void TransposeOp::getCanonicalizationPatterns(RewritePatternSet &patterns, MLIRContext *context) {
  patterns.add<TransposeOfTranspose>(context);
}

void ReshapeOp::getCanonicalizationPatterns(RewritePatternSet &patterns, MLIRContext *context) {
  patterns.add<ReshapeOfReshape>(context);
}
