//===- Offload.h - residuals that wait in host memory ----------------------===//
//
// A residual may wait in the host's memory: it is sent there after it is made, and fetched before the
// backward part reads it. Both transfers run beside compute. What of them shows is modelled as follows.
//
//  - Sending: the link takes one value after another, each when it exists and the link is free. What is not
//    done when the forward part ends, shows.
//  - Fetching: everything for one part is fetched while the backward part before it runs, so what takes
//    longer than that, shows.
//  - Either way a transfer takes a little of the device's own bandwidth.
//
// The compute that hides transfers is that of products, convolutions and attention. What else runs is short,
// and leaving it out errs towards dearer transfers.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_REMAT_OFFLOAD_H
#define FARRIER_PASSES_REMAT_OFFLOAD_H

#include "passes/remat/Problem.h"

#include "farrier/Analysis/OpCost.h"

#include "mlir/IR/Block.h"
#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/Support/JSON.h"

#include <string>
#include <vector>

namespace farrier::remat {

/// The texts of a list in an options object; none where it has no such list.
std::vector<std::string> textsOf(const llvm::json::Object &object, llvm::StringRef key);

/// What may wait in host memory.
struct OffloadRules {
  bool allowed = true;
  /// Values made by operations whose name stack contains one of these are never sent to the host.
  std::vector<std::string> onDevice;
  /// Values made by operations whose name stack contains one of these are neither recomputed nor kept in
  /// device memory: what is saved of them waits in host memory.
  std::vector<std::string> toHost;
  /// Nothing but what `toHost` names.
  bool onlyAsked = false;
  /// Smaller values are not worth a transfer.
  int64_t leastBytes = 0;

  /// The fields "offload" (false where it lacks) and "offload_only_asked" (bool), "on_device" and "to_host"
  /// (lists) of a query's options.
  static OffloadRules fromJSON(const llvm::json::Object &object);
};

/// When the values of one part exist and how much compute there is to hide behind. Seconds.
struct HostSchedule {
  double bytesPerSecond = 0;
  std::vector<double> ready; ///< of each candidate, from the start of the forward part
  double forward = 0;        ///< the forward part, of one instance
  double backward = 0;       ///< the backward part before the one that reads, of one instance
};

/// Seconds of `op` that transfers can hide behind.
double computeSeconds(CostModel &costs, mlir::Operation *op);

/// Lets candidates of `problem` wait in host memory where the rules allow it. `slices`: instances of a value
/// that are under way, and in device memory, at a time.
void offerHost(Problem &problem, HostSchedule schedule, const OffloadRules &rules, double slices);

/// The choices of `problem` that no other one beats in both seconds and saved bytes, the cheapest in seconds
/// first: as `Problem::frontier`, with host memory where it was offered. What compute hides makes transfers
/// cheaper than their sum, so cuts are made at several prices of the link and priced as they are.
std::vector<Choice> frontierWithHost(const Problem &problem);

/// Of choices, those that no other one beats in both seconds and saved bytes, the cheapest first.
std::vector<Choice> unbeaten(std::vector<Choice> all);

/// A value to send to the host between the forward and the backward part of a block.
struct HostMove {
  mlir::Value value;
  mlir::Operation *sentBefore = nullptr;    ///< forward operation that waits until the value was sent
  mlir::Operation *fetchedBefore = nullptr; ///< backward operation before which fetching starts
};

/// Sends values to the host and fetches them again. Every reader after `boundary` reads what was fetched. A
/// barrier joins each end of a transfer with what is computed there: without one XLA keeps the value in
/// device memory beside its copy, or fetches it at once. `tiable`: whether a value is big and on the path of
/// the computation, so that waiting for it holds the computation back.
void moveToHost(mlir::Block &block, mlir::Operation *boundary, llvm::ArrayRef<HostMove> moves,
                llvm::function_ref<bool(mlir::Value)> tiable);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_OFFLOAD_H
