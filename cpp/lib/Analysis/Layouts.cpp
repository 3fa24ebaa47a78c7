#include "farrier/Analysis/Layouts.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"

#include <algorithm>
#include <numeric>

using namespace mlir;

namespace farrier {

static RankedTensorType tensor(Value value) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  return type && type.hasStaticShape() ? type : RankedTensorType();
}

/// A dimension of extent 1 may stand anywhere.
static SmallVector<unsigned> withoutOnes(ArrayRef<unsigned> order, RankedTensorType type) {
  SmallVector<unsigned> kept;
  for (unsigned dim : order)
    if (type.getDimSize(dim) != 1)
      kept.push_back(dim);
  return kept;
}

static bool inDefaultOrder(ArrayRef<unsigned> order, RankedTensorType type) {
  SmallVector<unsigned> kept = withoutOnes(order, type);
  return llvm::is_sorted(kept);
}

Layouts::Layouts(const BlockGraph &graph, bool once)
    : graph(graph), orders(graph.numValues()), changesOrder(graph.numValues(), false),
      isGiven(graph.numValues(), false), keepsPlace(graph.numValues(), false) {
  for (unsigned arg = 0; arg < graph.numArguments; ++arg) {
    isGiven[arg] = true;
    if (RankedTensorType type = tensor(graph.values[arg])) {
      orders[arg].resize(type.getRank());
      std::iota(orders[arg].begin(), orders[arg].end(), 0);
    }
  }
  for (unsigned op = 0; op < graph.numOps(); ++op)
    propagate(op);
  for (unsigned value = graph.numValues(); once && value-- > graph.numArguments;)
    if (changesOrder[value] && !keepsPlace[value])
      reorderEarlier(value);
}

/// What a value is computed from elementwise, beside what any order serves, is reordered in its place: XLA gives a chain of
/// elementwise operations one order, and a kernel writes what stands behind the product.
void Layouts::reorderEarlier(unsigned value) {
  unsigned op = graph.definition[value];
  if (!graph.isVirtual[op] || !isElementwise(graph.ops[op]))
    return;
  int from = -1;
  for (unsigned input : graph.inputs[op])
    if (RankedTensorType type = tensor(graph.values[input]);
        type && type.getShape() == tensor(graph.values[value]).getShape() && !orders[input].empty()) {
      if (from >= 0 && from != static_cast<int>(input))
        return;
      from = static_cast<int>(input);
    }
  if (from < 0 || graph.definition[from] < 0 || !isElementwise(graph.ops[graph.definition[from]]))
    return;
  changesOrder[value] = false;
  changesOrder[from] = true;
}

/// The result of an elementwise operation lies as its oldest operand of the same shape does.
void Layouts::join(unsigned op) {
  unsigned result = graph.outputs[op][0];
  RankedTensorType type = tensor(graph.values[result]);
  int oldest = -1;
  for (unsigned input : graph.inputs[op])
    if (RankedTensorType from = tensor(graph.values[input]);
        from && from.getShape() == type.getShape() && !orders[input].empty() &&
        (oldest < 0 || input < static_cast<unsigned>(oldest)))
      oldest = static_cast<int>(input);
  if (oldest < 0)
    return;
  orders[result] = orders[oldest];
  isGiven[result] = isGiven[oldest];
  SmallVector<unsigned> order = withoutOnes(orders[oldest], type);
  for (unsigned input : graph.inputs[op])
    if (RankedTensorType from = tensor(graph.values[input]);
        from && from.getShape() == type.getShape() && !orders[input].empty() &&
        withoutOnes(orders[input], from) != order) {
      changesOrder[input] = true;
      keepsPlace[input] = keepsPlace[input] || isGiven[oldest];
    }
}

void Layouts::propagate(unsigned op) {
  Operation *operation = graph.ops[op];
  for (unsigned value : graph.outputs[op])
    if (RankedTensorType type = tensor(graph.values[value]); type && !graph.isVirtual[op]) {
      orders[value].resize(type.getRank());
      std::iota(orders[value].begin(), orders[value].end(), 0);
    }
  if (!graph.isVirtual[op] || graph.outputs[op].size() != 1 || graph.inputs[op].empty())
    return;
  unsigned result = graph.outputs[op][0], input = graph.inputs[op][0];
  isGiven[result] = isGiven[input];
  RankedTensorType type = tensor(graph.values[result]), from = tensor(graph.values[input]);
  if (!type || !from)
    return;
  if (auto transpose = dyn_cast<stablehlo::TransposeOp>(operation)) {
    Order &order = orders[result];
    // Where each dimension of the operand went.
    SmallVector<unsigned> went(from.getRank());
    for (auto [to, dim] : llvm::enumerate(transpose.getPermutation()))
      went[dim] = to;
    for (unsigned dim : orders[input])
      order.push_back(went[dim]);
    return;
  }
  if (isa<stablehlo::ReshapeOp>(operation)) {
    if (orders[input].empty())
      return;
    Order &order = orders[result];
    SmallVector<unsigned> kept, keptFrom;
    for (int64_t dim = 0; dim < type.getRank(); ++dim)
      if (type.getDimSize(dim) != 1)
        kept.push_back(dim);
    for (int64_t dim = 0; dim < from.getRank(); ++dim)
      if (from.getDimSize(dim) != 1)
        keptFrom.push_back(dim);
    bool same = kept.size() == keptFrom.size() &&
                llvm::all_of(llvm::zip(kept, keptFrom), [&](auto pair) {
                  return type.getDimSize(std::get<0>(pair)) == from.getDimSize(std::get<1>(pair));
                });
    // Dimensions that are split or joined are in order before they are.
    order.resize(type.getRank());
    std::iota(order.begin(), order.end(), 0);
    if (!same || inDefaultOrder(orders[input], from))
      return;
    order.clear();
    for (int64_t dim = 0; dim < type.getRank(); ++dim)
      if (type.getDimSize(dim) == 1)
        order.push_back(dim);
    for (unsigned dim : withoutOnes(orders[input], from))
      order.push_back(kept[llvm::find(keptFrom, dim) - keptFrom.begin()]);
    return;
  }
  // A broadcast is written in whatever order its reader wants.
  if (isa<stablehlo::BroadcastInDimOp, stablehlo::BroadcastOp, stablehlo::BitcastConvertOp>(operation))
    return;
  if (type.getRank() == from.getRank() && type.getShape() != from.getShape()) {
    // Slices, pads, concatenations keep the order.
    orders[result] = orders[input];
    return;
  }
  join(op);
}

namespace {

/// The dimensions of a product's operand by what the product does with them.
struct Roles {
  SmallVector<unsigned> batch, free, contracted;

  Roles(stablehlo::DotGeneralOp dot, unsigned operand) {
    auto numbers = dot.getDotDimensionNumbers();
    ArrayRef<int64_t> batches =
        operand == 0 ? numbers.getLhsBatchingDimensions() : numbers.getRhsBatchingDimensions();
    ArrayRef<int64_t> sums =
        operand == 0 ? numbers.getLhsContractingDimensions() : numbers.getRhsContractingDimensions();
    batch.assign(batches.begin(), batches.end());
    // XLA sorts what is summed over by the left operand's dimensions.
    SmallVector<unsigned> sorted(sums.size());
    std::iota(sorted.begin(), sorted.end(), 0);
    llvm::sort(sorted, [&](unsigned a, unsigned b) {
      return numbers.getLhsContractingDimensions()[a] < numbers.getLhsContractingDimensions()[b];
    });
    for (unsigned at : sorted)
      contracted.push_back(sums[at]);
    int64_t rank = cast<RankedTensorType>(dot->getOperand(operand).getType()).getRank();
    for (int64_t dim = 0; dim < rank; ++dim)
      if (!llvm::is_contained(batches, dim) && !llvm::is_contained(sums, dim))
        free.push_back(dim);
  }
};

SmallVector<unsigned> joined(std::initializer_list<ArrayRef<unsigned>> parts, RankedTensorType type) {
  SmallVector<unsigned> all;
  for (ArrayRef<unsigned> part : parts)
    all.append(part.begin(), part.end());
  return withoutOnes(all, type);
}

/// Whether XLA makes the product one of its operands in the other order: all that reads it wants what is free on the
/// right before what is free on the left.
bool isSwapped(stablehlo::DotGeneralOp dot) {
  if (!dot->hasOneUse())
    return false;
  auto transpose = dyn_cast<stablehlo::TransposeOp>(*dot->user_begin());
  if (!transpose)
    return false;
  Roles left(dot, 0), right(dot, 1);
  SmallVector<int64_t> swapped;
  auto add = [&](unsigned from, unsigned count) {
    for (unsigned dim = from; dim < from + count; ++dim)
      swapped.push_back(dim);
  };
  add(0, left.batch.size());
  add(left.batch.size() + left.free.size(), right.free.size());
  add(left.batch.size(), left.free.size());
  return llvm::equal(transpose.getPermutation(), swapped);
}

/// Whether the operand's batch dimensions stand before all others.
bool leadsWithBatch(stablehlo::DotGeneralOp dot, unsigned operand) {
  RankedTensorType type = tensor(dot->getOperand(operand));
  Roles roles(dot, operand);
  SmallVector<unsigned> rest = roles.free;
  rest.append(roles.contracted);
  llvm::sort(rest);
  SmallVector<unsigned> named = joined({roles.batch, rest}, type);
  return llvm::is_sorted(named);
}

} // namespace

SmallVector<unsigned> Layouts::wanted(unsigned op, unsigned operand) const {
  auto dot = cast<stablehlo::DotGeneralOp>(graph.ops[op]);
  Roles roles(dot, operand);
  RankedTensorType type = tensor(dot->getOperand(operand));
  bool isLeft = (operand == 0) != isSwapped(dot);
  // XLA folds the exchange of two dimensions of a matrix in a batch into the product.
  if (leadsWithBatch(dot, 1 - operand) && leadsWithBatch(dot, operand)) {
    SmallVector<unsigned> named(type.getRank());
    std::iota(named.begin(), named.end(), 0);
    named = withoutOnes(named, type);
    if (named == joined({roles.batch, roles.free, roles.contracted}, type) ||
        named == joined({roles.batch, roles.contracted, roles.free}, type))
      return named;
  }
  return isLeft ? joined({roles.batch, roles.free, roles.contracted}, type)
                : joined({roles.batch, roles.contracted, roles.free}, type);
}

bool Layouts::isTransposedUntiled(unsigned value) const {
  RankedTensorType type = tensor(graph.values[value]);
  if (!type || orders[value].empty() || type.getElementTypeBitWidth() != 16)
    return false;
  SmallVector<unsigned> order = withoutOnes(orders[value], type);
  // Read off compiled attention with so many queries to a key, bf16, deviceless, H100; with 2, 4, 5 and 6 it has.
  int64_t innermost = order.empty() ? 1 : type.getDimSize(order.back());
  return innermost == 3 || innermost == 7 || (innermost >= 9 && innermost <= 15);
}

bool Layouts::serves(unsigned op, unsigned operand) const {
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(graph.ops[op]);
  if (!dot)
    return true;
  Value value = dot->getOperand(operand);
  RankedTensorType type = tensor(value);
  if (!type || !graph.contains(value))
    return true;
  const Order &order = orders[graph.id(value)];
  if (order.empty())
    return true;
  Roles roles(dot, operand);
  SmallVector<unsigned> now = withoutOnes(order, type);
  return now == joined({roles.batch, roles.free, roles.contracted}, type) ||
         now == joined({roles.batch, roles.contracted, roles.free}, type);
}

} // namespace farrier
