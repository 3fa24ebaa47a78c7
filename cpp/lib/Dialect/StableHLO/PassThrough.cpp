//===- PassThrough.cpp - dialects that farrier carries but does not know ---===//
//
// An operation of an unregistered dialect with one region might be a symbol table, so MLIR refuses to look
// through it: a func.call inside sdy.manual_computation would fail to verify. Registered here are the
// dialects that JAX wraps programs in, with nothing but their names: operations, attributes and types of
// theirs stay opaque.
//
//===----------------------------------------------------------------------===//

#include "farrier/Dialect/StableHLO/StableHLO.h"

using namespace mlir;

namespace farrier::stablehlo {
namespace {
class PassThroughDialect : public Dialect {
public:
  PassThroughDialect(StringRef name, MLIRContext *context, TypeID id) : Dialect(name, context, id) {
    allowUnknownOperations();
    allowUnknownTypes();
  }
  Attribute parseAttribute(DialectAsmParser &parser, Type type) const override {
    return OpaqueAttr::get(StringAttr::get(getContext(), getNamespace()), parser.getFullSymbolSpec(),
                           type ? type : NoneType::get(getContext()));
  }
  Type parseType(DialectAsmParser &parser) const override {
    return OpaqueType::get(StringAttr::get(getContext(), getNamespace()), parser.getFullSymbolSpec());
  }
};

#define FARRIER_PASS_THROUGH(Class, name)                                                                    \
  struct Class : PassThroughDialect {                                                                        \
    MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(Class)                                                      \
    explicit Class(MLIRContext *context) : PassThroughDialect(name, context, TypeID::get<Class>()) {}        \
    static constexpr llvm::StringLiteral getDialectNamespace() { return llvm::StringLiteral(name); }         \
  };
FARRIER_PASS_THROUGH(ChloDialect, "chlo")
FARRIER_PASS_THROUGH(MhloDialect, "mhlo")
FARRIER_PASS_THROUGH(SdyDialect, "sdy")
} // namespace

void registerPassThroughDialects(DialectRegistry &registry) {
  registry.insert<ChloDialect, MhloDialect, SdyDialect>();
}
} // namespace farrier::stablehlo
