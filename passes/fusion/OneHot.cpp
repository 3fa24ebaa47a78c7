//===- OneHot.cpp - where the elements of a mask can differ from zero -----===//

#include "passes/fusion/OneHot.h"
#include "passes/fusion/OneHotRange.h"


using namespace mlir;

namespace farrier::fusion {

/// Further behind the mask than this many values, tests are not looked for.
static constexpr unsigned maxSteps = 512;

OneHotMask::OneHotMask(Value mask) : mask(mask) {
  RankedTensorType type = tensorType(mask);
  for (int64_t dim = 0; dim < type.getRank(); ++dim)
    if (type.getDimSize(dim) != 1) {
      roles.push_back(AxisPlace{dim, 1, 1});
      addAxis(type.getDimSize(dim), false);
    }
}

SmallVector<unsigned, 4> OneHotMask::rows() const {
  SmallVector<unsigned, 4> result;
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (!llvm::is_contained(picked, axis))
      result.push_back(axis);
  return result;
}

Value OneHotMask::rowMajor(Maker &make, ArrayRef<unsigned> along,
                           llvm::function_ref<Value(unsigned)> position) const {
  Value number;
  for (unsigned axis : along) {
    Value at = position(axis);
    if (number)
      at = make.binary(
          "stablehlo.add",
          make.binary("stablehlo.multiply", number, make.splat(tensorType(number), axes[axis].size)), at);
    number = at;
  }
  return number;
}

unsigned OneHotMask::addAxis(int64_t size, bool bound) {
  axes.push_back({size, std::nullopt, 0, bound});
  return axes.size() - 1;
}

bool OneHotMask::carriesPart(const Roles &roles, unsigned axis) const {
  for (unsigned i = 0; i < roles.size(); ++i)
    if (roles[i] && (i == axis || axes[i].whole == axis))
      return true;
  return false;
}

std::optional<SmallVector<Roles, 3>> OneHotMask::operandRoles(Value value, const Roles &roles) {
  Operation *op = value.getDefiningOp();
  if (!op)
    return std::nullopt;
  SmallVector<Roles, 3> result(op->getNumOperands());
  auto bind = [&](Operation *op, int64_t dim, int64_t size) {
    auto [it, added] = boundAxes.try_emplace({op, dim}, 0);
    if (added)
      it->second = addAxis(size, true);
    return it->second;
  };
  auto put = [](Roles &roles, unsigned axis, AxisPlace place) {
    if (roles.size() <= axis)
      roles.resize(axis + 1);
    roles[axis] = place;
  };
  if (auto barrier = dyn_cast<stablehlo::OptimizationBarrierOp>(op)) {
    result[cast<OpResult>(value).getResultNumber()] = roles;
    return result;
  }
  if (op->getNumResults() != 1)
    return std::nullopt;
  if (isElementwise(op)) {
    for (auto [operand, inner] : llvm::zip(op->getOperands(), result))
      if (tensorType(operand) && tensorType(operand).getRank() > 0)
        inner = roles;
    return result;
  }
  auto part = [&](unsigned axis, int64_t size, int64_t offset) {
    auto [it, added] = partAxes.try_emplace({op, axis}, 0);
    if (added) {
      it->second = addAxis(size, axes[axis].bound);
      axes[it->second].whole = axes[axis].whole.value_or(axis);
      axes[it->second].offset = axes[axis].offset + offset;
    }
    return it->second;
  };
  if (auto pad = dyn_cast<stablehlo::PadOp>(op)) {
    for (unsigned axis = 0; axis < roles.size(); ++axis) {
      if (!roles[axis])
        continue;
      AxisPlace place = *roles[axis];
      int64_t low = pad.getEdgePaddingLow()[place.dim], high = pad.getEdgePaddingHigh()[place.dim],
              size = tensorType(op->getOperand(0)).getDimSize(place.dim);
      if (low == 0 && high == 0 && pad.getInteriorPadding()[place.dim] == 0) {
        put(result[0], axis, place);
        continue;
      }
      if (place.outer != 1 || place.inner != 1 || low < 0 || high < 0 ||
          pad.getInteriorPadding()[place.dim] != 0)
        return std::nullopt;
      unsigned inside = part(axis, size, -low);
      put(result[0], inside, place);
      auto &cuts = axes[*axes[inside].whole].cuts;
      for (int64_t cut : {-axes[inside].offset, size - axes[inside].offset})
        if (!llvm::is_contained(cuts, cut))
          cuts.push_back(cut);
    }
    return result;
  }
  if (auto slice = dyn_cast<stablehlo::SliceOp>(op)) {
    for (unsigned axis = 0; axis < roles.size(); ++axis) {
      if (!roles[axis])
        continue;
      AxisPlace place = *roles[axis];
      int64_t start = slice.getStartIndices()[place.dim],
              full = tensorType(slice.getOperand()).getDimSize(place.dim);
      if (start == 0 && full == tensorType(slice.getResult()).getDimSize(place.dim)) {
        put(result[0], axis, place);
        continue;
      }
      if (place.outer != 1 || place.inner != 1 || slice.getStrides()[place.dim] != 1)
        return std::nullopt;
      put(result[0], part(axis, full, start), place);
    }
    return result;
  }
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
  auto reduce = dyn_cast<stablehlo::ReduceOp>(op);
  if (reduce && reduce.getInputs().size() != 1)
    return std::nullopt;
  if (!dot && !reduce && !isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(op))
    return std::nullopt;
  for (unsigned axis = 0; axis < roles.size(); ++axis) {
    if (!roles[axis])
      continue;
    if (reduce) {
      // flowFromResult asks for sums of floats; here any reduction may stand in the way.
      AxisPlace place = *roles[axis];
      SmallVector<int64_t> dims(reduce.getDimensions());
      llvm::sort(dims);
      for (int64_t dim : dims)
        place.dim += dim <= place.dim;
      put(result[0], axis, place);
      continue;
    }
    std::optional<AxisFlow> flow = flowFromResult(op, 0, *roles[axis], axes[axis].size);
    if (!flow)
      return std::nullopt;
    for (auto [inner, place] : llvm::zip(result, flow->operands))
      if (place)
        put(inner, axis, *place);
  }
  if (reduce)
    for (int64_t dim : reduce.getDimensions())
      if (int64_t size = tensorType(reduce.getInputs()[0]).getDimSize(dim); size != 1)
        put(result[0], bind(op, dim, size), AxisPlace{dim, 1, 1});
  if (dot) {
    auto numbers = dot.getDotDimensionNumbers();
    for (auto [l, r] :
         llvm::zip(numbers.getLhsContractingDimensions(), numbers.getRhsContractingDimensions()))
      if (int64_t size = tensorType(dot.getLhs()).getDimSize(l); size != 1) {
        unsigned axis = bind(op, l, size);
        put(result[0], axis, AxisPlace{l, 1, 1});
        put(result[1], axis, AxisPlace{r, 1, 1});
      }
  }
  return result;
}

/// Without what only moves values or adds equal ones, and without widening of integers.
static Tensor stripped(OneHotMask &mask, Tensor tensor) {
  while (Operation *op = tensor.value.getDefiningOp()) {
    bool moves = isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(op);
    if (auto convert = dyn_cast<stablehlo::ConvertOp>(op)) {
      auto from = dyn_cast<IntegerType>(tensorType(convert.getOperand()).getElementType());
      auto to = dyn_cast<IntegerType>(tensorType(convert.getResult()).getElementType());
      moves = from && to && from.getWidth() <= to.getWidth() && from.getSignedness() == to.getSignedness() &&
              from.getWidth() > 1;
    }
    auto inner = moves ? mask.operandRoles(tensor.value, tensor.roles) : std::nullopt;
    if (!inner)
      break;
    tensor = {op->getOperand(0), (*inner)[0]};
  }
  return tensor;
}

std::optional<PositionTest> OneHotMask::positionTest(Operation *op, const Roles &roles) {
  auto compare = dyn_cast<stablehlo::CompareOp>(op);
  using Direction = stablehlo::ComparisonDirection;
  if (!compare || (compare.getComparisonDirection() != Direction::EQ &&
                   compare.getComparisonDirection() != Direction::NE))
    return std::nullopt;
  for (unsigned side : {0u, 1u}) {
    // The side that counts positions, through conversions of small integers to anything.
    Tensor at = stripped(*this, {op->getOperand(side), roles});
    double exact = exactIntegers(tensorType(op->getOperand(side)).getElementType());
    while (auto convert = at.value.getDefiningOp<stablehlo::ConvertOp>()) {
      exact = std::min(exact, exactIntegers(tensorType(convert.getResult()).getElementType()));
      at = stripped(*this, {convert.getOperand(), at.roles});
    }
    auto iota = at.value.getDefiningOp<stablehlo::IotaOp>();
    if (!iota)
      continue;
    std::optional<unsigned> axis;
    int64_t dim = iota.getIotaDimension();
    for (unsigned i = 0; i < at.roles.size(); ++i)
      if (at.roles[i] && at.roles[i]->dim == dim && at.roles[i]->outer == 1 && at.roles[i]->inner == 1)
        axis = i;
    // Exactly representable positions, so that equal means equal.
    if (!axis || axes[*axis].size > exact)
      continue;
    PositionTest test;
    test.op = op;
    test.axis = axes[*axis].whole.value_or(*axis);
    test.offset = axes[*axis].offset;
    test.index = op->getOperand(1 - side);
    test.roles = roles;
    test.negated = compare.getComparisonDirection() == Direction::NE;
    test.origin = stripped(*this, {test.index, roles});
    if (carriesPart(test.origin.roles, test.axis))
      continue;
    unsigned bound = 0;
    for (unsigned i = 0; i < test.origin.roles.size(); ++i)
      if (test.origin.roles[i] && axes[i].bound) {
        test.bound = i;
        ++bound;
      }
    if (bound > 1)
      continue;
    return test;
  }
  return std::nullopt;
}

bool OneHotMask::sameIndex(const PositionTest &a, const PositionTest &b) {
  if (a.origin.value != b.origin.value || a.bound.has_value() != b.bound.has_value())
    return false;
  const Roles &x = a.origin.roles, &y = b.origin.roles;
  auto at = [](const Roles &roles, unsigned i) { return i < roles.size() ? roles[i] : std::nullopt; };
  if (a.bound && *at(x, *a.bound) != *at(y, *b.bound))
    return false;
  for (unsigned i = 0; i < std::max(x.size(), y.size()); ++i)
    if (a.bound != i && b.bound != i && at(x, i) != at(y, i))
      return false;
  return true;
}

bool OneHotMask::mayChoose(stablehlo::DotGeneralOp dot) {
  constexpr int64_t most = 32; // longer sums are products of matrices
  int64_t count = 1;
  for (int64_t dim : dot.getDotDimensionNumbers().getLhsContractingDimensions())
    count *= tensorType(dot.getLhs()).getDimSize(dim);
  return count <= most;
}

bool OneHotMask::isTested(unsigned axis) const {
  return llvm::any_of(tests, [&](const PositionTest &test) { return test.axis == axis; });
}

bool OneHotMask::isBoundIn(const Pick &pick, unsigned axis) const {
  return llvm::any_of(
      tests, [&](const PositionTest &test) { return test.bound == axis && sameIndex(test, pick.inner); });
}

/// Finds the tests behind the mask, the nearest first.
void OneHotMask::collect() {
  std::vector<std::pair<Value, Roles>> queue{{mask, roles}};
  llvm::DenseMap<Value, SmallVector<Roles, 1>> seen;
  for (size_t i = 0; i < queue.size() && i < maxSteps; ++i) {
    auto [value, places] = queue[i];
    Operation *op = value.getDefiningOp();
    if (!op)
      continue;
    if (std::optional<PositionTest> test = positionTest(op, places))
      tests.push_back(*test);
    if (auto dot = dyn_cast<stablehlo::DotGeneralOp>(op); dot && !mayChoose(dot))
      continue;
    std::optional<SmallVector<Roles, 3>> inner = operandRoles(value, places);
    if (!inner)
      continue;
    for (auto [operand, at] : llvm::zip(op->getOperands(), *inner)) {
      bool varies = llvm::any_of(at, [](const auto &place) { return place.has_value(); });
      if (varies && !llvm::is_contained(seen[operand], at)) {
        seen[operand].push_back(at);
        queue.emplace_back(operand, at);
      }
    }
  }
}

/// Finds where padding begins and ends in a value that is multiplied with the mask.
void OneHotMask::collectCuts(Value value, const Roles &roles, unsigned depth) {
  constexpr unsigned deepest = 8;
  Operation *op = value.getDefiningOp();
  if (!op || depth > deepest || isa<stablehlo::DotGeneralOp, stablehlo::ReduceOp>(op))
    return;
  if (auto inner = operandRoles(value, roles))
    for (auto [operand, place] : llvm::zip(op->getOperands(), *inner))
      collectCuts(operand, place, depth + 1);
}

bool OneHotMask::analyse(const Tensor &factor, std::string &whyNot) {
  if (roles.size() < 3)
    return false;
  collect();
  if (factor)
    collectCuts(factor.value, factor.roles, 0);
  // Axes of the mask along which positions are tested.
  SmallVector<unsigned, 4> tested;
  for (const PositionTest &test : tests)
    if (!axes[test.axis].bound && !llvm::is_contained(tested, test.axis))
      tested.push_back(test.axis);
  if (tested.size() != 2)
    return false;
  looksLikeOne = true;
  whyNot = "elements other than those that the indices name may differ from zero";
  llvm::sort(tested);
  for (bool swapped : {false, true}) {
    picked.assign({tested[swapped], tested[!swapped]});
    SmallVector<PositionTest, 2> outer, inner;
    auto add = [](SmallVector<PositionTest, 2> &list, const PositionTest &test) {
      if (llvm::none_of(list, [&](const PositionTest &other) {
            return sameIndex(test, other) && test.offset == other.offset;
          }))
        list.push_back(test);
    };
    for (const PositionTest &test : tests) {
      if (test.axis == picked[0] && !carriesPart(test.origin.roles, picked[1]))
        add(outer, test);
      else if (test.axis == picked[1])
        add(inner, test);
    }
    constexpr unsigned most = 4;
    if (outer.empty() || inner.empty() || outer.size() > most || inner.size() > most)
      continue;
    // Which outer test belongs to which inner one: whichever can be proven.
    unsigned ways = 1;
    for (size_t i = 0; i < inner.size(); ++i)
      ways *= outer.size();
    for (unsigned way = 0; way < ways; ++way) {
      picks.clear();
      unsigned rest = way;
      for (const PositionTest &test : inner) {
        Pick pick{outer[rest % outer.size()], test, 1};
        rest /= outer.size();
        for (const PositionTest *part : {&pick.outer, &pick.inner})
          if (part->bound)
            pick.count = axes[*part->bound].size;
        picks.push_back(pick);
      }
      if (provesSupport(factor))
        return true;
    }
  }
  return false;
}

bool OneHotMask::provesSupport(const Tensor &factor) {
  // Between the places where padding begins and ends, one part after the other.
  std::vector<std::map<unsigned, std::pair<int64_t, int64_t>>> regions(1);
  for (unsigned axis = 0; axis < roles.size(); ++axis) {
    if (axes[axis].cuts.empty())
      continue;
    SmallVector<int64_t> cuts{0, axes[axis].size};
    for (int64_t cut : axes[axis].cuts)
      if (cut > 0 && cut < axes[axis].size)
        cuts.push_back(cut);
    llvm::sort(cuts);
    auto before = regions;
    regions.clear();
    for (size_t i = 0; i + 1 < cuts.size(); ++i)
      for (auto region : before) {
        region[axis] = {cuts[i], cuts[i + 1] - 1};
        regions.push_back(region);
      }
    constexpr size_t most = 16;
    if (regions.size() > most)
      return false;
  }
  // For each pick: the outer test fails, or the inner one does. Where the inner index varies along a bound
  // axis, either may be so at each position of it, which the evaluation takes care of.
  for (unsigned which = 0; which < (1u << picks.size()); ++which) {
    Assumptions assume(picks.size());
    bool again = false;
    for (auto [i, pick] : llvm::enumerate(picks)) {
      bool outer = which >> i & 1;
      again |= outer && pick.inner.bound;
      assume.fails[i] = pick.inner.bound ? Assumptions::Either
                                         : (outer ? Assumptions::Outer : Assumptions::Inner);
    }
    for (auto &region : regions) {
      assume.region = region;
      if (again || RangeEval(*this, assume).evaluate(mask, roles).is(0))
        continue;
      if (!factor || !RangeEval(*this, assume).evaluate(factor.value, factor.roles).is(0))
        return false;
    }
  }
  return true;
}

/// Whether the index differs between any two positions of its bound axis: the places of the largest elements.
bool OneHotMask::isDistinctAlong(const PositionTest &test) const {
  auto result = dyn_cast<OpResult>(test.origin.value);
  if (!test.bound || !result || result.getResultNumber() != 1 ||
      result.getOwner()->getName().getStringRef() != "chlo.top_k")
    return false;
  AxisPlace place = *test.origin.roles[*test.bound];
  return place.dim == tensorType(result).getRank() - 1 && place.outer == 1 && place.inner == 1;
}

bool OneHotMask::reachesOnce(ArrayRef<unsigned> rows, std::string &whyNot) {
  for (auto [i, pick] : llvm::enumerate(picks)) {
    Assumptions assume(picks.size());
    assume.active = static_cast<unsigned>(i);
    assume.rows.assign(rows.begin(), rows.end());
    Range index = RangeEval(*this, assume).evaluate(pick.inner.index, pick.inner.roles);
    double first = pick.inner.offset, last = first + axes[pick.inner.axis].size - 1;
    if (!index.counts || (index.deadLo <= last && index.deadHi >= first)) {
      whyNot = "it is not certain that two tokens never get the same slot: its number is not a running count";
      return false;
    }
  }
  return true;
}

} // namespace farrier::fusion
