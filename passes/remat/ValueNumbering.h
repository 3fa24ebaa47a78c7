//===- ValueNumbering.h - which values are the same --------------------------===//

#ifndef FARRIER_PASSES_REMAT_VALUENUMBERING_H
#define FARRIER_PASSES_REMAT_VALUENUMBERING_H

#include "farrier/Analysis/ScalarEval.h"

#include "mlir/IR/Operation.h"
#include "llvm/ADT/DenseMap.h"

#include <map>
#include <utility>
#include <vector>

namespace farrier::remat {

/// Numbers values so that equal numbers mean equal values: results of operations by what these do, with which attributes,
/// regions and operands; barriers hand on what they are given. What may not run twice has results like no others. Numbers
/// are compared, never ordered into anything that is written.
class ValueNumbering {
public:
  /// Results of `collectives` are numbered as others are, whatever their channels: for what is not to run twice.
  explicit ValueNumbering(bool collectives = false) : collectives(collectives) {}

  /// The number of scalars that are known to be these, iteration by iteration.
  unsigned ofEvaluated(mlir::Type type, llvm::ArrayRef<uint64_t> list);
  /// The number of a value. One that was not numbered is traced through the few operations that made it; else it has a
  /// number of its own.
  unsigned operator[](mlir::Value value);
  void set(mlir::Value value, unsigned number) { numberOf[value] = number; }
  unsigned setFresh(mlir::Value value) { return numberOf[value] = fresh(); }
  /// Numbers the results of `op`; its operands must have been.
  void number(mlir::Operation *op);

private:
  using Key = std::vector<uint64_t>;
  enum Tag : uint64_t { Outside, Evaluated, Operand, Result };

  /// What stands for a unique object in a key.
  static uint64_t bits(const void *pointer) { return reinterpret_cast<uintptr_t>(pointer); }
  /// A number that no value has yet.
  unsigned fresh() { return next++; }
  /// The number of everything with this key.
  unsigned ofKey(Tag tag, Key key);
  /// Appends, operands first, what makes `value` of numbered values and of what is opaque; false if that is more than
  /// the operations that are `left`.
  bool chain(mlir::Value value, llvm::SmallVectorImpl<mlir::Operation *> &made, unsigned &left) const;
  /// Equal for operations whose regions do the same with equal captured values.
  unsigned regionNumber(mlir::Operation *op);
  bool sameRegions(mlir::Operation *a, mlir::Operation *b);

  bool collectives;
  ScalarEval scalars;
  std::map<std::pair<Tag, Key>, unsigned> numbers;
  llvm::DenseMap<mlir::Value, unsigned> numberOf;
  std::vector<std::pair<mlir::Operation *, unsigned>> withRegions;
  unsigned next = 0;
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_VALUENUMBERING_H
