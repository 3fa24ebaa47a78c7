// Products, convolutions, transforms and factorizations.
#ifndef FARRIER_STABLEHLO_LINEAR_ALGEBRA_OPS
#define FARRIER_STABLEHLO_LINEAR_ALGEBRA_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"

def StableHLO_DotGeneralOp : StableHLO_VerifiedOp<"dot_general", "Batched products, contracting given dimensions",
    [Pure],
    (ins AnyTensor:$lhs, AnyTensor:$rhs, StableHLO_DotDimensionNumbers:$dot_dimension_numbers,
         OptionalAttr<StableHLO_PrecisionConfig>:$precision_config,
         OptionalAttr<StableHLO_DotAlgorithm>:$algorithm),
    (outs AnyTensor:$result)>;

def StableHLO_DotOp : StableHLO_Op<"dot", "Product of vectors or matrices", [Pure],
    (ins AnyTensor:$lhs, AnyTensor:$rhs, OptionalAttr<StableHLO_PrecisionConfig>:$precision_config),
    (outs AnyTensor:$result)>;

def StableHLO_EinsumOp : StableHLO_Op<"einsum", "Einstein summation of two tensors", [Pure],
    (ins AnyTensor:$lhs, AnyTensor:$rhs, StrAttr:$einsum_config), (outs AnyTensor:$result)>;
def StableHLO_UnaryEinsumOp : StableHLO_Op<"unary_einsum", "Einstein summation of one tensor", [Pure],
    (ins AnyTensor:$operand, StrAttr:$einsum_config), (outs AnyTensor:$result)>;

defvar StableHLO_ConvAttrs = (ins StableHLO_OptDims:$lhs_dilation, StableHLO_OptDims:$rhs_dilation,
    OptionalAttr<DenseBoolArrayAttr>:$window_reversal, StableHLO_ConvDimensionNumbers:$dimension_numbers,
    I64Attr:$feature_group_count, I64Attr:$batch_group_count,
    OptionalAttr<StableHLO_PrecisionConfig>:$precision_config);

def StableHLO_ConvolutionOp : StableHLO_VerifiedOp<"convolution", "Slides a kernel over the input", [Pure],
    !con((ins AnyTensor:$lhs, AnyTensor:$rhs, StableHLO_OptDims:$window_strides,
              OptionalAttr<I64ElementsAttr>:$padding), StableHLO_ConvAttrs),
    (outs AnyTensor:$result)>;

def StableHLO_DynamicConvOp : StableHLO_VerifiedOp<"dynamic_conv", "A convolution whose padding is known at run time",
    [Pure],
    !con((ins AnyTensor:$lhs, AnyTensor:$rhs, AnyTensor:$padding, StableHLO_OptDims:$window_strides),
         StableHLO_ConvAttrs),
    (outs AnyTensor:$result)>;

def StableHLO_FftOp : StableHLO_VerifiedOp<"fft", "Fourier transforms over trailing dimensions", [Pure],
    (ins AnyTensor:$operand, StableHLO_FftTypeAttr:$fft_type, DenseI64ArrayAttr:$fft_length),
    (outs AnyTensor:$result)>;

def StableHLO_CholeskyOp : StableHLO_Op<"cholesky", "Cholesky factors of a batch of matrices", [Pure],
    (ins AnyTensor:$a, OptionalAttr<BoolAttr>:$lower), (outs AnyTensor:$result)>;

def StableHLO_TriangularSolveOp : StableHLO_Op<"triangular_solve", "Solves batches of triangular systems", [Pure],
    (ins AnyTensor:$a, AnyTensor:$b, BoolAttr:$left_side, BoolAttr:$lower, BoolAttr:$unit_diagonal,
         StableHLO_TransposeAttr:$transpose_a),
    (outs AnyTensor:$result)>;

#endif // FARRIER_STABLEHLO_LINEAR_ALGEBRA_OPS
