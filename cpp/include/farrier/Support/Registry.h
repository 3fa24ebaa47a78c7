//===- Registry.h - queries and counters that passes offer ----------------===//
//
// A pass does more than rewrite: it answers questions ("what would it cost to fit 72 GiB?") and it
// counts what it did. Both reach Python without the bindings knowing any pass.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_SUPPORT_REGISTRY_H
#define FARRIER_SUPPORT_REGISTRY_H

#include "mlir/IR/BuiltinOps.h"
#include "mlir/Support/LLVM.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/Support/JSON.h"

#include <atomic>
#include <functional>
#include <string>
#include <vector>

namespace farrier {

/// A read-only question about a module: JSON options in, JSON answer out. Errors are reported as
/// diagnostics on the module's context and by returning failure.
using Query =
    std::function<mlir::FailureOr<llvm::json::Value>(mlir::ModuleOp, const llvm::json::Object &options)>;

/// Makes `query` callable as `name` ("remat.plan"). A name registered twice keeps the first.
void registerQuery(llvm::StringRef name, Query query);

/// The query of that name, or null.
const Query *lookupQuery(llvm::StringRef name);

/// All names, sorted.
std::vector<std::string> queryNames();

/// Counters of a pass. MLIR's own Pass::Statistic counts nothing in distributions' builds
/// (LLVM_ENABLE_STATS is off), so a pass derives from this beside its base and adds members
/// `Counter cloned{this, "cloned"}`.
class CounterSet {
public:
  struct Counter {
    Counter(CounterSet *owner, const char *name) : name(name) { owner->counters.push_back(this); }
    Counter &operator+=(uint64_t n) {
      value.fetch_add(n, std::memory_order_relaxed);
      return *this;
    }
    Counter &operator++() { return *this += 1; }
    const char *name;
    std::atomic<uint64_t> value{0};
  };

  CounterSet() = default;
  /// A cloned pass counts for itself: its own members re-register.
  CounterSet(const CounterSet &) {}
  virtual ~CounterSet() = default;

  std::vector<Counter *> counters;
};

} // namespace farrier

#endif // FARRIER_SUPPORT_REGISTRY_H
