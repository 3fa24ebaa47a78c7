//===- Devices.h - which devices hold the same values ----------------------===//
//
// Inside `sdy.manual_computation` (JAX's shard_map) each device has values of its own. Some are the same on all
// devices of a group: arguments that the group's mesh axes do not split, what a reduction over the group leaves,
// and what is made of those alone.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_PASSES_COLLECTIVES_DEVICES_H
#define FARRIER_PASSES_COLLECTIVES_DEVICES_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/SmallVector.h"

#include <optional>
#include <string>

namespace farrier::collectives {

/// Devices by group, in the order in which a gather joins their parts.
using Groups = llvm::SmallVector<llvm::SmallVector<int64_t>>;

/// The groups of a collective in a module of one replica, whether they are given as a table or as axes of a
/// mesh; nullopt if they are not understood, or not all of one size.
std::optional<Groups> deviceGroups(mlir::Operation *collective, mlir::ModuleOp module);

/// The `sdy.manual_computation` around `op`, if it is the only one and names every axis of its mesh: what is
/// inside is a program for one device, which `partition_id` tells from the others. Null otherwise.
mlir::Operation *enclosingManual(mlir::Operation *op, mlir::ModuleOp module);

/// The values of a manual computation that all devices of each group agree on.
class Agreement {
public:
  Agreement(mlir::Operation *manual, const Groups &groups, mlir::ModuleOp module);

  bool operator()(mlir::Value value) const { return !varying.contains(value); }

private:
  bool mark(mlir::Value value) { return varying.insert(value).second; }
  void markArguments(mlir::Operation *manual);
  bool visit(mlir::Operation *op);
  bool varies(mlir::Operation *op) const;
  bool covers(mlir::Operation *collective) const;

  const Groups &groups;
  mlir::ModuleOp module;
  llvm::DenseSet<mlir::Value> varying;
};

} // namespace farrier::collectives

#endif // FARRIER_PASSES_COLLECTIVES_DEVICES_H
