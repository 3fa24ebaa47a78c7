//===- Problem.h - what to keep and what to recompute, as one minimum cut ---===//
//
// A forward part (a loop body, or a straight-line segment) makes values that a backward part reads.
// Each of them is either saved from the one to the other, or recomputed in the backward part from
// other values that are themselves available there. Over all prices of memory this is a family of
// minimum s-t cuts:
//
//   available a[v], recomputed y[o] for the defining operation o of v, all 0/1
//   a[v] = 1              where the backward part reads v
//   y[o] <= a[u]          for each operand u of o
//   minimise  sum_o seconds[o] y[o]  +  sum_v (price * bytes[v] + saveSeconds[v]) a[v] (1 - y[o(v)])
//
// What is saved may wait in host memory instead: a third variable h[v] between a[v] and y[o(v)], so that of
// two arcs in series, device memory's price and the transfer's, a cut pays the smaller.
//
// Every term joins at most two variables and is submodular, so the relaxation is integral and each
// price is one maximum flow (Picard, "Maximal closure of a graph", 1976, for the closure form;
// Eisner and Severance, "Mathematical techniques for efficient record segmentation", 1976, for
// walking the prices exactly).
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_REMAT_PROBLEM_H
#define FARRIER_PASSES_REMAT_PROBLEM_H

#include "mlir/IR/Value.h"
#include "llvm/ADT/SmallVector.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace farrier::remat {

/// A value of one forward part that may be saved for, or recomputed in, the backward part.
struct Candidate {
  /// The value in the forward part; null in problems read from text.
  mlir::Value value;
  /// Names the value in plans: survives unrelated edits of the program.
  std::string key;
  /// Bytes per device of one instance (one iteration of a loop).
  int64_t bytes = 0;
  /// Seconds and FLOPs of recomputing the defining operation once, operands being available. An
  /// operation with several results counts them on the first candidate of its group.
  double seconds = 0, flops = 0;
  /// Seconds that saving one instance costs (written in the forward, read in the backward part).
  double saveSeconds = 0;
  /// Seconds more that one instance costs if it waits in host memory: sent there and fetched again. Negative:
  /// it may not.
  double hostSeconds = -1;
  /// Bytes of device memory that an instance in host memory still takes, on average over the instances: what
  /// is under way.
  int64_t hostBytes = 0;
  /// Saved, it waits in host memory and nowhere else: the user asked for it.
  bool onlyHost = false;
  /// Indices of the candidates that the defining operation reads. Only lower indices.
  llvm::SmallVector<unsigned> operands;
  /// Results of one operation share a group >= 0 and are recomputed together; -1: alone.
  int group = -1;
  /// The backward part reads it.
  bool needed = false;
  /// False for loop carries, arguments, and results of anything stateful, effectful or unknown.
  bool recomputable = true;
  /// Recomputed, it fuses into its readers and takes no memory of its own.
  bool fuses = false;
};

/// The price of work where FLOPs count before time, in units near seconds: a millisecond weighs as much as a
/// GFLOP.
inline double priceByFlops(double flops, double seconds) { return flops / 1e15 + 1e-3 * seconds; }
/// What a plan is chosen by: that price, or seconds.
inline double priceOf(double flops, double seconds, bool byFlops) {
  return byFlops ? priceByFlops(flops, seconds) : seconds;
}
/// The seconds of such a price.
inline double secondsOfPrice(double price, double flops) { return (price - flops / 1e15) * 1e3; }

/// One way to make everything needed available. Sums are over all instances.
struct Choice {
  std::vector<bool> saved, recomputed; ///< by candidate
  std::vector<bool> onHost;            ///< by candidate: of the saved ones, those that wait in host memory
  int64_t savedBytes = 0;              ///< in device memory
  int64_t hostBytes = 0;               ///< in host memory
  double seconds = 0;                  ///< of recomputing, of saving and of transfers that nothing hides
  double flops = 0;
  int64_t transientBytes = 0; ///< recomputed values with a buffer, in one instance
};

struct Problem {
  std::vector<Candidate> candidates;
  /// How often the part runs between saving and reading: the trip count of a loop, else 1.
  int64_t instances = 1;
  /// Seconds per instance that transfers to and from the host add, given what waits there: less than the sum
  /// of `hostSeconds` where compute hides some of them. Null: the sum.
  std::function<double(const std::vector<bool> &onHost)> exposed;

  /// The vertices of the lower convex hull of (savedBytes, seconds) over all legal choices, the
  /// cheapest in seconds first, then ever fewer bytes. Exact for seconds rounded to 2^-40 s (about a
  /// picosecond), deterministic; never empty unless the problem is infeasible (a needed value that
  /// can neither be saved nor recomputed does not exist: everything can be saved).
  std::vector<Choice> frontier() const;

  /// The cheapest choice with at most `savedBytesBudget` that mixes two choices: the components of
  /// their difference do not touch one another, so any subset of them is legal, and the best subset
  /// is found exactly. Returns `lower` if nothing else fits. `lower` has the fewer bytes.
  Choice refine(const Choice &lower, const Choice &upper, int64_t savedBytesBudget) const;

  /// Of all such mixtures within `savedBytesBudget` those that none beats in both bytes and seconds, the cheapest first; of
  /// more than `most` an even spread.
  std::vector<Choice> mixtures(const Choice &lower, const Choice &upper, int64_t savedBytesBudget, size_t most) const;

  /// The choice that saves the wanted values and recomputes what else is needed: wanted values that
  /// nothing reads are not saved, values that cannot be recomputed are saved although not wanted.
  /// What is saved waits in host memory where `onHost` (empty: nowhere) says so.
  Choice complete(const std::vector<bool> &wanted, const std::vector<bool> &onHost = {}) const;

  /// Fills in the sums of a choice.
  void price(Choice &choice) const;

  /// Whether every needed value is available and every recomputation has its operands.
  bool legal(const Choice &choice) const;
};

/// Puts `priceByFlops` for the seconds of transfers.
void priceTransfersByFlops(Problem &problem);

/// The problem with `priceByFlops` for seconds everywhere.
Problem pricedByFlops(Problem problem);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_PROBLEM_H
