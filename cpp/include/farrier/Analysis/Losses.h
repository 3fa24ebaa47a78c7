//===- Losses.h - what is computed for the loss alone ----------------------===//
//
// XLA:GPU makes kernels of one shape that read the same value one kernel. What a loss takes from a normaliser by token is such
// a kernel with what the gradient takes from it: all that leads to it, such as the logits of the labels, is computed before the
// gradient. Where no gradient reads what a loss does, as with squared errors, the loss may be computed last.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_LOSSES_H
#define FARRIER_ANALYSIS_LOSSES_H

#include "farrier/Analysis/Graph.h"

namespace farrier {

/// Moves what such kernels compute for the loss, and what is made of that, to where all that it reads is there: with `all` what
/// any kernel computes for it. `place` has the place of each operation in another order.
void runLossesEarly(const BlockGraph &graph, const RootSets &roots, std::vector<unsigned> &place, bool all);

} // namespace farrier

#endif // FARRIER_ANALYSIS_LOSSES_H
