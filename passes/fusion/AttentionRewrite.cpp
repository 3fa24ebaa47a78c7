//===- AttentionRewrite.cpp - which attention is worth a kernel, and may have one ===//

#include "passes/fusion/Attention.h"
#include "passes/fusion/Fusion.h"

#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/Sharding.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;

namespace farrier::fusion {

/// Whether all that reads the sum, or what it becomes by moving it, is its conversion to 16 bits.
static bool narrowed(Operation *sum) {
  if (elementBits(sum->getResult(0).getType()) <= 16)
    return true;
  return llvm::all_of(sum->getUsers(), [&](Operation *user) {
    if (isa<stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::ReduceOp, stablehlo::BroadcastInDimOp>(
            user) &&
        tensorType(user->getResult(0)).getNumElements() == tensorType(sum->getResult(0)).getNumElements())
      return narrowed(user);
    return isa<stablehlo::ConvertOp>(user) && elementBits(user->getResult(0).getType()) <= 16;
  });
}

/// What cuDNN's flash attention does not take, in words; empty if it takes it. The limits are those that
/// jax.nn.dot_product_attention checks for Hopper and later.
static std::string unsupported(const Attention &site, const Settings &settings) {
  int64_t width = site.sizes[site.feature()];
  if (width % 8 != 0 || width > settings.maxHeadWidth)
    return ("cuDNN takes head widths that are multiples of 8 up to " + Twine(settings.maxHeadWidth) +
            ", not " + Twine(width))
        .str();
  if (settings.numerics == Numerics::Bitwise)
    return "a kernel rounds at other places, which numerics=bitwise does not allow";
  if (site.wideProbabilities && settings.numerics != Numerics::Relaxed)
    return "probabilities are multiplied in f32 and the kernel rounds them to 16 bits; numerics=relaxed "
           "allows it";
  if (site.bias && site.hasBackward() && (site.sizes[*site.row] % 2 != 0 || site.sizes[site.column] % 2 != 0))
    return "with a bias, cuDNN's backward takes even numbers of positions";
  if (site.wideBias && settings.numerics != Numerics::Relaxed)
    return "a bias is added that has more digits than the 16 bits in which the kernel takes it; "
           "numerics=relaxed "
           "allows it";
  if (site.biasGradient && settings.numerics != Numerics::Relaxed && !narrowed(site.biasGradient.sum))
    return "the bias's gradient is kept in f32 and the kernel's has 16 bits; numerics=relaxed allows it";
  if (site.narrowSoftmax && settings.numerics != Numerics::Relaxed)
    return "the softmax is computed in 16 bits and the kernel's in f32; numerics=relaxed allows it";
  if (settings.deterministic && site.hasBackward())
    return "the kernel's backward adds in an order that varies from run to run, and deterministic results "
           "are asked for";
  return "";
}

/// Finds out over which mesh axes the kernels are split; in words why they cannot be.
static std::string splitOver(Attention &site, const Settings &settings, unsigned number) {
  if (settings.partitions == 1)
    return "";
  bool told = number < settings.attentionSplit.size();
  StringRef text = told ? StringRef(settings.attentionSplit[number]) : "";
  if (text == "local" || (!told && isLocal(site.scores)))
    return "";
  if (!told)
    return "under automatic sharding XLA would gather a custom call's operands on every device, and nobody "
           "said how they are split (attention-split)";
  std::string whyNot;
  site.split = Split::parse(text, whyNot);
  if (site.split)
    whyNot = site.cannotSplit();
  return whyNot;
}

SmallVector<stablehlo::DotGeneralOp> attentionCandidates(ModuleOp module) {
  SmallVector<stablehlo::DotGeneralOp> candidates;
  module.walk([&](stablehlo::DotGeneralOp dot) {
    RankedTensorType type = tensorType(dot.getResult());
    if (type && type.getRank() >= 2)
      candidates.push_back(dot);
  });
  return candidates;
}

static std::string maskName(const Attention &site) {
  if (site.window)
    return ("causal with a window of " + Twine(site.window)).str();
  std::string mask = site.causal ? "causal" : "no mask";
  if (!site.bias)
    return mask;
  return (site.causal ? "causal and " : "") + std::string("a bias or mask as a tensor") +
         (site.biasGradient ? " with its gradient" : "");
}

unsigned rewriteAttention(ModuleOp module, const Settings &settings) {
  unsigned applied = 0, matched = 0;
  for (stablehlo::DotGeneralOp dot : attentionCandidates(module)) {
    Obstacle obstacle;
    std::optional<Attention> site = matchAttention(dot, obstacle);
    if (!site) {
      if (!obstacle.silent)
        missed(dot, "attention", obstacle.reason + " (" + place(obstacle.where ? obstacle.where : dot) + ")");
      continue;
    }
    unsigned number = matched++;
    if (isForbidden(dot, /*kernel=*/true)) {
      missed(dot, "attention", "a hint forbids it");
      continue;
    }
    std::string reason = unsupported(*site, settings);
    if (reason.empty())
      reason = splitOver(*site, settings, number);
    if (!reason.empty()) {
      missed(dot, "attention", reason);
      continue;
    }
    {
      auto note = remark::passed(dot.getLoc(), remark::RemarkOpts::name("attention").category("fusion"));
      note << (Twine(site->hasBackward() ? "forward and backward become" : "becomes") +
               " cuDNN flash attention, " + maskName(*site))
                  .str();
      note << remark::metric("Scale", site->scale)
           << remark::metric("HeadWidth", site->sizes[site->feature()])
           << remark::metric("Bound", "f32 softmax and accumulation; probabilities rounded to 16 bits");
      if (site->split)
        note << remark::metric("BatchShards", site->split->batchShards())
             << remark::metric("HeadShards", site->split->headShards());
    }
    emitAttention(*site);
    ++applied;
  }
  return applied;
}

/// A value as the numbered program names it: the result of an operation, or an argument of the function.
static llvm::json::Value named(Value value) {
  int64_t index = 0;
  Operation *owner = value.getDefiningOp();
  if (auto argument = dyn_cast<BlockArgument>(value)) {
    index = argument.getArgNumber();
    owner = argument.getOwner()->getParentOp();
    if (isa_and_nonnull<func::FuncOp>(owner))
      return llvm::json::Object{{"argument", index}};
  } else {
    index = cast<OpResult>(value).getResultNumber();
  }
  auto number = owner ? owner->getAttrOfType<IntegerAttr>("farrier.op") : IntegerAttr();
  if (!number || (isa<BlockArgument>(value) && !isa<stablehlo::WhileOp>(owner)))
    return nullptr;
  return llvm::json::Object{{"op", number.getInt()}, {"result", index}};
}

/// The axes that make up each dimension, outermost first.
static llvm::json::Value dimensions(const Tensor &tensor) {
  SmallVector<SmallVector<unsigned>> dims(tensorType(tensor.value).getRank());
  for (unsigned axis = 0; axis < tensor.roles.size(); ++axis)
    if (tensor.roles[axis])
      dims[tensor.roles[axis]->dim].push_back(axis);
  llvm::json::Array result;
  for (auto &axes : dims) {
    llvm::sort(axes, [&](unsigned a, unsigned b) { return tensor.roles[a]->inner > tensor.roles[b]->inner; });
    result.push_back(llvm::json::Array(axes));
  }
  return result;
}

FailureOr<llvm::json::Value> attentionQuery(ModuleOp module, const llvm::json::Object &) {
  OwningOpRef<ModuleOp> copy(module.clone());
  inlineCalls(*copy);
  numberOperations(*copy);
  eraseDead(*copy);
  llvm::json::Array sites;
  for (stablehlo::DotGeneralOp dot : attentionCandidates(*copy)) {
    Obstacle obstacle;
    std::optional<Attention> site = matchAttention(dot, obstacle);
    if (!site)
      continue;
    SmallVector<unsigned> batch, heads;
    site->batchAndHeads(batch, heads);
    llvm::json::Object tensors;
    for (auto [name, tensor] :
         {std::pair("query", &site->query), std::pair("key", &site->key), std::pair("value", &site->value)})
      tensors[name] = llvm::json::Object{{"value", named(tensor->value)}, {"dims", dimensions(*tensor)}};
    llvm::json::Array manual;
    for (Operation *parent = dot->getParentOp(); parent; parent = parent->getParentOp())
      if (isManualComputation(parent) && parent->getNumResults() > 0)
        manual.push_back(named(parent->getResult(0)));
    sites.push_back(llvm::json::Object{{"sizes", llvm::json::Array(site->sizes)},
                                       {"batch", llvm::json::Array(batch)},
                                       {"heads", llvm::json::Array(heads)},
                                       {"positions", llvm::json::Array{*site->row, site->column}},
                                       {"width", site->feature()},
                                       {"tensors", std::move(tensors)},
                                       {"manual", std::move(manual)}});
  }
  return llvm::json::Value(std::move(sites));
}

} // namespace farrier::fusion
