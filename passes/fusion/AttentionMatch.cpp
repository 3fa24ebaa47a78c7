//===- AttentionMatch.cpp - find attention by axis roles and by running it ===//
//
// From the product that makes scores, everything that works on scores is followed forward to the products
// that read probabilities or their gradient. Axes are tracked through transposes and reshapes, so the order
// of dimensions does not matter. What the part computes is then found out by evaluating rows of it
// (AttentionEvaluate.cpp).
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/AttentionMatcher.h"

#include "farrier/Analysis/OpInfo.h"

#include "llvm/ADT/SetVector.h"

#include <set>

using namespace mlir;

namespace farrier::fusion {

using stablehlo::DotGeneralOp;

bool Matcher::nameAxes() {
  auto numbers = site.scores.getDotDimensionNumbers();
  RankedTensorType type = tensorType(site.scores.getResult());
  if (!type.hasStaticShape() || numbers.getLhsContractingDimensions().size() != 1)
    return notAttention();
  scoreRoles.clear();
  for (int64_t dim = 0; dim < type.getRank(); ++dim)
    if (type.getDimSize(dim) != 1) {
      site.sizes.push_back(type.getDimSize(dim));
      scoreRoles.push_back(AxisPlace{dim, 1, 1});
    }
  if (site.sizes.size() < 2)
    return notAttention();
  site.sizes.push_back(tensorType(site.scores.getLhs()).getDimSize(numbers.getLhsContractingDimensions()[0]));
  return true;
}

/// Forward through one operation that works on scores or on row statistics; false: it is not one.
bool Matcher::followOne(Operation *op) {
  if (op->getNumResults() != 1)
    return false;
  Roles result(scoreRoles.size());
  if (auto reduce = dyn_cast<stablehlo::ReduceOp>(op)) {
    if (reduce.getInputs().size() != 1 || !reached.contains(reduce.getInputs()[0]))
      return false;
    const Roles &input = reached[reduce.getInputs()[0]];
    for (unsigned axis = 0; axis < input.size(); ++axis) {
      if (!input[axis])
        continue;
      AxisPlace place = *input[axis];
      if (llvm::is_contained(reduce.getDimensions(), place.dim)) {
        if (!columnAxis)
          columnAxis = axis;
        if (*columnAxis != axis || place.outer != 1 || place.inner != 1)
          return false;
        continue;
      }
      int64_t shift = llvm::count_if(reduce.getDimensions(), [&](int64_t d) { return d < place.dim; });
      place.dim -= shift;
      result[axis] = place;
    }
  } else if (isElementwise(op) || isAnnotation(op)) {
    for (Value operand : op->getOperands()) {
      auto it = reached.find(operand);
      if (it == reached.end() || tensorType(operand).getRank() == 0)
        continue;
      for (auto [mine, theirs] : llvm::zip(result, it->second)) {
        if (mine && theirs && *mine != *theirs)
          return false;
        if (theirs)
          mine = theirs;
      }
    }
  } else if (isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(op)) {
    const Roles &input = reached[op->getOperand(0)];
    for (unsigned axis = 0; axis < input.size(); ++axis)
      if (input[axis]) {
        std::optional<AxisFlow> flow = flowFromOperand(op, 0, *input[axis], site.sizes[axis]);
        if (!flow)
          return false;
        result[axis] = flow->results[0];
      }
  } else {
    return false;
  }
  reached[op->getResult(0)] = result;
  return true;
}

static bool isZero(Value value) {
  auto constant = value.getDefiningOp<stablehlo::ConstantOp>();
  auto dense = dyn_cast_or_null<DenseFPElementsAttr>(constant ? constant.getValue() : Attribute());
  return dense && dense.isSplat() && dense.getSplatValue<APFloat>().isZero();
}

/// Whether it adds up over whole axes that the softmax does not run over: a bias's gradient, perhaps.
bool Matcher::sumsOthers(stablehlo::ReduceOp reduce) {
  if (!columnAxis || reduce.getInputs().size() != 1 || !reached.contains(reduce.getInputs()[0]))
    return false;
  const Roles &roles = reached[reduce.getInputs()[0]];
  Block &body = reduce->getRegion(0).front();
  return roles[*columnAxis] && isa<stablehlo::AddOp>(body.front()) && llvm::hasNItems(body, 2) &&
         isZero(reduce.getInitValues()[0]) &&
         !llvm::is_contained(reduce.getDimensions(), roles[*columnAxis]->dim);
}

bool Matcher::follow() {
  constexpr unsigned limit = 2048;
  Block *block = site.scores->getBlock(), *later = nullptr;
  auto earlier = [](Operation *a, Operation *b) { return a != b && a->isBeforeInBlock(b); };
  std::set<Operation *, decltype(earlier)> todo(earlier), todoLater(earlier);
  Operation *escape = nullptr;
  auto enqueue = [&](Value value) {
    for (Operation *user : value.getUsers()) {
      if (user->getBlock() == block)
        todo.insert(user);
      else if (user->getBlock() == later)
        todoLater.insert(user);
      else
        escape = escape ? escape : user;
    }
  };
  // Into a stack, and out of it in the backward loop.
  auto cross = [&](Operation *op) {
    auto update = dyn_cast<stablehlo::DynamicUpdateSliceOp>(op);
    std::optional<Residual> residual =
        update && reached.contains(update.getUpdate()) ? residualOf(update) : std::nullopt;
    if (!residual || (site.loops && !(*site.loops == residual->loops)))
      return false;
    site.loops = residual->loops;
    later = &residual->loops.backward->getRegion(1).front();
    Roles roles = reached[update.getUpdate()];
    for (stablehlo::DynamicSliceOp read : residual->reads) {
      reached[read.getResult()] = roles;
      enqueue(read.getResult());
    }
    return true;
  };
  reached[site.scores.getResult()] = scoreRoles;
  enqueue(site.scores.getResult());
  while (!(todo.empty() && todoLater.empty()) && reached.size() < limit) {
    auto &queue = todo.empty() ? todoLater : todo;
    Operation *op = *queue.begin();
    queue.erase(queue.begin());
    if (auto dot = dyn_cast<DotGeneralOp>(op)) {
      for (unsigned operand : {0u, 1u})
        if (reached.contains(dot->getOperand(operand)))
          readers.push_back({dot, operand});
      continue;
    }
    if (cross(op))
      continue;
    if (auto reduce = dyn_cast<stablehlo::ReduceOp>(op); reduce && sumsOthers(reduce)) {
      sums.push_back(reduce);
      continue;
    }
    if (!followOne(op)) {
      escape = escape ? escape : op;
      continue;
    }
    if (auto exp = dyn_cast<stablehlo::ExpOp>(op); exp && !exponential)
      exponential = exp;
    enqueue(op->getResult(0));
  }
  if (!exponential || !columnAxis || readers.empty())
    return notAttention();
  if (escape) {
    if (escape->hasTrait<OpTrait::IsTerminator>())
      return no(escape, "scores or probabilities are returned or kept for later");
    return no(escape, "scores or probabilities are also read by '" + escape->getName().getStringRef() + "'");
  }
  if (reached.size() >= limit)
    return no(site.scores, "too much is computed from the scores");
  if (site.loops)
    for (Residual residual : residualsOf(site.loops->forward))
      if (residual.loops == *site.loops)
        for (stablehlo::DynamicSliceOp read : residual.reads)
          aliases[read.getResult()] = residual.stored;
  for (auto &[value, roles] : reached) {
    Operation *op = value.getDefiningOp();
    if (isa<stablehlo::ExpOp, stablehlo::ReduceOp>(op) && isa<FloatType>(tensorType(value).getElementType()) &&
        elementBits(value.getType()) < 32)
      site.narrowSoftmax = true;
  }
  return true;
}

/// Dimensions of the dot's operand that are neither batched nor contracted.
static SmallVector<int64_t> freeDims(DotGeneralOp dot, unsigned operand) {
  auto numbers = dot.getDotDimensionNumbers();
  ArrayRef<int64_t> batch = operand ? numbers.getRhsBatchingDimensions() : numbers.getLhsBatchingDimensions();
  ArrayRef<int64_t> contract =
      operand ? numbers.getRhsContractingDimensions() : numbers.getLhsContractingDimensions();
  SmallVector<int64_t> dims;
  for (int64_t dim = 0; dim < tensorType(dot->getOperand(operand)).getRank(); ++dim)
    if (!llvm::is_contained(batch, dim) && !llvm::is_contained(contract, dim))
      dims.push_back(dim);
  return dims;
}

/// Which axes belong to queries, keys and both; the tensors themselves.
bool Matcher::classifyAxes() {
  DotGeneralOp dot = site.scores;
  auto numbers = dot.getDotDimensionNumbers();
  site.column = *columnAxis;
  Tensor operands[2];
  for (unsigned operand : {0u, 1u}) {
    operands[operand] = {dot->getOperand(operand), Roles(scoreRoles.size())};
    for (unsigned axis = 0; axis < scoreRoles.size(); ++axis)
      operands[operand].roles[axis] =
          flowFromResult(dot, 0, *scoreRoles[axis], site.sizes[axis])->operands[operand];
    int64_t contracted =
        operand ? numbers.getRhsContractingDimensions()[0] : numbers.getLhsContractingDimensions()[0];
    operands[operand].roles.push_back(AxisPlace{contracted, 1, 1});
  }
  unsigned keySide = operands[0].roles[site.column] ? 0 : 1;
  if (operands[1 - keySide].roles[site.column])
    return no(dot, "the softmax runs over a batched dimension of the scores");
  site.key = operands[keySide];
  site.query = operands[1 - keySide];
  SmallVector<unsigned, 4> rows;
  for (unsigned axis = 0; axis < scoreRoles.size(); ++axis) {
    bool inKey = site.key.roles[axis].has_value(), inQuery = site.query.roles[axis].has_value();
    if (inKey && inQuery)
      site.batch.push_back(axis);
    else if (inQuery)
      rows.push_back(axis);
    else if (axis != site.column)
      return no(dot, "keys have two position axes");
  }
  // Stacks are seen through later, from the backward's side only.
  site.query = originOf(site.query, site.sizes);
  site.key = originOf(site.key, site.sizes);
  // The head is the batch axis that varies fastest in the queries.
  llvm::sort(site.batch, [&](unsigned a, unsigned b) {
    AxisPlace x = *site.query.roles[a], y = *site.query.roles[b];
    return x.dim != y.dim ? x.dim < y.dim : x.inner > y.inner;
  });
  site.groups = rows; // the position axis is taken out when the mask has said which it is
  for (const Tensor *tensor : {&site.query, &site.key}) {
    if (!coversAll(*tensor, site.sizes))
      return no(dot, "queries or keys have dimensions that are not axes of attention");
    Type element = tensorType(tensor->value).getElementType();
    if (!element.isBF16() && !element.isF16())
      return no(dot, "cuDNN attention takes bf16 or f16 queries, keys and values, and these are " +
                         Twine(element.isF32() ? "f32" : "of another type"));
  }
  return true;
}

/// The operand of `dot` beside ours, with its axes named through the product.
Tensor Matcher::otherOperand(DotGeneralOp dot, unsigned ours, const Roles &roles) {
  unsigned theirs = 1 - ours;
  Tensor tensor{dot->getOperand(theirs), Roles(roles.size())};
  for (unsigned axis = 0; axis < roles.size(); ++axis)
    if (roles[axis]) {
      auto flow = flowFromOperand(dot, ours, *roles[axis], site.sizes[axis]);
      if (flow)
        tensor.roles[axis] = flow->operands[theirs];
    }
  SmallVector<int64_t> free = freeDims(dot, theirs);
  llvm::erase_if(free, [&](int64_t dim) { return tensorType(tensor.value).getDimSize(dim) == 1; });
  tensor.roles.push_back(free.size() == 1 ? std::optional(AxisPlace{free[0], 1, 1}) : std::nullopt);
  return originOf(tensor, site.sizes);
}

/// Where the axes lie in the result of a product, the feature axis last.
Roles Matcher::resultRoles(const Reader &reader) {
  const Roles &roles = reached[reader.dot->getOperand(reader.operand)];
  Roles result;
  for (unsigned axis = 0; axis < roles.size(); ++axis) {
    auto flow = flowFromOperand(reader.dot, reader.operand, *roles[axis], site.sizes[axis]);
    result.push_back(flow->results[0]);
  }
  for (int64_t dim : freeDims(reader.dot, 1 - reader.operand))
    if (tensorType(reader.dot->getOperand(1 - reader.operand)).getDimSize(dim) != 1)
      result.push_back(flowFromOperand(reader.dot, 1 - reader.operand, AxisPlace{dim, 1, 1}, 1)->results[0]);
  return result;
}

/// The same, also where two loops know what neither changes.
static bool sameData(const Tensor &a, const Tensor &b) {
  return a.roles == b.roles && resolveInvariant(a.value) == resolveInvariant(b.value);
}

/// Whether the value was rounded to 16 bits on its way from the operation that made it.
static bool isNarrow(Value value) {
  for (Operation *op = value.getDefiningOp(); elementBits(value.getType()) > 16;
       op = value.getDefiningOp()) {
    if (!op || !isa<stablehlo::ConvertOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(op))
      return false;
    value = op->getOperand(0);
  }
  return true;
}

bool Matcher::identifyProducts() {
  for (Reader &reader : readers)
    if (!coversAll({reader.dot->getOperand(reader.operand), reached[reader.dot->getOperand(reader.operand)]},
                   scoreSizes()))
      return no(reader.dot, "a product reads only a part of what is made of the scores");
  if (!verifyRows() || !identifyBiasGradient())
    return false;
  if (gradientOfProbabilities) {
    auto dot = gradientOfProbabilities->first.getDefiningOp<DotGeneralOp>();
    const Roles &roles = gradientOfProbabilities->second;
    Block *home = site.loops ? &site.loops->backward->getRegion(1).front() : site.scores->getBlock();
    if (dot->getBlock() != home || !coversAll({dot.getResult(), roles}, scoreSizes()) ||
        dot.getDotDimensionNumbers().getLhsContractingDimensions().size() != 1)
      return no(dot, "the gradient of the probabilities is not one product");
    site.probabilityGradient = dot;
    Tensor operands[2];
    for (unsigned operand : {0u, 1u}) {
      Tensor &tensor = operands[operand];
      tensor = {dot->getOperand(operand), Roles(roles.size())};
      for (unsigned axis = 0; axis < roles.size(); ++axis)
        if (auto flow = flowFromResult(dot, 0, *roles[axis], site.sizes[axis]))
          tensor.roles[axis] = flow->operands[operand];
      auto numbers = dot.getDotDimensionNumbers();
      tensor.roles.push_back(AxisPlace{operand ? numbers.getRhsContractingDimensions()[0]
                                               : numbers.getLhsContractingDimensions()[0],
                                       1, 1});
      tensor = originOf(tensor, site.sizes);
    }
    bool valueIsRhs = operands[1].roles[site.column].has_value();
    site.valueAgain = operands[valueIsRhs];
    site.value = originOf(site.valueAgain, site.sizes, &aliases);
    site.outputGradient = operands[!valueIsRhs];
  }
  for (Reader &reader : readers) {
    const Roles &roles = reached[reader.dot->getOperand(reader.operand)];
    auto numbers = reader.dot.getDotDimensionNumbers();
    ArrayRef<int64_t> contracted =
        reader.operand ? numbers.getRhsContractingDimensions() : numbers.getLhsContractingDimensions();
    ArrayRef<int64_t> batched =
        reader.operand ? numbers.getRhsBatchingDimensions() : numbers.getLhsBatchingDimensions();
    SmallVector<unsigned> sums;
    for (unsigned axis = 0; axis < roles.size(); ++axis) {
      if (llvm::is_contained(contracted, roles[axis]->dim))
        sums.push_back(axis);
      else if (llvm::is_contained(site.batch, axis) != llvm::is_contained(batched, roles[axis]->dim))
        return no(reader.dot, "a product treats batch axes in another way than the scores do");
    }
    site.wideProbabilities |= !reader.readsGradient && !isNarrow(reader.dot->getOperand(reader.operand));
    Tensor local = otherOperand(reader.dot, reader.operand, roles);
    Tensor other = originOf(local, site.sizes, &aliases);
    bool overKeys = sums.size() == 1 && sums[0] == site.column;
    SmallVector<unsigned, 4> rows = site.groups;
    rows.push_back(*site.row);
    bool overQueries = sums.size() == rows.size() &&
                       llvm::all_of(sums, [&](unsigned axis) { return llvm::is_contained(rows, axis); });
    Product *slot = nullptr;
    if (overKeys && !reader.readsGradient) {
      slot = &site.output;
      if (site.value && !sameData(site.value, other))
        return no(reader.dot, "forward and backward read different values");
      site.value = other;
    } else if (overKeys) {
      slot = &site.queryGradient;
      if (!sameData(other, site.key))
        return no(reader.dot, "the gradient of the scores is multiplied by something else than the keys");
      site.keyAgain = local;
    } else if (overQueries && reader.readsGradient) {
      slot = &site.keyGradient;
      if (!sameData(other, site.query))
        return no(reader.dot, "the gradient of the scores is multiplied by something else than the queries");
      site.queryAgain = local;
    } else if (overQueries) {
      slot = &site.valueGradient;
      if (!site.outputGradient || local != site.outputGradient)
        return no(reader.dot, "probabilities are multiplied by something else than values or their gradient");
    } else {
      return no(reader.dot, "a product sums over other axes than attention does");
    }
    if (*slot)
      return no(reader.dot, "probabilities are used twice");
    *slot = {reader.dot, resultRoles(reader)};
  }
  if (site.probabilityGradient && !site.queryGradient && !site.keyGradient && !site.valueGradient)
    return no(site.probabilityGradient, "a gradient that no product reads");
  if (!site.probabilityGradient && (site.queryGradient || site.keyGradient || site.valueGradient))
    return no(site.scores, "a gradient without a product that makes it");
  if (site.loops && !(site.output && site.queryGradient && site.keyGradient))
    return no(site.scores, "a backward loop reads probabilities of which it does not make all gradients");
  SmallVector<const Tensor *> tensors{&site.value};
  if (site.outputGradient)
    tensors.push_back(&site.outputGradient);
  for (const Tensor *tensor : tensors) {
    if (!coversAll(*tensor, site.sizes))
      return no(site.scores,
                "values have another width than keys, or dimensions that are not axes of attention");
    bool isGradient = tensor == &site.outputGradient;
    if (!isGradient &&
        tensorType(tensor->value).getElementType() != tensorType(site.query.value).getElementType())
      return no(site.scores, "queries, keys and values have different element types");
  }
  if (tensorType(site.key.value).getElementType() != tensorType(site.query.value).getElementType())
    return no(site.scores, "queries and keys have different element types");
  return true;
}

std::optional<Attention> matchAttention(DotGeneralOp scores, Obstacle &obstacle) {
  Matcher matcher(scores, obstacle);
  if (!matcher.run())
    return std::nullopt;
  return std::move(matcher.site);
}

} // namespace farrier::fusion
