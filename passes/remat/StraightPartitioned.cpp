//===- StraightPartitioned.cpp - what is tied to stages in programs for several devices -===//
//
// XLA's scheduler runs ahead, and puts gradients off, to hide communication.
//
//===----------------------------------------------------------------------===//

#include "passes/remat/StraightLine.h"

#include "farrier/Analysis/Gathered.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include <algorithm>
#include <optional>

using namespace mlir;

namespace farrier::remat {

/// A parameter smaller than this, all devices' parts together, is as good as free to keep gathered: a norm's.
static constexpr int64_t freeToKeep = 256 << 10;

/// The last of `order`, segments ascending by stage, whose stage is not after `op`.
static std::optional<unsigned> stageOf(unsigned op, const Segmentation &segmentation, llvm::ArrayRef<unsigned> order) {
  for (unsigned which : llvm::reverse(order))
    if (segmentation.segments[which].stage <= op)
      return which;
  return std::nullopt;
}

void StraightLine::gatherAgain(const Segmentation &segmentation, llvm::ArrayRef<const Choice *> choices,
                               llvm::ArrayRef<unsigned> order, std::vector<std::vector<Read>> &uses) const {
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i])
      continue;
    for (const Read &read : segmentation.uses[i]) {
      if (segmentation.owner[read.value] >= 0 || !argumentOnly[read.value])
        continue;
      if (std::optional<unsigned> which = stageOf(read.op, segmentation, order))
        uses[*which].push_back(read);
    }
  }
}

void StraightLine::tieGathered(unsigned which, const Segmentation &segmentation, llvm::ArrayRef<unsigned> order,
                               Recomputation &what) const {
  for (unsigned op = segmentation.segments[which].stage; op < graph->numOps(); ++op) {
    if (gatheredBytes(graph->ops[op]).operands == 0 || stageOf(op, segmentation, order) != which)
      continue;
    for (unsigned input : graph->inputs[op]) {
      if (graph->definition[input] >= 0 || byteSize(graph->values[input]) < freeToKeep)
        continue;
      if (!llvm::is_contained(what.leaves, input))
        what.leaves.push_back(input);
      what.uses.push_back({op, input});
    }
  }
  llvm::sort(what.leaves);
}

StraightLine::Late StraightLine::gatheredAfterPeak(unsigned stage, const Recomputation &what,
                                                   const llvm::DenseMap<unsigned, unsigned> &place) const {
  Late result;
  std::vector<int64_t> profile = liveness->profile();
  auto most = std::max_element(profile.rbegin(), profile.rend());
  unsigned peak = most == profile.rend() ? 0 : profile.rend() - most - 1;
  if (peak < stage)
    return result;
  // A barrier stores what it joins.
  for (unsigned op = peak; op < graph->numOps() && result.front < 0; ++op)
    for (unsigned value : graph->outputs[op])
      if (graph->bytes[value] >= smallBytes && buffers->isRoot(value) && !liveness->onlyFeedsResults(value) &&
          !graph->users[value].empty() && !graph->isTerminator(graph->users[value].back()))
        result.front = static_cast<int>(value);
  if (result.front < 0)
    return result;
  llvm::DenseMap<unsigned, unsigned> firstRead;
  auto readAt = [&](unsigned value, unsigned op) {
    auto [entry, fresh] = firstRead.try_emplace(value, op);
    if (!fresh)
      entry->second = std::min(entry->second, op);
  };
  for (unsigned op : what.chain)
    for (unsigned input : graph->inputs[op])
      readAt(input, place.lookup(op));
  for (const Read &use : what.uses)
    readAt(use.value, use.op);
  for (unsigned leaf : what.leaves)
    if (graph->definition[leaf] < 0 && byteSize(graph->values[leaf]) >= freeToKeep &&
        firstRead.lookup(leaf) > static_cast<unsigned>(graph->definition[result.front]))
      result.leaves.push_back(leaf);
  return result;
}

void StraightLine::keepSmallParameters(Recomputation &what) const {
  llvm::DenseSet<unsigned> kept;
  auto small = [&](unsigned value) { return byteSize(graph->values[value]) < freeToKeep; };
  for (unsigned leaf : what.leaves)
    if (graph->definition[leaf] < 0 && small(leaf))
      kept.insert(leaf);
  // What is made of those alone is read where the forward part made it: small values and views of them. A parameter of which
  // more is made alone, such as a mask of tokens, must be tied, or XLA merges what is computed again with the original.
  llvm::DenseMap<unsigned, llvm::SmallVector<unsigned, 2>> madeOf;
  for (bool again = !kept.empty(); again;) {
    again = false;
    madeOf.clear();
    for (unsigned leaf : kept)
      madeOf[leaf] = {leaf};
    for (unsigned op : what.chain) {
      llvm::SmallVector<unsigned, 2> sources;
      bool tied = false;
      for (unsigned input : graph->inputs[op])
        if (auto it = madeOf.find(input); it != madeOf.end())
          sources.append(it->second);
        else
          tied |= !constant[input];
      if (tied)
        continue;
      bool view = isa<stablehlo::BroadcastInDimOp, stablehlo::BroadcastOp>(graph->ops[op]);
      if (graph->isVirtual[op] && (view || llvm::all_of(graph->outputs[op], small))) {
        for (unsigned value : graph->outputs[op])
          madeOf[value] = sources;
        continue;
      }
      for (unsigned leaf : sources)
        again |= kept.erase(leaf);
      if (again)
        break;
    }
  }
  llvm::erase_if(what.leaves, [&](unsigned leaf) { return kept.contains(leaf); });
  llvm::erase_if(what.chain, [&](unsigned op) {
    return !graph->outputs[op].empty() && madeOf.contains(graph->outputs[op].front());
  });
  llvm::erase_if(what.uses, [&](const Read &use) { return madeOf.contains(use.value); });
}

/// Of a partitioned program's temporaries: a product that lets go so much more than it makes is not put off.
static constexpr int64_t muchOfAll = 16;

llvm::DenseSet<Operation *> StraightLine::productsThatLetGo(unsigned stage) const {
  std::vector<int64_t> profile = liveness->profile();
  int64_t much = profile.empty() ? 0 : *llvm::max_element(profile) / muchOfAll;
  llvm::DenseSet<Operation *> result;
  for (unsigned op = boundary + 1; op < stage; ++op) {
    if (!isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp>(graph->ops[op]))
      continue;
    llvm::SmallVector<unsigned> seen;
    int64_t less = 0;
    for (unsigned input : graph->inputs[op])
      for (unsigned root : buffers->roots(input))
        if (const Liveness::Range &range = liveness->range(root);
            range.live && range.last < stage && !llvm::is_contained(seen, root)) {
          seen.push_back(root);
          less += graph->bytes[root];
        }
    for (unsigned value : graph->outputs[op])
      less -= graph->bytes[value];
    if (less >= std::max(much, smallBytes))
      result.insert(graph->ops[op]);
  }
  return result;
}

} // namespace farrier::remat
