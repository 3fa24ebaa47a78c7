//===- OpCost.h - floating point operations, bytes and time ----------------===//

#ifndef FARRIER_ANALYSIS_OPCOST_H
#define FARRIER_ANALYSIS_OPCOST_H

#include "mlir/IR/BuiltinOps.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/Support/JSON.h"

#include <optional>

namespace farrier {

/// The figures of a target that cost models use. Rates are what kernels reach, not datasheet peaks: the peak
/// times the efficiency, both given by the target's description.
struct Machine {
  double flopsHalf = 600e12;                 ///< bf16 / f16 products, FLOP/s
  double flopsFull = 300e12;                 ///< f32 products (TF32 rate), FLOP/s
  double flopsDouble = 40e12;                ///< f64 products, FLOP/s
  double flopsByte = 1200e12;                ///< fp8 / int8 products, FLOP/s
  double bytesPerSecond = 2.6e12;            ///< device memory
  double hostBytesPerSecond = 50e9;          ///< host link, one direction; 0: none
  double interconnectBytesPerSecond = 340e9; ///< collectives inside a host, per device
  double kernelSeconds = 2e-6;               ///< the least a kernel costs

  /// From the "machine" object of a query's options; absent fields keep their defaults.
  static Machine fromJSON(const llvm::json::Object *object);
};

struct OpCost {
  double flops = 0;   ///< of products, convolutions and attention; elementwise work is not counted
  double bytes = 0;   ///< read and written if nothing is fused
  double seconds = 0; ///< roofline time on the machine

  OpCost &operator+=(const OpCost &other) {
    flops += other.flops;
    bytes += other.bytes;
    seconds += other.seconds;
    return *this;
  }
};

/// How often the body of a `stablehlo.while` runs, when its condition compares an induction variable that
/// starts at a constant and advances by a constant with a constant; nullopt otherwise.
std::optional<int64_t> tripCount(mlir::Operation *whileOp);

/// Cost of running `op` once, loops inside it times their trip counts (once where the count is not
/// constant), branches at their most expensive, calls at their callee's. Of a partitioned program whose
/// shards are known (Sharding.h), the part that one device does.
class CostModel {
public:
  explicit CostModel(mlir::ModuleOp module, Machine machine = {}) : symbols(module), machine(machine) {}

  OpCost cost(mlir::Operation *op);
  OpCost cost(mlir::Block &block);
  /// The whole program: its public function.
  OpCost total();

  const Machine &getMachine() const { return machine; }

private:
  mlir::ModuleOp symbols;
  Machine machine;
  llvm::DenseMap<mlir::Operation *, OpCost> functions;
};

} // namespace farrier

#endif // FARRIER_ANALYSIS_OPCOST_H
