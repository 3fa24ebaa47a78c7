#include "farrier/Analysis/Parameters.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "llvm/ADT/BitVector.h"
#include "llvm/ADT/SmallPtrSet.h"

#include <algorithm>
#include <deque>
#include <map>

using namespace mlir;

namespace farrier {

namespace {

/// A donated argument and the value that takes its place.
struct Donation {
  unsigned argument, result;
};

/// As XLA pairs them: the result that an argument names, else the first one left of its size.
std::vector<Donation> donations(const BlockGraph &graph, func::FuncOp function) {
  if (graph.numOps() == 0)
    return {};
  Operation *end = graph.block.getTerminator();
  std::vector<Donation> found;
  llvm::DenseSet<unsigned> named;
  std::vector<unsigned> donors;
  for (BlockArgument argument : graph.block.getArguments()) {
    unsigned number = argument.getArgNumber();
    if (auto result = function.getArgAttrOfType<IntegerAttr>(number, "tf.aliasing_output")) {
      if (result.getInt() < static_cast<int64_t>(end->getNumOperands())) {
        named.insert(result.getInt());
        found.push_back({graph.id(argument), graph.id(end->getOperand(result.getInt()))});
      }
    } else if (function.getArgAttr(number, "jax.buffer_donor")) {
      donors.push_back(graph.id(argument));
    }
  }
  std::map<int64_t, std::deque<unsigned>> left; // results of a size
  for (OpOperand &operand : end->getOpOperands())
    if (!named.contains(operand.getOperandNumber()))
      left[graph.bytes[graph.id(operand.get())]].push_back(graph.id(operand.get()));
  for (unsigned donor : donors)
    if (auto it = left.find(graph.bytes[donor]); it != left.end() && !it->second.empty()) {
      found.push_back({donor, it->second.front()});
      it->second.pop_front();
    }
  return found;
}

/// So many donations are looked at in one walk over the block, which keeps as many bits for each operation.
constexpr size_t walkedTogether = 512;

/// How much is followed of what an argument is read through before the kernel that reads it.
constexpr size_t mostFollowed = 64;

class Copies {
public:
  Copies(const BlockGraph &graph, const RootSets &roots)
      : graph(graph), roots(roots), ends(graph.numOps() + 1, 0) {}

  void ofDonated(ArrayRef<Donation> donated) {
    std::map<int64_t, unsigned> longest; // of a size, until when
    for (; !donated.empty(); donated = donated.drop_front(std::min(donated.size(), walkedTogether)))
      walk(donated.take_front(walkedTogether), longest);
    for (auto [bytes, until] : longest)
      ends[until] += bytes;
  }

  void ofFilters() {
    llvm::DenseMap<unsigned, unsigned> last;
    for (unsigned op = 0; op < graph.numOps(); ++op)
      if (int argument = filterOf(graph.ops[op]); argument >= 0)
        last[argument] = op;
    for (unsigned argument = 0; argument < graph.numArguments; ++argument)
      if (auto it = last.find(argument); it != last.end())
        ends[it->second] += graph.bytes[argument];
  }

  /// Of each operation.
  std::vector<int64_t> bytes() const {
    std::vector<int64_t> result(graph.numOps(), 0);
    int64_t held = 0;
    for (unsigned op = graph.numOps(); op-- > 0;)
      result[op] = held += ends[op];
    return result;
  }

private:
  /// The argument that is the convolution's filter, and does not lie as cuDNN reads it; else -1.
  int filterOf(Operation *op) const {
    auto convolution = dyn_cast<stablehlo::ConvolutionOp>(op);
    if (!convolution)
      return -1;
    auto numbers = convolution.getDimensionNumbers();
    SmallVector<int64_t> wanted{numbers.getKernelOutputFeatureDimension()};
    llvm::append_range(wanted, numbers.getKernelSpatialDimensions());
    wanted.push_back(numbers.getKernelInputFeatureDimension());
    // The gradient of the input reads the filter reversed, with its features exchanged: the same copy.
    Value filter = convolution.getRhs();
    if (auto reverse = filter.getDefiningOp<stablehlo::ReverseOp>()) {
      filter = reverse.getOperand();
      std::swap(wanted.front(), wanted.back());
    }
    auto argument = dyn_cast<BlockArgument>(filter);
    return argument && graph.contains(argument) && !llvm::is_sorted(wanted)
               ? static_cast<int>(graph.id(argument))
               : -1;
  }

  /// The operations whose kernels read the argument.
  llvm::SmallVector<unsigned> readersOf(unsigned argument) const {
    llvm::SmallVector<unsigned> work{argument}, readers;
    llvm::SmallDenseSet<unsigned, 16> seen{argument};
    while (!work.empty() && seen.size() < mostFollowed) {
      unsigned value = work.pop_back_val();
      for (unsigned user : graph.users[value]) {
        if (graph.isTerminator(user) || filterOf(graph.ops[user]) == static_cast<int>(argument))
          continue;
        if (graph.isVirtual[user] && graph.outputs[user].size() == 1 && !roots.isRoot(graph.outputs[user][0])) {
          if (seen.insert(graph.outputs[user][0]).second)
            work.push_back(graph.outputs[user][0]);
        } else {
          readers.push_back(user);
        }
      }
    }
    return readers;
  }

  /// The parameter's own memory is free once it is copied, until its update: what is copied of the same size and read
  /// for the last time before that lies there. Backward parts update in the order in which they read, so one is left.
  void walk(ArrayRef<Donation> donated, std::map<int64_t, unsigned> &longest) const {
    // Which of the results follow from each value.
    std::vector<llvm::BitVector> leadsTo(graph.numValues());
    llvm::DenseMap<unsigned, llvm::SmallVector<unsigned>> is;
    for (auto [bit, donation] : llvm::enumerate(donated))
      is[donation.result].push_back(bit);
    auto ofOp = [&](unsigned op) {
      llvm::BitVector bits(donated.size());
      for (unsigned out : graph.outputs[op])
        bits |= leadsTo[out];
      return bits;
    };
    for (unsigned value = graph.numValues(); value-- > graph.numArguments;) {
      llvm::BitVector &bits = leadsTo[value];
      bits.resize(donated.size());
      for (unsigned user : graph.users[value])
        for (unsigned out : graph.outputs[user])
          bits |= leadsTo[out];
      if (auto it = is.find(value); it != is.end())
        for (unsigned bit : it->second)
          bits.set(bit);
    }
    for (auto [bit, donation] : llvm::enumerate(donated)) {
      unsigned last = 0;
      for (unsigned reader : readersOf(donation.argument))
        if (!ofOp(reader).test(bit))
          last = std::max(last, reader);
      if (last) {
        unsigned &until = longest[graph.bytes[donation.argument]];
        until = std::max(until, last);
      }
    }
  }

  const BlockGraph &graph;
  const RootSets &roots;
  std::vector<int64_t> ends; ///< bytes of copies whose last reader is an operation
};

} // namespace

std::vector<int64_t> parameterCopies(const BlockGraph &graph, const RootSets &roots) {
  auto function = dyn_cast_or_null<func::FuncOp>(graph.block.getParentOp());
  Copies copies(graph, roots);
  if (function) {
    copies.ofDonated(donations(graph, function));
    copies.ofFilters();
  }
  return copies.bytes();
}

} // namespace farrier
