#include "farrier/Analysis/Pooling.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/WorthStoring.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Matchers.h"
#include "llvm/ADT/DenseMap.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

/// Bytes of an index, and of a maximum at least.
static constexpr int64_t wordBytes = 4;

/// The type of what gradients are added to. JAX pads the operand and cuts what it padded off again, which XLA leaves out
/// where padding only follows.
static Type addedTo(stablehlo::SelectAndScatterOp pool) {
  Value result = pool.getResult();
  auto cut = result.hasOneUse() ? dyn_cast<stablehlo::SliceOp>(*result.user_begin()) : stablehlo::SliceOp();
  bool follows = cut && llvm::all_of(cut.getStartIndices(), [](int64_t start) { return start == 0; }) &&
                 llvm::all_of(cut.getStrides(), [](int64_t stride) { return stride == 1; });
  return follows ? cut.getType() : pool.getType();
}

/// For each of the types, the first operation that reads zeros of it.
static void findZeros(const BlockGraph &graph, llvm::DenseMap<Type, std::optional<unsigned>> &wanted) {
  for (auto [at, op] : llvm::enumerate(graph.ops)) {
    if (!isElementwise(op))
      continue;
    for (Value operand : op->getOperands())
      if (auto it = wanted.find(operand.getType()); it != wanted.end() && !it->second)
        if (ElementsAttr splat = splatOf(operand);
            splat && (matchPattern(splat, m_AnyZeroFloat()) || matchPattern(splat, m_Zero())))
          it->second = at;
  }
}

std::vector<PoolGradient> poolGradients(const BlockGraph &graph) {
  std::vector<PoolGradient> result;
  llvm::DenseMap<Type, std::optional<unsigned>> zeros;
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    auto pool = dyn_cast<stablehlo::SelectAndScatterOp>(graph.ops[op]);
    auto type = pool ? dyn_cast<RankedTensorType>(addedTo(pool)) : RankedTensorType();
    auto padded = pool ? dyn_cast<RankedTensorType>(pool.getType()) : RankedTensorType();
    if (!type || !type.hasStaticShape() || !padded || !padded.hasStaticShape() || !graph.contains(pool.getOperand()) ||
        !graph.contains(pool.getSource()))
      continue;
    // What a device has of all windows.
    int64_t bits = elementBits(pool.getSource().getType());
    int64_t windows = graph.bytes[graph.id(pool.getSource())] * 8 / std::max<int64_t>(bits, 1);
    int64_t indices = type.getRank() * wordBytes * windows;
    int64_t added = graph.bytes[graph.outputs[op][0]] * type.getNumElements() / std::max<int64_t>(1, padded.getNumElements());
    result.push_back({op, indices + std::max(wordBytes, bits / 8) * windows, indices, std::nullopt, added});
    zeros.try_emplace(type, std::nullopt);
  }
  if (!result.empty())
    findZeros(graph, zeros);
  for (PoolGradient &gradient : result) {
    std::optional<unsigned> first = zeros.lookup(addedTo(cast<stablehlo::SelectAndScatterOp>(graph.ops[gradient.op])));
    if (first && *first < gradient.op)
      gradient.zerosFor = first;
  }
  return result;
}

/// Whether the gradient of maxima reads the value, padded or not.
static bool isReadByGradient(Value value) {
  return llvm::any_of(value.getUsers(), [](Operation *user) {
    return isa<stablehlo::SelectAndScatterOp>(user) ||
           (isa<stablehlo::PadOp>(user) && llvm::any_of(user->getUsers(), [](Operation *next) {
              return isa<stablehlo::SelectAndScatterOp>(next);
            }));
  });
}

bool storesWindowed(const BlockGraph &graph, unsigned op) {
  constexpr int64_t leastElements = 4 << 20;
  auto pool = dyn_cast<stablehlo::ReduceWindowOp>(graph.ops[op]);
  if (!pool || pool.getInputs().size() != 1)
    return false;
  Value value = pool.getInputs().front();
  if (!graph.contains(value))
    return false;
  auto type = dyn_cast<RankedTensorType>(value.getType());
  auto strides = pool.getWindowStrides();
  bool overlaps = false;
  for (auto [dim, extent] : llvm::enumerate(pool.getWindowDimensions()))
    overlaps |= extent > (strides ? (*strides)[dim] : 1);
  return overlaps && type && type.hasStaticShape() && type.getNumElements() >= leastElements && isComputed(value, 3) &&
         isReadByGradient(value);
}

} // namespace farrier
