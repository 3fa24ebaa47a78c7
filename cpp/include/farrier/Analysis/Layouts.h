//===- Layouts.h - in which order values lie in memory ----------------------===//
//
// XLA:GPU gives a product's result the order of its dimensions and passes that order on through elementwise
// operations; a transpose only renames dimensions. Where a reader cannot do with the order, a kernel writes the
// value anew. Two things follow for memory:
//
//  - a product reads a transposed operand from a copy of its own: the value itself, if it is elementwise, is
//    computed inside the kernel that transposes, once for each such product, and never stored (the
//    probabilities of attention written out, which the forward and the backward product want in two orders);
//  - where two values of different orders meet in an elementwise operation, the younger one is stored in the
//    order of the older one.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_LAYOUTS_H
#define FARRIER_ANALYSIS_LAYOUTS_H

#include "farrier/Analysis/Graph.h"

namespace farrier {

class Layouts {
public:
  /// `once`: where orders meet, what stands first behind a product is reordered, instead of what is computed from it.
  Layouts(const BlockGraph &graph, bool once);

  /// Whether the product `op` can read its operand (0 or 1) from where it lies: batch dimensions come first,
  /// and both what is contracted and what is not lie together, in the order in which the product names them.
  bool serves(unsigned op, unsigned operand) const;

  /// In which order of dimensions, the outermost first, a copy is made of an operand that does not serve. Products that
  /// want one order share the copy.
  llvm::SmallVector<unsigned> wanted(unsigned op, unsigned operand) const;

  /// Whether the value is stored because an elementwise operation needs it in another order.
  bool reordered(unsigned value) const { return changesOrder[value]; }

  /// Whether the value lies in the order of its dimensions, those of extent 1 included.
  bool inDefault(unsigned value) const { return llvm::is_sorted(orders[value]); }

  /// Whether XLA has no tiles for a transpose that moves the innermost dimension of the value, so that it is a loop like
  /// any other and becomes one with loops that read the same.
  bool isTransposedUntiled(unsigned value) const;

private:
  using Order = llvm::SmallVector<unsigned, 6>;
  void propagate(unsigned op);
  void join(unsigned op);
  void reorderEarlier(unsigned value);

  const BlockGraph &graph;
  std::vector<Order> orders;      ///< of each value: dimensions, the outermost first; empty: any
  std::vector<bool> changesOrder; ///< of each value
  std::vector<bool> isGiven;      ///< of each value, whether its order is an argument's
  std::vector<bool> keepsPlace;   ///< of each value that changes its order, whether it is for an argument's
};

} // namespace farrier

#endif // FARRIER_ANALYSIS_LAYOUTS_H
