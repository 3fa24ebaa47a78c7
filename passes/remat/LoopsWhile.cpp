#include "passes/remat/LoopsWhile.h"

using namespace mlir;

namespace farrier::remat {

/// Loops are followed iteration by iteration; a longer one is not a scan over layers or time steps.
static constexpr int64_t kMostTrips = 1 << 16;

static bool isScalarInteger(Type type) {
  auto tensor = dyn_cast<RankedTensorType>(type);
  return tensor && tensor.getRank() == 0 && tensor.getElementType().isInteger();
}

/// The value that a loop body's argument always has, followed outwards while loops hand it on unchanged.
static Value followInvariant(Value value) {
  while (auto arg = dyn_cast<BlockArgument>(value)) {
    auto loop = dyn_cast_or_null<stablehlo::WhileOp>(arg.getOwner()->getParentOp());
    if (!loop || arg.getOwner() != &loop.getBody().front() ||
        arg.getOwner()->getTerminator()->getOperand(arg.getArgNumber()) != arg)
      break;
    value = loop.getOperand()[arg.getArgNumber()];
  }
  return value;
}

std::optional<WhileLoop> WhileLoop::analyse(stablehlo::WhileOp op, std::string &reason) {
  if (!op.getCond().hasOneBlock() || !op.getBody().hasOneBlock()) {
    reason = "its regions have more than one block";
    return std::nullopt;
  }
  WhileLoop loop;
  loop.op = op;
  if (!loop.simulate(reason))
    return std::nullopt;
  loop.classify();
  return loop;
}

WhileLoop WhileLoop::copy() const {
  WhileLoop loop;
  loop.op = op;
  loop.trips = trips;
  loop.kinds = kinds;
  loop.counter = counter;
  loop.numbersOf = numbersOf;
  return loop;
}

bool WhileLoop::simulate(std::string &reason) {
  llvm::SmallVector<unsigned> known;
  llvm::DenseMap<unsigned, int64_t> start;
  ScalarEval outside;
  for (auto [i, operand] : llvm::enumerate(op.getOperand())) {
    if (!isScalarInteger(operand.getType()))
      continue;
    if (std::optional<int64_t> number = outside.evaluate(followInvariant(operand))) {
      known.push_back(i);
      start[i] = *number;
    }
  }
  Value predicate = cond().getTerminator()->getOperand(0);
  // An operand whose next value is not known is dropped, and the loop followed anew without it.
  while (true) {
    numbersOf.clear();
    ScalarProgram test, step;
    std::vector<int64_t> now;
    for (unsigned i : known) {
      test.bind(cond().getArgument(i));
      step.bind(body().getArgument(i));
      now.push_back(start[i]);
    }
    unsigned again = test.add(predicate);
    llvm::SmallVector<unsigned> next;
    for (unsigned i : known)
      next.push_back(step.add(terminator()->getOperand(i)));
    std::vector<std::vector<int64_t>> numbers(known.size());
    int dropped = -1;
    for (trips = 0; dropped < 0; ++trips) {
      for (size_t k = 0; k < known.size(); ++k) {
        numbers[k].push_back(now[k]);
        test.set(k, now[k]);
        step.set(k, now[k]);
      }
      test.run();
      if (!test.get(again)) {
        reason = "its condition is not a function of constants and counters";
        return false;
      }
      if (!*test.get(again))
        break;
      if (trips == kMostTrips) {
        reason = "it runs more than 65536 times";
        return false;
      }
      std::vector<int64_t> before = now;
      step.run();
      for (size_t k = 0; k < known.size() && dropped < 0; ++k) {
        if (std::optional<int64_t> number = step.get(next[k]))
          now[k] = *number;
        else
          dropped = static_cast<int>(k);
      }
      if (dropped < 0 && now == before) {
        reason = "it never ends";
        return false;
      }
    }
    if (dropped < 0) {
      for (size_t k = 0; k < known.size(); ++k)
        numbersOf[known[k]] = std::move(numbers[k]);
      break;
    }
    known.erase(known.begin() + dropped);
  }
  if (trips == 0) {
    reason = "it never runs";
    return false;
  }
  return true;
}

void WhileLoop::classify() {
  for (unsigned i = 0; i < op.getOperand().size(); ++i) {
    BlockArgument arg = body().getArgument(i);
    if (numbersOf.contains(i)) {
      kinds.push_back(Kind::Number);
      std::optional<Affine> line = affine(i);
      if (counter < 0 && line && (line->step == 1 || line->step == -1))
        counter = static_cast<int>(i);
    } else if (terminator()->getOperand(i) == arg) {
      kinds.push_back(Kind::Invariant);
    } else if (write(i) && arg.hasOneUse() && cond().getArgument(i).use_empty()) {
      kinds.push_back(Kind::Stack);
    } else {
      kinds.push_back(Kind::Carry);
    }
  }
}

bool WhileLoop::isBodyArgument(Value value) const {
  auto arg = dyn_cast<BlockArgument>(value);
  return arg && arg.getOwner() == &body();
}

std::optional<WhileLoop::Affine> WhileLoop::affine(unsigned operand) const {
  llvm::ArrayRef<int64_t> list = numbers(operand);
  Affine line{list[0], list.size() > 1 ? list[1] - list[0] : 0};
  for (size_t t = 0; t < list.size(); ++t)
    if (list[t] != line.start + line.step * static_cast<int64_t>(t))
      return std::nullopt;
  return line;
}

const std::vector<int64_t> *WhileLoop::evaluate(Value value) {
  if (!isScalarInteger(value.getType()))
    return nullptr;
  auto [it, isNew] = evaluated.try_emplace(value);
  if (isNew) {
    ScalarProgram program;
    std::vector<std::pair<unsigned, const std::vector<int64_t> *>> given;
    for (auto &[i, list] : numbersOf)
      given.push_back({program.bind(body().getArgument(i)), &list});
    unsigned place = program.add(followInvariant(value));
    std::vector<int64_t> list;
    for (int64_t t = 0; t < trips; ++t) {
      for (auto [argument, numbers] : given)
        program.set(argument, (*numbers)[t]);
      program.run();
      if (!program.get(place))
        break;
      list.push_back(*program.get(place));
    }
    if (static_cast<int64_t>(list.size()) == trips)
      it->second = std::make_unique<std::vector<int64_t>>(std::move(list));
  }
  return it->second.get();
}

std::optional<std::vector<int64_t>> WhileLoop::slots(ValueRange starts, Type whole, Type slice) {
  auto wholeType = dyn_cast<RankedTensorType>(whole), sliceType = dyn_cast<RankedTensorType>(slice);
  if (!wholeType || !sliceType || !wholeType.hasStaticShape() || !sliceType.hasStaticShape() ||
      wholeType.getRank() == 0 || wholeType.getRank() != sliceType.getRank() ||
      sliceType.getDimSize(0) != 1 || wholeType.getShape().drop_front() != sliceType.getShape().drop_front())
    return std::nullopt;
  // Rest of the start indices: whatever they are, a full slice is clamped to the start.
  const std::vector<int64_t> *list = evaluate(starts[0]);
  if (!list)
    return std::nullopt;
  for (int64_t slot : *list)
    if (slot < 0 || slot >= wholeType.getDimSize(0))
      return std::nullopt;
  return *list;
}

stablehlo::DynamicUpdateSliceOp WhileLoop::write(unsigned operand) const {
  auto update = terminator()->getOperand(operand).getDefiningOp<stablehlo::DynamicUpdateSliceOp>();
  return update && update->getBlock() == &body() && update.getOperand() == body().getArgument(operand)
             ? update
             : stablehlo::DynamicUpdateSliceOp();
}

} // namespace farrier::remat
