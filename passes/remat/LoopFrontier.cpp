#include "passes/remat/LoopFrontier.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>

namespace farrier::remat {

/// Choices that mix two neighbours of a frontier, and its two ends. Where iterations are few, so many of the one neighbour and
/// the rest of the other leave much of the bytes.
static constexpr int neighbourMixes = 8, endMixes = 32;

/// A split costs a second copy of both loops: only for a gain worth having.
static constexpr double worthSplitting = 0.98;

double seconds(const LoopDecision &decision, int64_t trips) {
  double sum = 0;
  for (const LoopPart &part : decision)
    sum += part.choice.seconds * part.iterations / trips;
  return sum;
}

/// These two and `steps` - 1 choices that mix them.
static void addMixes(const Problem &problem, const Choice &lower, const Choice &upper, int steps,
                     std::vector<Choice> &result) {
  result.push_back(lower);
  for (int step = 1; step < steps; ++step)
    result.push_back(problem.refine(
        lower, upper, lower.savedBytes + (upper.savedBytes - lower.savedBytes) * step / steps));
  result.push_back(upper);
}

LoopFrontier::LoopFrontier(Problem problem, std::vector<Choice> choices)
    : problem(std::move(problem)), choices(std::move(choices)) {}

bool LoopFrontier::sends() const {
  return llvm::any_of(choices, [](const Choice &choice) { return choice.hostBytes > 0; });
}

const std::vector<Choice> &LoopFrontier::between(size_t lower) {
  auto [entry, fresh] = mixes.try_emplace(lower);
  if (fresh) {
    addMixes(problem, choices[lower], choices[lower - 1], neighbourMixes, entry->second);
    addMixes(problem, choices.back(), choices.front(), endMixes, entry->second);
  }
  return entry->second;
}

LoopDecision LoopFrontier::decide(int64_t allowed) {
  if (choices.empty())
    return {};
  int64_t trips = problem.instances;
  auto fits = llvm::find_if(choices, [&](const Choice &choice) { return choice.savedBytes <= allowed; });
  if (fits == choices.end())
    return {{trips, choices.back()}};
  if (fits == choices.begin())
    return {{trips, *fits}};
  const Choice &lower = *fits, &upper = *std::prev(fits);
  LoopDecision best{{trips, lower}};
  LoopDecision mixed{{trips, problem.refine(lower, upper, allowed)}};
  if (seconds(mixed, trips) < seconds(best, trips))
    best = std::move(mixed);
  struct Split {
    const Choice *fewer, *more;
    double seconds;
  };
  auto split = [&](const Choice &fewer, const Choice &more) {
    int64_t count = iterationsOfUpper(fewer, more, trips, allowed);
    double sum = 0;
    if (count < trips)
      sum += fewer.seconds * (trips - count) / trips;
    if (count > 0)
      sum += more.seconds * count / trips;
    return Split{&fewer, &more, sum};
  };
  Split cheapest = split(lower, upper);
  const std::vector<Choice> &mixes = between(fits - choices.begin());
  for (const Choice &fewer : mixes)
    for (const Choice &more : mixes) {
      if (fewer.savedBytes > allowed || more.savedBytes <= allowed)
        continue;
      Split other = split(fewer, more);
      if (other.seconds < cheapest.seconds)
        cheapest = other;
    }
  if (cheapest.seconds < worthSplitting * seconds(best, trips))
    return splitIterations(*cheapest.fewer, *cheapest.more, trips, allowed);
  return best;
}

} // namespace farrier::remat
