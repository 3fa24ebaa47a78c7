// Branches, loops, calls out of the dialect, and values that are not tensors.
#ifndef FARRIER_STABLEHLO_CONTROL_FLOW_OPS
#define FARRIER_STABLEHLO_CONTROL_FLOW_OPS

include "farrier/Dialect/StableHLO/StableHLOBase.td"
include "mlir/IR/SymbolInterfaces.td"

defvar StableHLO_Branching = [
  RecursiveMemoryEffects, DeclareOpInterfaceMethods<RegionBranchOpInterface, ["areTypesCompatible"]>
];

def StableHLO_IfOp : StableHLO_VerifiedOp<"if", "Runs one of two regions", StableHLO_Branching,
    (ins AnyTensor:$pred), (outs Variadic<AnyType>:$results)> {
  let regions = (region SizedRegion<1>:$true_branch, SizedRegion<1>:$false_branch);
}

def StableHLO_CaseOp : StableHLO_VerifiedOp<"case", "Runs the region that the index names, or the last",
    StableHLO_Branching, (ins AnyTensor:$index), (outs Variadic<AnyType>:$results)> {
  let regions = (region VariadicRegion<SizedRegion<1>>:$branches);
}

// The state reaches `body` and the results from the operation, not from `cond`'s return, which yields the
// predicate alone; the interface therefore names the edges and forwards values only into `cond`.
def StableHLO_WhileOp : StableHLO_VerifiedOp<"while", "Runs `body` while `cond` holds",
    !listconcat([RecursiveMemoryEffects],
                [DeclareOpInterfaceMethods<RegionBranchOpInterface, ["getEntrySuccessorOperands", "areTypesCompatible"]>]),
    (ins Variadic<AnyType>:$operand), (outs Variadic<AnyType>:$results)> {
  let regions = (region SizedRegion<1>:$cond, SizedRegion<1>:$body);
}

def StableHLO_ReturnOp : StableHLO_Op<"return", "Ends a region and gives its values",
    [Pure, Terminator, DeclareOpInterfaceMethods<RegionBranchTerminatorOpInterface>],
    (ins Variadic<AnyType>:$results), (outs)>;

// A barrier exists to keep apart what looks the same: two of them are two.
def StableHLO_OptimizationBarrierOp : StableHLO_VerifiedOp<"optimization_barrier",
    "Gives its operands when all of them exist, and hides where they come from", [StableHLO_Unmergeable],
    (ins Variadic<AnyType>:$operand), (outs Variadic<AnyType>:$result)>;

def StableHLO_CustomCallOp : StableHLO_VerifiedOp<"custom_call", "Calls what the backend knows by name",
    [DeclareOpInterfaceMethods<MemoryEffectsOpInterface>],
    (ins Variadic<AnyType>:$inputs, StrAttr:$call_target_name, OptionalAttr<BoolAttr>:$has_side_effect,
         OptionalAttr<StableHLO_BackendConfig>:$backend_config, OptionalAttr<I32Attr>:$api_version,
         OptionalAttr<FlatSymbolRefArrayAttr>:$called_computations, OptionalAttr<ArrayAttr>:$operand_layouts,
         OptionalAttr<ArrayAttr>:$result_layouts,
         OptionalAttr<StableHLO_OutputOperandAliases>:$output_operand_aliases,
         OptionalAttr<ArrayAttr>:$result_tilings),
    (outs Variadic<AnyType>:$results)>;

// What it does is its decomposition's business: no declared effects.
def StableHLO_CompositeOp : StableHLO_Op<"composite", "A named operation with a function that spells it out",
    [DeclareOpInterfaceMethods<SymbolUserOpInterface>],
    (ins Variadic<AnyType>:$inputs, StrAttr:$name, OptionalAttr<DictionaryAttr>:$composite_attributes,
         FlatSymbolRefAttr:$decomposition, OptionalAttr<I32Attr>:$version),
    (outs Variadic<AnyType>:$results)> {
  let regions = (region VariadicRegion<AnyRegion>:$composite_regions);
}

def StableHLO_TupleOp : StableHLO_Op<"tuple", "Packs values", [Pure], (ins Variadic<AnyType>:$val),
    (outs AnyType:$result)>;
def StableHLO_GetTupleElementOp : StableHLO_VerifiedOp<"get_tuple_element", "Unpacks one value", [Pure],
    (ins AnyType:$operand, I32Attr:$index), (outs AnyType:$result)>;

#endif // FARRIER_STABLEHLO_CONTROL_FLOW_OPS
