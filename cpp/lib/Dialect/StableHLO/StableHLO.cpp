//===- StableHLO.cpp - the dialect, its enums and types --------------------===//

#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace farrier::stablehlo;

#include "farrier/Dialect/StableHLO/StableHLODialect.cpp.inc"
#include "farrier/Dialect/StableHLO/StableHLOEnums.cpp.inc"

#define GET_TYPEDEF_CLASSES
#include "farrier/Dialect/StableHLO/StableHLOTypes.cpp.inc"

namespace farrier::stablehlo {
// Defined by the generated shards.
void registerStableHLODialectOperations(StableHLODialect *dialect);
} // namespace farrier::stablehlo

void StableHLODialect::initialize() {
  registerAttributes();
  registerTypes();
  registerStableHLODialectOperations(this);
  allowUnknownOperations();
  allowUnknownTypes();
}

void StableHLODialect::registerTypes() {
  addTypes<
#define GET_TYPEDEF_LIST
#include "farrier/Dialect/StableHLO/StableHLOTypes.cpp.inc"
      >();
}

Type StableHLODialect::parseType(DialectAsmParser &parser) const {
  StringRef spec = parser.getFullSymbolSpec();
  StringRef keyword = spec.take_while([](char c) { return llvm::isAlnum(c) || c == '_'; });
  if (keyword == TokenType::getMnemonic() || keyword == FutureType::getMnemonic()) {
    StringRef mnemonic;
    Type type;
    if (generatedTypeParser(parser, &mnemonic, type).has_value())
      return type;
    return {};
  }
  return OpaqueType::get(StringAttr::get(getContext(), getNamespace()), spec);
}

void StableHLODialect::printType(Type type, DialectAsmPrinter &printer) const {
  (void)generatedTypePrinter(type, printer);
}

bool farrier::stablehlo::hasUnmodelledAttrs(Operation *op) {
  if (!op->getDiscardableAttrDictionary().empty())
    return true;
  // The declared attributes have names of their own; what is in `<{...}>` beyond those is open.
  auto properties = dyn_cast_or_null<DictionaryAttr>(op->getPropertiesAsAttribute());
  if (!properties)
    return false;
  std::optional<RegisteredOperationName> name = op->getRegisteredInfo();
  return !name || llvm::any_of(properties, [&](NamedAttribute attr) {
    return !llvm::is_contained(name->getAttributeNames(), attr.getName());
  });
}

bool farrier::stablehlo::hasClosedRegions(Operation *op) {
  return isa<ReduceOp, ReduceWindowOp, SelectAndScatterOp, SortOp, MapOp, ScatterOp, AllReduceOp,
             ReduceScatterOp, CollectiveReduceOp>(op);
}
