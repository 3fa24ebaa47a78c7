//===- MinCut.h - the lower hull of a two-cost minimum cut ------------------===//

#ifndef FARRIER_PASSES_REMAT_MINCUT_H
#define FARRIER_PASSES_REMAT_MINCUT_H

#include <cstdint>
#include <vector>

namespace farrier::remat {

/// Two costs in whole units (time quanta, bytes), each below 2^52 in total.
struct TwoCost {
  int64_t time = 0, bytes = 0;
  TwoCost &operator+=(TwoCost other) {
    time += other.time;
    bytes += other.bytes;
    return *this;
  }
};

/// 0/1 variables with unary costs, pairwise costs and implications, minimised over every price of a
/// byte. Exact in 128-bit integers; of all minimisers the one with the fewest ones is taken, so the
/// result depends on nothing but the problem.
class ParametricCut {
public:
  struct Vertex {
    std::vector<bool> ones;
    TwoCost cost;
  };

  unsigned addVariable();
  /// Paid if `i` is 1.
  void pay(unsigned i, TwoCost cost);
  /// Paid if `i` is 1 and `j` is 0.
  void payUnless(unsigned i, unsigned j, TwoCost cost);
  /// `i` is 1.
  void require(unsigned i);
  /// If `i` is 1, so is `j`.
  void imply(unsigned i, unsigned j);

  /// The vertices of the lower convex hull, from the least time to the fewest bytes.
  std::vector<Vertex> hull() const;

private:
  struct Arc {
    unsigned from, to;
    TwoCost cost;
    bool infinite;
  };

  Vertex minimise(__int128 timeWeight, __int128 bytesWeight) const;
  void between(const Vertex &fast, const Vertex &small, std::vector<Vertex> &out) const;
  TwoCost costOf(const std::vector<bool> &ones) const;

  // Variables are nodes 2 and up; node 0 is the source (ones), node 1 the sink (zeros).
  unsigned nodes = 2;
  std::vector<Arc> arcs;
};

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_MINCUT_H
