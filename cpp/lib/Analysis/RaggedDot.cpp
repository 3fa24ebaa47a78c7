#include "farrier/Analysis/RaggedDot.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <tuple>

using namespace mlir;

namespace farrier {

std::optional<llvm::StringMap<SmallVector<int64_t>>> raggedNumbers(Operation *op) {
  auto attributes = dyn_cast_or_null<DictionaryAttr>(op->getPropertiesAsAttribute());
  Attribute given = attributes ? attributes.get("ragged_dot_dimension_numbers") : Attribute();
  if (!given)
    given = op->getDiscardableAttr("ragged_dot_dimension_numbers");
  if (!given)
    return std::nullopt;
  std::string text;
  llvm::raw_string_ostream(text) << given;
  StringRef rest = text;
  if (!rest.consume_front("#chlo.ragged_dot<") || !rest.consume_back(">"))
    return std::nullopt;
  llvm::StringMap<SmallVector<int64_t>> numbers;
  while (!(rest = rest.ltrim(", \n")).empty()) {
    auto [name, after] = rest.split('=');
    after = after.ltrim();
    size_t close = after.find(']');
    if (!after.consume_front("[") || close == StringRef::npos)
      return std::nullopt;
    SmallVector<StringRef> items;
    after.take_front(close - 1).split(items, ',', -1, /*KeepEmpty=*/false);
    for (StringRef item : items)
      if (item.trim().getAsInteger(10, numbers[name.trim()].emplace_back()))
        return std::nullopt;
    rest = after.drop_front(close);
  }
  return numbers;
}

std::optional<RaggedDot> RaggedDot::of(Operation *op) {
  if (op->getName().getStringRef() != "chlo.ragged_dot" || op->getNumOperands() != 3 || op->getNumResults() != 1)
    return std::nullopt;
  auto type = [](Value value) { return dyn_cast<RankedTensorType>(value.getType()); };
  RankedTensorType lhs = type(op->getOperand(0)), sizes = type(op->getOperand(2)), result = type(op->getResult(0));
  auto numbers = raggedNumbers(op);
  if (!numbers || !lhs || !sizes || !result || !lhs.hasStaticShape() || !sizes.hasStaticShape() ||
      !result.hasStaticShape() || sizes.getRank() == 0)
    return std::nullopt;
  RaggedDot dot;
  auto listed = [&](StringRef name) { return numbers->lookup(name); };
  SmallVector<int64_t> ragged = listed("lhs_ragged_dimensions");
  dot.flops = 2.0 * static_cast<double>(result.getNumElements());
  for (int64_t dim : listed("lhs_contracting_dimensions")) {
    if (dim < 0 || dim >= lhs.getRank())
      return std::nullopt;
    dot.flops *= static_cast<double>(lhs.getDimSize(dim));
    dot.sums |= llvm::is_contained(ragged, dim);
  }
  dot.groups = sizes.getDimSize(sizes.getRank() - 1);
  // Groups of whole batches need no mask.
  if (llvm::any_of(listed("lhs_batching_dimensions"), [&](int64_t dim) { return llvm::is_contained(ragged, dim); }))
    return dot;
  dot.masked.push_back(op->getOperand(0));
  if (dot.sums)
    dot.masked.push_back(op->getOperand(1)); // the result has the groups in it
  else
    dot.flops *= static_cast<double>(std::max<int64_t>(1, dot.groups));
  return dot;
}

namespace {

/// One operand's copies, and the products that read them.
struct Masked {
  unsigned value;
  int64_t bytes;
  llvm::SmallVector<unsigned> readers;
};

/// Copies that one kernel writes.
struct Kernel {
  llvm::SmallVector<Masked> members;
  unsigned start = 0;
};

/// Whether what defines `value` needs any of `ops`.
bool needs(const BlockGraph &graph, unsigned value, llvm::ArrayRef<unsigned> ops) {
  if (ops.empty() || graph.definition[value] < 0)
    return false;
  unsigned first = *std::min_element(ops.begin(), ops.end());
  llvm::SmallVector<unsigned> work{static_cast<unsigned>(graph.definition[value])};
  llvm::SmallDenseSet<unsigned, 16> seen{work.front()};
  while (!work.empty()) {
    unsigned op = work.pop_back_val();
    if (llvm::is_contained(ops, op))
      return true;
    for (unsigned input : graph.inputs[op])
      if (int definition = graph.definition[input];
          definition >= static_cast<int>(first) && seen.insert(definition).second)
        work.push_back(definition);
  }
  return false;
}

} // namespace

std::vector<int64_t> maskedCopies(const BlockGraph &graph, llvm::ArrayRef<unsigned> time) {
  std::vector<int64_t> bytes(graph.numOps(), 0);
  // By what divides the rows, the shape, and whether the products sum over them: those read another order.
  llvm::MapVector<std::tuple<Value, Type, unsigned>, llvm::SmallVector<Kernel>> found;
  llvm::SmallVector<std::pair<unsigned, RaggedDot>> products;
  auto kernelsOf = [&](unsigned op, bool sums, unsigned value) -> llvm::SmallVector<Kernel> & {
    return found[{graph.ops[op]->getOperand(2), graph.values[value].getType(), sums}];
  };
  auto maskOf = [&](unsigned op, bool sums, unsigned value) -> std::pair<Kernel *, Masked *> {
    for (Kernel &kernel : kernelsOf(op, sums, value))
      for (Masked &member : kernel.members)
        if (member.value == value)
          return {&kernel, &member};
    return {nullptr, nullptr};
  };
  for (unsigned op = 0; op < graph.numOps(); ++op)
    if (std::optional<RaggedDot> dot = RaggedDot::of(graph.ops[op]))
      products.push_back({op, std::move(*dot)});
  llvm::DenseSet<std::pair<Value, Value>> summed; // what divides the rows, and what products that sum over them read
  for (auto &[op, dot] : products)
    for (Value operand : dot.masked)
      if (dot.sums)
        summed.insert({graph.ops[op]->getOperand(2), operand});
  auto add = [&](unsigned op, const RaggedDot &dot, bool sums, unsigned value) {
    if (Masked *member = maskOf(op, sums, value).second) {
      if (!llvm::is_contained(member->readers, op))
        member->readers.push_back(op);
      return;
    }
    auto &kernels = kernelsOf(op, sums, value);
    auto kernel = llvm::find_if(kernels, [&](const Kernel &kernel) {
      return sums && llvm::none_of(kernel.members,
                                   [&](const Masked &member) { return needs(graph, value, member.readers); });
    });
    if (kernel == kernels.end()) {
      kernels.emplace_back();
      kernel = std::prev(kernels.end());
    }
    if (graph.definition[value] >= 0)
      kernel->start = std::max(kernel->start, time[graph.definition[value]]);
    kernel->members.push_back({value, dot.groups * graph.bytes[value], {op}});
  };
  // Of each product the masks it reads; where others sum over the same rows, its own order is a copy of what those read.
  auto masks = [&](unsigned op, const RaggedDot &dot, llvm::function_ref<void(bool, unsigned)> visit) {
    for (Value operand : dot.masked)
      if (graph.contains(operand)) {
        visit(dot.sums, graph.id(operand));
        if (!dot.sums && summed.contains({graph.ops[op]->getOperand(2), operand}))
          visit(true, graph.id(operand));
      }
  };
  for (auto &[op, dot] : products)
    masks(op, dot, [&, op = op, &dot = dot](bool sums, unsigned value) { add(op, dot, sums, value); });
  // A product runs when all that it reads is written.
  llvm::DenseMap<unsigned, unsigned> runs;
  for (auto &[op, dot] : products) {
    unsigned at = time[op];
    masks(op, dot, [&, op = op](bool sums, unsigned value) { at = std::max(at, maskOf(op, sums, value).first->start); });
    runs[op] = at;
  }
  for (auto &[key, kernels] : found)
    for (const Kernel &kernel : kernels) {
      unsigned first = graph.numOps();
      for (const Masked &member : kernel.members)
        for (unsigned reader : member.readers)
          first = std::min(first, runs[reader]);
      for (const Masked &member : kernel.members) {
        unsigned last = first;
        for (unsigned reader : member.readers)
          last = std::max(last, runs[reader]);
        for (unsigned op = 0; op < graph.numOps(); ++op)
          if (first <= time[op] && time[op] <= last)
            bytes[op] += member.bytes;
      }
    }
  return bytes;
}

} // namespace farrier
