//===- AttentionMatch.cpp - find attention by axis roles and by running it ===//
//
// From the product that makes scores, everything that works on scores is followed forward to the products
// that read probabilities or their gradient. Axes are tracked through transposes and reshapes, so the order
// of dimensions does not matter. What the part computes is then found out by evaluating rows of it: the mask
// and the scale from the operand of the exponential, probabilities and score gradients against the definition
// of softmax and its derivative. How it was written does not matter either.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/Attention.h"
#include "passes/fusion/RowEval.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/ADT/SetVector.h"

#include <cmath>
#include <random>
#include <set>

using namespace mlir;

namespace farrier::fusion {

namespace {

using stablehlo::DotGeneralOp;

class Matcher {
public:
  Matcher(DotGeneralOp scores, Obstacle &obstacle) : obstacle(obstacle) { site.scores = scores; }

  bool run() { return nameAxes() && follow() && classifyAxes() && findMask() && identifyProducts(); }

  Attention site;

private:
  bool no(Operation *where, const Twine &reason) {
    obstacle = {reason.str(), where, false};
    return false;
  }
  bool notAttention() {
    obstacle.silent = true;
    return false;
  }

  bool nameAxes();
  bool follow();
  bool followOne(Operation *op);
  bool classifyAxes();
  bool findMask();
  bool identifyProducts();
  bool verifyRows();
  std::optional<std::vector<double>> logits(ArrayRef<int64_t> coordinates, std::vector<int64_t> columns,
                                            double score);
  /// 1 where a key is seen, 0 where it is masked.
  std::optional<std::vector<int>> seen(ArrayRef<int64_t> coordinates, const std::vector<int64_t> &columns);
  bool readScale(ArrayRef<int64_t> coordinates, int64_t column);
  SmallVector<int64_t> randomRow();
  Tensor otherOperand(DotGeneralOp dot, unsigned ours, const Roles &roles);
  ArrayRef<int64_t> scoreSizes() const { return ArrayRef(site.sizes).drop_back(); }

  Obstacle &obstacle;
  Roles scoreRoles;
  llvm::MapVector<Value, Roles> reached;
  struct Reader {
    DotGeneralOp dot;
    unsigned operand;
    bool readsGradient = false;
  };
  Roles resultRoles(const Reader &reader);
  SmallVector<Reader> readers;
  stablehlo::ExpOp exponential;
  std::optional<unsigned> columnAxis;
  std::optional<std::pair<Value, Roles>> gradientOfProbabilities;
  bool metTable = false;
  llvm::DenseMap<Value, Value> aliases; ///< values read back from stacks, and what was stored
  std::mt19937_64 random{0x6661727269657221ull};
};

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
  } else if (isElementwise(op)) {
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
    if (isa<stablehlo::ExpOp, stablehlo::ReduceOp>(op) && tensorType(value).getElementTypeBitWidth() < 32 &&
        isa<FloatType>(tensorType(value).getElementType()))
      site.narrowSoftmax = true;
  }
  return true;
}

/// Dimensions of the dot's operand that are neither batched nor contracted.
SmallVector<int64_t> freeDims(DotGeneralOp dot, unsigned operand) {
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

std::optional<std::vector<double>> Matcher::logits(ArrayRef<int64_t> coordinates,
                                                   std::vector<int64_t> columns, double score) {
  RowEval eval(scoreSizes(), site.column);
  eval.coordinates.assign(coordinates.begin(), coordinates.end());
  eval.columns = std::move(columns);
  eval.withoutReductions = true;
  eval.bind(site.scores.getResult(), scoreRoles, {score});
  auto numbers = eval.evaluate(exponential.getOperand(), reached[exponential.getResult()]);
  metTable |= eval.metTable;
  if (!numbers) {
    no(eval.where ? eval.where : site.scores, eval.whyNot);
    return std::nullopt;
  }
  if (numbers->size() == 1)
    numbers->resize(eval.columns.size(), (*numbers)[0]);
  return numbers;
}

std::optional<std::vector<int>> Matcher::seen(ArrayRef<int64_t> coordinates,
                                              const std::vector<int64_t> &columns) {
  auto base = logits(coordinates, columns, 0);
  if (!base)
    return std::nullopt;
  std::vector<int> result;
  for (double number : *base) {
    constexpr double masked = -1e4, none = 1e-9;
    if (!(number <= masked) && !(std::fabs(number) <= none)) {
      no(exponential, "a bias is added to the scores");
      return std::nullopt;
    }
    result.push_back(number > masked);
  }
  return result;
}

bool Matcher::readScale(ArrayRef<int64_t> coordinates, int64_t column) {
  auto zero = logits(coordinates, {column}, 0), one = logits(coordinates, {column}, 1),
       many = logits(coordinates, {column}, -37);
  if (!zero || !one || !many)
    return false;
  site.scale = (*one)[0] - (*zero)[0];
  double expected = -37 * site.scale;
  if (std::fabs((*many)[0] - (*zero)[0] - expected) > 1e-6 * std::fabs(expected))
    return no(exponential, "scores pass a nonlinear function (soft-capping) before the softmax");
  return site.scale != 0 || no(exponential, "the softmax does not depend on the scores");
}

SmallVector<int64_t> Matcher::randomRow() {
  SmallVector<int64_t> coordinates;
  for (int64_t size : scoreSizes())
    coordinates.push_back(random() % size);
  return coordinates;
}

std::vector<int64_t> range(int64_t size) {
  std::vector<int64_t> result(size);
  std::iota(result.begin(), result.end(), 0);
  return result;
}

/// Evaluates the mask: which axis is the query position, and causal, sliding window or none.
bool Matcher::findMask() {
  int64_t keys = site.sizes[site.column];
  std::vector<int64_t> all = range(keys);
  SmallVector<int64_t> origin(scoreSizes().size(), 0);
  auto first = seen(origin, all);
  if (!first)
    return false;
  // The axis along which the mask changes.
  for (unsigned axis = 0; axis < scoreSizes().size(); ++axis) {
    if (axis == site.column)
      continue;
    SmallVector<int64_t> corner = origin;
    corner[axis] = site.sizes[axis] - 1;
    auto last = seen(corner, all);
    if (!last)
      return false;
    if (*last == *first)
      continue;
    if (site.row || !llvm::is_contained(site.groups, axis))
      return no(exponential, "the mask varies along a batch or head axis");
    site.row = axis;
  }
  if (!site.row) {
    for (unsigned axis : site.groups)
      if (!site.row || site.sizes[axis] > site.sizes[*site.row])
        site.row = axis;
  }
  if (!site.row)
    return no(site.scores, "queries have no position axis");
  llvm::erase(site.groups, *site.row);

  int64_t queries = site.sizes[*site.row];
  SmallVector<int64_t> corner = origin;
  corner[*site.row] = queries - 1;
  auto last = seen(corner, all);
  if (!last)
    return false;
  bool firstSeesAll = llvm::all_of(*first, [](int x) { return x; });
  int64_t begin = llvm::find(*last, 1) - last->begin();
  if (!firstSeesAll) {
    if (queries != keys)
      return no(exponential, "a mask between sequences of different lengths");
    site.causal = true;
    site.window = begin > 0 ? queries - begin : 0;
  }
  auto expected = [&](int64_t s, int64_t t) {
    return !site.causal || (t <= s && (site.window == 0 || s - t < site.window));
  };
  // Every row near the borders and a sample between; all columns of some rows, in each row those near the
  // edges.
  std::set<int64_t> rows, whole{0, queries / 2, queries - 1};
  for (int64_t i = 0; i < std::min<int64_t>(queries, 48); ++i) {
    rows.insert(i);
    rows.insert(queries - 1 - i);
    rows.insert(random() % queries);
  }
  for (int i = 0; i < 8; ++i)
    whole.insert(random() % queries);
  if (metTable) {
    // A mask read from a table can be anything: look at all of it.
    constexpr int64_t most = int64_t(1) << 24;
    if (queries * keys > most)
      return no(exponential, "the mask is a constant too large to look at in full");
    for (int64_t i = 0; i < queries; ++i)
      whole.insert(i);
  }
  rows.insert(whole.begin(), whole.end());
  for (int64_t s : rows) {
    std::vector<int64_t> columns;
    if (whole.count(s)) {
      columns = all;
    } else {
      std::set<int64_t> some{0, 1, keys - 2, keys - 1};
      for (int64_t offset = -2; offset <= 2; ++offset)
        for (int64_t edge : {s, s - site.window})
          some.insert(edge + offset);
      for (int i = 0; i < 6; ++i)
        some.insert(random() % keys);
      for (int64_t t : some)
        if (t >= 0 && t < keys)
          columns.push_back(t);
    }
    SmallVector<int64_t> coordinates = randomRow();
    coordinates[*site.row] = s;
    auto got = seen(coordinates, columns);
    if (!got)
      return false;
    for (size_t i = 0; i < columns.size(); ++i)
      if ((*got)[i] != expected(s, columns[i]))
        return no(exponential, "the mask is neither causal nor a causal sliding window");
  }
  return readScale(corner, queries == keys ? queries - 1 : 0);
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

/// Evaluates what every product reads and compares it with the definition of attention.
bool Matcher::verifyRows() {
  int64_t keys = site.sizes[site.column], queries = site.sizes[*site.row];
  std::normal_distribution<double> normal(0, 2);
  constexpr int samples = 6;
  for (int sample = 0; sample < samples; ++sample) {
    SmallVector<int64_t> coordinates = randomRow();
    int64_t s = sample == 0 ? queries - 1 : coordinates[*site.row];
    coordinates[*site.row] = s;
    std::set<int64_t> chosen;
    for (int64_t t : {s - 2, s - 1, s, s + 1, s - site.window, s - site.window + 1, int64_t(0), keys - 1})
      if (t >= 0 && t < keys)
        chosen.insert(t);
    for (int i = 0; i < 8; ++i)
      chosen.insert(random() % keys);
    std::vector<int64_t> columns(chosen.begin(), chosen.end());
    std::vector<double> score, gradient, probability, scoreGradient;
    double most = -INFINITY, total = 0, inner = 0;
    for (int64_t t : columns) {
      score.push_back(normal(random) / std::fabs(site.scale));
      gradient.push_back(normal(random));
      bool visible = !site.causal || (t <= s && (site.window == 0 || s - t < site.window));
      probability.push_back(visible ? site.scale * score.back() : -INFINITY);
      most = std::max(most, probability.back());
    }
    for (double &p : probability)
      total += p = std::exp(p - most);
    for (size_t i = 0; i < columns.size(); ++i)
      inner += (probability[i] /= total) * gradient[i];
    for (size_t i = 0; i < columns.size(); ++i)
      scoreGradient.push_back(site.scale * probability[i] * (gradient[i] - inner));

    RowEval eval(scoreSizes(), site.column);
    eval.coordinates = coordinates;
    eval.columns = columns;
    eval.bind(site.scores.getResult(), scoreRoles, score);
    for (auto [value, source] : aliases)
      eval.alias(value, source);
    for (Reader &reader : readers) {
      Value value = reader.dot->getOperand(reader.operand);
      const Roles &roles = reached[value];
      if (gradientOfProbabilities)
        eval.bind(gradientOfProbabilities->first, gradientOfProbabilities->second, gradient);
      auto numbers = eval.evaluate(value, roles);
      if (!numbers && !eval.unboundProducts.empty() && !gradientOfProbabilities) {
        gradientOfProbabilities = eval.unboundProducts.front();
        reader.readsGradient = true;
        eval.whyNot.clear();
        eval.unboundProducts.clear();
        eval.forget();
        eval.bind(gradientOfProbabilities->first, gradientOfProbabilities->second, gradient);
        numbers = eval.evaluate(value, roles);
      } else if (gradientOfProbabilities && sample == 0 && numbers) {
        // Does it depend on the gradient? Without it the evaluation stops at that product.
        RowEval without(scoreSizes(), site.column);
        without.coordinates = coordinates;
        without.columns = columns;
        without.bind(site.scores.getResult(), scoreRoles, score);
        for (auto [value, source] : aliases)
          without.alias(value, source);
        reader.readsGradient = !without.evaluate(value, roles);
      }
      if (!numbers)
        return no(eval.where ? eval.where : reader.dot, eval.whyNot);
      const std::vector<double> &wanted = reader.readsGradient ? scoreGradient : probability;
      for (size_t i = 0; i < columns.size(); ++i) {
        double got = (*numbers)[numbers->size() == 1 ? 0 : i];
        // Scales are rounded to the program's precision before they reach us.
        if (!(std::fabs(got - wanted[i]) <= 1e-6 + 5e-3 * std::fabs(wanted[i])))
          return no(reader.dot, reader.readsGradient
                                    ? "what it reads is not the derivative of a softmax"
                                    : "what it reads is not a softmax of the scores (normalised elsewhere?)");
      }
    }
  }
  return true;
}

bool Matcher::identifyProducts() {
  for (Reader &reader : readers)
    if (!coversAll({reader.dot->getOperand(reader.operand), reached[reader.dot->getOperand(reader.operand)]},
                   scoreSizes()))
      return no(reader.dot, "a product reads only a part of what is made of the scores");
  if (!verifyRows())
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
      if (site.value && site.value != other)
        return no(reader.dot, "forward and backward read different values");
      site.value = other;
    } else if (overKeys) {
      slot = &site.queryGradient;
      if (other != site.key)
        return no(reader.dot, "the gradient of the scores is multiplied by something else than the keys");
      site.keyAgain = local;
    } else if (overQueries && reader.readsGradient) {
      slot = &site.keyGradient;
      if (other != site.query)
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

} // namespace

std::optional<Attention> matchAttention(DotGeneralOp scores, Obstacle &obstacle) {
  Matcher matcher(scores, obstacle);
  if (!matcher.run())
    return std::nullopt;
  return std::move(matcher.site);
}

} // namespace farrier::fusion
