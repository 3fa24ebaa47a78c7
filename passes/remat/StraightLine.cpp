#include "passes/remat/StraightLine.h"

#include "passes/remat/Gradients.h"

#include "farrier/Analysis/Measured.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/SiblingKernels.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/IRMapping.h"

#include <algorithm>
#include <limits>

using namespace mlir;

namespace farrier::remat {

/// A value that lives for less than this part of the program is working memory, not a residual. In a deep program the
/// last layers' residuals live no longer than that, in a shallow one the loss's working memory lives longer than
/// the smaller ones: each gives a boundary to try.
static constexpr double longLived[] = {0.03, 0.003};

/// Of what a program holds: a value that is less may be stored where XLA would not, for a barrier.
static constexpr int64_t muchToStore = 32;

StraightLine::StraightLine(Block &block, CostModel &costs, int64_t smallBytes, SizeFn size, ForbidFn forbid)
    : smallBytes(smallBytes), size(size), forbid(std::move(forbid)), costs(costs),
      graph(std::make_unique<BlockGraph>(block, size)), keys(std::make_unique<ValueKeys>(block)) {
  RootSets::Options options;
  options.smallBytes = smallBytes;
  roots = std::make_unique<RootSets>(*graph, options);
  options.materialiseKernelOperands = true;
  buffers = std::make_unique<RootSets>(*graph, options);
  liveness = std::make_unique<Liveness>(*graph, *buffers, size);

  for (llvm::ArrayRef<unsigned> products : mergedProducts(*graph))
    for (unsigned op : products)
      merged[op] = products.front();

  maskShape.assign(graph->numOps(), 0);
  for (auto [number, kernels] : llvm::enumerate(maskKernels(*graph, *buffers)))
    for (unsigned op : kernels)
      maskShape[op] = number + 1;

  constant.assign(graph->numValues(), false);
  argumentOnly.assign(graph->numValues(), false);
  for (unsigned arg = 0; arg < graph->numArguments; ++arg)
    argumentOnly[arg] = true;
  for (unsigned op = 0; op < graph->numOps(); ++op) {
    copyable.push_back(graph->isVirtual[op] && isClonable(graph->ops[op]));
    // A seed that was mixed is not made of constants: masks drawn by it are stored, and drawn again from it behind a barrier.
    bool mixes = isa<stablehlo::XorOp>(graph->ops[op]) && graph->bytes[graph->outputs[op][0]] < smallBytes;
    bool fromConstants = graph->isVirtual[op] && !mixes, fromArguments = fromConstants;
    for (unsigned input : graph->inputs[op]) {
      fromConstants &= constant[input];
      fromArguments &= argumentOnly[input];
    }
    for (unsigned value : graph->outputs[op]) {
      constant[value] = fromConstants;
      argumentOnly[value] = fromArguments;
    }
  }
  findReach();
  findBoundaries();
  findResiduals();
}

void StraightLine::findBoundaries() {
  unsigned numOps = graph->numOps();
  Liveness ranges(*graph, *roots, size);
  for (double share : longLived) {
    std::vector<int64_t> delta(numOps + 1, 0);
    for (unsigned value = 0; value < graph->numValues(); ++value) {
      const Liveness::Range &range = ranges.range(value);
      if (!range.live || range.last - range.first < share * numOps)
        continue;
      delta[range.first] += graph->bytes[value];
      delta[range.last] -= graph->bytes[value];
    }
    int64_t current = 0, most = 0;
    unsigned where = 0;
    for (unsigned op = 0; op + 1 < numOps; ++op) {
      current += delta[op];
      if (current > most) {
        most = current;
        where = op;
      }
    }
    if (boundaries.empty())
      boundaryBytes = most;
    if (!llvm::is_contained(boundaries, where))
      boundaries.push_back(where);
  }
  boundary = boundaries.front();
}

void StraightLine::findResiduals() {
  lastForward.assign(graph->numValues(), 0);
  lastStored.assign(graph->numValues(), 0);
  for (unsigned op = 0; op <= boundary && op < graph->numOps(); ++op) {
    for (unsigned value : graph->outputs[op])
      lastStored[value] = op;
    if (!liveness->isDead(op))
      for (unsigned input : graph->inputs[op])
        for (unsigned buffer : buffers->roots(input))
          lastStored[buffer] = op;
  }
  neededRoot.assign(graph->numValues(), false);
  for (unsigned op = 0; op < graph->numOps(); ++op) {
    if (liveness->isDead(op))
      continue;
    for (unsigned input : graph->inputs[op])
      for (unsigned root : roots->roots(input)) {
        if (op <= boundary)
          lastForward[root] = op;
        else if (isForward(root) && !graph->isTerminator(op))
          neededRoot[root] = true;
      }
  }
  // What a recomputation of a needed root would read may be needed too.
  for (unsigned value = graph->numValues(); value-- > 0;) {
    if (!neededRoot[value] || graph->definition[value] < 0)
      continue;
    for (unsigned input : graph->inputs[graph->definition[value]])
      for (unsigned root : roots->roots(input))
        if (root != value && isForward(root))
          neededRoot[root] = true;
  }
  for (unsigned value = 0; value < graph->numValues(); ++value) {
    if (neededRoot[value] && graph->bytes[value] >= smallBytes)
      totalResidualBytes += graph->bytes[value];
    if (!isForward(value) || constant[value])
      continue;
    for (unsigned user : graph->users[value])
      if (user > boundary && !graph->isTerminator(user) && !liveness->isDead(user))
        reads.push_back({user, value});
  }
}

std::vector<unsigned> StraightLine::chooseCuts(int64_t maxSegmentBytes, bool tail) const {
  // Bytes that cross each position, and residual bytes up to it.
  unsigned end = boundary + 1;
  std::vector<int64_t> crossing(end + 1, 0), mass(end + 1, 0);
  for (unsigned value = 0; value < graph->numValues(); ++value) {
    if (!neededRoot[value] || !isForward(value) || graph->bytes[value] < smallBytes)
      continue;
    unsigned definition = graph->definition[value];
    mass[definition + 1] += graph->bytes[value];
    if (lastForward[value] > definition) {
      crossing[definition + 1] += graph->bytes[value];
      crossing[lastForward[value] + 1 <= end ? lastForward[value] + 1 : end] -= graph->bytes[value];
    }
  }
  for (unsigned i = 1; i <= end; ++i) {
    crossing[i] += crossing[i - 1];
    mass[i] += mass[i - 1];
  }
  // Candidate cuts: the cheapest position of each run between two changes.
  std::vector<unsigned> positions{0};
  for (unsigned i = 1; i < end; ++i)
    if (mass[i] != mass[positions.back()] || crossing[i] < crossing[positions.back()]) {
      if (mass[i] == mass[positions.back()] && positions.size() > 1)
        positions.back() = i;
      else
        positions.push_back(i);
    }
  positions.push_back(end);
  // Shortest path over the positions: cost of a cut is what crosses it.
  size_t count = positions.size();
  std::vector<int64_t> best(count, std::numeric_limits<int64_t>::max());
  std::vector<size_t> from(count, 0);
  best[0] = 0;
  for (size_t to = 1; to < count; ++to) {
    int64_t price = to + 1 == count ? 0 : crossing[positions[to]];
    for (size_t back = to; back-- > 0;) {
      bool fits = mass[positions[to]] - mass[positions[back]] <= maxSegmentBytes;
      if (!fits && back + 1 != to)
        break;
      // A tie goes to the longer segment.
      if (best[back] != std::numeric_limits<int64_t>::max() && best[back] + price <= best[to]) {
        best[to] = best[back] + price;
        from[to] = back;
      }
    }
  }
  std::vector<unsigned> cuts;
  for (size_t at = from[count - 1]; at > 0; at = from[at])
    cuts.push_back(positions[at]);
  std::reverse(cuts.begin(), cuts.end());
  if (size_t before = count - 2; tail && before > 0 && (cuts.empty() || cuts.back() != positions[before]))
    cuts.push_back(positions[before]);
  return cuts;
}

void StraightLine::setBoundary(unsigned op) {
  boundary = op;
  reads.clear();
  totalResidualBytes = 0;
  findResiduals();
}

Segmentation StraightLine::segmentAt(std::vector<unsigned> cuts) const {
  cuts.push_back(boundary + 1);
  auto segmentOf = [&](unsigned value) {
    return std::upper_bound(cuts.begin(), cuts.end(), graph->definition[value]) - cuts.begin();
  };
  Segmentation result;
  result.crosses.assign(graph->numValues(), false);
  for (unsigned value = 0; value < graph->numValues(); ++value)
    if (neededRoot[value] && isForward(value))
      result.crosses[value] = lastForward[value] >= cuts[segmentOf(value)];
  result.owner.assign(graph->numValues(), -1);
  for (const Read &read : reads) {
    auto home = segmentOf(read.value);
    for (unsigned root : roots->roots(read.value))
      if (isForward(root) && segmentOf(root) == home && !result.crosses[root])
        result.owner[read.value] = home;
  }
  unsigned first = 0;
  for (unsigned cut : cuts) {
    result.segments.push_back(makeSegment(first, cut, result, result.segments.size()));
    first = cut;
  }
  assignUses(result);
  return result;
}

double StraightLine::costOfAgain(unsigned op, double kernelSeconds) const {
  if (!graph->isVirtual[op])
    return kernelSeconds;
  // It runs inside its reader's kernel: its inputs are read there anyway. What XLA does not store runs there as it is.
  bool stored = llvm::any_of(graph->outputs[op],
                             [&](unsigned value) { return roots->isRoot(value) && buffers->isRoot(value); });
  return stored ? 0.3 * kernelSeconds : 0;
}

Segment StraightLine::makeSegment(unsigned first, unsigned end, const Segmentation &segmentation,
                                  int which) const {
  const std::vector<bool> &crosses = segmentation.crosses;
  Segment segment;
  segment.first = first;
  segment.end = end;
  segment.stage = graph->numOps();
  auto inside = [&](unsigned value) {
    int definition = graph->definition[value];
    return definition >= static_cast<int>(first) && definition < static_cast<int>(end);
  };
  // What the backward part reads of the values defined here, roots of an earlier segment aside: those cross.
  std::vector<unsigned> needs;
  for (const Read &read : reads) {
    if (!inside(read.value))
      continue;
    if (segmentation.owner[read.value] == which)
      segment.stage = std::min(segment.stage, read.op);
    for (unsigned root : roots->roots(read.value))
      if (inside(root))
        needs.push_back(root);
  }
  llvm::sort(needs);
  needs.erase(std::unique(needs.begin(), needs.end()), needs.end());

  llvm::DenseSet<unsigned> wanted(needs.begin(), needs.end()), closure;
  std::vector<unsigned> work = needs;
  for (unsigned op = first; op < end; ++op)
    for (unsigned value : graph->outputs[op])
      if (roots->isRoot(value) && crosses[value]) {
        wanted.insert(value);
        work.push_back(value);
      }
  while (!work.empty()) {
    unsigned value = work.back();
    work.pop_back();
    if (graph->bytes[value] < smallBytes || !closure.insert(value).second || crosses[value])
      continue;
    for (unsigned input : graph->inputs[graph->definition[value]])
      for (unsigned root : roots->roots(input))
        if (root != value && inside(root))
          work.push_back(root);
  }
  segment.values.assign(closure.begin(), closure.end());
  llvm::sort(segment.values);

  llvm::DenseMap<unsigned, unsigned> index;
  for (unsigned i = 0; i < segment.values.size(); ++i)
    index[segment.values[i]] = i;
  llvm::DenseSet<unsigned> priced; // operations: all results come of one run
  for (unsigned value : segment.values) {
    unsigned op = graph->definition[value];
    Operation *operation = graph->ops[op];
    Candidate candidate;
    candidate.value = graph->values[value];
    candidate.key = keys->key(graph->values[value]).str();
    candidate.bytes = graph->bytes[value];
    candidate.needed = wanted.contains(value);
    candidate.recomputable = !crosses[value] && isClonable(operation) && !(forbid && forbid(operation));
    candidate.fuses = graph->isVirtual[op];
    candidate.group = graph->outputs[op].size() > 1 ? static_cast<int>(op) : -1;
    // Of products that XLA makes one all are there while one is: they are kept together.
    if (auto it = merged.find(op); it != merged.end() && candidate.recomputable)
      candidate.group = static_cast<int>(it->second);
    if (candidate.recomputable && priced.insert(op).second) {
      OpCost cost = costs.cost(operation);
      candidate.flops = cost.flops;
      candidate.seconds = costOfAgain(op, cost.seconds);
    }
    llvm::SmallVector<unsigned> operands;
    for (unsigned input : graph->inputs[op])
      for (unsigned root : roots->roots(input))
        if (auto it = index.find(root); it != index.end() && root != value)
          operands.push_back(it->second);
    llvm::sort(operands);
    operands.erase(std::unique(operands.begin(), operands.end()), operands.end());
    candidate.operands = operands;
    segment.problem.candidates.push_back(std::move(candidate));
  }
  return segment;
}

llvm::DenseMap<unsigned, unsigned> StraightLine::placeClones(llvm::ArrayRef<unsigned> chain,
                                                             llvm::ArrayRef<Read> uses, unsigned stage) const {
  llvm::DenseMap<unsigned, unsigned> place;
  auto neededAt = [&](unsigned value, unsigned op) {
    auto [entry, fresh] = place.try_emplace(graph->definition[value], op);
    if (!fresh)
      entry->second = std::min(entry->second, op);
  };
  for (const Read &use : uses)
    if (graph->definition[use.value] >= 0)
      neededAt(use.value, use.op);
  llvm::DenseSet<unsigned> cloned(chain.begin(), chain.end());
  // Of each clone: the random masks behind one another that it is made of. Those of a shape with as many before them XLA
  // makes together, where the first of them is read.
  llvm::DenseMap<unsigned, unsigned> masks;
  for (unsigned op : chain) {
    unsigned &count = masks[op];
    for (unsigned input : graph->inputs[op])
      if (int from = graph->definition[input]; from >= 0 && cloned.contains(from))
        count = std::max(count, masks.lookup(from) + (maskShape[from] > 0));
  }
  llvm::DenseMap<std::pair<unsigned, unsigned>, unsigned> together;
  for (unsigned op : llvm::reverse(chain)) {
    unsigned &at = place.try_emplace(op, stage).first->second;
    if (maskShape[op] > 0) {
      unsigned &first = together.try_emplace({maskShape[op], masks.lookup(op)}, at).first->second;
      at = first = std::min(first, at);
    }
    // What would have to wait for the later place, and would be gone before it otherwise.
    int64_t held = 0, made = 0;
    for (unsigned value : graph->outputs[op])
      made += graph->bytes[value];
    for (unsigned input : graph->inputs[op])
      if (graph->definition[input] < 0 || !cloned.contains(graph->definition[input]))
        held += graph->users[input].back() < at ? graph->bytes[input] : 0;
    if (held > made)
      at = stage;
    unsigned needed = at; // neededAt() may move the entry.
    for (unsigned input : graph->inputs[op])
      if (graph->definition[input] >= 0 && cloned.contains(graph->definition[input]))
        neededAt(input, needed);
  }
  return place;
}

/// A parameter that is cast again in the backward part must have been read before the optimizer overwrites it: XLA
/// runs an update as soon as its gradient exists, and copies the parameter, from the forward part on, where a later
/// cast reads it too. The gradient waits for the cast.
void StraightLine::castBeforeUpdate(unsigned op, Operation *cast) const {
  unsigned value = graph->outputs[op][0];
  if (!argumentOnly[value] || graph->bytes[value] < smallBytes)
    return;
  for (unsigned argument : graph->inputs[op]) {
    if (graph->definition[argument] >= 0)
      continue;
    // The gradient: of what updates of this parameter read, the product that is made last.
    int gradient = -1;
    for (unsigned user : graph->users[argument]) {
      if (user <= boundary || !graph->isVirtual[user] ||
          !llvm::all_of(graph->outputs[user], [&](unsigned out) { return liveness->onlyFeedsResults(out); }))
        continue;
      for (unsigned input : graph->inputs[user])
        for (unsigned root : roots->roots(input))
          if (graph->bytes[root] >= smallBytes && graph->definition[root] > static_cast<int>(boundary) &&
              liveness->onlyFeedsResults(root))
            gradient = std::max(gradient, static_cast<int>(root));
    }
    if (gradient < 0)
      continue;
    Operation *made = graph->ops[graph->definition[gradient]];
    // What reads the cast before, the gradient follows from.
    bool readLater = llvm::any_of(cast->getResult(0).getUsers(), [&](Operation *user) {
      Operation *reader = graph->block.findAncestorOpInBlock(*user);
      return reader && made->isBeforeInBlock(reader);
    });
    if (!readLater)
      continue;
    if (made->isBeforeInBlock(cast)) {
      bool ready = llvm::all_of(cast->getOperands(), [&](Value operand) {
        Operation *maker = operand.getDefiningOp();
        return !maker || maker->getBlock() != made->getBlock() || maker->isBeforeInBlock(made);
      });
      if (!ready)
        continue;
      cast->moveBefore(made);
    }
    OpBuilder builder(made->getContext());
    builder.setInsertionPointAfter(made);
    Value operands[] = {cast->getResult(0), graph->values[gradient]};
    auto barrier =
        stablehlo::OptimizationBarrierOp::create(builder, cast->getLoc(), TypeRange(ValueRange(operands)),
                                                 ValueRange(operands), DictionaryAttr());
    graph->values[gradient].replaceAllUsesExcept(barrier->getResult(1), barrier);
    cast->getResult(0).replaceUsesWithIf(barrier->getResult(0), [&](OpOperand &use) {
      Operation *reader = graph->block.findAncestorOpInBlock(*use.getOwner());
      return reader && reader != barrier.getOperation() && barrier->isBeforeInBlock(reader);
    });
    return;
  }
}

/// What a scatter adds to, where it is made of a constant, is written when the scatter's updates are there. XLA's scheduler
/// is free to write it as early as in the forward part, and does so in some rewritten programs: an embedding's gradient
/// then is there all the time.
static void initialiseLate(Block &block, Operation *boundary, int64_t smallBytes, const SizeFn &size) {
  SmallVector<stablehlo::ScatterOp> scatters;
  for (Operation *op = boundary->getNextNode(); op; op = op->getNextNode())
    if (auto scatter = dyn_cast<stablehlo::ScatterOp>(op))
      scatters.push_back(scatter);
  for (stablehlo::ScatterOp scatter : scatters) {
    if (scatter.getInputs().size() != 1 || size(scatter.getInputs().front()) < smallBytes)
      continue;
    auto filled = scatter.getInputs().front().getDefiningOp<stablehlo::BroadcastInDimOp>();
    Operation *constant = filled ? filled.getOperand().getDefiningOp() : nullptr;
    if (!constant || !isa<stablehlo::ConstantOp>(constant))
      continue;
    // The latest of the big values that kernels make for the updates: where one is written anyway a barrier is free.
    SmallVector<Value> work{scatter.getUpdates().front()};
    llvm::DenseSet<Value> seen;
    Value update;
    while (!work.empty()) {
      Value value = work.pop_back_val();
      Operation *maker = value.getDefiningOp();
      if (!maker || maker->getBlock() != &block || !boundary->isBeforeInBlock(maker) || !seen.insert(value).second)
        continue;
      if (classify(maker) == OpClass::Virtual)
        work.append(maker->operand_begin(), maker->operand_end());
      else if (size(value) >= smallBytes && (!update || update.getDefiningOp()->isBeforeInBlock(maker)))
        update = value;
    }
    if (!update)
      continue;
    Operation *made = update.getDefiningOp();
    OpBuilder builder(made->getContext());
    builder.setInsertionPointAfter(made);
    Value operands[] = {builder.clone(*constant)->getResult(0), update};
    auto barrier = stablehlo::OptimizationBarrierOp::create(
        builder, scatter.getLoc(), TypeRange(ValueRange(operands)), ValueRange(operands), DictionaryAttr());
    update.replaceAllUsesExcept(barrier->getResult(1), barrier);
    builder.setInsertionPoint(scatter);
    IRMapping mapping;
    mapping.map(filled.getOperand(), barrier->getResult(0));
    scatter->setOperand(0, builder.clone(*filled, mapping)->getResult(0));
  }
}

void StraightLine::leaveFused(const llvm::DenseSet<unsigned> &recomputed, std::vector<std::vector<Read>> &uses) const {
  std::vector<bool> fused(graph->numValues(), false), ofPart(graph->numValues(), false);
  for (unsigned value = 0; value < graph->numValues(); ++value) {
    if (isLeaf(value, recomputed) || constant[value]) {
      fused[value] = true;
      ofPart[value] = graph->definition[value] >= 0 && merged.count(graph->definition[value]);
      continue;
    }
    int op = graph->definition[value];
    fused[value] = graph->isVirtual[op] && !buffers->isRoot(value) && !recomputed.contains(value) &&
                   llvm::all_of(graph->inputs[op], [&](unsigned input) { return fused[input]; });
    ofPart[value] = llvm::any_of(graph->inputs[op], [&](unsigned input) { return ofPart[input]; });
  }
  for (std::vector<Read> &of : uses)
    llvm::erase_if(of, [&](const Read &read) { return fused[read.value] && ofPart[read.value]; });
}

unsigned StraightLine::apply(const Segmentation &segmentation, const std::vector<const Choice *> &choices) {
  const std::vector<Segment> &segments = segmentation.segments;
  unsigned cloned = 0;
  // Roots that are computed again, over all segments: every other root is read where it is.
  llvm::DenseSet<unsigned> recomputed;
  for (auto [segment, choice] : llvm::zip(segments, choices))
    if (choice)
      for (unsigned i = 0; i < segment.values.size(); ++i)
        if (choice->recomputed[i])
          recomputed.insert(segment.values[i]);

  // Stages in program order; a gradient that ties one stage is replaced for the later ones.
  std::vector<unsigned> order;
  for (unsigned i = 0; i < segments.size(); ++i)
    if (choices[i] && segments[i].stage < graph->numOps())
      order.push_back(i);
  llvm::sort(order, [&](unsigned a, unsigned b) {
    return std::make_pair(segments[a].stage, a) < std::make_pair(segments[b].stage, b);
  });
  std::vector<Value> current = graph->values;
  std::vector<std::pair<unsigned, Operation *>> casts;
  bool partitioned = isPartitioned(graph->block);
  std::vector<int64_t> live = liveness->profile();
  int64_t much = live.empty() ? 0 : *llvm::max_element(live) / muchToStore;
  std::vector<std::vector<Read>> given = segmentation.uses;
  if (partitioned)
    gatherAgain(segmentation, choices, order, given);
  // What waits on the host is read through the barrier before which it is fetched.
  else if (llvm::none_of(choices, [](const Choice *choice) {
             return choice && llvm::is_contained(choice->onHost, true);
           }))
    leaveFused(recomputed, given);

  // Also where it stands for one that is, as it lies there: a conversion to the same type, a constraint.
  auto stored = [&](unsigned value) {
    llvm::ArrayRef<unsigned> made = buffers->roots(value);
    return buffers->isRoot(value) || (made.size() == 1 && graph->values[made.front()].getType() == graph->values[value].getType());
  };

  for (unsigned which : order) {
    const Segment &segment = segments[which];
    unsigned stage = segment.stage;
    Recomputation what = recomputation(given[which], recomputed);
    if (partitioned) {
      keepSmallParameters(what);
      tieGathered(which, segmentation, order, what);
    }
    auto &[chain, leaves, uses] = what;
    if (uses.empty())
      continue;
    llvm::DenseMap<unsigned, unsigned> place = placeClones(chain, uses, stage);
    Late late = partitioned ? gatheredAfterPeak(stage, what, place) : Late();
    llvm::erase_if(leaves, [&](unsigned leaf) { return llvm::is_contained(late.leaves, leaf); });

    // Without this the recomputation could run as early as its leaves exist. The gradient that reaches this
    // stage is the latest big value the backward part has made that is not merely an update. A barrier stores what it joins:
    // where that is much, one that is stored anyway.
    int front = -1;
    for (unsigned op = stage; op-- > boundary + 1 && front < 0;)
      for (unsigned value : graph->outputs[op])
        if (graph->bytes[value] >= smallBytes && !liveness->onlyFeedsResults(value) &&
            (graph->bytes[value] < much || stored(value)) && !graph->users[value].empty() &&
            graph->users[value].back() >= stage)
          front = value;

    Operation *position = graph->ops[stage];
    OpBuilder builder(position);
    IRMapping mapping;
    // `leaves` wait, where the builder stands, for what is made before (-1: nothing), and its readers from `from` on for both.
    auto wait = [&](llvm::ArrayRef<unsigned> leaves, int made, unsigned from) {
      SmallVector<Value> operands;
      for (unsigned leaf : leaves)
        operands.push_back(current[leaf]);
      if (made >= 0)
        operands.push_back(current[made]);
      auto barrier = stablehlo::OptimizationBarrierOp::create(
          builder, position->getLoc(), TypeRange(ValueRange(operands)), ValueRange(operands), DictionaryAttr());
      for (auto [leaf, result] : llvm::zip(leaves, barrier->getResults()))
        mapping.map(graph->values[leaf], result);
      if (made < 0)
        return barrier;
      Value tied = barrier->getResults().back();
      for (unsigned user : graph->users[made])
        if (user >= from && !graph->isTerminator(user))
          graph->ops[user]->walk([&](Operation *inner) { inner->replaceUsesOfWith(current[made], tied); });
      current[made] = tied;
      return barrier;
    };
    auto barrier = wait(leaves, front, stage);
    if (!late.leaves.empty()) {
      unsigned made = graph->definition[late.front];
      builder.setInsertionPointAfter(graph->ops[made]);
      wait(late.leaves, late.front, made + 1);
    }
    for (unsigned op : chain) {
      builder.setInsertionPoint(graph->ops[place.lookup(op)]);
      // Values from outside the chain are constants, or made of small parameters: `current` maps what an earlier stage
      // replaced.
      Operation *clone = builder.clone(*graph->ops[op], mapping);
      ++cloned;
      dropMeasuredExtra(clone);
      if (isa<stablehlo::ConvertOp>(clone))
        casts.push_back({op, clone});
    }
    for (const Read &use : uses) {
      Value replacement = mapping.lookup(graph->values[use.value]);
      Operation *user = graph->ops[use.op];
      user->walk([&](Operation *inner) { inner->replaceUsesOfWith(graph->values[use.value], replacement); });
    }
    if (front >= 0 && partitioned) {
      llvm::DenseSet<Operation *> done = productsThatLetGo(stage);
      finishProducts(graph->ops[boundary], barrier, barrier->getOpOperands().back(),
                     [&](Operation *product) { return done.contains(product); });
    }
  }
  // What waits on the host ties gradients itself; a partitioned program's hide communication.
  bool tie = !partitioned &&
             llvm::none_of(choices, [](const Choice *choice) { return choice && choice->hostBytes > 0; });
  for (auto [op, cast] : casts)
    if (tie)
      castBeforeUpdate(op, cast);
  if (tie && cloned > 0)
    initialiseLate(graph->block, graph->ops[boundary], smallBytes, size);
  return cloned;
}

} // namespace farrier::remat
