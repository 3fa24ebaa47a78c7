#include "farrier/Schedule/ListScheduler.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/SmallVector.h"

#include <algorithm>
#include <limits>

namespace farrier::schedule {

static constexpr double kNever = std::numeric_limits<double>::infinity();
/// Ancestors inspected when asking what an instruction would wait for; deeper ones count as waiting.
static constexpr size_t kStallDepth = 50;
static constexpr size_t kHoistDepth = 200;

namespace {

class Scheduler {
public:
  Scheduler(const Program &program, int computation, const CommModel &model, const Setting &setting)
      : program(program), computation(program.computations[computation]),
        instructions(this->computation.instructions), model(model), setting(setting),
        count(static_cast<int>(instructions.size())) {
    prepare();
    findGathers();
    findPriorities();
    if (setting.heldBytes < INT64_MAX / 8)
      findProfile();
  }

  std::vector<int> run() {
    while (true) {
      advance();
      issueReady();
      advance();
      if (next >= count)
        break;
      int i = next;
      if (isHeldBack(i)) {
        int j = i + 1;
        while (j < count && (emitted[j] || isHeldBack(j) || isView(j)))
          ++j;
        if (j >= count) {
          emit(i);
          continue;
        }
        i = j;
      }
      if (setting.window > 0) {
        if (int best = mostUrgent(i); best >= 0) {
          emitAhead(best);
          continue;
        }
      }
      if (waitsUntil(i) > now + setting.tolerance) {
        int other = findUnblocked(i);
        if (other >= 0) {
          emitAhead(other);
          continue;
        }
      }
      emit(i);
    }
    return std::move(order);
  }

private:
  // --- preparation ---

  void prepare() {
    cost.resize(count);
    users.resize(count);
    waiting.resize(count);
    emitted.assign(count, 0);
    stamp.assign(count, 0);
    finish.assign(count, kNever);
    isGather.assign(count, 0);
    order.reserve(count);
    for (int i = 0; i < count; ++i) {
      const Instruction &instruction = instructions[i];
      waiting[i] = static_cast<int>(instruction.preds.size());
      for (int pred : instruction.preds)
        users[pred].push_back(i);
      if (instruction.role == Role::Compute)
        cost[i] = instruction.cost;
      else if (instruction.body >= 0)
        cost[i] = (instruction.role == Role::While ? static_cast<double>(instruction.trips) : 1) *
                  bodyTime(instruction.body);
      else if (instruction.role == Role::CommSync)
        cost[i] = duration(i);
    }
    remaining.assign(computation.buffers.size(), 0);
    for (const Instruction &instruction : instructions)
      forEachBuffer(instruction, [&](int b) { ++remaining[b]; });
    alive.assign(computation.buffers.size(), 0);
    for (size_t b = 0; b < computation.buffers.size(); ++b) {
      if (computation.buffers[b].liveOut)
        ++remaining[b]; // never the last use
      if (computation.buffers[b].liveIn) {
        alive[b] = 1;
        held += computation.buffers[b].bytes;
      }
    }
    elapsed.resize(count + 1, 0);
    for (int i = 0; i < count; ++i)
      elapsed[i + 1] = elapsed[i] + cost[i];
  }

  /// A buffer that an instruction both reads and writes counts once.
  template <typename Callback> static void forEachBuffer(const Instruction &instruction, Callback callback) {
    for (int b : instruction.writes)
      callback(b);
    for (int b : instruction.reads)
      if (!llvm::is_contained(instruction.writes, b))
        callback(b);
  }

  /// Bytes that running `i` now adds to what is held (negative: frees).
  int64_t growth(int i) const {
    int64_t bytes = 0;
    const Instruction &instruction = instructions[i];
    forEachBuffer(instruction, [&](int b) {
      if (!alive[b] && remaining[b] > 1)
        bytes += computation.buffers[b].bytes;
      else if (alive[b] == 1 && remaining[b] == 1)
        bytes -= computation.buffers[b].bytes;
    });
    return bytes;
  }

  void account(const Instruction &instruction) {
    for (int b : instruction.writes)
      if (!alive[b]) {
        alive[b] = 1;
        held += computation.buffers[b].bytes;
      }
    forEachBuffer(instruction, [&](int b) {
      if (--remaining[b] == 0 && alive[b] == 1) {
        alive[b] = 2;
        held -= computation.buffers[b].bytes;
      }
    });
  }

  double bodyTime(int body) {
    auto [it, inserted] = bodyTimes.try_emplace(body, 0);
    if (inserted) {
      double total = 0;
      for (const Instruction &instruction : program.computations[body].instructions) {
        if (instruction.role == Role::Compute)
          total += instruction.cost;
        else if (instruction.body >= 0)
          total += (instruction.role == Role::While ? static_cast<double>(instruction.trips) : 1) *
                   bodyTime(instruction.body);
      }
      bodyTimes[body] = total;
      return total;
    }
    return it->second;
  }

  double duration(int start) const { return model.cost(program.collectives[instructions[start].collective]); }
  int stream(int start) const { return model.stream(program.collectives[instructions[start].collective]); }
  int64_t resultBytes(int start) const { return program.collectives[instructions[start].collective].bytes; }
  bool isStart(int i) const { return instructions[i].role == Role::CommStart; }
  bool isCopyStart(int i) const { return setting.eagerCopies && instructions[i].role == Role::CopyStart; }
  /// Of a collective or of a copy: where the compute stream may have to wait.
  bool isDone(int i) const {
    return instructions[i].role == Role::CommDone ||
           (setting.eagerCopies && instructions[i].role == Role::CopyDone);
  }
  /// Takes no time and is not part of an asynchronous pair.
  bool isView(int i) const { return instructions[i].role == Role::Free; }
  /// Issued by its own rule or on demand, never because its turn came.
  bool isHeldBack(int i) const { return isDone(i) || (isStart(i) && isGather[i]); }

  enum class Walk { Into, Past, Stop };

  /// Visits what is reached from `from` through `next` (what an instruction needs, or who needs it), each
  /// instruction once. `visit` says whether to go on through it. False when a visit stopped the walk.
  template <typename Next, typename Visit> bool walk(int from, Next next, Visit visit) const {
    ++epoch;
    llvm::SmallVector<int, 32> pending{from};
    while (!pending.empty()) {
      int at = pending.pop_back_val();
      for (int other : next(at)) {
        if (stamp[other] == epoch)
          continue;
        stamp[other] = epoch;
        Walk way = visit(other);
        if (way == Walk::Stop)
          return false;
        if (way == Walk::Into)
          pending.push_back(other);
      }
    }
    return true;
  }

  /// Visits what `from` needs, directly or not.
  template <typename Visit> bool walkUp(int from, Visit visit) const {
    return walk(from, [&](int at) -> const std::vector<int> & { return instructions[at].preds; }, visit);
  }

  /// Position of the first kernel that needs the result of `done`.
  int firstUse(int done) const {
    int best = count;
    size_t seen = 0;
    walk(
        done, [&](int at) -> llvm::ArrayRef<int> { return users[at]; },
        [&](int user) {
          if (isView(user) && ++seen < kHoistDepth)
            return Walk::Into;
          best = std::min(best, user);
          return Walk::Past;
        });
    return best;
  }

  /// Whether the operand of `start` is there from the beginning, or nearly.
  bool operandIsCheap(int start) const {
    double total = 0;
    size_t seen = 0;
    return walkUp(start, [&](int pred) {
      total += cost[pred];
      const Role role = instructions[pred].role;
      const bool waits =
          role == Role::CommDone || role == Role::CommSync || role == Role::While || role == Role::Call;
      return waits || total > setting.hoistCost || ++seen > kHoistDepth ? Walk::Stop : Walk::Into;
    });
  }

  /// Bytes held while each instruction runs in the given order.
  void findProfile() {
    std::vector<int> left = remaining;
    std::vector<char> state = alive;
    int64_t now = held;
    profile.resize(count);
    for (int i = 0; i < count; ++i) {
      for (int b : instructions[i].writes)
        if (!state[b]) {
          state[b] = 1;
          now += computation.buffers[b].bytes;
        }
      profile[i] = now;
      forEachBuffer(instructions[i], [&](int b) {
        if (--left[b] == 0 && state[b] == 1) {
          state[b] = 2;
          now -= computation.buffers[b].bytes;
        }
      });
    }
  }

  void findGathers() {
    for (int i = 0; i < count; ++i) {
      if (!isStart(i))
        continue;
      int use = firstUse(instructions[i].partner);
      const CollectiveKind kind = program.collectives[instructions[i].collective].kind;
      // A reduce-scatter shrinks: issuing it frees memory, there is nothing to hold it back for.
      if (kind != CollectiveKind::ReduceScatter && operandIsCheap(i)) {
        isGather[i] = 1;
        gathers.push_back({use, i});
      } else {
        produced.push_back(i);
        if (elapsed[std::min(use, count)] - elapsed[i] < 1.2 * duration(i))
          critical.push_back(i);
      }
    }
    llvm::sort(gathers);
  }

  /// The way to the end, and the way to the next collective that a kernel feeds.
  void findPriorities() {
    if (setting.window <= 0)
      return;
    tail.assign(count, 0);
    for (int i = count - 1; i >= 0; --i) {
      for (int user : users[i])
        tail[i] = std::max(tail[i], tail[user]);
      tail[i] += isStart(i) ? duration(i) : isCopyStart(i) ? instructions[i].cost : cost[i];
    }
    lead.assign(count, kNever);
    for (int i = count - 1; i >= 0; --i) {
      if (isStart(i) && !isGather[i]) {
        lead[i] = 0;
        continue;
      }
      for (int user : users[i])
        lead[i] = std::min(lead[i], lead[user]);
      lead[i] += cost[i];
    }
  }

  // --- the run ---

  void advance() {
    while (next < count && emitted[next])
      ++next;
  }

  /// Runs `target` after everything it needs.
  void emit(int target) {
    llvm::SmallVector<int, 32> stack{target};
    while (!stack.empty()) {
      int at = stack.back();
      if (emitted[at]) {
        stack.pop_back();
        continue;
      }
      if (waiting[at] > 0) {
        for (int pred : instructions[at].preds)
          if (!emitted[pred])
            stack.push_back(pred);
        continue;
      }
      stack.pop_back();
      place(at);
    }
  }

  void emitAhead(int i) {
    if (setting.aheadWithinRoom)
      if (const int64_t grows = growth(i); grows > 0)
        raiseProfile(i, grows);
    emit(i);
  }

  void place(int i) {
    emitted[i] = 1;
    order.push_back(i);
    const Instruction &instruction = instructions[i];
    account(instruction);
    if (isStart(i)) {
      double &free = streamFree[stream(i)];
      free = std::max(now, free) + duration(i);
      finish[instruction.partner] = free;
      if (isGather[i])
        outstanding += resultBytes(i);
    } else if (isCopyStart(i)) {
      copyFree = std::max(now, copyFree) + instruction.cost;
      finish[instruction.partner] = copyFree;
    } else if (isDone(i)) {
      now = std::max(now, finish[i]);
      if (isGather[instruction.partner])
        outstanding -= resultBytes(instruction.partner);
    } else {
      now += cost[i];
    }
    for (int user : users[i])
      if (--waiting[user] == 0 && ((isStart(user) && !isGather[user]) || isCopyStart(user)))
        ready.push_back(user);
  }

  void issueReady() {
    while (!ready.empty()) { // in the order they became ready
      std::vector<int> batch;
      batch.swap(ready);
      llvm::sort(batch);
      for (int i : batch)
        emit(i);
    }
    while (nextGather < gathers.size()) {
      auto [use, i] = gathers[nextGather];
      if (emitted[i]) {
        ++nextGather;
        continue;
      }
      if (outstanding > 0 && outstanding + resultBytes(i) > setting.prefetchBytes)
        break;
      double behind = streamFree[stream(i)] - now;
      if (behind > setting.backlog || (setting.yield && shouldYield(i, use, behind)))
        break;
      if (!roomFor(i, resultBytes(i)))
        break;
      ++nextGather;
      raiseProfile(i, resultBytes(i));
      emit(i);
    }
    // A produced collective that has finished costs nothing to collect, and frees its operand.
    for (size_t k = 0; k < collectable.size();) {
      int done = collectable[k];
      if (emitted[done] || finish[done] <= now) {
        collectable[k] = collectable.back();
        collectable.pop_back();
        if (!emitted[done])
          emit(done);
      } else {
        ++k;
      }
    }
    for (; scannedForDone < order.size(); ++scannedForDone)
      if (int i = order[scannedForDone]; (isStart(i) && !isGather[i]) || isCopyStart(i))
        collectable.push_back(instructions[i].partner);
  }

  /// Whether running `i` now, which takes `bytes`, keeps the given order's memory, from here to where it ran it, within
  /// the cap.
  bool roomFor(int i, int64_t bytes) const {
    for (int k = next; k < i && !profile.empty(); ++k)
      if (profile[k] + bytes > setting.heldBytes)
        return false;
    return true;
  }

  /// `i` runs now: its bytes are alive where the given order had not run it yet.
  void raiseProfile(int i, int64_t bytes) {
    for (int k = next; k < i && !profile.empty(); ++k)
      profile[k] += bytes;
  }

  /// Whether memory allows to run `i` ahead of its turn.
  bool mayRunAhead(int i) const {
    const int64_t grows = growth(i);
    if (grows <= 0 || (grows <= setting.aheadBytes && held + grows <= setting.heldBytes))
      return true;
    return setting.aheadWithinRoom && !profile.empty() && roomFor(i, grows);
  }

  /// A gather with time to spare lets a produced collective pass that becomes ready before it would finish.
  bool shouldYield(int gather, int use, double behind) {
    double spare = elapsed[std::min(use, count)] - elapsed[std::min(next, count)];
    if (spare <= std::max(behind, 0.0) + 2 * duration(gather))
      return false;
    while (firstCritical < critical.size() && emitted[critical[firstCritical]])
      ++firstCritical;
    for (size_t k = firstCritical; k < critical.size(); ++k) {
      const int i = critical[k];
      if (emitted[i] || stream(i) != stream(gather))
        continue;
      double until = std::max(0.0, elapsed[i] - elapsed[std::min(next, count)]);
      return std::max(behind, 0.0) + 0.7 * duration(gather) > until;
    }
    return false;
  }

  /// The time the last of its collectives finishes; never, where one has not been issued.
  double waitsUntil(int i) const {
    double latest = isDone(i) ? finish[i] : 0;
    size_t seen = 0;
    const bool known = walkUp(i, [&](int pred) {
      if (emitted[pred])
        return Walk::Past;
      if (isStart(pred) || isCopyStart(pred) || ++seen > kStallDepth)
        return Walk::Stop;
      if (!isDone(pred))
        return Walk::Into;
      latest = std::max(latest, finish[pred]); // never, if not issued
      return latest == kNever ? Walk::Stop : Walk::Past;
    });
    return known ? latest : kNever;
  }

  /// Whether all that `i` still needs is free of charge: views, finished collectives. `until` is when it may
  /// run.
  bool canRun(int i, double &until) const {
    until = 0;
    size_t seen = 0;
    return walkUp(i, [&](int pred) {
      if (emitted[pred])
        return Walk::Past;
      ++seen;
      if (isDone(pred) && finish[pred] != kNever) {
        until = std::max(until, finish[pred]);
        return Walk::Past;
      }
      return !isView(pred) || seen > kStallDepth ? Walk::Stop : Walk::Into;
    });
  }

  bool moreUrgent(int a, int b) const {
    if (setting.leadFirst && lead[a] != lead[b])
      return lead[a] < lead[b];
    return tail[a] > tail[b];
  }

  /// Of the next `window` kernels the one to run: of those ready, within the memory held, the one with the
  /// longest way to the end; with none ready, the one that waits least. -1 when the given order should rule:
  /// the memory is nearly used up, or nothing in sight can run.
  int mostUrgent(int from) const {
    if (held > setting.heldBytes - setting.heldBytes / 64)
      return -1;
    int best = -1, looked = 0;
    double bestUntil = kNever;
    for (int j = from; j < count && looked < setting.window; ++j) {
      if (emitted[j] || isHeldBack(j) || isView(j))
        continue;
      ++looked;
      double until;
      if (!canRun(j, until))
        continue;
      until =
          std::max(until, now + setting.tolerance) - setting.tolerance; // all that is ready is equally ready
      if (best >= 0 && (until > bestUntil || (until == bestUntil && !moreUrgent(j, best))))
        continue;
      if (j != from && !mayRunAhead(j))
        continue;
      best = j;
      bestUntil = until;
    }
    return best;
  }

  int findUnblocked(int from) const {
    int looked = 0;
    for (int j = from + 1; j < count && looked < setting.lookAhead; ++j) {
      if (emitted[j] || cost[j] <= 0 || instructions[j].body >= 0)
        continue;
      ++looked;
      if (mayRunAhead(j) && waitsUntil(j) <= now + 2)
        return j;
    }
    return -1;
  }

  const Program &program;
  const Computation &computation;
  const std::vector<Instruction> &instructions;
  const CommModel &model;
  const Setting &setting;
  const int count;

  std::map<int, double> bodyTimes;
  std::vector<double> cost, elapsed, finish, tail, lead;
  std::vector<int> remaining; ///< uses of each buffer still to come
  std::vector<char> alive;    ///< 0 not yet, 1 held, 2 gone
  int64_t held = 0;
  std::vector<int64_t> profile; ///< empty without a cap
  std::vector<llvm::SmallVector<int, 4>> users;
  std::vector<int> waiting, produced, critical;
  std::vector<char> emitted, isGather;
  mutable std::vector<int> stamp; ///< the last walk that came by
  mutable int epoch = 0;
  std::vector<std::pair<int, int>> gathers; ///< (first use, start)

  std::vector<int> order, ready, collectable;
  size_t nextGather = 0, scannedForDone = 0, firstCritical = 0;
  int next = 0;
  double now = 0, streamFree[2] = {0, 0}, copyFree = 0;
  int64_t outstanding = 0;
};

} // namespace

std::vector<int> listSchedule(const Program &program, int computation, const CommModel &model,
                              const Setting &setting) {
  return Scheduler(program, computation, model, setting).run();
}

} // namespace farrier::schedule
