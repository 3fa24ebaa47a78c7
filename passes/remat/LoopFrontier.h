//===- LoopFrontier.h - what a pair of loops may save, from most to least ---===//

#ifndef FARRIER_PASSES_REMAT_LOOPFRONTIER_H
#define FARRIER_PASSES_REMAT_LOOPFRONTIER_H

#include "passes/remat/Loops.h"
#include "passes/remat/Problem.h"

#include <map>
#include <vector>

namespace farrier::remat {

/// Seconds of a decision, or its price by FLOPs, over all `trips` iterations.
double seconds(const LoopDecision &decision, int64_t trips);

/// The choices of a problem, the cheapest first, then ever fewer bytes, and those that mix them: found once, for any budget.
class LoopFrontier {
public:
  /// `choices` are a frontier of `problem`, or of one with other prices: mixtures have those of `problem`. Its values are not
  /// looked at: the program may be gone.
  LoopFrontier(Problem problem, std::vector<Choice> choices);

  const std::vector<Choice> &getChoices() const { return choices; }

  /// Whether a choice sends something to the host.
  bool sends() const;

  /// The cheapest decision found whose stacks take at most `allowed` bytes; that of the fewest if none does.
  LoopDecision decide(int64_t allowed);

private:
  /// Choices between the one of this number and the one before it, and between both ends: a loop is split between any two.
  const std::vector<Choice> &between(size_t lower);

  Problem problem;
  std::vector<Choice> choices;
  std::map<size_t, std::vector<Choice>> mixes; ///< by the number of the lower choice
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_LOOPFRONTIER_H
