//===- Remarks.h - what was decided about each value, in words --------------===//

#ifndef FARRIER_PASSES_REMAT_REMARKS_H
#define FARRIER_PASSES_REMAT_REMARKS_H

#include "passes/remat/Problem.h"

#include "mlir/IR/Location.h"
#include "llvm/ADT/StringMap.h"

#include <string>
#include <vector>

namespace farrier::remat {

/// Gathers decisions and says each once per kind of value: the layers of an unrolled model make equal values
/// by the hundred. Remarks: "recomputed" and "offloaded" (applied), "kept" (analysis), "kept" (missed: it may
/// not run twice).
class DecisionRemarks {
public:
  /// The values of `problem` under `choice`, `count` times (iterations of a loop, else 1). `part` says where,
  /// if it is not the whole program.
  void add(const Problem &problem, const Choice &choice, int64_t count = 1, llvm::StringRef part = "");
  /// The values that a part keeps because it is left as it stands.
  void addUntouched(const Problem &problem, llvm::StringRef part = "");
  void emit() const;

private:
  struct Row {
    mlir::Location loc; ///< of the first such value; the value itself may be gone when this is said
    std::string scope, type, operation, part;
    bool recomputed = false, onHost = false, allowed = true, carried = false;
    int64_t count = 0, bytes = 0;
    double seconds = 0, flops = 0, hostSeconds = 0;
  };
  void add(const Candidate &candidate, bool recomputed, bool onHost, int64_t count, llvm::StringRef part);

  std::vector<Row> rows;
  llvm::StringMap<unsigned> rowOf;
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_REMARKS_H
