//===- StraightMemory.cpp - what a choice for a segment has in memory, and when -===//

#include "passes/remat/StraightLine.h"

#include <algorithm>

using namespace mlir;

namespace farrier::remat {

bool StraightLine::isLeaf(unsigned value, const llvm::DenseSet<unsigned> &recomputed) const {
  if (graph->definition[value] < 0)
    return true;
  unsigned op = graph->definition[value];
  if (recomputed.contains(value))
    return false;
  if (roots->isRoot(value) || !copyable[op])
    return true;
  // Small values are kept, but for those made of parameters: a kept cast of a weight is one more buffer.
  return graph->bytes[value] < smallBytes && !argumentOnly[value];
}

StraightLine::Recomputation StraightLine::recomputation(llvm::ArrayRef<Read> reads,
                                                        const llvm::DenseSet<unsigned> &recomputed) const {
  Recomputation result;
  llvm::DenseSet<unsigned> seenValue, seenOp;
  // Iterative: chains of elementwise operations are thousands long.
  std::vector<unsigned> work;
  for (const Read &read : reads) {
    if (isLeaf(read.value, recomputed))
      continue;
    result.uses.push_back(read);
    work.push_back(read.value);
    while (!work.empty()) {
      unsigned value = work.back();
      work.pop_back();
      if (constant[value] || !seenValue.insert(value).second)
        continue;
      if (isLeaf(value, recomputed)) {
        result.leaves.push_back(value);
        continue;
      }
      unsigned op = graph->definition[value];
      if (seenOp.insert(op).second) {
        result.chain.push_back(op);
        for (unsigned input : graph->inputs[op])
          work.push_back(input);
      }
    }
  }
  llvm::sort(result.chain);
  llvm::sort(result.leaves);
  return result;
}

void StraightLine::assignUses(Segmentation &segmentation) const {
  const std::vector<Segment> &segments = segmentation.segments;
  segmentation.uses.resize(segments.size());
  // Reads of values that belong to no segment go to the stage they stand in, decided or not.
  std::vector<std::pair<unsigned, unsigned>> stages;
  for (unsigned i = 0; i < segments.size(); ++i)
    stages.push_back({segments[i].stage, i});
  llvm::sort(stages);
  for (const Read &read : reads) {
    if (int owner = segmentation.owner[read.value]; owner >= 0) {
      segmentation.uses[owner].push_back(read);
      continue;
    }
    auto next = std::upper_bound(stages.begin(), stages.end(), std::make_pair(read.op, ~0u));
    // Segments may share a stage; the first that does something will find the reads.
    for (auto it = next; it != stages.begin() && std::prev(it)->first == std::prev(next)->first; --it)
      segmentation.uses[std::prev(it)->second].push_back(read);
  }
}

void StraightLine::findReach() {
  reach.assign(graph->numOps(), 0);
  for (unsigned op = graph->numOps(); op-- > 0;) {
    reach[op] = op;
    for (unsigned value : graph->outputs[op]) {
      if (!graph->isVirtual[op] || buffers->isRoot(value) || liveness->onlyFeedsResults(value))
        continue;
      for (unsigned user : graph->users[value])
        if (!graph->isTerminator(user))
          reach[op] = std::max(reach[op], reach[user]);
    }
  }
}

std::vector<int64_t> StraightLine::profileWithoutResiduals() const {
  std::vector<int64_t> result = liveness->profile([&](unsigned value) { return !isResidual(value); });
  std::vector<int64_t> delta(graph->numOps() + 1, 0);
  for (unsigned value = 0; value < graph->numValues(); ++value)
    if (const Liveness::Range &range = liveness->range(value);
        isResidual(value) && range.live && range.first <= lastStored[value]) {
      delta[range.first] += graph->bytes[value];
      delta[lastStored[value] + 1] -= graph->bytes[value];
    }
  int64_t current = 0;
  for (unsigned op = 0; op < graph->numOps(); ++op)
    result[op] += current += delta[op];
  return result;
}

std::vector<int64_t> StraightLine::baseProfile(const Segmentation &segmentation) const {
  std::vector<int64_t> result = profileWithoutResiduals();
  // What is read before the first stage is read where it is; what later segments start from is counted with its own.
  unsigned firstStage = graph->numOps();
  for (const Segment &segment : segmentation.segments)
    firstStage = std::min(firstStage, segment.stage);
  llvm::DenseMap<unsigned, unsigned> early;
  for (const Read &read : reads)
    if (read.op < firstStage)
      for (unsigned buffer : buffers->roots(read.value))
        if (isResidual(buffer) && liveness->range(buffer).live && !segmentation.crosses[buffer])
          early[buffer] = std::max(early[buffer], std::min(reach[read.op], liveness->range(buffer).last));
  for (auto [value, last] : early)
    for (unsigned op = lastStored[value] + 1; op <= last; ++op)
      result[op] += graph->bytes[value];
  return result;
}

std::vector<Lifetime> StraightLine::lifetimes(const Segmentation &segmentation, unsigned which,
                                              const Choice *choice, unsigned fetched) const {
  const Segment &segment = segmentation.segments[which];
  std::vector<Lifetime> result;
  std::vector<unsigned> order; // of residuals, as they are first met
  llvm::DenseMap<unsigned, unsigned> last;
  // What an earlier segment keeps for this one's stage is stored, also where the program as it stands makes it inside its
  // readers: what it is made of is there only if that segment keeps it, which counts it.
  std::vector<std::pair<unsigned, unsigned>> stored; // with the last read
  auto isStored = [&](unsigned value) {
    return choice && segmentation.crosses[value] && !buffers->isRoot(value) &&
           graph->definition[value] < static_cast<int>(segment.first);
  };
  auto reads = [&](unsigned value, unsigned op, bool original) {
    if (isStored(value)) {
      stored.push_back({value, op});
      return;
    }
    for (unsigned buffer : buffers->roots(value)) {
      const Liveness::Range &range = liveness->range(buffer);
      if (!isForward(buffer) || !range.live)
        continue;
      // Where the program as it stands reads it last, its memory may serve the result.
      unsigned end = original && range.last > boundary ? std::min(op, range.last) : op;
      auto [entry, fresh] = last.try_emplace(buffer, end);
      if (fresh)
        order.push_back(buffer);
      else
        entry->second = std::max(entry->second, end);
    }
  };
  llvm::DenseMap<unsigned, int64_t> onHost;
  if (!choice) {
    for (const Read &use : segmentation.uses[which])
      reads(use.value, reach[use.op], true);
  } else {
    llvm::DenseSet<unsigned> recomputed;
    for (unsigned i = 0; i < segment.values.size(); ++i) {
      if (choice->recomputed[i])
        recomputed.insert(segment.values[i]);
      if (choice->onHost[i])
        onHost[segment.values[i]] = segment.problem.candidates[i].hostBytes;
    }
    for (const Read &use : segmentation.uses[which])
      if (isLeaf(use.value, recomputed))
        reads(use.value, reach[use.op], true);
    auto [chain, leaves, uses] = recomputation(segmentation.uses[which], recomputed);
    llvm::DenseMap<unsigned, unsigned> place = placeClones(chain, uses, segment.stage), lastOfClone, lastInChain;
    llvm::DenseSet<unsigned> cloned(chain.begin(), chain.end());
    for (const Read &use : uses)
      lastOfClone[use.value] = std::max(lastOfClone[use.value], reach[use.op]);
    for (unsigned op : llvm::reverse(chain)) {
      unsigned at = place.lookup(op), readAt = at, inChain = graph->isVirtual[op] ? 0 : at;
      for (unsigned value : graph->outputs[op]) {
        unsigned end = std::max(lastOfClone.lookup(value), at);
        if (buffers->isRoot(value)) {
          // Where the program as it stands reads it last, its memory may serve the result, as that of the original does.
          if (const Liveness::Range &range = liveness->range(value); range.live && range.last > boundary)
            end = std::max({at, lastInChain.lookup(value), std::min(end, range.last)});
          result.push_back({at, end, graph->bytes[value]});
          inChain = at;
        } else {
          readAt = std::max(readAt, end); // it runs inside its readers' kernels
          inChain = std::max(inChain, lastInChain.lookup(value));
        }
      }
      int64_t beside = liveness->innerPeak(op);
      for (unsigned value : buffers->copiesFor(op))
        beside += graph->bytes[value];
      if (beside > 0)
        result.push_back({at, at, beside});
      for (unsigned input : graph->inputs[op]) {
        if (constant[input])
          continue;
        if (graph->definition[input] >= 0 && cloned.contains(graph->definition[input]))
          lastOfClone[input] = std::max(lastOfClone[input], readAt), lastInChain[input] = std::max(lastInChain[input], inChain);
        else
          reads(input, readAt, false);
      }
    }
  }
  // What later segments start from is there as long as the program as it stands has it: it is counted where it is made.
  for (unsigned op = segment.first; op < segment.end; ++op)
    for (unsigned value : graph->outputs[op])
      if (segmentation.crosses[value] && liveness->range(value).live && liveness->range(value).last > boundary) {
        auto [entry, fresh] = last.try_emplace(value, 0);
        if (fresh)
          order.push_back(value);
        entry->second = std::max(entry->second, liveness->range(value).last);
      }
  // Each once, until its last read.
  llvm::sort(stored);
  for (size_t i = 0; i < stored.size(); ++i) {
    auto [value, end] = stored[i];
    if (i + 1 < stored.size() && stored[i + 1].first == value)
      continue;
    unsigned first = 0;
    for (unsigned buffer : buffers->roots(value))
      first = std::max(first, lastStored[buffer] + 1);
    if (first <= end)
      result.push_back({first, end, graph->bytes[value]});
  }
  for (unsigned value : order) {
    unsigned first = lastStored[value] + 1, end = last.lookup(value);
    auto made = static_cast<unsigned>(graph->definition[value]);
    if (segmentation.crosses[value] && (made < segment.first || made >= segment.end))
      first = std::max(first, liveness->range(value).last + 1);
    if (first > end)
      continue;
    if (auto it = onHost.find(value); it != onHost.end()) {
      result.push_back({first, end, it->second});
      first = std::max(first, fetched);
    }
    if (first <= end)
      result.push_back({first, end, graph->bytes[value]});
  }
  return result;
}

} // namespace farrier::remat
