#ifndef FARRIER_DIALECT_STABLEHLO_STABLEHLO_H
#define FARRIER_DIALECT_STABLEHLO_STABLEHLO_H

#include "mlir/IR/Dialect.h"

#include "farrier/Dialect/StableHLO/StableHLODialect.h.inc"

#endif // FARRIER_DIALECT_STABLEHLO_STABLEHLO_H
