#include "farrier/Analysis/ScalarEval.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/TypeUtilities.h"
#include "llvm/ADT/StringSwitch.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

/// Index expressions are shallow; anything deeper is not one.
static constexpr unsigned maxDepth = 64;

static int64_t wrap(int64_t number, Type type) {
  auto integer = dyn_cast<IntegerType>(type);
  if (!integer || integer.getWidth() >= 64)
    return number;
  unsigned unused = 64 - integer.getWidth();
  uint64_t bits = static_cast<uint64_t>(number) << unused;
  // JAX's predicates are i1: true is 1, not -1.
  return integer.isUnsigned() || integer.getWidth() == 1 ? static_cast<int64_t>(bits >> unused)
                                                         : static_cast<int64_t>(bits) >> unused;
}

static std::optional<bool> compare(stablehlo::ComparisonDirection direction, int64_t lhs, int64_t rhs) {
  switch (direction) {
  case stablehlo::ComparisonDirection::EQ:
    return lhs == rhs;
  case stablehlo::ComparisonDirection::NE:
    return lhs != rhs;
  case stablehlo::ComparisonDirection::GE:
    return lhs >= rhs;
  case stablehlo::ComparisonDirection::GT:
    return lhs > rhs;
  case stablehlo::ComparisonDirection::LE:
    return lhs <= rhs;
  case stablehlo::ComparisonDirection::LT:
    return lhs < rhs;
  }
  return std::nullopt;
}

/// The operation that makes a scalar, if it is one to evaluate.
static Operation *scalarMadeBy(Value value, unsigned depth) {
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (depth > maxDepth || !type || !type.hasStaticShape() || type.getNumElements() != 1 ||
      !type.getElementType().isIntOrIndex())
    return nullptr;
  return value.getDefiningOp();
}

static std::optional<int64_t> constantNumber(stablehlo::ConstantOp constant) {
  auto elements = dyn_cast<DenseIntElementsAttr>(constant.getValue());
  if (!elements)
    return std::nullopt;
  llvm::APInt bits = *elements.value_begin<llvm::APInt>();
  return static_cast<int64_t>(bits.getBitWidth() <= 64 ? bits.getZExtValue() : 0);
}

/// The number that an operation makes of its operands', not yet wrapped.
template <typename Operand>
static std::optional<int64_t> apply(Operation *op, Operand operand) {
  if (auto constant = dyn_cast<stablehlo::ConstantOp>(op))
    return constantNumber(constant);
  if (isa<stablehlo::ConvertOp, stablehlo::ReshapeOp>(op))
    return operand(0);
  if (auto cmp = dyn_cast<stablehlo::CompareOp>(op)) {
    if (std::optional<int64_t> lhs = operand(0), rhs = operand(1); lhs && rhs)
      if (std::optional<bool> truth = compare(cmp.getComparisonDirection(), *lhs, *rhs))
        return *truth;
    return std::nullopt;
  }
  if (isa<stablehlo::SelectOp>(op)) {
    std::optional<int64_t> predicate = operand(0);
    return predicate ? operand(*predicate ? 1 : 2) : std::nullopt;
  }
  if (isa<stablehlo::ClampOp>(op)) {
    if (std::optional<int64_t> low = operand(0), x = operand(1), high = operand(2); low && x && high)
      return std::max(*low, std::min(*x, *high));
    return std::nullopt;
  }
  if (op->getNumOperands() != 2)
    return std::nullopt;
  std::optional<int64_t> lhs = operand(0), rhs = lhs ? operand(1) : std::nullopt;
  if (!lhs || !rhs)
    return std::nullopt;
  // Unsigned arithmetic: wrapping is what the program does, and signed overflow is undefined here.
  auto a = static_cast<uint64_t>(*lhs), b = static_cast<uint64_t>(*rhs);
  if (isa<stablehlo::AddOp>(op))
    return static_cast<int64_t>(a + b);
  if (isa<stablehlo::SubtractOp>(op))
    return static_cast<int64_t>(a - b);
  if (isa<stablehlo::MulOp>(op))
    return static_cast<int64_t>(a * b);
  if (isa<stablehlo::MinOp>(op))
    return std::min(*lhs, *rhs);
  if (isa<stablehlo::MaxOp>(op))
    return std::max(*lhs, *rhs);
  if (isa<stablehlo::AndOp>(op))
    return *lhs & *rhs;
  if (isa<stablehlo::OrOp>(op))
    return *lhs | *rhs;
  if (isa<stablehlo::DivOp>(op) && *rhs > 0 && *lhs >= 0)
    return *lhs / *rhs;
  if (isa<stablehlo::RemOp>(op) && *rhs > 0 && *lhs >= 0)
    return *lhs % *rhs;
  return std::nullopt;
}

static std::optional<int64_t> wrapped(std::optional<int64_t> number, Operation *op) {
  if (number)
    number = wrap(*number, getElementTypeOrSelf(op->getResult(0).getType()));
  return number;
}

std::optional<int64_t> ScalarEval::evaluate(Value value, unsigned depth) {
  if (auto it = known.find(value); it != known.end())
    return it->second;
  Operation *op = scalarMadeBy(value, depth);
  if (!op)
    return std::nullopt;
  std::optional<int64_t> result =
      wrapped(apply(op, [&](unsigned i) { return evaluate(op->getOperand(i), depth + 1); }), op);
  known[value] = result;
  return result;
}

unsigned ScalarProgram::bind(Value value) {
  auto [it, isNew] = places.try_emplace(value, numbers.size());
  if (isNew)
    numbers.push_back(std::nullopt);
  return it->second;
}

unsigned ScalarProgram::add(Value value, unsigned depth) {
  if (auto it = places.find(value); it != places.end())
    return it->second;
  Step step{scalarMadeBy(value, depth), {}, 0};
  // What is not one to evaluate is as little known as what is not bound.
  if (step.op && !isa<stablehlo::ConstantOp>(step.op))
    for (Value operand : step.op->getOperands().take_front(3))
      step.operands.push_back(add(operand, depth + 1));
  step.result = numbers.size();
  places[value] = step.result;
  numbers.push_back(std::nullopt);
  if (auto constant = dyn_cast_or_null<stablehlo::ConstantOp>(step.op))
    numbers.back() = wrapped(constantNumber(constant), constant);
  else if (step.op)
    steps.push_back(std::move(step));
  return places[value];
}

void ScalarProgram::run() {
  for (Step &step : steps)
    numbers[step.result] =
        wrapped(apply(step.op, [&](unsigned i) { return numbers[step.operands[i]]; }), step.op);
}

} // namespace farrier
