#include "farrier/Analysis/MemoryOrder.h"

#include "farrier/Analysis/KernelTimes.h"
#include "farrier/Analysis/Losses.h"
#include "farrier/Analysis/Pooling.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/SetVector.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>

using namespace mlir;

namespace farrier {

/// Smaller constants are not told from others.
static constexpr int64_t leastFilled = 4 << 10;

/// A convolution gives a pair with its scratch memory: two pointers, by which it makes more than zeros of its result's size.
static constexpr int64_t pairBytes = 16;

/// Instructions that XLA has for a product beside itself: other views of its operands.
static constexpr int64_t viewsOfProduct = 2;

namespace {

class Kernels {
public:
  Kernels(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined)
      : graph(graph), roots(roots), joined(joined), nodeOf(graph.numOps(), none), producers(graph.numValues()) {
    for (const PoolGradient &pool : poolGradients(graph))
      pools.try_emplace(pool.op, pool);
    std::vector<unsigned> order(graph.numOps());
    for (unsigned op = 0; op < graph.numOps(); ++op)
      order[joined.runs[op]] = op;
    for (unsigned op : order)
      addOperation(op);
    for (const Fill &fill : fills)
      if (std::optional<unsigned> user = otherUser(fill))
        nodes[*user].waitsFor.insert(fill.node);
    for (auto [number, node] : llvm::enumerate(nodes))
      for (unsigned other : node.waitsFor)
        nodes[other].users.push_back(number);
  }

  SiblingTimes run(MemoryOrder order) const {
    std::vector<unsigned> sequence = order == MemoryOrder::List         ? list()
                                     : order == MemoryOrder::DepthFirst ? depthFirst(weights())
                                                                        : depthFirst({});
    std::vector<unsigned> at(nodes.size()), place(graph.numOps(), noPlace);
    for (auto [position, node] : llvm::enumerate(sequence))
      at[node] = position;
    for (unsigned op = 0; op + 1 < graph.numOps(); ++op)
      if (nodeOf[op] != none)
        place[op] = at[nodeOf[op]];
    place = placesOf(graph, std::move(place));
    runLossesEarly(graph, roots, place, /*all=*/false);
    std::vector<unsigned> sorted = inOrder(place, joined);
    SiblingTimes result = timesOf(sorted, joined);
    for (const Fill &fill : fills) {
      auto after = llvm::partition_point(sorted, [&](unsigned other) { return place[other] < at[fill.node]; });
      if (unsigned from = after - sorted.begin(); from < result.runs[fill.op])
        result.filled.push_back({fill.op, from, fill.bytes});
    }
    return result;
  }

private:
  static constexpr unsigned none = ~0u;

  struct Node {
    int64_t made = 0;  ///< bytes of results
    int64_t freed = 0; ///< bytes of constants that only it reads
    bool isScalar = false;
    llvm::SmallSetVector<unsigned, 4> waitsFor; ///< nodes, in the order of the operands
    llvm::SmallSetVector<unsigned, 4> reads;    ///< results of other nodes
    llvm::SmallVector<unsigned, 4> users;
  };

  /// Constants that a kernel of their own fills, for an operation that writes into them.
  struct Fill {
    unsigned op, node;
    int64_t bytes;
  };

  bool takesNoTime(unsigned op) const {
    return isa<stablehlo::OptimizationBarrierOp>(graph.ops[op]) || graph.isTerminator(op);
  }

  bool isFused(unsigned op) const {
    return !takesNoTime(op) && graph.isVirtual[op] && llvm::none_of(graph.outputs[op], [&](unsigned value) {
      return roots.isRoot(value) ||
             llvm::any_of(graph.users[value], [&](unsigned user) { return graph.isTerminator(user); });
    });
  }

  /// The operation before this one whose result XLA keeps for it, being the same, or -1.
  int keptFor(unsigned op) const {
    if (graph.outputs[op].size() != 1 || roots.roots(graph.outputs[op][0]).size() != 1)
      return -1;
    unsigned kept = roots.roots(graph.outputs[op][0]).front();
    int by = graph.definition[kept];
    bool isRead = llvm::any_of(graph.inputs[op],
                               [&](unsigned value) { return llvm::is_contained(roots.roots(value), kept); });
    return !isRead && by >= 0 && nodeOf[by] != none ? by : -1;
  }

  void addOperation(unsigned op) {
    // A kernel names what it reads itself before what is fused into it reads.
    llvm::SmallSetVector<unsigned, 8> from;
    for (bool fused : {false, true})
      for (unsigned value : graph.inputs[op])
        if (int by = graph.definition[value]; by >= 0 && (nodeOf[by] == none) == fused)
          from.insert(producers[value].begin(), producers[value].end());
    if (isFused(op)) {
      if (int other = keptFor(op); other >= 0) {
        nodeOf[op] = nodeOf[other];
        from.clear();
        from.insert(nodeOf[op]);
      }
      for (unsigned out : graph.outputs[op])
        producers[out].assign(from.begin(), from.end());
      return;
    }
    auto [kernel, isNew] = kernels.try_emplace(joined.lastOfKernel[op], nodes.size());
    unsigned number = nodeOf[op] = kernel->second;
    if (isNew)
      nodes.emplace_back();
    for (unsigned at = 0; at < graph.inputs[op].size(); ++at)
      if (isFilled(op, at))
        fill(op, graph.bytes[graph.outputs[op][at]]);
    if (auto pool = pools.find(op); pool != pools.end())
      fill(op, pool->second.zeros);
    Node &node = nodes[number];
    for (unsigned other : from)
      if (other != number)
        node.waitsFor.insert(other);
    for (unsigned value : graph.inputs[op])
      for (unsigned root : roots.roots(value))
        if (int by = graph.definition[root]; by >= 0 && nodeOf[by] != number)
          node.reads.insert(root);
    node.isScalar = isNew && graph.outputs[op].size() == 1 && isScalar(graph.outputs[op][0]);
    for (auto [at, out] : llvm::enumerate(graph.outputs[op])) {
      producers[out].assign(1, number);
      if (!takesNoTime(op) && isStored(op, at))
        node.made += graph.bytes[out];
    }
    if (isa<stablehlo::ConvolutionOp>(graph.ops[op]))
      node.made += pairBytes;
  }

  bool isScalar(unsigned value) const {
    auto type = dyn_cast<RankedTensorType>(graph.values[value].getType());
    return type && type.hasStaticShape() && type.getNumElements() == 1;
  }

  /// Whether the operation's result is a buffer: a loop may give it as it came, or be the same as another one.
  bool isStored(unsigned op, unsigned at) const {
    auto loop = dyn_cast<stablehlo::WhileOp>(graph.ops[op]);
    if (!loop)
      return true;
    Block &body = loop.getBody().front();
    bool handsOn = at < body.getNumArguments() && at < body.getTerminator()->getNumOperands() &&
                   body.getTerminator()->getOperand(at) == body.getArgument(at);
    return !handsOn && roots.isRoot(graph.outputs[op][at]);
  }

  /// Whether the operation writes into its operand, which is made of constants alone. What is scattered and added to something
  /// is scattered onto that.
  bool isFilled(unsigned op, unsigned at) const {
    Operation *operation = graph.ops[op];
    unsigned value = graph.inputs[op][at];
    int by = graph.definition[value];
    if (by < 0 || !graph.isVirtual[by] || !roots.roots(value).empty() || graph.bytes[value] < leastFilled)
      return false;
    if (isa<stablehlo::WhileOp>(operation))
      return at < operation->getNumOperands() && isStored(op, at);
    bool isAdded = isa<stablehlo::ScatterOp>(operation) && operation->hasOneUse() &&
                   isa<stablehlo::AddOp>(*operation->user_begin());
    return at == 0 && !isAdded && isa<stablehlo::ScatterOp, stablehlo::DynamicUpdateSliceOp>(operation);
  }

  void fill(unsigned op, int64_t bytes) {
    unsigned number = nodes.size();
    nodes.emplace_back().made = bytes;
    nodes[nodeOf[op]].waitsFor.insert(number);
    nodes[nodeOf[op]].freed += bytes;
    fills.push_back({op, number, bytes});
  }

  /// The kernel that reads zeros before a pool's gradient is added to them, as a rectifier's does.
  std::optional<unsigned> otherUser(const Fill &fill) const {
    auto pool = pools.find(fill.op);
    if (pool == pools.end() || !pool->second.zerosFor)
      return std::nullopt;
    unsigned op = *pool->second.zerosFor;
    while (nodeOf[op] == none) {
      if (graph.outputs[op].empty() || graph.users[graph.outputs[op][0]].empty())
        return std::nullopt;
      op = graph.users[graph.outputs[op][0]].front();
    }
    return nodeOf[op];
  }

  /// Scalars come first. Of those that free as much the one with most users runs, then the one that could run last.
  std::vector<unsigned> list() const {
    using Priority = std::pair<int64_t, int64_t>;
    std::vector<unsigned> left(nodes.size()), result, readsLeft(graph.numValues(), 0);
    std::vector<llvm::SmallVector<unsigned, 2>> readers(graph.numValues());
    for (auto [number, node] : llvm::enumerate(nodes)) {
      left[number] = node.waitsFor.size();
      for (unsigned value : node.reads) {
        readers[value].push_back(number);
        ++readsLeft[value];
      }
    }
    for (unsigned value : graph.inputs.back()) // results are never freed
      for (unsigned root : roots.roots(value))
        ++readsLeft[root];
    auto priority = [&](unsigned number) {
      const Node &node = nodes[number];
      if (node.isScalar)
        return Priority(std::numeric_limits<int64_t>::max(), 0);
      int64_t freed = node.freed - node.made;
      for (unsigned value : node.reads)
        if (readsLeft[value] == 1)
          freed += graph.bytes[value];
      return Priority(freed, node.users.size());
    };
    std::multimap<Priority, unsigned> ready;
    std::vector<std::multimap<Priority, unsigned>::iterator> places(nodes.size(), ready.end());
    auto add = [&](unsigned number) { places[number] = ready.emplace(priority(number), number); };
    for (unsigned number = 0; number < nodes.size(); ++number)
      if (left[number] == 0)
        add(number);
    while (!ready.empty()) {
      unsigned number = std::prev(ready.end())->second;
      ready.erase(places[number]);
      places[number] = ready.end();
      result.push_back(number);
      for (unsigned value : nodes[number].reads)
        --readsLeft[value];
      for (unsigned user : nodes[number].users)
        if (--left[user] == 0)
          add(user);
      for (unsigned value : nodes[number].reads)
        if (readsLeft[value] == 1)
          for (unsigned reader : readers[value])
            if (places[reader] != ready.end() && places[reader]->first != priority(reader)) {
              ready.erase(places[reader]);
              add(reader);
            }
    }
    return result;
  }

  /// How many users a kernel and all that it comes from have beyond the first, and bytes of them, along each way: at most as
  /// many as XLA has instructions, and the bytes of all that stand before in post-order.
  std::vector<std::pair<int64_t, int64_t>> weights() const {
    std::vector<unsigned> readers(graph.numValues(), 0), parts(nodes.size(), 0);
    for (const Node &node : nodes)
      for (unsigned value : node.reads)
        if (readers[value]++ == 0)
          ++parts[nodeOf[graph.definition[value]]];
    int64_t instructions = graph.numArguments + nodes.size(), bytes = 0;
    for (unsigned count : parts) // several results are read one by one
      instructions += count > 1 ? count : 0;
    for (Operation *op : graph.ops)
      instructions += isa<stablehlo::DotGeneralOp>(op) ? viewsOfProduct : 0;
    std::vector<std::pair<int64_t, int64_t>> result(nodes.size());
    for (unsigned number : depthFirst({})) {
      const Node &node = nodes[number];
      int64_t users = parts[number] > 1 ? parts[number] : node.users.size();
      auto &[extra, size] = result[number];
      extra = std::max<int64_t>(users - 1, 0);
      size = node.made;
      bytes += node.made;
      llvm::SmallDenseSet<unsigned, 8> counted;
      for (unsigned value : node.reads) {
        unsigned other = nodeOf[graph.definition[value]];
        counted.insert(other);
        extra += result[other].first + (parts[other] > 1 ? readers[value] - 1 : 0);
        size += result[other].second;
      }
      for (unsigned other : node.waitsFor)
        if (counted.insert(other).second) {
          extra += result[other].first;
          size += result[other].second;
        }
      extra = std::min(extra, instructions);
      size = std::min(size, bytes);
    }
    return result;
  }

  /// From the results on, each node behind what it waits for: of that the heaviest first, or what it names first.
  std::vector<unsigned> depthFirst(llvm::ArrayRef<std::pair<int64_t, int64_t>> weights) const {
    enum State : uint8_t { New, Open, Done };
    std::vector<State> state(nodes.size(), New);
    std::vector<unsigned> result, stack;
    unsigned end = nodeOf[graph.numOps() - 1];
    for (unsigned number = nodes.size(); number-- > 0;)
      if (nodes[number].users.empty() && number != end)
        stack.push_back(number);
    stack.push_back(end);
    while (!stack.empty()) {
      unsigned number = stack.back();
      if (state[number] != New) {
        stack.pop_back();
        if (state[number] == Open)
          result.push_back(number);
        state[number] = Done;
        continue;
      }
      state[number] = Open;
      llvm::SmallVector<unsigned> operands(nodes[number].waitsFor.begin(), nodes[number].waitsFor.end());
      if (!weights.empty())
        llvm::stable_sort(operands, [&](unsigned a, unsigned b) { return weights[a] > weights[b]; });
      for (unsigned other : llvm::reverse(operands))
        if (state[other] == New)
          stack.push_back(other);
    }
    return result;
  }

  const BlockGraph &graph;
  const RootSets &roots;
  const SiblingTimes &joined;
  std::vector<Node> nodes;
  std::vector<unsigned> nodeOf;                          ///< of an operation; none: runs inside of kernels
  std::vector<llvm::SmallVector<unsigned, 2>> producers; ///< of a value: the nodes that it comes from
  llvm::DenseMap<unsigned, unsigned> kernels;            ///< by when the last operation in them runs
  llvm::DenseMap<unsigned, PoolGradient> pools;          ///< by operation
  std::vector<Fill> fills;
};

} // namespace

SiblingTimes memoryOrder(const BlockGraph &graph, const RootSets &roots, const SiblingTimes &joined, MemoryOrder order) {
  if (graph.numOps() > mostOrdered || graph.numOps() < 2)
    return joined;
  return Kernels(graph, roots, joined).run(order);
}

} // namespace farrier
