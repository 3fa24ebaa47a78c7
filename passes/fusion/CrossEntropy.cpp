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
      // The last token's logits are often cut off.
      if (RankedTensorType type = tensorType(result); type && type.getNumElements() * 2 >= elements)
        for (Operation *user : result.getUsers())
          if (isElementwise(user) ||
              isa<stablehlo::ReduceOp, stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::SliceOp>(user))
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
    const ProductSharding *sharding = nullptr;
    if (settings.partitions > 1 && !isLocal(dot)) {
      sharding = shardingOf(dot);
      if (!sharding) {
        missed(dot, "cross-entropy", "how XLA splits the logits over devices is not known");
        return false;
      }
      if (splitsContraction(dot, *sharding)) {
        missed(dot, "cross-entropy", "devices hold parts of the sum that makes the logits");
        return false;
      }
    }
    int64_t bytes = tensorType(dot.getResult()).getNumElements() * 4;
    if (sharding)
      for (const ProductSharding::Dim &dim : sharding->values[2])
        bytes /= dim.count;
    int64_t wanted = settings.chunks;
    if (wanted == 0)
      while ((wanted = wanted ? wanted * 2 : 1) * settings.chunkBytes < bytes) {
      }
    if (wanted < 2)
      return false;

    std::optional<TileRegion> best;
    std::string reason = "no axis of the product's result is a batch of rows";
    Operation *obstacle = dot;
    for (auto [dim, outer] : candidates(dot, sharding)) {
      std::string why;
      Operation *where = nullptr;
      std::optional<TileRegion> region = TileRegion::grow(dot, dim, outer, why, where);
      if (region && sharding && !follow(*region, *sharding, why, where))
        region.reset();
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
  const ProductSharding *shardingOf(stablehlo::DotGeneralOp dot) {
    auto number = dot->getAttrOfType<IntegerAttr>("farrier.op");
    auto it = number ? settings.shardings.find(number.getInt()) : settings.shardings.end();
    if (it == settings.shardings.end())
      return nullptr;
    for (unsigned i = 0; i < 3; ++i) {
      RankedTensorType type = tensorType(i < 2 ? dot->getOperand(i) : dot->getResult(0));
      if (static_cast<int64_t>(it->second.values[i].size()) != type.getRank())
        return nullptr;
      for (int64_t dim = 0; dim < type.getRank(); ++dim)
        if (type.getDimSize(dim) % it->second.values[i][dim].count)
          return nullptr; // XLA pads: blocks are not equal
    }
    return &it->second;
  }

  /// Whether both operands are split along what is summed: each device then has a part of every logit.
  static bool splitsContraction(stablehlo::DotGeneralOp dot, const ProductSharding &sharding) {
    auto numbers = dot.getDotDimensionNumbers();
    for (auto [left, right] :
         llvm::zip(numbers.getLhsContractingDimensions(), numbers.getRhsContractingDimensions()))
      if (sharding.values[0][left].count > 1 && sharding.values[0][left].axes == sharding.values[1][right].axes)
        return true;
    return false;
  }

  /// Follows the devices' blocks of rows through the region, and pins the product's operands: rows as the logits
  /// are split, the weights' columns likewise, and what is summed whole on every device before the loop starts.
  static bool follow(TileRegion &region, const ProductSharding &sharding, std::string &why, Operation *&where) {
    stablehlo::DotGeneralOp dot = region.seed;
    region.mesh = sharding.mesh;
    ArrayRef<ProductSharding::Dim> result = sharding.values[2];
    auto numbers = dot.getDotDimensionNumbers();
    unsigned at = 0;
    for (unsigned i : {0u, 1u}) {
      ArrayRef<int64_t> contracted =
          i == 0 ? numbers.getLhsContractingDimensions() : numbers.getRhsContractingDimensions();
      std::string axes;
      for (int64_t dim = 0; dim < tensorType(dot->getOperand(i)).getRank(); ++dim)
        axes += (dim ? ", " : "") + (llvm::is_contained(contracted, dim) ? "{}" : result[at++].axes);
      Value value = dot->getOperand(i);
      region.pinned.emplace_back(value, axes);
      if (auto convert = value.getDefiningOp<stablehlo::ConvertOp>())
        region.pinned.emplace_back(convert.getOperand(), axes);
    }
    // Only rows: along the vocabulary devices add up in every chunk what they added up at once before.
    AxisPlace axis = region.places[dot.getResult()];
    DenseSet<int64_t> rows = rowDims(dot);
    for (auto [dim, split] : llvm::enumerate(result))
      if (split.count > 1 && (rows.contains(dim) || static_cast<int64_t>(dim) == axis.dim) &&
          !region.addBlocks(dim, split.count, split.axes, why, where))
        return false;
    return true;
  }

  /// Dimensions of the result that no softmax runs over: followed to the reduction over rows.
  static DenseSet<int64_t> rowDims(stablehlo::DotGeneralOp dot) {
    RankedTensorType type = tensorType(dot.getResult());
    stablehlo::ReduceOp reduction = findRowReduction(dot);
    DenseSet<int64_t> rows;
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      int64_t size = type.getDimSize(dim);
      SmallVector<std::pair<Value, AxisPlace>> found{{dot.getResult(), AxisPlace{dim, 1, 1}}};
      DenseSet<Operation *> seen;
      bool reduced = false;
      constexpr unsigned limit = 256;
      for (unsigned i = 0; i < found.size() && i < limit && !reduced; ++i) {
        auto [value, place] = found[i];
        for (OpOperand &use : value.getUses()) {
          Operation *user = use.getOwner();
          if (user == reduction.getOperation())
            reduced = llvm::is_contained(reduction.getDimensions(), place.dim);
          else if (isElementwise(user) || isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(user)) {
            if (!seen.insert(user).second)
              continue;
            if (auto flow = flowFromOperand(user, use.getOperandNumber(), place, size))
              found.emplace_back(user->getResult(0), *flow->results[0]);
          } else if (isa<stablehlo::SliceOp>(user) && seen.insert(user).second) {
            found.emplace_back(user->getResult(0), place); // shorter, and where it was
          }
        }
      }
      if (!reduced)
        rows.insert(dim);
    }
    return rows;
  }

  /// Dimensions of the result to cut along and in how many blocks, best first: rows, the longest first. Blocks
  /// are what devices hold: slicing across them would gather it on every device. Where rows were several
  /// dimensions once, a block may also be the first of these.
  static SmallVector<std::pair<int64_t, int64_t>> candidates(stablehlo::DotGeneralOp dot,
                                                             const ProductSharding *sharding) {
    RankedTensorType type = tensorType(dot.getResult());
    DenseSet<int64_t> rows = rowDims(dot);
    SmallVector<std::pair<int64_t, int64_t>> found;
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      int64_t extent = type.getDimSize(dim), count = sharding ? sharding->values[2][dim].count : 1;
      if (!rows.contains(dim))
        continue;
      if (extent / count > 1)
        found.emplace_back(dim, count);
      auto joined = dot.getLhs().getDefiningOp<stablehlo::ReshapeOp>();
      if (!joined || dim != 0 || tensorType(joined.getOperand()).getRank() == 0)
        continue;
      int64_t first = tensorType(joined.getOperand()).getDimSize(0);
      if (first > count && first < extent && extent % first == 0 && first % count == 0)
        found.emplace_back(dim, first);
    }
    llvm::stable_sort(found, [&](auto a, auto b) {
      return type.getDimSize(a.first) / a.second > type.getDimSize(b.first) / b.second;
    });
    return found;
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
  batchRowNumbers(module, least);
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
