#include "farrier/Analysis/InlineCalls.h"

#include "farrier/Analysis/ValueKey.h"

#include "mlir/IR/IRMapping.h"
#include "mlir/IR/SymbolTable.h"
#include "llvm/ADT/StringSet.h"

#include <functional>

using namespace mlir;

namespace farrier {

/// `loc` as seen from the call at `caller`, whose name stack is `prefix`. What library code traced without a
/// line of the user's (jnp.take_along_axis) has the call's line, as XLA's inliner would say.
static Location prefixed(Location loc, Location caller, StringRef prefix) {
  auto name = dyn_cast<NameLoc>(loc);
  if (!name || prefix.empty())
    return loc;
  StringAttr stack = name.getName();
  // JAX already writes whole stacks into some callees.
  if (!stack.getValue().starts_with(prefix))
    stack = StringAttr::get(loc.getContext(), prefix + "/" + stack.getValue());
  auto called = dyn_cast<NameLoc>(caller);
  bool lineless = called && sourceLine(name.getChildLoc()).empty();
  return NameLoc::get(stack, lineless ? called.getChildLoc() : name.getChildLoc());
}

static bool isPlain(func::CallOp call, func::FuncOp callee) {
  if (!callee || !callee.isPrivate() || !callee.getBody().hasOneBlock() ||
      !isa<func::ReturnOp>(callee.getBody().front().back()))
    return false;
  // The callee's symbol is all a plain call says; anything more (frontend attributes) is a wish to stay
  // apart. JAX writes an empty dictionary for each argument and result that has nothing to say.
  auto silent = [](ArrayAttr attrs) {
    return !attrs || llvm::all_of(attrs, [](Attribute attr) {
      auto dict = dyn_cast<DictionaryAttr>(attr);
      return dict && dict.empty();
    });
  };
  return call->getDiscardableAttrs().empty() && callee->getDiscardableAttrs().empty() &&
         silent(callee.getArgAttrsAttr()) && silent(callee.getResAttrsAttr());
}

unsigned inlineCalls(ModuleOp module) {
  SymbolTable symbols(module);
  unsigned replaced = 0;

  // Callees first, so that each call is replaced once by an already flat body.
  llvm::DenseSet<Operation *> inlined;
  llvm::DenseMap<Operation *, int> state; // 1: being flattened, 2: flat
  std::function<void(func::FuncOp)> flatten = [&](func::FuncOp function) {
    state[function] = 1;
    SmallVector<func::CallOp> calls;
    function.walk([&](func::CallOp call) { calls.push_back(call); });
    for (func::CallOp call : calls) {
      auto callee = symbols.lookup<func::FuncOp>(call.getCallee());
      if (!isPlain(call, callee) || state[callee] == 1)
        continue;
      if (state[callee] == 0)
        flatten(callee);
      std::string prefix = nameStack(call.getLoc());
      OpBuilder builder(call);
      IRMapping mapping;
      mapping.map(callee.getArguments(), call.getOperands());
      for (Operation &op : callee.getBody().front().without_terminator()) {
        Operation *clone = builder.clone(op, mapping);
        clone->walk([&](Operation *inner) { inner->setLoc(prefixed(inner->getLoc(), call.getLoc(), prefix)); });
      }
      Operation *terminator = callee.getBody().front().getTerminator();
      for (auto [result, value] : llvm::zip(call.getResults(), terminator->getOperands()))
        result.replaceAllUsesWith(mapping.lookupOrDefault(value));
      call.erase();
      inlined.insert(callee);
      ++replaced;
    }
    state[function] = 2;
  };
  for (auto function : llvm::make_early_inc_range(module.getOps<func::FuncOp>()))
    if (state[function] == 0)
      flatten(function);

  // Only what was inlined may go: other unused functions may be named by attributes that are opaque here.
  // getSymbolUses is nullopt when some operation might name symbols it does not understand.
  for (bool erased = replaced != 0; erased;) {
    erased = false;
    std::optional<SymbolTable::UseRange> uses = SymbolTable::getSymbolUses(&module.getBodyRegion());
    if (!uses)
      break;
    llvm::StringSet<> named;
    for (SymbolTable::SymbolUse use : *uses)
      named.insert(use.getSymbolRef().getLeafReference().getValue());
    for (auto function : llvm::make_early_inc_range(module.getOps<func::FuncOp>()))
      if (inlined.contains(function) && !named.contains(function.getSymName())) {
        symbols.erase(function);
        erased = true;
      }
  }
  return replaced;
}

} // namespace farrier
