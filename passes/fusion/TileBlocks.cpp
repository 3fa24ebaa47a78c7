//===- TileBlocks.cpp - sums over tokens that devices hold ----------------===//

#include "passes/fusion/TileBlocks.h"

#include "mlir/AsmParser/AsmParser.h"
#include "mlir/IR/IRMapping.h"

using namespace mlir;

namespace farrier::fusion {

using Place = std::optional<AxisPlace>;

SmallVector<const TileRegion::Blocks *> summedBlocks(const TileRegion &region, Operation *op) {
  SmallVector<const TileRegion::Blocks *> found;
  auto tile = region.flows.find(op);
  if (tile == region.flows.end() || tile->second.kind != AxisFlow::Sum)
    return found;
  for (const TileRegion::Blocks &blocks : region.blocks)
    if (auto it = blocks.flows.find(op); it != blocks.flows.end() && it->second.kind == AxisFlow::Sum)
      found.push_back(&blocks);
  return found;
}

Value pinSharding(Maker &make, const TileRegion &region, Value value, const std::string &sharding) {
  Attribute attribute = parseAttribute("#sdy.sharding<@" + region.mesh + ", [" + sharding + "]>",
                                       make.b.getContext());
  return make.op1("sdy.sharding_constraint", value.getType(), value, make.attr("sharding", attribute));
}

Value sumPerBlock(Maker &make, const TileRegion &region, Operation *op, ArrayRef<Value> operands,
                  ArrayRef<const TileRegion::Blocks *> blocks, int64_t chunk, bool narrow) {
  OpBuilder &builder = make.b;
  const AxisFlow &tile = region.flows.find(op)->second;
  bool isDot = isa<stablehlo::DotGeneralOp>(op);
  // Per operand: every block count gets a dimension of its own. `newDims` are where old dimensions lie now (a
  // split one in several), `blockDims` where the counts lie.
  SmallVector<Value> pieces;
  SmallVector<SmallVector<SmallVector<int64_t>>> newDims;
  SmallVector<SmallVector<int64_t>> blockDims;
  for (unsigned i = 0; i < (isDot ? 2u : 1u); ++i) {
    RankedTensorType type = tensorType(operands[i]);
    SmallVector<int64_t> shape, counts(blocks.size(), -1);
    SmallVector<SmallVector<int64_t>> places(type.getRank());
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      // Blocks in this dimension, the slowest varying first.
      SmallVector<std::pair<int64_t, unsigned>> here;
      for (auto [n, block] : llvm::enumerate(blocks))
        if (Place place = block->flows.find(op)->second.operands[i]; place && place->dim == dim) {
          // Blocks that vary faster than the axis: there are fewer of them around in a chunk.
          Place axis = tile.operands[i];
          bool faster = axis && axis->dim == dim && place->outer >= axis->outer * region.size;
          here.emplace_back(faster ? place->outer / region.size * chunk : place->outer, n);
        }
      llvm::sort(here);
      int64_t rest = type.getDimSize(dim), done = 1;
      for (auto [outer, n] : here) {
        if (outer > done) {
          places[dim].push_back(shape.size());
          shape.push_back(outer / done);
          rest /= outer / done;
        }
        counts[n] = shape.size();
        shape.push_back(blocks[n]->count);
        rest /= blocks[n]->count;
        done = outer * blocks[n]->count;
      }
      places[dim].push_back(shape.size());
      shape.push_back(rest);
    }
    pieces.push_back(make.reshape(operands[i], shape));
    newDims.push_back(places);
    blockDims.push_back(counts);
  }
  auto spread = [&](unsigned operand, ArrayRef<int64_t> dims) {
    SmallVector<int64_t> result;
    for (int64_t dim : dims)
      result.append(newDims[operand][dim]);
    return result;
  };
  RankedTensorType type = tensorType(op->getResult(0));
  Type element = wideSum(type).getElementType();
  SmallVector<int64_t> shape;
  for (const TileRegion::Blocks *block : blocks)
    shape.push_back(block->count);
  shape.append(type.getShape().begin(), type.getShape().end());
  Value sum;
  if (auto dot = dyn_cast<stablehlo::DotGeneralOp>(op)) {
    auto numbers = dot.getDotDimensionNumbers();
    SmallVector<int64_t> batch[2] = {blockDims[0], blockDims[1]};
    batch[0].append(spread(0, numbers.getLhsBatchingDimensions()));
    batch[1].append(spread(1, numbers.getRhsBatchingDimensions()));
    auto split = stablehlo::DotDimensionNumbersAttr::get(
        builder.getContext(), batch[0], batch[1], spread(0, numbers.getLhsContractingDimensions()),
        spread(1, numbers.getRhsContractingDimensions()));
    if (narrow)
      for (Value &piece : pieces)
        if (tensorType(piece).getElementType().isF32())
          piece = make.convert(piece, builder.getBF16Type());
    IRMapping none;
    Operation *clone = op->clone(none);
    builder.insert(clone);
    clone->setOperands(pieces);
    cast<stablehlo::DotGeneralOp>(clone).setDotDimensionNumbersAttr(split);
    sum = clone->getResult(0);
    sum.setType(RankedTensorType::get(shape, element));
  } else {
    auto reduce = cast<stablehlo::ReduceOp>(op);
    SmallVector<int64_t> dims = spread(0, reduce.getDimensions());
    llvm::sort(dims);
    // What is left of the operand's dimensions, in order; then the counts move to the front.
    SmallVector<int64_t> left, kept, order;
    for (int64_t dim = 0; dim < tensorType(pieces[0]).getRank(); ++dim)
      if (!llvm::is_contained(dims, dim)) {
        left.push_back(dim);
        kept.push_back(tensorType(pieces[0]).getDimSize(dim));
      }
    for (int64_t dim : blockDims[0])
      order.push_back(llvm::find(left, dim) - left.begin());
    for (int64_t i = 0; i < static_cast<int64_t>(left.size()); ++i)
      if (!llvm::is_contained(blockDims[0], left[i]))
        order.push_back(i);
    IRMapping none;
    Operation *clone = op->clone(none);
    builder.insert(clone);
    clone->setOperands({pieces[0], operands[1]});
    cast<stablehlo::ReduceOp>(clone).setDimensionsAttr(builder.getDenseI64ArrayAttr(dims));
    clone->getResult(0).setType(RankedTensorType::get(kept, type.getElementType()));
    sum = make.convert(make.transpose(clone->getResult(0), order), element);
  }
  std::string sharding;
  for (const TileRegion::Blocks *block : blocks)
    sharding += (sharding.empty() ? "" : ", ") + block->axes;
  for (int64_t dim = 0; dim < type.getRank(); ++dim)
    sharding += ", {?}";
  return pinSharding(make, region, sum, sharding);
}

} // namespace farrier::fusion
