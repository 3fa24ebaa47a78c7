//===- HostMemory.h - values that lie in the host's memory -----------------===//
//
// A value is sent to the host, or fetched from it, by the custom call `annotate_device_placement`, as
// `jax.device_put(x, jax.memory.Space.Host)` emits it. XLA:GPU carries the placement on through shape
// operations, slices and loops; what lies there takes no device memory.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_HOSTMEMORY_H
#define FARRIER_ANALYSIS_HOSTMEMORY_H

#include "farrier/Analysis/Graph.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/DenseSet.h"

namespace farrier {

enum class Placement { Device, PinnedHost };

/// Where the operation says that its result lies; nullopt for anything but a placement.
std::optional<Placement> placementOf(mlir::Operation *op);

/// `value`, copied to where `placement` says.
mlir::Value place(mlir::OpBuilder &builder, mlir::Location loc, mlir::Value value, Placement placement);

/// The values anywhere in `root` that XLA keeps in host memory. Calls must have been inlined: a call ends
/// what is followed.
llvm::DenseSet<mlir::Value> hostValues(mlir::Operation *root);

/// `size`, but 0 for what lies in host memory. Sees the program as it stands: ask again after a change.
SizeFn deviceMemory(mlir::Operation *root, SizeFn size = deviceSize);

} // namespace farrier

#endif // FARRIER_ANALYSIS_HOSTMEMORY_H
