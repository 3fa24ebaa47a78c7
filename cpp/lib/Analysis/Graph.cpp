#include "farrier/Analysis/Graph.h"

#include "farrier/Analysis/Axis.h"
#include "farrier/Analysis/Layouts.h"
#include "farrier/Analysis/Liveness.h"
#include "farrier/Analysis/Measured.h"
#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/PaddedInputs.h"
#include "farrier/Analysis/Pooling.h"
#include "farrier/Analysis/ReadingKernels.h"
#include "farrier/Analysis/SiblingKernels.h"
#include "farrier/Analysis/Softmax.h"
#include "farrier/Analysis/WorthStoring.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/OperationSupport.h"
#include "mlir/Interfaces/FunctionInterfaces.h"
#include "mlir/Transforms/RegionUtils.h"
#include "llvm/ADT/DenseSet.h"
#include "llvm/ADT/SmallSet.h"

#include <algorithm>
#include <optional>

using namespace mlir;

namespace farrier {

BlockGraph::BlockGraph(Block &block, SizeFn size) : block(block) {
  auto add = [&](Value value, int op) {
    valueIds[value] = values.size();
    values.push_back(value);
    definition.push_back(op);
    bytes.push_back(size(value));
  };
  for (BlockArgument arg : block.getArguments())
    add(arg, -1);
  numArguments = values.size();
  for (Operation &op : block) {
    unsigned index = ops.size();
    opIds[&op] = index;
    ops.push_back(&op);
    isVirtual.push_back(classify(&op) == OpClass::Virtual);
    Ids in, out;
    for (Value operand : op.getOperands())
      if (auto it = valueIds.find(operand); it != valueIds.end())
        in.push_back(it->second);
    if (op.getNumRegions()) {
      llvm::SetVector<Value> captured;
      getUsedValuesDefinedAbove(op.getRegions(), captured);
      for (Value value : captured)
        if (auto it = valueIds.find(value); it != valueIds.end())
          in.push_back(it->second);
    }
    for (Value result : op.getResults()) {
      out.push_back(values.size());
      add(result, index);
    }
    inputs.push_back(std::move(in));
    outputs.push_back(std::move(out));
  }
  users.resize(values.size());
  for (unsigned op = 0; op < ops.size(); ++op)
    for (unsigned value : inputs[op])
      if (users[value].empty() || users[value].back() != op)
        users[value].push_back(op);
}

/// A product of a matrix with a vector, which XLA makes a multiplication and a sum: both operands fuse.
static bool isVectorProduct(stablehlo::DotGeneralOp dot) {
  auto numbers = dot.getDotDimensionNumbers();
  auto isVector = [](Type type, ArrayRef<int64_t> batch, ArrayRef<int64_t> contracted) {
    auto tensor = dyn_cast<RankedTensorType>(type);
    if (!tensor)
      return false;
    for (int64_t dim = 0; dim < tensor.getRank(); ++dim)
      if (tensor.getDimSize(dim) != 1 && !llvm::is_contained(batch, dim) &&
          !llvm::is_contained(contracted, dim))
        return false;
    return true;
  };
  return isVector(dot.getLhs().getType(), numbers.getLhsBatchingDimensions(),
                  numbers.getLhsContractingDimensions()) ||
         isVector(dot.getRhs().getType(), numbers.getRhsBatchingDimensions(),
                  numbers.getRhsContractingDimensions());
}

/// A product that sums nothing, which XLA makes a multiplication: elementwise, like any other.
static bool isOuterProduct(Operation *op) {
  auto dot = dyn_cast<stablehlo::DotGeneralOp>(op);
  auto left = dot ? dyn_cast<RankedTensorType>(dot.getLhs().getType()) : RankedTensorType();
  return left && left.hasStaticShape() &&
         llvm::all_of(dot.getDotDimensionNumbers().getLhsContractingDimensions(),
                      [&](int64_t dim) { return left.getDimSize(dim) == 1; });
}

/// Kernels whose operands must be buffers, and what runs other kernels: nothing is fused into a loop's operands,
/// nor across a barrier.
static bool readsBuffers(Operation *op) {
  if (auto dot = dyn_cast<stablehlo::DotGeneralOp>(op))
    return !isVectorProduct(dot) && !isOuterProduct(op);
  return isa<stablehlo::ConvolutionOp, stablehlo::CustomCallOp, stablehlo::WhileOp, stablehlo::SortOp,
             stablehlo::OptimizationBarrierOp>(op);
}

/// Rounding to the precision that the operand's type has, as `jax.checkpoint` writes for what a policy saves.
static bool roundsNothing(stablehlo::ReducePrecisionOp op) {
  auto type = dyn_cast<FloatType>(getElementTypeOrSelf(op.getType()));
  if (!type)
    return false;
  unsigned mantissa = type.getFPMantissaWidth() - 1, exponent = type.getWidth() - mantissa - 1;
  return op.getExponentBits() == exponent && op.getMantissaBits() == mantissa;
}

/// What gives its operand: a conversion to the type that that has, as JAX writes where a product's operands agree already,
/// which XLA drops; rounding that does nothing to what a kernel gives, which is done in that kernel.
static bool isIdentity(Operation *op) {
  if (auto rounds = dyn_cast<stablehlo::ReducePrecisionOp>(op)) {
    Operation *made = rounds.getOperand().getDefiningOp();
    return made && rounds.getOperand().hasOneUse() && classify(made) != OpClass::Virtual && roundsNothing(rounds);
  }
  return isa<stablehlo::ConvertOp>(op) && op->getOperand(0).getType() == op->getResult(0).getType();
}

/// A constant or a parameter of the program, spread over a shape.
static bool isSpread(Value value) {
  Operation *op = value.getDefiningOp();
  if (isa_and_nonnull<stablehlo::ConstantOp>(op))
    return true;
  if (!isa_and_nonnull<stablehlo::BroadcastInDimOp, stablehlo::BroadcastOp>(op))
    return false;
  Value from = op->getOperand(0);
  auto argument = dyn_cast<BlockArgument>(from);
  return argument ? isa_and_nonnull<FunctionOpInterface>(argument.getOwner()->getParentOp())
                  : isa<stablehlo::ConstantOp>(from.getDefiningOp());
}

/// What XLA makes of several operations, or of one that reads its operand twice (a square).
static bool isComposite(Operation *op) {
  StringRef name = op->getName().getStringRef();
  return name.starts_with("chlo.") && name != "chlo.erf";
}

/// The operand that a product reads in the place of what this operation makes of it, null where it reads the
/// result: its kernel computes what needs one operand, no wider than the result (IsInputWorthFusing and what stands
/// around it in XLA's triton_tiling_propagation.cc).
static Value computedInProduct(Operation *op) {
  if (!op || op->getNumResults() != 1 || !isElementwise(op) || isComposite(op))
    return Value();
  Value from;
  for (Value operand : op->getOperands())
    if (op->getNumOperands() == 1 || !isSpread(operand)) {
      if (from)
        return Value();
      from = operand;
    }
  if (!from || op->getNumOperands() > 2 || byteSize(from.getType()) > byteSize(op->getResult(0).getType()))
    return Value();
  return from;
}

/// What a product reads for an operand: what is left of it without what its own kernel computes.
static Value readByProduct(const BlockGraph &graph, Value operand) {
  Value source = operand;
  for (Operation *op = operand.getDefiningOp(); op;) {
    bool keepsOrder = isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(op);
    Value from = keepsOrder ? op->getOperand(0) : computedInProduct(op);
    if (!from || !graph.contains(from) || measuredStored(op) == true)
      break;
    if (!keepsOrder)
      source = from;
    op = from.getDefiningOp();
  }
  return source;
}

/// XLA:GPU fuses no more than this many operands into one kernel (MaxOperandsAndOutputsPerFusion in its
/// gpu_fusible.cc): what joins more is a buffer. It also bounds the work here: a chain that joins one more
/// root at each step has sets of every length otherwise.
static constexpr size_t maxFusionOperands = 96;

/// What a convolution that gives the gradient of its input reads for a reversed filter: cuDNN reverses it.
static unsigned reversedFilter(const BlockGraph &graph, unsigned op, unsigned value) {
  if (isa<stablehlo::ConvolutionOp>(graph.ops[op]))
    if (auto reverse = graph.values[value].getDefiningOp<stablehlo::ReverseOp>();
        reverse && graph.contains(reverse.getOperand()))
      return graph.id(reverse.getOperand());
  return value;
}

/// Whether the operation adds to the result of a convolution that nothing else reads.
static bool addsToConvolution(Operation *op) {
  return isa<stablehlo::AddOp>(op) && llvm::any_of(op->getOperands(), [](Value operand) {
           return isa_and_nonnull<stablehlo::ConvolutionOp>(operand.getDefiningOp()) && operand.hasOneUse();
         });
}

/// Whether `value` is what is scattered, or other values added to that, for one reader alone.
static bool isScattered(Value value) {
  Operation *op = value.getDefiningOp();
  return op && value.hasOneUse() &&
         (isa<stablehlo::ScatterOp>(op) ||
          (isa<stablehlo::AddOp>(op) && llvm::any_of(op->getOperands(), isScattered)));
}

/// Whether the operation is the last of those that add to what is scattered for them alone: XLA scatters onto what it is added to.
static bool addsScattered(Operation *op) {
  return isa<stablehlo::AddOp>(op) && llvm::any_of(op->getOperands(), isScattered) &&
         !(op->hasOneUse() && isa<stablehlo::AddOp>(*op->user_begin()));
}

/// Zeros that a stack or a sum starts from: written where they are read, whoever else reads such zeros. Not a constant that is
/// converted before it is spread: the fill of a mask, which a loop that reads it is given.
static bool isFilled(Value value) {
  Operation *op = value.getDefiningOp();
  if (auto broadcast = dyn_cast_or_null<stablehlo::BroadcastInDimOp>(op))
    op = broadcast->getOperand(0).getDefiningOp();
  return isa_and_nonnull<stablehlo::ConstantOp>(op) && splatOf(op->getResult(0));
}

/// What an iteration writes into a residual stack, from which all of the stack follows; null for anything else.
static Value stackedValue(stablehlo::WhileOp loop, unsigned i) {
  if (!loop.getBody().hasOneBlock())
    return Value();
  Block &body = loop.getBody().front();
  auto update = body.getTerminator()->getOperand(i).getDefiningOp<stablehlo::DynamicUpdateSliceOp>();
  if (!update || update.getOperand() != body.getArgument(i) || !isFilled(loop->getOperand(i)))
    return Value();
  Value value = update.getUpdate();
  while (Operation *op = value.getDefiningOp()) {
    if (!isa<stablehlo::ReshapeOp, stablehlo::BroadcastInDimOp>(op) ||
        byteSize(op->getOperand(0).getType()) != byteSize(value.getType()))
      break;
    value = op->getOperand(0);
  }
  return value;
}

/// Whether two values are computed alike, which XLA's common subexpressions make one; looks `depth` operations deep.
static bool isSame(Value a, Value b, unsigned depth = 8) {
  if (a == b)
    return true;
  Operation *first = a.getDefiningOp(), *second = b.getDefiningOp();
  if (!first || !second || depth == 0 || first->getNumRegions() || classify(first) != OpClass::Virtual ||
      cast<OpResult>(a).getResultNumber() != cast<OpResult>(b).getResultNumber())
    return false;
  return OperationEquivalence::isEquivalentTo(
      first, second,
      [depth](Value x, Value y) { return success(isSame(x, y, depth - 1)); },
      /*markEquivalent=*/nullptr, OperationEquivalence::IgnoreLocations | OperationEquivalence::IgnoreDiscardableAttrs);
}

namespace {

/// How long roots are needed whatever becomes of one value that joins several.
///
/// XLA:GPU computes an elementwise value again in each kernel that reads it. It is no buffer where that makes
/// nothing live longer: where what it is made of is needed as long anyway (both branches of a residual block,
/// whose norms' derivatives read them).
class Needs {
public:
  Needs(const BlockGraph &graph, const std::vector<bool> &feedsKernel)
      : graph(graph), feedsKernel(feedsKernel) {}

  /// The last operation that reads `value`, or what follows elementwise from it, other than through `joined`
  /// itself. What is joined later counts as read there: it may become a buffer. `withParts`: what takes less than half of the
  /// value reads it, too.
  template <typename IsRoot>
  unsigned last(unsigned value, unsigned joined, IsRoot isRoot, bool withParts = true) const {
    llvm::SmallVector<unsigned> work{value};
    llvm::SmallDenseSet<unsigned, 16> seen{value};
    unsigned end = 0;
    while (!work.empty()) {
      unsigned at = work.pop_back_val();
      for (unsigned user : graph.users[at]) {
        if (graph.isTerminator(user) || (!withParts && at == value && takesPart(user)))
          continue;
        if (!graph.isVirtual[user] || graph.outputs[user].size() != 1) {
          end = std::max(end, user);
          continue;
        }
        unsigned out = graph.outputs[user][0];
        if (out == joined && value != joined)
          continue;
        bool stored = out < joined ? isRoot(out) : feedsKernel[out] || joins(user);
        if (stored)
          end = std::max(end, user);
        else if (seen.insert(out).second)
          work.push_back(out);
      }
    }
    return end;
  }

private:
  bool takesPart(unsigned op) const {
    return isa<stablehlo::SliceOp, stablehlo::DynamicSliceOp>(graph.ops[op]) &&
           2 * graph.bytes[graph.outputs[op][0]] < graph.bytes[graph.inputs[op][0]];
  }

  bool joins(unsigned op) const {
    unsigned big = 0;
    for (unsigned input : graph.inputs[op])
      big += 2 * graph.bytes[input] >= graph.bytes[graph.outputs[op][0]] && graph.definition[input] >= 0 &&
             !graph.inputs[graph.definition[input]].empty() &&
             !isa<stablehlo::BroadcastInDimOp>(graph.ops[graph.definition[input]]);
    return big > 1;
  }

  const BlockGraph &graph;
  const std::vector<bool> &feedsKernel;
};

/// Where elementwise values end: the one kernel that all of their readers are part of.
class Kernels {
public:
  Kernels(const BlockGraph &graph, const std::vector<bool> &stored) : ends(graph.numValues()) {
    for (unsigned value = graph.numValues(); value-- > 0;) {
      int end = -1;
      for (unsigned user : graph.users[value]) {
        bool passes = graph.isVirtual[user] && graph.outputs[user].size() == 1 && !graph.isTerminator(user);
        int to = passes ? ends[graph.outputs[user][0]] : static_cast<int>(graph.numValues() + user);
        if (end >= 0 && to != end) {
          end = -1;
          break;
        }
        end = to;
      }
      ends[value] = end < 0 || stored[value] ? static_cast<int>(value) : end;
    }
  }

  /// Whether the value is read in one kernel only, which computes it.
  bool isInside(unsigned value) const { return ends[value] != static_cast<int>(value); }

private:
  std::vector<int> ends; ///< of each value: a stored or many times read value, or an operation after all values
};

} // namespace

/// A value of more roots than this is stored: XLA does not compute what is so deep again in each reader.
static constexpr size_t mostJoined = 8;

/// Operations that read elsewhere than they write. XLA does not compute again through several of them: each level
/// of an associative scan is stored.
static bool movesElements(Operation *op) {
  // A part of a product that nothing else reads is a product of a part.
  if (auto slice = dyn_cast<stablehlo::SliceOp>(op)) {
    Value whole = slice.getOperand();
    while (whole.hasOneUse() && isa_and_nonnull<stablehlo::ConvertOp>(whole.getDefiningOp()))
      whole = whole.getDefiningOp()->getOperand(0);
    if (whole.hasOneUse() && isa_and_nonnull<stablehlo::DotGeneralOp>(whole.getDefiningOp()))
      return false;
  }
  return isa<stablehlo::SliceOp, stablehlo::DynamicSliceOp, stablehlo::ConcatenateOp, stablehlo::PadOp,
             stablehlo::ReverseOp>(op);
}

/// Values that several products read from one copy: they want it in the same order.
static std::vector<bool> sharedCopies(const BlockGraph &graph, const Layouts &layouts) {
  std::vector<bool> shared(graph.numValues(), false);
  llvm::DenseMap<unsigned, llvm::SmallVector<llvm::SmallVector<unsigned>>> seen;
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    if (!isa<stablehlo::DotGeneralOp>(graph.ops[op]) || !readsBuffers(graph.ops[op]))
      continue;
    for (auto [k, operand] : llvm::enumerate(graph.ops[op]->getOperands())) {
      if (!graph.contains(operand) || layouts.serves(op, k))
        continue;
      auto &orders = seen[graph.id(operand)];
      llvm::SmallVector<unsigned> order = layouts.wanted(op, k);
      if (llvm::is_contained(orders, order))
        shared[graph.id(operand)] = true;
      else
        orders.push_back(std::move(order));
    }
  }
  return shared;
}

/// The first comparison of what this one compares: XLA's common subexpressions make them one. Not looked for among many.
static unsigned firstComparison(const BlockGraph &graph, unsigned op) {
  constexpr size_t mostUsers = 64;
  const BlockGraph::Ids &users = graph.users[graph.inputs[op].front()];
  for (unsigned other : llvm::ArrayRef(users).take_front(users.size() <= mostUsers ? users.size() : 0))
    if (other < op && isa<stablehlo::CompareOp>(graph.ops[other]) &&
        isSame(graph.ops[other]->getResult(0), graph.ops[op]->getResult(0), /*depth=*/1))
      return other;
  return op;
}

/// Whether a comparison that is read again is all that is left of a root, as which rows a scatter has really written:
/// it is stored, a byte for each element, and what it compares is gone. What stays in a GPU's cache is compared again.
/// (Read off compiled scatters to f32 and bf16, deviceless, H100: of 12 MiB of numbers and more, not of 10.)
static bool outlives(const BlockGraph &graph, unsigned op, unsigned root) {
  constexpr int64_t leastBytes = 12 << 20;
  return graph.bytes[root] >= leastBytes &&
         llvm::any_of(graph.users[graph.inputs[op].front()],
                      [&](unsigned other) {
                        return other > op && isa<stablehlo::CompareOp>(graph.ops[other]) &&
                               firstComparison(graph, other) == op;
                      }) &&
         llvm::all_of(graph.users[root],
                      [&](unsigned user) { return isa<stablehlo::GatherOp, stablehlo::CompareOp>(graph.ops[user]); });
}

RootSets::RootSets(const BlockGraph &graph, const Options &options) : sets(graph.numValues()) {
  std::vector<bool> feedsKernel(graph.numValues(), false), isCopied(graph.numValues(), false),
      moved(graph.numValues(), false), padded(graph.numValues(), false), drawn(graph.numValues(), false),
      hasTile(graph.numValues(), false), hasLogarithm(graph.numValues(), false);
  std::optional<Layouts> layouts;
  if (options.materialiseKernelOperands) {
    layouts.emplace(graph, options.reorderOnce);
    std::vector<bool> shared = sharedCopies(graph, *layouts);
    bool sumsColumns = llvm::any_of(graph.ops, [](Operation *op) { return groupsOfColumns(op) > 0; });
    for (unsigned op = graph.numOps(); op-- > 0;) {
      if (isa<stablehlo::DotGeneralOp>(graph.ops[op]) && readsBuffers(graph.ops[op])) {
        for (auto [k, operand] : llvm::enumerate(graph.ops[op]->getOperands())) {
          if (!graph.contains(operand))
            continue;
          unsigned value = graph.id(operand);
          Operation *definition = operand.getDefiningOp();
          if (layouts->serves(op, k) || shared[value] || (definition && measuredStored(definition) == true)) {
            feedsKernel[graph.id(readByProduct(graph, operand))] = true;
          } else if (graph.bytes[value] >= options.smallBytes) {
            copies[op].push_back(value);
            isCopied[value] = true;
            if (options.reorderOnce && layouts->isTransposedUntiled(value))
              together.insert(value);
          }
        }
      } else if (readsBuffers(graph.ops[op])) {
        auto convolution = dyn_cast<stablehlo::ConvolutionOp>(graph.ops[op]);
        bool rewrites = convolution && (spreadsInput(convolution) || turnsInput(convolution));
        for (auto [at, value] : llvm::enumerate(graph.inputs[op]))
          if (at > 0 || !rewrites)
            feedsKernel[reversedFilter(graph, op, value)] = true;
      }
      else if (auto reduce = dyn_cast<stablehlo::ReduceOp>(graph.ops[op]); reduce && sumsFewColumns(reduce)) {
        for (Value operand : reduce.getInputs()) {
          // What is widened for the sum is stored as it is.
          if (auto wide = operand.getDefiningOp<stablehlo::ConvertOp>();
              wide && byteSize(wide.getOperand().getType()) < byteSize(operand.getType()))
            operand = wide.getOperand();
          if (graph.contains(operand) && isComputed(operand))
            feedsKernel[graph.id(operand)] = true;
        }
      }
      else if (storesWindowed(graph, op))
        feedsKernel[graph.inputs[op][0]] = true;
      // What is added to a convolution's result cuDNN adds in the same kernel.
      else if (addsToConvolution(graph.ops[op]))
        feedsKernel[graph.outputs[op][0]] = true;
      else if (sumsColumns && isElementwise(graph.ops[op]) && graph.outputs[op].size() == 1 &&
               graph.bytes[graph.outputs[op][0]] >= options.smallBytes &&
               isReadInColumns(graph, graph.outputs[op][0], feedsKernel))
        feedsKernel[graph.outputs[op][0]] = true;
      // A layout change does not stand between a value and the kernel.
      else if ((isa<stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::BroadcastInDimOp>(
                    graph.ops[op]) ||
                isIdentity(graph.ops[op])) &&
               feedsKernel[graph.outputs[op][0]] && !graph.inputs[op].empty() &&
               graph.bytes[graph.inputs[op][0]] == graph.bytes[graph.outputs[op][0]])
        feedsKernel[graph.inputs[op][0]] = true;
    }
  }

  std::optional<Needs> needs;
  std::optional<Kernels> kernels;
  if (options.materialiseKernelOperands) {
    needs.emplace(graph, feedsKernel);
    kernels.emplace(graph, feedsKernel);
  }
  // Kernels beside products', which compute what needs one operand: no two of them need be found. What is transposed for a
  // filter's gradient the kernel of the derivative writes, too.
  auto readInAtLeast = [&](unsigned value, unsigned least) {
    auto found = readingKernels(graph, value, feedsKernel, /*mostReaders=*/8, /*mostFollowed=*/64);
    return !found || llvm::count_if(*found, [&](unsigned op) {
                       auto convolution = dyn_cast<stablehlo::ConvolutionOp>(graph.ops[op]);
                       return !isa<stablehlo::DotGeneralOp, stablehlo::DynamicUpdateSliceOp>(graph.ops[op]) &&
                              !(convolution && turnsInput(convolution)) &&
                              !graph.isTerminator(op) && !isUnused(graph, op);
                     }) >= least;
  };
  // Of parts of one product, the first: what reads them elementwise reads the whole.
  llvm::DenseMap<unsigned, unsigned> wholeOf;
  if (options.materialiseKernelOperands)
    for (llvm::ArrayRef<unsigned> ops : mergedProducts(graph))
      for (unsigned op : ops)
        wholeOf[graph.outputs[op][0]] = graph.outputs[ops.front()][0];
  // Bytes of the big roots that a joined value, stored, lets go before its own last reader.
  auto freed = [&](unsigned value, llvm::ArrayRef<unsigned> joined) {
    auto root = [&](unsigned other) { return isRoot(other); };
    unsigned end = needs->last(value, value, root);
    int64_t sum = 0;
    for (unsigned from : joined)
      if (graph.bytes[from] >= options.smallBytes && needs->last(from, value, root) < end)
        sum += graph.bytes[from];
    return sum;
  };

  // Whether what is stored is there as long as a part of it anyway, whatever becomes of its other parts.
  auto outlasts = [&](unsigned whole, unsigned part) {
    auto root = [&](unsigned other) { return isRoot(other); };
    return needs && isRoot(whole) &&
           needs->last(part, part, root) <= needs->last(whole, part, root, /*withParts=*/false);
  };

  for (unsigned arg = 0; arg < graph.numArguments; ++arg)
    if (options.argumentIsRoot && options.argumentIsRoot(arg))
      sets[arg].push_back(arg);

  for (unsigned op = 0; op < graph.numOps(); ++op) {
    Operation *operation = graph.ops[op];
    if (isa<stablehlo::OptimizationBarrierOp>(operation) &&
        graph.inputs[op].size() == graph.outputs[op].size()) {
      for (auto [in, out] : llvm::zip(graph.inputs[op], graph.outputs[op]))
        sets[out] = sets[in];
      continue;
    }
    if (isIdentity(operation)) {
      sets[graph.outputs[op][0]] = sets[graph.inputs[op][0]];
      continue;
    }
    bool isFused = kernels && (isOuterProduct(operation) || fusesGather(graph, op, feedsKernel));
    if (!graph.isVirtual[op] && !isFused) {
      for (unsigned value : graph.outputs[op])
        sets[value].push_back(value);
      // Two stacks of the same values are one: XLA merges them.
      auto loop = dyn_cast<stablehlo::WhileOp>(operation);
      if (loop && options.materialiseKernelOperands && graph.outputs[op].size() == loop->getNumOperands()) {
        llvm::DenseMap<Type, llvm::SmallVector<std::pair<Value, unsigned>>> stacks;
        for (auto [i, value] : llvm::enumerate(graph.outputs[op]))
          if (Value slice = stackedValue(loop, i)) {
            auto &others = stacks[loop->getResult(i).getType()];
            auto first = llvm::find_if(others, [&](const auto &other) { return isSame(slice, other.first); });
            if (first == others.end())
              others.push_back({slice, value});
            else
              sets[value] = sets[first->second];
          }
      }
      continue;
    }
    bool compares = kernels && isa<stablehlo::CompareOp>(operation) && !graph.inputs[op].empty();
    if (unsigned first = compares ? firstComparison(graph, op) : op; first != op) {
      sets[graph.outputs[op][0]] = sets[graph.outputs[first][0]];
      continue;
    }
    BlockGraph::Ids joined;
    for (unsigned value : graph.inputs[op])
      joined.append(sets[value].begin(), sets[value].end());
    llvm::sort(joined);
    joined.erase(std::unique(joined.begin(), joined.end()), joined.end());
    int64_t bigBytes = 0;
    unsigned big = 0;
    llvm::SmallSet<unsigned, 4> wholes;
    for (unsigned root : joined)
      if (graph.bytes[root] >= options.smallBytes) {
        bigBytes += graph.bytes[root];
        ++big;
        auto part = wholeOf.find(root);
        wholes.insert(part == wholeOf.end() ? root : part->second);
      }
    bool joinsParts = big > 1 && wholes.size() == 1;
    bool isPad = isa<stablehlo::PadOp>(operation);
    bool isMoved = (movesElements(operation) && !isPad) ||
                   llvm::any_of(graph.inputs[op], [&](unsigned in) { return moved[in] || (isPad && padded[in]); });
    bool isPadded = isPad || llvm::any_of(graph.inputs[op], [&](unsigned in) { return padded[in]; });
    bool isLayout = isa<stablehlo::ReshapeOp, stablehlo::TransposeOp>(operation);
    bool isTile = layouts && keepsRow(operation) && layouts->inDefault(graph.outputs[op][0]);
    bool isTiled = isTile || llvm::any_of(graph.inputs[op], [&](unsigned in) { return hasTile[in]; });
    bool hasLogs = (kernels && isLogSoftmax(operation)) ||
                   llvm::any_of(graph.inputs[op], [&](unsigned in) { return hasLogarithm[in]; });
    bool isPart = isa<stablehlo::SliceOp, stablehlo::DynamicSliceOp>(operation);
    for (unsigned value : graph.outputs[op]) {
      int64_t bytes = graph.bytes[value];
      bool root = joined.size() > maxFusionOperands;
      if (bytes >= options.smallBytes) {
        if (big >= 2 && bytes < bigBytes && !joinsParts)
          root |= !needs || joined.size() > mostJoined || (!kernels->isInside(value) && (isMoved || isPadded)) ||
                  ((isMoved || !kernels->isInside(value)) && freed(value, joined) >= bytes);
        // What products copy anyway is converted in the kernels that copy it.
        root |= isa<stablehlo::ConvertOp>(operation) && big == 1 && bytes < bigBytes &&
                !(isCopied[value] &&
                  llvm::none_of(graph.users[value], [&](unsigned user) { return graph.isVirtual[user]; }));
        root |=
            compares && big == 1 && 2 * bytes < bigBytes &&
            outlives(graph, op,
                     *llvm::find_if(joined, [&](unsigned from) { return graph.bytes[from] >= options.smallBytes; }));
        // To keep a part must not mean to keep the whole.
        root |= isPart && big == 1 && 2 * bytes < bigBytes && !outlasts(graph.inputs[op][0], value);
        root |= feedsKernel[value] && !isLayout && !isFilled(graph.values[value]);
        root |= layouts && (layouts->reordered(value) || addsScattered(operation));
        root |= layouts && big > 0 && bigBytes < bytes && layouts->inDefault(value) && storesDifferences(operation);
        if (unsigned least = leastReadersOfDear(operation); least && kernels && !joined.empty())
          root |= readInAtLeast(value, least);
        // A logarithmic softmax is summed, and looked up, by another kernel.
        root |= hasLogs && llvm::any_of(graph.users[value], [&](unsigned user) {
                  return isa<stablehlo::ReduceOp>(graph.ops[user]) && !isUnused(graph, user);
                });
        root |= isTile && isLookedUp(graph, op);
        // Nor can what sums over rows do that.
        root |= isTiled &&
                llvm::any_of(graph.users[value], [&](unsigned user) { return rowsSummed(graph.ops[user]) != nullptr; });
        // Whether a random number is less is dear to find out: one kernel does, for all others.
        root |= compares && drawn[graph.inputs[op].front()] && readInAtLeast(value, 2);
        if (options.materialiseKernelOperands)
          root = measuredStored(operation).value_or(root);
      }
      drawn[value] =
          !root && (countsElements(operation) ||
                    llvm::any_of(graph.inputs[op], [&](unsigned in) { return drawn[in]; }));
      // Parts of what is made of constants alone, a seed of a random mask, move nothing.
      moved[value] = isMoved && !root && !joined.empty();
      padded[value] = isPadded && !root;
      hasTile[value] = isTiled && !root;
      hasLogarithm[value] = hasLogs && !root;
      if (isTiled && root)
        tiled.insert(value);
      if (root)
        sets[value].push_back(value);
      else
        sets[value] = joined;
    }
  }
}

} // namespace farrier
