//===- StableHLOInterfaces.cpp - effects, control flow, symbols ------------===//

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/TypeUtilities.h"

using namespace mlir;
using namespace farrier::stablehlo;

using Effects = SmallVectorImpl<SideEffects::EffectInstance<MemoryEffects::Effect>>;

//===-- Effects
//---------------------------------------------------------------------------------------------===//

/// "Allocates" every result: MLIR then removes the operation when nothing uses it but never merges two.
static void addUnmergeable(Operation *op, Effects &effects) {
  for (OpResult result : op->getResults())
    effects.emplace_back(MemoryEffects::Allocate::get(), result);
}

void OptimizationBarrierOp::getEffects(Effects &effects) { addUnmergeable(*this, effects); }
void RngOp::getEffects(Effects &effects) { addUnmergeable(*this, effects); }

void CustomCallOp::getEffects(Effects &effects) {
  if (!getHasSideEffect().value_or(false))
    return;
  effects.emplace_back(MemoryEffects::Read::get());
  effects.emplace_back(MemoryEffects::Write::get());
}

//===-- Control flow
//----------------------------------------------------------------------------------------===//

/// Equal up to dimensions that one side does not know.
static bool compatible(Type lhs, Type rhs) {
  auto left = dyn_cast<TensorType>(lhs), right = dyn_cast<TensorType>(rhs);
  if (!left || !right)
    return lhs == rhs;
  return left.getElementType() == right.getElementType() && succeeded(verifyCompatibleShape(left, right));
}

/// Control goes from the operation into any region and from each region back out.
static void branchSuccessors(Operation *op, RegionBranchPoint point,
                             SmallVectorImpl<RegionSuccessor> &successors) {
  if (!point.isParent()) {
    successors.emplace_back(op, op->getResults());
    return;
  }
  for (Region &region : op->getRegions())
    successors.emplace_back(&region);
}

void IfOp::getSuccessorRegions(RegionBranchPoint point, SmallVectorImpl<RegionSuccessor> &successors) {
  branchSuccessors(*this, point, successors);
}
bool IfOp::areTypesCompatible(Type lhs, Type rhs) { return compatible(lhs, rhs); }

void CaseOp::getSuccessorRegions(RegionBranchPoint point, SmallVectorImpl<RegionSuccessor> &successors) {
  branchSuccessors(*this, point, successors);
}
bool CaseOp::areTypesCompatible(Type lhs, Type rhs) { return compatible(lhs, rhs); }

void WhileOp::getSuccessorRegions(RegionBranchPoint point, SmallVectorImpl<RegionSuccessor> &successors) {
  Operation *terminator = point.getTerminatorPredecessorOrNull();
  if (terminator && terminator->getParentRegion() == &getCond()) {
    successors.emplace_back(&getBody());
    successors.emplace_back(getOperation(), getOperation()->getResults().take_front(0));
    return;
  }
  successors.emplace_back(&getCond(), getCond().getArguments());
}
OperandRange WhileOp::getEntrySuccessorOperands(RegionSuccessor) { return getOperand(); }
bool WhileOp::areTypesCompatible(Type lhs, Type rhs) { return compatible(lhs, rhs); }

MutableOperandRange ReturnOp::getMutableSuccessorOperands(RegionSuccessor) {
  MutableOperandRange all = getResultsMutable();
  auto loop = dyn_cast_or_null<WhileOp>((*this)->getParentOp());
  // The predicate is consumed by the loop itself.
  if (loop && (*this)->getParentRegion() == &loop.getCond())
    return all.slice(0, 0);
  return all;
}

//===-- Symbols
//---------------------------------------------------------------------------------------------===//

LogicalResult CompositeOp::verifySymbolUses(SymbolTableCollection &symbols) {
  if (symbols.lookupNearestSymbolFrom(*this, getDecompositionAttr()))
    return success();
  return emitOpError("its decomposition ") << getDecompositionAttr() << " does not exist";
}

//===-- Collectives
//-----------------------------------------------------------------------------------------===//

FailureOr<SmallVector<SmallVector<int64_t>>> farrier::stablehlo::getReplicaGroups(Operation *op) {
  Attribute groups;
  if (std::optional<Attribute> inherent = op->getInherentAttr("replica_groups"))
    groups = *inherent;
  auto table = dyn_cast_or_null<DenseIntElementsAttr>(groups);
  if (!table || table.getType().getRank() != 2 || !table.getElementType().isInteger(64))
    return failure();
  SmallVector<SmallVector<int64_t>> result(table.getType().getDimSize(0));
  int64_t width = table.getType().getDimSize(1), place = 0;
  for (int64_t id : table.getValues<int64_t>()) {
    if (id >= 0)
      result[place / width].push_back(id);
    ++place;
  }
  return result;
}
