#include "farrier/Analysis/LatencyHiding.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/CombinedCollectives.h"
#include "farrier/Analysis/KernelTimes.h"
#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/Losses.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/PartialSums.h"
#include "farrier/Analysis/RaggedDot.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/TypeSwitch.h"

#include <algorithm>
#include <cmath>

using namespace mlir;

namespace farrier {

// What XLA's cost model says of an H100, read from the schedules that it dumps (`xla_dump_latency_hiding_schedule`). Most
// decisions only ask which kernels take less than a microsecond.
static constexpr double bytesPerMicro = 3.35e6, flopsPerMicro = 728e6;

/// Of products in single precision, and of those that only add up in it, which it believes to be slower still.
static constexpr double singleFlopsPerMicro = 94e6, summedFlopsPerMicro = 12e6;

/// A kernel that the model does not know, as those that normalise rows are.
static constexpr double unknownMicros = 0.01;

/// A kernel of cuDNN's, whatever it does.
static constexpr double libraryMicros = 10;

/// From the start of a copy to its end, whatever its size, and from one kernel to the next.
static constexpr double copyMicros = 5000, edgeMicros = 1;

/// From the start of a collective to its end: microseconds at least, and for each megabyte that a device sends or has then.
/// XLA's for eight H100 of a host, within a tenth from 4 to 256 MB.
struct Latency {
  double least, perMegabyte;
};
static constexpr Latency gathering{35, 2.6}, scattering{25, 2.8}, summing{60, 4.5}, exchanging{52, 2.65}, permuting{15, 12.8};

/// Each kernel is compared with all that could stand as well: a block of more operations stays as it is.
static constexpr unsigned mostOps = 20000;

namespace {

class Scheduler {
public:
  Scheduler(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined)
      : graph(graph), roots(roots), joined(joined), nodeOf(graph.numOps(), none), startOf(graph.numOps(), none),
        combined(combinedCollectives(graph, joined.lastOfKernel, [this](unsigned op) { return isFused(op); })),
        producers(graph.numValues()) {
    for (unsigned arg = 0; arg < graph.numArguments; ++arg)
      if (!graph.users[arg].empty())
        producers[arg].push_back(add(Kind::Nop, {}, 0));
    std::vector<unsigned> order(graph.numOps());
    for (unsigned op = 0; op < graph.numOps(); ++op)
      order[joined.runs[op]] = op;
    for (unsigned op : order)
      addOperation(op);
    findDepths();
  }

  SiblingTimes run() {
    schedule();
    unsigned numOps = graph.numOps();
    std::vector<unsigned> key(numOps, noPlace);
    for (unsigned op = 0; op + 1 < numOps; ++op)
      if (nodeOf[op] != none) {
        bool isThere = startOf[op] != none && !isa<stablehlo::DynamicUpdateSliceOp>(graph.ops[op]);
        key[op] = place[isThere ? startOf[op] : nodeOf[op]];
      }
    key = placesOf(graph, std::move(key));
    runLossesEarly(graph, roots, key, /*all=*/true);
    std::vector<unsigned> sorted = inOrder(key, joined);
    SiblingTimes result = timesOf(sorted, joined);
    result.ends = result.runs;
    for (unsigned op = 0; op < numOps; ++op) {
      // What is summed over devices is written over, or copied behind what it is combined with.
      if (isCollective(graph.ops[op]) && !isa<stablehlo::AllReduceOp>(graph.ops[op]) && nodeOf[op] != none) {
        auto after = llvm::partition_point(sorted, [&](unsigned other) { return key[other] < place[nodeOf[op]]; });
        result.ends[op] = std::max<unsigned>(result.runs[op], after - sorted.begin() - 1);
      }
    }
    return result;
  }

private:
  static constexpr unsigned none = ~0u;

  enum class Kind { Nop, Kernel, Start, Done };

  struct Node {
    Kind kind;
    double micros;
    bool holdsCopies = false; ///< a product that sums over rows of groups
    bool readsCopy = false;   ///< of a slice, as it is, or what a collective gives
    bool usesLink = false;    ///< a collective's start or end, or a loop that has one
    bool hidesInside = false; ///< a loop that copies slices, or has collectives
    double latency = 0;       ///< of a start, until the end
    double depth = 0;         ///< latencies that it waits for, one after the other
    unsigned position = 0;    ///< in the order before
    llvm::SmallVector<unsigned, 4> reads, users;
    // While it is scheduled:
    unsigned left = 0;    ///< users that do not stand yet
    unsigned unlocks = 0; ///< of what it reads, what nothing else waits for
    double readyAt = 0;
  };

  unsigned add(Kind kind, llvm::ArrayRef<unsigned> reads, double micros) {
    unsigned node = nodes.size();
    nodes.push_back(Node{kind, micros});
    nodes.back().position = node;
    for (unsigned other : reads)
      link(node, other);
    return node;
  }

  void link(unsigned node, unsigned other) {
    nodes[node].reads.push_back(other);
    nodes[other].users.push_back(node);
    nodes[node].readsCopy |= nodes[other].kind == Kind::Done;
  }

  bool takesNoTime(unsigned op) const {
    return isa<stablehlo::OptimizationBarrierOp>(graph.ops[op]) || graph.isTerminator(op);
  }

  /// Whether the operation runs inside of the kernels that read its result.
  bool isFused(unsigned op) const {
    return !takesNoTime(op) && graph.isVirtual[op] && llvm::none_of(graph.outputs[op], [&](unsigned value) {
             return (roots.isRoot(value) && !isUpdated(op)) || isWritten(value);
           });
  }

  void addOperation(unsigned op) {
    Operation *operation = graph.ops[op];
    bool inParts = isInParts(operation);
    llvm::SetVector<unsigned> reads;
    bool isBarrier = isa<stablehlo::OptimizationBarrierOp>(operation);
    for (auto [at, value] : llvm::enumerate(graph.inputs[op]))
      if (auto kept = keptFor.find(value); isBarrier && kept != keptFor.end()) {
        nodes[kept->second].position = nodes.size();
        reads.insert(kept->second);
      } else if (std::optional<unsigned> way = inParts && at < 2 ? 2 + op : viewOf(operation, at); way && !producers[value].empty()) {
        auto [view, isNew] = views.try_emplace({value, *way}, 0);
        if (isNew)
          view->second = add(Kind::Nop, producers[value], 0);
        reads.insert(view->second);
      } else {
        reads.insert(producers[value].begin(), producers[value].end());
      }
    if (isFused(op)) {
      for (unsigned out : graph.outputs[op])
        producers[out].assign(reads.begin(), reads.end());
      return;
    }
    unsigned node;
    if (takesNoTime(op)) {
      node = add(Kind::Nop, reads.getArrayRef(), 0);
    } else if (isCopy(op)) {
      startOf[op] = add(Kind::Start, reads.getArrayRef(), unknownMicros);
      nodes[startOf[op]].latency = copyMicros;
      node = add(Kind::Done, {startOf[op]}, unknownMicros);
    } else if (isCollective(operation)) {
      node = addCollective(op, reads.getArrayRef());
    } else if (auto kernel = kernels.find(joined.lastOfKernel[op]); kernel != kernels.end()) {
      node = kernel->second;
      for (unsigned other : reads)
        if (other != node && !llvm::is_contained(nodes[node].reads, other))
          link(node, other);
      nodes[node].micros += graph.bytes[graph.outputs[op][0]] / bytesPerMicro;
    } else {
      node = kernels[joined.lastOfKernel[op]] = add(Kind::Kernel, reads.getArrayRef(), micros(op));
    }
    nodeOf[op] = node;
    if (runsBlocks(operation)) {
      nodes[node].usesLink |= hasCollective(operation);
      nodes[node].hidesInside |= nodes[node].usesLink || hasSlices(operation);
    }
    // One kernel masks a value for all products that read it: its copies are there until the last of them, whichever that is.
    std::optional<RaggedDot> ragged = RaggedDot::of(operation);
    nodes[node].holdsCopies |= ragged && ragged->sums;
    // Others compute again what is stored for a barrier, for which XLA runs it late.
    bool isKept = isKeptForBarrier(op);
    for (unsigned out : graph.outputs[op]) {
      producers[out].assign(1, node);
      if (isKept) {
        keptFor[out] = node;
        producers[out].assign(reads.begin(), reads.end());
      }
    }
  }

  /// Whether a barrier reads the result of an elementwise operation, and beside it elementwise kernels at most.
  bool isKeptForBarrier(unsigned op) const {
    if (!graph.isVirtual[op] || !isElementwise(graph.ops[op]) || graph.outputs[op].size() != 1)
      return false;
    llvm::ArrayRef<unsigned> users = graph.users[graph.outputs[op][0]];
    auto isBarrier = [&](unsigned user) { return isa<stablehlo::OptimizationBarrierOp>(graph.ops[user]); };
    return llvm::any_of(users, isBarrier) &&
           llvm::all_of(users, [&](unsigned user) { return isBarrier(user) || isElementwise(graph.ops[user]); });
  }

  /// The end of a collective, which starts as one with those that it is combined with.
  unsigned addCollective(unsigned op, llvm::ArrayRef<unsigned> reads) {
    unsigned first = combined[op];
    if (startOf[first] == none) {
      startOf[first] = add(Kind::Start, {}, unknownMicros);
      nodeOf[first] = add(Kind::Done, {startOf[first]}, unknownMicros);
      nodes[startOf[first]].usesLink = nodes[nodeOf[first]].usesLink = true;
      nodes[startOf[first]].latency = latencyOf(graph.ops[op]).least;
    }
    startOf[op] = startOf[first];
    for (unsigned other : reads)
      if (!llvm::is_contained(nodes[startOf[op]].reads, other))
        link(startOf[op], other);
    int64_t bytes = 0;
    for (unsigned value : graph.inputs[op])
      bytes = std::max(bytes, graph.bytes[value]);
    for (unsigned value : graph.outputs[op])
      bytes = std::max(bytes, graph.bytes[value]);
    nodes[startOf[op]].latency += latencyOf(graph.ops[op]).perMegabyte * bytes / 1e6;
    return nodeOf[first];
  }

  /// Whether there are slices of stacks inside, which are copied.
  static bool hasSlices(Operation *loop) {
    return loop
        ->walk([](Operation *inner) {
          return isa<stablehlo::DynamicSliceOp, stablehlo::DynamicUpdateSliceOp>(inner) ? WalkResult::interrupt()
                                                                                       : WalkResult::advance();
        })
        .wasInterrupted();
  }

  /// Whether the operation reads arguments alone, and elementwise kernels its result: they compute it, as optimizers do moments.
  bool isUpdated(unsigned op) const {
    return llvm::all_of(graph.inputs[op],
                        [&](unsigned value) {
                          return llvm::all_of(roots.roots(value), [&](unsigned root) { return graph.definition[root] < 0; });
                        }) &&
           llvm::all_of(graph.outputs[op], [&](unsigned value) {
             return llvm::all_of(graph.users[value], [&](unsigned user) { return isElementwise(graph.ops[user]); });
           });
  }

  /// Whether the block gives the value, or a collective sends it: a kernel of its own writes it.
  bool isWritten(unsigned value) const {
    return llvm::any_of(graph.users[value],
                        [&](unsigned user) { return graph.isTerminator(user) || isCollective(graph.ops[user]); });
  }

  /// A product whose parts are added up later, in what reads it, and whose operands are read in parts or masked.
  static bool isInParts(Operation *op) { return partialSums(op) > 0 || RaggedDot::of(op); }

  /// XLA's products read matrices: another view of an operand is an instruction of its own, which those that read the same
  /// share, but for products in parts. In which way the operand `at` is viewed: 0 as its rows are, 1 turned, rows being what is
  /// summed over. None where it is read as it is.
  static std::optional<unsigned> viewOf(Operation *op, unsigned at) {
    auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
    auto type = dot && at < 2 ? dyn_cast<RankedTensorType>(dot->getOperand(at).getType()) : RankedTensorType();
    if (!type)
      return std::nullopt;
    auto numbers = dot.getDotDimensionNumbers();
    bool turned = at == 0 && numbers.getLhsBatchingDimensions().empty() &&
                  llvm::is_contained(numbers.getLhsContractingDimensions(), 0);
    return type.getRank() > 2 || turned ? std::optional<unsigned>(turned) : std::nullopt;
  }

  /// Whether the operation copies a slice as it is: out of a stack, but for convolutions, which read what is padded, or into
  /// one, what neither an elementwise kernel makes nor one that adds up parts.
  bool isCopy(unsigned op) const {
    if (isa<stablehlo::DynamicSliceOp>(graph.ops[op])) {
      llvm::SetVector<unsigned> same;
      same.insert(graph.outputs[op][0]);
      for (unsigned next = 0; next < same.size(); ++next)
        for (unsigned user : graph.users[same[next]]) {
          if (isa<stablehlo::ConvolutionOp>(graph.ops[user]))
            return false;
          if (isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(graph.ops[user]))
            same.insert(graph.outputs[user][0]);
        }
      return true;
    }
    auto update = dyn_cast<stablehlo::DynamicUpdateSliceOp>(graph.ops[op]);
    if (!update || !graph.contains(update.getUpdate()))
      return false;
    unsigned value = graph.id(update.getUpdate());
    for (int by = graph.definition[value]; by >= 0; by = graph.definition[value]) {
      if (!isa<stablehlo::ReshapeOp, stablehlo::BroadcastInDimOp>(graph.ops[by]))
        return !graph.isVirtual[by] && !isInParts(graph.ops[by]);
      unsigned whole = graph.inputs[by][0];
      if (graph.bytes[whole] != graph.bytes[value])
        return false;
      value = whole;
    }
    return true;
  }

  static Latency latencyOf(Operation *op) {
    return llvm::TypeSwitch<Operation *, Latency>(op)
        .Case([](stablehlo::AllGatherOp) { return gathering; })
        .Case([](stablehlo::ReduceScatterOp) { return scattering; })
        .Case([](stablehlo::AllReduceOp) { return summing; })
        .Case([](stablehlo::AllToAllOp) { return exchanging; })
        .Default([](Operation *) { return permuting; });
  }

  /// How long the copies and collectives take that each node waits for, one after the other.
  void findDepths() {
    std::vector<unsigned> left(nodes.size()), stack;
    for (auto [node, each] : llvm::enumerate(nodes))
      if ((left[node] = each.reads.size()) == 0)
        stack.push_back(node);
    while (!stack.empty()) {
      Node &node = nodes[stack.back()];
      stack.pop_back();
      if (node.kind == Kind::Done)
        node.depth += nodes[node.reads.front()].latency;
      for (unsigned user : node.users) {
        nodes[user].depth = std::max(nodes[user].depth, node.depth);
        if (--left[user] == 0)
          stack.push_back(user);
      }
    }
  }

  double micros(unsigned op) const {
    if (runsBlocks(graph.ops[op])) // not modelled
      return 0;
    if (isa<stablehlo::ConvolutionOp, stablehlo::CustomCallOp>(graph.ops[op]))
      return libraryMicros;
    llvm::SetVector<unsigned> read;
    for (unsigned value : graph.inputs[op])
      read.insert(roots.roots(value).begin(), roots.roots(value).end());
    double bytes = 0;
    bool normalises = false;
    for (unsigned root : read) {
      bytes += graph.bytes[root];
      int by = graph.definition[root];
      normalises |= by >= 0 && isa<stablehlo::ReduceOp>(graph.ops[by]) &&
                    llvm::any_of(roots.roots(graph.inputs[by][0]), [&](unsigned summed) { return read.contains(summed); });
    }
    for (unsigned out : graph.outputs[op])
      bytes += graph.bytes[out];
    auto dot = dyn_cast<stablehlo::DotGeneralOp>(graph.ops[op]);
    auto lhs = dot ? cast<ShapedType>(dot.getLhs().getType()) : ShapedType();
    if (dot && lhs.hasStaticShape() && dot.getType().hasStaticShape()) {
      double flops = 2.0 * dot.getType().getNumElements();
      for (int64_t dim : dot.getDotDimensionNumbers().getLhsContractingDimensions())
        flops *= lhs.getDimSize(dim);
      bool readsSingle = lhs.getElementTypeBitWidth() > 16;
      bool sumsSingle = !readsSingle && (dot.getType().getElementTypeBitWidth() > 16 || partialSums(dot) > 0);
      double rate = readsSingle ? singleFlopsPerMicro : sumsSingle ? summedFlopsPerMicro : flopsPerMicro;
      return std::max(bytes / bytesPerMicro, flops / rate);
    }
    return normalises ? unknownMicros : bytes / bytesPerMicro;
  }

  double stall(const Node &node) const { return std::max(node.readyAt - now, 0.0); }

  static bool hides(const Node &node) { return node.kind == Kind::Done || node.hidesInside; }

  /// Whether the node is the start of a collective for whose end the end of another one waits.
  bool freesLink(const Node &node) const { return node.kind == Kind::Start && node.usesLink && linkIsAwaited; }

  bool comesLast(const Node &node) const { return node.kind == Kind::Start && node.depth == 0 && !freesLink(node); }

  /// Which of two that could stand next, from the end, does.
  bool isBetter(unsigned a, unsigned b) const {
    const Node &first = nodes[a], &second = nodes[b];
    if (hides(first) != hides(second))
      return hides(first);
    if (std::abs(stall(first) - stall(second)) > 1e-6)
      return stall(first) < stall(second);
    if (first.holdsCopies != second.holdsCopies)
      return first.holdsCopies;
    if (comesLast(first) != comesLast(second))
      return !comesLast(first);
    if (freesLink(first) != freesLink(second))
      return freesLink(first);
    if (first.depth != second.depth)
      return first.depth > second.depth;
    if (!waiting.empty()) {
      double gap = nodes[waiting.front()].readyAt - now;
      double waste = std::abs(gap - first.micros), otherWaste = std::abs(gap - second.micros);
      bool saves = first.kind != Kind::Start && waste < otherWaste;
      if (saves != (second.kind != Kind::Start && otherWaste < waste))
        return saves;
    }
    if (first.readsCopy != second.readsCopy)
      return first.readsCopy;
    return first.unlocks != second.unlocks ? first.unlocks > second.unlocks : first.position > second.position;
  }

  /// When a node could stand, all of whose users do.
  double readyTime(const Node &node) const {
    double time = now;
    for (unsigned user : node.users) {
      bool isCopied = node.kind == Kind::Start && nodes[user].kind == Kind::Done;
      time = std::max(time, nodes[user].readyAt + (isCopied ? node.latency : edgeMicros));
    }
    return time;
  }

  /// That one user of a node is left, for whom nothing else is.
  void countLastUser(const Node &node) {
    for (unsigned user : node.users)
      if (place[user] == none)
        ++nodes[user].unlocks;
  }

  void schedule() {
    place.assign(nodes.size(), none);
    llvm::SmallVector<unsigned> ready, idle;
    for (auto [node, each] : llvm::enumerate(nodes)) {
      each.left = each.users.size();
      if (each.left == 0)
        (each.kind == Kind::Nop ? idle : ready).push_back(node);
    }
    for (const Node &node : nodes)
      if (node.left == 1)
        countLastUser(node);
    for (unsigned next = nodes.size(); !ready.empty() || !idle.empty();) {
      unsigned node;
      if (!idle.empty()) {
        node = idle.pop_back_val();
      } else {
        linkIsAwaited = linkIsBusy && llvm::any_of(ready, [&](unsigned each) {
          return nodes[each].usesLink && nodes[each].kind == Kind::Done;
        });
        unsigned *best = nullptr;
        for (unsigned &each : ready) {
          bool isHeldBack = linkIsBusy && nodes[each].usesLink && nodes[each].kind != Kind::Start;
          if (!isHeldBack && (!best || isBetter(each, *best)))
            best = &each;
        }
        node = *best;
        *best = ready.back();
        ready.pop_back();
      }
      place[node] = --next;
      release(node, ready, idle);
    }
  }

  /// A node stands; what it reads, and nobody else waits for, could be next.
  void release(unsigned number, llvm::SmallVectorImpl<unsigned> &ready, llvm::SmallVectorImpl<unsigned> &idle) {
    Node &node = nodes[number];
    if (node.usesLink && node.kind != Kind::Kernel)
      linkIsBusy = node.kind == Kind::Done;
    node.readyAt = readyTime(node);
    now = node.readyAt + node.micros;
    auto later = [&](unsigned a, unsigned b) { return nodes[a].readyAt > nodes[b].readyAt; };
    while (!waiting.empty() && nodes[waiting.front()].readyAt < now) {
      std::pop_heap(waiting.begin(), waiting.end(), later);
      waiting.pop_back();
    }
    for (unsigned read : node.reads) {
      Node &other = nodes[read];
      if (--other.left == 1)
        countLastUser(other);
      if (other.left > 0)
        continue;
      other.readyAt = readyTime(other);
      if (other.kind == Kind::Nop) {
        idle.push_back(read);
        continue;
      }
      ready.push_back(read);
      if (other.readyAt > now) {
        waiting.push_back(read);
        std::push_heap(waiting.begin(), waiting.end(), later);
      }
    }
  }

  const BlockGraph &graph;
  const RootSets &roots;
  const SiblingTimes &joined;
  std::vector<Node> nodes;
  std::vector<unsigned> nodeOf, startOf; ///< of an operation; none: runs inside of kernels, and is no copy
  std::vector<unsigned> combined;        ///< of a collective, the first of those that are one
  std::vector<llvm::SmallVector<unsigned, 2>> producers;        ///< of a value: the nodes that it comes from
  llvm::DenseMap<unsigned, unsigned> keptFor;                   ///< of values that barriers keep, the kernels that store them
  llvm::DenseMap<std::pair<unsigned, unsigned>, unsigned> views; ///< of a value, in which way
  llvm::DenseMap<unsigned, unsigned> kernels;                   ///< by when the last operation in them runs
  std::vector<unsigned> place;                                  ///< of a node
  std::vector<unsigned> waiting;                                ///< a heap of those that were not ready when others were
  double now = 0;
  bool linkIsBusy = false;    ///< while a collective's end stands, and its start does not
  bool linkIsAwaited = false; ///< while another's end could stand but for that
};

} // namespace

SiblingTimes hidingLatencies(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined) {
  if (graph.numOps() > mostOps)
    return joined;
  return Scheduler(graph, roots, joined).run();
}

} // namespace farrier
