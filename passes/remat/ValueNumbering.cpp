#include "passes/remat/ValueNumbering.h"

#include "passes/remat/LoopsPair.h"

#include "farrier/Analysis/Measured.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/OperationSupport.h"

using namespace mlir;

namespace farrier::remat {

/// Operations outside of the bodies at hand that one value is traced through: enough for tables of positions and masks.
static constexpr unsigned longestChain = 32;

unsigned ValueNumbering::ofEvaluated(Type type, llvm::ArrayRef<uint64_t> list) {
  Key key{bits(type.getAsOpaquePointer())};
  if (list.size() > 1 && llvm::all_equal(list))
    list = list.take_front();
  key.insert(key.end(), list.begin(), list.end());
  return ofKey(Evaluated, std::move(key));
}

unsigned ValueNumbering::ofKey(Tag tag, Key key) {
  auto [it, isNew] = numbers.try_emplace({tag, std::move(key)}, next);
  next += isNew;
  return it->second;
}

/// The properties of a collective but for its channel: each call has another one.
static Attribute withoutChannel(Attribute properties) {
  auto dictionary = dyn_cast_or_null<DictionaryAttr>(properties);
  if (!dictionary)
    return properties;
  NamedAttrList rest(dictionary);
  rest.erase("channel_handle");
  return rest.getDictionary(properties.getContext());
}

unsigned ValueNumbering::operator[](Value value) {
  if (auto it = numberOf.find(value); it != numberOf.end())
    return it->second;
  // What a loop body captures can be made outside of the one loop and inside of the other.
  SmallVector<Operation *> made;
  unsigned left = longestChain;
  if (chain(value, made, left))
    for (Operation *op : made)
      number(op);
  auto [it, isNew] = numberOf.try_emplace(value, 0);
  if (isNew)
    it->second = ofKey(Outside, {bits(value.getAsOpaquePointer())});
  return it->second;
}

bool ValueNumbering::chain(Value value, SmallVectorImpl<Operation *> &made, unsigned &left) const {
  Operation *op = value.getDefiningOp();
  if (!op || numberOf.contains(value) || llvm::is_contained(made, op) || op->getNumRegions() || !isClonable(op))
    return true;
  if (left-- == 0)
    return false;
  for (Value operand : op->getOperands())
    if (!chain(operand, made, left))
      return false;
  made.push_back(op);
  return true;
}

void ValueNumbering::number(Operation *op) {
  if (isa<stablehlo::OptimizationBarrierOp>(op)) {
    for (auto [operand, result] : llvm::zip(op->getOperands(), op->getResults()))
      set(result, (*this)[operand]);
    return;
  }
  // As `numberLoop` does with what is the same in every iteration.
  if (op->getNumResults() == 1)
    if (std::optional<int64_t> scalar = scalars.evaluate(op->getResult(0))) {
      Value result = op->getResult(0);
      return set(result, ofEvaluated(result.getType(), {static_cast<uint64_t>(*scalar)}));
    }
  bool asCollective = collectives && isCollective(op);
  if (!isClonable(op) && !asCollective) {
    for (Value result : op->getResults())
      setFresh(result);
    return;
  }
  Attribute properties = op->getPropertiesAsAttribute();
  if (asCollective)
    properties = withoutChannel(properties);
  Key key{bits(op->getName().getAsOpaquePointer()), bits(attributesBesideMeasured(op).getAsOpaquePointer()),
          bits(properties.getAsOpaquePointer())};
  for (Type type : op->getResultTypes())
    key.push_back(bits(type.getAsOpaquePointer()));
  // Every operand in its place: one that is read twice counts twice.
  for (Value operand : op->getOperands())
    key.push_back((*this)[operand]);
  if (op->getNumRegions()) {
    // What regions capture is compared with them, by its number.
    for (Value read : readsOf(op))
      (*this)[read];
    key.push_back(regionNumber(op));
  }
  unsigned whole = ofKey(Operand, std::move(key));
  for (auto [i, result] : llvm::enumerate(op->getResults()))
    set(result, ofKey(Result, {whole, i}));
}

unsigned ValueNumbering::regionNumber(Operation *op) {
  for (auto [other, number] : withRegions)
    if (sameRegions(other, op))
      return number;
  withRegions.push_back({op, fresh()});
  return withRegions.back().second;
}

bool ValueNumbering::sameRegions(Operation *a, Operation *b) {
  if (a->getName() != b->getName() || a->getNumRegions() != b->getNumRegions())
    return false;
  DenseMap<Value, Value> inside;
  auto same = [&](Value left, Value right) {
    if (auto it = inside.find(left); it != inside.end())
      return success(it->second == right);
    auto l = numberOf.find(left), r = numberOf.find(right);
    if (l == numberOf.end() || r == numberOf.end())
      return success(left == right);
    return success(l->second == r->second);
  };
  auto mark = [&](Value left, Value right) { inside[left] = right; };
  for (auto [left, right] : llvm::zip(a->getRegions(), b->getRegions()))
    if (!OperationEquivalence::isRegionEquivalentTo(
            &left, &right, same, mark, OperationEquivalence::IgnoreLocations | OperationEquivalence::IgnoreDiscardableAttrs))
      return false;
  auto attributes = [](Operation *op) {
    SmallVector<DictionaryAttr> found;
    op->walk([&](Operation *inner) { found.push_back(attributesBesideMeasured(inner)); });
    return found;
  };
  return attributes(a) == attributes(b);
}

} // namespace farrier::remat
