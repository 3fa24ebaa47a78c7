//===- LoopsInner.cpp - loops inside of a pair's two loops, as a pair --------===//
//
// A scan over layers whose layers scan over chunks or time saves, of each layer, all that the inner scan
// saves of each of its steps. The loop in the forward body and the one in the backward body are a pair whose
// stacks go through stacks of the outer pair's.
//
//===----------------------------------------------------------------------===//

#include "passes/remat/LoopPlanner.h"
#include "passes/remat/LoopsPair.h"
#include "passes/remat/Planner.h"
#include "passes/remat/Stacks.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/Sharding.h"

#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringSet.h"

#include <algorithm>
#include <cmath>

using namespace mlir;

namespace farrier::remat {

namespace {

class InnerPair : public MatchedPair {
public:
  InnerPair(WhileLoop forward, WhileLoop backward, bool reversed, std::vector<Residual> residuals,
            const LoopOptions &options, ValueNumbering outer, std::function<Value(Value)> same,
            std::function<Value(Value)> down)
      : MatchedPair(std::move(forward), std::move(backward), reversed, std::move(residuals), options,
                    std::move(outer)),
        same(std::move(same)), down(std::move(down)) {}

  LogicalResult apply(const LoopDecision &decision) override {
    if (decision.size() != 1 || decision.front().iterations != problem().instances)
      return failure();
    const Choice &choice = decision.front().choice;
    if (choice.saved.size() != problem().candidates.size() || !problem().legal(choice) ||
        llvm::is_contained(choice.onHost, true))
      return failure();
    return success(applyAcross(choice, same, down));
  }

private:
  std::function<Value(Value)> same, down;
};

} // namespace

std::unique_ptr<MatchedPair> MatchedPair::innerPair(stablehlo::WhileOp once, stablehlo::WhileOp again) {
  std::string reason;
  std::optional<WhileLoop> forward = WhileLoop::analyse(once, reason),
                           backward = WhileLoop::analyse(again, reason);
  if (!forward || !backward || isSharded(once) || isSharded(again) || !runAlike(*forward, *backward))
    return nullptr;
  llvm::DenseMap<Operation *, const Residual *> writes;
  for (const Residual &residual : residuals)
    writes[F.write(residual.forward)] = &residual;
  // Values that are only ever seen in another shape on their way; what reads them, each once.
  auto readersOf = [](SmallVector<Value> values) {
    SmallVector<OpOperand *> readers;
    while (!values.empty())
      for (OpOperand &use : values.pop_back_val().getUses()) {
        if (isa<stablehlo::ReshapeOp, stablehlo::BroadcastInDimOp>(use.getOwner()))
          values.push_back(use.getOwner()->getResult(0));
        else
          readers.push_back(&use);
      }
    return readers;
  };
  std::vector<Reading> readings;
  for (unsigned i = 0; i < forward->size(); ++i) {
    OpResult stack = once->getResult(i);
    if (forward->kinds[i] != WhileLoop::Kind::Stack || stack.use_empty() ||
        cast<RankedTensorType>(stack.getType()).getDimSize(0) != forward->trips)
      continue;
    SmallVector<Value> slices;
    bool handedOn = true;
    for (OpOperand *use : readersOf({stack})) {
      const Residual *residual = writes.lookup(use->getOwner());
      handedOn &= residual != nullptr;
      for (Operation *read : residual ? residual->reads : SmallVector<Operation *>())
        slices.push_back(read->getResult(0));
    }
    SmallVector<unsigned> operands;
    for (OpOperand *use : readersOf(slices)) {
      handedOn &= use->getOwner() == again && use->get().getType() == stack.getType();
      operands.push_back(use->getOperandNumber());
    }
    if (!handedOn || operands.empty())
      continue;
    if (std::optional<Reading> reading =
            readingOf(*forward, *backward, i, operands, options.size(stack), [](StringRef) {}))
      readings.push_back(std::move(*reading));
  }
  auto [reversed, stacks] = inOneOrder(std::move(readings), *forward, [](Operation *, StringRef) {});
  if (stacks.empty())
    return nullptr;
  LoopOptions without = options;
  without.offload = OffloadRules();
  without.offload.allowed = false;
  without.flatBytes = 0;
  return std::make_unique<InnerPair>(std::move(*forward), std::move(*backward), reversed, std::move(stacks),
                                     without, numbering.numbers, inBackward(),
                                     [this](Value value) { return handDown(value); });
}

std::vector<std::unique_ptr<LoopPair>> MatchedPair::inner(CostModel &costs) {
  std::vector<std::unique_ptr<LoopPair>> pairs;
  llvm::StringMap<unsigned> names;
  for (auto once : F.body().getOps<stablehlo::WhileOp>()) {
    std::unique_ptr<MatchedPair> best;
    for (auto again : B.body().getOps<stablehlo::WhileOp>()) {
      std::unique_ptr<MatchedPair> pair = innerPair(once, again);
      if (pair && (!best || pair->stackBytes() > best->stackBytes()))
        best = std::move(pair);
    }
    std::string stack = nameStack(once.getLoc()), reason;
    unsigned ordinal = names[stack]++;
    if (!best || !best->formulate(costs, reason))
      continue;
    best->setName(stack + "|" + std::to_string(ordinal));
    pairs.push_back(std::move(best));
  }
  return pairs;
}

/// The loop with one operand more.
static stablehlo::WhileOp grown(stablehlo::WhileOp loop, Value operand) {
  OpBuilder builder(loop);
  OperationState state(loop.getLoc(), loop->getName());
  state.addOperands(loop->getOperands());
  state.addOperands(operand);
  state.addTypes(loop->getResultTypes());
  state.addTypes(operand.getType());
  state.addAttributes(llvm::to_vector(loop->getDiscardableAttrs()));
  state.attributes.erase(shardsAttr);
  state.propertiesAttr = loop->getPropertiesAsAttribute();
  state.addRegion();
  state.addRegion();
  auto made = cast<stablehlo::WhileOp>(builder.create(state));
  for (auto [from, to] : llvm::zip(loop->getRegions(), made->getRegions())) {
    to.takeBody(from);
    to.front().addArgument(operand.getType(), loop.getLoc());
  }
  loop->replaceAllUsesWith(made->getResults().drop_back());
  loop->erase();
  return made;
}

Value MatchedPair::handDown(Value value) {
  Location loc = value.getLoc();
  OpBuilder builder(F.op);
  F.op = grown(F.op, emptyStack(builder, loc, cast<RankedTensorType>(value.getType()), F.trips));
  auto counted = [&](WhileLoop &loop, int64_t sign, int64_t offset) {
    return affine(builder, loc, loop.body().getArgument(loop.counter), sign, offset);
  };
  BlockArgument stack = F.body().getArguments().back();
  RankedTensorType slice = unitSlice(stack);
  builder.setInsertionPoint(F.terminator());
  WhileLoop::Affine line = *F.affine(F.counter);
  Value slot = counted(F, line.step, -line.step * line.start);
  Value update = stablehlo::ReshapeOp::create(builder, loc, slice, value);
  Value written = stablehlo::DynamicUpdateSliceOp::create(builder, loc, stack.getType(), stack, update,
                                                          sliceStart(builder, slot, slice.getRank()));
  F.terminator()->insertOperands(F.terminator()->getNumOperands(), written);

  B.op = grown(B.op, F.op->getResults().back());
  BlockArgument read = B.body().getArguments().back();
  B.terminator()->insertOperands(B.terminator()->getNumOperands(), read);
  builder.setInsertionPointToStart(&B.body());
  auto [offset, sign] = iterationRead();
  slot = counted(B, sign, offset);
  Value taken =
      stablehlo::DynamicSliceOp::create(builder, loc, slice, read, sliceStart(builder, slot, slice.getRank()),
                                        builder.getDenseI64ArrayAttr(slice.getShape()));
  return stablehlo::ReshapeOp::create(builder, loc, value.getType(), taken);
}

bool applyInner(ModuleOp module, CostModel &costs, const LoopOptions &options, StringRef key, LoopPair &inner,
                const Choice &choice) {
  if (failed(inner.apply({{inner.problem().instances, choice}})))
    return false;
  // What nobody reads any more is not saved any more.
  auto pairs = findLoopPairs(module, costs, options, [](Operation *, StringRef) {});
  for (auto &pair : pairs)
    if (pair->key() == key) {
      (void)pair->apply({{pair->problem().instances, pair->current()}});
      break;
    }
  inferShards(module);
  return true;
}

InnerPlan planInner(ModuleOp module, const PlanOptions &options, double share) {
  InnerPlan plan;
  CostModel costs(module, options.machine);
  LoopOptions with = loopOptions(options);
  llvm::StringSet<> done;
  auto next = [&] {
    auto pairs = findLoopPairs(module, costs, with, [](Operation *, StringRef) {});
    for (auto &pair : pairs)
      for (auto &inner : pair->inner(costs)) {
        auto trips = static_cast<double>(pair->problem().instances);
        std::string key = pair->key().str();
        if (!done.insert(key + " " + inner->key().str()).second ||
            inner->stackBytes() * pair->problem().instances < options.smallBytes)
          continue;
        std::vector<Choice> frontier = inner->problem().frontier();
        if (frontier.empty())
          continue;
        auto at = static_cast<size_t>(std::lround(share * static_cast<double>(frontier.size() - 1)));
        const Choice choice = frontier[at];
        int64_t less = inner->stackBytes() - choice.savedBytes;
        if (less <= 0)
          continue;
        llvm::json::Object entry = described(*inner, {{inner->problem().instances, choice}});
        entry["within"] = key;
        // The outer loops write and read as much less.
        double copies = -2.0 * static_cast<double>(less) / costs.getMachine().bytesPerSecond;
        double added = choice.seconds - inner->current().seconds;
        double flops = choice.flops - inner->current().flops;
        if (with.byFlops)
          added = secondsOfPrice(added, flops);
        if (!applyInner(module, costs, with, key, *inner, choice))
          continue;
        plan.loops.push_back(std::move(entry));
        plan.seconds += trips * (added + copies);
        plan.flops += trips * flops;
        return true;
      }
    return false;
  };
  while (next())
    ;
  return plan;
}

} // namespace farrier::remat
