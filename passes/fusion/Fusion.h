//===- Fusion.h - what the rewrites of this pass share --------------------===//

#ifndef FARRIER_PASSES_FUSION_FUSION_H
#define FARRIER_PASSES_FUSION_FUSION_H

#include "farrier/Support/Registry.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Remarks.h"

#include <map>

namespace farrier::fusion {

/// Makes the pass known by its name. Idempotent.
void registerPasses();

enum class Numerics { Bitwise, Bounded, Relaxed };

/// How XLA splits a product over devices: per dimension of each operand and of the result the axes of the mesh
/// and over how many devices they split it together.
struct ProductSharding {
  struct Dim {
    std::string axes; ///< as Shardy writes them: {} or {"data"}
    int64_t count = 1;
  };
  std::string mesh;
  llvm::SmallVector<Dim> values[3]; ///< left, right, result
};

struct Settings {
  Numerics numerics = Numerics::Bounded;
  bool deterministic = false;
  int64_t chunks = 0;
  int64_t chunkBytes = int64_t(512) << 20;
  int64_t minBytes = int64_t(256) << 20;
  int64_t maxHeadWidth = 256;
  int64_t minOneHotFlops = 1000000000;
  int64_t minStackBytes = 1 << 20;
  int64_t sinkBytes = 4 << 20;
  int64_t fenceBytes = int64_t(256) << 20;
  std::vector<std::string> attentionSplit;      ///< for each matched attention; see Split::parse
  std::map<int64_t, ProductSharding> shardings; ///< by the product's number; see `numberOperations`
  int64_t partitions = 1;                       ///< devices the module's shapes are split over by XLA
};

/// "file:line" of the user's program, or the operation's location as MLIR prints it.
std::string place(mlir::Operation *op);

/// What the user's hint of that name says about `op`, a frontend attribute; "" where there is none.
llvm::StringRef hint(mlir::Operation *op, llvm::StringRef name);

/// Whether a hint asks to leave `op` alone: frontend attribute farrier.fuse = "off" for any rewrite,
/// farrier.kernel = "off" for one that puts a kernel in its place.
bool isForbidden(mlir::Operation *op, bool kernel = false);

/// Whether the shapes around `op` are one device's (inside shard_map).
bool isLocal(mlir::Operation *op);

/// Says that `rewrite` did not apply at `op` and what stood in the way, in words.
void missed(mlir::Operation *op, llvm::StringRef rewrite, const llvm::Twine &reason);

/// Erases pure operations whose results nobody reads.
void eraseDead(mlir::Operation *root);

/// Makes batch dimensions of indices that count rows, in gathers from and scatters into at least `least` bytes
/// (of f32). Exact.
void batchRowNumbers(mlir::ModuleOp module, int64_t least);

/// Each returns the number of sites rewritten.
unsigned rewriteCrossEntropy(mlir::ModuleOp module, const Settings &settings);
unsigned rewriteAttention(mlir::ModuleOp module, const Settings &settings);
unsigned rewriteRaggedDot(mlir::ModuleOp module, const Settings &settings);
unsigned rewriteOneHot(mlir::ModuleOp module, const Settings &settings);
unsigned rewriteStacks(mlir::ModuleOp module, const Settings &settings);
/// Makes what loops only read, and is cheap to make, inside of them.
unsigned rewriteSinks(mlir::ModuleOp module, const Settings &settings);
/// Keeps products in scopes with the frontend attribute farrier.fence = "on" from being merged.
unsigned rewriteFences(mlir::ModuleOp module);
/// Keeps products from being merged where that would raise a block's peak of memory. Calls must have been inlined.
unsigned rewriteMerges(mlir::ModuleOp module, const Settings &settings);

} // namespace farrier::fusion

#endif // FARRIER_PASSES_FUSION_FUSION_H
