#include "passes/remat/WideLoops.h"

#include "passes/remat/Reads.h"

#include "farrier/Analysis/OpInfo.h"

#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/Sequence.h"

using namespace mlir;

namespace farrier::remat {

namespace {

Block &blockOf(stablehlo::WhileOp loop, unsigned region) { return loop->getRegion(region).front(); }

bool isInvariant(stablehlo::WhileOp loop, unsigned operand) {
  Block &body = blockOf(loop, 1);
  return body.getTerminator()->getOperand(operand) == body.getArgument(operand);
}

constexpr unsigned unchanged = ~0U;

/// Operands of `narrow` paired with those of `wide`: first with the first free one that starts from the same.
class Pairing {
public:
  Pairing(stablehlo::WhileOp narrow, stablehlo::WhileOp wide, ValueNumbering &numbers)
      : narrow(narrow), wide(wide), numbers(numbers), places(narrow->getNumOperands(), unchanged) {}

  /// False if an operand has no partner.
  bool start() {
    return llvm::all_of(llvm::seq<unsigned>(0, places.size()),
                        [&](unsigned n) { return isInvariant(narrow, n) || take(n, 0); });
  }
  /// Pairs operand n with the next one; false if there is none.
  bool next(unsigned n) {
    unsigned place = places[n];
    taken.erase(place);
    return take(n, place + 1);
  }
  /// The partner of operand n, or `unchanged` where the loop hands it on as it is.
  unsigned operator[](unsigned n) const { return places[n]; }

private:
  bool take(unsigned n, unsigned from) {
    Value start = narrow->getOperand(n);
    for (unsigned w = from; w < wide->getNumOperands(); ++w) {
      Value other = wide->getOperand(w);
      if (taken.contains(w) || isInvariant(wide, w) || other.getType() != start.getType() ||
          numbers[other] != numbers[start])
        continue;
      taken.insert(w);
      places[n] = w;
      return true;
    }
    return false;
  }

  stablehlo::WhileOp narrow, wide;
  ValueNumbering &numbers;
  SmallVector<unsigned> places;
  llvm::SmallDenseSet<unsigned> taken;
};

/// The first operand of `narrow` that does not do in the body what its partner does; the number of operands if all do, more
/// if the conditions differ.
unsigned firstDifferent(stablehlo::WhileOp narrow, stablehlo::WhileOp wide, const Pairing &places,
                        ValueNumbering &numbers) {
  for (unsigned region : {0, 1}) {
    Block &inner = blockOf(narrow, region), &outer = blockOf(wide, region);
    for (BlockArgument argument : outer.getArguments())
      if (isInvariant(wide, argument.getArgNumber()))
        numbers.set(argument, numbers[wide->getOperand(argument.getArgNumber())]);
      else
        numbers.setFresh(argument);
    for (BlockArgument argument : inner.getArguments()) {
      unsigned place = places[argument.getArgNumber()];
      numbers.set(argument, numbers[place == unchanged ? narrow->getOperand(argument.getArgNumber())
                                                       : Value(outer.getArgument(place))]);
    }
    for (Block *block : {&outer, &inner})
      for (Operation &op : block->without_terminator())
        numbers.number(&op);
    Operation *narrowEnd = inner.getTerminator(), *wideEnd = outer.getTerminator();
    for (unsigned i = 0; i < narrowEnd->getNumOperands(); ++i) {
      unsigned place = region == 0 ? i : places[i];
      if (place != unchanged && numbers[narrowEnd->getOperand(i)] != numbers[wideEnd->getOperand(place)])
        return region == 0 ? narrow->getNumOperands() + 1 : i;
    }
  }
  return narrow->getNumOperands();
}

/// Whether operands can be paired so that `wide` does all that `narrow` does. Stacks start alike: which one holds what the
/// bodies say.
bool doesAllOf(stablehlo::WhileOp narrow, stablehlo::WhileOp wide, Pairing &places, ValueNumbering &numbers) {
  if (!places.start())
    return false;
  unsigned all = narrow->getNumOperands();
  for (unsigned different; (different = firstDifferent(narrow, wide, places, numbers)) != all;)
    if (different > all || !places.next(different))
      return false;
  return true;
}

} // namespace

bool widen(stablehlo::WhileOp narrow, stablehlo::WhileOp wide, ValueNumbering &numbers,
           llvm::function_ref<Value(Value)> same) {
  if (narrow->getNumOperands() > wide->getNumOperands() || !isClonable(narrow) || !isClonable(wide))
    return false;
  Pairing places(narrow, wide, numbers);
  if (!doesAllOf(narrow, wide, places, numbers))
    return false;
  Reads reads(narrow, same);
  Operation *copy = reads.copy(wide);
  if (!copy)
    return false;
  reads.keep();
  for (OpResult result : narrow->getResults()) {
    unsigned n = result.getResultNumber();
    result.replaceAllUsesWith(places[n] == unchanged ? narrow->getOperand(n) : copy->getResult(places[n]));
  }
  narrow->erase();
  return true;
}

} // namespace farrier::remat
