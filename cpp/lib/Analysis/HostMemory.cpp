#include "farrier/Analysis/HostMemory.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"

using namespace mlir;

namespace farrier {

static constexpr llvm::StringLiteral kTarget = "annotate_device_placement";
static constexpr llvm::StringLiteral kFrontend = "mhlo.frontend_attributes";
static constexpr llvm::StringLiteral kPlacement = "_xla_buffer_placement";

std::optional<Placement> placementOf(Operation *op) {
  auto call = dyn_cast<stablehlo::CustomCallOp>(op);
  if (!call || call.getCallTargetName() != kTarget || op->getNumOperands() != 1 || op->getNumResults() != 1)
    return std::nullopt;
  auto attributes = op->getAttrOfType<DictionaryAttr>(kFrontend);
  auto where = attributes ? attributes.getAs<StringAttr>(kPlacement) : StringAttr();
  if (!where)
    return std::nullopt;
  return where.getValue() == "device" ? Placement::Device : Placement::PinnedHost;
}

Value place(OpBuilder &builder, Location loc, Value value, Placement placement) {
  OperationState state(loc, stablehlo::CustomCallOp::getOperationName());
  state.addOperands(value);
  state.addTypes(value.getType());
  state.addAttribute("call_target_name", builder.getStringAttr(kTarget));
  // As JAX marks it: XLA must neither drop the call nor move it out of a loop.
  state.addAttribute("has_side_effect", builder.getBoolAttr(true));
  state.addAttribute("backend_config", builder.getStringAttr(""));
  StringRef where = placement == Placement::Device ? "device" : "pinned_host";
  state.addAttribute(
      kFrontend, builder.getDictionaryAttr(builder.getNamedAttr(kPlacement, builder.getStringAttr(where))));
  return builder.create(state)->getResult(0);
}

llvm::DenseSet<Value> hostValues(Operation *root) {
  llvm::DenseSet<Value> host;
  SmallVector<Value> work;
  auto add = [&](Value value) {
    if (value && host.insert(value).second)
      work.push_back(value);
  };
  root->walk([&](Operation *op) {
    if (placementOf(op) == Placement::PinnedHost)
      add(op->getResult(0));
  });
  auto addLoop = [&](stablehlo::WhileOp loop, unsigned i) {
    if (!loop.getCond().hasOneBlock() || !loop.getBody().hasOneBlock())
      return;
    add(loop->getOperand(i));
    add(loop->getResult(i));
    add(loop.getCond().front().getArgument(i));
    add(loop.getBody().front().getArgument(i));
    add(loop.getBody().front().getTerminator()->getOperand(i));
  };
  while (!work.empty()) {
    Value value = work.pop_back_val();
    // A stack lies where its slices are sent to, all the way back to where it is made.
    if (auto update = value.getDefiningOp<stablehlo::DynamicUpdateSliceOp>())
      add(update.getOperand());
    else if (auto loop = value.getDefiningOp<stablehlo::WhileOp>())
      addLoop(loop, cast<OpResult>(value).getResultNumber());
    else if (auto argument = dyn_cast<BlockArgument>(value))
      if (auto inside = dyn_cast_or_null<stablehlo::WhileOp>(argument.getOwner()->getParentOp()))
        addLoop(inside, argument.getArgNumber());
    for (OpOperand &use : value.getUses()) {
      Operation *user = use.getOwner();
      if (isa<stablehlo::ReshapeOp, stablehlo::SliceOp, stablehlo::DynamicSliceOp>(user)) {
        if (use.getOperandNumber() == 0)
          add(user->getResult(0));
      } else if (isa<stablehlo::DynamicUpdateSliceOp>(user)) {
        if (use.getOperandNumber() < 2)
          add(user->getResult(0));
      } else if (isa<stablehlo::OptimizationBarrierOp>(user)) {
        add(user->getResult(use.getOperandNumber()));
      } else if (auto loop = dyn_cast<stablehlo::WhileOp>(user)) {
        addLoop(loop, use.getOperandNumber());
      } else if (isa<stablehlo::ReturnOp>(user)) {
        if (auto inside = dyn_cast_or_null<stablehlo::WhileOp>(user->getParentOp());
            inside && inside.getBody().hasOneBlock() && &inside.getBody().front() == user->getBlock())
          addLoop(inside, use.getOperandNumber());
      }
    }
  }
  return host;
}

SizeFn deviceMemory(Operation *root, SizeFn size) {
  llvm::DenseSet<Value> host = hostValues(root);
  if (host.empty())
    return size;
  return [host = std::move(host), size = std::move(size)](Value value) {
    return host.contains(value) ? 0 : size(value);
  };
}

} // namespace farrier
