#include "passes/collectives/Parts.h"
#include "passes/collectives/Rows.h"

namespace farrier::collectives {

using namespace mlir;

/// The first element along the axis that this device has, `rows` being those of one device.
Value Parts::offset(int64_t rows) {
  Value &found = offsets[rows];
  if (found)
    return found;
  OpBuilder builder = OpBuilder::atBlockBegin(&manual->getRegion(0).front());
  auto scalar = RankedTensorType::get({}, builder.getI32Type());
  Location loc = model->getLoc();
  if (!position) {
    // Where each device stands in its group.
    int64_t devices = 0;
    for (const SmallVector<int64_t> &group : groups)
      devices = std::max(devices, *llvm::max_element(group) + 1);
    SmallVector<int32_t> table(devices, 0);
    for (const SmallVector<int64_t> &group : groups)
      for (auto [k, device] : llvm::enumerate(group))
        table[device] = static_cast<int32_t>(k);
    auto type = RankedTensorType::get({devices}, builder.getI32Type());
    auto value = builder.getNamedAttr("value", DenseIntElementsAttr::get(type, ArrayRef<int32_t>(table)));
    Value all = make(builder, loc, "stablehlo.constant", type, {}, value)->getResult(0);
    auto unsignedScalar = RankedTensorType::get({}, builder.getIntegerType(32, /*isSigned=*/false));
    Value id = make(builder, loc, "stablehlo.partition_id", unsignedScalar, {})->getResult(0);
    auto sizes = builder.getNamedAttr("slice_sizes", builder.getDenseI64ArrayAttr({1}));
    Value row = make(builder, loc, "stablehlo.dynamic_slice",
                     RankedTensorType::get({1}, builder.getI32Type()), {all, id}, sizes)
                    ->getResult(0);
    position = make(builder, loc, "stablehlo.reshape", scalar, row)->getResult(0);
  }
  builder.setInsertionPointAfterValue(position);
  auto value = DenseIntElementsAttr::get(scalar, ArrayRef<int32_t>(static_cast<int32_t>(rows)));
  Value times =
      make(builder, loc, "stablehlo.constant", scalar, {}, builder.getNamedAttr("value", value))->getResult(0);
  found = make(builder, loc, "stablehlo.multiply", scalar, {position, times})->getResult(0);
  return found;
}

/// This device's part of a value.
Value Parts::part(Value value, AxisPlace place) {
  Value &found = parts[value];
  if (found)
    return found;
  RankedTensorType type = tensorType(value), piece = chunkedType(type, place, size / count, size);
  int64_t rows = piece.getDimSize(place.dim);
  Value start = offset(rows);
  OpBuilder builder(value.getContext());
  builder.setInsertionPointAfterValue(value);
  // Arguments of the manual computation come before everything, the offset too.
  if (isa<BlockArgument>(value) && start.getParentBlock() == value.getParentBlock())
    builder.setInsertionPointAfterValue(start);
  auto scalar = RankedTensorType::get({}, builder.getI32Type());
  auto zero = builder.getNamedAttr("value", DenseIntElementsAttr::get(scalar, ArrayRef<int32_t>(0)));
  SmallVector<Value> operands{value};
  Value none = make(builder, value.getLoc(), "stablehlo.constant", scalar, {}, zero)->getResult(0);
  for (int64_t dim = 0; dim < type.getRank(); ++dim)
    operands.push_back(dim == place.dim ? start : none);
  Operation *slice =
      make(builder, value.getLoc(), "stablehlo.dynamic_slice", piece, operands,
           builder.getNamedAttr("slice_sizes", builder.getDenseI64ArrayAttr(piece.getShape())));
  fresh.insert(slice);
  return parts[value] = slice->getResult(0);
}

/// A collective over the groups of the reductions. `dimension` is empty for a reduction.
Operation *Parts::collective(OpBuilder &builder, Location loc, StringRef name, StringRef dimension,
                             int64_t dim, Value operand, Type type, Operation *like) {
  OperationState state(loc, name, operand, type);
  for (StringRef attribute : {"replica_groups", "channel_handle", "use_global_device_ids"})
    if (Attribute value = like->getAttr(attribute))
      state.addAttribute(attribute, value);
  if (!dimension.empty())
    state.addAttribute(dimension, builder.getI64IntegerAttr(dim));
  if (Attribute value = like->getDiscardableAttr(kFrontend))
    state.addAttribute(kFrontend, value);
  if (name != stablehlo::AllGatherOp::getOperationName()) {
    Region *body = state.addRegion();
    auto scalar = RankedTensorType::get({}, cast<RankedTensorType>(type).getElementType());
    Block &block = body->emplaceBlock();
    block.addArguments({scalar, scalar}, {loc, loc});
    OpBuilder inner(builder.getContext());
    inner.setInsertionPointToEnd(&block);
    Operation *add = make(inner, loc, "stablehlo.add", scalar, block.getArguments());
    OperationState end(loc, "stablehlo.return", add->getResults(), {});
    inner.create(end);
  }
  Operation *made = builder.create(state);
  fresh.insert(made);
  return made;
}

void Parts::scatter(Operation *op) {
  AxisPlace place = places[op->getResult(0)];
  OpBuilder builder(op->getContext());
  builder.setInsertionPointAfter(op);
  parts[op->getResult(0)] =
      collective(builder, op->getLoc(), "stablehlo.reduce_scatter", "scatter_dimension", place.dim,
                 op->getOperand(0), chunkedType(tensorType(op->getResult(0)), place, size / count, size), op)
          ->getResult(0);
}

void Parts::clone(Operation *op) {
  const AxisFlow &flow = flows[op];
  SmallVector<Value> operands;
  for (auto [operand, place] : llvm::zip_equal(op->getOperands(), flow.operands))
    operands.push_back(place ? part(operand, *place) : operand);
  SmallVector<Type> types;
  for (auto [result, place] : llvm::zip_equal(op->getResults(), flow.results))
    types.push_back(place ? Type(chunkedType(tensorType(result), *place, size / count, size))
                          : result.getType());
  if (flow.kind == AxisFlow::Sum && isa<stablehlo::DotGeneralOp>(op))
    types[0] = wideSum(cast<RankedTensorType>(types[0]));
  OpBuilder builder(op->getContext());
  builder.setInsertionPointAfter(op);
  Operation *copy = cloneOnPart(builder, op, flow, operands, types);
  fresh.insert(copy);
  if (auto slice = dyn_cast<stablehlo::DynamicSliceOp>(copy))
    copy->setAttr("slice_sizes",
                  builder.getDenseI64ArrayAttr(cast<RankedTensorType>(types[0]).getShape()));
  if (flow.kind == AxisFlow::Sum) {
    Value total = collective(builder, op->getLoc(), "stablehlo.all_reduce", "", 0, copy->getResult(0),
                             types[0], model)
                      ->getResult(0);
    if (types[0] != op->getResult(0).getType())
      total = make(builder, op->getLoc(), "stablehlo.convert", op->getResult(0).getType(), total)
                  ->getResult(0);
    op->getResult(0).replaceAllUsesWith(total);
    return;
  }
  for (auto [result, made] : llvm::zip_equal(op->getResults(), copy->getResults()))
    parts[result] = made;
}

void Parts::emit(llvm::function_ref<void(Operation *)> erased) {
  SmallVector<Operation *> ordered;
  manual->getRegion(0).walk<WalkOrder::PreOrder>([&](Operation *op) {
    if (contains(op) || isa<stablehlo::WhileOp, stablehlo::OptimizationBarrierOp>(op))
      ordered.push_back(op);
  });
  auto retype = [&](Value value) {
    value.setType(chunkedType(tensorType(value), places[value], size / count, size));
    parts[value] = value;
  };
  // Own slices that the program states are the parts themselves.
  SmallVector<std::pair<Operation *, Value>> stated;
  forEachValue([&](Value value) {
    for (OpOperand &use : value.getUses())
      if (!takesPart(use) && isOwnPart(use))
        stated.emplace_back(use.getOwner(), value);
  });
  SmallVector<std::pair<Operation *, unsigned>> ends; // what loops' bodies hand on, once it exists
  for (Operation *op : ordered) {
    if (seeds.contains(op)) {
      scatter(op);
    } else if (flows.contains(op)) {
      clone(op);
    } else {
      for (unsigned k = 0; k < op->getNumOperands(); ++k) {
        if (!linked.contains({op, k}))
          continue;
        op->setOperand(k, part(op->getOperand(k), places[op->getOperand(k)]));
        for (Value value : targets({op, k}))
          retype(value);
        if (auto loop = dyn_cast<stablehlo::WhileOp>(op)) {
          loop.getCond().front().getArgument(k).setType(op->getResult(k).getType());
          ends.emplace_back(loop.getBody().front().getTerminator(), k);
        }
      }
    }
  }
  for (auto [end, k] : ends) {
    Value value = end->getOperand(k);
    end->setOperand(k, part(value, places[value]));
    fresh.insert(end);
  }
  for (auto [slice, value] : stated) {
    slice->getResult(0).replaceAllUsesWith(parts[value]);
    slice->erase();
  }
  for (Value value : whole) {
    Value piece = parts[value];
    OpBuilder builder(value.getContext());
    builder.setInsertionPointAfterValue(piece);
    AxisPlace place = places[value];
    SmallVector<int64_t> shape(tensorType(piece).getShape());
    shape[place.dim] = size * place.inner;
    auto type = RankedTensorType::get(shape, tensorType(piece).getElementType());
    Operation *gather = collective(builder, value.getLoc(), "stablehlo.all_gather", "all_gather_dim",
                                   place.dim, piece, type, model);
    value.replaceUsesWithIf(gather->getResult(0), [&](OpOperand &use) {
      if (piece != value)
        return true;
      // A loop's or a barrier's value is the part itself: whoever works on the part keeps it.
      std::optional<Link> link = linkOf(use);
      return !fresh.contains(use.getOwner()) && !(link && linked.contains(*link));
    });
  }
  for (Operation *op : llvm::reverse(ordered))
    if (contains(op) && op->use_empty()) {
      erased(op);
      op->erase();
    }
  // Parts that only whole values were made of.
  for (Operation *op : llvm::reverse(fresh))
    if (op->getNumResults() > 0 && op->use_empty())
      op->erase();
}

} // namespace farrier::collectives
