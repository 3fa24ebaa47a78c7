#include "farrier/Schedule/CommModel.h"

#include "llvm/ADT/StringSwitch.h"

#include <algorithm>
#include <cmath>

namespace farrier::schedule {

static constexpr const char *kNames[] = {"all-gather", "all-reduce",         "reduce-scatter",
                                         "all-to-all", "collective-permute", "collective-broadcast"};

const char *collectiveName(CollectiveKind kind) { return kNames[static_cast<int>(kind)]; }

llvm::Expected<CollectiveKind> collectiveKind(llvm::StringRef name) {
  if (name == "ragged-all-to-all")
    return CollectiveKind::AllToAll;
  for (int k = 0; k < 6; ++k)
    if (name == kNames[k])
      return static_cast<CollectiveKind>(k);
  return llvm::createStringError(llvm::inconvertibleErrorCode(), "unknown collective kind '%s'",
                                 name.str().c_str());
}

static double interpolate(const CommModel::Curve &curve, double bytes) {
  if (bytes <= curve.front().first)
    return curve.front().second; // below the smallest measured message latency rules
  if (bytes >= curve.back().first)
    return curve.back().second * bytes / curve.back().first;
  auto above = std::lower_bound(curve.begin(), curve.end(), std::make_pair(bytes, 0.0));
  auto below = std::prev(above);
  double x = (std::log(bytes) - std::log(below->first)) / (std::log(above->first) - std::log(below->first));
  return std::exp(std::log(below->second) * (1 - x) + std::log(above->second) * x);
}

double CommModel::cost(const Collective &collective) const {
  if (collective.measured >= 0)
    return collective.measured;
  const bool leaves = collective.domains > 1;
  const double n = static_cast<double>(collective.group);
  const double result = static_cast<double>(collective.bytes);
  if (auto it = measured.find({collective.kind, leaves}); it != measured.end())
    return interpolate(it->second, collective.kind == CollectiveKind::ReduceScatter ? result * n : result);
  const double share = (n - 1) / n;
  double volume = 0, bandwidth = linkBandwidth;
  switch (collective.kind) {
  case CollectiveKind::AllReduce:
    volume = 2 * share * result;
    bandwidth = linkAllReduceBandwidth;
    break;
  case CollectiveKind::ReduceScatter:
    volume = share * result * n;
    break;
  case CollectiveKind::Permute:
  case CollectiveKind::Broadcast:
    volume = result;
    break;
  case CollectiveKind::AllGather:
  case CollectiveKind::AllToAll:
    volume = share * result;
    break;
  }
  if (leaves)
    bandwidth = std::min(bandwidth, networkBandwidth * static_cast<double>(collective.perDomain));
  return (leaves ? networkLatency : linkLatency) + volume / bandwidth;
}

llvm::Expected<CommModel> commModelFromJson(const llvm::json::Object &json) {
  CommModel model;
  model.name = json.getString("name").value_or("").str();
  struct Field {
    const char *key;
    double &value;
  };
  for (const Field &field : {Field{"link_bytes_per_us", model.linkBandwidth},
                             {"link_all_reduce_bytes_per_us", model.linkAllReduceBandwidth},
                             {"network_bytes_per_us", model.networkBandwidth},
                             {"link_latency_us", model.linkLatency},
                             {"network_latency_us", model.networkLatency}}) {
    std::optional<double> number = json.getNumber(field.key);
    bool bandwidth = llvm::StringRef(field.key).ends_with("bytes_per_us");
    if (!number || !std::isfinite(*number) || (bandwidth ? *number <= 0 : *number < 0))
      return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                     "parameter set '%s': '%s' is missing or not %s", model.name.c_str(),
                                     field.key, bandwidth ? "positive" : "a time");
    field.value = *number;
  }
  model.twoStreams = json.getBoolean("two_streams").value_or(false);
  if (const llvm::json::Array *curves = json.getArray("measured"))
    for (const llvm::json::Value &value : *curves) {
      const llvm::json::Object *object = value.getAsObject();
      const llvm::json::Array *points = object ? object->getArray("points") : nullptr;
      if (!points || points->empty())
        return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                       "parameter set '%s': a measured curve is empty", model.name.c_str());
      llvm::Expected<CollectiveKind> kind = collectiveKind(object->getString("kind").value_or(""));
      if (!kind)
        return kind.takeError();
      CommModel::Curve curve;
      for (const llvm::json::Value &point : *points) {
        const llvm::json::Array *pair = point.getAsArray();
        std::optional<double> bytes = pair && pair->size() == 2 ? (*pair)[0].getAsNumber() : std::nullopt;
        std::optional<double> time = pair && pair->size() == 2 ? (*pair)[1].getAsNumber() : std::nullopt;
        if (!bytes || !time || !(*bytes > 0) || !(*time > 0))
          return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                         "parameter set '%s': a measured point is not [bytes, microseconds]",
                                         model.name.c_str());
        curve.emplace_back(*bytes, *time);
      }
      std::sort(curve.begin(), curve.end());
      model.measured[{*kind, object->getBoolean("network").value_or(false)}] = std::move(curve);
    }
  return model;
}

} // namespace farrier::schedule
