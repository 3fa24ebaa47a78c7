#include "passes/remat/OffloadStraight.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include <algorithm>

using namespace mlir;

namespace farrier::remat {

std::vector<double> computeBefore(const StraightLine &unit, CostModel &costs) {
  std::vector<double> before{0};
  for (Operation *op : unit.getGraph().ops)
    before.push_back(before.back() + computeSeconds(costs, op));
  return before;
}

/// The stages of a block, ascending, each once.
static std::vector<unsigned> stagesOf(const StraightLine &unit, const Segmentation &segmentation) {
  std::vector<unsigned> stages;
  for (const Segment &segment : segmentation.segments)
    if (segment.stage < unit.getGraph().numOps())
      stages.push_back(segment.stage);
  llvm::sort(stages);
  stages.erase(std::unique(stages.begin(), stages.end()), stages.end());
  return stages;
}

void offerSegments(const StraightLine &unit, Segmentation &segmentation, llvm::ArrayRef<double> before,
                   const Machine &machine, const OffloadRules &rules) {
  const BlockGraph &graph = unit.getGraph();
  std::vector<unsigned> stages = stagesOf(unit, segmentation);
  for (Segment &segment : segmentation.segments) {
    if (segment.stage >= graph.numOps())
      continue;
    HostSchedule schedule;
    schedule.bytesPerSecond = machine.hostBytesPerSecond;
    schedule.forward = before[segment.end] - before[segment.first];
    auto next = std::upper_bound(stages.begin(), stages.end(), segment.stage);
    schedule.backward = before[next == stages.end() ? graph.numOps() : *next] - before[segment.stage];
    // Sending goes on beside the next segment, so when a value is made does not matter.
    schedule.ready.assign(segment.values.size(), 0);
    offerHost(segment.problem, std::move(schedule), rules, 0);
  }
}

std::vector<unsigned> fetchStarts(const StraightLine &unit, const Segmentation &segmentation) {
  std::vector<unsigned> stages = stagesOf(unit, segmentation), starts;
  for (const Segment &segment : segmentation.segments) {
    auto own = std::lower_bound(stages.begin(), stages.end(), segment.stage);
    starts.push_back(own == stages.begin() || stages.empty() ? unit.getBoundary() : *std::prev(own));
  }
  return starts;
}

unsigned moveSegments(const StraightLine &unit, const Segmentation &segmentation,
                      const std::vector<const Choice *> &choices, llvm::ArrayRef<double> before,
                      const Machine &machine, int64_t smallBytes) {
  const BlockGraph &graph = unit.getGraph();
  Operation *boundary = graph.ops[unit.getBoundary()];
  std::vector<unsigned> stages = stagesOf(unit, segmentation);
  SmallVector<HostMove> moves;
  double linkFree = 0;
  for (size_t s = 0; s < choices.size(); ++s) {
    const Segment &segment = segmentation.segments[s];
    for (size_t c = 0; choices[s] && c < segment.values.size(); ++c) {
      if (!choices[s]->onHost[c])
        continue;
      unsigned value = segment.values[c], defined = graph.definition[value];
      HostMove move{graph.values[value]};

      // The link takes one value after another. The next segment's end is the latest that the forward part
      // waits for: beyond that it would only hold more and more that is under way.
      linkFree = std::max(linkFree, before[defined + 1]) +
                 static_cast<double>(graph.bytes[value]) / machine.hostBytesPerSecond;
      unsigned lastUse = defined;
      for (unsigned user : graph.users[value])
        if (user <= unit.getBoundary())
          lastUse = std::max(lastUse, user);
      unsigned done = std::lower_bound(before.begin(), before.end(), linkFree) - before.begin();
      unsigned latest = segmentation.segments[std::min(s + 1, choices.size() - 1)].end;
      move.sentBefore = graph.ops[std::max(lastUse + 1, std::min({done, latest, unit.getBoundary() + 1}))];

      // Fetching starts one stage before the first that reads it. Copies of operations and their barriers
      // stand right before the operation that a stage begins with.
      Operation *first = nullptr;
      for (Operation *user : move.value.getUsers()) {
        Operation *here = graph.block.findAncestorOpInBlock(*user);
        if (here && boundary->isBeforeInBlock(here) && (!first || here->isBeforeInBlock(first)))
          first = here;
      }
      if (!first)
        continue;
      auto after =
          llvm::find_if(stages, [&](unsigned stage) { return first->isBeforeInBlock(graph.ops[stage]); });
      size_t own = after - stages.begin();
      if (graph.opId(first) >= 0 || after == stages.end())
        own = own > 0 ? own - 1 : 0;
      move.fetchedBefore = own > 0 ? graph.ops[stages[own - 1]] : first;
      if (!move.fetchedBefore->isBeforeInBlock(first))
        move.fetchedBefore = first;
      // What is read right after the boundary is not waited for before it is fetched.
      if (move.fetchedBefore->isBeforeInBlock(move.sentBefore))
        move.sentBefore = move.fetchedBefore;
      moves.push_back(move);
    }
  }
  if (moves.empty())
    return 0;
  moveToHost(graph.block, boundary, moves, [&](Value value) {
    Operation *op = value.getDefiningOp();
    if (byteSize(value.getType()) < smallBytes || !op || placementOf(op))
      return false;
    // Of what the rewriting added, a barrier's last result: the gradient that it holds back.
    if (graph.opId(op) < 0)
      return isa<stablehlo::OptimizationBarrierOp>(op) && value == op->getResults().back();
    return classify(op) == OpClass::Materialised && !unit.getLiveness().onlyFeedsResults(graph.id(value));
  });
  return moves.size();
}

} // namespace farrier::remat
