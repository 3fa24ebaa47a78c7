#include "farrier/Analysis/PaddedInputs.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include "mlir/IR/BuiltinTypes.h"
#include "llvm/ADT/MapVector.h"

#include <algorithm>

using namespace mlir;

namespace farrier {

/// Low and high padding of each dimension of the window, and the distance from one element of the input to the next.
using Padding = SmallVector<int64_t, 9>;

/// Whether the window is larger than what it gives, as where a filter's gradient is summed over all of an image.
static bool sumsImages(stablehlo::ConvolutionOp convolution) {
  auto numbers = convolution.getDimensionNumbers();
  auto result = dyn_cast<RankedTensorType>(convolution.getType());
  auto filter = dyn_cast<RankedTensorType>(convolution.getRhs().getType());
  return result && filter &&
         llvm::any_of(llvm::zip(numbers.getOutputSpatialDimensions(), numbers.getKernelSpatialDimensions()),
                      [&](auto pair) {
                        return result.getDimSize(std::get<0>(pair)) < filter.getDimSize(std::get<1>(pair));
                      });
}

static bool isDilated(stablehlo::ConvolutionOp convolution) {
  auto dilation = convolution.getLhsDilation();
  return dilation && llvm::any_of(*dilation, [](int64_t by) { return by != 1; });
}

bool spreadsInput(stablehlo::ConvolutionOp convolution) {
  return isDilated(convolution) && !convolution.getRhs().getDefiningOp<stablehlo::ReverseOp>() && !sumsImages(convolution);
}

bool turnsInput(stablehlo::ConvolutionOp convolution) {
  return isDilated(convolution) && sumsImages(convolution) &&
         convolution.getDimensionNumbers().getInputSpatialDimensions().size() < 3;
}

/// How the convolution pads its input, empty where cuDNN does that.
static Padding ownPadding(stablehlo::ConvolutionOp convolution) {
  std::optional<DenseIntElementsAttr> padding = convolution.getPadding();
  bool spreads = spreadsInput(convolution);
  // The gradient of a strided convolution's input: it is the result that is cut.
  if (!padding || (isDilated(convolution) && !spreads))
    return {};
  Padding amounts(padding->getValues<int64_t>());
  auto steps = convolution.getRhsDilation(), dilation = convolution.getLhsDilation();
  bool isUneven = spreads;
  for (size_t dim = 0, dims = amounts.size() / 2; dim < dims; ++dim) {
    int64_t low = amounts[2 * dim], high = amounts[2 * dim + 1];
    if (low < 0 || high < 0)
      return {};
    // The gradient of a strided convolution's filter is given what the stride leaves out, or not.
    int64_t most = high + (steps ? (*steps)[dim] - 1 : 0);
    isUneven |= low < high || low > most;
    amounts.push_back(spreads ? (*dilation)[dim] : 1);
  }
  return isUneven ? amounts : Padding();
}

/// Whether the convolution gives the gradient of the filter of one that has the same input: it sums over the batch, and
/// its result is as large as that filter.
static bool givesFilter(stablehlo::ConvolutionOp convolution, stablehlo::ConvolutionOp of) {
  auto numbers = convolution.getDimensionNumbers(), others = of.getDimensionNumbers();
  auto result = cast<RankedTensorType>(convolution.getType());
  auto filter = cast<RankedTensorType>(of.getRhs().getType());
  return numbers.getInputFeatureDimension() == others.getInputBatchDimension() &&
         numbers.getInputBatchDimension() == others.getInputFeatureDimension() &&
         llvm::all_of(llvm::zip(numbers.getOutputSpatialDimensions(), others.getKernelSpatialDimensions()),
                      [&](auto pair) {
                        return result.getDimSize(std::get<0>(pair)) == filter.getDimSize(std::get<1>(pair));
                      });
}

std::vector<PaddedInput> paddedInputs(const BlockGraph &graph, const RootSets &roots) {
  std::vector<PaddedInput> found;
  llvm::DenseMap<unsigned, llvm::SmallVector<size_t>> copiesOf; // of each value, in `found`
  std::vector<Padding> paddings;
  std::vector<stablehlo::ConvolutionOp> first;
  for (unsigned op = 0; op < graph.numOps(); ++op) {
    auto convolution = dyn_cast<stablehlo::ConvolutionOp>(graph.ops[op]);
    auto type = convolution ? dyn_cast<RankedTensorType>(convolution.getLhs().getType()) : RankedTensorType();
    if (!type || !type.hasStaticShape() || !graph.contains(convolution.getLhs()))
      continue;
    unsigned value = graph.id(convolution.getLhs());
    // The gradient of a filter reads what was padded for the filter.
    auto &copies = copiesOf[value];
    auto ofFilter = llvm::find_if(copies, [&](size_t at) { return givesFilter(convolution, first[at]); });
    if (ofFilter != copies.end()) {
      for (size_t at : copies)
        if (givesFilter(convolution, first[at]) && !spreadsInput(convolution) && !turnsInput(convolution)) {
          found[at].users.push_back(op);
          found[at].isTurned = isDilated(convolution);
        }
      continue;
    }
    Padding padding = ownPadding(convolution);
    if (padding.empty() || graph.bytes[value] == 0)
      continue;
    auto same = llvm::find_if(copies, [&](size_t at) { return paddings[at] == padding; });
    if (same != copies.end()) {
      found[*same].users.push_back(op);
      continue;
    }
    // Of one device: what is split is what the value is split by.
    double grown = 1;
    ArrayRef<int64_t> spatial = convolution.getDimensionNumbers().getInputSpatialDimensions();
    for (auto [at, dim] : llvm::enumerate(spatial)) {
      double extent = type.getDimSize(dim), spread = (extent - 1) * padding[2 * spatial.size() + at] + 1;
      grown *= (spread + padding[2 * at] + padding[2 * at + 1]) / extent;
    }
    copies.push_back(found.size());
    found.push_back({value, static_cast<int64_t>(graph.bytes[value] * grown), {op}, false});
    paddings.push_back(std::move(padding));
    first.push_back(convolution);
  }
  for (PaddedInput &each : found) {
    Operation *definition = graph.values[each.value].getDefiningOp();
    auto readsAsIs = [&](unsigned user) {
      return !graph.isTerminator(user) && isa<stablehlo::ConvolutionOp, stablehlo::DotGeneralOp>(graph.ops[user]) &&
             !llvm::is_contained(each.users, user);
    };
    bool isComputed = definition && classify(definition) == OpClass::Virtual && roots.isRoot(each.value);
    each.isStored = !isComputed || llvm::any_of(graph.users[each.value], readsAsIs) ||
                    (isa<stablehlo::AddOp>(definition) && llvm::any_of(definition->getOperands(), [](Value operand) {
                       return isa_and_nonnull<stablehlo::ConvolutionOp>(operand.getDefiningOp()) &&
                              operand.hasOneUse();
                     }));
    if (!each.isStored)
      each.bytes -= graph.bytes[each.value];
  }
  return found;
}

} // namespace farrier
