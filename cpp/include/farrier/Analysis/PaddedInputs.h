//===- PaddedInputs.h - what convolutions read that cuDNN does not pad -----===//
//
// cuDNN pads both ends of a dimension alike. Where a convolution wants otherwise (stride 2 over an even size, causal
// convolutions), XLA:GPU writes a padded copy of its input, which every convolution that pads it so reads, the gradient
// of the filter included: the copy is there from the first to the last of them. So does a transposed convolution, with zeros
// between the elements; its filter's gradient reads that in three dimensions only.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_PADDEDINPUTS_H
#define FARRIER_ANALYSIS_PADDEDINPUTS_H

#include "farrier/Analysis/Graph.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include <vector>

namespace farrier {

/// A padded copy.
struct PaddedInput {
  unsigned value;                       ///< what is padded
  int64_t bytes;                        ///< of the copy, beside those of the value where nothing else stores that
  llvm::SmallVector<unsigned, 4> users; ///< operations that read the copy, ascending
  bool isStored;                        ///< whether the value is a buffer, too, rather than computed as it is padded
  bool isTurned = false;                ///< whether the last of the operations reads a copy of the copy, in another order
};

/// The padded copies of a block, in the order in which they are made.
std::vector<PaddedInput> paddedInputs(const BlockGraph &graph, const RootSets &roots);

/// Whether the convolution is transposed and no gradient: cuDNN, which gives the gradient of a strided convolution's input with
/// the filter reversed, then reads the input with zeros between its elements.
bool spreadsInput(stablehlo::ConvolutionOp convolution);

/// Whether the convolution gives the gradient of the filter of such a one over pictures: it reads the input transposed, without
/// zeros. What is computed elementwise is computed there, as it is where an input is spread.
bool turnsInput(stablehlo::ConvolutionOp convolution);

} // namespace farrier

#endif // FARRIER_ANALYSIS_PADDEDINPUTS_H
