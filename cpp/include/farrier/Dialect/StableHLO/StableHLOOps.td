#ifndef FARRIER_STABLEHLO_OPS
#define FARRIER_STABLEHLO_OPS

include "farrier/Dialect/StableHLO/CollectiveOps.td"
include "farrier/Dialect/StableHLO/ControlFlowOps.td"
include "farrier/Dialect/StableHLO/DataMovementOps.td"
include "farrier/Dialect/StableHLO/DynamicOps.td"
include "farrier/Dialect/StableHLO/EffectOps.td"
include "farrier/Dialect/StableHLO/ElementwiseOps.td"
include "farrier/Dialect/StableHLO/LinearAlgebraOps.td"
include "farrier/Dialect/StableHLO/ReductionOps.td"

#endif // FARRIER_STABLEHLO_OPS
