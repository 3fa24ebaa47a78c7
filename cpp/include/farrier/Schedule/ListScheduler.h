//===- ListScheduler.h - our own order for a scheduled program ------------===//
//
// A list scheduler over the dependence graph, for the entry and for loop bodies. It keeps the given order as
// its priority, because that order's memory is known, and departs from it for communication:
//
//  * a collective of a produced value (a gradient's reduce-scatter) is issued the moment its operand exists;
//  * a gather of what exists from the start (a weight shard) is issued ahead, in order of first use, as far
//    as the memory budget and the backlog on its stream allow, and yields to a produced collective about to
//    become ready;
//  * where the next instruction would wait for a collective, a later one that would not is run first;
//  * with a window, kernels that lead to a collective go before kernels that can hide it (a weight's gradient
//    waits until an activation's all-reduce is under way).
//
// One setting does not fit all programs, so `optimize` tries a fixed list of settings on every computation
// and keeps what is fastest under all parameter sets within the memory cap. The trade: a few dozen
// simulations a computation, milliseconds against a compile of seconds, for results that no single setting
// reaches.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_SCHEDULE_LISTSCHEDULER_H
#define FARRIER_SCHEDULE_LISTSCHEDULER_H

#include "farrier/Schedule/Simulator.h"

namespace farrier::schedule {

/// How one computation is scheduled.
struct Setting {
  /// Bytes of gathered values that may be in flight or waiting for their first use.
  int64_t prefetchBytes = 400'000'000;
  /// Microseconds of issued communication beyond which gathers are held back.
  double backlog = 400;
  /// Instructions looked at to find one that does not wait.
  int lookAhead = 60;
  /// A gather whose operand takes more compute than this (microseconds) counts as produced.
  double hoistCost = 150;
  /// Gathers yield to a produced collective that becomes ready within their own duration.
  bool yield = true;
  /// Bytes an instruction run ahead of its turn may allocate.
  int64_t aheadBytes = 64'000'000;
  /// More than that where the given order, up to its turn, leaves room within `heldBytes`: the zeros that a loop's
  /// stacks start with, beside the step's first gather.
  bool aheadWithinRoom = false;
  /// Waits shorter than this (microseconds) are not worth departing from the given order.
  double tolerance = 8;
  /// Above 0: among this many next kernels, the one with the longest way to the end (collectives included)
  /// runs first, so that what feeds a collective goes before what can hide it. 0: the given order is the
  /// priority.
  int window = 0;
  /// With a window: nearest to the collective it feeds first, so that one chain of two gets its collective
  /// under way instead of both at the same time; else longest way to the end first.
  bool leadFirst = true;
  /// Copies are issued as soon as their operand exists and waited for like collectives; else they keep their
  /// place.
  bool eagerCopies = true;
  /// Bytes held beyond which nothing that allocates is run ahead of its turn.
  int64_t heldBytes = INT64_MAX;
};

/// Memory of a schedule may grow over the given order's by this much.
struct MemoryCap {
  int64_t bytes = INT64_MAX; ///< for the entry, everything it calls included
};

/// An order for one computation of `program` (positions in the given order). Deterministic.
std::vector<int> listSchedule(const Program &program, int computation, const CommModel &model,
                              const Setting &setting);

struct OptimizeOptions {
  /// Parameter sets that an order must not lose under. The first is scheduled with.
  std::vector<CommModel> models;
  MemoryCap cap;
  /// Relative gain below which the given order is kept.
  double minimumGain = 1e-4;
  /// Instructions visited over all settings; ends the search the same way on every machine.
  int64_t work = 600'000;
};

struct OptimizeResult {
  Orders orders;                     ///< empty where the given order stays
  std::vector<double> before, after; ///< step time by model, microseconds
  int64_t peakBefore = 0, peakAfter = 0;
  int64_t tried = 0, overCap = 0;
};

/// Reorders the entry and the loop bodies that communicate.
OptimizeResult optimize(const Program &program, const OptimizeOptions &options);

} // namespace farrier::schedule

#endif // FARRIER_SCHEDULE_LISTSCHEDULER_H
