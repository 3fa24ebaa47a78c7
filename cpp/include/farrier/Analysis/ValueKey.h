//===- ValueKey.h - names for values that survive unrelated edits ----------===//

#ifndef FARRIER_ANALYSIS_VALUEKEY_H
#define FARRIER_ANALYSIS_VALUEKEY_H

#include "mlir/IR/Location.h"
#include "mlir/IR/Value.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/StringMap.h"

#include <string>
#include <vector>

namespace farrier {

/// JAX's name stack of a location ("jit(step)/jvp(attn)/dot_general"), or "" where there is none.
std::string nameStack(mlir::Location loc);

/// Whether the operation's name stack contains one of these texts.
bool isNamed(mlir::Operation *op, const std::vector<std::string> &texts);

/// The user's source position of a location ("model.py:41"), or "" where there is none: the innermost file
/// that is not JAX's own is what jax.export leaves in the location.
std::string sourceLine(mlir::Location loc);

/// Stable keys for the values of one block, in program order:
///   <name stack>|<operation>:<result>|<type>|<ordinal among equals>
/// An edit elsewhere in the program changes neither part; source lines and SSA numbers, which move with every
/// edit, are not in it.
class ValueKeys {
public:
  explicit ValueKeys(mlir::Block &block);
  llvm::StringRef key(mlir::Value value) const;
  mlir::Value lookup(llvm::StringRef key) const;

private:
  llvm::DenseMap<mlir::Value, std::string> keys;
  llvm::StringMap<mlir::Value> values;
};

} // namespace farrier

#endif // FARRIER_ANALYSIS_VALUEKEY_H
