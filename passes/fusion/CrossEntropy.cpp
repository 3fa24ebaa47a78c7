//===- CrossEntropy.cpp - logits in chunks of tokens ----------------------===//
//
// Finds products whose giant result is turned into exponentials and reduced along its rows (a softmax over a
// vocabulary), and runs everything up to the small results as a loop over tokens. What exactly is computed
// between (soft-capping, z-loss, label smoothing, masks, accuracy) does not matter: a TileRegion follows the
// token axis through all of it.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Fusion.h"
#include "passes/fusion/Tile.h"

#include "llvm/ADT/SetVector.h"

using namespace mlir;

namespace farrier::fusion {

namespace {

/// A look ahead, cheap enough for every big product: do its rows become exponentials, and are they reduced?
/// Returns the first reduction over rows.
stablehlo::ReduceOp findRowReduction(stablehlo::DotGeneralOp dot) {
  constexpr unsigned limit = 256;
  int64_t elements = tensorType(dot.getResult()).getNumElements();
  SetVector<Operation *> seen;
  seen.insert(dot);
  bool exponential = false;
  stablehlo::ReduceOp reduction;
  for (unsigned i = 0; i < seen.size() && i < limit; ++i) {
    Operation *op = seen[i];
    exponential |= isa<stablehlo::ExpOp>(op);
    if (auto reduce = dyn_cast<stablehlo::ReduceOp>(op)) {
      if (!reduction)
        reduction = reduce;
      continue;
    }
    for (Value result : op->getResults())
      if (RankedTensorType type = tensorType(result); type && type.getNumElements() == elements)
        for (Operation *user : result.getUsers())
          if (isElementwise(user) ||
              isa<stablehlo::ReduceOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(user))
            seen.insert(user);
  }
  return exponential ? reduction : stablehlo::ReduceOp();
}

int64_t smallestDivisorFrom(int64_t n, int64_t size) {
  for (int64_t divisor = n; divisor <= size; ++divisor)
    if (size % divisor == 0)
      return divisor;
  return size;
}

class CrossEntropy {
public:
  explicit CrossEntropy(const Settings &settings) : settings(settings) {}

  bool tryRewrite(stablehlo::DotGeneralOp dot) {
    if (isForbidden(dot)) {
      missed(dot, "cross-entropy", "a hint forbids it");
      return false;
    }
    bool sharded = settings.partitions > 1 && !isLocal(dot);
    int64_t bytes = tensorType(dot.getResult()).getNumElements() * 4 / (sharded ? settings.partitions : 1);
    int64_t wanted = settings.chunks;
    if (wanted == 0)
      while ((wanted = wanted ? wanted * 2 : 1) * settings.chunkBytes < bytes) {
      }
    if (wanted < 2)
      return false;

    std::optional<TileRegion> best;
    std::string reason = "no axis of the product's result is a batch of rows";
    Operation *obstacle = dot;
    for (int64_t dim : candidates(dot, sharded)) {
      std::string why;
      Operation *where = nullptr;
      std::optional<TileRegion> region = TileRegion::grow(dot, dim, why, where);
      if (region && region->sliced.empty() && region->summed.empty()) {
        why = "nothing reads its result";
        region.reset();
      }
      if (region) {
        best = std::move(region);
        break;
      }
      if (obstacle == dot) {
        reason = why;
        obstacle = where;
      }
    }
    if (!best) {
      missed(dot, "cross-entropy", reason + " (" + place(obstacle) + ")");
      return false;
    }
    if (settings.numerics == Numerics::Bitwise && !best->summed.empty()) {
      missed(dot, "cross-entropy",
             "adding up the weights' gradient chunk by chunk regroups a sum, which "
             "numerics=bitwise does not allow");
      return false;
    }
    int64_t chunks = smallestDivisorFrom(std::min(wanted, best->size), best->size);
    if (chunks > 4 * wanted) {
      missed(dot, "cross-entropy",
             "the number of tokens, " + Twine(best->size) + ", has no divisor near " + Twine(wanted));
      return false;
    }
    apply(*best, chunks);
    return true;
  }

private:
  /// Dimensions of the result to cut along, best first: those that no softmax runs over, the longest first.
  SmallVector<int64_t> candidates(stablehlo::DotGeneralOp dot, bool sharded) {
    RankedTensorType type = tensorType(dot.getResult());
    stablehlo::ReduceOp reduction = findRowReduction(dot);
    SmallVector<int64_t> dims;
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      bool reduced = tensorType(reduction.getInputs()[0]).getShape() == type.getShape() &&
                     llvm::is_contained(reduction.getDimensions(), dim);
      // XLA shards the leading dimension of activations; slicing it would gather it on every device.
      if (!reduced && type.getDimSize(dim) > 1 && !(sharded && dim == 0))
        dims.push_back(dim);
    }
    llvm::stable_sort(dims, [&](int64_t a, int64_t b) { return type.getDimSize(a) > type.getDimSize(b); });
    return dims;
  }

  void apply(TileRegion &region, int64_t chunks) {
    {
      auto note =
          remark::passed(region.seed.getLoc(), remark::RemarkOpts::name("cross-entropy").category("fusion"));
      note << ("runs in " + Twine(chunks) + " chunks of " + Twine(region.size / chunks) +
               " along the token axis; values per token keep every bit" +
               (region.summed.empty() ? "" : ", sums over tokens are added up per chunk in f32"))
                  .str();
      note << remark::metric("Chunks", chunks) << remark::metric("GiantBytes", region.bigBytes)
           << remark::metric("Operations", region.ops.size())
           << remark::metric("Bound", region.summed.empty() ? "bitwise" : "regrouped f32 sum");
    }
    gone.insert_range(region.ops);
    region.emit({chunks, settings.numerics == Numerics::Relaxed});
  }

public:
  llvm::DenseSet<Operation *>
      gone; ///< operations of regions already rewritten: other seeds may be among them

private:
  const Settings &settings;
};

} // namespace

unsigned rewriteCrossEntropy(ModuleOp module, const Settings &settings) {
  SmallVector<stablehlo::DotGeneralOp> seeds;
  int64_t least = settings.chunks ? 0 : settings.minBytes;
  module.walk([&](stablehlo::DotGeneralOp dot) {
    RankedTensorType type = tensorType(dot.getResult());
    bool big = type && type.hasStaticShape() && isa<FloatType>(type.getElementType()) &&
               type.getNumElements() * 4 >= std::max<int64_t>(least, 1);
    if (big && dot.getDotDimensionNumbers().getLhsBatchingDimensions().empty() && findRowReduction(dot))
      seeds.push_back(dot);
  });
  CrossEntropy rewrite(settings);
  unsigned applied = 0;
  for (stablehlo::DotGeneralOp seed : seeds)
    if (!rewrite.gone.contains(seed) && rewrite.tryRewrite(seed))
      ++applied;
  return applied;
}

} // namespace farrier::fusion
