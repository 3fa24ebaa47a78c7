//===- AttentionEvaluate.cpp - what a candidate computes, by running rows -===//
//
// The mask and the scale are read off the operand of the exponential; probabilities and score gradients are
// compared with the definition of softmax and its derivative. How the program wrote it does not matter.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/AttentionMatcher.h"
#include "passes/fusion/RowEval.h"

#include <cmath>
#include <numeric>
#include <set>

using namespace mlir;

namespace farrier::fusion {

std::optional<std::vector<double>> Matcher::logits(ArrayRef<int64_t> coordinates,
                                                   std::vector<int64_t> columns, double score) {
  RowEval eval(scoreSizes(), site.column);
  eval.coordinates.assign(coordinates.begin(), coordinates.end());
  eval.columns = std::move(columns);
  eval.withoutReductions = true;
  eval.leaves = tryLeaves ? &leaves : nullptr;
  eval.seed = seed;
  eval.unknown = unknownLeaves;
  eval.rounds = roundLeaves;
  eval.bind(site.scores.getResult(), scoreRoles, {score});
  auto numbers = eval.evaluate(exponential.getOperand(), reached[exponential.getResult()]);
  metTable |= eval.metTable;
  if (!numbers) {
    no(eval.where ? eval.where : site.scores,
       eval.whyNot.empty() ? "a mask that cannot be read" : eval.whyNot);
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
    constexpr double none = 1e-9;
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

static std::vector<int64_t> range(int64_t size) {
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

/// Evaluates what every product reads and compares it with the definition of attention.
bool Matcher::verifyRows() {
  int64_t keys = site.sizes[site.column], queries = site.sizes[*site.row];
  std::normal_distribution<double> normal(0, 2);
  constexpr int samples = 6;
  // Rows of which nothing is seen say nothing: others are tried.
  int attempts = (site.bias ? 40 : 1) * samples + 1;
  for (int sample = 0; sample < samples && attempts > 0; ++sample, --attempts) {
    SmallVector<int64_t> coordinates = randomRow();
    int64_t s = sample == 0 ? queries - 1 : coordinates[*site.row];
    if (site.bias)
      s = random() % queries;
    coordinates[*site.row] = s;
    std::set<int64_t> chosen;
    for (int64_t t : {s - 2, s - 1, s, s + 1, s - site.window, s - site.window + 1, int64_t(0), keys - 1})
      if (t >= 0 && t < keys)
        chosen.insert(t);
    for (int i = 0; i < 8; ++i)
      chosen.insert(random() % keys);
    std::vector<int64_t> columns(chosen.begin(), chosen.end());
    std::vector<double> score, gradient, probability, scoreGradient, base;
    seed = attempts;
    if (site.bias) {
      auto added = logits(coordinates, columns, 0);
      if (!added)
        return false;
      std::vector<int64_t> numbers;
      for (size_t i = 0; i < columns.size(); ++i)
        if (!std::isnan((*added)[i])) {
          numbers.push_back(columns[i]);
          base.push_back((*added)[i]);
        }
      columns = std::move(numbers);
      if (llvm::all_of(base, [](double number) { return number <= masked; })) {
        --sample;
        continue;
      }
    }
    double most = -INFINITY, total = 0, inner = 0;
    for (int64_t t : columns) {
      score.push_back(normal(random) / std::fabs(site.scale));
      gradient.push_back(normal(random));
      double added = base.empty() ? 0 : base[score.size() - 1];
      bool visible = base.empty() ? !site.causal || (t <= s && (site.window == 0 || s - t < site.window))
                                  : added > masked;
      probability.push_back(visible ? site.scale * score.back() + added : -INFINITY);
      most = std::max(most, probability.back());
    }
    for (double &p : probability)
      total += p = std::exp(p - most);
    for (size_t i = 0; i < columns.size(); ++i)
      inner += (probability[i] /= total) * gradient[i];
    for (size_t i = 0; i < columns.size(); ++i)
      scoreGradient.push_back(site.scale * probability[i] * (gradient[i] - inner));

    auto bindScores = [&](RowEval &eval) {
      eval.leaves = tryLeaves ? &leaves : nullptr;
      eval.leavesAreKnown = true;
      eval.seed = seed;
      eval.coordinates = coordinates;
      eval.columns = columns;
      eval.bind(site.scores.getResult(), scoreRoles, score);
      for (auto [value, source] : aliases)
        eval.alias(value, source);
    };
    RowEval eval(scoreSizes(), site.column);
    bindScores(eval);
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
        bindScores(without);
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
    for (stablehlo::ReduceOp sum : sums) {
      Value value = sum.getInputs()[0];
      if (!site.bias || !gradientOfProbabilities)
        return no(sum, "scores or probabilities are also read by 'stablehlo.reduce'");
      eval.bind(gradientOfProbabilities->first, gradientOfProbabilities->second, gradient);
      auto numbers = eval.evaluate(value, reached[value]);
      if (!numbers)
        return no(eval.where ? eval.where : sum, eval.whyNot);
      for (size_t i = 0; i < columns.size(); ++i) {
        double got = (*numbers)[numbers->size() == 1 ? 0 : i], wanted = scoreGradient[i] / site.scale;
        if (!(std::fabs(got - wanted) <= 1e-6 + 5e-3 * std::fabs(wanted)))
          return no(sum, "scores or probabilities are also read by 'stablehlo.reduce'");
      }
    }
  }
  return attempts > 0 || no(site.scores, "no row was found of which anything is seen");
}

} // namespace farrier::fusion
