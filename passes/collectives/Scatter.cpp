#include "passes/collectives/Parts.h"
#include "passes/collectives/Passes.h"
#include "passes/collectives/Rows.h"

#include "farrier/Analysis/InlineCalls.h"
#include "farrier/Analysis/OpCost.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Support/Registry.h"

#include "mlir/IR/Remarks.h"
#include "llvm/ADT/EquivalenceClasses.h"
#include "llvm/Support/FormatVariadic.h"

namespace farrier::collectives {
#define GEN_PASS_DEF_SCATTERREDUCTIONS
#include "passes/collectives/Passes.h.inc"

using namespace mlir;

/// Of the elements of loops' state that may stay whole, so many are looked at.
static constexpr int kMostTrials = 256;

/// Whether `op` is a sum over devices of one value, of which nothing is said but how XLA may combine it.
static bool isPlainSum(Operation *op) {
  if (!isa<stablehlo::AllReduceOp>(op) || op->getNumOperands() != 1)
    return false;
  for (NamedAttribute attribute : op->getDiscardableAttrs()) {
    auto entries = dyn_cast<DictionaryAttr>(attribute.getValue());
    if (attribute.getName() != kFrontend || !entries || entries.size() != 1 || !entries.get("combiner_key"))
      return false;
  }
  RankedTensorType type = tensorType(op->getResult(0));
  return type && type.hasStaticShape() && op->getOperand(0).getType() == type &&
         isSum(op->getRegion(0).front());
}

namespace {

struct ScatterReductions : impl::ScatterReductionsBase<ScatterReductions>, CounterSet {
  ScatterReductions() = default;
  ScatterReductions(const ScatterReductions &other) : ScatterReductionsBase(other), CounterSet(other) {}
  using ScatterReductionsBase::ScatterReductionsBase;

  Counter scattered{this, "scattered-reductions"};
  Counter gathered{this, "gathers"};
  Counter sums{this, "partial-sums"};

  void runOnOperation() override {
    if (candidates().empty())
      return;
    inlineCalls(getOperation());
    // What a region makes is looked at in its turn.
    DenseSet<Operation *> seen;
    for (bool rewrote = true; rewrote;) {
      rewrote = false;
      for (Operation *op : candidates())
        if ((rewrote = seen.insert(op).second && visit(op, seen)))
          break;
    }
  }

private:
  /// Reductions that are worth a look, in program order.
  SmallVector<Operation *> candidates() {
    SmallVector<Operation *> found;
    getOperation().walk<WalkOrder::PreOrder>([&](Operation *op) {
      if (isPlainSum(op) && byteSize(op->getResult(0)) >= minBytes)
        found.push_back(op);
    });
    return found;
  }

  /// Rewrites the region around a reduction, if that pays. What is gone leaves `seen`: its place in memory may be
  /// another operation's next.
  bool visit(Operation *seed, DenseSet<Operation *> &seen) {
    ModuleOp module = getOperation();
    Operation *manual = enclosingManual(seed, module);
    std::optional<Groups> groups = manual ? deviceGroups(seed, module) : std::nullopt;
    if (!groups || groups->front().size() < 2)
      return false;
    Agreement agree(manual, *groups, module);
    DenseSet<Operation *> seedable;
    manual->walk([&](Operation *op) {
      if (isPlainSum(op) && op->getDiscardableAttrDictionary() == seed->getDiscardableAttrDictionary())
        if (std::optional<Groups> other = deviceGroups(op, module); other && *other == *groups)
          seedable.insert(op);
    });
    std::unique_ptr<Parts> best, closest;
    RankedTensorType type = tensorType(seed->getResult(0));
    for (int64_t dim = 0; dim < type.getRank(); ++dim) {
      int64_t size = type.getDimSize(dim);
      if (size % static_cast<int64_t>(groups->front().size()) != 0)
        continue;
      std::unique_ptr<Parts> parts = cheapest(seed, manual, *groups, agree, seedable, dim, size);
      std::unique_ptr<Parts> &place = parts->pays() ? best : closest;
      if (!place || parts->gathered - parts->scattered < place->gathered - place->scattered)
        place = std::move(parts);
    }
    if (!best) {
      auto megabytes = [](double bytes) { return llvm::formatv("{0:F1} MB", bytes / 1e6).str(); };
      std::string why = !closest ? "no dimension of it divides by the devices"
                                 : "with what works on its parts, " + megabytes(closest->scattered) +
                                       " would be scattered, " + megabytes(closest->gathered) +
                                       " gathered again and " + megabytes(closest->worked) + " made in parts";
      remark::missed(seed->getLoc(), remark::RemarkOpts::name("whole").category("collectives"))
          << "stays one reduction: " + why;
      return false;
    }
    for (Operation *op : seedable)
      if (best->contains(op))
        seen.insert(op);
    scattered += best->reductions;
    gathered += best->gathers;
    sums += best->sums;
    remark::passed(seed->getLoc(), remark::RemarkOpts::name("scattered").category("collectives"))
        << "scattered with " << std::to_string(best->reductions - 1) << " more reductions; "
        << std::to_string(best->gathers) << " gathers where the whole is read";
    best->emit([&](Operation *gone) { seen.erase(gone); });
    return true;
  }

  /// The region around `seed` with those elements of loops' states whole that are cheaper so: a stack that the next
  /// loop reads whole anyway.
  std::unique_ptr<Parts> cheapest(Operation *seed, Operation *manual, const Groups &groups,
                                  const Agreement &agree, const DenseSet<Operation *> &seedable,
                                  int64_t dim, int64_t size) {
    DenseSet<Link> whole;
    auto attempt = [&] {
      auto parts = std::make_unique<Parts>(manual, groups, agree, size, regroup);
      parts->grow(seed, AxisPlace{dim, 1, 1}, seedable, whole);
      parts->settle();
      return parts;
    };
    std::unique_ptr<Parts> best = attempt();
    // Links through which one value is handed from loop to loop are decided together.
    SmallVector<Link> links = best->links;
    llvm::EquivalenceClasses<unsigned> classes;
    DenseMap<Value, unsigned> first;
    for (auto [n, link] : llvm::enumerate(links)) {
      classes.insert(n);
      for (Value value : llvm::concat<Value>(sources(link), targets(link)))
        if (std::optional<Link> made = linkOf(value)) {
          auto [it, isNew] = first.try_emplace(value, n);
          classes.unionSets(it->second, n);
        }
    }
    int trials = 0;
    for (unsigned n = 0; n < links.size() && trials < kMostTrials; ++n) {
      if (classes.getLeaderValue(n) != n || whole.contains(links[n]))
        continue;
      ++trials;
      DenseSet<Link> before = whole;
      for (auto member = classes.findLeader(n); member != classes.member_end(); ++member)
        whole.insert(links[*member]);
      std::unique_ptr<Parts> parts = attempt();
      if (parts->gathered - parts->scattered < best->gathered - best->scattered)
        best = std::move(parts);
      else
        whole = before;
    }
    return best;
  }
};
} // namespace
} // namespace farrier::collectives
