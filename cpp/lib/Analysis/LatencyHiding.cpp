#include "farrier/Analysis/LatencyHiding.h"

#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/PartialSums.h"
#include "farrier/Analysis/RaggedDot.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/SetVector.h"

#include <algorithm>
#include <cmath>
#include <numeric>

using namespace mlir;

namespace farrier {

// What XLA's cost model says of an H100, read from the schedules that it dumps (`xla_dump_latency_hiding_schedule`). Most
// decisions only ask which kernels take less than a microsecond.
static constexpr double bytesPerMicro = 3.35e6, flopsPerMicro = 645e6;

/// A kernel that the model does not know, as those that normalise rows are.
static constexpr double unknownMicros = 0.01;

/// A loop; none is short.
static constexpr double loopMicros = 1000;

/// From the start of a copy to its end, whatever its size, and from one kernel to the next.
static constexpr double copyMicros = 5000, edgeMicros = 1;

/// Each kernel is compared with all that could stand as well: a body of more operations stays as it is.
static constexpr unsigned mostOps = 20000;

namespace {

class Scheduler {
public:
  Scheduler(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined)
      : graph(graph), roots(roots), joined(joined), nodeOf(graph.numOps(), none), startOf(graph.numOps(), none),
        producers(graph.numValues()) {
    for (unsigned arg = 0; arg < graph.numArguments; ++arg)
      if (!graph.users[arg].empty())
        producers[arg].push_back(add(Kind::Nop, {}, 0));
    std::vector<unsigned> order(graph.numOps());
    for (unsigned op = 0; op < graph.numOps(); ++op)
      order[joined.runs[op]] = op;
    for (unsigned op : order)
      addOperation(op);
  }

  SiblingTimes run() {
    schedule();
    unsigned numOps = graph.numOps();
    std::vector<unsigned> key(numOps, nodes.size()), sorted(numOps), mostOfKernel(numOps, 0);
    for (unsigned op = numOps - 1; op-- > 0;) {
      if (nodeOf[op] != none) {
        bool isSlice = startOf[op] != none && isa<stablehlo::DynamicSliceOp>(graph.ops[op]);
        key[op] = place[isSlice ? startOf[op] : nodeOf[op]];
        continue;
      }
      for (unsigned out : graph.outputs[op])
        for (unsigned user : graph.users[out])
          key[op] = std::min(key[op], key[user]);
    }
    std::iota(sorted.begin(), sorted.end(), 0);
    llvm::sort(sorted, [&](unsigned a, unsigned b) {
      return std::make_pair(key[a], joined.runs[a]) < std::make_pair(key[b], joined.runs[b]);
    });
    SiblingTimes result{std::vector<unsigned>(numOps), std::vector<unsigned>(numOps)};
    for (auto [at, op] : llvm::enumerate(sorted)) {
      result.runs[op] = at;
      mostOfKernel[joined.lastOfKernel[op]] = at;
    }
    for (unsigned op = 0; op < numOps; ++op)
      result.lastOfKernel[op] = mostOfKernel[joined.lastOfKernel[op]];
    return result;
  }

private:
  static constexpr unsigned none = ~0u;

  enum class Kind { Nop, Kernel, Start, Done };

  struct Node {
    Kind kind;
    double micros;
    bool holdsCopies = false; ///< a product that sums over rows of groups
    bool readsCopy = false;   ///< of a slice, as it is
    unsigned depth = 0;       ///< of copies that it waits for, one after the other
    llvm::SmallVector<unsigned, 4> reads, users;
    // While it is scheduled:
    unsigned left = 0;    ///< users that do not stand yet
    unsigned unlocks = 0; ///< of what it reads, what nothing else waits for
    double readyAt = 0;
  };

  unsigned add(Kind kind, llvm::ArrayRef<unsigned> reads, double micros) {
    unsigned node = nodes.size();
    nodes.push_back(Node{kind, micros});
    for (unsigned other : reads)
      link(node, other);
    return node;
  }

  void link(unsigned node, unsigned other) {
    nodes[node].reads.push_back(other);
    nodes[other].users.push_back(node);
    nodes[node].depth = std::max(nodes[node].depth, nodes[other].depth);
    nodes[node].readsCopy |= nodes[other].kind == Kind::Done;
  }

  void addOperation(unsigned op) {
    Operation *operation = graph.ops[op];
    bool takesNoTime = isa<stablehlo::OptimizationBarrierOp>(operation) || graph.isTerminator(op);
    bool isFused = !takesNoTime && graph.isVirtual[op] &&
                   llvm::none_of(graph.outputs[op], [&](unsigned value) { return roots.isRoot(value); });
    bool inParts = isInParts(operation);
    llvm::SetVector<unsigned> reads;
    for (auto [at, value] : llvm::enumerate(graph.inputs[op]))
      if (std::optional<unsigned> way = inParts && at < 2 ? 2 + op : viewOf(operation, at); way && !producers[value].empty()) {
        auto [view, isNew] = views.try_emplace({value, *way}, 0);
        if (isNew)
          view->second = add(Kind::Nop, producers[value], 0);
        reads.insert(view->second);
      } else {
        reads.insert(producers[value].begin(), producers[value].end());
      }
    if (isFused) {
      for (unsigned out : graph.outputs[op])
        producers[out].assign(reads.begin(), reads.end());
      return;
    }
    unsigned node;
    if (takesNoTime) {
      node = add(Kind::Nop, reads.getArrayRef(), 0);
    } else if (isCopy(op)) {
      startOf[op] = add(Kind::Start, reads.getArrayRef(), unknownMicros);
      node = add(Kind::Done, {startOf[op]}, unknownMicros);
      ++nodes[node].depth;
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
    // One kernel masks a value for all products that read it: its copies are there until the last of them, whichever that is.
    std::optional<RaggedDot> ragged = RaggedDot::of(operation);
    nodes[node].holdsCopies |= ragged && ragged->sums;
    for (unsigned out : graph.outputs[op])
      producers[out].assign(1, node);
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

  double micros(unsigned op) const {
    if (runsBlocks(graph.ops[op]))
      return loopMicros;
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
      return std::max(bytes / bytesPerMicro, flops / flopsPerMicro);
    }
    return normalises ? unknownMicros : bytes / bytesPerMicro;
  }

  double stall(const Node &node) const { return std::max(node.readyAt - now, 0.0); }

  /// Which of two that could stand next, from the end, does.
  bool isBetter(unsigned a, unsigned b) const {
    const Node &first = nodes[a], &second = nodes[b];
    bool isDone = first.kind == Kind::Done, isStart = first.kind == Kind::Start;
    if (isDone != (second.kind == Kind::Done))
      return isDone;
    if (std::abs(stall(first) - stall(second)) > 1e-6)
      return stall(first) < stall(second);
    if (first.holdsCopies != second.holdsCopies)
      return first.holdsCopies;
    bool otherStarts = second.kind == Kind::Start;
    bool comesLast = isStart && first.depth == 0;
    if (comesLast != (otherStarts && second.depth == 0))
      return !comesLast;
    if (first.depth != second.depth)
      return first.depth > second.depth;
    if (!waiting.empty()) {
      double gap = nodes[waiting.front()].readyAt - now;
      double waste = std::abs(gap - first.micros), otherWaste = std::abs(gap - second.micros);
      bool saves = !isStart && waste < otherWaste;
      if (saves != (!otherStarts && otherWaste < waste))
        return saves;
    }
    if (first.readsCopy != second.readsCopy)
      return first.readsCopy;
    return first.unlocks != second.unlocks ? first.unlocks > second.unlocks : a > b;
  }

  /// When a node could stand, all of whose users do.
  double readyTime(const Node &node) const {
    double time = now;
    for (unsigned user : node.users) {
      bool isCopied = node.kind == Kind::Start && nodes[user].kind == Kind::Done;
      time = std::max(time, nodes[user].readyAt + (isCopied ? copyMicros : edgeMicros));
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
        auto *best = ready.begin();
        for (auto *each = ready.begin() + 1; each != ready.end(); ++each)
          if (isBetter(*each, *best))
            best = each;
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
  std::vector<llvm::SmallVector<unsigned, 2>> producers;        ///< of a value: the nodes that it comes from
  llvm::DenseMap<std::pair<unsigned, unsigned>, unsigned> views; ///< of a value, in which way
  llvm::DenseMap<unsigned, unsigned> kernels;                   ///< by when the last operation in them runs
  std::vector<unsigned> place;                                  ///< of a node
  std::vector<unsigned> waiting;                                ///< a heap of those that were not ready when others were
  double now = 0;
};

} // namespace

SiblingTimes hidingLatencies(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined) {
  if (graph.numOps() > mostOps)
    return joined;
  return Scheduler(graph, roots, joined).run();
}

} // namespace farrier
