//===- AttentionEmit.cpp - cuDNN attention in place of what was matched ---===//
//
// The calls have the form that jax.nn.dot_product_attention(implementation="cudnn") lowers to; a test
// compares the two.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Attention.h"
#include "passes/fusion/Build.h"

#include "llvm/Support/JSON.h"

using namespace mlir;
namespace json = llvm::json;

namespace farrier::fusion {

namespace {

using AxisList = SmallVector<unsigned>;
/// The axes that make up each dimension of a tensor, outermost first.
using Dims = SmallVector<AxisList, 4>;

class Emitter {
public:
  explicit Emitter(Attention &site) : site(site) {
    AxisList leading, heads;
    site.batchAndHeads(leading, heads);
    AxisList keyHeadAxes(heads);
    llvm::erase_if(keyHeadAxes, [&](unsigned axis) { return llvm::is_contained(site.groups, axis); });
    queryDims = {leading, {*site.row}, heads, {site.feature()}};
    keyDims = {leading, {site.column}, keyHeadAxes, {site.feature()}};
    element = tensorType(site.query.value).getElementType();
    batch = extent(leading);
    queries = site.sizes[*site.row];
    keys = site.sizes[site.column];
    heads_ = extent(heads);
    keyHeads = extent(keyHeadAxes);
    width = site.sizes[site.feature()];
    if (site.bias)
      biasShape = site.biasShape();
    if (site.split)
      repeats = *site.split->keyRepeats(heads_, keyHeads);
  }

  void run();

private:
  Split split() const { return site.split.value_or(Split()); }
  int64_t extent(ArrayRef<unsigned> axes) const {
    int64_t product = 1;
    for (unsigned axis : axes)
      product *= site.sizes[axis];
    return product;
  }
  Value canonical(Maker &make, const Tensor &tensor, const Dims &dims);
  Value repeatedKeys(Maker &make, Value keys);
  Value bias();
  Value biasAgain(Maker &make, Value bias);
  SplitType biasType() const;
  void replaceBiasGradient(Value gradient);
  Value sumOfRepeats(Maker &make, Value gradient);
  Value storedOutput(Maker &make, Value output);
  void replace(const Product &product, Value value, const Dims &dims);
  SmallVector<Value> kernel(Maker &make, StringRef target, ArrayRef<SplitValue> operands,
                            ArrayRef<SplitType> results, bool backward);
  SmallVector<Value> call(Maker &make, StringRef target, ValueRange operands, ArrayRef<SplitType> results,
                          bool backward);
  std::string config(bool backward);
  Operation *anchorOfForward() const;
  SmallVector<Operation *> backwardProducts() const;

  Attention &site;
  Dims queryDims, keyDims;
  Type element;
  int64_t batch, queries, keys, heads_, keyHeads, width;
  BiasShape biasShape;
  Value outside; ///< the bias before the loop
  bool biasIsOutside = false;
  int64_t repeats = 1; ///< of each key head, so that every device has one
};

AxisList flatten(const Dims &dims) {
  AxisList flat;
  for (const AxisList &axes : dims)
    flat.append(axes);
  return flat;
}

Value Emitter::canonical(Maker &make, const Tensor &tensor, const Dims &dims) {
  Value value = permuteAxes(make, tensor.value, layoutOrder(tensor.roles), flatten(dims), site.sizes);
  SmallVector<int64_t> shape;
  for (const AxisList &axes : dims)
    shape.push_back(extent(axes));
  return make.convert(make.reshape(value, shape), element);
}

void Emitter::replace(const Product &product, Value value, const Dims &dims) {
  stablehlo::DotGeneralOp dot = product.dot;
  if (!dot)
    return;
  OpBuilder builder(dot.getContext());
  builder.setInsertionPointAfterValue(value);
  Maker make(builder, dot.getLoc());
  RankedTensorType type = tensorType(dot.getResult());
  Value result = permuteAxes(make, value, flatten(dims), layoutOrder(product.result), site.sizes);
  result = make.convert(make.reshape(result, type.getShape()), type.getElementType());
  dot.getResult().replaceAllUsesWith(result);
}

json::Object dotNumbers(int lhs, int rhs, std::pair<int, int> lhsBatch, std::pair<int, int> rhsBatch) {
  auto text = [](int i) { return std::to_string(i); };
  return json::Object{{"lhs_contracting_dimensions", json::Array{text(lhs)}},
                      {"rhs_contracting_dimensions", json::Array{text(rhs)}},
                      {"lhs_batch_dimensions", json::Array{text(lhsBatch.first), text(lhsBatch.second)}},
                      {"rhs_batch_dimensions", json::Array{text(rhsBatch.first), text(rhsBatch.second)}}};
}

std::string Emitter::config(bool backward) {
  auto text = [](int64_t i) { return std::to_string(i); };
  json::Object layout{{"dim_level_types", json::Array{}},
                      {"dim_unique", json::Array{}},
                      {"dim_ordered", json::Array{}},
                      {"minor_to_major", json::Array{"3", "2", "1", "0"}},
                      {"tiles", json::Array{}},
                      {"element_size_in_bits", "0"},
                      {"memory_space", "0"},
                      {"index_primitive_type", "PRIMITIVE_TYPE_INVALID"},
                      {"pointer_primitive_type", "PRIMITIVE_TYPE_INVALID"},
                      {"dynamic_shape_metadata_prefix_bytes", "0"}};
  json::Object intermediate{
      {"element_type", element.isBF16() ? "BF16" : "F16"},
      {"dimensions", json::Array{text(batch / split().batchShards()), text(heads_ / split().headShards()),
                                 text(queries), text(keys)}},
      {"tuple_shapes", json::Array{}},
      {"layout", std::move(layout)},
      {"is_dynamic_dimension", json::Array{false, false, false, false}}};
  json::Object algorithm{{"algo_id", "0"},
                         {"math_type", "TENSOR_OP_MATH"},
                         {"tuning_knobs", json::Object{{"17", "1"}, {"24", "0"}}},
                         {"is_cudnn_frontend", true},
                         {"workspace_size", "0"}};
  json::Object fmha{{"algorithm", std::move(algorithm)},
                    {"fmha_scale", site.scale},
                    {"intermediate_tensor_shape", std::move(intermediate)},
                    {"is_flash_attention", true},
                    {"mask_type", site.causal ? "CAUSAL" : "NO_MASK"},
                    {"dropout_rate", 0.0},
                    {"seed", 42}, // of dropout, which there is none of
                    {"sliding_window_length", site.window},
                    {"max_seg_per_batch", 1},
                    {"is_paged_attention", false}};
  // Dimensions of [B, S, H, D] operands and [B, H, S, T] scores.
  if (backward) {
    fmha["bmm1_grad_gemm1_dot_dimension_numbers"] = dotNumbers(2, 1, {0, 1}, {0, 2});
    fmha["bmm1_grad_gemm2_dot_dimension_numbers"] = dotNumbers(3, 1, {0, 1}, {0, 2});
    fmha["bmm2_grad_gemm1_dot_dimension_numbers"] = dotNumbers(2, 1, {0, 1}, {0, 2});
    fmha["bmm2_grad_gemm2_dot_dimension_numbers"] = dotNumbers(3, 3, {0, 2}, {0, 2});
  } else {
    fmha["bmm1_dot_dimension_numbers"] = dotNumbers(3, 3, {0, 2}, {0, 2});
    fmha["bmm2_dot_dimension_numbers"] = dotNumbers(3, 1, {0, 1}, {0, 2});
  }
  std::string result;
  llvm::raw_string_ostream os(result);
  os << json::Value(
      json::Object{{"operation_queue_id", "0"}, {"cudnn_fmha_backend_config", std::move(fmha)}});
  return result;
}

/// The custom call on what one device has. Of its results all but the workspace, positions before heads.
SmallVector<Value> Emitter::call(Maker &make, StringRef target, ValueRange operands,
                                 ArrayRef<SplitType> results, bool backward) {
  Builder &b = make.b;
  auto rowMajor = [](Type type) {
    SmallVector<int64_t> order;
    for (int64_t dim = cast<RankedTensorType>(type).getRank() - 1; dim >= 0; --dim)
      order.push_back(dim);
    return order;
  };
  auto layout = [&](ArrayRef<int64_t> order) -> Attribute {
    auto type = RankedTensorType::get({static_cast<int64_t>(order.size())}, b.getIndexType());
    return DenseElementsAttr::get(type, order);
  };
  SmallVector<Attribute> operandLayouts, resultLayouts;
  for (Value operand : operands)
    operandLayouts.push_back(layout(rowMajor(operand.getType())));
  SmallVector<Type> types;
  for (const SplitType &result : results) {
    RankedTensorType type = split().local(result);
    ArrayRef<int64_t> shape = type.getShape();
    if (result.headMajorCall) {
      // Head-major shape, position-major memory: the transpose that follows is free.
      type = RankedTensorType::get({shape[0], shape[2], shape[1], shape[3]}, type.getElementType());
      resultLayouts.push_back(layout({3, 1, 2, 0}));
    } else {
      resultLayouts.push_back(layout(rowMajor(type)));
    }
    types.push_back(type);
  }
  types.push_back(RankedTensorType::get({0}, b.getIntegerType(8, /*isSigned=*/false))); // workspace
  resultLayouts.push_back(layout({0}));
  Operation *made = make.op("stablehlo.custom_call", types, operands,
                            {make.attr("call_target_name", b.getStringAttr(target)),
                             make.attr("backend_config", b.getStringAttr(config(backward))),
                             make.attr("api_version", b.getI32IntegerAttr(2)),
                             make.attr("operand_layouts", b.getArrayAttr(operandLayouts)),
                             make.attr("result_layouts", b.getArrayAttr(resultLayouts))});
  SmallVector<Value> values;
  for (auto [result, value] : llvm::zip(results, made->getResults().drop_back()))
    values.push_back(result.headMajorCall ? make.transpose(value, {0, 2, 1, 3}) : value);
  return values;
}

SmallVector<Value> Emitter::kernel(Maker &make, StringRef target, ArrayRef<SplitValue> operands,
                                   ArrayRef<SplitType> results, bool backward) {
  if (site.split)
    return onEveryDevice(make, *site.split, operands, results, [&](Maker &inside, ValueRange locals) {
      return call(inside, target, locals, results, backward);
    });
  SmallVector<Value> values;
  for (const SplitValue &operand : operands)
    values.push_back(operand.value);
  return call(make, target, values, results, backward);
}

/// [B, T, K, D] with each key head `repeats` times.
Value Emitter::repeatedKeys(Maker &make, Value value) {
  if (repeats == 1)
    return value;
  Value wide = make.broadcast(value, {batch, keys, keyHeads, repeats, width}, {0, 1, 2, 4});
  return make.reshape(wide, {batch, keys, keyHeads * repeats, width});
}

Value Emitter::sumOfRepeats(Maker &make, Value gradient) {
  if (repeats == 1)
    return gradient;
  Value apart = make.reshape(gradient, {batch, keys, keyHeads, repeats, width});
  return make.convert(make.sum(make.convert(apart, make.b.getF32Type()), {3}), element);
}

/// The output as the backward loop reads it: from a stack that is there anyway (the next product's gradient
/// needs it), or from a new one.
Value Emitter::storedOutput(Maker &make, Value output) {
  Tensor origin{site.output.dot.getResult(), site.output.result};
  for (Residual residual : residualsOf(site.loops->forward))
    if (residual.loops == *site.loops)
      if (std::optional<Tensor> stored = derivedFrom(residual.stored, origin, site.sizes);
          stored && tensorType(stored->value).getElementType() == element &&
          residual.reads.front()->isBeforeInBlock(&*make.b.getInsertionPoint()))
        return canonical(make, {residual.reads.front().getResult(), stored->roles}, queryDims);
  return addResidual(*site.loops, output);
}

/// Where the backward reads it.
Value Emitter::biasAgain(Maker &make, Value bias) {
  if (!site.loops)
    return bias;
  return biasIsOutside ? addInvariant(site.loops->backward, outside) : addResidual(*site.loops, bias);
}

/// The bias where the forward reads it: from outside of a loop that does not change it.
Value Emitter::bias() {
  Operation *anchor = anchorOfForward();
  OpBuilder builder(anchor);
  auto loop = dyn_cast<stablehlo::WhileOp>(anchor->getParentOp());
  if (loop && !loop->hasAttr("sdy.sharding") && anchor->getBlock() == &loop->getRegion(1).front()) {
    OpBuilder before(loop);
    Maker make(before, site.scores.getLoc());
    if ((outside = makeBias(site, make, loop))) {
      biasIsOutside = true;
      return addInvariant(site.loops ? site.loops->forward : loop, outside);
    }
  }
  Maker make(builder, site.scores.getLoc());
  return makeBias(site, make, nullptr);
}

SplitType Emitter::biasType() const {
  Split over = split();
  // What devices share of the bias they each have a gradient for.
  return {{biasShape.perBatch ? batch : over.batchShards(), biasShape.perHead ? heads_ : over.headShards(),
           queries, keys},
          element,
          "bh--",
          false};
}

void Emitter::replaceBiasGradient(Value gradient) {
  stablehlo::ReduceOp sum = site.biasGradient.sum;
  OpBuilder builder(sum.getContext());
  builder.setInsertionPointAfterValue(gradient);
  Maker make(builder, sum.getLoc());
  RankedTensorType type = tensorType(sum->getResult(0));
  gradient = make.convert(gradient, builder.getF32Type());
  SmallVector<int64_t> over;
  if (!biasShape.perBatch)
    over.push_back(0);
  if (!biasShape.perHead)
    over.push_back(1);
  // Alone on one device, dimensions of extent 1 are only dropped.
  if (!over.empty() && (split().batchShards() > 1 || split().headShards() > 1))
    gradient = make.sum(gradient, over);
  SmallVector<int64_t> sizes, summed;
  AxisList left;
  for (auto [i, axis] : llvm::enumerate(biasShape.axes)) {
    sizes.push_back(site.sizes[axis]);
    if (site.biasGradient.result[axis])
      left.push_back(axis);
    else
      summed.push_back(i);
  }
  gradient = make.reshape(gradient, sizes);
  if (!summed.empty())
    gradient = make.sum(gradient, summed);
  Value result = permuteAxes(make, gradient, left, layoutOrder(site.biasGradient.result), site.sizes);
  sum->getResult(0).replaceAllUsesWith(
      make.convert(make.reshape(result, type.getShape()), type.getElementType()));
}

Operation *Emitter::anchorOfForward() const {
  return site.output ? site.output.dot.getOperation() : backwardProducts().front();
}

/// What reads the backward's results, in program order.
SmallVector<Operation *> Emitter::backwardProducts() const {
  SmallVector<Operation *> backward;
  for (const Product *product : {&site.queryGradient, &site.keyGradient, &site.valueGradient})
    if (*product)
      backward.push_back(product->dot);
  if (site.biasGradient)
    backward.push_back(site.biasGradient.sum);
  llvm::sort(backward, [](Operation *a, Operation *b) { return a->isBeforeInBlock(b); });
  return backward;
}

void Emitter::run() {
  SmallVector<Operation *> backward = backwardProducts();
  Value added = site.bias ? bias() : Value();
  OpBuilder builder(anchorOfForward());
  Maker make(builder, site.scores.getLoc());
  Value query = canonical(make, site.query, queryDims), key = canonical(make, site.key, keyDims),
        value = canonical(make, site.value, keyDims);
  key = repeatedKeys(make, key);
  value = repeatedKeys(make, value);
  const SplitType perQuery{{batch, queries, heads_, width}, element, "b-h-", true},
      perKey{{batch, keys, keyHeads * repeats, width}, element, "b-h-", true},
      statistics{{batch, heads_, queries}, builder.getF32Type(), "bh-", false};
  const StringRef biasAxes = !site.bias           ? ""
                             : biasShape.perBatch ? (biasShape.perHead ? "bh--" : "b---")
                                                  : (biasShape.perHead ? "-h--" : "----");
  SmallVector<SplitValue> operands{{query, "b-h-"}, {key, "b-h-"}, {value, "b-h-"}};
  if (added)
    operands.push_back({added, biasAxes});
  SmallVector<Value> forward = kernel(make, added ? "__cudnn$fmhaScaleBiasSoftmax" : "__cudnn$fmhaSoftmax",
                                      operands, {perQuery, statistics}, false);
  Value output = forward[0];

  if (!backward.empty()) {
    Value statisticsAgain = forward[1], outputAgain = output;
    builder.setInsertionPoint(backward.front());
    Maker make(builder, site.probabilityGradient.getLoc());
    if (site.loops) {
      query = canonical(make, site.queryAgain, queryDims);
      key = repeatedKeys(make, canonical(make, site.keyAgain, keyDims));
      value = repeatedKeys(make, canonical(make, site.valueAgain, keyDims));
      outputAgain = storedOutput(make, output);
      statisticsAgain = addResidual(*site.loops, forward[1]);
    }
    Value gradient = canonical(make, site.outputGradient, queryDims);
    operands = {
        {query, "b-h-"}, {key, "b-h-"}, {value, "b-h-"}, {statisticsAgain, "bh-"}, {gradient, "b-h-"}};
    if (added)
      operands.push_back({biasAgain(make, added), biasAxes});
    operands.push_back({outputAgain, "b-h-"});
    SmallVector<SplitType> results{perQuery, perKey, perKey};
    if (site.biasGradient)
      results.push_back(biasType());
    SmallVector<Value> gradients =
        kernel(make, added ? "__cudnn$fmhaScaleBiasSoftmaxBackward" : "__cudnn$fmhaSoftmaxBackward", operands,
               results, true);
    if (site.biasGradient)
      replaceBiasGradient(gradients[3]);
    replace(site.queryGradient, gradients[0], queryDims);
    replace(site.keyGradient, sumOfRepeats(make, gradients[1]), keyDims);
    replace(site.valueGradient, sumOfRepeats(make, gradients[2]), keyDims);
  }
  replace(site.output, output, queryDims);
}

} // namespace

void Attention::batchAndHeads(SmallVectorImpl<unsigned> &batchAxes, SmallVectorImpl<unsigned> &heads) const {
  batchAxes.assign(batch.begin(), batch.end());
  // With one batched axis, it is the head if it lies inside the positions ([B, S, H, D] with B = 1).
  if (batch.size() > 1 || (batch.size() == 1 && query.roles[batch[0]]->dim > query.roles[*row]->dim))
    heads.push_back(batchAxes.pop_back_val());
  heads.append(groups.begin(), groups.end());
}

std::string Attention::cannotSplit() const {
  SmallVector<unsigned> batchAxes, heads;
  batchAndHeads(batchAxes, heads);
  int64_t lines = 1, queryHeads = 1, keyHeads = 1;
  for (unsigned axis : batchAxes)
    lines *= sizes[axis];
  for (unsigned axis : heads) {
    queryHeads *= sizes[axis];
    keyHeads *= llvm::is_contained(groups, axis) ? 1 : sizes[axis];
  }
  if (lines % split->batchShards() != 0)
    return ("a batch of " + Twine(lines) + " does not split over " + Twine(split->batchShards()) + " devices")
        .str();
  if (queryHeads % split->headShards() != 0 || !split->keyRepeats(queryHeads, keyHeads))
    return (Twine(queryHeads) + " heads over " + Twine(keyHeads) + " key heads do not split over " +
            Twine(split->headShards()) + " devices")
        .str();
  return "";
}

void emitAttention(Attention &attention) { Emitter(attention).run(); }

} // namespace farrier::fusion
