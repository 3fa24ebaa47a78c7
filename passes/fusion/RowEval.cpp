#include "passes/fusion/RowEval.h"

#include "passes/fusion/Loops.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/TypeSwitch.h"

#include <cmath>

using namespace mlir;

namespace farrier::fusion {

using Numbers = RowEval::Numbers;

void RowEval::bind(Value value, const Roles &roles, Numbers numbers) {
  bound[value] = {roles, std::move(numbers)};
}

std::optional<Numbers> RowEval::fail(Operation *op, const Twine &reason) {
  if (whyNot.empty()) {
    whyNot = reason.str();
    where = op;
  }
  return std::nullopt;
}

std::optional<Numbers> RowEval::evaluate(Value value, const Roles &roles) {
  value = resolveInvariant(value);
  if (Value source = aliases.lookup(value))
    value = source;
  if (auto it = bound.find(value); it != bound.end()) {
    if (it->second.first != roles)
      return fail(value.getDefiningOp(), "scores are used with their axes in two different places");
    return it->second.second;
  }
  if (auto it = memo.find(value); it != memo.end())
    for (auto &[seen, numbers] : it->second)
      if (seen == roles)
        return numbers;
  constexpr unsigned limit = 512;
  if (depth > limit)
    return fail(value.getDefiningOp(), "the expression is too deep");
  ++depth;
  std::optional<Numbers> numbers = compute(value, roles);
  --depth;
  if (numbers)
    memo[value].emplace_back(roles, *numbers);
  return numbers;
}

std::optional<int64_t> RowEval::index(RankedTensorType type, const Roles &roles, int64_t dim, size_t i) {
  int64_t covered = 1, result = 0;
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (roles[axis] && roles[axis]->dim == dim) {
      covered *= sizes[axis];
      result += (axis == column ? columns[i] : coordinates[axis]) * roles[axis]->inner;
    }
  if (covered != type.getDimSize(dim))
    return std::nullopt;
  return result;
}

static double readElement(DenseElementsAttr dense, int64_t flat) {
  if (auto type = dyn_cast<FloatType>(dense.getElementType())) {
    APFloat number = *(dense.value_begin<APFloat>() + flat);
    bool loses = false;
    number.convert(APFloat::IEEEdouble(), APFloat::rmNearestTiesToEven, &loses);
    return number.convertToDouble();
  }
  APInt number = *(dense.value_begin<APInt>() + flat);
  bool isSigned = !dense.getElementType().isUnsignedInteger() && number.getBitWidth() > 1;
  return isSigned ? double(number.getSExtValue()) : double(number.getZExtValue());
}

std::optional<Numbers> RowEval::table(Value value, const Roles &roles, Operation *op) {
  RankedTensorType type = tensorType(value);
  auto iota = dyn_cast<stablehlo::IotaOp>(op);
  auto dense =
      iota ? DenseElementsAttr() : dyn_cast<DenseElementsAttr>(cast<stablehlo::ConstantOp>(op).getValue());
  bool unreadable = !iota && (!dense || !dense.getElementType().isIntOrFloat());
  // Large constants stay outside of this program: as good as an argument.
  if (unreadable && leaves)
    return leaf(value, roles);
  if (unreadable)
    return fail(op, "a constant that cannot be read");
  if (dense && dense.isSplat())
    return Numbers{readElement(dense, 0)};
  metTable |= !iota;
  Numbers numbers;
  for (size_t i = 0; i < columns.size(); ++i) {
    int64_t flat = 0;
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      if (iota && static_cast<int64_t>(iota.getIotaDimension()) != dim)
        continue;
      std::optional<int64_t> at = index(type, roles, dim, i);
      if (!at)
        return fail(op, "a table whose dimensions are not axes of the scores");
      flat = iota ? *at : flat * type.getDimSize(dim) + *at;
    }
    numbers.push_back(iota ? double(flat) : readElement(dense, flat));
  }
  return numbers;
}

/// The nearest number that the type holds.
static double rounded(double number, Type element) {
  auto type = dyn_cast<FloatType>(element);
  if (!type || type.getWidth() > 16 || !std::isfinite(number))
    return number;
  APFloat value(number);
  bool loses = false;
  value.convert(type.getFloatSemantics(), APFloat::rmNearestTiesToEven, &loses);
  value.convert(APFloat::IEEEdouble(), APFloat::rmNearestTiesToEven, &loses);
  return value.convertToDouble();
}

std::optional<Numbers> RowEval::leaf(Value value, const Roles &roles) {
  RankedTensorType type = tensorType(value);
  Operation *op = value.getDefiningOp() ? value.getDefiningOp() : value.getParentBlock()->getParentOp();
  if (!type || !type.hasStaticShape())
    return fail(op, "a mask, bias or dropout of unknown shape");
  if (leavesAreKnown && !leaves->contains(value))
    return fail(op,
                "a mask, bias or dropout known only at run time ('" + op->getName().getStringRef() + "')");
  leaves->insert(value);
  if (unknown)
    return Numbers{std::nan("")};
  uint64_t name = llvm::find(*leaves, value) - leaves->begin();
  Numbers numbers;
  bool varies = roles[column].has_value();
  for (size_t i = 0; i < (varies ? columns.size() : 1); ++i) {
    uint64_t flat = 0;
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      std::optional<int64_t> at = index(type, roles, dim, i);
      if (!at)
        return fail(op, "a mask or bias with dimensions that are not axes of the scores");
      flat = flat * type.getDimSize(dim) + *at;
    }
    // Bits of a counter-based generator (splitmix64).
    uint64_t bits = (seed * 0x9e3779b97f4a7c15ull) ^ (name << 48) ^ flat;
    for (uint64_t factor : {0xbf58476d1ce4e5b9ull, 0x94d049bb133111ebull})
      bits = (bits ^ (bits >> 29)) * factor;
    bits ^= bits >> 32;
    Type element = type.getElementType();
    double uniform = static_cast<double>(bits >> 11) / 9007199254740992.0;
    if (isa<FloatType>(element))
      numbers.push_back(rounded(4 * uniform - 2, element));
    else if (element.isInteger(1))
      numbers.push_back(bits >> 63);
    else // Small, so that equal ones are met; and as large as positions, so that lengths are.
      numbers.push_back(std::trunc(uniform * (seed % 2 ? 3 : static_cast<double>(sizes[column]) + 1)));
  }
  return numbers;
}

/// Rounds the way a conversion or integer arithmetic of the program would, as far as it can matter for
/// deciding what is computed: floats stay exact, integers and booleans wrap.
static double wrap(double number, Type element) {
  if (isa<FloatType>(element) || std::isnan(number))
    return number;
  if (element.isInteger(1))
    return number != 0;
  return std::trunc(number);
}

static double unary(Operation *op, double a, bool &known) {
  known = true;
  return llvm::TypeSwitch<Operation *, double>(op)
      .Case<stablehlo::ExpOp>([&](auto) { return std::exp(a); })
      .Case<stablehlo::Expm1Op>([&](auto) { return std::expm1(a); })
      .Case<stablehlo::LogOp>([&](auto) { return std::log(a); })
      .Case<stablehlo::Log1pOp>([&](auto) { return std::log1p(a); })
      .Case<stablehlo::NegOp>([&](auto) { return -a; })
      .Case<stablehlo::AbsOp>([&](auto) { return std::fabs(a); })
      .Case<stablehlo::TanhOp>([&](auto) { return std::tanh(a); })
      .Case<stablehlo::LogisticOp>([&](auto) { return 1 / (1 + std::exp(-a)); })
      .Case<stablehlo::SqrtOp>([&](auto) { return std::sqrt(a); })
      .Case<stablehlo::RsqrtOp>([&](auto) { return 1 / std::sqrt(a); })
      .Case<stablehlo::FloorOp>([&](auto) { return std::floor(a); })
      .Case<stablehlo::CeilOp>([&](auto) { return std::ceil(a); })
      .Case<stablehlo::SignOp>([&](auto) { return double((a > 0) - (a < 0)); })
      .Case<stablehlo::IsFiniteOp>([&](auto) { return double(std::isfinite(a)); })
      .Case<stablehlo::ConvertOp, stablehlo::ReducePrecisionOp>([&](auto) { return a; })
      .Case<stablehlo::NotOp>([&](auto) { return double(a == 0); })
      .Default([&](Operation *) {
        known = false;
        return 0.0;
      });
}

static double binary(Operation *op, double a, double b, bool integer, bool &known) {
  known = true;
  return llvm::TypeSwitch<Operation *, double>(op)
      .Case<stablehlo::AddOp>([&](auto) { return a + b; })
      .Case<stablehlo::SubtractOp>([&](auto) { return a - b; })
      .Case<stablehlo::MulOp>([&](auto) { return a * b; })
      .Case<stablehlo::DivOp>([&](auto) { return integer ? std::trunc(a / b) : a / b; })
      .Case<stablehlo::RemOp>([&](auto) { return std::fmod(a, b); })
      .Case<stablehlo::MaxOp>([&](auto) { return std::max(a, b); })
      .Case<stablehlo::MinOp>([&](auto) { return std::min(a, b); })
      .Case<stablehlo::PowOp>([&](auto) { return std::pow(a, b); })
      .Case<stablehlo::CompareOp>([&](stablehlo::CompareOp compare) {
        using Direction = stablehlo::ComparisonDirection;
        switch (compare.getComparisonDirection()) {
        case Direction::EQ:
          return double(a == b);
        case Direction::NE:
          return double(a != b);
        case Direction::GE:
          return double(a >= b);
        case Direction::GT:
          return double(a > b);
        case Direction::LE:
          return double(a <= b);
        case Direction::LT:
          return double(a < b);
        }
        return 0.0;
      })
      .Default([&](Operation *) {
        // Logical operations: of booleans only, or of integers bit by bit.
        auto bits = [](double x) { return static_cast<int64_t>(x); };
        if (integer && isa<stablehlo::AndOp>(op))
          return double(bits(a) & bits(b));
        if (integer && isa<stablehlo::OrOp>(op))
          return double(bits(a) | bits(b));
        if (integer && isa<stablehlo::XorOp>(op))
          return double(bits(a) ^ bits(b));
        known = false;
        return 0.0;
      });
}

/// The result where some operand has no number: a number only if the others decide it.
static double undecided(Operation *op, ArrayRef<double> operands) {
  Type element = tensorType(op->getResult(0)).getElementType();
  if (element.isInteger(1) && isa<stablehlo::AndOp>(op) && llvm::is_contained(operands, 0.0))
    return 0;
  if (element.isInteger(1) && isa<stablehlo::OrOp>(op) && llvm::is_contained(operands, 1.0))
    return 1;
  if (isa<stablehlo::SelectOp>(op)) {
    if (!std::isnan(operands[0]))
      return operands[0] != 0 ? operands[1] : operands[2];
    // Masked either way.
    if (operands[1] == operands[2] || (operands[1] <= -1e4 && operands[2] <= -1e4))
      return std::max(operands[1], operands[2]);
  }
  return std::nan("");
}

std::optional<Numbers> RowEval::elementwise(Operation *op, const Roles &roles) {
  SmallVector<Numbers, 3> inputs;
  size_t count = 1;
  for (Value operand : op->getOperands()) {
    bool scalar = tensorType(operand).getRank() == 0;
    std::optional<Numbers> numbers = evaluate(operand, scalar ? Roles(roles.size()) : roles);
    if (!numbers)
      return std::nullopt;
    count = std::max(count, numbers->size());
    inputs.push_back(std::move(*numbers));
  }
  auto at = [&](unsigned operand, size_t i) { return inputs[operand][inputs[operand].size() == 1 ? 0 : i]; };
  Type element = tensorType(op->getResult(0)).getElementType();
  bool integer = !isa<FloatType>(tensorType(op->getOperand(0)).getElementType());
  if (isa<stablehlo::NotOp>(op) && !element.isInteger(1))
    return fail(op, "bitwise arithmetic on integers");
  Numbers result(count);
  for (size_t i = 0; i < count; ++i) {
    bool known = true;
    SmallVector<double, 3> operands;
    for (unsigned operand = 0; operand < inputs.size(); ++operand)
      operands.push_back(at(operand, i));
    if (unknown && llvm::any_of(operands, [](double x) { return std::isnan(x); }))
      result[i] = undecided(op, operands);
    else if (isa<stablehlo::SelectOp>(op))
      result[i] = at(0, i) != 0 ? at(1, i) : at(2, i);
    else if (isa<stablehlo::ClampOp>(op))
      result[i] = std::min(std::max(at(1, i), at(0, i)), at(2, i));
    else if (inputs.size() == 1)
      result[i] = unary(op, at(0, i), known);
    else if (inputs.size() == 2)
      result[i] = binary(op, at(0, i), at(1, i), integer, known);
    else
      known = false;
    if (!known)
      return fail(op, "'" + op->getName().getStringRef() + "' between the scores and the probabilities");
    result[i] = wrap(result[i], element);
    if (rounds && isa<stablehlo::ConvertOp>(op))
      result[i] = rounded(result[i], element);
  }
  return result;
}

std::optional<Numbers> RowEval::reduce(Operation *op, const Roles &roles) {
  auto reduction = cast<stablehlo::ReduceOp>(op);
  if (reduction.getInputs().size() != 1)
    return fail(op, "a reduction of several values at once");
  RankedTensorType type = tensorType(reduction.getInputs()[0]);
  SmallVector<int64_t> dims(reduction.getDimensions());
  llvm::sort(dims);
  Roles inner(roles.size());
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (roles[axis]) {
      AxisPlace place = *roles[axis];
      for (int64_t dim : dims)
        place.dim += dim <= place.dim;
      inner[axis] = place;
    }
  bool overColumns = false;
  for (int64_t dim : dims) {
    if (type.getDimSize(dim) == 1)
      continue;
    if (overColumns || inner[column] || type.getDimSize(dim) != sizes[column])
      return fail(op, "a reduction over something else than the softmax axis");
    overColumns = true;
    inner[column] = AxisPlace{dim, 1, 1};
  }
  if (withoutReductions && overColumns)
    return Numbers{0.0};
  std::optional<Numbers> input = evaluate(reduction.getInputs()[0], inner);
  std::optional<Numbers> start = evaluate(reduction.getInitValues()[0], Roles(roles.size()));
  if (!input || !start)
    return std::nullopt;
  Block &body = reduction->getRegion(0).front();
  Operation &combine = body.front();
  if (!llvm::hasNItems(body, 2) || combine.getNumOperands() != 2)
    return fail(op, "a reduction that is neither a sum nor a maximum");
  auto one = [&](double a, double b, bool &known) {
    bool integer = !isa<FloatType>(type.getElementType());
    return binary(&combine, a, b, integer, known);
  };
  bool known = true;
  if (!overColumns) {
    for (double &number : *input)
      number = one((*start)[0], number, known);
    return known ? input : fail(op, "a reduction that is neither a sum nor a maximum");
  }
  double total = (*start)[0];
  for (size_t i = 0; i < columns.size() && known; ++i)
    total = one(total, (*input)[input->size() == 1 ? 0 : i], known);
  return known ? std::optional(Numbers{total}) : fail(op, "a reduction that is neither a sum nor a maximum");
}

std::optional<Numbers> RowEval::compute(Value value, const Roles &roles) {
  Operation *op = value.getDefiningOp();
  if (leaves && leavesAreKnown && leaves->contains(value))
    return leaf(value, roles);
  if (!op && leaves)
    return leaf(value, roles);
  if (!op)
    return fail(value.getParentBlock()->getParentOp(), "a mask, bias or dropout known only at run time");
  if (isa<stablehlo::ConstantOp, stablehlo::IotaOp>(op))
    return table(value, roles, op);
  if (isa<stablehlo::ReduceOp>(op))
    return reduce(op, roles);
  if (isElementwise(op) && op->getNumResults() == 1) {
    bool failedBefore = !whyNot.empty();
    std::optional<Numbers> numbers = elementwise(op, roles);
    // An operation that is not known here (a sine): its result is as good as any number.
    if (numbers || !leaves || leavesAreKnown || failedBefore || where != op)
      return numbers;
    whyNot.clear();
    where = nullptr;
    return leaf(value, roles);
  }
  if (isAnnotation(op))
    return evaluate(op->getOperand(0), roles);
  if (isa<stablehlo::OptimizationBarrierOp>(op))
    return evaluate(op->getOperand(cast<OpResult>(value).getResultNumber()), roles);
  if (isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::SliceOp>(
          op)) {
    std::optional<Roles> inner = rolesBeforeMove(op, roles, sizes);
    if (!inner)
      return fail(op, "'" + op->getName().getStringRef() + "' mixes axes of the scores");
    return evaluate(op->getOperand(0), *inner);
  }
  if (leaves && !leavesAreKnown)
    return leaf(value, roles);
  if (isa<stablehlo::DotGeneralOp>(op)) {
    unboundProducts.emplace_back(value, roles);
    return fail(op, "a product enters between the scores and the probabilities");
  }
  return fail(op, "a mask, bias or dropout known only at run time ('" + op->getName().getStringRef() + "')");
}

} // namespace farrier::fusion
