// Operations that make, move and select elements without computing on them.
#ifndef FARRIER_STABLEHLO_DATA_MOVEMENT_OPS
#define FARRIER_STABLEHLO_DATA_MOVEMENT_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"

// Not ConstantLike: MLIR's folder would merge two constants that differ in discardable attributes (a sharding, a
// frontend attribute) and hoist them out of regions. CSE merges the equal ones without loss.
def StableHLO_ConstantOp : StableHLO_VerifiedOp<"constant", "A tensor known now", [Pure],
    (ins ElementsAttr:$value), (outs AnyTensor:$output)>;

def StableHLO_IotaOp : StableHLO_VerifiedOp<"iota", "Counts up along one dimension", [Pure],
    (ins I64Attr:$iota_dimension), (outs AnyTensor:$output)>;

def StableHLO_BitcastConvertOp : StableHLO_Op<"bitcast_convert", "Reinterprets the bits as another type", [Pure],
    (ins AnyTensor:$operand), (outs AnyTensor:$result)> {
  let hasFolder = 1;
}

def StableHLO_BroadcastInDimOp : StableHLO_VerifiedOp<"broadcast_in_dim",
    "Repeats the operand along new and size-one dimensions", [Pure],
    (ins AnyTensor:$operand, DenseI64ArrayAttr:$broadcast_dimensions), (outs AnyTensor:$result)> {
  let hasFolder = 1;
}

def StableHLO_BroadcastOp : StableHLO_VerifiedOp<"broadcast", "Repeats the operand along new leading dimensions",
    [Pure], (ins AnyTensor:$operand, DenseI64ArrayAttr:$broadcast_sizes), (outs AnyTensor:$result)>;

def StableHLO_ReshapeOp : StableHLO_VerifiedOp<"reshape", "Same elements in row-major order, another shape", [Pure],
    (ins AnyTensor:$operand), (outs AnyTensor:$result)> {
  let hasFolder = 1;
  let hasCanonicalizer = 1;
}

def StableHLO_TransposeOp : StableHLO_VerifiedOp<"transpose", "Permutes dimensions", [Pure],
    (ins AnyTensor:$operand, DenseI64ArrayAttr:$permutation), (outs AnyTensor:$result)> {
  let hasFolder = 1;
  let hasCanonicalizer = 1;
}

def StableHLO_ReverseOp : StableHLO_VerifiedOp<"reverse", "Reverses the order of elements along dimensions", [Pure],
    (ins AnyTensor:$operand, DenseI64ArrayAttr:$dimensions), (outs AnyTensor:$result)> {
  let hasFolder = 1;
}

def StableHLO_ConcatenateOp : StableHLO_VerifiedOp<"concatenate", "Joins tensors along one dimension", [Pure],
    (ins Variadic<AnyTensor>:$inputs, I64Attr:$dimension), (outs AnyTensor:$result)> {
  let hasFolder = 1;
}

def StableHLO_PadOp : StableHLO_VerifiedOp<"pad", "Adds (or with negative amounts removes) elements at edges and between",
    [Pure],
    (ins AnyTensor:$operand, AnyTensor:$padding_value, DenseI64ArrayAttr:$edge_padding_low,
         DenseI64ArrayAttr:$edge_padding_high, DenseI64ArrayAttr:$interior_padding),
    (outs AnyTensor:$result)>;

def StableHLO_SliceOp : StableHLO_VerifiedOp<"slice", "Takes a strided box at a place known now", [Pure],
    (ins AnyTensor:$operand, DenseI64ArrayAttr:$start_indices, DenseI64ArrayAttr:$limit_indices,
         DenseI64ArrayAttr:$strides),
    (outs AnyTensor:$result)> {
  let hasFolder = 1;
}

def StableHLO_DynamicSliceOp : StableHLO_VerifiedOp<"dynamic_slice", "Takes a box at a place known at run time", [Pure],
    (ins AnyTensor:$operand, Variadic<AnyTensor>:$start_indices, DenseI64ArrayAttr:$slice_sizes),
    (outs AnyTensor:$result)>;

def StableHLO_DynamicUpdateSliceOp : StableHLO_VerifiedOp<"dynamic_update_slice",
    "Replaces a box at a place known at run time", [Pure],
    (ins AnyTensor:$operand, AnyTensor:$update, Variadic<AnyTensor>:$start_indices), (outs AnyTensor:$result)>;

def StableHLO_GatherOp : StableHLO_VerifiedOp<"gather", "Takes many slices at places given by a tensor", [Pure],
    (ins AnyTensor:$operand, AnyTensor:$start_indices, StableHLO_GatherDimensionNumbers:$dimension_numbers,
         DenseI64ArrayAttr:$slice_sizes, OptionalAttr<BoolAttr>:$indices_are_sorted),
    (outs AnyTensor:$result)>;

def StableHLO_ScatterOp : StableHLO_VerifiedOp<"scatter", "Combines updates into places given by a tensor",
    [RecursiveMemoryEffects, SameVariadicOperandSize],
    (ins Variadic<AnyTensor>:$inputs, AnyTensor:$scatter_indices, Variadic<AnyTensor>:$updates,
         StableHLO_ScatterDimensionNumbers:$scatter_dimension_numbers,
         OptionalAttr<BoolAttr>:$indices_are_sorted, OptionalAttr<BoolAttr>:$unique_indices),
    (outs Variadic<AnyTensor>:$results)> {
  let regions = (region SizedRegion<1>:$update_computation);
}

def StableHLO_TorchIndexSelectOp : StableHLO_Op<"torch_index_select", "Takes slices along one dimension", [Pure],
    (ins AnyTensor:$operand, AnyTensor:$index, I64Attr:$dim, I64Attr:$batch_dims), (outs AnyTensor:$result)>;

#endif // FARRIER_STABLEHLO_DATA_MOVEMENT_OPS
