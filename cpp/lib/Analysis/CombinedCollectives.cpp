#include "farrier/Analysis/CombinedCollectives.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/TypeUtilities.h"
#include "llvm/ADT/DenseSet.h"

#include <map>
#include <tuple>

using namespace mlir;

namespace farrier {

/// XLA's `xla_gpu_all_gather_combine_threshold_bytes` and the like for sums, unless told otherwise.
static constexpr int64_t combinedBytes = (30 << 20) + 7;

namespace {

/// What collectives that XLA combines have in common; another kind's is none.
using Key = std::tuple<StringRef, Attribute, Type, StringRef, int64_t>;

std::optional<Key> keyOf(Operation *op) {
  bool isSum = isa<stablehlo::AllReduceOp, stablehlo::ReduceScatterOp>(op);
  if ((!isSum && !isa<stablehlo::AllGatherOp>(op)) || op->getNumOperands() != 1 || op->getNumResults() != 1)
    return std::nullopt;
  auto dim = op->getAttrOfType<IntegerAttr>(isSum ? "scatter_dimension" : "all_gather_dim");
  Type element = isSum ? getElementTypeOrSelf(op->getOperand(0)) : Type();
  StringRef reduction;
  if (isSum && !op->getRegion(0).empty() && !op->getRegion(0).front().empty())
    reduction = op->getRegion(0).front().front().getName().getStringRef();
  return Key{op->getName().getStringRef(), op->getAttr("replica_groups"), element, reduction, dim ? dim.getInt() : 0};
}

class Combiner {
public:
  Combiner(const BlockGraph &graph, llvm::ArrayRef<unsigned> kernels, llvm::function_ref<bool(unsigned)> isFused)
      : graph(graph), isFused(isFused), leader(graph.numOps()), members(graph.numOps()) {
    llvm::DenseMap<unsigned, unsigned> first; // operation of a kernel
    for (unsigned op = 0; op < graph.numOps(); ++op) {
      leader[op] = first.try_emplace(kernels[op], op).first->second;
      members[leader[op]].push_back(op);
    }
  }

  std::vector<unsigned> run() {
    std::map<unsigned, Key> left;
    for (unsigned op = 0; op < graph.numOps(); ++op)
      if (std::optional<Key> key = keyOf(graph.ops[op]); key && graph.bytes[graph.outputs[op][0]] <= combinedBytes)
        left.insert({op, *key});
    while (left.size() > 1) {
      llvm::SmallVector<unsigned> together = next(left);
      if (together.empty())
        break;
      for (unsigned op : together) {
        left.erase(op);
        leader[op] = together.front();
        if (op != together.front())
          members[together.front()].push_back(op);
      }
    }
    return std::move(leader);
  }

private:
  /// The next that are one: of a kind, from the first in post-order to where one waits for another or they are too many bytes.
  llvm::SmallVector<unsigned> next(const std::map<unsigned, Key> &left) const {
    llvm::SmallVector<unsigned> together;
    std::vector<bool> waits(graph.numOps(), false);
    std::optional<Key> key;
    int64_t bytes = 0;
    for (unsigned op : postOrder()) {
      bool follows = llvm::any_of(members[op], [&](unsigned member) {
        return llvm::any_of(graph.inputs[member], [&](unsigned value) {
          int by = graph.definition[value];
          return by >= 0 && waits[leader[by]];
        });
      });
      auto it = left.find(op);
      bool isOfKind = it != left.end() && (!key || it->second == *key);
      if (isOfKind && (follows || bytes + graph.bytes[graph.outputs[op][0]] > combinedBytes))
        break;
      if (isOfKind) {
        key = it->second;
        bytes += graph.bytes[graph.outputs[op][0]];
        together.push_back(op);
      }
      waits[op] = follows || isOfKind;
    }
    return together;
  }

  /// The operations that results wait for, of those that are one the first, each after what it reads.
  std::vector<unsigned> postOrder() const {
    enum : uint8_t { New, Open, Done };
    std::vector<uint8_t> state(graph.numOps(), New);
    std::vector<unsigned> result, stack{graph.numOps() - 1};
    while (!stack.empty()) {
      unsigned op = stack.back();
      if (state[op] != New) {
        stack.pop_back();
        if (state[op] == Open)
          result.push_back(op);
        state[op] = Done;
        continue;
      }
      state[op] = Open;
      llvm::SmallVector<unsigned> read = readBy(op);
      for (unsigned by : llvm::reverse(read))
        if (state[by] == New)
          stack.push_back(by);
    }
    return result;
  }

  /// What a kernel reads: XLA puts the operands of what it fuses behind the others. What is fused stands in its place, too.
  llvm::SmallVector<unsigned> readBy(unsigned op) const {
    llvm::SmallVector<unsigned> result, expanded(members[op].begin(), members[op].end());
    llvm::DenseSet<unsigned> seen(expanded.begin(), expanded.end());
    bool isKernel = !isFused(op);
    for (unsigned next = 0; next < expanded.size(); ++next)
      for (unsigned value : graph.inputs[expanded[next]])
        if (int by = graph.definition[value]; by >= 0 && isKernel && isFused(by)) {
          if (seen.insert(by).second)
            expanded.push_back(by);
        } else if (by >= 0) {
          result.push_back(leader[by]);
        }
    for (unsigned each : expanded)
      if (leader[each] != op)
        result.push_back(leader[each]);
    return result;
  }

  const BlockGraph &graph;
  llvm::function_ref<bool(unsigned)> isFused;
  std::vector<unsigned> leader;                        ///< of each operation, the first that it is one with
  std::vector<llvm::SmallVector<unsigned, 1>> members; ///< of each leader, itself first
};

} // namespace

std::vector<unsigned> combinedCollectives(const BlockGraph &graph, llvm::ArrayRef<unsigned> kernels,
                                          llvm::function_ref<bool(unsigned)> isFused) {
  return Combiner(graph, kernels, isFused).run();
}

} // namespace farrier
