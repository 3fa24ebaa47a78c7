//===- CommModel.h - how long a collective takes --------------------------===//
//
// The alpha-beta model: a latency plus the bytes that cross the narrowest link of one device, over that
// link's bandwidth. Volumes are those of ring algorithms, as in the nccl-tests document on performance: an
// all-gather of a result of S bytes over n devices moves S(n-1)/n through each device, an all-reduce twice
// that. A group that leaves its NVLink domain is bound by the network cards that its members in one domain
// have together, because NCCL runs one channel per card.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_SCHEDULE_COMMMODEL_H
#define FARRIER_SCHEDULE_COMMMODEL_H

#include "farrier/Schedule/Program.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace farrier::schedule {

/// One published or measured set of parameters. Bandwidths in bytes per microsecond, latencies in
/// microseconds.
struct CommModel {
  std::string name;
  double linkBandwidth = 0;          ///< NVLink, everything but all-reduce
  double linkAllReduceBandwidth = 0; ///< NVLink, all-reduce (in-switch reduction counts as bandwidth)
  double networkBandwidth = 0;       ///< one device's share of the network
  double linkLatency = 0;
  double networkLatency = 0;
  /// Communication of different domains (NVLink, network) runs on streams of its own.
  bool twoStreams = false;

  /// Measured times: bytes (as nccl-tests counts them) -> microseconds, ascending, by kind and by whether the
  /// group leaves its domain. Between points the logarithms are interpolated; beyond them the end's rate
  /// holds.
  using Curve = std::vector<std::pair<double, double>>;
  std::map<std::pair<CollectiveKind, bool>, Curve> measured;

  /// Microseconds that `collective` occupies its stream.
  double cost(const Collective &collective) const;
  /// The stream it occupies: 0, or 1 for the network's when there are two.
  int stream(const Collective &collective) const { return twoStreams && collective.domains > 1 ? 1 : 0; }
};

llvm::Expected<CommModel> commModelFromJson(const llvm::json::Object &json);
llvm::Expected<CollectiveKind> collectiveKind(llvm::StringRef name);
const char *collectiveName(CollectiveKind kind);

} // namespace farrier::schedule

#endif // FARRIER_SCHEDULE_COMMMODEL_H
