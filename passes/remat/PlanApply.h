//===- PlanApply.h - rewriting a program as planned --------------------------===//

#ifndef FARRIER_PASSES_REMAT_PLANAPPLY_H
#define FARRIER_PASSES_REMAT_PLANAPPLY_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/JSON.h"

#include <string>
#include <vector>

namespace farrier::remat {

class DecisionRemarks;

/// A block that is planned on its own, named so that another process finds it again.
struct NamedBlock {
  std::string path;
  mlir::Block *block;
};

/// Function bodies, and inside them the bodies of loops and of manual computations, outermost first.
std::vector<NamedBlock> plannableBlocks(mlir::ModuleOp module);

/// Rewrites `module` as planned, as far as the estimate sees it; `applyPlan` also orders what XLA would reorder.
mlir::LogicalResult rewriteAsPlanned(mlir::ModuleOp module, const llvm::json::Object &plan, uint64_t &cloned,
                                     DecisionRemarks &remarks);

/// What a file that an option names has. Fails with a diagnostic about `what` it is.
mlir::FailureOr<llvm::json::Value> readJson(mlir::ModuleOp module, llvm::StringRef path, llvm::StringRef what);

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_PLANAPPLY_H
