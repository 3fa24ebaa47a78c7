//===- FusionPass.cpp - runs the rewrites on a copy, keeps it if one applied ===//

#include "passes/fusion/Attention.h"
#include "passes/fusion/Fusion.h"
#include "passes/fusion/Loops.h"

#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/Sharding.h"
#include "farrier/Analysis/ValueKey.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Interfaces/SideEffectInterfaces.h"
#include "mlir/Pass/Pass.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSwitch.h"

using namespace mlir;

namespace farrier {
#define GEN_PASS_DECL_FUSION
#define GEN_PASS_DEF_FUSION
#include "passes/fusion/Passes.h.inc"

namespace fusion {

std::string place(Operation *op) {
  if (std::string line = sourceLine(op->getLoc()); !line.empty())
    return line;
  std::string text;
  llvm::raw_string_ostream os(text);
  op->getLoc().print(os);
  return text;
}

StringRef hint(Operation *op, StringRef name) {
  auto attributes = op->getAttrOfType<DictionaryAttr>("mhlo.frontend_attributes");
  auto value = attributes ? attributes.getAs<StringAttr>(name) : StringAttr();
  return value ? value.getValue() : "";
}

bool isForbidden(Operation *op, bool kernel) {
  return hint(op, "farrier.fuse") == "off" || (kernel && hint(op, "farrier.kernel") == "off");
}

bool isLocal(Operation *op) {
  for (Operation *parent = op->getParentOp(); parent; parent = parent->getParentOp())
    if (isManualComputation(parent))
      return true;
  return false;
}

void missed(Operation *op, StringRef rewrite, const Twine &reason) {
  remark::missed(op->getLoc(), remark::RemarkOpts::name(rewrite).category("fusion"))
      << ("left as it is: " + reason).str();
}

void eraseDead(Operation *root) {
  // Post-order in reverse: users before producers, so one sweep is enough inside a block.
  root->walk<WalkOrder::PreOrder>([&](Block *block) {
    for (Operation &op : llvm::make_early_inc_range(llvm::reverse(*block)))
      if (isOpTriviallyDead(&op))
        op.erase();
  });
}

} // namespace fusion

namespace {

/// Reads one entry of the option `shardings`.
LogicalResult readSharding(StringRef entry, fusion::Settings &settings) {
  SmallVector<StringRef> fields, dims, axes;
  entry.split(fields, ':');
  int64_t number = 0;
  if (fields.size() != 5 || fields[0].getAsInteger(10, number) || fields[1].empty())
    return failure();
  fusion::ProductSharding sharding;
  sharding.mesh = fields[1].str();
  for (unsigned i = 0; i < 3; ++i) {
    dims.clear();
    fields[i + 2].split(dims, '/');
    for (StringRef dim : dims) {
      fusion::ProductSharding::Dim read{"{", 1};
      axes.clear();
      if (dim != "-")
        dim.split(axes, '+');
      for (StringRef axis : axes) {
        auto [name, size] = axis.rsplit('*');
        int64_t count = 0;
        if (size.getAsInteger(10, count) || count < 1)
          return failure();
        read.axes += (read.count == 1 && read.axes == "{" ? "\"" : ", \"") + name.str() + "\"";
        read.count *= count;
      }
      read.axes += "}";
      sharding.values[i].push_back(std::move(read));
    }
  }
  settings.shardings[number] = std::move(sharding);
  return success();
}

class FusionPass : public impl::FusionBase<FusionPass>, public CounterSet {
public:
  FusionPass() = default;
  FusionPass(const FusionOptions &options) : FusionBase(options) {}
  FusionPass(const FusionPass &other) : FusionBase(other), CounterSet(other) {}

  void runOnOperation() override {
    ModuleOp module = getOperation();
    fusion::Settings settings;
    if (failed(read(settings)))
      return signalPassFailure();
    settings.partitions = partitionsOf(module);

    if (enabled("ragged-dot"))
      raggedDot += fusion::rewriteRaggedDot(module, settings);

    if (enabled("fence"))
      fence += fusion::rewriteFences(module);

    // Fewer bytes moved, and more memory: only where it is asked for.
    bool stacksToo = llvm::is_contained(rewrites, "stacks");

    // Matching needs a flat program. It happens on a copy, so that a program with nothing to gain comes out
    // as it went in, calls and all.
    bool candidate = false;
    module.walk([&](Operation *op) {
      candidate |= isa<stablehlo::ExpOp>(op) || (isa<stablehlo::WhileOp>(op) && (stacksToo || enabled("sink"))) ||
                   (isa<stablehlo::IotaOp>(op) && enabled("one-hot")) ||
                   (isa<stablehlo::DotGeneralOp>(op) && enabled("fence"));
    });
    if (!candidate)
      return;
    OwningOpRef<ModuleOp> copy(module.clone());
    inlineCalls(*copy);
    bool numbered = !settings.shardings.empty();
    if (numbered)
      numberOperations(*copy);
    fusion::eraseDead(*copy);
    unsigned applied = 0;
    if (enabled("one-hot")) {
      unsigned sites = fusion::rewriteOneHot(*copy, settings);
      oneHot += sites;
      applied += sites;
      if (sites)
        fusion::eraseDead(*copy);
    }
    if (enabled("cross-entropy")) {
      unsigned sites = fusion::rewriteCrossEntropy(*copy, settings);
      crossEntropy += sites;
      applied += sites;
    }
    if (numbered)
      copy->walk([](Operation *op) { op->removeDiscardableAttr("farrier.op"); });
    if (enabled("attention")) {
      unsigned sites = fusion::rewriteAttention(*copy, settings);
      attention += sites;
      applied += sites;
    }
    if (applied) {
      fusion::eraseDead(*copy);
      if (fusion::eraseDeadState(*copy))
        fusion::eraseDead(*copy); // what the dropped state started from
    }
    if (stacksToo) {
      unsigned sites = fusion::rewriteStacks(*copy, settings);
      stacks += sites;
      applied += sites;
    }
    if (enabled("sink")) {
      unsigned sites = fusion::rewriteSinks(*copy, settings);
      sink += sites;
      applied += sites;
      if (sites)
        fusion::eraseDeadState(*copy);
    }
    if (enabled("fence")) {
      unsigned sites = fusion::rewriteMerges(*copy, settings);
      fence += sites;
      applied += sites;
    }
    if (!applied)
      return;
    fusion::eraseDead(*copy);
    module.getBodyRegion().takeBody(copy->getBodyRegion());
  }

private:
  LogicalResult read(fusion::Settings &settings) {
    static constexpr StringRef known[] = {"cross-entropy", "attention", "ragged-dot", "one-hot",
                                          "sink",          "fence",     "stacks"};
    for (const std::string &name : rewrites)
      if (!llvm::is_contained(known, name))
        return emitError(UnknownLoc::get(&getContext()))
               << "farrier-fusion has no rewrite '" << name << "': " << llvm::join(ArrayRef(known), ", ");
    auto level = llvm::StringSwitch<std::optional<fusion::Numerics>>(numerics)
                     .Case("bitwise", fusion::Numerics::Bitwise)
                     .Case("bounded", fusion::Numerics::Bounded)
                     .Case("relaxed", fusion::Numerics::Relaxed)
                     .Default(std::nullopt);
    if (!level)
      return emitError(UnknownLoc::get(&getContext()))
             << "farrier-fusion: numerics is bitwise, bounded or relaxed, not '" << numerics << "'";
    if (chunks < 0 || chunkBytes <= 0 || minBytes < 0 || minOneHotFlops < 0 || minStackBytes < 0 ||
        fenceBytes < 0 || sinkBytes < 0)
      return emitError(UnknownLoc::get(&getContext()))
             << "farrier-fusion: a count of chunks, bytes or operations is negative";
    for (const std::string &entry : shardings)
      if (failed(readSharding(entry, settings)))
        return emitError(UnknownLoc::get(&getContext()))
               << "farrier-fusion: a sharding is NUMBER:MESH:LEFT:RIGHT:RESULT, not '" << entry << "'";
    settings.numerics = *level;
    settings.deterministic = deterministic;
    settings.chunks = chunks;
    settings.chunkBytes = chunkBytes;
    settings.minBytes = minBytes;
    settings.maxHeadWidth = maxHeadWidth;
    settings.minOneHotFlops = minOneHotFlops;
    settings.minStackBytes = minStackBytes;
    settings.fenceBytes = fenceBytes;
    settings.sinkBytes = sinkBytes;
    settings.attentionSplit.assign(attentionSplit.begin(), attentionSplit.end());
    return success();
  }

  bool enabled(StringRef rewrite) { return rewrites.empty() || llvm::is_contained(rewrites, rewrite); }

  Counter crossEntropy{this, "cross-entropy"};
  Counter attention{this, "attention"};
  Counter raggedDot{this, "ragged-dot"};
  Counter oneHot{this, "one-hot"};
  Counter sink{this, "sink"};
  Counter fence{this, "fence"};
  Counter stacks{this, "stacks"};
};

} // namespace

void fusion::registerPasses() {
  PassRegistration<FusionPass>();
  registerQuery("fusion.attention", fusion::attentionQuery);
}
} // namespace farrier
