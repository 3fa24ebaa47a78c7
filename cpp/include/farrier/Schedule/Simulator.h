//===- Simulator.h - a scheduled program's time under a model -------------===//
//
// One compute stream in program order, one or two communication streams in the order collectives are issued,
// one copy engine. A start costs nothing; a done waits until its collective has finished, and that wait is
// exposed communication. Loops run their trip count with the streams carried over. What the model leaves out:
// collectives slowing kernels down by using SMs and memory bandwidth, and launch gaps.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_SCHEDULE_SIMULATOR_H
#define FARRIER_SCHEDULE_SIMULATOR_H

#include "farrier/Schedule/CommModel.h"

namespace farrier::schedule {

/// Where one collective's time goes over a step, microseconds, summed over loop iterations.
struct Wait {
  int computation = 0;
  int instruction = 0; ///< the start, or the synchronous collective
  double total = 0;
  double exposed = 0;
  int64_t runs = 0;
  /// Issued, but its stream was busy with others; the last of those, by its place, where there were any.
  double queued = 0;
  int behindComputation = -1;
  int behindInstruction = -1;
};

struct Simulation {
  double time = 0;    ///< the step
  double compute = 0; ///< sum of kernels
  double comm = 0;    ///< sum of collectives
  double exposed = 0; ///< the compute stream waiting for collectives
  double copyExposed = 0;
  double criticalPath = 0;
  /// No order of the same instructions is faster: the largest of compute, communication per stream, critical
  /// path.
  double bound = 0;
  int64_t collectives = 0;
  int64_t synchronous = 0;
  std::vector<Wait> waits; ///< in program order
};

/// Simulates one step.
Simulation simulate(const Program &program, const CommModel &model);

/// Only the step's time; what a search needs.
double stepTime(const Program &program, const CommModel &model);

/// Microseconds of kernels in the collective's own computation that neither lead to it nor need it: what it
/// could hide behind at best.
double hideable(const Program &program, const CommModel &model, int computation, int instruction);

} // namespace farrier::schedule

#endif // FARRIER_SCHEDULE_SIMULATOR_H
