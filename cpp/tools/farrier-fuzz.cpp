//===- farrier-fuzz.cpp - libFuzzer over the parser and every pipeline -----===//
//
// An input is a module's text. It is parsed, asked every query, and rewritten by every pipeline below; what
// comes out must verify and parse again. `make fuzz` builds it with the sanitizers and seeds it with the
// tests' programs.
//
// Bytes flipped at random rarely leave a module that parses, so most mutations are made of the text's own
// parts: a number, a value, a word or a line takes another one's place.
//
//===----------------------------------------------------------------------===//

#include "farrier/Support/Registry.h"
#include "passes/registry/Registry.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/raw_ostream.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

using namespace mlir;

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t maxSize);

namespace {

/// Between them, every pass of farrier's, with options that make it act on small programs.
constexpr const char *kPipelines[] = {
    "cse,canonicalize,farrier-sink-captures",
    "farrier-simplify-collectives,farrier-merge-collectives,farrier-chain-collectives{bucket-bytes=1 combinable-bytes=1}",
    "farrier-split-batch{min-bytes=1}",
    "farrier-scatter-reductions{min-bytes=1}",
    "farrier-fusion{min-bytes=0 chunks=2}",
    "farrier-remat{stress=1 small-bytes=1}",
    "farrier-remat{budget=64 small-bytes=1}",
    "farrier-forget-checkpoints",
    "farrier-forget-checkpoints{objective=flops shared=true}",
    "farrier-remat-loops{save=0.5 sink-bytes=1}",
    "farrier-remat-loops{stress=3 sink-bytes=1 collectives=true}",
    "farrier-number-operations",
};

/// A context grows with every type and attribute ever seen.
constexpr unsigned kInputsPerContext = 2000;

std::unique_ptr<MLIRContext> makeContext() {
  DialectRegistry registry;
  farrier::registerDialects(registry);
  auto context = std::make_unique<MLIRContext>(registry, MLIRContext::Threading::DISABLED);
  context->allowUnregisteredDialects();
  context->loadAllAvailableDialects();
  context->getDiagEngine().registerHandler([](Diagnostic &) { return success(); });
  return context;
}

[[noreturn]] void fail(llvm::StringRef what, llvm::StringRef pipeline) {
  llvm::errs() << "farrier-fuzz: " << what << " after " << pipeline << "\n";
  std::abort();
}

std::string print(ModuleOp module) {
  std::string text;
  llvm::raw_string_ostream os(text);
  OpPrintingFlags flags;
  flags.enableDebugInfo(true).printGenericOpForm(true);
  module->print(os, flags);
  return text;
}

void rewrite(ModuleOp original, const char *pipeline) {
  OwningOpRef<ModuleOp> module = original.clone();
  PassManager manager(original.getContext(), ModuleOp::getOperationName());
  if (failed(parsePassPipeline(pipeline, manager, llvm::errs())))
    fail("no pipeline", pipeline);
  if (failed(manager.run(*module)))
    return; // It said why.
  if (failed(verify(*module)))
    fail("the result does not verify", pipeline);
  if (!parseSourceString<ModuleOp>(print(*module), ParserConfig(original.getContext())))
    fail("the result's text does not parse", pipeline);
}

} // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
  farrier::registerPasses();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static std::unique_ptr<MLIRContext> context;
  static unsigned seen = 0;
  if (seen++ % kInputsPerContext == 0)
    context = makeContext();
  // MLIR's lexer looks for a zero behind the end, which Python's bytes have.
  const std::string text(reinterpret_cast<const char *>(data), size);
  // MLIR's bytecode is never read by farrier (docs/trust.md), so it is not what is tested.
  if (llvm::StringRef(text).starts_with("ML\xefR"))
    return -1;
  OwningOpRef<ModuleOp> module = parseSourceString<ModuleOp>(text, ParserConfig(context.get()));
  if (!module)
    return 0;
  const llvm::json::Object request{
      {"budget", 64}, {"top", 3}, {"curve", true}, {"elementwise", true}, {"small_bytes", 8}};
  for (const std::string &name : farrier::queryNames())
    (void)(*farrier::lookupQuery(name))(*module, request);
  for (const char *pipeline : kPipelines)
    rewrite(*module, pipeline);
  return 0;
}

namespace {

struct Span {
  size_t begin, end;
};

/// Every word (name, number, %value, @symbol) of the text.
std::vector<Span> words(llvm::StringRef text) {
  auto inWord = [](char c) {
    return llvm::isAlnum(c) || c == '_' || c == '%' || c == '@' || c == '#' || c == '.' || c == '-';
  };
  std::vector<Span> result;
  for (size_t i = 0; i < text.size();) {
    if (!inWord(text[i])) {
      ++i;
      continue;
    }
    size_t begin = i;
    while (i < text.size() && inWord(text[i]))
      ++i;
    result.push_back({begin, i});
  }
  return result;
}

std::vector<Span> lines(llvm::StringRef text) {
  std::vector<Span> result;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    result.push_back({begin, end});
    begin = end;
  }
  return result;
}

constexpr const char *kNumbers[] = {"0",
                                    "1",
                                    "-1",
                                    "2",
                                    "3",
                                    "4",
                                    "7",
                                    "255",
                                    "65536",
                                    "2147483648",
                                    "9223372036854775807",
                                    "-9223372036854775808"};

} // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t maxSize, unsigned seed) {
  std::minstd_rand draw(seed);
  auto below = [&](size_t bound) { return static_cast<size_t>(draw() % bound); };
  std::string text(reinterpret_cast<const char *>(data), size);
  std::vector<Span> all = words(text), rows = lines(text);
  if (all.empty() || below(8) == 0)
    return LLVMFuzzerMutate(data, size, maxSize);

  auto put = [&](Span where, std::string with) { text.replace(where.begin, where.end - where.begin, with); };
  auto textOf = [&](Span span) { return text.substr(span.begin, span.end - span.begin); };
  Span word = all[below(all.size())], row = rows[below(rows.size())];
  switch (below(6)) {
  case 0: // a line again, elsewhere
    text.insert(rows[below(rows.size())].begin, textOf(row));
    break;
  case 1:
    put(row, "");
    break;
  case 2: { // a line in another's place
    std::string other = textOf(rows[below(rows.size())]);
    put(row, other);
    break;
  }
  case 3: { // a number
    for (unsigned tries = 0; tries < 32 && !llvm::isDigit(text[word.begin]); ++tries)
      word = all[below(all.size())];
    put(word, kNumbers[below(std::size(kNumbers))]);
    break;
  }
  default: { // another word of its kind
    char kind = text[word.begin];
    Span other = all[below(all.size())];
    for (unsigned tries = 0; tries < 32 && text[other.begin] != kind; ++tries)
      other = all[below(all.size())];
    put(word, textOf(other));
  }
  }
  size_t length = std::min(text.size(), maxSize);
  std::memcpy(data, text.data(), length);
  return length;
}
