#include "farrier/Analysis/PartialSums.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/Sharding.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinOps.h"
#include "llvm/Support/MathExtras.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

// Read off compiled programs (deviceless, H100): f32[4,1024,384] of a sum over 1,536, f32[8,512,256] over 2,048,
// f32[32,256,256] over 16,384, f32[2,2048,512] over 4,096, f32[4,768,768], f32[2,1792,768], f32[16,1280,128],
// f32[8,2048,64], f32[4,5120,64] and [4,64,5120].
static constexpr int64_t tileSides[] = {64, 128}, leastTiles = 256, leastSum = 256, bytesOfPart = 4;

int64_t partialSums(Operation *op) {
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
  // How much of the sum a device of several has is not known here.
  if (!dot || partitionsOf(op) > 1)
    return 0;
  auto type = dyn_cast<RankedTensorType>(dot.getType());
  auto left = dyn_cast<RankedTensorType>(dot.getLhs().getType());
  if (!type || !left || !type.hasStaticShape() || !left.hasStaticShape())
    return 0;
  auto numbers = dot.getDotDimensionNumbers();
  int64_t sum = 1, batch = 1, elements = type.getNumElements();
  for (int64_t dim : numbers.getLhsContractingDimensions())
    sum *= left.getDimSize(dim);
  for (int64_t dim : numbers.getLhsBatchingDimensions())
    batch *= left.getDimSize(dim);
  if (elements == 0 || sum == 0)
    return 0;
  int64_t rows = left.getNumElements() / sum / batch, columns = elements / batch / rows;
  auto tiles = [&](int64_t high, int64_t wide) {
    return batch * llvm::divideCeil(rows, high) * llvm::divideCeil(columns, wide);
  };
  int64_t whole = std::max(tiles(tileSides[0], tileSides[1]), tiles(tileSides[1], tileSides[0]));
  int64_t parts = 1;
  while (parts * whole < leastTiles && sum >= 2 * parts * leastSum)
    parts *= 2;
  return parts > 1 ? parts * elements * bytesOfPart : 0;
}

} // namespace farrier
