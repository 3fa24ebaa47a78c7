#include "passes/fusion/Loops.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/OpCost.h"
#include "farrier/Analysis/ScalarEval.h"
#include "passes/fusion/Build.h"

#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "llvm/ADT/BitVector.h"

using namespace mlir;

namespace farrier::fusion {

static Block &bodyOf(stablehlo::WhileOp loop) { return loop->getRegion(1).front(); }

Value resolveInvariant(Value value) {
  while (auto argument = dyn_cast<BlockArgument>(value)) {
    auto loop = dyn_cast_or_null<stablehlo::WhileOp>(argument.getOwner()->getParentOp());
    if (!loop || argument.getOwner() != &bodyOf(loop) ||
        argument.getOwner()->getTerminator()->getOperand(argument.getArgNumber()) != argument)
      break;
    value = loop->getOperand(argument.getArgNumber());
  }
  return value;
}

/// Whether `index` is the number of the iteration: proven by evaluating it for each.
static bool countsIterations(stablehlo::WhileOp loop, Value index, int64_t iterations) {
  Block &body = bodyOf(loop);
  for (BlockArgument argument : body.getArguments()) {
    RankedTensorType type = tensorType(argument);
    if (!type || type.getRank() != 0 || !type.getElementType().isInteger() ||
        ScalarEval().evaluate(resolveInvariant(loop->getOperand(argument.getArgNumber()))) != 0)
      continue;
    auto at = [&](Value value, int64_t iteration) {
      ScalarEval eval;
      eval.bind(argument, iteration);
      return eval.evaluate(value);
    };
    Value next = body.getTerminator()->getOperand(argument.getArgNumber());
    bool counts = true;
    for (int64_t i = 0; i < iterations && counts; ++i)
      counts = at(next, i) == i + 1 && at(index, i) == i;
    if (counts)
      return true;
  }
  return false;
}

/// Whether starts 1, 2, ... are zero.
static bool onlyFirstMoves(ValueRange starts) {
  return llvm::all_of(starts.drop_front(),
                      [](Value start) { return ScalarEval().evaluate(resolveInvariant(start)) == 0; });
}

std::optional<Residual> residualOf(stablehlo::DynamicUpdateSliceOp update) {
  auto loop = dyn_cast<stablehlo::WhileOp>(update->getParentOp());
  RankedTensorType stack = tensorType(update.getResult()), slice = tensorType(update.getUpdate());
  auto argument = dyn_cast<BlockArgument>(update.getOperand());
  // A sharding lists every value of the state: leave such loops as they are.
  if (!loop || loop->hasAttr("sdy.sharding") || !argument || update->getBlock() != &bodyOf(loop) ||
      argument.getOwner() != &bodyOf(loop))
    return std::nullopt;
  if (stack.getRank() == 0 || slice.getDimSize(0) != 1 ||
      stack.getShape().drop_front() != slice.getShape().drop_front())
    return std::nullopt;
  unsigned slot = argument.getArgNumber();
  Operation *terminator = bodyOf(loop).getTerminator();
  if (!argument.hasOneUse() || !update.getResult().hasOneUse() ||
      terminator->getOperand(slot) != update.getResult())
    return std::nullopt;
  Value index = update.getStartIndices()[0];
  if (!onlyFirstMoves(update.getStartIndices()) || tripCount(loop) != stack.getDimSize(0) ||
      !countsIterations(loop, index, stack.getDimSize(0)))
    return std::nullopt;
  Residual residual;
  residual.stored = update.getUpdate();
  residual.loops.forward = loop;
  residual.loops.writeIndex = index;
  Value result = loop->getResult(slot);
  if (!result.hasOneUse())
    return std::nullopt;
  auto backward = dyn_cast<stablehlo::WhileOp>(*result.user_begin());
  if (!backward || backward->hasAttr("sdy.sharding"))
    return std::nullopt;
  residual.loops.backward = backward;
  unsigned readSlot = result.use_begin()->getOperandNumber();
  BlockArgument reader = bodyOf(backward).getArgument(readSlot);
  if (bodyOf(backward).getTerminator()->getOperand(readSlot) != reader ||
      !backward->getResult(readSlot).use_empty())
    return std::nullopt;
  for (Operation *user : reader.getUsers()) {
    if (user == bodyOf(backward).getTerminator())
      continue;
    auto read = dyn_cast<stablehlo::DynamicSliceOp>(user);
    if (!read || read->getBlock() != &bodyOf(backward) || tensorType(read.getResult()) != slice ||
        !onlyFirstMoves(read.getStartIndices()))
      return std::nullopt;
    if (residual.loops.readIndex && residual.loops.readIndex != read.getStartIndices()[0])
      return std::nullopt;
    residual.loops.readIndex = read.getStartIndices()[0];
    residual.reads.push_back(read);
  }
  return residual.reads.empty() ? std::nullopt : std::optional(residual);
}

SmallVector<Residual> residualsOf(stablehlo::WhileOp forward) {
  SmallVector<Residual> residuals;
  for (auto update : bodyOf(forward).getOps<stablehlo::DynamicUpdateSliceOp>())
    if (std::optional<Residual> residual = residualOf(update))
      residuals.push_back(*residual);
  return residuals;
}

/// The same loop with one more value of state.
static stablehlo::WhileOp extended(stablehlo::WhileOp loop, Value start) {
  OpBuilder builder(loop);
  SmallVector<Value> operands(loop->getOperands());
  operands.push_back(start);
  SmallVector<Type> types(loop->getResultTypes());
  types.push_back(start.getType());
  Maker make(builder, loop.getLoc());
  Operation *grown = make.op("stablehlo.while", types, operands, {}, 2);
  grown->setDiscardableAttrs(loop->getDiscardableAttrDictionary());
  for (unsigned region : {0u, 1u}) {
    grown->getRegion(region).takeBody(loop->getRegion(region));
    grown->getRegion(region).front().addArgument(start.getType(), loop.getLoc());
  }
  loop->replaceAllUsesWith(grown->getResults().drop_back());
  loop->erase();
  return cast<stablehlo::WhileOp>(grown);
}

static void yield(stablehlo::WhileOp loop, Value value) {
  Operation *terminator = bodyOf(loop).getTerminator();
  terminator->insertOperands(terminator->getNumOperands(), value);
}

Value addInvariant(stablehlo::WhileOp &loop, Value value) {
  loop = extended(loop, value);
  Value inside = bodyOf(loop).getArguments().back();
  yield(loop, inside);
  return inside;
}

Value addResidual(LoopPair &loops, Value value) {
  RankedTensorType type = tensorType(value);
  SmallVector<int64_t> slice{1}, stack{*tripCount(loops.forward)};
  slice.append(type.getShape().begin(), type.getShape().end());
  stack.append(type.getShape().begin(), type.getShape().end());

  OpBuilder builder(loops.forward);
  Maker outside(builder, value.getLoc());
  loops.forward =
      extended(loops.forward, outside.splat(RankedTensorType::get(stack, type.getElementType()), 0));
  Block &writer = bodyOf(loops.forward);
  builder.setInsertionPoint(writer.getTerminator());
  Maker write(builder, value.getLoc());
  auto startsAt = [&](Maker &make, Value index) {
    Value zero = make.splat(tensorType(index), 0);
    SmallVector<Value> starts(stack.size(), zero);
    starts[0] = index;
    return starts;
  };
  yield(loops.forward, write.dynamicUpdateSlice(writer.getArguments().back(), write.reshape(value, slice),
                                                startsAt(write, loops.writeIndex)));

  loops.backward = extended(loops.backward, loops.forward->getResults().back());
  Block &reader = bodyOf(loops.backward);
  yield(loops.backward, reader.getArguments().back());
  if (Operation *index = loops.readIndex.getDefiningOp())
    builder.setInsertionPointAfter(index);
  else
    builder.setInsertionPointToStart(&reader);
  Maker read(builder, value.getLoc());
  return read.reshape(read.dynamicSlice(reader.getArguments().back(), startsAt(read, loops.readIndex), slice),
                      type.getShape());
}

//===-- State that nothing reads
//--------------------------------------------------------------------------------===//

/// Marks the state that decides results which are read, the loop's end, or effects.
static llvm::BitVector liveState(stablehlo::WhileOp loop) {
  Block &condition = loop->getRegion(0).front(), &body = bodyOf(loop);
  Operation *terminator = body.getTerminator();
  llvm::BitVector live(loop->getNumResults());
  SmallVector<Value> todo;
  DenseSet<Operation *> seen;
  auto markArgument = [&](unsigned slot) {
    if (live.test(slot))
      return;
    live.set(slot);
    todo.push_back(terminator->getOperand(slot));
  };
  for (OpResult result : loop->getResults())
    if (!result.use_empty())
      markArgument(result.getResultNumber());
  for (BlockArgument argument : condition.getArguments())
    if (!argument.use_empty())
      markArgument(argument.getArgNumber());
  auto needs = [&](Operation *op) {
    if (!seen.insert(op).second)
      return;
    op->walk([&](Operation *inner) { todo.append(inner->operand_begin(), inner->operand_end()); });
  };
  for (Operation &op : body)
    if (!op.hasTrait<OpTrait::IsTerminator>() && !wouldOpBeTriviallyDead(&op))
      needs(&op);
  while (!todo.empty()) {
    Value value = todo.pop_back_val();
    if (auto argument = dyn_cast<BlockArgument>(value)) {
      if (argument.getOwner() == &body)
        markArgument(argument.getArgNumber());
    } else if (value.getDefiningOp()->getBlock() == &body) {
      needs(value.getDefiningOp());
    }
  }
  return live;
}

static unsigned dropDeadState(stablehlo::WhileOp loop) {
  llvm::BitVector live = liveState(loop);
  if (live.all() || loop->hasAttr("sdy.sharding"))
    return 0;
  llvm::BitVector dead = live;
  dead.flip();
  OpBuilder builder(loop);
  SmallVector<Value> operands;
  SmallVector<Type> types;
  for (unsigned slot : live.set_bits()) {
    operands.push_back(loop->getOperand(slot));
    types.push_back(loop->getResult(slot).getType());
  }
  Block &body = bodyOf(loop);
  body.getTerminator()->eraseOperands(dead);
  // What computed only dead state goes first, so that the arguments have no users left.
  for (Operation &op : llvm::make_early_inc_range(llvm::reverse(body)))
    if (isOpTriviallyDead(&op))
      op.erase();
  Maker make(builder, loop.getLoc());
  Operation *slim = make.op("stablehlo.while", types, operands, {}, 2);
  slim->setDiscardableAttrs(loop->getDiscardableAttrDictionary());
  for (unsigned region : {0u, 1u}) {
    slim->getRegion(region).takeBody(loop->getRegion(region));
    slim->getRegion(region).front().eraseArguments(dead);
  }
  unsigned result = 0;
  for (unsigned slot : live.set_bits())
    loop->getResult(slot).replaceAllUsesWith(slim->getResult(result++));
  loop->erase();
  return dead.count();
}

unsigned eraseDeadState(Operation *root) {
  unsigned total = 0;
  for (bool changed = true; changed;) {
    changed = false;
    SmallVector<stablehlo::WhileOp> loops;
    root->walk([&](stablehlo::WhileOp loop) { loops.push_back(loop); });
    // Readers before writers: the backward loop lets go of stacks first. Inner loops come before outer ones.
    for (stablehlo::WhileOp loop : llvm::reverse(loops))
      if (unsigned dropped = dropDeadState(loop)) {
        total += dropped;
        changed = true;
        break; // nested loops of the list moved or are gone
      }
  }
  return total;
}

} // namespace farrier::fusion
