//===- AttentionBias.cpp - what is added to the scores, and its gradient ---===//
//
// Masks and biases that cuDNN has no name for enter its kernels as a tensor that is added to the scores. The
// program has all that is needed to make one: what it does to the scores, done to zeros. That this is all it
// does is shown by the operations on the way (sums, scales by constants, selections of a large negative
// number); which numbers come out is tried, with arbitrary ones for what is known only at run time.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/AttentionMatcher.h"
#include "passes/fusion/RowEval.h"

#include <cmath>
#include <limits>
#include <set>

using namespace mlir;

namespace farrier::fusion {

/// Marks the axes along which a value varies.
void Matcher::markAxes(Value value, const Roles &roles, SmallVectorImpl<bool> &axes) {
  SmallVector<std::pair<Value, Roles>> todo{{value, roles}};
  DenseMap<Value, Roles> seen;
  while (!todo.empty()) {
    auto [at, places] = todo.pop_back_val();
    auto [it, fresh] = seen.try_emplace(at, places);
    if (!fresh && it->second == places)
      continue;
    Operation *op = at.getDefiningOp();
    if (op && (isElementwise(op) || isAnnotation(op)) && op->getNumResults() == 1) {
      for (Value operand : op->getOperands())
        if (tensorType(operand).getRank() != 0)
          todo.emplace_back(operand, places);
      continue;
    }
    if (auto constant = dyn_cast_or_null<stablehlo::ConstantOp>(op))
      if (auto dense = dyn_cast<DenseElementsAttr>(constant.getValue()); dense && dense.isSplat())
        continue;
    if (op && isa<stablehlo::BroadcastInDimOp, stablehlo::ReshapeOp, stablehlo::TransposeOp>(op))
      if (std::optional<Roles> before = rolesBeforeMove(op, places, site.sizes)) {
        todo.emplace_back(op->getOperand(0), *before);
        continue;
      }
    auto iota = dyn_cast_or_null<stablehlo::IotaOp>(op);
    for (unsigned axis = 0; axis < places.size(); ++axis)
      if (places[axis] && (!iota || static_cast<int64_t>(iota.getIotaDimension()) == places[axis]->dim))
        axes[axis] = true;
  }
}

/// The operations between the scores and the exponential; false: one of them is not linear in the scores.
bool Matcher::followLinks(Bias &bias) {
  Value at = exponential.getOperand();
  while (at != site.scores.getResult()) {
    Operation *op = at.getDefiningOp();
    if (!op)
      return no(exponential, "scores reach the softmax through a loop");
    Link link{Link::Move, op, 0, reached[at]};
    // What varies along the softmax's axis is made of scores; what does not is a maximum of them.
    auto ofScores = [&](Value value) {
      auto it = reached.find(value);
      return it != reached.end() && it->second[site.column];
    };
    unsigned paths = llvm::count_if(op->getOperands(), ofScores);
    while (link.path < op->getNumOperands() && !ofScores(op->getOperand(link.path)))
      ++link.path;
    if (paths != 1)
      return no(op, "scores meet themselves before the softmax");
    if (isa<stablehlo::ConvertOp, stablehlo::ReshapeOp, stablehlo::TransposeOp, stablehlo::BroadcastInDimOp>(
            op) ||
        isAnnotation(op)) {
      link.kind = Link::Move;
    } else if (isa<stablehlo::AddOp>(op) || (isa<stablehlo::SubtractOp>(op) && link.path == 0)) {
      Value other = op->getOperand(1 - link.path);
      link.kind = reached.contains(other) ? Link::Shift : Link::Term;
      if (link.kind == Link::Term)
        markAxes(other, link.roles, bias.axes);
    } else if (isa<stablehlo::MulOp>(op) || (isa<stablehlo::DivOp>(op) && link.path == 0)) {
      link.kind = Link::Scale;
      // Without leaves: a constant.
      RowEval eval(scoreSizes(), site.column);
      eval.coordinates = randomRow();
      eval.columns = {0};
      if (!eval.evaluate(op->getOperand(1 - link.path), link.roles))
        return no(op, "scores are multiplied by something known only at run time");
    } else if (isa<stablehlo::SelectOp>(op) && link.path != 0) {
      link.kind = Link::Mask;
      RowEval eval(scoreSizes(), site.column);
      eval.coordinates = randomRow();
      eval.columns = {0};
      auto fill = eval.evaluate(op->getOperand(3 - link.path), link.roles);
      if (!fill || !((*fill)[0] <= masked))
        return no(op, "masked scores do not become one large negative number");
      markAxes(op->getOperand(0), link.roles, bias.axes);
    } else {
      return no(op, "scores pass a nonlinear function ('" + op->getName().getStringRef() +
                        "', soft-capping?) before the softmax");
    }
    bias.links.push_back(link);
    at = op->getOperand(link.path);
  }
  return true;
}

/// Which masks and biases the kernels do not know by name, they take as a tensor.
bool Matcher::findBias() {
  // What findMask had settled before it gave up.
  if (site.row && !llvm::is_contained(site.groups, *site.row))
    site.groups.push_back(*site.row);
  llvm::sort(site.groups);
  site.row.reset();
  site.causal = false;
  site.window = 0;
  Bias bias;
  bias.scoreRoles = scoreRoles;
  bias.axes.assign(scoreSizes().size(), false);
  if (!followLinks(bias))
    return false;
  // Any axis that only queries have may be called their position; the one as long as the keys will be.
  int64_t keys = site.sizes[site.column];
  for (unsigned axis : site.groups)
    if (!site.row || site.sizes[axis] == keys || site.sizes[axis] > site.sizes[*site.row])
      if (!site.row || site.sizes[*site.row] != keys)
        site.row = axis;
  if (!site.row)
    return no(site.scores, "queries have no position axis");
  llvm::erase(site.groups, *site.row);
  site.bias = std::move(bias);
  tryLeaves = true;
  if (!readBias())
    return false;
  site.bias->leaves = leaves.takeVector();
  leaves.insert(site.bias->leaves.begin(), site.bias->leaves.end());
  return true;
}

/// Tries the links: one scale everywhere, biases that 16 bits hold, rows that may see nothing.
bool Matcher::readBias() {
  int64_t keys = site.sizes[site.column], queries = site.sizes[*site.row];
  auto element = cast<FloatType>(tensorType(site.query.value).getElementType());
  if (!element.isBF16())
    return no(exponential,
              "a mask or bias that only a tensor can hold, and f16 does not reach a mask's large "
              "negative numbers");
  auto held = [&](double number) {
    APFloat value(number);
    bool loses = false;
    value.convert(element.getFloatSemantics(), APFloat::rmNearestTiesToEven, &loses);
    return !loses;
  };
  roundLeaves = true;
  std::optional<double> scale;
  // The numbers of masked scores, and whether the kernel can be given them as they are.
  double deepest = 0, shallowest = -INFINITY;
  bool asTheyAre = llvm::none_of(site.bias->links, [](const Link &link) { return link.kind == Link::Mask; });
  bool infinite = false, ownPositionSeen = queries == keys;
  constexpr int samples = 16;
  for (int sample = 0; sample < samples; ++sample) {
    seed = sample;
    SmallVector<int64_t> coordinates = randomRow();
    std::set<int64_t> chosen{0, keys - 1};
    int64_t own = std::min(coordinates[*site.row], keys - 1);
    for (int64_t offset = -2; offset <= 2; ++offset)
      chosen.insert(std::clamp<int64_t>(own + offset, 0, keys - 1));
    for (int i = 0; i < 8; ++i)
      chosen.insert(random() % keys);
    std::vector<int64_t> columns(chosen.begin(), chosen.end());
    auto zero = logits(coordinates, columns, 0), one = logits(coordinates, columns, 1),
         many = logits(coordinates, columns, -37);
    if (!zero || !one || !many)
      return false;
    for (size_t i = 0; i < columns.size(); ++i) {
      double base = (*zero)[i];
      if (std::isnan(base)) // in the program too: an index out of bounds, for example
        continue;
      bool hidden = base <= masked;
      infinite |= base < -std::numeric_limits<float>::max();
      if (hidden) {
        deepest = std::min(deepest, base);
        shallowest = std::max(shallowest, base);
        asTheyAre &= base >= maskedBias && held(base);
      }
      if (columns[i] == own && hidden)
        ownPositionSeen = false;
      if (hidden)
        continue; // with or without the score: it does not count
      double rise = (*one)[i] - base, fall = (*many)[i] - base;
      if (!scale)
        scale = rise;
      double slack = 1e-6 * std::fabs(*scale) + 1e-14 * std::fabs(base);
      if (!(std::fabs(rise - *scale) <= slack) || !(std::fabs(fall + 37 * *scale) <= 37 * slack))
        return no(exponential, "scores are scaled differently from place to place");
      site.wideBias |= !held(base);
    }
  }
  if (!scale || *scale == 0)
    return no(exponential, "the softmax does not depend on the scores");
  site.scale = *scale;
  if (infinite && !ownPositionSeen)
    return no(exponential,
              "a row whose scores are all masked by -inf would be nan, and the kernel's is a number");
  roundLeaves = false;
  // Selected numbers are replaced; sums of them and others may still be lower.
  site.bias->isDeep = deepest < maskedBias;
  // A row of which nothing is seen is averaged over the shallowest of its masks.
  if (!ownPositionSeen && !asTheyAre && !(shallowest - deepest <= 1e-6 * std::fabs(deepest)))
    return no(exponential,
              "masked scores get different numbers, which count in a row of which nothing is seen");
  // Where later keys are masked whatever the run-time values, the kernel need not look at them. It then must
  // not meet a row of which nothing is seen: the program averages all values there, the kernel those before
  // it.
  if (!ownPositionSeen)
    return true;
  // Rows near both ends and some between, keys near the own position; all where the mask comes from a table.
  unknownLeaves = true;
  metTable = false;
  site.causal = true;
  std::set<int64_t> rows, whole{0, queries / 2, std::max<int64_t>(queries - 2, 0)};
  for (int64_t i = 0; i < std::min<int64_t>(queries, 24); ++i)
    for (int64_t s : {i, queries - 1 - i, static_cast<int64_t>(random() % queries)})
      rows.insert(s);
  constexpr int64_t few = 1 << 12, most = 1 << 24;
  for (int attempt = 0; attempt < 2 && site.causal; ++attempt) {
    bool all = queries * keys <= few || (attempt == 1 && metTable);
    if (attempt == 1 && !metTable)
      break;
    if (all && queries * keys > most) {
      site.causal = false;
      break;
    }
    for (int64_t s = 0; s < queries && site.causal; ++s) {
      if (!all && !rows.count(s) && !whole.count(s))
        continue;
      std::set<int64_t> chosen;
      if (all || whole.count(s))
        for (int64_t t = s + 1; t < keys; ++t)
          chosen.insert(t);
      for (int64_t t : {s + 1, s + 2, s + 3, keys - 2, keys - 1})
        chosen.insert(t);
      for (int i = 0; i < 6 && s + 1 < keys; ++i)
        chosen.insert(s + 1 + static_cast<int64_t>(random() % (keys - s - 1)));
      std::vector<int64_t> columns;
      llvm::copy_if(chosen, std::back_inserter(columns), [&](int64_t t) { return t > s && t < keys; });
      if (columns.empty())
        continue;
      SmallVector<int64_t> coordinates = randomRow();
      coordinates[*site.row] = s;
      auto base = logits(coordinates, columns, 0);
      if (!base)
        return false;
      site.causal = llvm::all_of(*base, [](double number) { return number <= masked; });
    }
  }
  unknownLeaves = false;
  return true;
}

/// The sum that makes the bias's gradient, where the program makes one.
bool Matcher::identifyBiasGradient() {
  if (sums.empty())
    return true;
  if (sums.size() > 1)
    return no(sums[1], "score gradients are summed more than once");
  stablehlo::ReduceOp sum = sums.front();
  const Roles &roles = reached[sum.getInputs()[0]];
  SmallVector<int64_t> dims(sum.getDimensions());
  Roles result(roles.size());
  for (unsigned axis = 0; axis < roles.size(); ++axis) {
    if (!roles[axis] || llvm::is_contained(dims, roles[axis]->dim))
      continue;
    AxisPlace place = *roles[axis];
    place.dim -= llvm::count_if(dims, [&](int64_t dim) { return dim < place.dim; });
    result[axis] = place;
    site.bias->axes[axis] = true;
  }
  Block *home = site.loops ? &site.loops->backward->getRegion(1).front() : site.scores->getBlock();
  if (sum->getBlock() != home)
    return no(sum, "score gradients are summed in another loop");
  site.biasGradient = {sum, result};
  return true;
}

} // namespace farrier::fusion
