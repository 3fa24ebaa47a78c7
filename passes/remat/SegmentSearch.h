//===- SegmentSearch.h - which choice each segment of a block takes ---------===//

#ifndef FARRIER_PASSES_REMAT_SEGMENTSEARCH_H
#define FARRIER_PASSES_REMAT_SEGMENTSEARCH_H

#include "passes/remat/StraightLine.h"

#include <algorithm>

namespace farrier::remat {

/// The option of a segment that stays as the program has it.
constexpr int untouched = -1;

/// The memory of one segmentation of one block under any choice of options, evaluated over intervals. An interval is of
/// one segment, which has in it what it adds to the interval's peak; what the others have stays the same in it, whatever
/// is chosen for them.
class Evaluation {
public:
  /// With `fine`, options beside the hulls of the segments too, and exchanges between two segments. The hulls are of bytes
  /// and seconds, or of bytes and `priceByFlops`.
  Evaluation(const StraightLine &unit, const Segmentation &segmentation, bool fine, bool byFlops);

  double seconds(size_t segment, int option) const {
    return option == untouched ? 0 : frontiers[segment][option].seconds;
  }
  double flops(size_t segment, int option) const {
    return option == untouched ? 0 : frontiers[segment][option].flops;
  }

  std::vector<int64_t> profile(const std::vector<int> &options) const {
    std::vector<int64_t> memory = base;
    for (size_t i = 0; i < options.size(); ++i) {
      const Row &row = rows[i][options[i] + 1];
      for (size_t k = 0; k < row.bytes.size(); ++k)
        memory[row.first + k] += row.bytes[k];
    }
    return memory;
  }
  /// Changes `memory`, a profile, by what it means for one segment to go from one option to another.
  void change(std::vector<int64_t> &memory, size_t segment, int from, int to) const {
    const Row &row = rows[segment][from + 1], &other = rows[segment][to + 1];
    for (size_t k = 0; k < row.bytes.size(); ++k)
      memory[row.first + k] += other.bytes[k] - row.bytes[k];
  }
  /// How many bytes fewer are over the budget, summed over the intervals, after a `change`: a search asks for many
  /// and makes few.
  int64_t gain(const std::vector<int64_t> &memory, size_t segment, int from, int to, int64_t budget) const {
    const Row &row = rows[segment][from + 1], &other = rows[segment][to + 1];
    int64_t sum = 0;
    for (size_t k = 0; k < row.bytes.size(); ++k) {
      int64_t now = memory[row.first + k] - budget, after = now + other.bytes[k] - row.bytes[k];
      sum += std::max<int64_t>(0, now) - std::max<int64_t>(0, after);
    }
    return sum;
  }
  /// Whether no interval is over the budget, or more so, after a `change`.
  bool allows(const std::vector<int64_t> &memory, size_t segment, int from, int to, int64_t budget) const {
    const Row &row = rows[segment][from + 1], &other = rows[segment][to + 1];
    for (size_t k = 0; k < row.bytes.size(); ++k)
      if (int64_t more = other.bytes[k] - row.bytes[k]; more > 0 && memory[row.first + k] + more > budget)
        return false;
    return true;
  }
  int64_t peak(const std::vector<int> &options) const {
    std::vector<int64_t> memory = profile(options);
    return memory.empty() ? 0 : *std::max_element(memory.begin(), memory.end());
  }

  const Segmentation &segmentation;
  const bool fine;
  std::vector<std::vector<Choice>> frontiers;

private:
  /// Bytes during the intervals from `first` on; nothing before and after.
  struct Row {
    size_t first = 0;
    std::vector<int64_t> bytes;
  };
  Row rowOf(const std::vector<Lifetime> &lifetimes, const std::vector<int64_t> &profile, size_t segment,
            size_t first, size_t end) const;

  std::vector<unsigned> starts; ///< of the intervals, and where the last ends
  std::vector<int64_t> base;    ///< of each interval, whatever is chosen
  std::vector<size_t> owner;    ///< of each interval, the segment it is of
  /// Of each segment and option, `untouched` first; all of a segment over the same intervals.
  std::vector<std::vector<Row>> rows;
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
