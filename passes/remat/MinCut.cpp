#include "passes/remat/MinCut.h"

#include <algorithm>
#include <cassert>

namespace farrier::remat {

namespace {

using Flow = __int128;
constexpr Flow kInfinite = Flow(1) << 120;

/// Dinic's maximum flow ("Algorithm for solution of a problem of maximum flow in networks with power
/// estimation", 1970): breadth-first levels, then blocking flows. Iterative, as chains of thousands
/// of operations are ordinary.
class MaxFlow {
public:
  explicit MaxFlow(unsigned nodes) : head(nodes, -1) {}

  void add(unsigned from, unsigned to, Flow capacity) {
    edges.push_back({to, head[from], capacity});
    head[from] = static_cast<int>(edges.size()) - 1;
    edges.push_back({from, head[to], 0});
    head[to] = static_cast<int>(edges.size()) - 1;
  }

  void run(unsigned source, unsigned sink) {
    while (setLevels(source, sink)) {
      next = head;
      block(source, sink);
    }
  }

  /// After run: whether a node is on the source's side of the cut nearest to the source.
  bool reached(unsigned node) const { return level[node] >= 0; }

private:
  struct Edge {
    unsigned to;
    int next;
    Flow capacity;
  };

  bool setLevels(unsigned source, unsigned sink) {
    level.assign(head.size(), -1);
    level[source] = 0;
    queue.assign(1, source);
    for (size_t at = 0; at < queue.size(); ++at)
      for (int e = head[queue[at]]; e >= 0; e = edges[e].next)
        if (edges[e].capacity > 0 && level[edges[e].to] < 0) {
          level[edges[e].to] = level[queue[at]] + 1;
          queue.push_back(edges[e].to);
        }
    return level[sink] >= 0;
  }

  void block(unsigned source, unsigned sink) {
    std::vector<int> path;
    unsigned node = source;
    while (true) {
      if (node == sink) {
        Flow amount = kInfinite * 2;
        for (int e : path)
          amount = std::min(amount, edges[e].capacity);
        size_t firstFull = path.size();
        for (size_t i = path.size(); i-- > 0;) {
          edges[path[i]].capacity -= amount;
          edges[path[i] ^ 1].capacity += amount;
          if (edges[path[i]].capacity == 0)
            firstFull = i;
        }
        node = edges[path[firstFull] ^ 1].to;
        path.resize(firstFull);
        continue;
      }
      int &e = next[node];
      while (e >= 0 && !(edges[e].capacity > 0 && level[edges[e].to] == level[node] + 1))
        e = edges[e].next;
      if (e >= 0) {
        path.push_back(e);
        node = edges[e].to;
        continue;
      }
      if (path.empty())
        return;
      level[node] = -1; // a dead end for this phase
      node = edges[path.back() ^ 1].to;
      path.pop_back();
      next[node] = edges[next[node]].next;
    }
  }

  std::vector<Edge> edges;
  std::vector<int> head, next, level;
  std::vector<unsigned> queue;
};

} // namespace

unsigned ParametricCut::addVariable() { return nodes++ - 2; }

void ParametricCut::pay(unsigned i, TwoCost cost) { arcs.push_back({i + 2, 1, cost, false}); }

void ParametricCut::payUnless(unsigned i, unsigned j, TwoCost cost) {
  arcs.push_back({i + 2, j + 2, cost, false});
}

void ParametricCut::require(unsigned i) { arcs.push_back({0, i + 2, {}, true}); }

void ParametricCut::imply(unsigned i, unsigned j) { arcs.push_back({i + 2, j + 2, {}, true}); }

TwoCost ParametricCut::costOf(const std::vector<bool> &ones) const {
  auto isOne = [&](unsigned node) { return node == 0 || (node >= 2 && ones[node - 2]); };
  TwoCost sum;
  for (const Arc &arc : arcs)
    if (isOne(arc.from) && !isOne(arc.to)) {
      assert(!arc.infinite && "a violated implication");
      sum += arc.cost;
    }
  return sum;
}

ParametricCut::Vertex ParametricCut::minimise(Flow timeWeight, Flow bytesWeight) const {
  MaxFlow flow(nodes);
  for (const Arc &arc : arcs) {
    Flow capacity = arc.infinite ? kInfinite : timeWeight * arc.cost.time + bytesWeight * arc.cost.bytes;
    if (capacity > 0)
      flow.add(arc.from, arc.to, capacity);
  }
  flow.run(0, 1);
  Vertex vertex;
  vertex.ones.resize(nodes - 2);
  for (unsigned node = 2; node < nodes; ++node)
    vertex.ones[node - 2] = flow.reached(node);
  vertex.cost = costOf(vertex.ones);
  return vertex;
}

/// Appends the vertices strictly between two that are known, without the two.
void ParametricCut::between(const Vertex &fast, const Vertex &small, std::vector<Vertex> &out) const {
  Flow time = small.cost.time - fast.cost.time, bytes = fast.cost.bytes - small.cost.bytes;
  if (time <= 0 || bytes <= 0)
    return;
  // At the price of the line through both, anything cheaper lies below the line.
  Vertex middle = minimise(bytes, time);
  auto value = [&](const Vertex &v) { return bytes * v.cost.time + time * v.cost.bytes; };
  if (value(middle) >= value(fast))
    return;
  between(fast, middle, out);
  out.push_back(middle);
  between(middle, small, out);
}

std::vector<ParametricCut::Vertex> ParametricCut::hull() const {
  TwoCost all;
  for (const Arc &arc : arcs)
    all += arc.cost;
  std::vector<Vertex> result;
  // The ends are lexicographic minima: the other cost only decides ties.
  result.push_back(minimise(Flow(all.bytes) + 1, 1));
  Vertex small = minimise(1, Flow(all.time) + 1);
  between(Vertex(result.front()), small, result);
  if (small.cost.bytes < result.back().cost.bytes)
    result.push_back(small);
  return result;
}

} // namespace farrier::remat
