//===- AttentionRewrite.cpp - which attention is worth a kernel, and may have one ===//

#include "passes/fusion/Attention.h"
#include "passes/fusion/Fusion.h"

using namespace mlir;

namespace farrier::fusion {

/// What cuDNN's flash attention does not take, in words; empty if it takes it. The limits are those that
/// jax.nn.dot_product_attention checks for Hopper and later.
static std::string unsupported(const Attention &site, const Settings &settings) {
  int64_t width = site.sizes[site.feature()];
  if (width % 8 != 0 || width > settings.maxHeadWidth)
    return ("cuDNN takes head widths that are multiples of 8 up to " + Twine(settings.maxHeadWidth) +
            ", not " + Twine(width))
        .str();
  if (settings.partitions > 1 && !isLocal(Attention(site).scores))
    return "under automatic sharding XLA would gather a custom call's operands on every device; shard_map "
           "keeps "
           "them where they are";
  if (settings.numerics == Numerics::Bitwise)
    return "a kernel rounds at other places, which numerics=bitwise does not allow";
  if (site.narrowSoftmax && settings.numerics != Numerics::Relaxed)
    return "the softmax is computed in 16 bits and the kernel's in f32; numerics=relaxed allows it";
  if (settings.deterministic && site.hasBackward())
    return "the kernel's backward adds in an order that varies from run to run, and deterministic results "
           "are asked for";
  return "";
}

unsigned rewriteAttention(ModuleOp module, const Settings &settings) {
  SmallVector<stablehlo::DotGeneralOp> candidates;
  module.walk([&](stablehlo::DotGeneralOp dot) {
    RankedTensorType type = tensorType(dot.getResult());
    if (type && type.getRank() >= 2)
      candidates.push_back(dot);
  });
  unsigned applied = 0;
  for (stablehlo::DotGeneralOp dot : candidates) {
    Obstacle obstacle;
    std::optional<Attention> site = matchAttention(dot, obstacle);
    if (!site) {
      if (!obstacle.silent)
        missed(dot, "attention", obstacle.reason + " (" + place(obstacle.where ? obstacle.where : dot) + ")");
      continue;
    }
    if (isForbidden(dot, /*kernel=*/true)) {
      missed(dot, "attention", "a hint forbids it");
      continue;
    }
    if (std::string reason = unsupported(*site, settings); !reason.empty()) {
      missed(dot, "attention", reason);
      continue;
    }
    {
      auto note = remark::passed(dot.getLoc(), remark::RemarkOpts::name("attention").category("fusion"));
      note << (Twine(site->hasBackward() ? "forward and backward become" : "becomes") +
               " cuDNN flash attention, " +
               (site->window ? "causal with a window of " + Twine(site->window)
                             : Twine(site->causal ? "causal" : "no mask")))
                  .str();
      note << remark::metric("Scale", site->scale)
           << remark::metric("HeadWidth", site->sizes[site->feature()])
           << remark::metric("Bound", "f32 softmax and accumulation; probabilities rounded to 16 bits");
    }
    emitAttention(*site);
    ++applied;
  }
  return applied;
}

} // namespace farrier::fusion
