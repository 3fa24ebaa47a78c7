//===- Pooling.h - gradients of the maxima of windows ----------------------===//
//
// XLA:GPU makes two kernels of a `select_and_scatter`: one finds again where each window's maximum is, and writes an array of
// indices for each dimension; the other adds the gradients there, onto zeros. Both take memory that no value of the
// program stands for. (Read off compiled networks, max pooling of 2 and 3 by 2, bf16 and f32, deviceless, H100.)
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_POOLING_H
#define FARRIER_ANALYSIS_POOLING_H

#include "farrier/Analysis/Graph.h"

#include <optional>

namespace farrier {

/// What the gradient of maxima takes beside its operands and its result.
struct PoolGradient {
  unsigned op;
  int64_t found;   ///< bytes while the maxima are found: they themselves, and where they are
  int64_t indices; ///< bytes while gradients are added: where the maxima are
  /// The first operation that reads zeros of the result's type, as rectifiers do: they are stored, from then on until they
  /// are copied for the result.
  std::optional<unsigned> zerosFor;
  int64_t zeros = 0; ///< bytes of them
};

std::vector<PoolGradient> poolGradients(const BlockGraph &graph);

/// Whether the operation is maxima of windows that overlap, of a value that the gradient reads, too, and that takes
/// arithmetic: it is stored rather than computed again for each window, unless a GPU's cache holds it.
bool storesWindowed(const BlockGraph &graph, unsigned op);

} // namespace farrier

#endif // FARRIER_ANALYSIS_POOLING_H
