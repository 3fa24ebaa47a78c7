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

using AxisList = SmallVector<unsigned, 4>;
/// The axes that make up each dimension of a tensor, outermost first.
using Dims = SmallVector<AxisList, 4>;

class Emitter {
public:
  explicit Emitter(Attention &site) : site(site) {
    AxisList leading = site.batch, heads;
    // With one batched axis, it is the head if it lies inside the positions ([B, S, H, D] with B = 1).
    bool several = leading.size() > 1;
    if (several ||
        (leading.size() == 1 && site.query.roles[leading[0]]->dim > site.query.roles[*site.row]->dim))
      heads.push_back(leading.pop_back_val());
    queryDims = {leading, {*site.row}, heads, {site.feature()}};
    queryDims[2].append(site.groups.begin(), site.groups.end());
    keyDims = {leading, {site.column}, heads, {site.feature()}};
    element = tensorType(site.query.value).getElementType();
    batch = extent(leading);
    queries = site.sizes[*site.row];
    keys = site.sizes[site.column];
    heads_ = extent(queryDims[2]);
    keyHeads = extent(heads);
    width = site.sizes[site.feature()];
  }

  void run();

private:
  int64_t extent(ArrayRef<unsigned> axes) const {
    int64_t product = 1;
    for (unsigned axis : axes)
      product *= site.sizes[axis];
    return product;
  }
  Value canonical(Maker &make, const Tensor &tensor, const Dims &dims);
  Value storedOutput(Maker &make, Value output);
  void replace(const Product &product, Value value, const Dims &dims);
  Value fromHeadMajor(Maker &make, Value value) { return make.transpose(value, {0, 2, 1, 3}); }
  Operation *call(Maker &make, StringRef target, ArrayRef<Value> operands, ArrayRef<Type> results,
                  bool backward);
  std::string config(bool backward);

  Attention &site;
  Dims queryDims, keyDims;
  Type element;
  int64_t batch, queries, keys, heads_, keyHeads, width;
};

/// Axes of a tensor in the order in which they lie in memory.
AxisList layoutOrder(const Roles &roles) {
  AxisList order;
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (roles[axis])
      order.push_back(axis);
  llvm::sort(order, [&](unsigned a, unsigned b) {
    return roles[a]->dim != roles[b]->dim ? roles[a]->dim < roles[b]->dim : roles[a]->inner > roles[b]->inner;
  });
  return order;
}

Value permuteAxes(Maker &make, Value value, const AxisList &from, const AxisList &to,
                  ArrayRef<int64_t> sizes) {
  SmallVector<int64_t> split, permutation;
  for (unsigned axis : from)
    split.push_back(sizes[axis]);
  for (unsigned axis : to)
    permutation.push_back(llvm::find(from, axis) - from.begin());
  bool identity = llvm::is_sorted(permutation);
  return identity ? value : make.transpose(make.reshape(value, split), permutation);
}

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
  json::Object intermediate{{"element_type", element.isBF16() ? "BF16" : "F16"},
                            {"dimensions", json::Array{text(batch), text(heads_), text(queries), text(keys)}},
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

Operation *Emitter::call(Maker &make, StringRef target, ArrayRef<Value> operands, ArrayRef<Type> results,
                         bool backward) {
  Builder &b = make.b;
  auto rowMajor = [&](Type type) {
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
  SmallVector<Type> types(results);
  for (Type type : results)
    // Head-major shape, position-major memory: the transpose that follows is free.
    resultLayouts.push_back(cast<RankedTensorType>(type).getRank() == 4 ? layout({3, 1, 2, 0})
                                                                        : layout(rowMajor(type)));
  types.push_back(RankedTensorType::get({0}, b.getIntegerType(8, /*isSigned=*/false))); // workspace
  resultLayouts.push_back(layout({0}));
  return make.op("stablehlo.custom_call", types, operands,
                 {make.attr("call_target_name", b.getStringAttr(target)),
                  make.attr("backend_config", b.getStringAttr(config(backward))),
                  make.attr("api_version", b.getI32IntegerAttr(2)),
                  make.attr("operand_layouts", b.getArrayAttr(operandLayouts)),
                  make.attr("result_layouts", b.getArrayAttr(resultLayouts))});
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

void Emitter::run() {
  SmallVector<stablehlo::DotGeneralOp> backward;
  for (const Product *product : {&site.queryGradient, &site.keyGradient, &site.valueGradient})
    if (*product)
      backward.push_back(product->dot);
  llvm::sort(backward, [](Operation *a, Operation *b) { return a->isBeforeInBlock(b); });

  Operation *anchor = site.output ? site.output.dot.getOperation() : backward.front().getOperation();
  OpBuilder builder(anchor);
  Maker make(builder, site.scores.getLoc());
  Value query = canonical(make, site.query, queryDims), key = canonical(make, site.key, keyDims),
        value = canonical(make, site.value, keyDims);
  auto headMajor = [&](int64_t heads, int64_t length) {
    return RankedTensorType::get({batch, heads, length, width}, element);
  };
  Type statistics = RankedTensorType::get({batch, heads_, queries}, builder.getF32Type());
  Operation *forward =
      call(make, "__cudnn$fmhaSoftmax", {query, key, value}, {headMajor(heads_, queries), statistics}, false);
  Value output = fromHeadMajor(make, forward->getResult(0));

  if (!backward.empty()) {
    Value statisticsAgain = forward->getResult(1), outputAgain = output;
    builder.setInsertionPoint(backward.front());
    Maker make(builder, site.probabilityGradient.getLoc());
    if (site.loops) {
      query = canonical(make, site.queryAgain, queryDims);
      key = canonical(make, site.keyAgain, keyDims);
      value = canonical(make, site.valueAgain, keyDims);
      outputAgain = storedOutput(make, output);
      statisticsAgain = addResidual(*site.loops, forward->getResult(1));
    }
    Value gradient = canonical(make, site.outputGradient, queryDims);
    Operation *gradients =
        call(make, "__cudnn$fmhaSoftmaxBackward", {query, key, value, statisticsAgain, gradient, outputAgain},
             {headMajor(heads_, queries), headMajor(keyHeads, keys), headMajor(keyHeads, keys)}, true);
    const Product *products[] = {&site.queryGradient, &site.keyGradient, &site.valueGradient};
    for (auto [i, product] : llvm::enumerate(products))
      if (*product)
        replace(*product, fromHeadMajor(make, gradients->getResult(i)), i == 0 ? queryDims : keyDims);
  }
  if (site.output)
    replace(site.output, output, queryDims);
}

} // namespace

void emitAttention(Attention &attention) { Emitter(attention).run(); }

} // namespace farrier::fusion
