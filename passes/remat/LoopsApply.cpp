#include "passes/remat/Gradients.h"
#include "passes/remat/LoopsPair.h"
#include "passes/remat/Reads.h"
#include "passes/remat/Stacks.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/Measured.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/SinkRecipe.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/IRMapping.h"
#include "mlir/Interfaces/SideEffectInterfaces.h"

#include <map>

using namespace mlir;

namespace farrier::remat {

namespace {

/// The operands of a new loop and where the old loop's went.
struct Layout {
  SmallVector<Value> operands;
  SmallVector<int> position;           ///< of each operand of the old loop; -1: dropped
  DenseMap<Value, unsigned> invariant; ///< outside values that the new loop hands on unchanged

  unsigned add(Value outside) {
    auto [it, isNew] = invariant.try_emplace(outside, operands.size());
    if (isNew)
      operands.push_back(outside);
    return it->second;
  }
};

/// One of the loops to rewrite, and what of it goes.
struct Rewritten {
  WhileLoop &loop;
  llvm::DenseSet<unsigned> dropped;       ///< matched stacks
  std::map<unsigned, SinkRecipe> recipes; ///< operands made in the body instead
  bool keeps(unsigned operand) const {
    if (dropped.contains(operand))
      return false;
    return !recipes.count(operand) || !loop.cond().getArgument(operand).use_empty();
  }
};

/// Forward iterations [first, last) and their stacks.
struct Range {
  int64_t first = 0, last = 0;
  const Choice *choice = nullptr;
  SmallVector<std::pair<unsigned, Value>> stacks; ///< candidate, stack

  /// XLA inlines a loop of one iteration, and nothing would hide the transfer.
  bool onHost(unsigned candidate) const { return choice->onHost[candidate] && last - first > 1; }
};

bool isDead(Operation *op) {
  return op->use_empty() && !op->hasTrait<OpTrait::IsTerminator>() &&
         (isOpTriviallyDead(op) || isClonable(op) || isa<stablehlo::OptimizationBarrierOp>(op));
}

void eraseDead(Block &block) {
  for (Operation &op : llvm::make_early_inc_range(llvm::reverse(block)))
    if (isDead(&op))
      op.erase();
}

/// Erases what made these values, as far as nothing else reads it.
void eraseDeadMakers(ValueRange values) {
  llvm::SetVector<Operation *> makers;
  auto add = [&](ValueRange range) {
    for (Value value : range)
      if (Operation *op = value.getDefiningOp())
        makers.insert(op);
  };
  add(values);
  while (!makers.empty()) {
    Operation *op = makers.pop_back_val();
    if (!isDead(op))
      continue;
    SmallVector<Value> operands(op->operand_begin(), op->operand_end());
    op->erase();
    add(operands);
  }
}

} // namespace

class LoopRewriter {
public:
  explicit LoopRewriter(MatchedPair &pair)
      : pair(pair), F(pair.F), B(pair.B), builder(pair.F.op), forward{F, {}, {}}, backward{B, {}, {}} {
    for (const Residual &residual : pair.residuals) {
      forward.dropped.insert(residual.forward);
      backward.dropped.insert(residual.backward.begin(), residual.backward.end());
    }
    findRecipes(forward);
    findRecipes(backward);
  }

  void run(const LoopDecision &decision) {
    SmallVector<Range> ranges;
    for (const LoopPart &part : decision) {
      int64_t first = ranges.empty() ? 0 : ranges.back().last;
      ranges.push_back({first, first + part.iterations, &part.choice, {}});
    }
    SmallVector<Value> replacements;
    builder.setInsertionPoint(F.op);
    for (Range &range : ranges)
      replacements = makeForward(range, replacements);
    SmallVector<Value> forwardResults = replacements;
    replacements.clear();
    builder.setInsertionPoint(B.op);
    if (pair.reversed)
      std::reverse(ranges.begin(), ranges.end());
    for (Range &range : ranges)
      replacements = makeBackward(range, replacements);
    // The forward loop may be dead once the backward one is gone, so it must not count among what made
    // operands.
    SmallVector<Value> operands = replace(backward, replacements);
    llvm::erase_if(operands, [&](Value value) { return value.getDefiningOp() == F.op; });
    for (const Residual &residual : pair.residuals)
      eraseReshapesOf(F.op->getResult(residual.forward), operands);
    operands.append(replace(forward, forwardResults));
    eraseDeadMakers(operands);
  }

  /// The same for loops in two blocks; see `MatchedPair::applyAcross`.
  bool runAcross(const Choice &choice, Reads &at, llvm::function_ref<Value(Value)> handDown) {
    // What the body is given instead is not what the copy would be.
    forward.recipes.clear();
    Range range{0, F.trips, &choice, {}};
    builder.setInsertionPoint(F.op);
    SmallVector<Value> forwardResults = makeForward(range, {});
    Operation *copy = nullptr;
    if (!handDown) {
      Operation *made = range.stacks.front().second.getDefiningOp();
      copy = at.copy(made);
      if (!copy) {
        SmallVector<Value> operands(made->getOperands());
        made->erase();
        eraseDeadMakers(operands);
        return false;
      }
    }
    at.keep();
    there = &at;
    elsewhere = handDown;
    for (auto &[candidate, stack] : range.stacks)
      stack = copy ? copy->getResult(cast<OpResult>(stack).getResultNumber()) : handDown(stack);
    builder.setInsertionPoint(B.op);
    SmallVector<Value> operands = replace(backward, makeBackward(range, {}));
    // What handed the old stacks on hands zeros on, until it is rewritten, too: nobody reads them.
    builder.setInsertionPoint(F.op);
    for (const Residual &residual : pair.residuals) {
      OpResult stack = F.op->getResult(residual.forward);
      auto type = cast<RankedTensorType>(stack.getType());
      auto slice = RankedTensorType::get(type.getShape().drop_front(), type.getElementType());
      stack.replaceAllUsesWith(emptyStack(builder, stack.getLoc(), slice, type.getDimSize(0)));
    }
    operands.append(replace(forward, forwardResults));
    eraseDeadMakers(operands);
    return true;
  }

private:
  /// What the forward loop is given, where the backward one stands.
  Value given(Value outside) {
    if (!there)
      return outside;
    Value &known = givenAs[outside];
    if (!known)
      known = there->at(outside);
    if (!known && elsewhere)
      known = elsewhere(outside);
    return known;
  }

  /// Of a stack that only the old backward loop read, and takes them off the list.
  static void eraseReshapesOf(Value stack, SmallVector<Value> &values) {
    for (Operation *user : llvm::make_early_inc_range(stack.getUsers())) {
      auto reshape = dyn_cast<stablehlo::ReshapeOp>(user);
      if (!reshape)
        continue;
      eraseReshapesOf(reshape.getResult(), values);
      if (!reshape->use_empty())
        continue;
      llvm::erase(values, reshape.getResult());
      reshape.erase();
    }
  }

  void findRecipes(Rewritten &rewritten) {
    WhileLoop &loop = rewritten.loop;
    for (unsigned i = 0; i < loop.size(); ++i) {
      Value operand = loop.op.getOperand()[i];
      if (loop.kinds[i] != WhileLoop::Kind::Invariant || rewritten.dropped.contains(i) ||
          pair.options.size(operand) < pair.options.sinkBytes || loop.body().getArgument(i).hasOneUse())
        continue;
      if (std::optional<SinkRecipe> recipe = SinkRecipe::of(operand, pair.options.size))
        rewritten.recipes.emplace(i, std::move(*recipe));
    }
  }

  /// The operands that stay. `results`: of the loop that runs before this one, empty for the first.
  Layout layoutOf(const Rewritten &rewritten, int64_t firstIteration, llvm::ArrayRef<Value> results) {
    WhileLoop &loop = rewritten.loop;
    Layout layout;
    for (unsigned i = 0; i < loop.size(); ++i) {
      if (!rewritten.keeps(i)) {
        layout.position.push_back(-1);
        continue;
      }
      layout.position.push_back(static_cast<int>(layout.operands.size()));
      Value outside = loop.op.getOperand()[i];
      if (loop.kinds[i] == WhileLoop::Kind::Invariant)
        layout.invariant.try_emplace(outside, layout.operands.size());
      else if (firstIteration > 0 && loop.kinds[i] == WhileLoop::Kind::Number)
        // A constant, so that XLA still sees how often the loop runs.
        outside = integer(builder, loop.op.getLoc(), outside.getType(), loop.numbers(i)[firstIteration]);
      else if (!results.empty())
        outside = results[i];
      layout.operands.push_back(outside);
    }
    for (auto &[i, recipe] : rewritten.recipes)
      for (Value leaf : recipe.leaves)
        layout.add(leaf);
    return layout;
  }

  /// A loop with these operands, its condition filled in: iterations [.., last) of the old loop.
  stablehlo::WhileOp makeLoop(const Rewritten &rewritten, const Layout &layout, int64_t last,
                              IRMapping &mapping) {
    WhileLoop &loop = rewritten.loop;
    OperationState state(loop.op.getLoc(), loop.op->getName());
    state.addOperands(layout.operands);
    state.addTypes(TypeRange(ValueRange(layout.operands)));
    state.addAttributes(llvm::to_vector(loop.op->getDiscardableAttrs()));
    state.attributes.erase(shardsAttr); // of other results; what they hold says it again
    state.propertiesAttr = loop.op->getPropertiesAsAttribute();
    state.addRegion();
    state.addRegion();
    auto made = cast<stablehlo::WhileOp>(builder.create(state));
    for (Region &region : made->getRegions()) {
      Block &block = region.emplaceBlock();
      for (Value operand : layout.operands)
        block.addArgument(operand.getType(), loop.op.getLoc());
    }
    OpBuilder::InsertionGuard guard(builder);
    Block &cond = made.getCond().front();
    builder.setInsertionPointToStart(&cond);
    if (last == loop.trips) {
      IRMapping inner;
      for (unsigned i = 0; i < loop.size(); ++i)
        if (layout.position[i] >= 0)
          inner.map(loop.cond().getArgument(i), cond.getArgument(layout.position[i]));
      for (Operation &op : loop.cond())
        builder.clone(op, inner);
    } else {
      Location loc = loop.op.getLoc();
      Value counter = cond.getArgument(layout.position[loop.counter]);
      WhileLoop::Affine line = *loop.affine(loop.counter);
      Value bound = integer(builder, loc, counter.getType(), line.start + line.step * last);
      auto elementType = cast<RankedTensorType>(counter.getType()).getElementType();
      auto less = stablehlo::CompareOp::create(
          builder, loc, RankedTensorType::get({}, builder.getI1Type()), counter, bound,
          stablehlo::ComparisonDirectionAttr::get(builder.getContext(),
                                                  line.step > 0 ? stablehlo::ComparisonDirection::LT
                                                                : stablehlo::ComparisonDirection::GT),
          stablehlo::ComparisonTypeAttr::get(builder.getContext(), elementType.isUnsignedInteger()
                                                                       ? stablehlo::ComparisonType::UNSIGNED
                                                                       : stablehlo::ComparisonType::SIGNED));
      stablehlo::ReturnOp::create(builder, loc, ValueRange{less});
    }
    Block &body = made.getBody().front();
    builder.setInsertionPointToStart(&body);
    for (unsigned i = 0; i < loop.size(); ++i)
      if (layout.position[i] >= 0)
        mapping.map(loop.body().getArgument(i), body.getArgument(layout.position[i]));
    for (auto &[i, recipe] : rewritten.recipes)
      mapping.map(loop.body().getArgument(i), makeSunk(recipe, loop.op.getOperand()[i], layout, body));
    return made;
  }

  Value makeSunk(const SinkRecipe &recipe, Value value, const Layout &layout, Block &body) {
    IRMapping leaves;
    for (Value leaf : recipe.leaves)
      leaves.map(leaf, body.getArgument(layout.invariant.lookup(leaf)));
    return recipe.make(builder, value, leaves);
  }

  /// What the new body returns for each operand of the layout that the old loop had or that is invariant.
  SmallVector<Value> returns(const Rewritten &rewritten, const Layout &layout, Block &body,
                             const IRMapping &mapping) {
    SmallVector<Value> values(body.getArguments().begin(), body.getArguments().end());
    WhileLoop &loop = rewritten.loop;
    for (unsigned i = 0; i < loop.size(); ++i)
      if (layout.position[i] >= 0 && loop.kinds[i] != WhileLoop::Kind::Invariant)
        values[layout.position[i]] = mapping.lookupOrDefault(loop.terminator()->getOperand(i));
    return values;
  }

  /// What stands for each result of the old loop; null for matched stacks.
  SmallVector<Value> resultsOf(const Rewritten &rewritten, const Layout &layout, stablehlo::WhileOp made) {
    SmallVector<Value> values;
    for (unsigned i = 0; i < rewritten.loop.size(); ++i) {
      if (layout.position[i] >= 0)
        values.push_back(made->getResult(layout.position[i]));
      else
        values.push_back(rewritten.dropped.contains(i) ? Value() : rewritten.loop.op.getOperand()[i]);
    }
    return values;
  }

  SmallVector<Value> makeForward(Range &range, llvm::ArrayRef<Value> before) {
    const std::vector<Candidate> &candidates = pair.prob.candidates;
    Layout layout = layoutOf(forward, range.first, before);
    unsigned firstStack = layout.operands.size();
    for (unsigned v = 0; v < candidates.size(); ++v)
      if (range.choice->saved[v]) {
        layout.operands.push_back(emptyStack(builder, candidates[v].value.getLoc(), stacked(range, v), range.last - range.first));
        range.stacks.push_back({v, Value()});
      }
    IRMapping mapping;
    stablehlo::WhileOp made = makeLoop(forward, layout, range.last, mapping);
    Block &body = made.getBody().front();
    {
      OpBuilder::InsertionGuard guard(builder);
      builder.setInsertionPointToEnd(&body);
      llvm::SmallPtrSet<Operation *, 16> writes;
      for (const Residual &residual : pair.residuals)
        writes.insert(F.write(residual.forward));
      for (Operation &op : F.body().without_terminator())
        if (!writes.contains(&op))
          builder.clone(op, mapping);
      SmallVector<Value> values = returns(forward, layout, body, mapping);
      WhileLoop::Affine line = *F.affine(F.counter);
      Value slot = affine(builder, F.op.getLoc(), body.getArgument(layout.position[F.counter]), line.step,
                          -line.step * line.start - range.first);
      for (auto [at, stack] : llvm::enumerate(range.stacks)) {
        Value value = candidates[stack.first].value;
        BlockArgument whole = body.getArgument(firstStack + at);
        RankedTensorType slice = unitSlice(whole);
        Value written = mapping.lookup(value);
        if (range.onHost(stack.first))
          written = place(builder, value.getLoc(), written, Placement::PinnedHost);
        Value update = stablehlo::ReshapeOp::create(builder, value.getLoc(), slice, written);
        values[firstStack + at] =
            stablehlo::DynamicUpdateSliceOp::create(builder, value.getLoc(), whole.getType(), whole, update,
                                                    sliceStart(builder, slot, slice.getRank()));
        stack.second = made->getResult(firstStack + at);
      }
      stablehlo::ReturnOp::create(builder, F.terminator()->getLoc(), values);
      eraseDead(body);
    }
    return resultsOf(forward, layout, made);
  }

  /// Operations that the choice computes again, in forward order.
  SmallVector<Operation *> chainOf(const Choice &choice) {
    SmallVector<Operation *> chain;
    for (unsigned v = 0; v < choice.recomputed.size(); ++v)
      if (choice.recomputed[v])
        if (Operation *op = pair.prob.candidates[v].value.getDefiningOp();
            chain.empty() || chain.back() != op)
          chain.push_back(op);
    return chain;
  }

  SmallVector<Value> makeBackward(Range &range, llvm::ArrayRef<Value> before) {
    const std::vector<Candidate> &candidates = pair.prob.candidates;
    int64_t firstIteration = pair.reversed ? F.trips - range.last : range.first;
    int64_t lastIteration = pair.reversed ? F.trips - range.first : range.last;
    Layout layout = layoutOf(backward, firstIteration, before);
    SmallVector<Operation *> chain = chainOf(*range.choice);
    llvm::SetVector<Value> invariants; // forward body arguments that the chain or the boundary reads
    auto use = [&](Value value) {
      value = pair.numbering.representative(value);
      if (F.isBodyArgument(value) && pair.isFree(value))
        invariants.insert(value);
    };
    for (Operation *op : chain)
      for (Value read : readsOf(op))
        use(read);
    for (auto [mine, theirs] : pair.numbering.boundary)
      use(theirs);
    for (Value value : invariants) {
      unsigned i = cast<BlockArgument>(value).getArgNumber();
      if (F.kinds[i] == WhileLoop::Kind::Number)
        continue;
      auto recipe = forward.recipes.find(i);
      if (recipe == forward.recipes.end())
        layout.add(given(F.op.getOperand()[i]));
      else
        for (Value leaf : recipe->second.leaves)
          layout.add(leaf);
    }
    SmallVector<unsigned> stackAt;
    for (auto [candidate, stack] : range.stacks)
      stackAt.push_back(layout.add(stack));
    // What waits on the host is fetched one iteration ahead and handed on, so that the transfer runs beside a
    // whole iteration. The last iteration fetches a slice that nobody reads.
    SmallVector<int> fetchedAt;
    Value firstSlot;
    for (auto [candidate, stack] : range.stacks) {
      fetchedAt.push_back(range.onHost(candidate) ? static_cast<int>(layout.operands.size()) : -1);
      if (fetchedAt.back() < 0)
        continue;
      if (!firstSlot)
        firstSlot = firstFetched(range, layout);
      layout.operands.push_back(take(candidates[candidate].value, stack, firstSlot, /*fromHost=*/true));
    }

    IRMapping mapping;
    stablehlo::WhileOp made = makeLoop(backward, layout, lastIteration, mapping);
    Block &body = made.getBody().front();
    OpBuilder::InsertionGuard guard(builder);
    builder.setInsertionPointToEnd(&body);

    auto [offset, sign] = pair.iterationRead();
    Value counter = body.getArgument(layout.position[B.counter]);
    IRMapping recomputed;
    SmallVector<Value> leaves;
    auto leaf = [&](Value forwardValue, Value value) {
      recomputed.map(forwardValue, value);
      leaves.push_back(forwardValue);
    };
    Value slot = affine(builder, B.op.getLoc(), counter, sign, offset - range.first);
    SmallVector<std::pair<unsigned, Value>> ahead;
    for (auto [stack, at, fetched] : llvm::zip(range.stacks, stackAt, fetchedAt)) {
      Value value = candidates[stack.first].value;
      if (fetched < 0) {
        leaf(value, take(value, body.getArgument(at), slot, /*fromHost=*/false));
        continue;
      }
      leaf(value, body.getArgument(fetched));
      // A slice's start is clamped: beyond the end it is one that is there.
      Value next = affine(builder, value.getLoc(), slot, 1, pair.reversed ? -1 : 1);
      ahead.push_back({fetched, take(value, body.getArgument(at), next, /*fromHost=*/true)});
    }
    for (Value value : invariants) {
      unsigned i = cast<BlockArgument>(value).getArgNumber();
      Value outside = F.op.getOperand()[i];
      if (F.kinds[i] == WhileLoop::Kind::Number)
        recomputed.map(value, makeNumber(i, counter, sign, offset));
      else if (auto recipe = forward.recipes.find(i); recipe != forward.recipes.end())
        recomputed.map(value, makeSunk(recipe->second, outside, layout, body));
      else
        leaf(value, body.getArgument(layout.invariant.lookup(given(outside))));
    }
    if (range.last - range.first == 1 && !chain.empty() && !leaves.empty()) {
      // XLA inlines a loop of one iteration, and would then merge the recomputation with the original, or run it before the
      // gradient is there that it is for.
      SmallVector<Value> held;
      for (Value value : leaves)
        held.push_back(recomputed.lookup(value));
      OpOperand *carry = pair.carriedGradient();
      int at = carry ? layout.position[carry->getOperandNumber()] : -1;
      if (at >= 0)
        held.push_back(body.getArgument(at));
      Operation *barrier = makeBarrier(B.op.getLoc(), held, {});
      for (auto [value, result] : llvm::zip(leaves, barrier->getResults()))
        recomputed.map(value, result);
      if (at >= 0)
        mapping.map(B.body().getArgument(carry->getOperandNumber()), barrier->getResults().back());
    }
    for (Operation *op : chain) {
      for (Value read : readsOf(op))
        if (!recomputed.contains(read))
          if (Value same = recomputed.lookupOrNull(pair.numbering.representative(read)))
            recomputed.map(read, same);
      // A saved result of an operation that runs again for another one stays as saved.
      IRMapping results = recomputed;
      Operation *copy = builder.clone(*op, results);
      dropMeasuredExtra(copy);
      for (auto [from, to] : llvm::zip(op->getResults(), copy->getResults()))
        if (!recomputed.contains(from))
          recomputed.map(from, to);
    }
    for (auto [mine, theirs] : pair.numbering.boundary) {
      Value value = recomputed.lookup(pair.numbering.representative(theirs));
      if (value.getType() != mine.getType())
        value = stablehlo::ReshapeOp::create(builder, mine.getLoc(), mine.getType(), value);
      mapping.map(mine, value);
    }
    for (Operation &op : B.body().without_terminator())
      cloneBackward(op, mapping);
    SmallVector<Value> values = returns(backward, layout, body, mapping);
    for (auto [at, value] : ahead)
      values[at] = value;
    stablehlo::ReturnOp::create(builder, B.terminator()->getLoc(), values);
    eraseDead(body);
    return resultsOf(backward, layout, made);
  }

  /// The slot that a range of the backward loop reads first. What is fetched of it waits for the gradient that the loop starts
  /// from: XLA would fetch it as soon as the forward loop is done, and have it beside all that comes between (the loss).
  Value firstFetched(const Range &range, Layout &layout) {
    Value slot = integer(builder, B.op.getLoc(), B.op.getOperand()[B.counter].getType(),
                         pair.reversed ? range.last - range.first - 1 : 0);
    OpOperand *carry = pair.carriedGradient();
    int at = carry ? layout.position[carry->getOperandNumber()] : -1;
    if (at < 0)
      return slot;
    Value held[] = {layout.operands[at], slot};
    Operation *barrier = makeBarrier(B.op.getLoc(), held, {});
    layout.operands[at] = barrier->getResult(0);
    return barrier->getResult(1);
  }

  /// What a stack has of a candidate: the value as it is, or its elements in a row.
  RankedTensorType stacked(const Range &range, unsigned candidate) const {
    Value value = pair.prob.candidates[candidate].value;
    auto type = cast<RankedTensorType>(value.getType());
    bool flat = pair.options.flatBytes > 0 && pair.options.size(value) >= pair.options.flatBytes;
    return flat && !range.onHost(candidate) ? RankedTensorType::get({type.getNumElements()}, type.getElementType()) : type;
  }

  /// The slice of a stack of values like this one.
  Value take(Value value, Value stack, Value slot, bool fromHost) {
    RankedTensorType slice = unitSlice(stack);
    Value taken = stablehlo::DynamicSliceOp::create(builder, value.getLoc(), slice, stack,
                                                    sliceStart(builder, slot, slice.getRank()),
                                                    builder.getDenseI64ArrayAttr(slice.getShape()));
    taken = stablehlo::ReshapeOp::create(builder, value.getLoc(), value.getType(), taken);
    return fromHost ? place(builder, value.getLoc(), taken, Placement::Device) : taken;
  }

  /// A forward counter in the iteration that the backward counter stands for.
  Value makeNumber(unsigned operand, Value counter, int64_t sign, int64_t offset) {
    WhileLoop::Affine line = *F.affine(operand);
    Type type = F.body().getArgument(operand).getType();
    Location loc = F.op.getLoc();
    if (line.step == 0)
      return integer(builder, loc, type, line.start);
    if (counter.getType() != type)
      counter = stablehlo::ConvertOp::create(builder, loc, type, counter);
    if (line.step == 1 || line.step == -1)
      return affine(builder, loc, counter, sign * line.step, line.start + line.step * offset);
    Value iteration = affine(builder, loc, counter, sign, offset);
    Value scaled =
        stablehlo::MulOp::create(builder, loc, type, iteration, integer(builder, loc, type, line.step));
    return affine(builder, loc, scaled, 1, line.start);
  }

  void cloneBackward(Operation &op, IRMapping &mapping) {
    const BodyNumbering &numbering = pair.numbering;
    if (numbering.replaced.contains(&op))
      return;
    if (!isa<stablehlo::OptimizationBarrierOp>(op) ||
        llvm::none_of(op.getResults(), [&](Value v) { return numbering.known.contains(v); })) {
      builder.clone(op, mapping);
      return;
    }
    SmallVector<Value> held, results;
    for (auto [operand, result] : llvm::zip(op.getOperands(), op.getResults()))
      if (!numbering.known.contains(result)) {
        held.push_back(mapping.lookupOrDefault(operand));
        results.push_back(result);
      }
    Operation *made = makeBarrier(op.getLoc(), held, llvm::to_vector(op.getDiscardableAttrs()));
    for (auto [old, now] : llvm::zip(results, made->getResults()))
      mapping.map(old, now);
  }

  Operation *makeBarrier(Location loc, ValueRange held, llvm::ArrayRef<NamedAttribute> attributes) {
    OperationState state(loc, stablehlo::OptimizationBarrierOp::getOperationName());
    state.addOperands(held);
    state.addTypes(TypeRange(held));
    state.addAttributes(attributes);
    return builder.create(state);
  }

  /// Takes the old loop out; returns what it read.
  SmallVector<Value> replace(Rewritten &rewritten, llvm::ArrayRef<Value> values) {
    Operation *op = rewritten.loop.op;
    for (auto [result, value] : llvm::zip(op->getResults(), values))
      if (value)
        result.replaceAllUsesWith(value);
    SmallVector<Value> operands(op->operand_begin(), op->operand_end());
    op->erase();
    return operands;
  }

  MatchedPair &pair;
  WhileLoop &F, &B;
  OpBuilder builder;
  Rewritten forward, backward;
  Reads *there = nullptr;                     ///< of loops in two blocks
  llvm::function_ref<Value(Value)> elsewhere; ///< hands a value down from the one block to the other
  DenseMap<Value, Value> givenAs;
};

LogicalResult MatchedPair::apply(const LoopDecision &decision) {
  int64_t iterations = 0;
  for (const LoopPart &part : decision) {
    iterations += part.iterations;
    if (part.iterations <= 0 || part.choice.saved.size() != prob.candidates.size() ||
        !prob.legal(part.choice))
      return F.op.emitError("a decision about this loop is not legal");
  }
  if (iterations != F.trips)
    return F.op.emitError() << "a decision is for " << iterations << " iterations of a loop that runs "
                            << F.trips << " times";
  shrinkMeasured(decision);
  // Of one loop XLA takes what comes before it first; of several it puts gradients off until after all of them.
  if (decision.size() > 1)
    if (OpOperand *carry = carriedGradient())
      finishProducts(F.op, B.op, *carry);
  LoopRewriter(*this).run(decision);
  return success();
}

bool MatchedPair::applyAcross(const Choice &choice, llvm::function_ref<Value(Value)> same,
                              llvm::function_ref<Value(Value)> handDown) {
  // A chain that is cloned reads what its loop captures as it is.
  Reads at(B.op, same, /*kernels=*/!handDown);
  for (Value read : readsOf(F.op))
    if (bool isOperand = llvm::is_contained(F.op->getOperands(), read); !isOperand || !handDown)
      if (Value equal = at.at(read); !equal || (equal != read && !isOperand))
        return false;
  return LoopRewriter(*this).runAcross(choice, at, handDown);
}

} // namespace farrier::remat
