#include "farrier/Analysis/KernelTimes.h"

#include <algorithm>
#include <numeric>

namespace farrier {

std::vector<unsigned> placesOf(const BlockGraph &graph, std::vector<unsigned> place) {
  unsigned last = 0;
  for (unsigned at : place)
    last = std::max(last, at == noPlace ? 0 : at + 1);
  if (!place.empty())
    place.back() = last;
  for (unsigned op = graph.numOps(); op-- > 0;) {
    if (place[op] != noPlace)
      continue;
    place[op] = last;
    for (unsigned out : graph.outputs[op])
      for (unsigned user : graph.users[out])
        place[op] = std::min(place[op], place[user]);
  }
  return place;
}

std::vector<unsigned> inOrder(llvm::ArrayRef<unsigned> place, const SiblingTimes &joined) {
  std::vector<unsigned> order(place.size());
  std::iota(order.begin(), order.end(), 0);
  llvm::sort(order, [&](unsigned a, unsigned b) {
    return std::make_pair(place[a], joined.runs[a]) < std::make_pair(place[b], joined.runs[b]);
  });
  return order;
}

SiblingTimes timesOf(llvm::ArrayRef<unsigned> order, const SiblingTimes &joined) {
  SiblingTimes result{std::vector<unsigned>(order.size()), std::vector<unsigned>(order.size()), {}, {}};
  std::vector<unsigned> mostOfKernel(order.size(), 0);
  for (auto [at, op] : llvm::enumerate(order)) {
    result.runs[op] = at;
    mostOfKernel[joined.lastOfKernel[op]] = at;
  }
  for (unsigned op = 0; op < order.size(); ++op)
    result.lastOfKernel[op] = mostOfKernel[joined.lastOfKernel[op]];
  return result;
}

} // namespace farrier
