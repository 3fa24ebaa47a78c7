#include "passes/remat/SegmentSearch.h"

#include "passes/remat/Offload.h"
#include "passes/remat/OffloadStraight.h"

namespace farrier::remat {

Evaluation::Evaluation(const StraightLine &unit, const Segmentation &segmentation)
    : segmentation(segmentation), fetched(fetchStarts(unit, segmentation)) {
  const BlockGraph &graph = unit.getGraph();
  std::vector<int64_t> base = unit.baseProfile();
  // A segment's residuals are there from its forward operations to the last backward read.
  for (const Segment &segment : segmentation.segments) {
    // Without a stage nothing of the segment is computed again: there is nothing to decide.
    bool decidable = segment.needed() && segment.stage < graph.numOps();
    frontiers.push_back(decidable ? frontierWithHost(segment.problem) : std::vector<Choice>());
    unsigned last = segment.stage;
    for (unsigned value : segment.values) {
      for (unsigned user : graph.users[value])
        if (!graph.isTerminator(user))
          last = std::max(last, user);
    }
    lastRead.push_back(last);
  }
  // Intervals of the backward part start where a stage starts or a segment's last read ends.
  std::vector<unsigned> starts{unit.getBoundary()};
  for (size_t i = 0; i < segmentation.segments.size(); ++i)
    if (segmentation.segments[i].stage < graph.numOps()) {
      starts.push_back(segmentation.segments[i].stage);
      if (lastRead[i] + 1 < graph.numOps())
        starts.push_back(lastRead[i] + 1);
    }
  llvm::sort(starts);
  starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
  for (size_t i = 0; i < starts.size(); ++i) {
    unsigned end = i + 1 < starts.size() ? starts[i + 1] : graph.numOps();
    int64_t peak = 0;
    for (unsigned op = starts[i]; op < end; ++op)
      peak = std::max(peak, base[op]);
    intervals.push_back({starts[i], peak});
  }
  // The forward part holds what it has made so far; its own peak is what remains without the backward.
  forwardPeak = 0;
  for (unsigned op = 0; op < unit.getBoundary(); ++op)
    forwardPeak = std::max(forwardPeak, base[op]);
}

static int64_t excess(const std::vector<int64_t> &memory, int64_t budget) {
  int64_t sum = 0;
  for (int64_t bytes : memory)
    sum += std::max<int64_t>(0, bytes - budget);
  return sum;
}

/// Moves segments along their frontiers, the most bytes over budget per second first, until everything fits;
/// then takes back what is not needed.
static Solution solve(const Evaluation &evaluation, int64_t budget, bool byFlops) {
  size_t count = evaluation.frontiers.size();
  Solution solution;
  solution.options.assign(count, untouched);
  auto price = [&](size_t segment, int option) {
    return byFlops ? priceByFlops(evaluation.flops(segment, option), evaluation.seconds(segment, option))
                   : evaluation.seconds(segment, option);
  };
  std::vector<int64_t> memory = evaluation.profile(solution.options);
  int64_t over = excess(memory, budget);
  while (over > 0) {
    double bestRatio = 0;
    size_t bestSegment = 0;
    int bestOption = untouched;
    int64_t bestOver = over;
    for (size_t segment = 0; segment < count; ++segment) {
      int now = solution.options[segment];
      for (int option = now + 1; option < static_cast<int>(evaluation.frontiers[segment].size()); ++option) {
        int64_t after = evaluation.excessAfter(memory, segment, now, option, budget);
        double ratio =
            static_cast<double>(over - after) / (price(segment, option) - price(segment, now) + 1e-9);
        if (after < over && ratio > bestRatio * (1 + 1e-9)) {
          bestRatio = ratio;
          bestSegment = segment;
          bestOption = option;
          bestOver = after;
        }
      }
    }
    if (bestOption == untouched)
      break;
    evaluation.change(memory, bestSegment, solution.options[bestSegment], bestOption);
    solution.options[bestSegment] = bestOption;
    over = bestOver;
  }
  solution.fits = over == 0;
  if (solution.fits) {
    // Repair: the dearest decisions first, each as far back as the budget allows.
    std::vector<size_t> order(count);
    for (size_t i = 0; i < count; ++i)
      order[i] = i;
    llvm::stable_sort(order, [&](size_t a, size_t b) {
      return price(a, solution.options[a]) > price(b, solution.options[b]);
    });
    for (size_t segment : order)
      for (int option = untouched; option < solution.options[segment]; ++option) {
        int now = solution.options[segment];
        if (evaluation.excessAfter(memory, segment, now, option, budget) != 0)
          continue;
        evaluation.change(memory, segment, now, option);
        solution.options[segment] = option;
        break;
      }
  }
  for (size_t segment = 0; segment < count; ++segment) {
    solution.seconds += evaluation.seconds(segment, solution.options[segment]);
    solution.flops += evaluation.flops(segment, solution.options[segment]);
  }
  solution.peak = evaluation.peak(solution.options);
  return solution;
}

/// As `solve`; where nothing fits, the solution for the least budget that something fits, near enough. The
/// greedy walk minimises what is over the budget at each position, summed, and so can end with a higher peak
/// for a tighter budget.
Solution solveOrLeast(const Evaluation &evaluation, int64_t budget, bool byFlops) {
  constexpr double near = 0.01;
  Solution best = solve(evaluation, budget, byFlops);
  if (best.fits)
    return best;
  int64_t low = budget, high = best.peak;
  // Down to neighbours at the least: between two there is no middle.
  while (high - low > std::max<int64_t>(1, static_cast<int64_t>(near * static_cast<double>(high)))) {
    int64_t middle = low + (high - low) / 2;
    Solution next = solve(evaluation, middle, byFlops);
    if (next.peak < best.peak) {
      best = next;
      best.fits = false;
    }
    if (next.fits)
      high = std::min(middle, next.peak);
    else
      low = middle;
  }
  return best;
}

} // namespace farrier::remat
