//===- Parameters.h - copies that XLA:GPU makes of a program's parameters --===//
//
// A parameter is memory that is there anyway, but for two copies:
//
//  - of a donated one that a kernel reads whose result the value that takes its place does not depend on. XLA inserts
//    copies before it schedules, so nothing tells it that the kernel runs first: a weight whose gradient comes from
//    another product than the one that reads it in the backward part, as in f32 training without a cast;
//  - of a convolution's filter that does not lie as cuDNN reads it, output features first and input features last.
//
// Both are made at the start, where all they need is there, and held until their last reader.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_PARAMETERS_H
#define FARRIER_ANALYSIS_PARAMETERS_H

#include "farrier/Analysis/Graph.h"

namespace farrier {

/// Bytes of copies of parameters that live while each operation of the block runs; none but in a function's body.
std::vector<int64_t> parameterCopies(const BlockGraph &graph, const RootSets &roots);

} // namespace farrier

#endif // FARRIER_ANALYSIS_PARAMETERS_H
