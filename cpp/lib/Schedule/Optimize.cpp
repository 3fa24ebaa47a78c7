#include "farrier/Schedule/ListScheduler.h"

#include <algorithm>

namespace farrier::schedule {

/// Looks far ahead, and lets what it finds take all the room that there is.
static constexpr int kWithinRoom = -1;

/// Bytes of gathered values ahead of their use.
static constexpr int64_t kPrefetch[] = {400'000'000, 120'000'000, 1'500'000'000};

/// The settings tried, most promising first: a small budget of work still sees the best ones.
static std::vector<Setting> settings() {
  std::vector<Setting> result;
  for (int window : {0, 12, 40, 150})
    for (bool yield : {true, false})
      for (double backlog : {400.0, 1500.0, 100.0})
        for (int look : {60, 300, kWithinRoom, 0})
          for (int64_t bytes : kPrefetch) {
            Setting setting;
            if (window > 0 && (look == 0 || !yield))
              continue;
            setting.window = window;
            setting.yield = yield;
            setting.backlog = backlog;
            setting.lookAhead = look == kWithinRoom ? 300 : look;
            setting.prefetchBytes = bytes;
            if (look == 300)
              setting.aheadBytes = 256'000'000;
            setting.aheadWithinRoom = look == kWithinRoom;
            for (bool eager : {true, false})
              for (bool lead : {true, false}) {
                setting.eagerCopies = eager;
                setting.leadFirst = lead;
                if (window > 0 || lead)
                  result.push_back(setting);
              }
          }
  return result;
}

/// Whether `setting` can give another order than one before it: not all programs have what it is about.
class Relevance {
public:
  Relevance(const Program &program, const Computation &computation) {
    for (const Instruction &instruction : computation.instructions) {
      copies |= instruction.role == Role::CopyStart;
      if (instruction.role == Role::CommStart)
        bytes += program.collectives[instruction.collective].bytes;
    }
  }

  bool operator()(const Setting &setting) const {
    if (!setting.eagerCopies && !copies)
      return false;
    // All that could be gathered ahead fits into a limit tried before.
    return setting.prefetchBytes == kPrefetch[0] ||
           bytes > (setting.prefetchBytes > kPrefetch[0] ? kPrefetch[0] : setting.prefetchBytes);
  }

private:
  bool copies = false;
  int64_t bytes = 0;
};

static constexpr int kRounds = 2;

/// `second` refers to positions in the order `first` gave (empty: the given one).
static std::vector<int> compose(const std::vector<int> &first, const std::vector<int> &second) {
  if (first.empty())
    return second;
  std::vector<int> result;
  result.reserve(second.size());
  for (int k : second)
    result.push_back(first[k]);
  return result;
}

static bool communicates(const Computation &computation) {
  return std::any_of(computation.instructions.begin(), computation.instructions.end(),
                     [](const Instruction &i) { return i.role == Role::CommStart; });
}

/// Callees before callers: a loop's time must be known when the code around it is ordered.
static void calleesFirst(const Program &program, int at, std::vector<char> &seen, std::vector<int> &result) {
  if (seen[at])
    return;
  seen[at] = 1;
  for (const Instruction &instruction : program.computations[at].instructions)
    if (instruction.body >= 0)
      calleesFirst(program, instruction.body, seen, result);
  result.push_back(at);
}

OptimizeResult optimize(const Program &program, const OptimizeOptions &options) {
  OptimizeResult result;
  result.orders.resize(program.computations.size());
  for (const CommModel &model : options.models)
    result.before.push_back(stepTime(program, model));
  result.after = result.before;
  const std::vector<int64_t> peaks = peakBytes(program);
  result.peakBefore = result.peakAfter = peaks[program.entry];
  // What a computation may hold: its own worst instant plus the room that the cap leaves over the whole
  // program's.
  const int64_t room = options.cap.bytes == INT64_MAX
                           ? INT64_MAX / 4
                           : std::max<int64_t>(0, options.cap.bytes - result.peakBefore);

  std::vector<int> computations;
  std::vector<char> seen(program.computations.size(), 0);
  calleesFirst(program, program.entry, seen, computations);

  // What is judged: the mean of the times relative to the given order's, none above its own best so far.
  auto score = [&](const std::vector<double> &times) {
    double sum = 0;
    for (size_t m = 0; m < times.size(); ++m)
      sum += times[m] / std::max(result.before[m], 1e-9);
    return sum / static_cast<double>(times.size());
  };

  computations.erase(
      std::remove_if(computations.begin(), computations.end(),
                     [&](int c) { return !communicates(program.computations[c]); }),
      computations.end());
  int64_t size = 0;
  for (int c : computations)
    size += static_cast<int64_t>(program.computations[c].instructions.size());
  // All computations have as many tries: what a loop's body takes must not be missing in the code around it.
  const int64_t tries = std::max<int64_t>(1, options.work / kRounds / std::max<int64_t>(size, 1));

  Program best = program;
  // A second round starts from the first's order: what was moved changes what else is worth moving.
  for (int round = 0; round < kRounds; ++round)
    for (int c : computations) {
      const Program given = best;
      Program candidate = best;
      const std::vector<int> before = result.orders[c];
      std::vector<std::vector<int>> tried;
      double bestScore = score(result.after);
      int64_t left = tries;
      const Relevance isRelevant(program, program.computations[c]);
      for (Setting setting : settings()) {
        if (!isRelevant(setting))
          continue;
        setting.heldBytes = peaks[c] + room;
        for (const CommModel &model : options.models) {
          if (left-- <= 0)
            break;
          std::vector<int> order = listSchedule(given, c, model, setting);
          if (std::find(tried.begin(), tried.end(), order) != tried.end())
            continue;
          tried.push_back(order);
          ++result.tried;
          if (!isValidOrder(given.computations[c], order))
            continue; // unreachable by construction; the schedule must never depend on that
          candidate.computations[c] = reorder(given.computations[c], order);
          std::vector<double> times;
          bool worse = false;
          for (size_t m = 0; m < options.models.size(); ++m) {
            times.push_back(stepTime(candidate, options.models[m]));
            worse |= times[m] > result.before[m];
          }
          if (worse || score(times) > bestScore * (1 - options.minimumGain))
            continue;
          int64_t peak = peakBytes(candidate)[program.entry];
          if (peak > options.cap.bytes && peak > result.peakBefore) {
            ++result.overCap;
            continue;
          }
          bestScore = score(times);
          result.after = times;
          result.peakAfter = peak;
          result.orders[c] = compose(before, order);
          best.computations[c] = candidate.computations[c];
        }
      }
    }
  return result;
}

} // namespace farrier::schedule
