#include "passes/remat/Offload.h"

#include "farrier/Analysis/ValueKey.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"

#include <algorithm>

using namespace mlir;

namespace farrier::remat {

/// Values that are sent one by one beyond what cuts say.
static constexpr int kMostSteps = 24;
/// What a transfer costs although compute hides it, as a share of its time: it takes device bandwidth too.
static constexpr double kTransferShare = 0.02;

std::vector<std::string> textsOf(const llvm::json::Object &object, StringRef key) {
  std::vector<std::string> texts;
  if (const llvm::json::Array *list = object.getArray(key))
    for (const llvm::json::Value &entry : *list)
      if (std::optional<StringRef> text = entry.getAsString())
        texts.push_back(text->str());
  return texts;
}

OffloadRules OffloadRules::fromJSON(const llvm::json::Object &object) {
  OffloadRules rules;
  rules.allowed = object.getBoolean("offload").value_or(false);
  rules.onlyAsked = object.getBoolean("offload_only_asked").value_or(false);
  rules.onDevice = textsOf(object, "on_device");
  rules.toHost = textsOf(object, "to_host");
  return rules;
}

double computeSeconds(CostModel &costs, Operation *op) {
  OpCost cost = costs.cost(op);
  if (cost.flops == 0)
    return 0;
  // A loop's cost holds what its other operations would move unfused.
  return op->getNumRegions() ? std::min(cost.seconds, cost.flops / costs.getMachine().flopsHalf)
                             : cost.seconds;
}

static bool isNamed(Value value, const std::vector<std::string> &texts) {
  Operation *op = value ? value.getDefiningOp() : nullptr;
  return op && farrier::isNamed(op, texts);
}

void offerHost(Problem &problem, HostSchedule schedule, const OffloadRules &rules, double slices) {
  if (!rules.allowed || schedule.bytesPerSecond <= 0)
    return;
  std::vector<int64_t> bytes;
  for (Candidate &candidate : problem.candidates) {
    bytes.push_back(candidate.bytes);
    auto perInstance = static_cast<int64_t>(slices * candidate.bytes / problem.instances);
    if (candidate.bytes < rules.leastBytes || perInstance >= candidate.bytes ||
        isNamed(candidate.value, rules.onDevice))
      continue;
    bool asked = isNamed(candidate.value, rules.toHost);
    if (rules.onlyAsked && !asked)
      continue;
    candidate.hostBytes = perInstance;
    candidate.hostSeconds = 2 * static_cast<double>(candidate.bytes) / schedule.bytesPerSecond;
    candidate.onlyHost = asked;
    if (candidate.onlyHost)
      candidate.recomputable = false;
  }
  problem.exposed = [schedule = std::move(schedule),
                     bytes = std::move(bytes)](const std::vector<bool> &onHost) {
    double sent = 0, fetched = 0, both = 0;
    for (size_t v = 0; v < bytes.size(); ++v) {
      if (!onHost[v])
        continue;
      double seconds = static_cast<double>(bytes[v]) / schedule.bytesPerSecond;
      sent = std::max(sent, schedule.ready[v]) + seconds;
      fetched += seconds;
      both += 2 * seconds;
    }
    return std::max(0.0, sent - schedule.forward) + std::max(0.0, fetched - schedule.backward) +
           kTransferShare * both;
  };
}

std::vector<Choice> unbeaten(std::vector<Choice> all) {
  llvm::stable_sort(all, [](const Choice &a, const Choice &b) {
    return std::tie(a.seconds, a.savedBytes, a.hostBytes) < std::tie(b.seconds, b.savedBytes, b.hostBytes);
  });
  std::vector<Choice> best;
  for (Choice &choice : all)
    if (best.empty() || choice.savedBytes < best.back().savedBytes)
      best.push_back(std::move(choice));
  return best;
}

/// Sends what `choice` saves to the host, value by value, the most bytes per second that shows first; appends
/// each step.
static void sendOneByOne(const Problem &problem, Choice choice, std::vector<Choice> &out) {
  const std::vector<Candidate> &candidates = problem.candidates;
  for (int step = 0; step < kMostSteps; ++step) {
    double now = problem.exposed(choice.onHost), bestRatio = 0;
    int best = -1;
    for (unsigned v = 0; v < candidates.size(); ++v) {
      if (!choice.saved[v] || choice.onHost[v] || candidates[v].hostSeconds < 0)
        continue;
      choice.onHost[v] = true;
      double shows = problem.exposed(choice.onHost) - now;
      choice.onHost[v] = false;
      double ratio = static_cast<double>(candidates[v].bytes - candidates[v].hostBytes) / shows;
      if (ratio > bestRatio) {
        bestRatio = ratio;
        best = static_cast<int>(v);
      }
    }
    if (best < 0)
      return;
    choice.onHost[best] = true;
    problem.price(choice);
    out.push_back(choice);
  }
}

std::vector<Choice> frontierWithHost(const Problem &problem) {
  bool offered = llvm::any_of(problem.candidates, [](const Candidate &c) { return c.hostSeconds >= 0; });
  if (!offered || !problem.exposed)
    return problem.frontier();
  std::vector<Choice> all;
  // Without the host, so that what is chosen is never worse than that; then at falling prices of the link.
  for (double price : {-1.0, 1.0, 0.2, 0.03}) {
    Problem priced = problem;
    for (Candidate &candidate : priced.candidates)
      if (candidate.hostSeconds >= 0 && (price >= 0 || candidate.onlyHost))
        candidate.hostSeconds *= std::abs(price);
      else
        candidate.hostSeconds = -1;
    for (Choice &choice : priced.frontier()) {
      problem.price(choice);
      all.push_back(std::move(choice));
    }
  }
  // A price sends all or nothing where values are worth the same: fill what compute hides value by value.
  for (const Choice &choice : unbeaten(all))
    sendOneByOne(problem, choice, all);
  return unbeaten(std::move(all));
}

} // namespace farrier::remat
