//===- WorthStoring.h - what XLA:GPU stores rather than compute again ------===//

#ifndef FARRIER_ANALYSIS_WORTHSTORING_H
#define FARRIER_ANALYSIS_WORTHSTORING_H

#include "farrier/Dialect/StableHLO/StableHLO.h"

namespace farrier {

/// From how many kernels on that read it computing the operation again in each takes longer than writing its result and
/// reading it again, on the GPUs that are known here; 0 for never. Read off compiled programs (deviceless, H100): with two
/// readers sines and the complementary error function, in bf16 hyperbolic tangents and powers, too; with three, as where a
/// norm's derivative reads it, these also in f32. Exponentials, logarithms, logistics, roots and the error function never.
unsigned leastReadersOfDear(mlir::Operation *op);

/// Whether a sum over rows has fewer columns than a GPU has multiprocessors to give 32 of them to each, and few enough rows
/// that XLA does not sum parts of them first: what it sums is then made by another kernel, if it is more than a product of
/// two. (Read off compiled sums of f32[16,4096,128] and [4,4096,128] against [64,4096,128], [16,4096,512], [16,8192,128];
/// group norms reduce so.)
bool sumsFewColumns(stablehlo::ReduceOp reduce);

/// How many groups of 32 columns the operation sums over rows, of which there are as many as said above; else 0.
int64_t groupsOfColumns(mlir::Operation *op);

/// What the operation sums over so many rows that threads share each column's: 32, of fewer than 32 columns 64; null for other
/// operations. (Compiled: f32 of 8,192 times 31 and 32 rows by 64 columns, 32, 63 and 64 by 31. Below 8 and 3 columns 128 and
/// 256, as XLA's sources have it.)
mlir::Value rowsSummed(mlir::Operation *op);

/// Up to how many groups of columns a value that several such sums and another kernel read is stored: the more arithmetic it
/// takes, the more so in narrow numbers, the more columns occupy the GPU. (Read off compiled gates of channels' means, with
/// and without a norm before, logistic units and rectifiers, bf16 and f32, 64 to 8,192 groups, deviceless, H100.)
int64_t mostGroupsStored(mlir::Value value);

/// Whether the value is computed by at least so many operations that do arithmetic, one after the other.
bool isComputed(mlir::Value value, unsigned least = 2);

} // namespace farrier

#endif // FARRIER_ANALYSIS_WORTHSTORING_H
