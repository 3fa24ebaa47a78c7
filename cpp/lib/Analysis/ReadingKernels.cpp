#include "farrier/Analysis/ReadingKernels.h"

#include "farrier/Analysis/WorthStoring.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/SmallSet.h"

using namespace mlir;

namespace farrier {

bool isUnused(const BlockGraph &graph, unsigned op, unsigned depth) {
  return !graph.isTerminator(op) && llvm::all_of(graph.outputs[op], [&](unsigned value) {
    return llvm::all_of(graph.users[value],
                        [&](unsigned user) { return depth > 0 && isUnused(graph, user, depth - 1); });
  });
}

/// A sum with what a kernel has just made for it alone, as of gradients or of a residual block: it is stored.
static bool addsToResult(const BlockGraph &graph, unsigned op) {
  return isa<stablehlo::AddOp>(graph.ops[op]) && llvm::any_of(graph.inputs[op], [&](unsigned value) {
           return graph.definition[value] >= 0 && isa<stablehlo::DotGeneralOp>(graph.ops[graph.definition[value]]) &&
                  graph.users[value].size() == 1;
         });
}

std::optional<llvm::SmallVector<unsigned>> readingKernels(const BlockGraph &graph, unsigned from,
                                                          const std::vector<bool> &feedsKernel, size_t mostReaders,
                                                          size_t mostFollowed) {
  llvm::SmallVector<unsigned> work{from};
  llvm::SmallDenseSet<unsigned, 16> seen;
  llvm::SmallSetVector<unsigned, 16> kernels;
  while (!work.empty()) {
    unsigned value = work.pop_back_val();
    if (!seen.insert(value).second)
      continue;
    for (unsigned user : graph.users[value]) {
      if (!graph.isVirtual[user] || graph.outputs[user].size() != 1 || feedsKernel[graph.outputs[user][0]] ||
          addsToResult(graph, user))
        kernels.insert(user);
      else
        work.push_back(graph.outputs[user][0]);
    }
    if (seen.size() > mostFollowed || kernels.size() > mostReaders)
      return std::nullopt;
  }
  return llvm::SmallVector<unsigned>(kernels.begin(), kernels.end());
}

bool isReadInColumns(const BlockGraph &graph, unsigned value, const std::vector<bool> &feedsKernel) {
  auto kernels = readingKernels(graph, value, feedsKernel, /*mostReaders=*/8, /*mostFollowed=*/16);
  if (!kernels || kernels->size() < 3)
    return false;
  int64_t most = mostGroupsStored(graph.values[value]);
  return llvm::count_if(*kernels, [&](unsigned op) {
           int64_t groups = groupsOfColumns(graph.ops[op]);
           return groups > 0 && groups <= most;
         }) >= 2;
}

bool fusesGather(const BlockGraph &graph, unsigned op, const std::vector<bool> &feedsKernel) {
  constexpr int64_t muchLess = 4, shortRow = 32;
  auto gather = dyn_cast<stablehlo::GatherOp>(graph.ops[op]);
  if (!gather || feedsKernel[graph.outputs[op][0]])
    return false;
  if (readingKernels(graph, graph.outputs[op][0], feedsKernel, /*mostReaders=*/2, /*mostFollowed=*/16))
    return true;
  auto rows = dyn_cast<RankedTensorType>(gather.getType());
  if (!rows || rows.getRank() == 0 || rows.getShape().back() < shortRow || !graph.contains(gather.getOperand()) ||
      muchLess * graph.bytes[graph.id(gather.getOperand())] > graph.bytes[graph.outputs[op][0]])
    return false;
  auto readers = readingKernels(graph, graph.outputs[op][0], feedsKernel, /*mostReaders=*/16, /*mostFollowed=*/128);
  return readers && llvm::none_of(*readers, [&](unsigned reader) {
    return isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp>(graph.ops[reader]);
  });
}

} // namespace farrier
