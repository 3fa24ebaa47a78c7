//===- OneHotRange.cpp - intervals of a mask's elements --------------------===//

#include "passes/fusion/OneHotRange.h"

#include "passes/fusion/Loops.h"

#include "llvm/ADT/TypeSwitch.h"

#include <cmath>

using namespace mlir;

namespace farrier::fusion {

static constexpr double infinite = std::numeric_limits<double>::infinity();

double exactIntegers(Type element) {
  if (auto type = dyn_cast<FloatType>(element))
    return std::ldexp(1.0, type.getFPMantissaWidth());
  auto type = dyn_cast<IntegerType>(element);
  return type ? std::ldexp(1.0, std::min(53u, type.getWidth() - !type.isUnsigned())) - 1 : 0;
}

static Range exactly(double number) { return {number, number, std::trunc(number) == number}; }

static Range between(double lo, double hi, bool isInteger) {
  Range range;
  range.lo = lo;
  range.hi = hi;
  range.isInteger = isInteger;
  return range;
}

static Range anything(Type element) {
  if (element.isInteger(1))
    return between(0, 1, true);
  if (auto type = dyn_cast<IntegerType>(element); type && type.getWidth() <= 32)
    return type.isUnsigned() ? between(0, std::ldexp(1.0, type.getWidth()) - 1, true)
                             : between(-std::ldexp(1.0, type.getWidth() - 1),
                                       std::ldexp(1.0, type.getWidth() - 1) - 1, true);
  return between(-infinite, infinite, isa<IntegerType>(element));
}

static bool isDeadEmpty(const Range &range) { return range.deadLo > range.deadHi; }

/// The same without remembering that it counts.
static Range spanOf(const Range &range) {
  if (!range.counts)
    return range;
  return between(std::min(range.lo, range.deadLo), std::max(range.hi, range.deadHi), range.isInteger);
}

static Range hull(const Range &a, const Range &b) {
  Range x = spanOf(a), y = spanOf(b);
  return between(std::min(x.lo, y.lo), std::max(x.hi, y.hi), x.isInteger && y.isInteger);
}

static Range addDead(Range range, double lo, double hi) {
  range.deadLo = std::min(range.deadLo, lo);
  range.deadHi = std::max(range.deadHi, hi);
  return range;
}

static double product(double a, double b) { return a == 0 || b == 0 ? 0 : a * b; }

static bool equal(const Range &a, const Range &b) {
  return a.lo == b.lo && a.hi == b.hi && a.counts == b.counts && a.isInteger == b.isInteger &&
         a.deadLo == b.deadLo && a.deadHi == b.deadHi;
}

/// What fits no longer wraps around or is rounded; counts that are rounded might meet.
static Range fitted(Range range, Type element) {
  if (range.counts &&
      std::max(std::fabs(spanOf(range).lo), std::fabs(spanOf(range).hi)) > exactIntegers(element))
    return anything(element);
  if (isa<IntegerType>(element)) {
    Range all = anything(element), span = spanOf(range);
    if (span.lo < all.lo || span.hi > all.hi)
      return all;
    range.isInteger = true;
  }
  if (isa<FloatType>(element) && !range.counts &&
      !(range.isInteger && std::fabs(range.lo) <= exactIntegers(element) &&
        std::fabs(range.hi) <= exactIntegers(element))) {
    // Rounded, perhaps to zero.
    double unit = 4 / exactIntegers(element);
    constexpr double tiny = 1e-4;
    auto widen = [&](double bound, double direction) -> double {
      if (std::isinf(bound))
        return bound;
      double moved = bound + direction * unit * std::fabs(bound);
      return std::fabs(moved) < tiny && moved * direction < 0 ? 0 : moved;
    };
    range.lo = widen(range.lo, -1);
    range.hi = widen(range.hi, 1);
    range.isInteger = false;
  }
  return range;
}

std::optional<bool> RangeEval::truth(const PositionTest &test) const {
  auto same = [&](const PositionTest &other) { return OneHotMask::sameIndex(test, other); };
  if (assume.active) {
    const Pick &pick = mask.picks[*assume.active];
    if (!same(pick.outer))
      return std::nullopt;
    bool isOuterAxis = test.axis == pick.outer.axis && test.offset == pick.outer.offset;
    bool isSummedAxis = mask.axes[test.axis].bound && test.offset == pick.outer.offset &&
                        mask.axes[test.axis].size == mask.axes[pick.outer.axis].size;
    if (!isOuterAxis && !isSummedAxis)
      return std::nullopt;
    std::optional<bool> result;
    unsigned found = 0;
    for (auto [axis, holds] : assume.cases)
      if (axis == test.axis || axis == test.bound) {
        result = holds;
        ++found;
      }
    if (found == 1)
      return result;
    if (found == 0 && isOuterAxis && (!test.bound || mask.isBoundIn(pick, *test.bound)))
      return true;
    return std::nullopt;
  }
  for (auto [i, pick] : llvm::enumerate(mask.picks)) {
    bool here = !assume.within[i] || !test.bound || test.bound == assume.within[i];
    for (auto [kind, other] :
         {std::pair(Assumptions::Outer, &pick.outer), std::pair(Assumptions::Inner, &pick.inner)})
      if (assume.fails[i] == kind && here && same(*other) && test.axis == other->axis &&
          test.offset == other->offset)
        return false;
  }
  return std::nullopt;
}

Range RangeEval::evaluate(Value value, const Roles &roles) {
  auto &known = memo[value];
  for (auto &[at, range] : known)
    if (at == roles)
      return range;
  Range range = fitted(compute(value, roles), tensorType(value).getElementType());
  memo[value].emplace_back(roles, range);
  return range;
}

/// Whether a region adds its two arguments, and gives nothing but the sum.
static bool addsArguments(Operation *op) {
  if (op->getNumRegions() != 1 || !op->getRegion(0).hasOneBlock())
    return false;
  Block &body = op->getRegion(0).front();
  return llvm::hasNItems(body, 2) && body.getNumArguments() == 2 && isa<stablehlo::AddOp>(body.front()) &&
         llvm::is_contained(body.front().getOperands(), body.getArgument(0)) &&
         llvm::is_contained(body.front().getOperands(), body.getArgument(1)) &&
         llvm::all_of(body.back().getOperands(),
                      [&](Value value) { return value.getDefiningOp() == &body.front(); });
}

/// The dimension along which a value holds the running sums of its first operand, its own element included;
/// the second operand is what they start from. As windows on CPU, as a scan for a GPU.
static std::optional<int64_t> runningDim(Value value) {
  Operation *op = value.getDefiningOp();
  if (op->getNumOperands() != 2 || !addsArguments(op))
    return std::nullopt;
  if (op->getName().getStringRef() == "chlo.scan") {
    auto attributes = dyn_cast_or_null<DictionaryAttr>(op->getPropertiesAsAttribute());
    auto dim = attributes ? attributes.getAs<IntegerAttr>("dimension") : IntegerAttr();
    if (!dim)
      dim = op->getAttrOfType<IntegerAttr>("dimension");
    return dim && cast<OpResult>(value).getResultNumber() == 0 ? std::optional(dim.getInt()) : std::nullopt;
  }
  auto window = dyn_cast<stablehlo::ReduceWindowOp>(op);
  auto allOne = [](std::optional<ArrayRef<int64_t>> list) {
    return !list || llvm::all_of(*list, [](int64_t x) { return x == 1; });
  };
  if (!window || !allOne(window.getWindowStrides()) || !allOne(window.getBaseDilations()) ||
      !allOne(window.getWindowDilations()) || !window.getPadding())
    return std::nullopt;
  RankedTensorType type = tensorType(op->getOperand(0));
  SmallVector<int64_t> padding(window.getPadding()->getValues<int64_t>());
  std::optional<int64_t> along;
  for (int64_t dim = 0; dim < type.getRank(); ++dim) {
    int64_t low = padding[2 * dim], high = padding[2 * dim + 1], size = type.getDimSize(dim);
    if (window.getWindowDimensions()[dim] == 1 && low == 0 && high == 0)
      continue;
    bool sums = window.getWindowDimensions()[dim] == size &&
                ((low == size - 1 && high == 0) || (low == 0 && high == size - 1));
    if (!sums || along)
      return std::nullopt;
    along = dim;
  }
  return along;
}

std::pair<int64_t, int64_t> RangeEval::positions(unsigned axis) const {
  const MaskAxis &part = mask.axes[axis];
  unsigned whole = part.whole.value_or(axis);
  auto it = assume.region.find(whole);
  auto [first, last] =
      it == assume.region.end() ? std::pair<int64_t, int64_t>(0, mask.axes[whole].size - 1) : it->second;
  return {std::max<int64_t>(0, first + part.offset), std::min(part.size - 1, last + part.offset)};
}

Range RangeEval::compute(Value value, const Roles &roles) {
  Type element = tensorType(value).getElementType();
  Operation *op = value.getDefiningOp();
  if (!op)
    return anything(element);
  if (auto constant = dyn_cast<stablehlo::ConstantOp>(op)) {
    auto dense = dyn_cast<DenseElementsAttr>(constant.getValue());
    if (!dense || !dense.isSplat())
      return anything(element);
    if (isa<FloatType>(element))
      return exactly(dense.getSplatValue<APFloat>().convertToDouble());
    if (auto type = dyn_cast<IntegerType>(element)) {
      APInt number = dense.getSplatValue<APInt>();
      bool isSigned = !type.isUnsigned() && type.getWidth() > 1;
      return exactly(isSigned ? double(number.getSExtValue()) : double(number.getZExtValue()));
    }
    return anything(element);
  }
  if (auto iota = dyn_cast<stablehlo::IotaOp>(op)) {
    int64_t dim = iota.getIotaDimension();
    for (unsigned axis = 0; axis < roles.size(); ++axis)
      if (roles[axis] && roles[axis]->dim == dim && roles[axis]->inner == 1 && roles[axis]->outer == 1) {
        auto [first, last] = positions(axis);
        return between(first, last, true);
      }
    return between(0, tensorType(value).getDimSize(dim) - 1, true);
  }
  if (std::optional<int64_t> dim = runningDim(value))
    return runningCount(op, *dim, roles);
  if (std::optional<PositionTest> test = mask.positionTest(op, roles))
    if (std::optional<bool> known = truth(*test))
      return exactly(*known != test->negated);
  std::optional<SmallVector<Roles, 3>> inner = mask.operandRoles(value, roles);
  if (!inner)
    return anything(element);
  if (isa<stablehlo::ReduceOp, stablehlo::DotGeneralOp>(op))
    return overBound(op, *inner);
  if (auto barrier = dyn_cast<stablehlo::OptimizationBarrierOp>(op)) {
    unsigned i = cast<OpResult>(value).getResultNumber();
    return evaluate(op->getOperand(i), (*inner)[i]);
  }
  if (isa<stablehlo::PadOp>(op)) {
    // Inside, outside, or it depends.
    bool inside = true;
    for (unsigned axis = 0; axis < (*inner)[0].size(); ++axis) {
      if (!(*inner)[0][axis] || OneHotMask::carries(roles, axis))
        continue;
      const MaskAxis &part = mask.axes[axis];
      auto [first, last] = positions(axis);
      if (first > last)
        return evaluate(op->getOperand(1), {});
      auto [from, to] = positions(*part.whole);
      inside &= to - from == last - first;
    }
    Range within = evaluate(op->getOperand(0), (*inner)[0]);
    return inside ? within : hull(within, evaluate(op->getOperand(1), {}));
  }
  if (!isElementwise(op))
    return evaluate(op->getOperand(0), (*inner)[0]);
  SmallVector<Range, 3> in;
  for (auto [operand, place] : llvm::zip(op->getOperands(), *inner))
    in.push_back(evaluate(operand, place));
  return elementwise(op, in, *inner);
}

bool RangeEval::isSameForAllRows(Value value, const Roles &roles) {
  Tensor tensor{value, roles};
  while (Operation *op = tensor.value.getDefiningOp()) {
    if (!isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(op))
      break;
    auto inner = mask.operandRoles(tensor.value, tensor.roles);
    if (!inner)
      break;
    tensor = {op->getOperand(0), (*inner)[0]};
  }
  for (unsigned axis = 0; axis < tensor.roles.size(); ++axis)
    if (tensor.roles[axis] &&
        (mask.axes[axis].bound ? !mask.isTested(axis) : llvm::is_contained(assume.rows, axis)))
      return false;
  return true;
}

Range RangeEval::elementwise(Operation *op, ArrayRef<Range> in, ArrayRef<Roles> roles) {
  Type element = tensorType(op->getResult(0)).getElementType();
  Range unknown = anything(element);
  if (isa<stablehlo::SelectOp>(op)) {
    if (in[0].lo == 1)
      return in[1];
    if (in[0].hi == 0)
      return in[2];
    for (auto [counted, other] : {std::pair(in[1], in[2]), std::pair(in[2], in[1])})
      if (counted.counts && !other.counts)
        return addDead(counted, other.lo, other.hi);
    return hull(in[1], in[2]);
  }
  if (in.size() == 1) {
    Range a = in[0], s = spanOf(a);
    return llvm::TypeSwitch<Operation *, Range>(op)
        .Case<stablehlo::ConvertOp>([&](auto) {
          if (element.isInteger(1))
            return between(s.lo > 0 || s.hi < 0, !(s.lo == 0 && s.hi == 0), true);
          if (isa<IntegerType>(element) && !a.isInteger)
            return between(std::trunc(s.lo), std::trunc(s.hi), true);
          return a;
        })
        .Case<stablehlo::NegOp>([&](auto) { return between(-s.hi, -s.lo, s.isInteger); })
        .Case<stablehlo::NotOp>(
            [&](auto) { return element.isInteger(1) ? between(1 - s.hi, 1 - s.lo, true) : unknown; })
        .Case<stablehlo::ExpOp>([&](auto) { return between(std::exp(s.lo), std::exp(s.hi), false); })
        .Case<stablehlo::SignOp>(
            [&](auto) { return between((s.lo > 0) - (s.lo < 0), (s.hi > 0) - (s.hi < 0), true); })
        .Case<stablehlo::FloorOp>(
            [&](auto) { return a.isInteger ? a : between(std::floor(s.lo), std::floor(s.hi), true); })
        .Case<stablehlo::ReducePrecisionOp, stablehlo::AbsOp>(
            [&](auto) { return s.lo == 0 && s.hi == 0 ? exactly(0) : unknown; })
        .Default([&](Operation *) { return unknown; });
  }
  if (in.size() != 2)
    return unknown;
  // Counting from another number is counting still, as long as the number is the same for all rows.
  if (isa<stablehlo::AddOp>(op) && !element.isInteger(1))
    for (unsigned i : {0u, 1u})
      if (in[i].counts && !in[1 - i].counts && in[1 - i].isInteger &&
          (in[1 - i].lo == in[1 - i].hi || isSameForAllRows(op->getOperand(1 - i), roles[1 - i]))) {
        Range sum = in[i];
        sum.lo += in[1 - i].lo;
        sum.hi += in[1 - i].hi;
        if (!isDeadEmpty(sum)) {
          sum.deadLo += in[1 - i].lo;
          sum.deadHi += in[1 - i].hi;
        }
        return sum;
      }
  if (isa<stablehlo::SubtractOp>(op) && in[0].counts && !in[1].counts && in[1].lo == in[1].hi &&
      in[1].isInteger) {
    Range difference = in[0];
    for (double *bound : {&difference.lo, &difference.hi, &difference.deadLo, &difference.deadHi})
      *bound -= in[1].lo;
    return difference;
  }
  if (isa<stablehlo::MulOp>(op))
    for (unsigned i : {0u, 1u})
      if (in[i].counts && !in[1 - i].counts) {
        if (in[1 - i].is(1))
          return in[i];
        if (in[1 - i].isInteger && in[1 - i].lo >= 0 && in[1 - i].hi <= 1) {
          Range kept = addDead(in[i], 0, 0);
          return in[1 - i].is(0) ? exactly(0) : kept;
        }
      }
  return combine(op, in[0], in[1]);
}

/// An operation of two numbers, from their intervals.
Range RangeEval::combine(Operation *op, const Range &first, const Range &second) {
  Range a = spanOf(first), b = spanOf(second);
  bool isInteger = a.isInteger && b.isInteger;
  Type element = tensorType(op->getResult(0)).getElementType();
  bool isBoolean = element.isInteger(1);
  auto both = [&] { return between(std::min(a.lo, b.lo), std::min(a.hi, b.hi), isInteger); };
  auto either = [&] { return between(std::max(a.lo, b.lo), std::max(a.hi, b.hi), isInteger); };
  return llvm::TypeSwitch<Operation *, Range>(op)
      .Case<stablehlo::AddOp>(
          [&](auto) { return isBoolean ? either() : between(a.lo + b.lo, a.hi + b.hi, isInteger); })
      .Case<stablehlo::SubtractOp>([&](auto) { return between(a.lo - b.hi, a.hi - b.lo, isInteger); })
      .Case<stablehlo::MulOp>([&](auto) {
        double corners[] = {product(a.lo, b.lo), product(a.lo, b.hi), product(a.hi, b.lo),
                            product(a.hi, b.hi)};
        return between(*std::min_element(corners, corners + 4), *std::max_element(corners, corners + 4),
                       isInteger);
      })
      .Case<stablehlo::DivOp>([&](auto) { return a.is(0) ? exactly(0) : anything(element); })
      .Case<stablehlo::MaxOp>([&](auto) { return either(); })
      .Case<stablehlo::MinOp>([&](auto) { return both(); })
      .Case<stablehlo::AndOp>([&](auto) {
        return isBoolean ? both() : a.is(0) || b.is(0) ? exactly(0) : anything(element);
      })
      .Case<stablehlo::OrOp>([&](auto) {
        return isBoolean ? either() : a.is(0) && b.is(0) ? exactly(0) : anything(element);
      })
      .Case<stablehlo::CompareOp>([&](stablehlo::CompareOp compare) {
        using Direction = stablehlo::ComparisonDirection;
        bool less = a.hi<b.lo, more = a.lo> b.hi, same = a.lo == a.hi && a.lo == b.lo && a.hi == b.hi;
        bool atMost = a.hi <= b.lo, atLeast = a.lo >= b.hi;
        auto known = [](bool yes, bool no) {
          return yes ? exactly(1) : no ? exactly(0) : between(0, 1, true);
        };
        switch (compare.getComparisonDirection()) {
        case Direction::EQ:
          return known(same, less || more);
        case Direction::NE:
          return known(less || more, same);
        case Direction::GE:
          return known(atLeast, less);
        case Direction::GT:
          return known(more, atMost);
        case Direction::LE:
          return known(atMost, more);
        case Direction::LT:
          return known(less, atLeast);
        }
        return between(0, 1, true);
      })
      .Default([&](Operation *) { return anything(element); });
}

/// `count` equal elements of `body` combined.
Range RangeEval::reduction(Operation *combiner, const Range &body, double count, const Range &start) {
  Range element = spanOf(body);
  if (isa<stablehlo::AddOp>(combiner) && !tensorType(combiner->getResult(0)).getElementType().isInteger(1))
    return combine(combiner, start,
                   between(product(count, element.lo), product(count, element.hi), element.isInteger));
  if (isa<stablehlo::AddOp, stablehlo::MaxOp, stablehlo::MinOp, stablehlo::OrOp, stablehlo::AndOp>(combiner))
    return combine(combiner, start, element);
  return anything(tensorType(combiner->getResult(0)).getElementType());
}

/// A reduction or product, over the axes that it sums over.
Range RangeEval::overBound(Operation *op, const SmallVector<Roles, 3> &inner) {
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
  auto reduce = dyn_cast<stablehlo::ReduceOp>(op);
  Type type = tensorType(op->getResult(0)).getElementType();
  SmallVector<unsigned, 2> over;
  double count = 1;
  for (unsigned axis = 0; axis < inner[0].size(); ++axis) {
    if (!inner[0][axis] || !mask.axes[axis].bound)
      continue;
    AxisPlace place = *inner[0][axis];
    bool here =
        dot ? llvm::is_contained(dot.getDotDimensionNumbers().getLhsContractingDimensions(), place.dim)
            : llvm::is_contained(reduce.getDimensions(), place.dim);
    if (here) {
      over.push_back(axis);
      count *= mask.axes[axis].size;
    }
  }
  Operation *combiner = reduce ? &reduce->getRegion(0).front().front() : nullptr;
  if (reduce && (!llvm::hasNItems(reduce->getRegion(0).front(), 2) || combiner->getNumOperands() != 2))
    return anything(type);
  auto body = [&](RangeEval &eval) {
    if (reduce)
      return eval.evaluate(op->getOperand(0), inner[0]);
    Range a = spanOf(eval.evaluate(op->getOperand(0), inner[0])),
          b = spanOf(eval.evaluate(op->getOperand(1), inner[1]));
    double corners[] = {product(a.lo, b.lo), product(a.lo, b.hi), product(a.hi, b.lo), product(a.hi, b.hi)};
    return between(*std::min_element(corners, corners + 4), *std::max_element(corners, corners + 4),
                   a.isInteger && b.isInteger);
  };
  Range start = reduce ? evaluate(op->getOperand(1), {}) : exactly(0);
  auto whole = [&](const Range &element) {
    if (reduce)
      return reduction(combiner, element, count, start);
    return between(product(count, element.lo), product(count, element.hi), element.isInteger);
  };

  if (assume.active && over.size() == 1 && reduce) {
    Assumptions with = assume, without = assume;
    with.cases.emplace_back(over[0], true);
    without.cases.emplace_back(over[0], false);
    RangeEval holds(mask, with), fails(mask, without);
    Range yes = body(holds), no = body(fails);
    if (equal(yes, no))
      return whole(yes);
    // At one position of the axis at least the outer test holds: this is how the pick came to be.
    const Pick &pick = mask.picks[*assume.active];
    bool once = false;
    for (const PositionTest &test : mask.tests)
      if (OneHotMask::sameIndex(test, pick.outer))
        once |= test.axis == over[0] || (test.bound == over[0] && mask.isDistinctAlong(test));
    if (isa<stablehlo::AddOp>(combiner) && once && no.is(0) && start.is(0))
      return yes;
    if (isa<stablehlo::MaxOp>(combiner) && yes.counts && !no.counts && no.hi < yes.lo && start.hi < yes.lo)
      return isDeadEmpty(yes) ? yes : addDead(yes, std::max(no.lo, start.lo), std::max(no.hi, start.hi));
    return whole(hull(yes, no));
  }
  for (auto [i, pick] : llvm::enumerate(mask.picks)) {
    if (assume.fails[i] != Assumptions::Either)
      continue;
    for (unsigned axis : over)
      if (mask.isBoundIn(pick, axis)) {
        Range either;
        bool first = true;
        for (auto kind : {Assumptions::Outer, Assumptions::Inner}) {
          Assumptions inside = assume;
          inside.fails[i] = kind;
          inside.within[i] = axis;
          RangeEval eval(mask, inside);
          // Other picks may be bound by the same axis.
          Range range = eval.overBound(op, inner);
          either = first ? range : hull(either, range);
          first = false;
        }
        return either;
      }
  }
  RangeEval same(mask, assume);
  return whole(body(same));
}

Range RangeEval::runningCount(Operation *op, int64_t along, const Roles &roles) {
  Type element = tensorType(op->getResult(0)).getElementType();
  RankedTensorType type = tensorType(op->getOperand(0));
  Range start = evaluate(op->getOperand(1), {});
  if (!start.is(0))
    return anything(element);
  int64_t size = type.getDimSize(along);
  // Whatever is assumed of one entry, the others are arbitrary.
  Range any = RangeEval(mask, Assumptions(mask.picks.size())).evaluate(op->getOperand(0), roles);
  Range sum =
      between(std::min(0.0, product(size, any.lo)), std::max(0.0, product(size, any.hi)), any.isInteger);
  if (!assume.active || !any.isInteger || any.lo < 0)
    return sum;
  Range own = evaluate(op->getOperand(0), roles);
  if (own.counts || own.lo < 1)
    return sum;
  // Entries that were counted differ; are all rows that there are among the entries?
  const Pick &pick = mask.picks[*assume.active];
  int64_t covered = 1;
  SmallVector<unsigned, 2> rows(assume.rows);
  for (unsigned axis = 0; axis < roles.size(); ++axis) {
    if (!roles[axis])
      continue;
    bool counted = roles[axis]->dim == along;
    if (counted) {
      covered *= mask.axes[axis].size;
      llvm::erase(rows, axis);
    }
    bool isExpert = axis == pick.outer.axis || llvm::any_of(assume.cases, [&](auto &one) {
                      return one.first == axis && mask.axes[axis].size == mask.axes[pick.outer.axis].size &&
                             !mask.isBoundIn(pick, axis) && mask.isTested(axis);
                    });
    bool isBatch =
        !mask.axes[axis].bound && !llvm::is_contained(assume.rows, axis) && axis != pick.inner.axis;
    if (counted ? (isExpert && mask.axes[axis].bound) : !(isExpert || isBatch))
      return sum;
  }
  if (!rows.empty() || covered != size)
    return sum;
  sum.lo = own.lo;
  sum.counts = true;
  return sum;
}

} // namespace farrier::fusion
