#include "passes/remat/LoopsPair.h"
#include "passes/remat/WideLoops.h"

#include "farrier/Analysis/Graph.h"
#include "farrier/Analysis/Measured.h"
#include "farrier/Analysis/OpInfo.h"

#include "llvm/ADT/SetVector.h"

using namespace mlir;

namespace farrier::remat {

/// Elementwise work that XLA does not store, computed again, runs in its reader's kernel, which reads mostly what it did: so much
/// of what it would read and write by itself, that less of it is better.
static constexpr double kFusedShare = 0.02;

LoopPair::~LoopPair() = default;

int64_t iterationsOfUpper(const Choice &lower, const Choice &upper, int64_t trips, int64_t savedBytesBudget) {
  int64_t perUpper = upper.savedBytes / trips, perLower = lower.savedBytes / trips;
  int64_t room = savedBytesBudget - lower.savedBytes;
  return perUpper > perLower ? std::clamp<int64_t>(room / (perUpper - perLower), 0, trips) : trips;
}

LoopDecision splitIterations(const Choice &lower, const Choice &upper, int64_t trips, int64_t savedBytesBudget) {
  int64_t count = iterationsOfUpper(lower, upper, trips, savedBytesBudget);
  LoopDecision decision;
  if (count < trips)
    decision.push_back({trips - count, lower});
  if (count > 0)
    decision.push_back({count, upper});
  return decision;
}

MatchedPair::MatchedPair(WhileLoop forward, WhileLoop backward, bool reversed,
                         std::vector<Residual> residuals, const LoopOptions &options, ValueNumbering outer)
    : F(std::move(forward)), B(std::move(backward)), reversed(reversed), residuals(std::move(residuals)),
      options(options), numbering(F, B, reversed, this->residuals, options, std::move(outer)) {
  for (const Residual &residual : this->residuals)
    stacks += residual.bytes;
}

WhileLoop::Affine MatchedPair::iterationRead() const {
  WhileLoop::Affine line = *B.affine(B.counter);
  int64_t sign = reversed ? -line.step : line.step;
  return {(reversed ? F.trips - 1 : 0) - sign * line.start, sign};
}

bool MatchedPair::isFree(Value value) const {
  if (auto arg = dyn_cast<BlockArgument>(value)) {
    if (arg.getOwner() != &F.body())
      return true;
    WhileLoop::Kind kind = F.kinds[arg.getArgNumber()];
    return kind == WhileLoop::Kind::Invariant ||
           (kind == WhileLoop::Kind::Number && F.affine(arg.getArgNumber()));
  }
  return value.getDefiningOp()->getBlock() != &F.body();
}

bool MatchedPair::isRecomputable(Operation *op) const {
  if (options.forbid && options.forbid(op))
    return false;
  if (isa<stablehlo::OptimizationBarrierOp>(op))
    return true;
  if (options.recomputeCollectives && isa<stablehlo::AllGatherOp>(op))
    return true;
  return isClonable(op);
}

namespace {
/// What running operations of the forward body once more in the backward one costs.
class CostAgain {
public:
  CostAgain(Block &body, CostModel &costs, const SizeFn &size)
      : graph(body, size), roots(graph, options()), costs(costs), size(size) {}

  /// Seconds and FLOPs of `op`.
  OpCost of(Operation *op) const {
    const Machine &machine = costs.getMachine();
    double written = 0;
    for (Value result : op->getResults())
      written += static_cast<double>(size(result));
    // Shape operations move nothing of their own once fused; a slice reads what it yields, not its operand.
    if (isa<stablehlo::ConstantOp, stablehlo::IotaOp, stablehlo::ReshapeOp, stablehlo::BroadcastInDimOp,
            stablehlo::BroadcastOp, stablehlo::OptimizationBarrierOp>(op))
      return {};
    if (isa<stablehlo::GatherOp>(op))
      return {0, 2.0 * written, std::max(2 * written / machine.bytesPerSecond, machine.kernelSeconds)};
    if (hasCollective(op))
      return {0, 2.0 * written, written / machine.interconnectBytesPerSecond + machine.kernelSeconds};
    if (classify(op) != OpClass::Virtual && !isa<stablehlo::ReduceOp>(op))
      return costs.cost(op);
    // A kernel reads what is stored of all that it computes.
    double bytes = read(op) + written;
    if (classify(op) != OpClass::Virtual)
      return {0, bytes, std::max(bytes / machine.bytesPerSecond, machine.kernelSeconds)};
    if (llvm::any_of(op->getResults(), [&](Value result) { return roots.isRoot(graph.id(result)); }))
      return {0, bytes, bytes / machine.bytesPerSecond};
    return {0, 0, kFusedShare * bytes / machine.bytesPerSecond};
  }

private:
  static RootSets::Options options() {
    RootSets::Options result;
    result.materialiseKernelOperands = true;
    result.argumentIsRoot = [](unsigned) { return true; };
    return result;
  }

  /// Bytes of what is stored that `op` is made of; of a slice what it yields.
  double read(Operation *op) const {
    if (isa<stablehlo::SliceOp, stablehlo::DynamicSliceOp>(op))
      return static_cast<double>(size(op->getResult(0)));
    llvm::SmallSetVector<unsigned, 8> from;
    for (Value operand : op->getOperands())
      if (graph.contains(operand))
        from.insert_range(roots.roots(graph.id(operand)));
    double bytes = 0;
    for (unsigned root : from)
      bytes += static_cast<double>(graph.bytes[root]);
    return bytes;
  }

  BlockGraph graph;
  RootSets roots;
  CostModel &costs;
  const SizeFn &size;
};
} // namespace

void MatchedPair::offerHost(CostModel &costs) {
  HostSchedule schedule;
  schedule.bytesPerSecond = costs.getMachine().hostBytesPerSecond;
  schedule.ready.assign(prob.candidates.size(), 0);
  size_t at = 0;
  for (Operation &op : F.body().without_terminator()) {
    schedule.forward += computeSeconds(costs, &op);
    // Candidates are arguments, which are there from the start, and results in program order.
    for (; at < prob.candidates.size(); ++at) {
      Operation *maker = prob.candidates[at].value.getDefiningOp();
      if (maker && (maker == &op || !maker->isBeforeInBlock(&op)))
        break;
    }
    for (size_t v = at; v < prob.candidates.size() && prob.candidates[v].value.getDefiningOp() == &op; ++v)
      schedule.ready[v] = schedule.forward;
  }
  for (Operation &op : B.body().without_terminator())
    schedule.backward += computeSeconds(costs, &op);
  // The backward loop holds what it reads and what it fetches for the next iteration.
  remat::offerHost(prob, std::move(schedule), options.offload, 2);
  if (options.byFlops)
    priceTransfersByFlops(prob);
}

bool MatchedPair::formulate(CostModel &costs, std::string &reason) {
  // Everything that recomputing could go back to.
  llvm::SetVector<Value> reached;
  SmallVector<Value> worklist;
  auto reach = [&](Value value) {
    value = numbering.representative(value);
    if (!isFree(value) && reached.insert(value))
      worklist.push_back(value);
  };
  for (auto [backward, forward] : numbering.boundary)
    reach(forward);
  while (!worklist.empty()) {
    Operation *op = worklist.pop_back_val().getDefiningOp();
    if (!op || !isRecomputable(op))
      continue;
    for (Value read : readsOf(op))
      reach(read);
  }

  ValueKeys keys(F.body());
  DenseMap<Value, unsigned> indexOf;
  auto add = [&](Value value) {
    auto type = dyn_cast<RankedTensorType>(value.getType());
    if (!type || !type.hasStaticShape() ||
        !(type.getElementType().isIntOrFloat() || isa<ComplexType>(type.getElementType()))) {
      reason = "it holds values that cannot be stacked";
      return false;
    }
    Candidate candidate;
    candidate.value = value;
    candidate.key = keys.key(value).str();
    candidate.bytes = options.size(value);
    double copies = 2.0 * candidate.bytes / costs.getMachine().bytesPerSecond;
    candidate.saveSeconds = priceOf(0, copies, options.byFlops);
    candidate.recomputable = false;
    indexOf[value] = prob.candidates.size();
    prob.candidates.push_back(std::move(candidate));
    return true;
  };
  for (BlockArgument arg : F.body().getArguments())
    if (reached.contains(arg) && !add(arg))
      return false;
  int group = 0;
  CostAgain again(F.body(), costs, options.size);
  for (Operation &op : F.body().without_terminator()) {
    unsigned first = prob.candidates.size();
    for (Value result : op.getResults())
      if (reached.contains(result) && !add(result))
        return false;
    unsigned count = prob.candidates.size() - first;
    if (count == 0 || !isRecomputable(&op))
      continue;
    OpCost cost = again.of(&op);
    prob.candidates[first].seconds = priceOf(cost.flops, cost.seconds, options.byFlops);
    prob.candidates[first].flops = cost.flops;
    for (unsigned v = first; v < prob.candidates.size(); ++v) {
      Candidate &candidate = prob.candidates[v];
      candidate.recomputable = true;
      candidate.fuses = classify(&op) == OpClass::Virtual || isa<stablehlo::OptimizationBarrierOp>(op);
      if (count > 1)
        candidate.group = group;
      for (Value read : readsOf(&op))
        if (Value value = numbering.representative(read); !isFree(value))
          candidate.operands.push_back(indexOf.lookup(value));
    }
    group += count > 1;
  }
  for (auto [backward, forward] : numbering.boundary)
    if (auto it = indexOf.find(numbering.representative(forward)); it != indexOf.end())
      prob.candidates[it->second].needed = true;
  prob.instances = F.trips;
  offerHost(costs);

  std::vector<bool> wanted(prob.candidates.size(), false);
  auto want = [&](Value value) {
    if (auto it = indexOf.find(numbering.representative(value)); it != indexOf.end())
      wanted[it->second] = true;
  };
  auto unwrapped = [](Value value) {
    Operation *wrap = value.getDefiningOp();
    return wrap && wrap->getNumOperands() == 1 &&
                   isa<stablehlo::ReshapeOp, stablehlo::BroadcastInDimOp>(wrap)
               ? wrap->getOperand(0)
               : value;
  };
  for (const Residual &residual : residuals) {
    Value value = unwrapped(residual.slice);
    want(residual.slice);
    want(value);
    if (auto joined = value.getDefiningOp<stablehlo::ConcatenateOp>())
      for (Value part : joined.getInputs()) {
        want(part);
        want(unwrapped(part));
      }
  }
  now = prob.complete(wanted);
  return true;
}

bool MatchedPair::widenForward() {
  auto same = [&](Value value) { return numbering.forwardValue(value); };
  for (auto wide : B.body().getOps<stablehlo::WhileOp>()) {
    if (numbering.replaced.contains(wide) ||
        llvm::none_of(readsOf(wide), [&](Value read) { return numbering.known.contains(read); }))
      continue;
    for (auto narrow : F.body().getOps<stablehlo::WhileOp>())
      if (widen(narrow, wide, numbering.numbers, same))
        return true;
  }
  return false;
}

std::function<Value(Value)> MatchedPair::inBackward() {
  DenseMap<unsigned, Value> first; // the first value of a number in the backward body
  for (BlockArgument arg : B.body().getArguments())
    first.try_emplace(numbering.numbers[arg], arg);
  for (Operation &op : B.body().without_terminator())
    for (Value result : op.getResults())
      first.try_emplace(numbering.numbers[result], result);
  return [this, first = std::move(first)](Value value) {
    if (Value there = first.lookup(numbering.numbers[value]))
      return there;
    auto arg = dyn_cast<BlockArgument>(value);
    bool given = arg && F.isBodyArgument(arg) && F.kinds[arg.getArgNumber()] == WhileLoop::Kind::Invariant;
    return given ? F.op.getOperand()[arg.getArgNumber()] : value;
  };
}

bool MatchedPair::shareInner(CostModel &costs) {
  std::function<Value(Value)> same = inBackward();
  llvm::DenseSet<unsigned> ranAgain;
  for (auto loop : B.body().getOps<stablehlo::WhileOp>())
    for (Value result : loop->getResults())
      ranAgain.insert(numbering.numbers[result]);
  std::string reason;
  for (auto once : F.body().getOps<stablehlo::WhileOp>()) {
    // Where it is run again as it is, that would not be known any more.
    if (!isClonable(once) || isSharded(once) || !options.shared(once) ||
        llvm::any_of(once->getResults(), [&](Value v) { return ranAgain.contains(numbering.numbers[v]); }))
      continue;
    std::optional<WhileLoop> forward = WhileLoop::analyse(once, reason);
    for (auto again : B.body().getOps<stablehlo::WhileOp>()) {
      std::optional<WhileLoop> backward = WhileLoop::analyse(again, reason);
      if (!forward || !backward || isSharded(again) || !runAlike(*forward, *backward))
        continue;
      for (bool mirrored : {true, false}) {
        MatchedPair inner(forward->copy(), backward->copy(), mirrored, {}, options, numbering.numbers);
        if (!inner.recomputesAlready() || !inner.formulate(costs, reason))
          continue;
        std::vector<Choice> frontier = inner.prob.frontier();
        if (!frontier.empty() && frontier.front().savedBytes > 0 &&
            frontier.front().flops < inner.now.flops && inner.applyAcross(frontier.front(), same))
          return true;
      }
    }
  }
  return false;
}

OpOperand *MatchedPair::carriedGradient() {
  OpOperand *largest = nullptr;
  for (unsigned i = 0; i < B.size(); ++i) {
    OpOperand &operand = B.op->getOpOperand(i);
    Operation *maker = operand.get().getDefiningOp();
    if (B.kinds[i] != WhileLoop::Kind::Carry || !maker || maker->getBlock() != B.op->getBlock() ||
        !F.op->isBeforeInBlock(maker))
      continue;
    if (!largest || options.size(operand.get()) > options.size(largest->get()))
      largest = &operand;
  }
  return largest;
}

/// What was held beside the estimate is copies of stacks where it is more than this part of them.
static constexpr double copiedShare = 0.1;

void MatchedPair::shrinkMeasured(const LoopDecision &decision) {
  int64_t kept = 0;
  for (const LoopPart &part : decision)
    kept += part.choice.savedBytes / F.trips * part.iterations;
  if (kept < stacks)
    for (Operation *op = F.op; op && op != B.op->getNextNode(); op = op->getNextNode())
      op->walk([&](Operation *inner) {
        if (measuredExtra(inner) > copiedShare * stacks)
          scaleMeasuredExtra(inner, static_cast<double>(kept) / stacks);
      });
}

} // namespace farrier::remat
