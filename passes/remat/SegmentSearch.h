//===- SegmentSearch.h - which choice each segment of a block takes ---------===//

#ifndef FARRIER_PASSES_REMAT_SEGMENTSEARCH_H
#define FARRIER_PASSES_REMAT_SEGMENTSEARCH_H

#include "passes/remat/StraightLine.h"

#include <algorithm>

namespace farrier::remat {

/// The option of a segment that stays as the program has it.
constexpr int untouched = -1;

/// The memory of one segmentation of one block under any choice of options, evaluated over the intervals
/// between the positions where something changes.
class Evaluation {
public:
  Evaluation(const StraightLine &unit, const Segmentation &segmentation);

  int64_t heldBytes(size_t segment, int option) const {
    if (option == untouched)
      return segmentation.segments[segment].untouchedBytes;
    return frontiers[segment][option].savedBytes;
  }
  double seconds(size_t segment, int option) const {
    return option == untouched ? 0 : frontiers[segment][option].seconds;
  }
  double flops(size_t segment, int option) const {
    return option == untouched ? 0 : frontiers[segment][option].flops;
  }

  std::vector<int64_t> profile(const std::vector<int> &options) const {
    std::vector<int64_t> memory;
    for (const Interval &interval : intervals)
      memory.push_back(interval.base);
    for (size_t i = 0; i < options.size(); ++i)
      for (size_t k = 0; k < intervals.size(); ++k)
        memory[k] += bytesDuring(k, i, options[i]);
    return memory;
  }
  /// Changes `memory`, a profile, by what it means for one segment to go from one option to another.
  void change(std::vector<int64_t> &memory, size_t segment, int from, int to) const {
    for (size_t k = 0; k < intervals.size(); ++k)
      memory[k] += bytesDuring(k, segment, to) - bytesDuring(k, segment, from);
  }
  /// Bytes over the budget, summed over the intervals, after a `change`: a search asks for many and makes few.
  int64_t excessAfter(const std::vector<int64_t> &memory, size_t segment, int from, int to,
                      int64_t budget) const {
    int64_t sum = 0;
    for (size_t k = 0; k < intervals.size(); ++k)
      sum += std::max<int64_t>(0, memory[k] + bytesDuring(k, segment, to) - bytesDuring(k, segment, from) -
                                      budget);
    return sum;
  }
  int64_t peak(const std::vector<int> &options) const {
    std::vector<int64_t> memory = profile(options);
    return std::max(forwardPeak, memory.empty() ? 0 : *std::max_element(memory.begin(), memory.end()));
  }

  const Segmentation &segmentation;
  std::vector<std::vector<Choice>> frontiers;

private:
  struct Interval {
    unsigned start;
    int64_t base;
  };
  /// What one segment has in memory during an interval.
  int64_t bytesDuring(size_t interval, size_t i, int option) const {
    const Segment &segment = segmentation.segments[i];
    unsigned start = intervals[interval].start;
    if (!segment.needed() || start > lastRead[i])
      return 0;
    int64_t bytes = heldBytes(i, option);
    if (option != untouched && start >= segment.stage)
      bytes += frontiers[i][option].transientBytes;
    if (option != untouched && start >= fetched[i])
      bytes += frontiers[i][option].hostBytes;
    return bytes;
  }

  std::vector<Interval> intervals;
  std::vector<unsigned> lastRead, fetched;
  int64_t forwardPeak = 0;
};

struct Solution {
  std::vector<int> options;
  int64_t peak = 0;
  double seconds = 0, flops = 0;
  bool fits = false;
};

/// Moves segments along their frontiers, the most bytes over budget per second first, until everything fits, and
/// takes back what is not needed. Where nothing fits, the solution for the least budget that something fits, near
/// enough.
Solution solveOrLeast(const Evaluation &evaluation, int64_t budget, bool byFlops);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_SEGMENTSEARCH_H
