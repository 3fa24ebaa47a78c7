#include "passes/remat/SegmentSearch.h"

#include "passes/remat/Offload.h"
#include "passes/remat/OffloadStraight.h"

namespace farrier::remat {

/// Between two vertices of a hull values are mixed, in so many steps of the bytes between them; fewer where the hull has
/// many vertices: with transfers to the host it goes value by value as it is.
static constexpr int mixes = 8, mostMixes = 64;
/// Mixtures of the ends of a hull at the most, of what is no vertex and lies between none two: values of other sizes may
/// fill what is left of a budget better.
static constexpr size_t fineMixes = 192;

/// The hull with what mixes its vertices: a layer's products often cost the same for each byte, and then the hull has
/// nothing between all of them and none.
static std::vector<Choice> denser(const Problem &problem, std::vector<Choice> hull, bool fine) {
  std::vector<Choice> result = hull;
  auto mix = [&](const Choice &upper, const Choice &lower, int steps) {
    int64_t more = upper.savedBytes - lower.savedBytes;
    for (int step = steps - 1; step > 0; --step)
      result.push_back(problem.refine(lower, upper, lower.savedBytes + more * step / steps));
  };
  for (size_t v = 1; v < hull.size(); ++v)
    mix(hull[v - 1], hull[v], std::min(mixes, mostMixes / static_cast<int>(hull.size())));
  if (fine && hull.size() > 2)
    llvm::append_range(result, problem.mixtures(hull.back(), hull.front(), hull.front().savedBytes, fineMixes));
  return unbeaten(std::move(result));
}

/// What may be chosen of a segment, the cheapest first.
static std::vector<Choice> optionsOf(const Problem &problem, bool fine, bool byFlops) {
  if (!byFlops)
    return denser(problem, frontierWithHost(problem), fine);
  const Problem priced = pricedByFlops(problem);
  std::vector<Choice> options = denser(priced, frontierWithHost(priced), fine);
  for (Choice &choice : options)
    problem.price(choice);
  return options;
}

Evaluation::Evaluation(const StraightLine &unit, const Segmentation &segmentation, bool fine, bool byFlops)
    : segmentation(segmentation), fine(fine) {
  const BlockGraph &graph = unit.getGraph();
  const std::vector<Segment> &segments = segmentation.segments;
  std::vector<int64_t> profile = unit.baseProfile(segmentation);
  std::vector<unsigned> fetched = fetchStarts(unit, segmentation);
  std::vector<std::vector<std::vector<Lifetime>>> lifetimes(segments.size());
  starts = {0, unit.getBoundary(), graph.numOps()};
  std::vector<std::pair<unsigned, unsigned>> span(segments.size(), {graph.numOps(), 0});
  for (unsigned i = 0; i < segments.size(); ++i) {
    const Segment &segment = segments[i];
    // Without a stage nothing of the segment is computed again: there is nothing to decide.
    bool decidable = segment.needed() && segment.stage < graph.numOps();
    frontiers.push_back(decidable ? optionsOf(segment.problem, fine, byFlops) : std::vector<Choice>());
    lifetimes[i].push_back(unit.lifetimes(segmentation, i, nullptr, fetched[i]));
    for (const Choice &choice : frontiers[i])
      lifetimes[i].push_back(unit.lifetimes(segmentation, i, &choice, fetched[i]));
    for (const std::vector<Lifetime> &option : lifetimes[i])
      for (const Lifetime &lifetime : option) {
        span[i].first = std::min(span[i].first, lifetime.first);
        span[i].second = std::max(span[i].second, lifetime.last + 1);
      }
    starts.push_back(segment.first);
    if (segment.stage < graph.numOps())
      starts.push_back(segment.stage);
    if (decidable)
      starts.push_back(std::min(span[i].second, graph.numOps()));
  }
  // An operation is of the segment whose stage begins last before it, or that is made there. What others begin or end to
  // have there begins an interval, too.
  std::vector<std::pair<unsigned, size_t>> begins;
  for (size_t i = 0; i < segments.size(); ++i)
    for (unsigned begin : {segments[i].first, segments[i].stage})
      begins.push_back({begin, i});
  llvm::sort(begins);
  auto ownerOf = [&](unsigned op) {
    auto next = std::upper_bound(begins.begin(), begins.end(), std::make_pair(op, segments.size()));
    return next == begins.begin() ? 0 : std::prev(next)->second;
  };
  for (size_t i = 0; i < segments.size(); ++i)
    for (const std::vector<Lifetime> &option : lifetimes[i])
      for (const Lifetime &lifetime : option)
        for (unsigned at : {lifetime.first, lifetime.last + 1})
          if (at < graph.numOps() && ownerOf(at) != i)
            starts.push_back(at);
  llvm::sort(starts);
  starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
  for (size_t k = 0; k + 1 < starts.size(); ++k) {
    base.push_back(*std::max_element(profile.begin() + starts[k], profile.begin() + starts[k + 1]));
    owner.push_back(ownerOf(starts[k]));
  }
  auto intervalOf = [&](unsigned op) {
    return static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), op) - starts.begin()) - 1;
  };
  rows.resize(segments.size());
  for (size_t i = 0; i < segments.size(); ++i) {
    bool empty = span[i].first >= span[i].second;
    size_t first = empty ? 0 : intervalOf(span[i].first);
    size_t end = empty ? 0 : std::min(intervalOf(span[i].second - 1) + 1, base.size());
    for (const std::vector<Lifetime> &option : lifetimes[i])
      rows[i].push_back(rowOf(option, profile, i, first, end));
  }
}

Evaluation::Row Evaluation::rowOf(const std::vector<Lifetime> &lifetimes, const std::vector<int64_t> &profile,
                                  size_t segment, size_t first, size_t end) const {
  std::vector<std::pair<unsigned, int64_t>> changes;
  for (const Lifetime &lifetime : lifetimes) {
    changes.push_back({lifetime.first, lifetime.bytes});
    changes.push_back({lifetime.last + 1, -lifetime.bytes});
  }
  llvm::sort(changes);
  Row row;
  row.first = first;
  int64_t live = 0;
  size_t next = 0;
  for (size_t k = first; k < end; ++k) {
    unsigned op = starts[k];
    while (next < changes.size() && changes[next].first <= op)
      live += changes[next++].second;
    if (next == changes.size() || changes[next].first >= starts[k + 1]) {
      row.bytes.push_back(live);
      continue;
    }
    int64_t peak = 0, most = 0;
    for (; op < starts[k + 1]; ++op) {
      while (next < changes.size() && changes[next].first <= op)
        live += changes[next++].second;
      peak = std::max(peak, profile[op] + live);
      most = std::max(most, live);
    }
    row.bytes.push_back(owner[k] == segment ? std::max<int64_t>(0, peak - base[k]) : most);
  }
  return row;
}

/// Exchanges between two segments: one gives up less and the other more, for less together. Where few segments have many
/// options each, the most bytes per second first leaves some of the budget.
static void exchange(const Evaluation &evaluation, int64_t budget, llvm::function_ref<double(size_t, int)> price,
                     Solution &solution, std::vector<int64_t> &memory) {
  size_t count = evaluation.frontiers.size();
  auto last = [&](size_t segment) { return static_cast<int>(evaluation.frontiers[segment].size()); };
  constexpr double worthIt = 1e-6;
  bool better = true;
  for (int round = 0; better && round < 8; ++round) {
    better = false;
    for (size_t i = 0; i < count; ++i)
      for (size_t j = 0; j < count; ++j) {
        if (i == j)
          continue;
        int nowI = solution.options[i], nowJ = solution.options[j], bestI = nowI, bestJ = nowJ;
        double best = price(i, nowI) + price(j, nowJ);
        // The options of a segment become dearer: i gives up more, and j as little as that allows.
        for (int a = nowI + 1; a < last(i) && price(i, a) < best; ++a) {
          evaluation.change(memory, i, nowI, a);
          for (int b = untouched; b < nowJ && price(i, a) + price(j, b) < best * (1 - worthIt); ++b) {
            evaluation.change(memory, j, nowJ, b);
            if (llvm::all_of(memory, [&](int64_t bytes) { return bytes <= budget; })) {
              best = price(i, a) + price(j, b);
              bestI = a;
              bestJ = b;
            }
            evaluation.change(memory, j, b, nowJ);
          }
          evaluation.change(memory, i, a, nowI);
        }
        if (bestI == nowI)
          continue;
        evaluation.change(memory, i, nowI, bestI);
        evaluation.change(memory, j, nowJ, bestJ);
        solution.options[i] = bestI;
        solution.options[j] = bestJ;
        better = true;
      }
  }
}

/// Moves segments along their frontiers, the most bytes over budget per second first, until everything fits;
/// then takes back what is not needed.
static Solution solve(const Evaluation &evaluation, int64_t budget, bool byFlops) {
  size_t count = evaluation.frontiers.size();
  Solution solution;
  solution.options.assign(count, untouched);
  auto price = [&](size_t segment, int option) {
    return priceOf(evaluation.flops(segment, option), evaluation.seconds(segment, option), byFlops);
  };
  std::vector<int64_t> memory = evaluation.profile(solution.options);
  // Of each segment the best move. What others do can only make a move worth less, but for memory that they take
  // while they compute again, so that the best of what was best is looked at again before it is made, and no other.
  struct Move {
    double ratio = 0;
    int option = untouched;
  };
  auto bestOf = [&](size_t segment) {
    Move best;
    int now = solution.options[segment];
    for (int option = now + 1; option < static_cast<int>(evaluation.frontiers[segment].size()); ++option) {
      int64_t gain = evaluation.gain(memory, segment, now, option, budget);
      double ratio = static_cast<double>(gain) / (price(segment, option) - price(segment, now) + 1e-9);
      if (gain > 0 && ratio > best.ratio * (1 + 1e-9))
        best = {ratio, option};
    }
    return best;
  };
  std::vector<Move> moves(count);
  bool stale = true; // whether moves that were worth nothing may be worth something by now
  auto over = [&] { return llvm::any_of(memory, [&](int64_t bytes) { return bytes > budget; }); };
  while (over()) {
    auto best = std::max_element(moves.begin(), moves.end(),
                                 [](const Move &a, const Move &b) { return a.ratio < b.ratio; });
    if (best == moves.end() || best->option == untouched) {
      if (!stale)
        break;
      for (size_t segment = 0; segment < count; ++segment)
        moves[segment] = bestOf(segment);
      stale = false;
      continue;
    }
    size_t segment = best - moves.begin();
    Move again = bestOf(segment);
    if (again.option != best->option || again.ratio < best->ratio * (1 - 1e-9)) {
      *best = again;
      if (again.option == untouched || llvm::any_of(moves, [&](const Move &other) { return other.ratio > again.ratio; }))
        continue;
    }
    evaluation.change(memory, segment, solution.options[segment], again.option);
    solution.options[segment] = again.option;
    *best = bestOf(segment);
    stale = true;
  }
  solution.fits = !over();
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
        if (!evaluation.allows(memory, segment, now, option, budget))
          continue;
        evaluation.change(memory, segment, now, option);
        solution.options[segment] = option;
        break;
      }
    if (evaluation.fine)
      exchange(evaluation, budget, price, solution, memory);
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
