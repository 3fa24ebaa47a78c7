// Operations that combine elements with a computation given as a region.
#ifndef FARRIER_STABLEHLO_REDUCTION_OPS
#define FARRIER_STABLEHLO_REDUCTION_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"

def StableHLO_ReduceOp : StableHLO_VerifiedOp<"reduce", "Combines all elements along dimensions",
    [RecursiveMemoryEffects, SameVariadicOperandSize],
    (ins Variadic<AnyTensor>:$inputs, Variadic<AnyTensor>:$init_values, DenseI64ArrayAttr:$dimensions),
    (outs Variadic<AnyTensor>:$results)> {
  let regions = (region SizedRegion<1>:$body);
}

def StableHLO_ReduceWindowOp : StableHLO_VerifiedOp<"reduce_window", "Combines the elements of sliding windows",
    [RecursiveMemoryEffects, SameVariadicOperandSize],
    (ins Variadic<AnyTensor>:$inputs, Variadic<AnyTensor>:$init_values, DenseI64ArrayAttr:$window_dimensions,
         StableHLO_OptDims:$window_strides, StableHLO_OptDims:$base_dilations,
         StableHLO_OptDims:$window_dilations, OptionalAttr<I64ElementsAttr>:$padding),
    (outs Variadic<AnyTensor>:$results)> {
  let regions = (region SizedRegion<1>:$body);
}

def StableHLO_SelectAndScatterOp : StableHLO_VerifiedOp<"select_and_scatter",
    "Scatters to the elements that a reduction over windows selects", [RecursiveMemoryEffects],
    (ins AnyTensor:$operand, AnyTensor:$source, AnyTensor:$init_value, StableHLO_OptDims:$window_dimensions,
         StableHLO_OptDims:$window_strides, OptionalAttr<I64ElementsAttr>:$padding),
    (outs AnyTensor:$result)> {
  let regions = (region SizedRegion<1>:$select, SizedRegion<1>:$scatter);
}

def StableHLO_SortOp : StableHLO_VerifiedOp<"sort", "Sorts slices along one dimension", [RecursiveMemoryEffects],
    (ins Variadic<AnyTensor>:$inputs, OptionalAttr<I64Attr>:$dimension, OptionalAttr<BoolAttr>:$is_stable),
    (outs Variadic<AnyTensor>:$results)> {
  let regions = (region SizedRegion<1>:$comparator);
}

def StableHLO_MapOp : StableHLO_Op<"map", "Applies a computation to corresponding elements", [RecursiveMemoryEffects],
    (ins Variadic<AnyTensor>:$inputs, DenseI64ArrayAttr:$dimensions), (outs AnyTensor:$result)> {
  let regions = (region SizedRegion<1>:$computation);
}

class StableHLO_BatchNormOp<string mnemonic, string what, dag args, dag outs>
    : StableHLO_Op<mnemonic, what, [Pure], !con(args, (ins F32Attr:$epsilon, I64Attr:$feature_index)), outs>;

def StableHLO_BatchNormTrainingOp : StableHLO_BatchNormOp<"batch_norm_training",
    "Normalizes over batch and space, giving mean and variance too",
    (ins AnyTensor:$operand, AnyTensor:$scale, AnyTensor:$offset),
    (outs AnyTensor:$output, AnyTensor:$batch_mean, AnyTensor:$batch_var)>;
def StableHLO_BatchNormInferenceOp : StableHLO_BatchNormOp<"batch_norm_inference",
    "Normalizes with given mean and variance",
    (ins AnyTensor:$operand, AnyTensor:$scale, AnyTensor:$offset, AnyTensor:$mean, AnyTensor:$variance),
    (outs AnyTensor:$result)>;
def StableHLO_BatchNormGradOp : StableHLO_BatchNormOp<"batch_norm_grad", "Gradients of batch_norm_training",
    (ins AnyTensor:$operand, AnyTensor:$scale, AnyTensor:$mean, AnyTensor:$variance, AnyTensor:$grad_output),
    (outs AnyTensor:$grad_operand, AnyTensor:$grad_scale, AnyTensor:$grad_offset)>;

#endif // FARRIER_STABLEHLO_REDUCTION_OPS
