#ifndef FARRIER_STABLEHLO_OPS
#define FARRIER_STABLEHLO_OPS
include "mlir/IR/OpBase.td"

def StableHLO_Dialect : Dialect {
  let name = "stablehlo";
  let cppNamespace = "::farrier::stablehlo";
  let summary = "The StableHLO operation set, declared from its public specification.";
}
#endif
