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
  auto integer = dyn_cast<IntegerType>(getElementTypeOrSelf(type));
  if (!integer || integer.getWidth() >= 64)
    return number;
  llvm::APInt bits(64, static_cast<uint64_t>(number), /*isSigned=*/false, /*implicitTrunc=*/true);
  bits = bits.trunc(integer.getWidth());
  // JAX's predicates are i1: true is 1, not -1.
  return integer.isUnsigned() || integer.getWidth() == 1 ? bits.getZExtValue() : bits.getSExtValue();
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

std::optional<int64_t> ScalarEval::evaluate(Value value, unsigned depth) {
  if (auto it = known.find(value); it != known.end())
    return it->second;
  auto type = dyn_cast<RankedTensorType>(value.getType());
  Operation *op = value.getDefiningOp();
  if (!op || depth > maxDepth || !type || !type.hasStaticShape() || type.getNumElements() != 1 ||
      !type.getElementType().isIntOrIndex())
    return std::nullopt;

  std::optional<int64_t> result;
  auto operand = [&](unsigned i) { return evaluate(op->getOperand(i), depth + 1); };
  if (auto constant = dyn_cast<stablehlo::ConstantOp>(op)) {
    if (auto elements = dyn_cast<DenseIntElementsAttr>(constant.getValue())) {
      llvm::APInt bits = *elements.value_begin<llvm::APInt>();
      result = wrap(static_cast<int64_t>(bits.getBitWidth() <= 64 ? bits.getZExtValue() : 0), type);
    }
  } else if (isa<stablehlo::ConvertOp, stablehlo::ReshapeOp>(op)) {
    result = operand(0);
  } else if (auto cmp = dyn_cast<stablehlo::CompareOp>(op)) {
    if (std::optional<int64_t> lhs = operand(0), rhs = operand(1); lhs && rhs)
      if (std::optional<bool> truth = compare(cmp.getComparisonDirection(), *lhs, *rhs))
        result = *truth;
  } else if (isa<stablehlo::SelectOp>(op)) {
    if (std::optional<int64_t> predicate = operand(0))
      result = operand(*predicate ? 1 : 2);
  } else if (isa<stablehlo::ClampOp>(op)) {
    if (std::optional<int64_t> low = operand(0), x = operand(1), high = operand(2); low && x && high)
      result = std::max(*low, std::min(*x, *high));
  } else if (op->getNumOperands() == 2) {
    std::optional<int64_t> lhs = operand(0), rhs = lhs ? operand(1) : std::nullopt;
    if (lhs && rhs) {
      // Unsigned arithmetic: wrapping is what the program does, and signed overflow is undefined here.
      auto a = static_cast<uint64_t>(*lhs), b = static_cast<uint64_t>(*rhs);
      if (isa<stablehlo::AddOp>(op))
        result = static_cast<int64_t>(a + b);
      else if (isa<stablehlo::SubtractOp>(op))
        result = static_cast<int64_t>(a - b);
      else if (isa<stablehlo::MulOp>(op))
        result = static_cast<int64_t>(a * b);
      else if (isa<stablehlo::MinOp>(op))
        result = std::min(*lhs, *rhs);
      else if (isa<stablehlo::MaxOp>(op))
        result = std::max(*lhs, *rhs);
      else if (isa<stablehlo::AndOp>(op))
        result = *lhs & *rhs;
      else if (isa<stablehlo::OrOp>(op))
        result = *lhs | *rhs;
      else if (isa<stablehlo::DivOp>(op) && *rhs > 0 && *lhs >= 0)
        result = *lhs / *rhs;
      else if (isa<stablehlo::RemOp>(op) && *rhs > 0 && *lhs >= 0)
        result = *lhs % *rhs;
    }
  }
  if (result)
    result = wrap(*result, type);
  known[value] = result;
  return result;
}

} // namespace farrier
