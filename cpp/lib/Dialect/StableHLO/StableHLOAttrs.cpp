//===- StableHLOAttrs.cpp - attributes, printed as jaxlib prints them ------===//

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace farrier::stablehlo;

#define GET_ATTRDEF_CLASSES
#include "farrier/Dialect/StableHLO/StableHLOAttrs.cpp.inc"

void StableHLODialect::registerAttributes() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "farrier/Dialect/StableHLO/StableHLOAttrs.cpp.inc"
      >();
}

/// Every attribute this build models; others stay opaque text.
static bool isModelled(StringRef mnemonic) {
  static const StringRef known[] = {PrecisionAttr::getMnemonic(),
                                    ComparisonDirectionAttr::getMnemonic(),
                                    ComparisonTypeAttr::getMnemonic(),
                                    FftTypeAttr::getMnemonic(),
                                    TransposeAttr::getMnemonic(),
                                    RngAlgorithmAttr::getMnemonic(),
                                    RngDistributionAttr::getMnemonic(),
                                    ResultAccuracyModeAttr::getMnemonic(),
                                    DotDimensionNumbersAttr::getMnemonic(),
                                    GatherDimensionNumbersAttr::getMnemonic(),
                                    ScatterDimensionNumbersAttr::getMnemonic(),
                                    ConvDimensionNumbersAttr::getMnemonic(),
                                    OutputOperandAliasAttr::getMnemonic(),
                                    ChannelHandleAttr::getMnemonic(),
                                    DotAlgorithmAttr::getMnemonic(),
                                    ResultAccuracyAttr::getMnemonic(),
                                    TypeExtensionsAttr::getMnemonic(),
                                    AxisRefAttr::getMnemonic(),
                                    ReplicaGroupMeshAxesAttr::getMnemonic()};
  return llvm::is_contained(known, mnemonic);
}

Attribute StableHLODialect::parseAttribute(DialectAsmParser &parser, Type type) const {
  StringRef spec = parser.getFullSymbolSpec();
  StringRef keyword = spec.take_while([](char c) { return llvm::isAlnum(c) || c == '_'; });
  if (isModelled(keyword)) {
    StringRef mnemonic;
    Attribute attr;
    if (generatedAttributeParser(parser, &mnemonic, type, attr).has_value())
      return attr;
    return {};
  }
  return OpaqueAttr::get(StringAttr::get(getContext(), getNamespace()), spec,
                         type ? type : NoneType::get(getContext()));
}

void StableHLODialect::printAttribute(Attribute attr, DialectAsmPrinter &printer) const {
  (void)generatedAttributePrinter(attr, printer);
}

//===-- `<key = value, ...>` with keys in any order, each at most once
//--------------------------------------===//

namespace {
using Dims = SmallVector<int64_t>;

struct Field {
  StringRef key;
  llvm::PointerUnion<Dims *, int64_t *> value;
  bool required = false;
};

/// Parses an integer list `[1, 2]`.
ParseResult parseDims(AsmParser &parser, Dims &dims) {
  return parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, [&]() -> ParseResult {
    return parser.parseInteger(dims.emplace_back());
  });
}

ParseResult parseFields(AsmParser &parser, ArrayRef<Field> fields) {
  SmallVector<bool> seen(fields.size());
  auto parseOne = [&]() -> ParseResult {
    StringRef key;
    SMLoc loc = parser.getCurrentLocation();
    if (parser.parseKeyword(&key))
      return failure();
    for (auto [index, field] : llvm::enumerate(fields)) {
      if (field.key != key)
        continue;
      if (seen[index])
        return parser.emitError(loc, "duplicated '") << key << "'";
      seen[index] = true;
      if (parser.parseEqual())
        return failure();
      if (auto *dims = dyn_cast<Dims *>(field.value))
        return parseDims(parser, *dims);
      return parser.parseInteger(*cast<int64_t *>(field.value));
    }
    InFlightDiagnostic error = parser.emitError(loc, "'") << key << "' is none of: ";
    llvm::interleaveComma(fields, error, [&](const Field &field) { error << field.key; });
    return error;
  };
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseCommaSeparatedList(AsmParser::Delimiter::LessGreater, parseOne))
    return failure();
  for (auto [index, field] : llvm::enumerate(fields))
    if (field.required && !seen[index])
      return parser.emitError(loc, "expected '") << field.key << "'";
  return success();
}

/// Prints `key = value` pairs with the right commas.
class FieldPrinter {
public:
  explicit FieldPrinter(AsmPrinter &printer) : printer(printer) { printer << "<"; }
  ~FieldPrinter() { printer << ">"; }
  void always(StringRef key, ArrayRef<int64_t> dims) {
    start(key) << "[";
    llvm::interleaveComma(dims, printer);
    printer << "]";
  }
  void nonEmpty(StringRef key, ArrayRef<int64_t> dims) {
    if (!dims.empty())
      always(key, dims);
  }
  void nonZero(StringRef key, int64_t value) {
    if (value)
      start(key) << value;
  }
  AsmPrinter &start(StringRef key) {
    printer << (first ? "" : ", ") << key << " = ";
    first = false;
    return printer;
  }

private:
  AsmPrinter &printer;
  bool first = true;
};
} // namespace

//===-- Dimension numbers
//-----------------------------------------------------------------------------------===//

Attribute DotDimensionNumbersAttr::parse(AsmParser &parser, Type) {
  Dims dims[4];
  if (parseFields(parser, {{"lhs_batching_dimensions", &dims[0]},
                           {"rhs_batching_dimensions", &dims[1]},
                           {"lhs_contracting_dimensions", &dims[2]},
                           {"rhs_contracting_dimensions", &dims[3]}}))
    return {};
  return get(parser.getContext(), dims[0], dims[1], dims[2], dims[3]);
}

void DotDimensionNumbersAttr::print(AsmPrinter &printer) const {
  FieldPrinter fields(printer);
  fields.nonEmpty("lhs_batching_dimensions", getLhsBatchingDimensions());
  fields.nonEmpty("rhs_batching_dimensions", getRhsBatchingDimensions());
  fields.nonEmpty("lhs_contracting_dimensions", getLhsContractingDimensions());
  fields.nonEmpty("rhs_contracting_dimensions", getRhsContractingDimensions());
}

Attribute GatherDimensionNumbersAttr::parse(AsmParser &parser, Type) {
  Dims dims[5];
  int64_t indexVectorDim = 0;
  if (parseFields(parser, {{"offset_dims", &dims[0]},
                           {"collapsed_slice_dims", &dims[1]},
                           {"operand_batching_dims", &dims[2]},
                           {"start_indices_batching_dims", &dims[3]},
                           {"start_index_map", &dims[4]},
                           {"index_vector_dim", &indexVectorDim}}))
    return {};
  return get(parser.getContext(), dims[0], dims[1], dims[2], dims[3], dims[4], indexVectorDim);
}

void GatherDimensionNumbersAttr::print(AsmPrinter &printer) const {
  FieldPrinter fields(printer);
  fields.nonEmpty("offset_dims", getOffsetDims());
  fields.nonEmpty("collapsed_slice_dims", getCollapsedSliceDims());
  fields.nonEmpty("operand_batching_dims", getOperandBatchingDims());
  fields.nonEmpty("start_indices_batching_dims", getStartIndicesBatchingDims());
  fields.nonEmpty("start_index_map", getStartIndexMap());
  fields.nonZero("index_vector_dim", getIndexVectorDim());
}

Attribute ScatterDimensionNumbersAttr::parse(AsmParser &parser, Type) {
  Dims dims[5];
  int64_t indexVectorDim = 0;
  if (parseFields(parser, {{"update_window_dims", &dims[0]},
                           {"inserted_window_dims", &dims[1]},
                           {"input_batching_dims", &dims[2]},
                           {"scatter_indices_batching_dims", &dims[3]},
                           {"scatter_dims_to_operand_dims", &dims[4]},
                           {"index_vector_dim", &indexVectorDim}}))
    return {};
  return get(parser.getContext(), dims[0], dims[1], dims[2], dims[3], dims[4], indexVectorDim);
}

void ScatterDimensionNumbersAttr::print(AsmPrinter &printer) const {
  FieldPrinter fields(printer);
  fields.nonEmpty("update_window_dims", getUpdateWindowDims());
  fields.nonEmpty("inserted_window_dims", getInsertedWindowDims());
  fields.nonEmpty("input_batching_dims", getInputBatchingDims());
  fields.nonEmpty("scatter_indices_batching_dims", getScatterIndicesBatchingDims());
  fields.nonEmpty("scatter_dims_to_operand_dims", getScatterDimsToOperandDims());
  fields.nonZero("index_vector_dim", getIndexVectorDim());
}

//===-- Convolutions: <[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]>, or raw numbers when that cannot say it
//------===//

namespace {
/// One bracket: two letters for the non-spatial dimensions, numbers for the spatial ones.
struct ConvSide {
  char letters[2];
  int64_t dims[2] = {-1, -1};
  Dims spatial;

  ParseResult parse(AsmParser &parser) {
    SmallVector<std::pair<int64_t, int64_t>> numbered; // (spatial number, place)
    int64_t place = 0;
    auto parseOne = [&]() -> ParseResult {
      SMLoc loc = parser.getCurrentLocation();
      int64_t number;
      OptionalParseResult integer = parser.parseOptionalInteger(number);
      if (integer.has_value()) {
        if (failed(*integer))
          return failure();
        numbered.emplace_back(number, place++);
        return success();
      }
      StringRef letter;
      if (parser.parseKeyword(&letter))
        return failure();
      for (int which : {0, 1}) {
        if (letter.size() != 1 || letter[0] != letters[which])
          continue;
        if (dims[which] >= 0)
          return parser.emitError(loc, "duplicated '") << letter << "'";
        dims[which] = place++;
        return success();
      }
      return parser.emitError(loc, "expected a number, '")
             << StringRef(&letters[0], 1) << "' or '" << StringRef(&letters[1], 1) << "'";
    };
    SMLoc loc = parser.getCurrentLocation();
    if (parser.parseCommaSeparatedList(AsmParser::Delimiter::Square, parseOne))
      return failure();
    llvm::sort(numbered);
    for (auto [index, entry] : llvm::enumerate(numbered)) {
      if (entry.first != static_cast<int64_t>(index))
        return parser.emitError(loc, "the spatial dimensions are not numbered 0, 1, ...");
      spatial.push_back(entry.second);
    }
    if (dims[0] < 0 || dims[1] < 0)
      return parser.emitError(loc, "a non-spatial dimension is missing");
    return success();
  }

  /// Whether the places are a permutation, so that the bracket says everything.
  bool isPermutation() const {
    SmallVector<bool> seen(spatial.size() + 2);
    for (int64_t dim : llvm::concat<const int64_t>(ArrayRef<int64_t>(dims), spatial)) {
      if (dim < 0 || dim >= static_cast<int64_t>(seen.size()) || seen[dim])
        return false;
      seen[dim] = true;
    }
    return true;
  }

  void print(AsmPrinter &printer) const {
    SmallVector<std::string> text(spatial.size() + 2);
    for (int which : {0, 1})
      text[dims[which]] = std::string(1, letters[which]);
    for (auto [index, dim] : llvm::enumerate(spatial))
      text[dim] = std::to_string(index);
    printer << "[";
    llvm::interleaveComma(text, printer);
    printer << "]";
  }
};
} // namespace

Attribute ConvDimensionNumbersAttr::parse(AsmParser &parser, Type) {
  if (parser.parseLess())
    return {};
  if (succeeded(parser.parseOptionalKeyword("raw"))) {
    int64_t n[6];
    Dims s[3];
    auto number = [&](StringRef key, int64_t &value, bool comma = true) -> ParseResult {
      return failure(parser.parseKeyword(key) || parser.parseEqual() || parser.parseInteger(value) ||
                     (comma && parser.parseComma()));
    };
    auto list = [&](StringRef key, Dims &dims, bool comma = true) -> ParseResult {
      return failure(parser.parseKeyword(key) || parser.parseEqual() || parseDims(parser, dims) ||
                     (comma && parser.parseComma()));
    };
    if (number("input_batch_dimension", n[0]) || number("input_feature_dimension", n[1]) ||
        list("input_spatial_dimensions", s[0]) || number("kernel_input_feature_dimension", n[2]) ||
        number("kernel_output_feature_dimension", n[3]) || list("kernel_spatial_dimensions", s[1]) ||
        number("output_batch_dimension", n[4]) || number("output_feature_dimension", n[5]) ||
        list("output_spatial_dimensions", s[2], /*comma=*/false) || parser.parseGreater())
      return {};
    return get(parser.getContext(), n[0], n[1], s[0], n[2], n[3], s[1], n[4], n[5], s[2]);
  }
  ConvSide input{{'b', 'f'}}, kernel{{'i', 'o'}}, output{{'b', 'f'}};
  if (input.parse(parser) || parser.parseKeyword("x") || kernel.parse(parser) || parser.parseArrow() ||
      output.parse(parser) || parser.parseGreater())
    return {};
  return get(parser.getContext(), input.dims[0], input.dims[1], input.spatial, kernel.dims[0], kernel.dims[1],
             kernel.spatial, output.dims[0], output.dims[1], output.spatial);
}

void ConvDimensionNumbersAttr::print(AsmPrinter &printer) const {
  ConvSide input{
      {'b', 'f'}, {getInputBatchDimension(), getInputFeatureDimension()}, Dims(getInputSpatialDimensions())};
  ConvSide kernel{{'i', 'o'},
                  {getKernelInputFeatureDimension(), getKernelOutputFeatureDimension()},
                  Dims(getKernelSpatialDimensions())};
  ConvSide output{{'b', 'f'},
                  {getOutputBatchDimension(), getOutputFeatureDimension()},
                  Dims(getOutputSpatialDimensions())};
  printer << "<";
  if (input.isPermutation() && kernel.isPermutation() && output.isPermutation()) {
    input.print(printer);
    printer << "x";
    kernel.print(printer);
    printer << "->";
    output.print(printer);
  } else {
    auto list = [&](ArrayRef<int64_t> dims) {
      printer << "[";
      llvm::interleaveComma(dims, printer);
      printer << "]";
    };
    printer << "raw input_batch_dimension = " << input.dims[0]
            << ", input_feature_dimension = " << input.dims[1] << ", input_spatial_dimensions = ";
    list(input.spatial);
    printer << ", kernel_input_feature_dimension = " << kernel.dims[0]
            << ", kernel_output_feature_dimension = " << kernel.dims[1] << ", kernel_spatial_dimensions = ";
    list(kernel.spatial);
    printer << ", output_batch_dimension = " << output.dims[0]
            << ", output_feature_dimension = " << output.dims[1] << ", output_spatial_dimensions = ";
    list(output.spatial);
  }
  printer << ">";
}

//===-- The rest
//--------------------------------------------------------------------------------------------===//

Attribute OutputOperandAliasAttr::parse(AsmParser &parser, Type) {
  Dims output, operand;
  int64_t index = 0;
  if (parseFields(parser, {{"output_tuple_indices", &output, true},
                           {"operand_index", &index, true},
                           {"operand_tuple_indices", &operand, true}}))
    return {};
  return get(parser.getContext(), output, index, operand);
}

void OutputOperandAliasAttr::print(AsmPrinter &printer) const {
  FieldPrinter fields(printer);
  fields.always("output_tuple_indices", getOutputTupleIndices());
  fields.start("operand_index") << getOperandIndex();
  fields.always("operand_tuple_indices", getOperandTupleIndices());
}

Attribute DotAlgorithmAttr::parse(AsmParser &parser, Type) {
  Type types[3];
  int64_t counts[3];
  StringRef imprecise;
  auto type = [&](StringRef key, Type &value) -> ParseResult {
    return failure(parser.parseKeyword(key) || parser.parseEqual() || parser.parseType(value) ||
                   parser.parseComma());
  };
  auto count = [&](StringRef key, int64_t &value) -> ParseResult {
    return failure(parser.parseKeyword(key) || parser.parseEqual() || parser.parseInteger(value) ||
                   parser.parseComma());
  };
  if (parser.parseLess() || type("lhs_precision_type", types[0]) || type("rhs_precision_type", types[1]) ||
      type("accumulation_type", types[2]) || count("lhs_component_count", counts[0]) ||
      count("rhs_component_count", counts[1]) || count("num_primitive_operations", counts[2]) ||
      parser.parseKeyword("allow_imprecise_accumulation") || parser.parseEqual())
    return {};
  SMLoc loc = parser.getCurrentLocation();
  if (parser.parseKeyword(&imprecise))
    return {};
  if (imprecise != "true" && imprecise != "false") {
    parser.emitError(loc, "expected 'true' or 'false'");
    return {};
  }
  if (parser.parseGreater())
    return {};
  return get(parser.getContext(), types[0], types[1], types[2], counts[0], counts[1], counts[2],
             imprecise == "true");
}

void DotAlgorithmAttr::print(AsmPrinter &printer) const {
  FieldPrinter fields(printer);
  fields.start("lhs_precision_type") << getLhsPrecisionType();
  fields.start("rhs_precision_type") << getRhsPrecisionType();
  fields.start("accumulation_type") << getAccumulationType();
  fields.start("lhs_component_count") << getLhsComponentCount();
  fields.start("rhs_component_count") << getRhsComponentCount();
  fields.start("num_primitive_operations") << getNumPrimitiveOperations();
  fields.start("allow_imprecise_accumulation") << (getAllowImpreciseAccumulation() ? "true" : "false");
}

Attribute ResultAccuracyAttr::parse(AsmParser &parser, Type) {
  llvm::APFloat atol(0.0), rtol(0.0);
  int64_t ulps = 0;
  ResultAccuracyModeAttr mode;
  auto optionalFloat = [&](StringRef key, llvm::APFloat &value) -> ParseResult {
    if (failed(parser.parseOptionalKeyword(key)))
      return success();
    return failure(parser.parseEqual() || parser.parseFloat(llvm::APFloat::IEEEdouble(), value) ||
                   parser.parseComma());
  };
  if (parser.parseLess() || optionalFloat("atol", atol) || optionalFloat("rtol", rtol))
    return {};
  if (succeeded(parser.parseOptionalKeyword("ulps")) &&
      (parser.parseEqual() || parser.parseInteger(ulps) || parser.parseComma()))
    return {};
  if (parser.parseKeyword("mode") || parser.parseEqual() || parser.parseAttribute(mode) ||
      parser.parseGreater())
    return {};
  return get(parser.getContext(), atol, rtol, ulps, mode);
}

void ResultAccuracyAttr::print(AsmPrinter &printer) const {
  FieldPrinter fields(printer);
  if (!getAtol().isZero())
    fields.start("atol") << getAtol();
  if (!getRtol().isZero())
    fields.start("rtol") << getRtol();
  fields.nonZero("ulps", getUlps());
  fields.start("mode") << getMode();
}

Attribute TypeExtensionsAttr::parse(AsmParser &parser, Type) {
  Dims bounds;
  auto parseOne = [&]() -> ParseResult {
    if (succeeded(parser.parseOptionalQuestion())) {
      bounds.push_back(ShapedType::kDynamic);
      return success();
    }
    return parser.parseInteger(bounds.emplace_back());
  };
  if (parser.parseCommaSeparatedList(AsmParser::Delimiter::LessGreater, parseOne))
    return {};
  return get(parser.getContext(), bounds);
}

void TypeExtensionsAttr::print(AsmPrinter &printer) const {
  printer << "<";
  llvm::interleaveComma(getBounds(), printer, [&](int64_t bound) {
    if (ShapedType::isDynamic(bound))
      printer << "?";
    else
      printer << bound;
  });
  printer << ">";
}

LogicalResult TypeExtensionsAttr::verifyEncoding(ArrayRef<int64_t> shape, Type,
                                                 function_ref<InFlightDiagnostic()> emitError) const {
  if (getBounds().size() != shape.size())
    return emitError() << "the bounds have " << getBounds().size() << " entries for rank " << shape.size();
  return success();
}

Attribute AxisRefAttr::parse(AsmParser &parser, Type) {
  std::string name;
  int64_t preSize = 0, size = 0;
  if (parser.parseLess() || parser.parseKeyword("name") || parser.parseEqual() || parser.parseString(&name))
    return {};
  if (succeeded(parser.parseOptionalComma()) &&
      (parser.parseKeyword("sub_axis_info") || parser.parseEqual() || parser.parseLParen() ||
       parser.parseInteger(preSize) || parser.parseRParen() || parser.parseInteger(size)))
    return {};
  if (parser.parseGreater())
    return {};
  return get(parser.getContext(), StringAttr::get(parser.getContext(), name), preSize, size);
}

void AxisRefAttr::print(AsmPrinter &printer) const {
  printer << "<name = " << getName();
  if (getSubSize())
    printer << ", sub_axis_info = (" << getSubPreSize() << ")" << getSubSize();
  printer << ">";
}

Attribute ReplicaGroupMeshAxesAttr::parse(AsmParser &parser, Type) {
  Attribute mesh;
  ArrayAttr axes;
  if (parser.parseLess() || parser.parseKeyword("mesh") || parser.parseEqual() ||
      parser.parseAttribute(mesh) || parser.parseComma() || parser.parseKeyword("axes") ||
      parser.parseEqual() || parser.parseAttribute(axes) || parser.parseGreater())
    return {};
  return get(parser.getContext(), mesh, axes);
}

void ReplicaGroupMeshAxesAttr::print(AsmPrinter &printer) const {
  printer << "<mesh = " << getMesh() << ", axes = " << getAxes() << ">";
}
