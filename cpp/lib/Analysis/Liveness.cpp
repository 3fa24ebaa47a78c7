#include "farrier/Analysis/Liveness.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/Gathered.h"
#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/Measured.h"
#include "farrier/Analysis/MemoryOrder.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/PaddedInputs.h"
#include "farrier/Analysis/Parameters.h"
#include "farrier/Analysis/PartialSums.h"
#include "farrier/Analysis/Pooling.h"
#include "farrier/Analysis/RaggedDot.h"
#include "farrier/Analysis/SiblingKernels.h"
#include "farrier/Analysis/WorthStoring.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"

#include <algorithm>
#include <tuple>

using namespace mlir;

namespace farrier {

/// Smaller buffers are not looked at, in whatever block.
static constexpr int64_t smallestBuffer = 256 << 10;

/// Whether the operation writes where an operand is, which then is one buffer with its result.
static bool aliases(Operation *op) {
  return isa<stablehlo::DynamicUpdateSliceOp, stablehlo::ScatterOp, stablehlo::WhileOp>(op);
}

/// An elementwise update writes where it read; a slice update writes into the buffer it updates.
static bool writesInPlace(Operation *op) {
  return classify(op) == OpClass::Virtual || isa<stablehlo::AllReduceOp>(op) || aliases(op);
}

/// Whether only a part of a product is read, which XLA makes a product of that part.
static bool isCut(Value value) {
  if (!isa_and_nonnull<stablehlo::DotGeneralOp>(value.getDefiningOp()))
    return false;
  while (value.hasOneUse() && isa<stablehlo::ConvertOp>(*value.user_begin()))
    value = value.user_begin()->getResult(0);
  return value.hasOneUse() && isa<stablehlo::SliceOp>(*value.user_begin());
}

/// Whether XLA's product has other dimensions than the operation: it has one of a batch at the most, one of rows and one of
/// columns.
static bool isFlattened(stablehlo::DotGeneralOp dot) {
  auto numbers = dot.getDotDimensionNumbers();
  size_t batch = numbers.getLhsBatchingDimensions().size();
  auto free = [&](Value operand, size_t contracting) {
    return cast<ShapedType>(operand.getType()).getRank() - batch - contracting;
  };
  return batch > 1 || free(dot.getLhs(), numbers.getLhsContractingDimensions().size()) != 1 ||
         free(dot.getRhs(), numbers.getRhsContractingDimensions().size()) != 1;
}

/// Whether what reads the value behind a barrier reads it in other dimensions than it was made in.
static bool changesShape(Value value) {
  Operation *op = value.getDefiningOp();
  while (op && isElementwise(op) && op->getNumOperands() == 1)
    op = op->getOperand(0).getDefiningOp();
  auto dot = dyn_cast_or_null<stablehlo::DotGeneralOp>(op);
  return dot && isFlattened(dot);
}

/// Whether the value is one of several in its buffer, over which and in which XLA writes nothing else. What is scattered and
/// added to something is scattered onto that.
static bool isAliased(const BlockGraph &graph, unsigned value) {
  if (int by = graph.definition[value]; by >= 0 && aliases(graph.ops[by]))
    return !(isa<stablehlo::ScatterOp>(graph.ops[by]) && graph.values[value].hasOneUse() &&
             isa<stablehlo::AddOp>(*graph.values[value].user_begin()));
  return llvm::any_of(graph.users[value], [&](unsigned user) {
    Operation *op = graph.ops[user];
    if (isa<stablehlo::WhileOp>(op))
      return true;
    if (auto scatter = dyn_cast<stablehlo::ScatterOp>(op))
      return llvm::is_contained(scatter.getInputs(), graph.values[value]);
    auto update = dyn_cast<stablehlo::DynamicUpdateSliceOp>(op);
    return update && update.getOperand() == graph.values[value];
  });
}

/// A convolution's result comes with its scratch memory: nothing is written over it, but what cuDNN itself adds. Nor over a
/// product that is smaller than it looks.
static bool staysWhole(Value value, Operation *reader) {
  return isCut(value) || (isa_and_nonnull<stablehlo::ConvolutionOp>(value.getDefiningOp()) &&
                          !(isa<stablehlo::AddOp>(reader) && value.hasOneUse()));
}

bool runsBlocks(Operation *op) {
  return op->getNumRegions() && !isa<stablehlo::ReduceOp, stablehlo::ReduceWindowOp, stablehlo::ScatterOp,
                                     stablehlo::SortOp, stablehlo::SelectAndScatterOp>(op);
}

static int64_t peakInside(Operation *op, const SizeFn &size, Order order) {
  int64_t peak = 0;
  for (Region &region : op->getRegions())
    for (Block &inner : region)
      peak = std::max(peak, estimatePeak(inner, size, order));
  return peak;
}

/// XLA:GPU makes one product of several that read the same operand in the same way, if the results and other operands of all
/// but one have at most so many bytes: keys and values come out of the product that gives the queries. Measured with jax
/// 0.12: products with 64.0 MiB each are one, with 64.6 MiB each two, in bf16 and f32.
static constexpr int64_t mergedProduct = 64 << 20;

/// Nor does it make one of products that are so many times as large as each other: 1,024 columns with 52, not with 51, 256 with
/// 13, rows alike. Seven of 8 columns beside one of 1,024 are one product of 56.
static constexpr int64_t mostTimesMerged = 20;

/// Those of the operations, ascending, that wait for none of them: layers of the same weights follow each other.
static llvm::SmallVector<unsigned> independent(const BlockGraph &graph, llvm::ArrayRef<unsigned> ops) {
  llvm::SmallVector<unsigned> result;
  llvm::DenseSet<unsigned> follows; // operations
  for (unsigned op = ops.front(); !ops.empty(); ++op) {
    bool waits = llvm::any_of(graph.inputs[op], [&](unsigned value) {
      return graph.definition[value] >= 0 && follows.contains(graph.definition[value]);
    });
    bool isOne = op == ops.front();
    if (isOne)
      ops = ops.drop_front();
    if (isOne && !waits)
      result.push_back(op);
    if (isOne || waits)
      follows.insert(op);
  }
  return result;
}

/// What a product does with the dimensions of an operand: XLA writes the other one so that only this matters.
static Attribute readsAs(stablehlo::DotGeneralOp dot, unsigned side) {
  auto numbers = dot.getDotDimensionNumbers();
  SmallVector<int64_t> dims(side == 0 ? numbers.getLhsBatchingDimensions() : numbers.getRhsBatchingDimensions());
  dims.push_back(-1);
  llvm::append_range(dims, side == 0 ? numbers.getLhsContractingDimensions() : numbers.getRhsContractingDimensions());
  return DenseI64ArrayAttr::get(dot.getContext(), dims);
}

std::vector<llvm::SmallVector<unsigned>> mergedProducts(const BlockGraph &graph) {
  llvm::MapVector<std::tuple<Value, unsigned, Attribute>, llvm::SmallVector<unsigned>> same;
  for (unsigned op = 0; op < graph.numOps(); ++op)
    if (auto dot = dyn_cast<stablehlo::DotGeneralOp>(graph.ops[op]))
      for (unsigned side : {0u, 1u})
        same[{dot->getOperand(side), side, readsAs(dot, side)}].push_back(op);
  std::vector<llvm::SmallVector<unsigned>> result;
  for (auto &[key, ops] : same) {
    unsigned other = 1 - std::get<1>(key);
    struct Group {
      llvm::SmallVector<unsigned> ops;
      int64_t least, most; // bytes of results
      unsigned big = 0;
    };
    llvm::SmallVector<Group, 1> groups;
    for (unsigned op : ops) {
      Value operand = graph.ops[op]->getOperand(other);
      int64_t made = graph.bytes[graph.outputs[op][0]], bytes = made;
      if (graph.contains(operand))
        bytes += graph.bytes[graph.id(operand)];
      bool isBig = bytes > mergedProduct;
      Group *group = llvm::find_if(groups, [&](const Group &group) {
        return !(isBig && group.big) && std::max(made, group.most) <= mostTimesMerged * std::min(made, group.least);
      });
      if (group == groups.end()) {
        groups.push_back({{}, made, made});
        group = &groups.back();
      }
      group->ops.push_back(op);
      group->least = std::min(group->least, made);
      group->most = std::max(group->most, made);
      group->big += isBig;
    }
    for (Group &group : groups) {
      if (group.ops.size() < 2)
        continue;
      llvm::SmallVector<unsigned> merged = independent(graph, group.ops);
      if (merged.size() > 1)
        result.push_back(std::move(merged));
    }
  }
  return result;
}

/// The operation by which a part of a merged product that passes a barrier is a buffer of its own: the first kernel that
/// reads it, or what is made of it in a kernel; else the number of operations. Beside transfers XLA's scheduler makes the copy
/// as late as it can: only a kernel that reads the part as it lies, or whose result has the part's elements one by one, makes
/// it earlier than the barrier does.
static unsigned firstCopy(const BlockGraph &graph, const RootSets &roots, unsigned value, bool late) {
  auto keepsElements = [&](unsigned op) {
    return isElementwise(graph.ops[op]) || isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(graph.ops[op]);
  };
  unsigned first = graph.numOps();
  for (unsigned user : graph.users[value]) {
    bool inPlace = true;
    for (; graph.isVirtual[user]; user = graph.users[graph.outputs[user][0]].front()) {
      inPlace &= keepsElements(user);
      if (roots.isRoot(graph.outputs[user][0]) || graph.users[graph.outputs[user][0]].empty())
        break;
    }
    if ((inPlace || !late) && !isa<stablehlo::OptimizationBarrierOp>(graph.ops[user]) && !graph.isTerminator(user))
      first = std::min(first, user);
  }
  return first;
}

/// The last operation of a loop's body that reads what the loop carries where `result` goes, through what is elementwise.
static unsigned lastReadOfCarry(const BlockGraph &graph, llvm::ArrayRef<unsigned> time, unsigned result) {
  Operation *terminator = graph.ops.back();
  unsigned end = 0;
  for (unsigned at = 0; at < std::min(terminator->getNumOperands(), graph.numArguments); ++at) {
    if (terminator->getOperand(at) != graph.values[result])
      continue;
    llvm::SetVector<unsigned> reached;
    reached.insert(at);
    for (unsigned next = 0; next < reached.size(); ++next)
      for (unsigned user : graph.users[reached[next]]) {
        if (!graph.isTerminator(user))
          end = std::max(end, time[user]);
        if (graph.isVirtual[user])
          reached.insert(graph.outputs[user].begin(), graph.outputs[user].end());
      }
  }
  return end;
}

Liveness::Liveness(const BlockGraph &graph, const RootSets &roots, SizeFn size, bool mergeProducts, Order order)
    : graph(graph), ranges(graph.numValues()), inner(graph.numOps(), 0),
      copies(graph.numOps(), 0), onlyResults(graph.numValues(), false) {
  SiblingTimes scheduled = runningOrder(graph, roots, order);
  time = std::move(scheduled.runs);
  std::vector<unsigned> lastOfKernel = std::move(scheduled.lastOfKernel), ends = std::move(scheduled.ends);
  unsigned numOps = graph.numOps();
  for (unsigned op = 0; op < numOps; ++op)
    if (runsBlocks(graph.ops[op]))
      inner[op] = peakInside(graph.ops[op], size, order);

  // Which values feed nothing but results, and when each op can run at the earliest.
  std::vector<bool> isResult(graph.numValues(), false);
  if (numOps > 0) // a block of an operation that is not known here may hold none
    for (unsigned value : graph.inputs[numOps - 1])
      isResult[value] = true;
  // What a barrier hands on as it is stays where it is.
  for (unsigned op = numOps; op-- > 0;)
    if (isa<stablehlo::OptimizationBarrierOp>(graph.ops[op]))
      for (auto [from, to] : llvm::zip(graph.inputs[op], graph.outputs[op]))
        if (isResult[to])
          isResult[from] = true;
  for (unsigned value = graph.numValues(); value-- > 0;)
    onlyResults[value] = llvm::all_of(graph.users[value], [&](unsigned user) {
      return graph.isTerminator(user) ||
             (graph.isVirtual[user] &&
              llvm::all_of(graph.outputs[user], [&](unsigned out) { return onlyResults[out]; }));
    });
  std::vector<unsigned> runsAt(numOps, 0), ready(graph.numValues(), 0), fetchedAt(numOps, 0);
  for (unsigned op = 0; op < numOps; ++op) {
    unsigned earliest = 0;
    for (unsigned value : graph.inputs[op])
      earliest = std::max(earliest, ready[value]);
    bool update = graph.isVirtual[op] &&
                  llvm::all_of(graph.outputs[op], [&](unsigned out) { return onlyResults[out]; });
    runsAt[op] = update ? earliest : time[op];
    fetchedAt[op] = earliest;
    for (unsigned value : graph.outputs[op])
      ready[value] = graph.isVirtual[op] ? earliest : time[op];
  }

  // What only empty slices read, as JAX writes them for the remainder of a loop that is unrolled fully, XLA drops.
  dead.assign(numOps, false);
  for (unsigned op = numOps; op-- > 0;)
    dead[op] = graph.isVirtual[op] && llvm::all_of(graph.outputs[op], [&](unsigned value) {
                 return graph.bytes[value] == 0 ||
                        llvm::all_of(graph.users[value], [&](unsigned user) { return dead[user]; });
               });
  // What is padded for several convolutions is read once.
  std::vector<PaddedInput> padded = paddedInputs(graph, roots);
  llvm::DenseSet<std::pair<unsigned, unsigned>> readsPadded; // operations and what they read a copy of
  for (const PaddedInput &copy : padded)
    if (copy.isStored)
      for (unsigned user : llvm::ArrayRef(copy.users).drop_front())
        readsPadded.insert({user, copy.value});
  std::vector<unsigned> last(graph.numValues(), 0), lastFused(graph.numValues(), 0);
  std::vector<bool> used(graph.numValues(), false), isWhole(graph.numValues(), false);
  // The first barrier that a value passes as it is, and the first and last kernel that reads it so; no value is made at 0.
  std::vector<unsigned> passesAt(graph.numValues(), 0), firstWhole(graph.numValues(), 0), lastWhole(graph.numValues(), 0);
  for (unsigned op = 0; op < numOps; ++op) {
    if (dead[op])
      continue;
    bool layout = isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(graph.ops[op]);
    bool barrier = isa<stablehlo::OptimizationBarrierOp>(graph.ops[op]);
    for (unsigned value : graph.outputs[op])
      isWhole[value] = roots.isRoot(value) || (layout && !graph.inputs[op].empty() && isWhole[graph.inputs[op][0]]);
    for (unsigned value : graph.inputs[op])
      for (unsigned root : roots.roots(value)) {
        if (!graph.isTerminator(op) && !readsPadded.contains({op, value})) {
          last[root] = std::max(last[root], ends.empty() ? runsAt[op] : std::max(runsAt[op], ends[op]));
          if (!isWhole[value] || (graph.isVirtual[op] && !layout))
            lastFused[root] = std::max(lastFused[root], runsAt[op]);
          else if (barrier && passesAt[root] == 0)
            passesAt[root] = runsAt[op];
          else if (!graph.isVirtual[op] && !barrier) {
            firstWhole[root] = firstWhole[root] ? std::min(firstWhole[root], time[op]) : time[op];
            lastWhole[root] = std::max(lastWhole[root], time[op]);
          }
        }
        used[root] = true;
      }
  }

  // What is sent to the host is there until that is done: XLA's scheduler ends a transfer right before what waits for it.
  for (unsigned op = 0; op < numOps; ++op)
    if (placementOf(graph.ops[op]) == Placement::PinnedHost)
      for (unsigned user : graph.users[graph.outputs[op][0]])
        if (isa<stablehlo::OptimizationBarrierOp>(graph.ops[user])) {
          for (unsigned root : roots.roots(graph.inputs[op][0]))
            last[root] = std::max(last[root], runsAt[user]);
          break;
        }

  // Kernels read their part of a merged product from a copy; what is elementwise reads the whole, and is not written over a
  // part. A part that passes a barrier is a copy for all who read it from then on, made at the latest for the barrier.
  std::vector<bool> isPart(graph.numValues(), false);
  std::vector<int64_t> parts(numOps + 1, 0); // copies that begin and end
  bool transfers = llvm::any_of(graph.ops, [](Operation *op) { return placementOf(op).has_value(); });
  for (llvm::ArrayRef<unsigned> ops :
       mergeProducts ? mergedProducts(graph) : std::vector<llvm::SmallVector<unsigned>>()) {
    unsigned end = 0;
    llvm::SmallVector<unsigned> copied; // when, in the order of the operations
    for (unsigned op : ops) {
      unsigned part = graph.outputs[op][0];
      unsigned first = passesAt[part] ? firstCopy(graph, roots, part, transfers) : numOps;
      copied.push_back(first < numOps ? std::min(time[first], passesAt[part]) : passesAt[part]);
      end = std::max(end, passesAt[part] ? copied.back() : lastFused[part]);
    }
    for (auto [op, at] : llvm::zip(ops, copied)) {
      unsigned part = graph.outputs[op][0];
      isPart[part] = !passesAt[part];
      unsigned from = std::max(time[op] + 1, isPart[part] ? firstWhole[part] : at);
      unsigned until = std::min(end, isPart[part] ? lastWhole[part] : last[part]);
      if (until >= from) {
        parts[from] += graph.bytes[part];
        parts[until + 1] -= graph.bytes[part];
      }
      last[part] = std::max(last[part], end);
    }
  }

  for (unsigned value = 0; value < graph.numValues(); ++value) {
    Range &range = ranges[value];
    int definition = graph.definition[value];
    range.first = definition < 0 ? 0 : time[definition];
    // XLA starts what the device fetches from the host as soon as it is there.
    bool fetched = definition >= 0 && placementOf(graph.ops[definition]) == Placement::Device;
    if (fetched)
      range.first = fetchedAt[definition];
    range.last = std::max(last[value], range.first);
    // A result lives in an output buffer; parameters are not temporaries. What is fetched for the next iteration is there
    // beside what was fetched for this one, until that is read for the last time.
    bool ahead = fetched && isResult[value] && isa_and_nonnull<stablehlo::WhileOp>(graph.block.getParentOp());
    if (ahead)
      range.last = std::max(range.first, lastReadOfCarry(graph, time, value));
    range.live = roots.isRoot(value) && used[value] && (!isResult[value] || ahead) && definition >= 0;
  }
  // Bytes of what the operation reads last, among its inputs these.
  auto dyingAt = [&](unsigned op, llvm::ArrayRef<unsigned> inputs) {
    int64_t dying = 0;
    llvm::SmallVector<unsigned> seen;
    for (unsigned input : inputs)
      for (unsigned root : roots.roots(input))
        if (ranges[root].live && ranges[root].last == time[op] && !llvm::is_contained(seen, root)) {
          seen.push_back(root);
          dying += graph.bytes[root];
        }
    return dying;
  };
  // Maxima are found before the result is made: what only they are found in is gone by then.
  for (const PoolGradient &pool : poolGradients(graph)) {
    int64_t made = graph.bytes[graph.outputs[pool.op][0]], dying = dyingAt(pool.op, {graph.inputs[pool.op][0]});
    copies[pool.op] += std::max(pool.found - made, pool.indices - dying);
    bool isFilled = llvm::any_of(scheduled.filled, [&](const SiblingTimes::Filled &filled) { return filled.op == pool.op; });
    for (unsigned op = 0; !isFilled && pool.zerosFor && op < numOps; ++op)
      if (time[*pool.zerosFor] <= time[op] && time[op] <= time[pool.op])
        copies[op] += made;
  }
  // Copies are made before the product starts: what only they read is gone by then.
  for (unsigned op = 0; op < numOps; ++op) {
    if (roots.copiesFor(op).empty())
      continue;
    int64_t dying = dyingAt(op, roots.copiesFor(op)), made = 0;
    for (unsigned value : roots.copiesFor(op))
      copies[op] += graph.bytes[value];
    for (unsigned value : graph.outputs[op])
      made += graph.bytes[value];
    copies[op] = std::max<int64_t>(0, copies[op] - std::min(dying, made));
  }
  // A copy is there beside all that the kernel writes, none of it over what is read in two orders.
  llvm::DenseMap<unsigned, llvm::SmallVector<unsigned>> transposed; // by operation, roots
  std::vector<unsigned> opAt(numOps);
  for (unsigned op = 0; op < numOps; ++op)
    opAt[time[op]] = op;
  const std::vector<int64_t> made = copies;
  for (unsigned op = 0; op < numOps; ++op)
    if (!roots.copiesFor(op).empty())
      for (unsigned at = time[op] + 1; at <= lastOfKernel[op]; ++at) {
        copies[opAt[at]] += made[op];
        for (unsigned value : roots.copiesFor(op))
          llvm::append_range(transposed[opAt[at]], roots.roots(value));
      }
  // What one kernel writes in several orders waits for the products that read it.
  llvm::DenseMap<unsigned, unsigned> writtenFor; // by value, when the first product runs
  std::vector<int64_t> waiting(numOps + 1, 0);   // copies that begin and end
  for (unsigned at = 0; at < numOps; ++at)
    for (unsigned value : roots.copiesFor(opAt[at]))
      if (roots.copiesTogether(value))
        if (auto [first, isFirst] = writtenFor.insert({value, at}); !isFirst) {
          waiting[first->second] += graph.bytes[value];
          waiting[at] -= graph.bytes[value];
        }
  // What one product reads as it is stored and another in another order, one kernel writes twice.
  for (unsigned op = 0; op < numOps; ++op)
    for (unsigned value : roots.copiesFor(op))
      if (int by = graph.definition[value]; by >= 0 && roots.isRoot(value) && !roots.copiesTogether(value) &&
                                            isElementwise(graph.ops[by]) && time[by] < time[op]) {
        waiting[time[by]] += graph.bytes[value];
        waiting[time[op]] -= graph.bytes[value];
      }
  // Constants that an operation writes into are there before it.
  for (const SiblingTimes::Filled &filled : scheduled.filled) {
    waiting[filled.from] += filled.bytes;
    waiting[time[filled.op]] -= filled.bytes;
  }
  int64_t waits = 0;
  for (unsigned at = 0; at < numOps; ++at)
    copies[opAt[at]] += waits += waiting[at];
  // Parts of a sum are added up when the operands are gone.
  for (unsigned op = 0; op < numOps; ++op) {
    int64_t made = graph.outputs[op].empty() ? 0 : graph.bytes[graph.outputs[op][0]];
    if (int64_t parts = partialSums(graph.ops[op]); parts >= smallestBuffer)
      copies[op] += std::max<int64_t>(0, parts - std::min(dyingAt(op, graph.inputs[op]), made));
  }
  for (auto [copied, masked, gathered, kept] :
       llvm::zip(copies, maskedCopies(graph, time), gatheredCopies(graph), parameterCopies(graph, roots)))
    copied += masked + gathered + kept;
  for (const PaddedInput &copy : padded)
    for (unsigned op = 0; op < numOps; ++op)
      if (time[copy.users.front()] <= time[op] && time[op] <= time[copy.users.back()])
        copies[op] += copy.bytes * (copy.isTurned && op == copy.users.back() ? 2 : 1);
  std::vector<int64_t> apart(numOps, 0);
  int64_t held = 0;
  for (unsigned at = 0; at < numOps; ++at)
    apart[at] = held += parts[at];
  for (unsigned op = 0; op < numOps; ++op)
    copies[op] += apart[time[op]];
  // Nor over anything where rows are summed, too.
  llvm::DenseSet<unsigned> summing; // when the last operation of such a kernel runs
  for (unsigned op = 0; op < numOps; ++op)
    if (Value summed = rowsSummed(graph.ops[op]); summed && graph.contains(summed) && !roots.isRoot(graph.id(summed)))
      summing.insert(lastOfKernel[op]);
  // Reuse: the buffer of an input that dies here serves the result.
  std::vector<bool> reused(graph.numValues(), false);
  for (unsigned op = 0; op < numOps; ++op) {
    if (!writesInPlace(graph.ops[op]))
      continue;
    llvm::ArrayRef<unsigned> stays;
    if (auto it = transposed.find(op); it != transposed.end())
      stays = it->second;
    bool isLoop = isa<stablehlo::WhileOp>(graph.ops[op]);
    for (auto [at, value] : llvm::enumerate(graph.outputs[op])) {
      // What a loop only reads it also gives back, unread: such a result must not hide the buffer it stands
      // for.
      if (!roots.isRoot(value) || !used[value])
        continue;
      if (!aliases(graph.ops[op]) &&
          (isAliased(graph, value) || roots.keepsRows(value) || summing.contains(lastOfKernel[op])))
        continue;
      // A loop's state stays where it starts: what else it reads is there until it ends.
      llvm::ArrayRef<unsigned> inputs = graph.inputs[op];
      for (unsigned input : isLoop ? inputs.drop_front(std::min(at, inputs.size())).take_front() : inputs) {
        auto take = llvm::find_if(roots.roots(input), [&](unsigned root) {
          return ranges[root].live && !reused[root] && !isPart[root] && ranges[root].last == time[op] &&
                 ranges[root].first < time[op] && graph.bytes[root] == graph.bytes[value] &&
                 !llvm::is_contained(stays, root) && !staysWhole(graph.values[root], graph.ops[op]) &&
                 (aliases(graph.ops[op]) ||
                  !(isAliased(graph, root) ||
                    (passesAt[root] && time[op] > passesAt[root] && changesShape(graph.values[root]))));
        });
        if (take != roots.roots(input).end()) {
          reused[*take] = true;
          --ranges[*take].last;
          break;
        }
      }
    }
  }
}

std::vector<int64_t> Liveness::profile(llvm::function_ref<bool(unsigned)> include, bool withInner) const {
  std::vector<int64_t> delta(graph.numOps() + 1, 0);
  for (unsigned value = 0; value < graph.numValues(); ++value) {
    if (!ranges[value].live || (include && !include(value)))
      continue;
    delta[ranges[value].first] += graph.bytes[value];
    delta[ranges[value].last + 1] -= graph.bytes[value];
  }
  std::vector<int64_t> live(graph.numOps(), 0), result(graph.numOps(), 0);
  int64_t current = 0;
  for (unsigned at = 0; at < graph.numOps(); ++at)
    live[at] = current += delta[at];
  for (unsigned op = 0; op < graph.numOps(); ++op)
    result[op] = live[time[op]] + copies[op] + measuredExtra(graph.ops[op]) + (withInner ? inner[op] : 0);
  return result;
}

RootSets::Options MemoryEstimate::bufferOptions(const BlockGraph &graph, Order order) {
  RootSets::Options options;
  options.materialiseKernelOperands = true;
  // Of plans that compute attention again the estimate is nearer without.
  options.reorderOnce = order >= Order::Joined;
  // Beside what the block has, however little that is.
  int64_t most = 0;
  for (auto [value, bytes] : llvm::enumerate(graph.bytes))
    if (graph.definition[value] >= 0)
      most = std::max(most, bytes);
  options.smallBytes = std::min(options.smallBytes, std::max<int64_t>(smallestBuffer, most / 64));
  return options;
}

Order MemoryEstimate::likelyOrder(Block &block, const SizeFn &size) {
  BlockGraph graph(block, size);
  if (graph.numOps() > mostOrdered)
    return Order::Joined;
  RootSets roots(graph, bufferOptions(graph, Order::Joined));
  auto peak = [&](Order order) {
    std::vector<int64_t> profile = Liveness(graph, roots, size, /*mergeProducts=*/true, order).profile();
    return profile.empty() ? 0 : *llvm::max_element(profile);
  };
  auto [least, likely] = std::min({std::make_pair(peak(Order::List), Order::List),
                                   std::make_pair(peak(Order::DepthFirst), Order::DepthFirst),
                                   std::make_pair(peak(Order::PostOrder), Order::PostOrder)});
  return peak(Order::Joined) < least ? likely : Order::Joined;
}

MemoryEstimate::MemoryEstimate(Block &block, SizeFn size, Order order)
    : graph(block, size), roots(graph, bufferOptions(graph, order)),
      liveness(graph, roots, size, /*mergeProducts=*/true, order) {
  std::vector<int64_t> profile = liveness.profile();
  for (unsigned op = 0; op < profile.size(); ++op)
    if (profile[op] > peakBytes) {
      peakBytes = profile[op];
      peakOp = op;
    }
}

std::vector<unsigned> MemoryEstimate::liveAtPeak() const {
  std::vector<unsigned> live;
  for (unsigned value = 0; value < graph.numValues(); ++value) {
    const Liveness::Range &range = liveness.range(value);
    if (range.live && range.first <= liveness.runsAt(peakOp) && liveness.runsAt(peakOp) <= range.last)
      live.push_back(value);
  }
  llvm::stable_sort(live, [&](unsigned a, unsigned b) { return graph.bytes[a] > graph.bytes[b]; });
  return live;
}

static void visitBlock(Block &block, int64_t around, const SizeFn &size, Order order,
                       llvm::function_ref<void(Operation *, int64_t, bool)> visit) {
  MemoryEstimate estimate(block, size, order);
  const BlockGraph &graph = estimate.getGraph();
  std::vector<int64_t> outer = estimate.getLiveness().profile(nullptr, /*inner=*/false);
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    if (runsBlocks(graph.ops[op]))
      for (Region &region : graph.ops[op]->getRegions())
        for (Block &inner : region)
          visitBlock(inner, around + outer[op], size, order, visit);
    visit(graph.ops[op], around + outer[op], !graph.isVirtual[op]);
  }
}

void visitBuffers(Block &block, llvm::function_ref<void(Value, int64_t, bool, unsigned)> visit,
                  const SizeFn &size) {
  MemoryEstimate estimate(block, size);
  const BlockGraph &graph = estimate.getGraph();
  std::vector<unsigned> copies(graph.numValues(), 0);
  for (unsigned op = 0; op < graph.numOps(); ++op)
    for (unsigned value : estimate.getRoots().copiesFor(op))
      ++copies[value];
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    if (runsBlocks(graph.ops[op]))
      for (Region &region : graph.ops[op]->getRegions())
        for (Block &inner : region)
          visitBuffers(inner, visit, size);
    for (unsigned value : graph.outputs[op])
      visit(graph.values[value], graph.bytes[value], estimate.getLiveness().range(value).live, copies[value]);
  }
}

void visitEstimate(Block &block, llvm::function_ref<void(Operation *, int64_t, bool)> visit,
                   const SizeFn &size, Order order) {
  visitBlock(block, 0, size, order, visit);
}

} // namespace farrier
