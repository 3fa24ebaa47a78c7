//===- MergeFences.cpp - fences where merging products raises memory -------===//
//
// A program that computes in parts to save memory (micro-batches written one after another, a feed-forward layer or a
// loss in chunks of rows) multiplies every part by the same weights. XLA:GPU's DotMerger joins such products, and
// what each part needed for a while, all of it then needs at once. Whether that matters is read off the estimate of
// memory: the block's live ranges as the program orders them, against those where products that would be joined
// start together and end together.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Build.h"
#include "passes/fusion/Fusion.h"

#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/OpInfo.h"

using namespace mlir;

namespace farrier::fusion {

namespace {

/// Two products are joined if one of their results is smaller than this (measured: results of 48 MiB are, of 64 MiB
/// are not, whatever their operands' sizes).
constexpr int64_t kMergedBelow = 64 << 20;
/// Dependence among the products of a group is kept in one word.
constexpr unsigned kMostTogether = 64;

/// Products that read the same operand in the same way and do not depend on each other.
struct Group {
  unsigned shared = 0; ///< the operand
  SmallVector<unsigned> products;
};

/// Products that XLA makes one of.
struct Merged {
  unsigned group = 0;
  SmallVector<unsigned, 4> products;
  int64_t bytes = 0;
};

class MergeFences {
public:
  MergeFences(Block &block, const SizeFn &size)
      : graph(block, size), size(size), blocks(graph.numOps(), 0) {}

  unsigned run(int64_t leastBytes);

private:
  void findGroups();
  void keepIndependent(Group &group);
  void findMerged();
  int64_t peakOf(const std::vector<int64_t> &profile) const {
    return profile.empty() ? 0 : *llvm::max_element(profile);
  }
  /// What joining adds to the bytes that are live during each operation.
  void add(const Merged &merged, const Liveness &liveness, std::vector<int64_t> &profile) const;
  /// Whether the results are hardly there together as the program is written.
  bool areApart(const Merged &merged, const Liveness &liveness) const;
  unsigned value(unsigned product) const { return graph.outputs[product][0]; }
  int64_t bytes(unsigned product) const { return graph.bytes[value(product)]; }

  BlockGraph graph;
  const SizeFn &size;
  std::vector<uint64_t> blocks; ///< of each op while a group is looked at: the products it depends on
  std::vector<Group> groups;
  std::vector<Merged> merges;
};

/// What a value is made of, as far as one operand each: casts and views of one value are the same value to XLA.
std::vector<const void *> origin(Value value) {
  std::vector<const void *> key;
  for (Operation *op = value.getDefiningOp(); op; op = value.getDefiningOp()) {
    bool isView = op->getNumOperands() == 1 && op->getNumResults() == 1 && op->getNumRegions() == 0 &&
                  classify(op) == OpClass::Virtual && isClonable(op);
    if (!isView)
      break;
    key.push_back(op->getName().getAsOpaquePointer());
    key.push_back(op->getAttrDictionary().getAsOpaquePointer());
    key.push_back(value.getType().getAsOpaquePointer());
    value = op->getOperand(0);
  }
  key.push_back(value.getAsOpaquePointer());
  return key;
}

void MergeFences::findGroups() {
  std::map<std::vector<const void *>, unsigned> numbers;
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    auto dot = dyn_cast<stablehlo::DotGeneralOp>(graph.ops[op]);
    if (!dot || isForbidden(dot) || dot.getLhs() == dot.getRhs() || bytes(op) >= kMergedBelow)
      continue;
    for (unsigned side : {0u, 1u}) {
      // Weights and the like: what is read again and again is at least there from the first to the last.
      std::vector<const void *> key = origin(dot->getOperand(side));
      RankedTensorType other = cast<RankedTensorType>(dot->getOperand(1 - side).getType());
      auto pointer = [&](auto of) { key.push_back(of.getAsOpaquePointer()); };
      pointer(dot.getDotDimensionNumbersAttr());
      pointer(dot->getAttr("precision_config") ? dot->getAttr("precision_config") : Attribute());
      pointer(other.getElementType());
      pointer(cast<RankedTensorType>(dot.getResult().getType()).getElementType());
      key.push_back(side ? &numbers : nullptr);
      auto [it, isNew] = numbers.try_emplace(std::move(key), groups.size());
      if (isNew)
        groups.push_back({side, {}});
      groups[it->second].products.push_back(op);
    }
  }
  for (Group &group : groups)
    keepIndependent(group);
}

void MergeFences::keepIndependent(Group &group) {
  if (group.products.size() < 2)
    return group.products.clear();
  SmallVector<unsigned> kept;
  group.products.resize(std::min<size_t>(group.products.size(), kMostTogether));
  unsigned first = group.products.front(), last = group.products.back();
  uint64_t taken = 0;
  auto *next = group.products.begin();
  for (unsigned op = first; op <= last; ++op) {
    uint64_t on = 0;
    for (unsigned input : graph.inputs[op])
      if (int made = graph.definition[input]; made >= static_cast<int>(first))
        on |= blocks[made];
    if (op == *next) {
      uint64_t bit = uint64_t(1) << (next++ - group.products.begin());
      if (!(on & taken)) {
        taken |= bit;
        kept.push_back(op);
      }
      on |= bit;
    }
    blocks[op] = on;
  }
  group.products = kept.size() > 1 ? kept : SmallVector<unsigned>();
}

void MergeFences::findMerged() {
  for (auto [number, group] : llvm::enumerate(groups)) {
    std::vector<Merged> parts;
    for (unsigned product : group.products)
      parts.push_back({static_cast<unsigned>(number), {product}, bytes(product)});
    // Two and two, as long as one of two is small.
    for (bool again = true; again;) {
      again = false;
      std::vector<Merged> joined;
      for (size_t i = 0; i < parts.size(); i += 2) {
        joined.push_back(std::move(parts[i]));
        if (i + 1 == parts.size())
          break;
        if (std::min(joined.back().bytes, parts[i + 1].bytes) >= kMergedBelow) {
          joined.push_back(std::move(parts[i + 1]));
          continue;
        }
        joined.back().bytes += parts[i + 1].bytes;
        llvm::append_range(joined.back().products, parts[i + 1].products);
        again = true;
      }
      parts = std::move(joined);
    }
    for (Merged &merged : parts)
      if (merged.products.size() > 1)
        merges.push_back(std::move(merged));
  }
}

void MergeFences::add(const Merged &merged, const Liveness &liveness, std::vector<int64_t> &profile) const {
  unsigned first = merged.products.front(), last = 0;
  for (unsigned product : merged.products)
    last = std::max(last, liveness.range(value(product)).last);
  for (unsigned product : merged.products) {
    const Liveness::Range &own = liveness.range(value(product));
    for (unsigned op = first; op <= last; ++op)
      if (op < own.first || op > own.last)
        profile[op] += bytes(product);
  }
}

bool MergeFences::areApart(const Merged &merged, const Liveness &liveness) const {
  int64_t most = 0;
  for (unsigned at : merged.products) {
    int64_t live = 0;
    for (unsigned product : merged.products) {
      const Liveness::Range &own = liveness.range(value(product));
      live += own.first <= at && at <= own.last ? bytes(product) : 0;
    }
    most = std::max(most, live);
  }
  return 2 * most <= merged.bytes;
}

unsigned MergeFences::run(int64_t leastBytes) {
  findGroups();
  findMerged();
  int64_t together = 0;
  for (const Merged &merged : merges)
    together += merged.bytes;
  if (together < leastBytes)
    return 0;
  RootSets roots(graph);
  Liveness liveness(graph, roots, size, /*mergeProducts=*/false);
  llvm::erase_if(merges, [&](const Merged &merged) { return !areApart(merged, liveness); });
  const std::vector<int64_t> apart = liveness.profile();
  int64_t before = peakOf(apart), asMerged = 0;
  SmallVector<unsigned> fenced;
  for (bool isFirst = true; !merges.empty(); isFirst = false) {
    std::vector<int64_t> profile = apart;
    for (const Merged &merged : merges)
      add(merged, liveness, profile);
    int64_t peak = peakOf(profile);
    if (isFirst)
      asMerged = peak;
    if (peak - before < leastBytes)
      break;
    // Those that take most where the peak is.
    unsigned at = llvm::max_element(profile) - profile.begin(), most = 0;
    int64_t taken = -1;
    for (auto [i, merged] : llvm::enumerate(merges)) {
      std::vector<int64_t> alone(apart.size(), 0);
      add(merged, liveness, alone);
      if (alone[at] > taken) {
        taken = alone[at];
        most = i;
      }
    }
    if (taken <= 0)
      break;
    fenced.push_back(merges[most].group);
    llvm::erase_if(merges, [&](const Merged &merged) { return merged.group == fenced.back(); });
  }
  unsigned applied = 0;
  for (unsigned number : fenced) {
    const Group &group = groups[number];
    Operation *firstDot = graph.ops[group.products.front()];
    for (unsigned product : group.products) {
      Operation *dot = graph.ops[product];
      OpBuilder builder(dot);
      Maker make(builder, dot->getLoc());
      // Only what the products share becomes another value: others that read the same rows may still be joined
      // with this one.
      Operation *barrier =
          make.op("stablehlo.optimization_barrier", dot->getOperandTypes(), dot->getOperands());
      dot->setOperand(group.shared, barrier->getResult(group.shared));
      ++applied;
    }
    remark::passed(firstDot->getLoc(), remark::RemarkOpts::name("fence").category("fusion"))
        << (Twine(group.products.size()) +
            " products of one operand are not merged: merged, their results would be there together")
               .str()
        << remark::metric("PeakMerged", asMerged) << remark::metric("Peak", before)
        << remark::metric("Bound", "exact: the same products of the same operands");
  }
  return applied;
}

} // namespace

unsigned rewriteMerges(ModuleOp module, const Settings &settings) {
  unsigned applied = 0;
  SmallVector<Block *> blocks;
  module.walk([&](Block *block) {
    if (llvm::count_if(*block, [](Operation &op) { return isa<stablehlo::DotGeneralOp>(op); }) > 1)
      blocks.push_back(block);
  });
  for (Block *block : blocks) {
    // Under automatic sharding parts of a batch are split over all devices.
    int64_t devices = isLocal(block->getParentOp()) ? 1 : settings.partitions;
    SizeFn size = [&](Value value) { return deviceSize(value) / devices; };
    applied += MergeFences(*block, size).run(settings.fenceBytes);
  }
  return applied;
}

} // namespace farrier::fusion
