// Operations on shapes that are known only at run time.
#ifndef FARRIER_STABLEHLO_DYNAMIC_OPS
#define FARRIER_STABLEHLO_DYNAMIC_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"

def StableHLO_DynamicBroadcastInDimOp : StableHLO_Op<"dynamic_broadcast_in_dim", "broadcast_in_dim to a given shape",
    [Pure],
    (ins AnyTensor:$operand, AnyTensor:$output_dimensions, DenseI64ArrayAttr:$broadcast_dimensions,
         StableHLO_OptDims:$known_expanding_dimensions, StableHLO_OptDims:$known_nonexpanding_dimensions),
    (outs AnyTensor:$result)>;
def StableHLO_DynamicGatherOp : StableHLO_VerifiedOp<"dynamic_gather", "gather with slice sizes known at run time", [Pure],
    (ins AnyTensor:$operand, AnyTensor:$start_indices, AnyTensor:$slice_sizes,
         StableHLO_GatherDimensionNumbers:$dimension_numbers, OptionalAttr<BoolAttr>:$indices_are_sorted),
    (outs AnyTensor:$result)>;
def StableHLO_DynamicIotaOp : StableHLO_Op<"dynamic_iota", "iota of a given shape", [Pure],
    (ins AnyTensor:$output_shape, I64Attr:$iota_dimension), (outs AnyTensor:$result)>;
def StableHLO_DynamicPadOp : StableHLO_Op<"dynamic_pad", "pad with amounts known at run time", [Pure],
    (ins AnyTensor:$operand, AnyTensor:$padding_value, AnyTensor:$edge_padding_low, AnyTensor:$edge_padding_high,
         AnyTensor:$interior_padding),
    (outs AnyTensor:$result)>;
def StableHLO_DynamicReshapeOp : StableHLO_Op<"dynamic_reshape", "reshape to a given shape", [Pure],
    (ins AnyTensor:$operand, AnyTensor:$output_shape), (outs AnyTensor:$result)>;
def StableHLO_RealDynamicSliceOp : StableHLO_Op<"real_dynamic_slice", "slice with limits known at run time", [Pure],
    (ins AnyTensor:$operand, AnyTensor:$start_indices, AnyTensor:$limit_indices, AnyTensor:$strides),
    (outs AnyTensor:$result)>;
def StableHLO_GetDimensionSizeOp : StableHLO_VerifiedOp<"get_dimension_size", "The size of a dimension", [Pure],
    (ins AnyTensor:$operand, I64Attr:$dimension), (outs AnyTensor:$result)>;
def StableHLO_SetDimensionSizeOp : StableHLO_VerifiedOp<"set_dimension_size", "Declares how much of a dimension is used",
    [Pure], (ins AnyTensor:$operand, AnyTensor:$size, I64Attr:$dimension), (outs AnyTensor:$result)>;

#endif // FARRIER_STABLEHLO_DYNAMIC_OPS
