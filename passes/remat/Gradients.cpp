#include "passes/remat/Gradients.h"

#include "passes/remat/LoopPlanner.h"

#include "farrier/Analysis/HostMemory.h"
#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/Sharding.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/Builders.h"
#include "llvm/ADT/BitVector.h"
#include "llvm/ADT/SetVector.h"

#include <map>

using namespace mlir;

namespace farrier::remat {

bool isPartitioned(Block &block) { return partitionsOf(block.getParentOp()) > 1; }

/// What crosses `position` of what the product `op` gives, if no kernel before `position` reads it. Layout changes, casts
/// and sums over devices that follow come along.
static SmallVector<Value> finishedBy(Operation *op, Operation *position) {
  Block &block = *position->getBlock();
  llvm::SetVector<Value> reached, crossing;
  reached.insert(op->getResult(0));
  for (unsigned at = 0; at < reached.size(); ++at)
    for (Operation *user : reached[at].getUsers()) {
      Operation *here = block.findAncestorOpInBlock(*user);
      if (here && !here->isBeforeInBlock(position))
        crossing.insert(reached[at]);
      else if (here && (accumulates(here) || isa<stablehlo::AllReduceOp, stablehlo::ReduceScatterOp>(here)))
        reached.insert(here->result_begin(), here->result_end());
      else
        return {};
    }
  return crossing.takeVector();
}

SmallVector<Value> finishedProducts(Operation *boundary, Operation *position, ProductFilter filter) {
  llvm::SetVector<Value> all;
  for (Operation *op = boundary->getNextNode(); op && op != position; op = op->getNextNode())
    if (isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp>(op) && (!filter || filter(op)))
      for (Value value : finishedBy(op, position))
        all.insert(value);
  return all.takeVector();
}

/// The casts and layout changes, last first, that make more bytes of a smaller value for nothing but `value`, which nothing
/// before `position` reads.
static SmallVector<Operation *> wideningTo(Value value, Operation *position) {
  Block &block = *position->getBlock();
  SmallVector<Operation *> chain;
  unsigned narrowest = 0;
  int64_t least = byteSize(value.getType());
  if (llvm::any_of(value.getUsers(), [&](Operation *user) {
        Operation *here = block.findAncestorOpInBlock(*user);
        return !here || here->isBeforeInBlock(position);
      }))
    return {};
  while (Operation *op = value.getDefiningOp()) {
    if (op->getBlock() != &block || op->getNumOperands() != 1 || op->getNumResults() != 1 || op->getNumRegions() ||
        classify(op) != OpClass::Virtual || isa<stablehlo::OptimizationBarrierOp>(op) || !op->getOperand(0).hasOneUse())
      break;
    chain.push_back(op);
    value = op->getOperand(0);
    if (int64_t bytes = byteSize(value.getType()); bytes < least) {
      least = bytes;
      narrowest = chain.size();
    }
  }
  chain.truncate(narrowest);
  return chain;
}

/// Lets `position`, which reads `through`, wait for these values: a barrier joins them. What is made wider waits as it was
/// before, and is made wider after it.
static void waitFor(ArrayRef<Value> values, Operation *position, OpOperand &through) {
  SmallVector<Value> joined;
  SmallVector<Operation *> widening;
  for (Value value : values) {
    if (value == through.get() || llvm::is_contained(position->getOperands(), value) || llvm::is_contained(joined, value))
      continue;
    SmallVector<Operation *> chain = wideningTo(value, position);
    joined.push_back(chain.empty() ? value : chain.back()->getOperand(0));
    widening.append(chain.rbegin(), chain.rend());
  }
  if (joined.empty())
    return;
  joined.push_back(through.get());
  Block &block = *position->getBlock();
  OpBuilder builder(position);
  auto barrier = stablehlo::OptimizationBarrierOp::create(builder, position->getLoc(), TypeRange(ValueRange(joined)),
                                                          ValueRange(joined), DictionaryAttr());
  for (Operation *op : widening)
    op->moveBefore(position);
  auto isAfter = [&](OpOperand &use) {
    Operation *here = block.findAncestorOpInBlock(*use.getOwner());
    return here && here != barrier && !here->isBeforeInBlock(barrier);
  };
  for (unsigned i = 0; i + 1 < joined.size(); ++i)
    joined[i].replaceUsesWithIf(barrier->getResult(i), isAfter);
  through.set(barrier->getResults().back());
}

void finishProducts(Operation *boundary, Operation *position, OpOperand &through, ProductFilter filter) {
  waitFor(finishedProducts(boundary, position, filter), position, through);
}

/// Sums to single numbers: of a gradient's squares, by which updates are clipped.
static bool isSum(Operation *op) {
  return isa<stablehlo::ReduceOp>(op) && llvm::all_of(op->getResultTypes(), [](Type type) {
           auto shaped = dyn_cast<ShapedType>(type);
           return shaped && shaped.hasRank() && shaped.getRank() == 0;
         });
}

/// Whether nothing but the block's results comes of `value`: what is elementwise, sums, and writes into stacks, through
/// barriers.
static bool isUpdate(Value value) {
  llvm::SetVector<Value> reached;
  reached.insert(value);
  for (unsigned at = 0; at < reached.size(); ++at)
    for (OpOperand &use : reached[at].getUses()) {
      Operation *user = use.getOwner();
      if (user->getBlock() != value.getParentBlock())
        return false;
      if (user->hasTrait<OpTrait::IsTerminator>())
        continue;
      if (isa<stablehlo::OptimizationBarrierOp>(user))
        reached.insert(user->getResult(use.getOperandNumber()));
      else if (accumulates(user) || isSum(user))
        reached.insert(user->result_begin(), user->result_end());
      else
        return false;
    }
  return true;
}

/// The operations that bring `value`, which nothing but results comes of, into the block's results, and what else they
/// need that stands after `position`, in program order; empty where something of that is no elementwise operation, or where
/// a parameter that is written over is read after `value` is made.
static SmallVector<Operation *> updateAfter(Value value, Operation *position) {
  Block &block = *position->getBlock();
  Operation *product = value.getDefiningOp();
  llvm::SetVector<Operation *> update;
  SmallVector<Value> reached{value};
  while (!reached.empty())
    for (Operation *user : reached.pop_back_val().getUsers()) {
      if (user->hasTrait<OpTrait::IsTerminator>() || !update.insert(user))
        continue;
      if (!accumulates(user) || user->getNumRegions())
        return {};
      reached.append(user->result_begin(), user->result_end());
    }
  unsigned own = update.size();
  for (unsigned at = 0; at < update.size(); ++at)
    for (Value operand : update[at]->getOperands()) {
      Operation *maker = operand.getDefiningOp();
      if (!maker) {
        bool readLater = at < own && llvm::any_of(operand.getUsers(), [&](Operation *user) {
          Operation *here = block.findAncestorOpInBlock(*user);
          return !here || (!update.contains(here) && !here->isBeforeInBlock(product));
        });
        if (readLater && cast<ShapedType>(operand.getType()).getRank() > 0)
          return {};
      } else if (maker->getBlock() == &block && !maker->isBeforeInBlock(position) && update.insert(maker) &&
                 (classify(maker) != OpClass::Virtual || maker->getNumRegions())) {
        return {};
      }
    }
  SmallVector<Operation *> ops = update.takeVector();
  llvm::erase_if(ops, [&](Operation *op) { return op->isBeforeInBlock(position); });
  llvm::sort(ops, [](Operation *a, Operation *b) { return a->isBeforeInBlock(b); });
  return ops;
}

/// Of the peak, what a place may come to with what waiting weight gradients hold: estimates are not nearer, and what is there
/// longer makes holes. Gradients summed over microbatches, layers unrolled, within what `dots` needs: 2.51 GB at 1.01 of the
/// peak, 2.38 at 0.95, with as many bytes moved.
static constexpr double nearPeak = 0.95;

/// The kernel's result that `value` is, through barriers and operations of one operand that make no kernel of their own.
static Value madeByKernel(Value value) {
  while (Operation *op = value.getDefiningOp()) {
    if (isa<stablehlo::OptimizationBarrierOp>(op)) {
      value = op->getOperand(cast<OpResult>(value).getResultNumber());
      continue;
    }
    if (classify(op) != OpClass::Virtual)
      return value;
    if (op->getNumOperands() != 1)
      break;
    value = op->getOperand(0);
  }
  return Value();
}

namespace {
/// The weight gradients of one block, that XLA may put off.
class WeightGradients {
public:
  WeightGradients(const MemoryEstimate &estimate, int64_t smallBytes)
      : graph(estimate.getGraph()), liveness(estimate.getLiveness()), roots(estimate.getRoots()), smallBytes(smallBytes),
        lastKernel(graph.numValues(), -1) {
    for (unsigned op = 0; op < graph.numOps(); ++op)
      for (unsigned value : graph.outputs[op]) {
        if (!graph.isVirtual[op])
          lastKernel[value] = static_cast<int>(op);
        else
          for (unsigned input : graph.inputs[op])
            lastKernel[value] = std::max(lastKernel[value], lastKernel[input]);
      }
  }

  /// They wait no longer than until the computation that they branch off from goes on, where what they hold could bring
  /// `profile` above `limit` otherwise.
  void finish(ArrayRef<int64_t> profile, int64_t limit) {
    SmallVector<unsigned> late;
    // What they read, by when it would be gone; and the bytes of what would be by now.
    std::multimap<unsigned, unsigned> reads;
    llvm::DenseSet<unsigned> counted;
    int64_t holds = 0;
    // Barriers are made at the end: the graph is that of the block without them.
    SmallVector<std::pair<SmallVector<unsigned>, OpOperand *>> waits;
    for (unsigned op = 0; op + 1 < graph.numOps(); ++op) {
      for (; !reads.empty() && reads.begin()->first < op; reads.erase(reads.begin()))
        holds += graph.bytes[reads.begin()->second];
      if (holds > 0 && !graph.isVirtual[op] && profile[op] + holds > limit)
        if (auto [products, through] = finish(late, op); through) {
          waits.push_back({std::move(products), through});
          late.clear();
          reads.clear();
          counted.clear();
          holds = 0;
        }
      Operation *product = graph.ops[op];
      if (!isa<stablehlo::DotGeneralOp, stablehlo::ConvolutionOp>(product) || deviceShare(product) != 1 ||
          !isUpdate(product->getResult(0)))
        continue;
      late.push_back(op);
      for (unsigned input : graph.inputs[op])
        for (unsigned root : roots.roots(input))
          if (liveness.range(root).live && graph.bytes[root] >= smallBytes && counted.insert(root).second)
            reads.insert({liveness.range(root).last, root});
      unsigned gradient = graph.outputs[op][0];
      if (liveness.range(gradient).live && graph.bytes[gradient] >= smallBytes)
        reads.insert({liveness.range(gradient).last, gradient});
    }
    for (auto &[products, through] : waits) {
      Operation *position = through->getOwner();
      SmallVector<Value> finished;
      for (unsigned product : products) {
        SmallVector<Operation *> update = updateAfter(graph.ops[product]->getResult(0), position);
        for (Operation *op : update)
          op->moveBefore(position);
        finished.append(finishedBy(graph.ops[product], position));
      }
      waitFor(finished, position, *through);
    }
  }

private:
  /// Bytes of what the products read and nothing from `position` on does.
  int64_t held(ArrayRef<unsigned> products, unsigned position) const {
    llvm::SmallDenseSet<unsigned> counted;
    int64_t bytes = 0;
    for (unsigned product : products)
      for (unsigned input : graph.inputs[product])
        for (unsigned root : roots.roots(input)) {
          const Liveness::Range &range = liveness.range(root);
          if (range.live && range.last < position && graph.bytes[root] >= smallBytes && counted.insert(root).second)
            bytes += graph.bytes[root];
        }
    return bytes;
  }

  /// The last kernel that the products wait for.
  int readyAt(ArrayRef<unsigned> products) const {
    int ready = -1;
    for (unsigned product : products)
      for (unsigned input : graph.inputs[product])
        ready = std::max(ready, lastKernel[input]);
    return ready;
  }

  /// What the kernel that is to wait for `products`, the one at `end` at the latest, reads; and those of the products that
  /// it can wait for, if they hold half of what all do. Null where there is none.
  std::pair<SmallVector<unsigned>, OpOperand *> finish(SmallVector<unsigned> products, unsigned end) const {
    int64_t least = held(products, end) / 2;
    // What `end` does not come of would wait, too, and hold nothing up.
    llvm::BitVector leadsToEnd(graph.numValues());
    for (unsigned op = end + 1; op-- > products.front();) {
      bool handsOn = isa<stablehlo::OptimizationBarrierOp>(graph.ops[op]); // each value by itself
      bool leads = op == end || llvm::any_of(graph.outputs[op], [&](unsigned value) { return leadsToEnd[value]; });
      for (auto [at, input] : llvm::enumerate(graph.inputs[op]))
        if (leads && (!handsOn || op == end || leadsToEnd[graph.outputs[op][at]]))
          leadsToEnd.set(input);
    }
    for (; !products.empty() && held(products, end) > least; products.pop_back()) {
      int ready = readyAt(products);
      for (unsigned op = products.back() + 1; op <= end; ++op)
        if (OpOperand *through = goesOn(op, ready, leadsToEnd, op == end))
          return {std::move(products), through};
    }
    return {{}, nullptr};
  }

  /// What the kernel `op` reads of another one that is not before `ready`.
  OpOperand *goesOn(unsigned op, int ready, const llvm::BitVector &leadsToEnd, bool isEnd) const {
    // A loop starts from what its operands are stored as.
    if (isEnd && isa<stablehlo::WhileOp>(graph.ops[op])) {
      for (OpOperand &operand : graph.ops[op]->getOpOperands()) {
        unsigned value = graph.id(operand.get());
        if (graph.contains(operand.get()) && lastKernel[value] >= ready && graph.bytes[value] >= smallBytes)
          return &operand;
      }
      return nullptr;
    }
    // A sum goes on to little: it may wait itself.
    if (graph.isVirtual[op] || runsBlocks(graph.ops[op]) || graph.outputs[op].empty() ||
        isUpdate(graph.values[graph.outputs[op][0]]) ||
        llvm::all_of(graph.outputs[op], [&](unsigned value) { return graph.bytes[value] < smallBytes; }) ||
        (!isEnd && llvm::none_of(graph.outputs[op], [&](unsigned value) { return leadsToEnd[value]; })))
      return nullptr;
    for (OpOperand &operand : graph.ops[op]->getOpOperands()) {
      Value made = madeByKernel(operand.get());
      if (made && graph.contains(made) && graph.definition[graph.id(made)] >= ready &&
          graph.bytes[graph.id(made)] >= smallBytes)
        return &operand;
    }
    return nullptr;
  }

  const BlockGraph &graph;
  const Liveness &liveness;
  const RootSets &roots;
  int64_t smallBytes;
  std::vector<int> lastKernel; ///< that each value comes from, in program order
};
} // namespace

/// In a block, by its estimate in program order, and in those inside.
static void finishBelow(int64_t limit, const MemoryEstimate &estimate, const SizeFn &size, int64_t smallBytes) {
  const Liveness &liveness = estimate.getLiveness();
  std::vector<int64_t> profile = liveness.profile();
  for (unsigned op = 0; op < profile.size(); ++op)
    if (liveness.innerPeak(op) > 0)
      for (Region &region : estimate.getGraph().ops[op]->getRegions())
        for (Block &inner : region)
          finishBelow(limit - (profile[op] - liveness.innerPeak(op)), MemoryEstimate(inner, size, Order::Program), size,
                      smallBytes);
  WeightGradients(estimate, smallBytes).finish(profile, limit);
}

void finishBeforePeak(ModuleOp module, int64_t smallBytes) {
  SizeFn size = deviceMemory(module);
  for (auto function : module.getOps<func::FuncOp>()) {
    // On several devices gradients hide communication.
    if (!function.isPublic() || !function.getBody().hasOneBlock() || isPartitioned(function.getBody().front()))
      continue;
    MemoryEstimate estimate(function.getBody().front(), size, Order::Program);
    finishBelow(static_cast<int64_t>(nearPeak * estimate.peak()), estimate, size, smallBytes);
  }
}

int64_t estimatePlanned(ModuleOp module, int64_t smallBytes) {
  finishBeforePeak(module, smallBytes);
  return estimateModule(module);
}

} // namespace farrier::remat
