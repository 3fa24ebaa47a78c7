#include "farrier/Analysis/PartialSums.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/Sharding.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinOps.h"

using namespace mlir;

namespace farrier {

// Read off compiled programs (deviceless, H100): f32[4,1024,384] of a sum over 1,536, f32[8,512,256] over 2,048,
// f32[32,256,256] over 16,384, f32[2,2048,512] over 4,096.
static constexpr int64_t tileElements = 64 * 128, mostTiles = 256, leastSum = 256, bytesOfPart = 4;

int64_t partialSums(Operation *op) {
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
  // How much of the sum a device of several has is not known here.
  if (!dot || partitionsOf(op) > 1)
    return 0;
  auto type = dyn_cast<RankedTensorType>(dot.getType());
  auto left = dyn_cast<RankedTensorType>(dot.getLhs().getType());
  if (!type || !left || !type.hasStaticShape() || !left.hasStaticShape())
    return 0;
  int64_t sum = 1, elements = type.getNumElements();
  for (int64_t dim : dot.getDotDimensionNumbers().getLhsContractingDimensions())
    sum *= left.getDimSize(dim);
  int64_t parts = 1;
  while (2 * parts * elements <= mostTiles * tileElements && sum >= 2 * parts * leastSum)
    parts *= 2;
  return parts > 1 ? parts * elements * bytesOfPart : 0;
}

} // namespace farrier
