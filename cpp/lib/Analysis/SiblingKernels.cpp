#include "farrier/Analysis/SiblingKernels.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/WorthStoring.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/SetVector.h"

#include <optional>
#include <tuple>

using namespace mlir;

namespace farrier {

/// Kernels of one value that are compared with each other, and kernels that become one, at most.
static constexpr size_t mostReaders = 16, mostJoined = 16;

/// Smaller results do not count.
static constexpr int64_t leastBytes = 256 << 10;

static bool isKernel(const BlockGraph &graph, const RootSets &roots, unsigned op) {
  return graph.isVirtual[op] && graph.outputs[op].size() == 1 && roots.isRoot(graph.outputs[op][0]) &&
         graph.bytes[graph.outputs[op][0]] >= leastBytes &&
         !isa<stablehlo::ConcatenateOp, stablehlo::BroadcastInDimOp>(graph.ops[op]);
}

/// The coordinate of an axis of a shape, times what an index along the axis moves by, as a random generator counts elements.
using Coordinate = std::tuple<Type, uint64_t, Attribute>;

static std::optional<Coordinate> coordinateOf(Operation *op) {
  auto type = isa<stablehlo::MulOp>(op) ? dyn_cast<RankedTensorType>(op->getResult(0).getType()) : RankedTensorType();
  if (!type || type.getRank() < 2)
    return std::nullopt;
  for (auto [index, step] : {std::pair(0, 1), std::pair(1, 0)}) {
    auto iota = op->getOperand(index).getDefiningOp<stablehlo::IotaOp>();
    ElementsAttr by = splatOf(op->getOperand(step));
    if (iota && by && by.getElementType().isInteger() && !by.getSplatValue<APInt>().isOne())
      return Coordinate(iota.getType(), iota.getIotaDimension(), by);
  }
  return std::nullopt;
}

bool countsElements(Operation *op) { return coordinateOf(op).has_value(); }

std::vector<llvm::SmallVector<unsigned, 4>> maskKernels(const BlockGraph &graph, const RootSets &roots) {
  std::vector<llvm::SmallVector<unsigned, 4>> result;
  llvm::DenseMap<Coordinate, unsigned> places;
  llvm::DenseMap<unsigned, unsigned> counted; // of a value: the place of the first coordinate that is computed inside it
  for (unsigned op = 0; op + 1 < graph.numOps(); ++op) {
    if (!graph.isVirtual[op] || graph.outputs[op].size() != 1)
      continue;
    const unsigned *inside =
        llvm::find_if(graph.inputs[op], [&](unsigned input) { return counted.contains(input); });
    unsigned place;
    if (inside != graph.inputs[op].end()) {
      place = counted.lookup(*inside);
    } else if (std::optional<Coordinate> coordinate = coordinateOf(graph.ops[op])) {
      place = places.try_emplace(*coordinate, places.size()).first->second;
      result.resize(places.size());
    } else {
      continue;
    }
    if (isKernel(graph, roots, op))
      result[place].push_back(op);
    if (!roots.isRoot(graph.outputs[op][0]))
      counted[graph.outputs[op][0]] = place;
  }
  return result;
}

namespace {

class Siblings {
public:
  Siblings(const BlockGraph &graph, const RootSets &roots, std::vector<unsigned> time)
      : graph(graph), roots(roots), numOps(graph.numOps()), group(numOps), members(numOps), position(std::move(time)),
        order(numOps), seen(numOps, 0), leadsTo(numOps, 0), comesFrom(numOps, 0), summedBy(numOps, -1),
        storesForSum(numOps, false) {
    for (unsigned op = 0; op < numOps; ++op) {
      group[op] = op;
      members[op].push_back(op);
      order[position[op]] = op;
    }
    findMarks();
    findSums();
  }

  void joinReaders() {
    std::vector<llvm::SmallVector<unsigned, 4>> readers(graph.numValues());
    for (unsigned op = 0; op + 1 < numOps; ++op) {
      int copied = copiedFor(op);
      bool joins = copied >= 0 || summedBy[op] >= 0 ||
                   (isKernel(graph, roots, op) && !roots.keepsRows(graph.outputs[op][0]));
      if (!joins)
        continue;
      llvm::SmallSetVector<unsigned, 8> read;
      BlockGraph::Ids inputs = graph.inputs[op];
      if (copied >= 0)
        inputs = {static_cast<unsigned>(copied)};
      for (unsigned input : inputs)
        for (unsigned root : roots.roots(input))
          if (graph.bytes[root] >= leastBytes)
            read.insert(root);
      for (unsigned root : read)
        readers[root].push_back(op);
    }
    for (auto [root, kernels] : llvm::enumerate(readers))
      if (kernels.size() <= mostReaders)
        joinEach(kernels, /*isMade=*/graph.definition[root] >= 0 && graph.isVirtual[graph.definition[root]]);
  }

  /// Joins kernels that read one value, each with those that follow it. What an elementwise kernel has made they could read
  /// where it is made; else one of the two must transpose or sum over rows. (Compiled: gated units without a bias are three
  /// kernels after products, with one, whose gradient is such a sum, one kernel; units whose hyperbolic tangent or error
  /// function would be stored for two readers are one.)
  void joinEach(llvm::ArrayRef<unsigned> kernels, bool isMade) {
    for (; !kernels.empty(); kernels = kernels.drop_front())
      for (unsigned other : kernels.drop_front().take_front(mostReaders))
        if (elements(kernels.front()) == elements(other) && !(hasTiles(kernels.front()) && hasTiles(other)) &&
            (isMade || readsItsWay(kernels.front()) || readsItsWay(other)))
          join(group[kernels.front()], group[other]);
  }

  SiblingTimes times() const {
    SiblingTimes result{std::vector<unsigned>(numOps), std::vector<unsigned>(numOps)};
    unsigned at = 0;
    for (unsigned first : order)
      if (first != none) {
        for (unsigned op : members[first])
          result.runs[op] = at++;
        for (unsigned op : members[first])
          result.lastOfKernel[op] = at - 1;
      }
    return result;
  }

private:
  static constexpr unsigned none = ~0u;

  /// The operand that a kernel writes in another order for the operation, a product: the larger one, -1 for none.
  int copiedFor(unsigned op) const {
    int largest = -1;
    for (unsigned value : roots.copiesFor(op))
      if (graph.bytes[value] >= leastBytes && (largest < 0 || graph.bytes[value] > graph.bytes[largest]))
        largest = static_cast<int>(value);
    return largest;
  }

  /// Whether a kernel that transposes in tiles is in the operation's group: two of them are not one.
  bool hasTiles(unsigned op) const {
    return llvm::any_of(members[group[op]], [&](unsigned member) {
      int copied = copiedFor(member);
      return copied >= 0 && !roots.copiesTogether(copied);
    });
  }

  /// What kernels sum over rows, themselves or what another one stores for the sum.
  void findSums() {
    for (unsigned op = 0; op < numOps; ++op)
      if (Value summed = rowsSummed(graph.ops[op]); summed && graph.contains(summed)) {
        unsigned value = graph.id(summed);
        if (!roots.isRoot(value))
          summedBy[op] = value;
        else if (graph.definition[value] >= 0 && graph.isVirtual[graph.definition[value]])
          storesForSum[graph.definition[value]] = true;
      }
  }

  /// Whether a kernel in the operation's group transposes or sums over rows, be it what another kernel stores for the sum.
  bool readsItsWay(unsigned op) const {
    return llvm::any_of(members[group[op]], [&](unsigned member) {
      return summedBy[member] >= 0 || storesForSum[member] || copiedFor(member) >= 0;
    });
  }

  int64_t elements(unsigned op) const {
    int copied = copiedFor(op);
    unsigned value = copied >= 0 ? copied : summedBy[op] >= 0 ? summedBy[op] : graph.outputs[op][0];
    auto type = dyn_cast<RankedTensorType>(graph.values[value].getType());
    return type && type.hasStaticShape() ? type.getNumElements() : -static_cast<int64_t>(op);
  }

  /// Operations spread over the block, and which of them each operation leads to and comes from: what most pairs that wait
  /// for each other are told by.
  void findMarks() {
    constexpr unsigned marks = 64;
    std::vector<uint64_t> mark(numOps, 0);
    for (unsigned i = 0; i < marks && numOps > 0; ++i)
      mark[order[static_cast<uint64_t>(i) * numOps / marks]] |= uint64_t(1) << i;
    for (unsigned at = 0; at < numOps; ++at) {
      unsigned op = order[at];
      comesFrom[op] |= mark[op];
      for (unsigned out : graph.outputs[op])
        for (unsigned user : graph.users[out])
          comesFrom[user] |= comesFrom[op];
    }
    for (unsigned at = numOps; at-- > 0;) {
      unsigned op = order[at];
      leadsTo[op] |= mark[op];
      for (unsigned out : graph.outputs[op])
        for (unsigned user : graph.users[out])
          leadsTo[op] |= leadsTo[user];
    }
  }

  /// Marks what follows from the group `from` before `to`; whether that itself does.
  bool reaches(unsigned from, unsigned to) {
    for (unsigned a : members[from])
      for (unsigned b : members[to])
        if (leadsTo[a] & comesFrom[b])
          return true;
    ++stamp;
    llvm::SmallVector<unsigned> work{from};
    seen[from] = stamp;
    while (!work.empty())
      for (unsigned op : members[work.pop_back_val()])
        for (unsigned out : graph.outputs[op])
          for (unsigned user : graph.users[out]) {
            unsigned next = group[user];
            if (next == to)
              return true;
            if (seen[next] != stamp && position[next] < position[to]) {
              seen[next] = stamp;
              work.push_back(next);
            }
          }
    return false;
  }

  /// Makes two groups one, unless one waits for the other: where the later one stands, with what follows from the earlier
  /// one behind it.
  void join(unsigned first, unsigned second) {
    if (first == second || members[first].size() + members[second].size() > mostJoined)
      return;
    if (position[first] > position[second])
      std::swap(first, second);
    if (reaches(first, second))
      return;
    llvm::SmallVector<unsigned> before, after;
    for (unsigned at = position[first]; at < position[second]; ++at)
      if (order[at] != none && order[at] != first)
        (seen[order[at]] == stamp ? after : before).push_back(order[at]);
    unsigned at = position[second];
    auto place = [&](unsigned each) {
      order[at] = each;
      position[each] = at--;
    };
    unsigned start = position[first];
    for (unsigned each : llvm::reverse(after))
      place(each);
    place(second);
    for (unsigned each : llvm::reverse(before))
      place(each);
    for (unsigned hole = start; hole <= at; ++hole)
      order[hole] = none;
    for (unsigned op : members[first])
      group[op] = second;
    members[second].append(members[first]);
    llvm::sort(members[second]);
    members[first].clear();
  }

  const BlockGraph &graph;
  const RootSets &roots;
  unsigned numOps;
  std::vector<unsigned> group; ///< of each operation, the one that stands for all that run with it
  std::vector<llvm::SmallVector<unsigned, 1>> members;
  std::vector<unsigned> position; ///< of groups
  std::vector<unsigned> order;    ///< groups, and holes where others were
  std::vector<unsigned> seen;
  unsigned stamp = 0;
  std::vector<uint64_t> leadsTo, comesFrom;
  std::vector<int> summedBy; ///< of an operation, the value that it computes and sums over rows, -1 for none
  std::vector<bool> storesForSum;
};

} // namespace

SiblingTimes joinSiblings(const BlockGraph &graph, const RootSets &roots, std::vector<unsigned> time, bool onlyMasks) {
  std::vector<llvm::SmallVector<unsigned, 4>> masks = maskKernels(graph, roots);
  if (onlyMasks && masks.empty())
    return {time, time};
  Siblings siblings(graph, roots, std::move(time));
  if (!onlyMasks)
    siblings.joinReaders();
  for (llvm::ArrayRef<unsigned> kernels : masks)
    siblings.joinEach(kernels, /*isMade=*/true);
  return siblings.times();
}

} // namespace farrier
