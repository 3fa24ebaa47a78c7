//===- Graph.h - a block as an indexed graph, and the buffers behind it ----===//
//
// XLA:GPU fuses elementwise and shape operations into their readers, so most SSA values never exist in
// memory. A *root* is a value that does: the result of a materialised operation, or of a virtual one that
// joins several big roots into fewer bytes (cheaper to store than what it was made from). Every other value
// stands for its roots: to read it is to read them.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_GRAPH_H
#define FARRIER_ANALYSIS_GRAPH_H

#include "farrier/Analysis/Sharding.h"

#include "mlir/IR/Block.h"
#include "mlir/IR/Operation.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/SmallVector.h"

#include <functional>
#include <vector>

namespace farrier {

/// Buffers smaller than this do not decide whether a step fits: statistics, norms, counters.
constexpr int64_t defaultSmallBytes = 4 << 20;

/// Bytes of a value on one device.
using SizeFn = std::function<int64_t(mlir::Value)>;

/// One block with integer ids: arguments first, then results in program order.
class BlockGraph {
public:
  explicit BlockGraph(mlir::Block &block, SizeFn size = deviceSize);

  using Ids = llvm::SmallVector<unsigned, 4>;

  mlir::Block &block;
  std::vector<mlir::Operation *> ops;
  std::vector<mlir::Value> values;
  std::vector<int> definition; ///< op id, -1 for arguments
  std::vector<int64_t> bytes;  ///< of each value
  std::vector<Ids> inputs;     ///< of each op: operands and what its regions capture, in order, repeated
  std::vector<Ids> outputs;    ///< of each op
  std::vector<Ids> users;      ///< op ids of each value, ascending, once each
  std::vector<bool> isVirtual; ///< of each op
  unsigned numArguments = 0;

  unsigned numOps() const { return ops.size(); }
  unsigned numValues() const { return values.size(); }
  unsigned id(mlir::Value value) const { return valueIds.lookup(value); }
  bool contains(mlir::Value value) const { return valueIds.contains(value); }
  int opId(mlir::Operation *op) const {
    auto it = opIds.find(op);
    return it == opIds.end() ? -1 : static_cast<int>(it->second);
  }
  bool isTerminator(unsigned op) const { return op + 1 == ops.size(); }

private:
  llvm::DenseMap<mlir::Value, unsigned> valueIds;
  llvm::DenseMap<mlir::Operation *, unsigned> opIds;
};

/// The roots of every value of a block.
class RootSets {
public:
  struct Options {
    int64_t smallBytes = defaultSmallBytes;
    /// Also roots: virtual values that a product or a custom call reads, which XLA:GPU stores because it
    /// does not fuse producers into those kernels. True for estimates, false for planning, where such a
    /// value is always worth computing again.
    bool materialiseKernelOperands = false;
    /// Where two orders meet, what stands first behind a product is stored in the other (Layouts.h).
    bool reorderOnce = false;
    /// Block arguments that are buffers of their own (a loop body's carries), rather than memory that is
    /// there anyway (parameters).
    std::function<bool(unsigned)> argumentIsRoot;
  };

  RootSets(const BlockGraph &graph, const Options &options);
  explicit RootSets(const BlockGraph &graph) : RootSets(graph, Options()) {}

  llvm::ArrayRef<unsigned> roots(unsigned value) const { return sets[value]; }
  bool isRoot(unsigned value) const { return sets[value].size() == 1 && sets[value][0] == value; }
  /// Operands that the product `op` reads from copies of its own, in another order (Layouts.h). Only with
  /// `materialiseKernelOperands`.
  llvm::ArrayRef<unsigned> copiesFor(unsigned op) const {
    auto it = copies.find(op);
    return it == copies.end() ? llvm::ArrayRef<unsigned>() : it->second;
  }

  /// Whether one kernel writes the value in all orders that products want, for the first of them (Layouts.h).
  bool copiesTogether(unsigned value) const { return together.contains(value); }

  /// Whether the kernel that gives the value keeps a row of what it reads in a tile, and writes nothing over that (Softmax.h).
  bool keepsRows(unsigned value) const { return tiled.contains(value); }

private:
  std::vector<BlockGraph::Ids> sets; ///< sorted
  llvm::DenseMap<unsigned, BlockGraph::Ids> copies;
  llvm::DenseSet<unsigned> together, tiled;
};

} // namespace farrier

#endif // FARRIER_ANALYSIS_GRAPH_H
