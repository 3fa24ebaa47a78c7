#include "passes/remat/Problem.h"

#include "passes/remat/MinCut.h"

#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/EquivalenceClasses.h"

#include <algorithm>
#include <cmath>

namespace farrier::remat {

namespace {

int64_t quanta(double seconds) { return std::llround(std::ldexp(std::max(seconds, 0.0), 40)); }

/// Which candidates are results of the same operation; singletons get a number of their own.
std::vector<unsigned> operationOf(const std::vector<Candidate> &candidates, unsigned &count) {
  std::vector<unsigned> operation(candidates.size());
  llvm::DenseMap<int, unsigned> numberOf;
  count = 0;
  for (unsigned v = 0; v < candidates.size(); ++v) {
    if (candidates[v].group < 0) {
      operation[v] = count++;
      continue;
    }
    auto [it, isNew] = numberOf.try_emplace(candidates[v].group, count);
    count += isNew;
    operation[v] = it->second;
  }
  return operation;
}

} // namespace

void Problem::price(Choice &choice) const {
  double seconds = 0, flops = 0, transfers = 0;
  int64_t saved = 0, host = 0;
  choice.transientBytes = 0;
  choice.onHost.resize(candidates.size(), false);
  for (unsigned v = 0; v < candidates.size(); ++v) {
    const Candidate &candidate = candidates[v];
    if (choice.saved[v]) {
      saved += choice.onHost[v] ? candidate.hostBytes : candidate.bytes;
      seconds += candidate.saveSeconds;
      if (choice.onHost[v]) {
        host += candidate.bytes;
        transfers += candidate.hostSeconds;
      }
    }
    if (choice.recomputed[v]) {
      seconds += candidate.seconds;
      flops += candidate.flops;
      if (!candidate.fuses)
        choice.transientBytes += candidate.bytes;
    }
  }
  if (host > 0)
    seconds += exposed ? exposed(choice.onHost) : transfers;
  choice.savedBytes = saved * instances;
  choice.hostBytes = host * instances;
  choice.seconds = seconds * instances;
  choice.flops = flops * instances;
}

void priceTransfersByFlops(Problem &problem) {
  for (Candidate &candidate : problem.candidates)
    if (candidate.hostSeconds >= 0)
      candidate.hostSeconds = priceByFlops(0, candidate.hostSeconds);
  if (problem.exposed)
    problem.exposed = [seconds = std::move(problem.exposed)](const std::vector<bool> &onHost) {
      return priceByFlops(0, seconds(onHost));
    };
}

Problem pricedByFlops(Problem problem) {
  for (Candidate &candidate : problem.candidates) {
    candidate.seconds = priceByFlops(candidate.flops, candidate.seconds);
    candidate.saveSeconds = priceByFlops(0, candidate.saveSeconds);
  }
  priceTransfersByFlops(problem);
  return problem;
}

bool Problem::legal(const Choice &choice) const {
  auto available = [&](unsigned v) { return choice.saved[v] || choice.recomputed[v]; };
  for (unsigned v = 0; v < candidates.size(); ++v) {
    if (candidates[v].needed && !available(v))
      return false;
    if (v < choice.onHost.size() && choice.onHost[v] && (!choice.saved[v] || candidates[v].hostSeconds < 0))
      return false;
    if (!choice.recomputed[v])
      continue;
    if (!candidates[v].recomputable || !llvm::all_of(candidates[v].operands, available))
      return false;
  }
  return true;
}

Choice Problem::complete(const std::vector<bool> &wanted, const std::vector<bool> &onHost) const {
  Choice choice;
  choice.saved.assign(candidates.size(), false);
  choice.onHost.assign(candidates.size(), false);
  choice.recomputed.assign(candidates.size(), false);
  std::vector<bool> read(candidates.size(), false);
  llvm::DenseMap<int, llvm::SmallVector<unsigned, 2>> groups;
  for (unsigned v = 0; v < candidates.size(); ++v) {
    read[v] = candidates[v].needed;
    if (candidates[v].group >= 0)
      groups[candidates[v].group].push_back(v);
  }
  // Operands have lower indices, so one walk from the back sees every reader before the value.
  for (unsigned v = candidates.size(); v-- > 0;) {
    if (!read[v] || choice.recomputed[v])
      continue;
    if (wanted[v] || !candidates[v].recomputable) {
      choice.saved[v] = true;
      choice.onHost[v] = candidates[v].hostSeconds >= 0 && v < onHost.size() && onHost[v];
      continue;
    }
    llvm::SmallVector<unsigned, 2> results{v};
    if (candidates[v].group >= 0)
      results = groups[candidates[v].group];
    for (unsigned r : results) {
      choice.recomputed[r] = true;
      choice.saved[r] = false; // what the recomputation yields anyway
      for (unsigned u : candidates[r].operands)
        read[u] = true;
    }
  }
  price(choice);
  return choice;
}

std::vector<Choice> Problem::frontier() const {
  ParametricCut cut;
  unsigned operations;
  std::vector<unsigned> operation = operationOf(candidates, operations);
  std::vector<unsigned> available(candidates.size());
  for (unsigned &a : available)
    a = cut.addVariable();
  std::vector<int> recomputed(operations, -1), sent(candidates.size(), -1);
  for (unsigned v = 0; v < candidates.size(); ++v) {
    const Candidate &candidate = candidates[v];
    TwoCost save{quanta(candidate.saveSeconds), candidate.bytes};
    TwoCost send{quanta(candidate.saveSeconds + candidate.hostSeconds), candidate.hostBytes};
    if (candidate.needed)
      cut.require(available[v]);
    // The arcs from `available` to where it is paid for: device memory's and, in series, the transfer's.
    unsigned from = available[v];
    if (candidate.hostSeconds >= 0) {
      sent[v] = static_cast<int>(cut.addVariable());
      if (candidate.onlyHost)
        cut.imply(available[v], sent[v]);
      else
        cut.payUnless(available[v], sent[v], save);
      from = sent[v];
      save = send;
    }
    if (!candidate.recomputable) {
      cut.pay(from, save);
      continue;
    }
    int &y = recomputed[operation[v]];
    if (y < 0)
      y = cut.addVariable();
    cut.payUnless(from, y, save);
    cut.pay(y, {quanta(candidate.seconds), 0});
    for (unsigned u : candidate.operands)
      cut.imply(y, available[u]);
  }
  std::vector<Choice> result;
  for (const ParametricCut::Vertex &vertex : cut.hull()) {
    Choice choice;
    choice.saved.resize(candidates.size());
    choice.recomputed.resize(candidates.size());
    choice.onHost.resize(candidates.size());
    for (unsigned v = 0; v < candidates.size(); ++v) {
      int y = recomputed[operation[v]];
      choice.recomputed[v] = candidates[v].recomputable && vertex.ones[y];
      choice.saved[v] = vertex.ones[available[v]] && !choice.recomputed[v];
      choice.onHost[v] = choice.saved[v] && sent[v] >= 0 && vertex.ones[sent[v]];
    }
    price(choice);
    result.push_back(std::move(choice));
  }
  return result;
}

std::vector<Choice> Problem::mixtures(const Choice &lower, const Choice &upper, int64_t savedBytesBudget, size_t most) const {
  // Components of what differs, joined by results of one operation, and by reading what only one of the two choices
  // makes available. What both do, saved or computed again, its readers find whichever is taken.
  auto state = [](const Choice &choice, unsigned v) {
    return choice.onHost[v] ? 3 : choice.saved[v] ? 1 : choice.recomputed[v] ? 2 : 0;
  };
  unsigned operations;
  std::vector<unsigned> operation = operationOf(candidates, operations);
  llvm::EquivalenceClasses<unsigned> classes;
  std::vector<int> firstOf(operations, -1);
  auto differs = [&](unsigned v) { return state(lower, v) != state(upper, v); };
  for (unsigned v = 0; v < candidates.size(); ++v) {
    if (!differs(v))
      continue;
    classes.insert(v);
    int &first = firstOf[operation[v]];
    if (first < 0)
      first = static_cast<int>(v);
    classes.unionSets(v, first);
  }
  for (unsigned v = 0; v < candidates.size(); ++v)
    if (firstOf[operation[v]] >= 0)
      for (unsigned u : candidates[v].operands)
        if (differs(u) && (state(lower, u) == 0 || state(upper, u) == 0))
          classes.unionSets(firstOf[operation[v]], u);

  struct Component {
    std::vector<unsigned> members;
    int64_t bytes = 0, time = 0; // of upper less lower
  };
  std::vector<Component> components;
  llvm::DenseMap<unsigned, unsigned> numberOf;
  auto cost = [&](const Choice &choice, unsigned v) {
    TwoCost sum;
    if (choice.onHost[v])
      sum += {quanta(candidates[v].saveSeconds + candidates[v].hostSeconds), candidates[v].hostBytes};
    else if (choice.saved[v])
      sum += {quanta(candidates[v].saveSeconds), candidates[v].bytes};
    if (choice.recomputed[v])
      sum += {quanta(candidates[v].seconds), 0};
    return sum;
  };
  for (unsigned v = 0; v < candidates.size(); ++v) {
    if (!differs(v))
      continue;
    auto [it, isNew] = numberOf.try_emplace(classes.getLeaderValue(v), components.size());
    if (isNew)
      components.emplace_back();
    Component &component = components[it->second];
    component.members.push_back(v);
    TwoCost up = cost(upper, v), low = cost(lower, v);
    component.bytes += (up.bytes - low.bytes) * instances;
    component.time += up.time - low.time;
  }
  // Those that give memory back first, so that a partial sum over the budget is never recovered. Of equal ones the upper
  // choice, which keeps more, is taken for the first. Where all mixtures are asked for, that is the last in the program:
  // what is made early is read back late, when less is alive beside what computing it again takes.
  if (most > 1)
    std::reverse(components.begin(), components.end());
  std::stable_sort(components.begin(), components.end(),
                   [](const Component &a, const Component &b) { return a.bytes < b.bytes; });

  // Pareto states over subsets; equal components (layers) collapse, which keeps them few.
  struct State {
    int64_t bytes, time;
    int parent;
    int component;
  };
  constexpr size_t kMostStates = 1 << 14;
  int64_t room = savedBytesBudget - lower.savedBytes;
  std::vector<State> all{{0, 0, -1, -1}};
  std::vector<int> front{0};
  for (unsigned c = 0; c < components.size(); ++c) {
    std::vector<int> next = front;
    for (int s : front) {
      State taken{all[s].bytes + components[c].bytes, all[s].time + components[c].time, s,
                  static_cast<int>(c)};
      if (taken.bytes > std::max<int64_t>(room, 0))
        continue;
      next.push_back(static_cast<int>(all.size()));
      all.push_back(taken);
    }
    std::stable_sort(next.begin(), next.end(), [&](int a, int b) {
      return std::pair(all[a].bytes, all[a].time) < std::pair(all[b].bytes, all[b].time);
    });
    front.clear();
    for (int s : next)
      if (front.empty() || all[s].time < all[front.back()].time)
        front.push_back(s);
    if (front.size() > kMostStates) {
      // Too many distinct sums to stay exact: keep an even spread, the best one included.
      std::vector<int> kept;
      size_t stride = front.size() / kMostStates + 1;
      for (size_t i = front.size(); i-- > 0;)
        if ((front.size() - 1 - i) % stride == 0)
          kept.push_back(front[i]);
      front.assign(kept.rbegin(), kept.rend());
    }
  }
  // The best first, and of the others an even spread.
  std::vector<Choice> result;
  size_t stride = (front.size() + most - 1) / most;
  for (size_t i = 0; i < front.size(); i += stride) {
    Choice choice = lower;
    for (int s = front[front.size() - 1 - i]; s >= 0 && all[s].component >= 0; s = all[s].parent)
      for (unsigned v : components[all[s].component].members) {
        choice.saved[v] = upper.saved[v];
        choice.recomputed[v] = upper.recomputed[v];
        choice.onHost[v] = upper.onHost[v];
      }
    price(choice);
    result.push_back(std::move(choice));
  }
  return result;
}

Choice Problem::refine(const Choice &lower, const Choice &upper, int64_t savedBytesBudget) const {
  return mixtures(lower, upper, savedBytesBudget, 1).front();
}

} // namespace farrier::remat
