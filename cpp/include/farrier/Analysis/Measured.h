//===- Measured.h - what a compile showed of single values -----------------===//
//
// The estimate follows rules of what XLA:GPU stores; a compile of the program says what it did store. Where the two
// part, operations carry the compile's word: whether an elementwise result is a buffer, and how many bytes live
// while an operation runs beside those that the estimate has. Copies of an operation carry it too, so a plan is
// estimated by the same facts.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_ANALYSIS_MEASURED_H
#define FARRIER_ANALYSIS_MEASURED_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/JSON.h"

#include <optional>

namespace farrier {

/// Whether XLA was seen to store the result of the operation; nothing where nobody looked.
std::optional<bool> measuredStored(mlir::Operation *op);

/// Bytes that XLA was seen to hold while the operation runs, beside what the estimate counts.
int64_t measuredExtra(mlir::Operation *op);

/// Records {"stored": {"<number>": bool}, "extra": {"<number>": bytes}}, by the numbers that `numberOperations` gives.
void setMeasured(mlir::ModuleOp module, const llvm::json::Object &given);

/// A share of what was measured around an operation, where that share of what it can have come from is left.
void scaleMeasuredExtra(mlir::Operation *op, double share);

/// Forgets what was measured around copies of an operation: they run at another time.
void dropMeasuredExtra(mlir::Operation *op);

/// The operation's discardable attributes but for what a compile showed of it: what is computed alike is alike, whatever
/// became of it.
mlir::DictionaryAttr attributesBesideMeasured(mlir::Operation *op);

} // namespace farrier

#endif // FARRIER_ANALYSIS_MEASURED_H
