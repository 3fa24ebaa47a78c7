#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "farrier/Dialect/StableHLO/StableHLODialect.cpp.inc"

void farrier::stablehlo::StableHLODialect::initialize() {
  allowUnknownOperations();
  allowUnknownTypes();
}
