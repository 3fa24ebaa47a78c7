//===- GroupedKernel.cpp - Triton text of grouped matrix products ---------===//
//
// Every program computes one tile of the result. Nothing is padded: a program finds its group and its rows
// from the group sizes by a prefix sum over all of them, and masks what lies behind the group's end. Tiles
// start where groups start, so that no two programs write one element and the result does not depend on their
// order.
//
//===----------------------------------------------------------------------===//

#include "passes/fusion/GroupedKernel.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/MathExtras.h"

using namespace mlir;
using llvm::divideCeil;
using llvm::formatv;

namespace farrier::fusion {

// Triton's products want at least 16 along each side.
static int64_t tileSide(int64_t size, int64_t most) {
  return std::min<int64_t>(most, std::max<int64_t>(16, llvm::PowerOf2Ceil(size)));
}

// Tiles along the rows when every group starts a new one: sum of ceil(s / tile) with the s adding up to
// `rows`.
static int64_t tilesOf(int64_t rows, int64_t groups, int64_t tile) {
  groups = std::min(rows, groups);
  return (rows + groups * (tile - 1)) / tile;
}

GroupedTiling tile(const GroupedProduct &p) {
  GroupedTiling t;
  int64_t narrow = p.element.getIntOrFloatBitWidth() / 8;
  t.columns = tileSide(p.n, 128);
  if (p.sums) {
    t.rows = tileSide(p.k, 128);
    t.depth = tileSide(p.m, narrow > 2 ? 32 : 64);
    t.grid[0] = divideCeil(p.n, t.columns);
    t.grid[1] = divideCeil(p.k, t.rows);
    t.grid[2] = p.g;
    t.flops = 2 * tilesOf(p.m, p.g, t.depth) * t.depth * t.grid[1] * t.rows * t.grid[0] * t.columns;
  } else {
    // Tall tiles use the matrix units best; many small groups leave them half empty.
    t.rows = tileSide(p.m, 128);
    if (t.rows == 128 && tilesOf(p.m, p.g, 128) * 128 > p.m + p.m / 10)
      t.rows = 64;
    t.depth = tileSide(p.k, narrow > 2 ? 32 : 64);
    t.grid[0] = divideCeil(p.n, t.columns);
    // One more group: the rows behind the last one, which become zero.
    t.grid[1] = tilesOf(p.m, p.g + 1, t.rows);
    t.flops =
        2 * tilesOf(p.m, p.g, t.rows) * t.rows * t.grid[0] * t.columns * divideCeil(p.k, t.depth) * t.depth;
  }
  int64_t ragged = p.sums ? tilesOf(p.m, p.g, t.depth) * t.depth : tilesOf(p.m, p.g, t.rows) * t.rows;
  t.denseFlops = t.flops / ragged * p.m * p.g;
  t.warps = t.rows * t.columns >= 128 * 128 ? 8 : 4;
  return t;
}

std::string kernelName(const GroupedProduct &p, const GroupedTiling &t) {
  return formatv("farrier_grouped_{0}_{1}_{2}_{3}x{4}x{5}", p.sums ? "sums" : "rows", p.lhs, p.rhs, t.rows,
                 t.columns, t.depth);
}

namespace {

/// Writes operations and names their results; types are given as text.
class Writer {
public:
  Writer(const GroupedProduct &p, const GroupedTiling &t)
      : p(p), t(t), element(name(p.element)), result(name(p.result)) {}

  std::string run() {
    open();
    groups();
    p.sums ? sums() : rows();
    line("tt.return");
    text += "}}";
    return text;
  }

private:
  static std::string name(Type type) {
    std::string out;
    llvm::raw_string_ostream os(out);
    type.print(os);
    return out;
  }

  void line(const std::string &operation) { text += operation + "\n"; }
  /// An operation with one result, whose name is returned.
  std::string def(const std::string &operation) {
    std::string value = formatv("%v{0}", next++);
    line(value + " = " + operation);
    return value;
  }
  static std::string vec(int64_t size, const std::string &of) { return formatv("tensor<{0}x{1}>", size, of); }
  static std::string mat(int64_t rows, int64_t columns, const std::string &of) {
    return formatv("tensor<{0}x{1}x{2}>", rows, columns, of);
  }
  static std::string pointer(const std::string &to) { return "!tt.ptr<" + to + ">"; }

  std::string constant(int64_t value, const std::string &type) {
    return llvm::StringRef(type).starts_with("tensor")
               ? def(formatv("arith.constant dense<{0}> : {1}", value, type))
               : def(formatv("arith.constant {0} : {1}", value, type));
  }
  std::string zeros(const std::string &type, bool floats) {
    return def(formatv("arith.constant dense<{0}> : {1}", floats ? "0.0" : "0", type));
  }
  std::string binary(const char *op, const std::string &a, const std::string &b, const std::string &type) {
    return def(formatv("arith.{0} {1}, {2} : {3}", op, a, b, type));
  }
  std::string compare(const char *how, const std::string &a, const std::string &b, const std::string &type) {
    return def(formatv("arith.cmpi {0}, {1}, {2} : {3}", how, a, b, type));
  }
  std::string select(const std::string &c, const std::string &a, const std::string &b) {
    return def(formatv("arith.select {0}, {1}, {2} : i32", c, a, b));
  }
  std::string splat(const std::string &value, const std::string &of, const std::string &type) {
    return def(formatv("tt.splat {0} : {1} -> {2}", value, of, type));
  }
  std::string range(int64_t size) {
    return def(formatv("tt.make_range {{end = {0} : i32, start = 0 : i32} : {1}", size, vec(size, "i32")));
  }
  /// A vector as column (axis 1) or row (axis 0) of a matrix.
  std::string spread(const std::string &value, int axis, int64_t rows, int64_t columns,
                     const std::string &of) {
    int64_t size = axis == 1 ? rows : columns;
    std::string thin = axis == 1 ? mat(size, 1, of) : mat(1, size, of);
    std::string one =
        def(formatv("tt.expand_dims {0} {{axis = {1} : i32} : {2} -> {3}", value, axis, vec(size, of), thin));
    return def(formatv("tt.broadcast {0} : {1} -> {2}", one, thin, mat(rows, columns, of)));
  }
  std::string reduce(const char *op, const char *combine, const std::string &value, int64_t size,
                     const std::string &to, const char *attributes) {
    return def(formatv("\"tt.{0}\"({1}) <{{{2}}> ({{\n^bb0(%a: i32, %b: i32):\n%c = arith.{3} %a, %b : i32\n"
                       "tt.{0}.return %c : i32\n}) : ({4}) -> {5}",
                       op, value, attributes, combine, vec(size, "i32"), to));
  }
  std::string prefix(const std::string &value, int64_t size) {
    return reduce("scan", "addi", value, size, vec(size, "i32"), "axis = 0 : i32, reverse = false");
  }
  /// The sum of a vector's elements, of those that `where` picks if it is given.
  std::string sum(std::string value, int64_t size, const std::string &where = "") {
    if (!where.empty()) {
      std::string zero = zeros(vec(size, "i32"), false);
      value = def(formatv("arith.select {0}, {1}, {2} : {3}, {4}", where, value, zero, vec(size, "i1"),
                          vec(size, "i32")));
    }
    return reduce("reduce", "addi", value, size, "i32", "axis = 0 : i32");
  }
  std::string wide(const std::string &value) { return def(formatv("arith.extsi {0} : i32 to i64", value)); }
  /// `base` moved by index * stride elements; the product is 64 bits wide, weights may hold more than 2^31.
  std::string move(const std::string &base, const std::string &of, const std::string &index, int64_t stride) {
    std::string offset = binary("muli", wide(index), constant(stride, "i64"), "i64");
    return def(formatv("tt.addptr {0}, {1} : {2}, i64", base, offset, pointer(of)));
  }
  /// Pointers to a tile whose first element is at `base`.
  std::string pointers(const std::string &base, const std::string &of, int64_t rows, int64_t columns,
                       int64_t rowStride, int64_t columnStride) {
    auto scaled = [&](int64_t size, int64_t stride) {
      std::string index = range(size);
      return stride == 1 ? index
                         : binary("muli", index, constant(stride, vec(size, "i32")), vec(size, "i32"));
    };
    std::string r = spread(scaled(rows, rowStride), 1, rows, columns, "i32");
    std::string c = spread(scaled(columns, columnStride), 0, rows, columns, "i32");
    std::string offsets = binary("addi", r, c, mat(rows, columns, "i32"));
    std::string at = mat(rows, columns, pointer(of));
    std::string many = splat(base, pointer(of), at);
    return def(formatv("tt.addptr {0}, {1} : {2}, {3}", many, offsets, at, mat(rows, columns, "i32")));
  }
  /// Which of first, first + 1, ... (`size` of them) lie below `end`.
  std::string below(const std::string &first, int64_t size, const std::string &end) {
    std::string type = vec(size, "i32");
    std::string index = binary("addi", range(size), splat(first, "i32", type), type);
    return compare("slt", index, splat(end, "i32", type), type);
  }
  /// Conjunction of a mask along rows and one along columns; either may be empty.
  std::string mask(const std::string &row, const std::string &column, int64_t rows, int64_t columns) {
    std::string r = row.empty() ? "" : spread(row, 1, rows, columns, "i1");
    std::string c = column.empty() ? "" : spread(column, 0, rows, columns, "i1");
    if (r.empty() || c.empty())
      return r.empty() ? c : r;
    return binary("andi", r, c, mat(rows, columns, "i1"));
  }
  std::string load(const std::string &at, const std::string &where, int64_t rows, int64_t columns) {
    std::string type = mat(rows, columns, pointer(element));
    if (where.empty())
      return def(formatv("tt.load {0} : {1}", at, type));
    return def(
        formatv("tt.load {0}, {1}, {2} : {3}", at, where, zeros(mat(rows, columns, element), true), type));
  }
  void store(const std::string &at, std::string value, const std::string &where) {
    if (result != "f32")
      value = def(formatv("arith.truncf {0} : {1} to {2}", value, mat(t.rows, t.columns, "f32"),
                          mat(t.rows, t.columns, result)));
    std::string guard = where.empty() ? "" : ", " + where;
    line(formatv("tt.store {0}, {1}{2} : {3}", at, value, guard, mat(t.rows, t.columns, pointer(result))));
  }

  void open() {
    auto argument = [](const char *name, const std::string &of) {
      return formatv("%{0}: {1} {{tt.divisibility = 16 : i32}", name, pointer(of)).str();
    };
    text = formatv("module {{ tt.func public @{0}({1}, {2}, {3}, {4}) attributes {{noinline = false} {{\n",
                   kernelName(p, t), argument("x", element), argument("w", element), argument("sizes", "i32"),
                   argument("y", result));
  }

  /// Loads the sizes: number, size and end of every group, as vectors.
  void groups() {
    // At least a warp's worth of elements: what Triton's own tests of scans cover.
    lanes = std::max<int64_t>(32, llvm::PowerOf2Ceil(p.g));
    std::string type = vec(lanes, "i32"), many = vec(lanes, pointer("i32"));
    index = range(lanes);
    std::string valid = compare("slt", index, constant(p.g, type), type);
    std::string at = def(
        formatv("tt.addptr {0}, {1} : {2}, {3}", splat("%sizes", pointer("i32"), many), index, many, type));
    size = def(formatv("tt.load {0}, {1}, {2} : {3}", at, valid, zeros(type, false), many));
    end = prefix(size, lanes);
  }

  /// The contraction: `steps` times load, multiply, move on. Masks along the depth are made from the number
  /// of elements that are left, `depthEnd`, and are needed only where `ragged`.
  std::string contract(const std::string &steps, bool ragged, const std::string &depthEnd,
                       const std::string &aBase, int64_t aRow, int64_t aDepth, const std::string &aMask,
                       const std::string &bBase, int64_t bDepth, int64_t bColumn, const std::string &bMask) {
    std::string accumulator = mat(t.rows, t.columns, "f32");
    std::string aType = mat(t.rows, t.depth, pointer(element)),
                bType = mat(t.depth, t.columns, pointer(element));
    std::string a0 = pointers(aBase, element, t.rows, t.depth, aRow, aDepth);
    std::string b0 = pointers(bBase, element, t.depth, t.columns, bDepth, bColumn);
    std::string acc0 = zeros(accumulator, true);
    std::string zero = constant(0, "i32"), one = constant(1, "i32"), depth = constant(t.depth, "i32");
    std::string aStep = constant(t.depth * aDepth, mat(t.rows, t.depth, "i32"));
    std::string bStep = constant(t.depth * bDepth, mat(t.depth, t.columns, "i32"));
    line(formatv("%r:3 = scf.for %i = {0} to {1} step {2} iter_args(%acc = {3}, %ap = {4}, %bp = {5}) -> "
                 "({6}, {7}, {8}) : i32 {{",
                 zero, steps, one, acc0, a0, b0, accumulator, aType, bType));
    std::string inside;
    if (ragged)
      inside = below(binary("muli", "%i", depth, "i32"), t.depth, depthEnd);
    std::string a = load("%ap", mask(aMask, inside, t.rows, t.depth), t.rows, t.depth);
    std::string b = load("%bp", mask(inside, bMask, t.depth, t.columns), t.depth, t.columns);
    // XLA's default for f32 products on these GPUs.
    std::string precision = element == "f32" ? ", inputPrecision = tf32" : "";
    std::string sum =
        def(formatv("tt.dot {0}, {1}, %acc{2} : {3} * {4} -> {5}", a, b, precision,
                    mat(t.rows, t.depth, element), mat(t.depth, t.columns, element), accumulator));
    std::string aNext =
        def(formatv("tt.addptr %ap, {0} : {1}, {2}", aStep, aType, mat(t.rows, t.depth, "i32")));
    std::string bNext =
        def(formatv("tt.addptr %bp, {0} : {1}, {2}", bStep, bType, mat(t.depth, t.columns, "i32")));
    line(formatv("scf.yield {0}, {1}, {2} : {3}, {4}, {5}\n}", sum, aNext, bNext, accumulator, aType, bType));
    return "%r#0";
  }

  /// Elements between neighbours along `axis` of an operand whose axes are `order`.
  int64_t stride(const std::string &order, char axis) const {
    int64_t step = 1;
    for (char c : llvm::reverse(order)) {
      if (c == axis)
        return step;
      step *= c == 'm' ? p.m : c == 'g' ? p.g : c == 'k' ? p.k : p.n;
    }
    llvm_unreachable("an axis that the operand does not have");
  }

  void rows() {
    std::string column = def("tt.get_program_id x : i32"), visit = def("tt.get_program_id y : i32");
    std::string type = vec(lanes, "i32");
    std::string step = constant(t.rows, type), less = constant(t.rows - 1, type);
    std::string tiles = binary("divsi", binary("addi", size, less, type), step, type);
    std::string tilesEnd = prefix(tiles, lanes), tilesStart = binary("subi", tilesEnd, tiles, type);
    std::string visits = splat(visit, "i32", type);
    std::string mine = binary("andi", compare("sle", tilesStart, visits, type),
                              compare("slt", visits, tilesEnd, type), vec(lanes, "i1"));
    // Behind the last group: zeros, that is, no step of the contraction.
    std::string allTiles = sum(tiles, lanes), allRows = sum(size, lanes), total = constant(p.m, "i32");
    std::string live = compare("slt", visit, allTiles, "i32");
    std::string group = sum(index, lanes, mine);
    std::string firstTile = select(live, sum(tilesStart, lanes, mine), allTiles);
    std::string start = select(live, sum(binary("subi", end, size, type), lanes, mine), allRows);
    std::string last =
        def(formatv("arith.minsi {0}, {1} : i32", select(live, sum(end, lanes, mine), total), total));
    std::string within =
        binary("muli", binary("subi", visit, firstTile, "i32"), constant(t.rows, "i32"), "i32");
    std::string row = binary("addi", start, within, "i32");
    std::string steps = select(live, constant(divideCeil(p.k, t.depth), "i32"), constant(0, "i32"));

    std::string left = binary("subi", last, row, "i32"), zero = constant(0, "i32");
    std::string rowMask = below(zero, t.rows, left);
    std::string firstColumn = binary("muli", column, constant(t.columns, "i32"), "i32");
    std::string columnMask =
        p.n % t.columns ? below(firstColumn, t.columns, constant(p.n, "i32")) : std::string();
    std::string x = move("%x", element, row, stride(p.lhs, 'm'));
    std::string w =
        move(move("%w", element, group, stride(p.rhs, 'g')), element, firstColumn, stride(p.rhs, 'n'));
    std::string value =
        contract(steps, p.k % t.depth, constant(p.k, "i32"), x, stride(p.lhs, 'm'), stride(p.lhs, 'k'),
                 rowMask, w, stride(p.rhs, 'k'), stride(p.rhs, 'n'), columnMask);
    std::string y = move(move("%y", result, row, p.n), result, firstColumn, 1);
    store(pointers(y, result, t.rows, t.columns, p.n, 1), value,
          mask(rowMask, columnMask, t.rows, t.columns));
  }

  void sums() {
    std::string column = def("tt.get_program_id x : i32"), tall = def("tt.get_program_id y : i32"),
                group = def("tt.get_program_id z : i32");
    std::string type = vec(lanes, "i32");
    std::string mine = compare("eq", index, splat(group, "i32", type), type);
    std::string total = constant(p.m, "i32");
    std::string last = def(formatv("arith.minsi {0}, {1} : i32", sum(end, lanes, mine), total));
    std::string start = sum(binary("subi", end, size, type), lanes, mine);
    std::string count = binary("subi", last, start, "i32");
    std::string steps = binary("divsi", binary("addi", count, constant(t.depth - 1, "i32"), "i32"),
                               constant(t.depth, "i32"), "i32");

    std::string firstColumn = binary("muli", column, constant(t.columns, "i32"), "i32");
    std::string firstRow = binary("muli", tall, constant(t.rows, "i32"), "i32");
    std::string rowMask = p.k % t.rows ? below(firstRow, t.rows, constant(p.k, "i32")) : std::string();
    std::string columnMask =
        p.n % t.columns ? below(firstColumn, t.columns, constant(p.n, "i32")) : std::string();
    std::string x =
        move(move("%x", element, start, stride(p.lhs, 'm')), element, firstRow, stride(p.lhs, 'k'));
    std::string w =
        move(move("%w", element, start, stride(p.rhs, 'm')), element, firstColumn, stride(p.rhs, 'n'));
    std::string value = contract(steps, /*ragged=*/true, count, x, stride(p.lhs, 'k'), stride(p.lhs, 'm'),
                                 rowMask, w, stride(p.rhs, 'm'), stride(p.rhs, 'n'), columnMask);
    std::string y = move(move("%y", result, group, p.k * p.n), result, firstRow, p.n);
    y = move(y, result, firstColumn, 1);
    store(pointers(y, result, t.rows, t.columns, p.n, 1), value,
          mask(rowMask, columnMask, t.rows, t.columns));
  }

  const GroupedProduct &p;
  const GroupedTiling &t;
  std::string element, result, text;
  std::string index, size, end;
  int64_t lanes = 0;
  unsigned next = 0;
};

} // namespace

std::string kernelText(const GroupedProduct &product, const GroupedTiling &tiling) {
  return Writer(product, tiling).run();
}

} // namespace farrier::fusion
