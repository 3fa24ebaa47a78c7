//===- OpenWorld.h - registration that keeps unknown attributes -*- C++ -*-===//
//
// Generated setPropertiesFromAttr() ignores keys of `<{...}>` that ODS does not declare, so an attribute that
// a newer jaxlib added would vanish without a word. Operations are registered through Open<OpT>, which keeps
// such keys in the hidden property `open_attrs` and gives them back wherever properties are read as
// attributes. Open<OpT> answers to OpT's TypeID: isa, cast and patterns see OpT.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_LIB_DIALECT_STABLEHLO_OPENWORLD_H
#define FARRIER_LIB_DIALECT_STABLEHLO_OPENWORLD_H

#include "farrier/Dialect/StableHLO/StableHLO.h"

namespace farrier::stablehlo {

template <typename OpT> struct Open : OpT {
  using OpT::OpT;

  template <typename PropertiesT>
  static mlir::LogicalResult setPropertiesFromAttr(PropertiesT &properties, mlir::Attribute attr,
                                                   llvm::function_ref<mlir::InFlightDiagnostic()> emitError) {
    auto dict = llvm::dyn_cast_or_null<mlir::DictionaryAttr>(attr);
    if (!dict)
      return OpT::setPropertiesFromAttr(properties, attr, emitError);
    llvm::SmallVector<mlir::NamedAttribute> known, open;
    for (mlir::NamedAttribute named : dict)
      (llvm::is_contained(OpT::getAttributeNames(), named.getName().strref()) ? known : open)
          .push_back(named);
    mlir::MLIRContext *context = dict.getContext();
    if (open.empty())
      return OpT::setPropertiesFromAttr(properties, dict, emitError);
    if (mlir::failed(
            OpT::setPropertiesFromAttr(properties, mlir::DictionaryAttr::get(context, known), emitError)))
      return mlir::failure();
    properties.open_attrs = mlir::DictionaryAttr::get(context, open);
    return mlir::success();
  }

  template <typename PropertiesT>
  static mlir::Attribute getPropertiesAsAttr(mlir::MLIRContext *context, const PropertiesT &properties) {
    mlir::NamedAttrList all;
    populateInherentAttrs(context, properties, all);
    return all.empty() ? mlir::Attribute() : all.getDictionary(context);
  }

  template <typename PropertiesT>
  static void populateInherentAttrs(mlir::MLIRContext *context, const PropertiesT &properties,
                                    mlir::NamedAttrList &attrs) {
    OpT::populateInherentAttrs(context, properties, attrs);
    if (properties.open_attrs)
      attrs.append(properties.open_attrs.getValue());
  }
};

} // namespace farrier::stablehlo

namespace mlir {
namespace detail {
template <typename OpT> class TypeIDResolver<farrier::stablehlo::Open<OpT>> {
public:
  static TypeID resolveTypeID() { return TypeID::get<OpT>(); }
};
} // namespace detail

/// Stands in for RegisteredOperationName while generated definitions are compiled; differs in `insert` alone.
struct FarrierOpenWorld : RegisteredOperationName {
  FarrierOpenWorld(RegisteredOperationName name) : RegisteredOperationName(name) {}
  template <typename OpT> static void insert(Dialect &dialect) {
    mlir::RegisteredOperationName::insert<farrier::stablehlo::Open<OpT>>(dialect);
  }
};
} // namespace mlir

#endif // FARRIER_LIB_DIALECT_STABLEHLO_OPENWORLD_H
