// The dialect, its attributes, enums and types, and the base classes of its operations.
//
// The operation set is declared here from the public specification, because the official C++ library is in no
// package registry. Everything is "open world": what this file does not know passes through untouched.
#ifndef FARRIER_STABLEHLO_BASE
#define FARRIER_STABLEHLO_BASE

include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/OpBase.td"
include "mlir/IR/Properties.td"
include "mlir/IR/TensorEncoding.td"
include "mlir/Interfaces/ControlFlowInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

def StableHLO_Dialect : Dialect {
  let name = "stablehlo";
  let cppNamespace = "::farrier::stablehlo";
  let summary = "The StableHLO operation set, declared from its public specification.";
  let description = [{
    Operations, attributes and types print exactly as jaxlib prints them in generic form. What a newer jaxlib adds
    survives: attributes of a known operation in a hidden property (`open_attrs`), unknown operations and types as
    MLIR's own opaque ones.
  }];
  let extraClassDeclaration = [{
    ::mlir::Attribute parseAttribute(::mlir::DialectAsmParser &parser, ::mlir::Type type) const override;
    void printAttribute(::mlir::Attribute attr, ::mlir::DialectAsmPrinter &printer) const override;
    ::mlir::Type parseType(::mlir::DialectAsmParser &parser) const override;
    void printType(::mlir::Type type, ::mlir::DialectAsmPrinter &printer) const override;
    void registerAttributes();
    void registerTypes();
    void registerOperations();
  }];
}

//===-- Enums -----------------------------------------------------------------------------------------------===//

class StableHLO_Enum<string name, list<string> cases>
    : I32EnumAttr<name, "", !foreach(i, !range(!size(cases)), I32EnumAttrCase<cases[i], i>)> {
  let genSpecializedAttr = 0;
  let cppNamespace = "::farrier::stablehlo";
}
def StableHLO_Precision : StableHLO_Enum<"Precision", ["DEFAULT", "HIGH", "HIGHEST"]>;
def StableHLO_ComparisonDirection
    : StableHLO_Enum<"ComparisonDirection", ["EQ", "NE", "GE", "GT", "LE", "LT"]>;
def StableHLO_ComparisonType
    : StableHLO_Enum<"ComparisonType", ["NOTYPE", "FLOAT", "TOTALORDER", "SIGNED", "UNSIGNED"]>;
def StableHLO_FftType : StableHLO_Enum<"FftType", ["FFT", "IFFT", "RFFT", "IRFFT"]>;
def StableHLO_Transpose
    : StableHLO_Enum<"Transpose", ["TRANSPOSE_INVALID", "NO_TRANSPOSE", "TRANSPOSE", "ADJOINT"]>;
def StableHLO_RngAlgorithm : StableHLO_Enum<"RngAlgorithm", ["DEFAULT", "THREE_FRY", "PHILOX"]>;
def StableHLO_RngDistribution : StableHLO_Enum<"RngDistribution", ["UNIFORM", "NORMAL"]>;
def StableHLO_ResultAccuracyMode
    : StableHLO_Enum<"ResultAccuracyMode", ["DEFAULT", "HIGHEST", "TOLERANCE"]>;

def StableHLO_PrecisionAttr : EnumAttr<StableHLO_Dialect, StableHLO_Precision, "precision">;
def StableHLO_ComparisonDirectionAttr
    : EnumAttr<StableHLO_Dialect, StableHLO_ComparisonDirection, "comparison_direction">;
def StableHLO_ComparisonTypeAttr : EnumAttr<StableHLO_Dialect, StableHLO_ComparisonType, "comparison_type">;
def StableHLO_FftTypeAttr : EnumAttr<StableHLO_Dialect, StableHLO_FftType, "fft_type">;
def StableHLO_TransposeAttr : EnumAttr<StableHLO_Dialect, StableHLO_Transpose, "transpose">;
def StableHLO_RngAlgorithmAttr : EnumAttr<StableHLO_Dialect, StableHLO_RngAlgorithm, "rng_algorithm">;
def StableHLO_RngDistributionAttr
    : EnumAttr<StableHLO_Dialect, StableHLO_RngDistribution, "rng_distribution">;
def StableHLO_ResultAccuracyModeAttr
    : EnumAttr<StableHLO_Dialect, StableHLO_ResultAccuracyMode, "result_accuracy_mode"> {
  let assemblyFormat = "`<` $value `>`";
}

//===-- Attributes ------------------------------------------------------------------------------------------===//

class StableHLO_Attr<string name, string keyword, list<Trait> traits = []>
    : AttrDef<StableHLO_Dialect, name, traits> {
  let mnemonic = keyword;
}
def StableHLO_Dims : OptionalArrayRefParameter<"int64_t">;

def StableHLO_DotDimensionNumbers : StableHLO_Attr<"DotDimensionNumbers", "dot"> {
  let summary = "Which dimensions of a dot_general are batched and which are contracted.";
  let parameters = (ins StableHLO_Dims:$lhsBatchingDimensions, StableHLO_Dims:$rhsBatchingDimensions,
                        StableHLO_Dims:$lhsContractingDimensions, StableHLO_Dims:$rhsContractingDimensions);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_GatherDimensionNumbers : StableHLO_Attr<"GatherDimensionNumbers", "gather"> {
  let summary = "How start indices and slices map to the operand and the result of a gather.";
  let parameters = (ins StableHLO_Dims:$offsetDims, StableHLO_Dims:$collapsedSliceDims,
                        StableHLO_Dims:$operandBatchingDims, StableHLO_Dims:$startIndicesBatchingDims,
                        StableHLO_Dims:$startIndexMap, "int64_t":$indexVectorDim);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_ScatterDimensionNumbers : StableHLO_Attr<"ScatterDimensionNumbers", "scatter"> {
  let summary = "How scatter indices and updates map to the inputs of a scatter.";
  let parameters = (ins StableHLO_Dims:$updateWindowDims, StableHLO_Dims:$insertedWindowDims,
                        StableHLO_Dims:$inputBatchingDims, StableHLO_Dims:$scatterIndicesBatchingDims,
                        StableHLO_Dims:$scatterDimsToOperandDims, "int64_t":$indexVectorDim);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_ConvDimensionNumbers : StableHLO_Attr<"ConvDimensionNumbers", "conv"> {
  let summary = "Batch, feature and spatial dimensions of a convolution's input, kernel and output.";
  let parameters = (ins "int64_t":$inputBatchDimension, "int64_t":$inputFeatureDimension,
                        StableHLO_Dims:$inputSpatialDimensions, "int64_t":$kernelInputFeatureDimension,
                        "int64_t":$kernelOutputFeatureDimension, StableHLO_Dims:$kernelSpatialDimensions,
                        "int64_t":$outputBatchDimension, "int64_t":$outputFeatureDimension,
                        StableHLO_Dims:$outputSpatialDimensions);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_OutputOperandAlias : StableHLO_Attr<"OutputOperandAlias", "output_operand_alias"> {
  let summary = "One result buffer of a custom_call that reuses an operand's buffer.";
  let parameters = (ins StableHLO_Dims:$outputTupleIndices, "int64_t":$operandIndex,
                        StableHLO_Dims:$operandTupleIndices);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_ChannelHandle : StableHLO_Attr<"ChannelHandle", "channel_handle"> {
  let summary = "The channel that ties the devices of one collective or transfer together.";
  let parameters = (ins "int64_t":$handle, "int64_t":$type);
  let assemblyFormat = "`<` struct(params) `>`";
}
def StableHLO_DotAlgorithm : StableHLO_Attr<"DotAlgorithm", "dot_algorithm"> {
  let summary = "The arithmetic a dot_general must use.";
  let parameters = (ins "::mlir::Type":$lhsPrecisionType, "::mlir::Type":$rhsPrecisionType,
                        "::mlir::Type":$accumulationType, "int64_t":$lhsComponentCount,
                        "int64_t":$rhsComponentCount, "int64_t":$numPrimitiveOperations,
                        "bool":$allowImpreciseAccumulation);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_ResultAccuracy : StableHLO_Attr<"ResultAccuracy", "result_accuracy"> {
  let summary = "The accuracy asked of a transcendental operation.";
  let parameters = (ins APFloatParameter<"">:$atol, APFloatParameter<"">:$rtol, "int64_t":$ulps,
                        "::farrier::stablehlo::ResultAccuracyModeAttr":$mode);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_TypeExtensions
    : StableHLO_Attr<"TypeExtensions", "bounds", [DeclareAttrInterfaceMethods<VerifiableTensorEncoding>]> {
  let summary = "Upper bounds of a tensor's dynamic dimensions.";
  let parameters = (ins StableHLO_Dims:$bounds);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_AxisRef : StableHLO_Attr<"AxisRef", "axis_ref"> {
  let summary = "A mesh axis, or a part of one of `subSize` after `subPreSize` (both 0 for the whole axis).";
  let parameters = (ins "::mlir::StringAttr":$name, "int64_t":$subPreSize, "int64_t":$subSize);
  let hasCustomAssemblyFormat = 1;
}
def StableHLO_ReplicaGroupMeshAxes : StableHLO_Attr<"ReplicaGroupMeshAxes", "replica_group_mesh_axes"> {
  let summary = "Replica groups given as axes of a mesh.";
  let parameters = (ins "::mlir::Attribute":$mesh, "::mlir::ArrayAttr":$axes);
  let hasCustomAssemblyFormat = 1;
}

//===-- Types -----------------------------------------------------------------------------------------------===//

class StableHLO_Type<string name, string keyword> : TypeDef<StableHLO_Dialect, name> { let mnemonic = keyword; }
def StableHLO_Token : StableHLO_Type<"Token", "token"> { let summary = "Orders side effects."; }
def StableHLO_Future : StableHLO_Type<"Future", "future"> {
  let summary = "The results of an asynchronous operation that may not have finished.";
  let parameters = (ins ArrayRefParameter<"::mlir::Type">:$types);
  let assemblyFormat = "`<` $types `>`";
}

//===-- Constraints on attributes ---------------------------------------------------------------------------===//

def StableHLO_ReplicaGroups
    : Attr<Or<[I64ElementsAttr.predicate, CPred<"::llvm::isa<::farrier::stablehlo::ReplicaGroupMeshAxesAttr>($_self)">]>,
           "a 2-D table of device ids or axes of a mesh"> {
  let storageType = "::mlir::Attribute";
  let returnType = "::mlir::Attribute";
  let convertFromStorage = "$_self";
}
class StableHLO_ArrayOf<Attr element, string what> : TypedArrayAttrBase<element, what>;
def StableHLO_PrecisionConfig : StableHLO_ArrayOf<StableHLO_PrecisionAttr, "one precision per operand">;
def StableHLO_OutputOperandAliases
    : StableHLO_ArrayOf<StableHLO_OutputOperandAlias, "a list of #stablehlo.output_operand_alias">;
def StableHLO_BackendConfig : AnyAttrOf<[StrAttr, DictionaryAttr], "a string or a dictionary">;
defvar StableHLO_OptDims = OptionalAttr<DenseI64ArrayAttr>;

// Attributes that a newer jaxlib put into `<{...}>` and this declaration does not name. Generated code would drop
// them without a word; StableHLO.cpp fills this property and prints it back. Part of the operation's identity:
// CSE never merges two operations that differ here.
def StableHLO_OpenAttrs : Property<"::mlir::DictionaryAttr", "attributes this build does not know"> {
  let defaultValue = "::mlir::DictionaryAttr()";
  let convertToAttribute = "return $_storage ? ::mlir::Attribute($_storage) : ::mlir::UnitAttr::get($_ctxt);";
  let convertFromAttribute = [{
    if (auto dict = ::llvm::dyn_cast<::mlir::DictionaryAttr>($_attr))
      $_storage = dict;
    return ::mlir::success();
  }];
  let hashProperty = "::llvm::hash_value($_storage.getAsOpaquePointer())";
  let writeToMlirBytecode = "$_writer.writeOptionalAttribute($_storage);";
  let readFromMlirBytecode = [{
    if (::mlir::failed($_reader.readOptionalAttribute($_storage)))
      return ::mlir::failure();
  }];
}

//===-- Effects ---------------------------------------------------------------------------------------------===//

// Talks to the outside: never merged, moved across its like, or removed.
defvar StableHLO_SideEffecting = MemoryEffects<[MemRead, MemWrite]>;
// Removable when unused, but two of them are two: never merged by CSE.
def StableHLO_Unmergeable : DeclareOpInterfaceMethods<MemoryEffectsOpInterface>;
// No effect, but meaningful only where every device of a group reaches it: may be merged and removed, never
// hoisted or speculated.
defvar StableHLO_Collective = NoMemoryEffect;

//===-- Base classes of operations --------------------------------------------------------------------------===//

class StableHLO_Op<string mnemonic, string what, list<Trait> traits, dag args, dag outs>
    : Op<StableHLO_Dialect, mnemonic, traits> {
  let summary = what;
  let arguments = !con(args, (ins StableHLO_OpenAttrs:$open_attrs));
  let results = outs;
}
// With a verifier in StableHLOVerifiers.cpp, for the operations whose attributes passes index by.
class StableHLO_VerifiedOp<string mnemonic, string what, list<Trait> traits, dag args, dag outs>
    : StableHLO_Op<mnemonic, what, traits, args, outs> {
  let hasVerifier = 1;
}
defvar StableHLO_ElementwiseTraits = [Pure, Elementwise, SameOperandsAndResultShape];

#endif // FARRIER_STABLEHLO_BASE
