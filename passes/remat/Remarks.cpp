#include "passes/remat/Remarks.h"

#include "farrier/Analysis/OpInfo.h"
#include "farrier/Analysis/ValueKey.h"

#include "mlir/IR/BuiltinTypes.h"
#include "mlir/IR/Operation.h"
#include "mlir/IR/Remarks.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/raw_ostream.h"

using namespace mlir;

namespace farrier::remat {

/// "bf16[4,4096,2048]", as JAX writes it.
static std::string shapeText(Type type) {
  std::string text;
  llvm::raw_string_ostream os(text);
  auto tensor = dyn_cast<RankedTensorType>(type);
  if (!tensor) {
    os << type;
    return text;
  }
  os << tensor.getElementType() << '[';
  llvm::interleave(tensor.getShape(), os, ",");
  os << ']';
  return text;
}

static std::string sizeText(double bytes) {
  return bytes >= 1e9 ? llvm::formatv("{0:f2} GB", bytes / 1e9).str()
                      : llvm::formatv("{0:f2} MB", bytes / 1e6).str();
}

/// Counters and indices are not worth a line.
static constexpr int64_t tellBytes = 256;

void DecisionRemarks::add(const Candidate &candidate, bool recomputed, bool onHost, int64_t count,
                          StringRef part) {
  if (candidate.bytes < tellBytes)
    return;
  Value value = candidate.value;
  Operation *op = value.getDefiningOp(), *around = value.getParentBlock()->getParentOp();
  // A value's key without its ordinal: the same place in every layer.
  std::string stem = StringRef(candidate.key).rsplit('|').first.str();
  bool allowed = !op || isClonable(op);
  std::string kind = llvm::formatv("{0}|{1}|{2}|{3}|{4}", recomputed, onHost, allowed, part, stem).str();
  auto [it, fresh] = rowOf.try_emplace(kind, rows.size());
  if (fresh)
    rows.push_back({sourceLine(value.getLoc()).empty() ? around->getLoc() : value.getLoc(),
                    nameStack(value.getLoc()), shapeText(value.getType()),
                    op ? op->getName().getStringRef().str() : "carried by the loop", part.str(), recomputed,
                    onHost, allowed, !op});
  Row &row = rows[it->second];
  row.count += count;
  row.bytes += candidate.bytes * count;
  row.seconds += candidate.seconds * count;
  row.flops += candidate.flops * count;
  row.hostSeconds += std::max(candidate.hostSeconds, 0.0) * count;
}

void DecisionRemarks::add(const Problem &problem, const Choice &choice, int64_t count, StringRef part) {
  for (auto [i, candidate] : llvm::enumerate(problem.candidates))
    // What fuses into its reader and is read by nothing else never was a buffer: nothing to tell.
    if (choice.saved[i] || (choice.recomputed[i] && (candidate.needed || !candidate.fuses)))
      add(candidate, choice.recomputed[i], choice.onHost[i], count, part);
}

void DecisionRemarks::addUntouched(const Problem &problem, StringRef part) {
  for (const Candidate &candidate : problem.candidates)
    if (candidate.needed)
      add(candidate, false, false, problem.instances, part);
}

void DecisionRemarks::emit() const {
  for (const Row &row : rows) {
    std::string what =
        llvm::formatv("{0} x {1} ({2})", row.count, row.type, row.scope.empty() ? row.operation : row.scope);
    if (!row.part.empty())
      what += " in " + row.part;
    std::string price = llvm::formatv("{0:f3} ms, {1:f3} TFLOP", row.seconds * 1e3, row.flops / 1e12);
    auto describe = [&](auto note, const std::string &text) {
      note << text << remark::metric("Value", StringRef(row.scope))
           << remark::metric("Type", StringRef(row.type)) << remark::metric("Count", row.count)
           << remark::metric("Bytes", row.bytes)
           << remark::metric("Seconds", row.onHost ? row.hostSeconds : row.seconds)
           << remark::metric("FLOPs", row.onHost ? 0 : row.flops);
    };
    if (row.recomputed)
      describe(remark::passed(row.loc, remark::RemarkOpts::name("recomputed").category("remat")),
               "recomputed " + what + ": does not hold " + sizeText(row.bytes) + ", costs " + price);
    else if (row.onHost)
      describe(remark::passed(row.loc, remark::RemarkOpts::name("offloaded").category("remat")),
               "offloaded " + what + ": holds " + sizeText(row.bytes) +
                   " in host memory; its transfers take " +
                   llvm::formatv("{0:f3}", row.hostSeconds * 1e3).str() +
                   " ms, which compute hides as far as there is enough of it");
    else if (row.carried)
      describe(remark::analysis(row.loc, remark::RemarkOpts::name("kept").category("remat")),
               "kept " + what + ": holds " + sizeText(row.bytes) + ", what is computed again starts from it");
    else if (row.allowed)
      describe(remark::analysis(row.loc, remark::RemarkOpts::name("kept").category("remat")),
               "kept " + what + ": holds " + sizeText(row.bytes) + ", computing it again would cost " +
                   price);
    else
      describe(
          remark::missed(row.loc, remark::RemarkOpts::name("kept").category("remat")),
          "kept " + what + ": holds " + sizeText(row.bytes) + "; '" + row.operation +
              "' is not known to give the same result without a second effect, so it is never run twice");
  }
}

} // namespace farrier::remat
