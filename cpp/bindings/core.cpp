//===- core.cpp - farrier._core --------------------------------------------===//
//
// Text in, passes, text out. Every call releases the GIL around MLIR; diagnostics and remarks are
// collected without touching Python; exceptions are thrown only above MLIR's frames, which are
// built without exception support, but for memory that ran out (see Module::Watch).
//
//===----------------------------------------------------------------------===//

#include "cpp/bindings/schedule.h"
#include "farrier/Analysis/ValueKey.h"
#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"
#include "passes/registry/Registry.h"

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Remarks.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/Pass.h"
#include "mlir/Pass/PassInstrumentation.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Pass/PassRegistry.h"
#include "llvm/Support/ErrorHandling.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/SHA256.h"
#include "llvm/Support/raw_ostream.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <optional>

namespace nb = nanobind;
using namespace nb::literals;
using namespace mlir;

namespace {

std::string locationText(Location loc) {
  std::string text;
  llvm::raw_string_ostream os(text);
  loc.print(os);
  return llvm::json::fixUTF8(text);
}

/// Texts in it are UTF-8, as Python's must be; a diagnostic quotes the input, which may be anything.
struct DiagnosticRecord {
  std::string severity;
  std::string message;
  std::string location;
  std::vector<DiagnosticRecord> notes;
};

const char *severityName(DiagnosticSeverity severity) {
  switch (severity) {
  case DiagnosticSeverity::Note:
    return "note";
  case DiagnosticSeverity::Warning:
    return "warning";
  case DiagnosticSeverity::Error:
    return "error";
  case DiagnosticSeverity::Remark:
    return "remark";
  }
  return "unknown";
}

DiagnosticRecord toRecord(Diagnostic &diagnostic) {
  DiagnosticRecord record{severityName(diagnostic.getSeverity()),
                          llvm::json::fixUTF8(diagnostic.str()),
                          locationText(diagnostic.getLocation()),
                          {}};
  for (Diagnostic &note : diagnostic.getNotes())
    record.notes.push_back(toRecord(note));
  return record;
}

struct RemarkRecord {
  std::string kind;
  std::string category;
  std::string name;
  std::string message;
  std::string location;
  std::string source; // the user's line, "model.py:41"
  std::vector<std::pair<std::string, std::string>> args;
};

const char *remarkKind(llvm::remarks::Type type) {
  switch (type) {
  case llvm::remarks::Type::Passed:
    return "applied";
  case llvm::remarks::Type::Missed:
    return "missed";
  case llvm::remarks::Type::Failure:
    return "failed";
  default:
    return "analysis";
  }
}

/// What one entry into MLIR produced besides its result. MLIR may call from its worker threads.
struct Sink {
  std::mutex mutex;
  std::vector<DiagnosticRecord> diagnostics;
  std::vector<RemarkRecord> remarks;
};

/// Collects diagnostics of a context for the lifetime of this object.
class DiagnosticCollector {
public:
  DiagnosticCollector(MLIRContext &context, Sink &sink) : context(context) {
    id = context.getDiagEngine().registerHandler([&sink](Diagnostic &diagnostic) {
      std::lock_guard<std::mutex> lock(sink.mutex);
      sink.diagnostics.push_back(toRecord(diagnostic));
      return success();
    });
  }
  ~DiagnosticCollector() { context.getDiagEngine().eraseHandler(id); }

private:
  MLIRContext &context;
  DiagnosticEngine::HandlerID id;
};

class RemarkCollector final : public remark::detail::MLIRRemarkStreamerBase {
public:
  explicit RemarkCollector(Sink &sink) : sink(sink) {}
  void streamOptimizationRemark(const remark::detail::Remark &remark) override {
    RemarkRecord record{remarkKind(remark.getRemarkType()),
                        remark.getCombinedCategoryName().str(),
                        remark.getRemarkName().str(),
                        "",
                        locationText(remark.getLocation()),
                        farrier::sourceLine(remark.getLocation()),
                        {}};
    for (const auto &arg : remark.getArgs()) {
      // Free text streams under the key "Remark"; named values are the machine-readable part.
      if (arg.key == "Remark")
        record.message += arg.val;
      else
        record.args.emplace_back(arg.key, arg.val);
    }
    std::lock_guard<std::mutex> lock(sink.mutex);
    sink.remarks.push_back(std::move(record));
  }

private:
  Sink &sink;
};

struct PassRecord {
  std::string name;
  std::string operation;
  double seconds = 0;
  std::map<std::string, uint64_t> counters;
};

struct RunResult {
  std::vector<PassRecord> passes;
  std::vector<RemarkRecord> remarks;
  std::vector<DiagnosticRecord> diagnostics;
};

/// Times each pass and reads its counters.
class Recorder final : public PassInstrumentation {
public:
  using Callback = std::function<void(const PassRecord &)>;
  Recorder(std::vector<PassRecord> &records, Callback callback)
      : records(records), callback(std::move(callback)) {}
  void runBeforePass(Pass *pass, Operation *) override {
    std::lock_guard<std::mutex> lock(mutex);
    started[pass] = std::chrono::steady_clock::now();
  }
  void runAfterPass(Pass *pass, Operation *op) override { finish(pass, op); }
  void runAfterPassFailed(Pass *pass, Operation *op) override { finish(pass, op); }

private:
  void finish(Pass *pass, Operation *op) {
    if (pass->getArgument().empty()) // the adaptor that nests pipelines is not a pass of anybody's
      return;
    std::lock_guard<std::mutex> lock(mutex);
    PassRecord record{pass->getArgument().str(), op->getName().getStringRef().str(), 0, {}};
    record.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started[pass]).count();
    if (auto *set = dynamic_cast<farrier::CounterSet *>(pass))
      for (const auto *counter : set->counters)
        record.counters[counter->name] = counter->value.load();
    records.push_back(std::move(record));
    if (callback)
      callback(records.back());
  }

  std::mutex mutex;
  std::vector<PassRecord> &records;
  Callback callback;
  llvm::DenseMap<Pass *, std::chrono::steady_clock::time_point> started;
};

/// Crosses from C++ to Python as farrier._core.DiagnosticError.
struct Failure {
  std::string what;
  std::vector<DiagnosticRecord> diagnostics;
  std::string reproducer = {};
};

/// Saves `text` as a file in `directory`, named by its content, and gives the command that runs `pipeline` on
/// it; a sentence saying why not when that fails.
std::string saveReproducer(llvm::StringRef directory, llvm::StringRef text, llvm::StringRef pipeline) {
  if (std::error_code error = llvm::sys::fs::create_directories(directory))
    return ("(not saved: " + directory + ": " + error.message() + ")").str();
  llvm::SHA256 hash;
  hash.update(text);
  std::string name =
      "farrier-" + llvm::toHex(llvm::ArrayRef<uint8_t>(hash.final()).take_front(6), true) + ".mlir";
  llvm::SmallString<128> path(directory);
  llvm::sys::path::append(path, name);
  std::error_code error;
  llvm::raw_fd_ostream os(path, error);
  os << text;
  os.close();
  if (error || os.has_error()) {
    os.clear_error();
    return ("(not saved: " + path + ")").str();
  }
  auto quoted = [](llvm::StringRef word) {
    std::string result = "'";
    for (char c : word)
      result += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return result + "'";
  };
  return "hlo-opt " + quoted(path) + " --pass-pipeline=" + quoted(pipeline);
}

/// A module and the context that owns its storage. One context a module: contexts grow with every
/// type and attribute ever seen, and a step's module is dropped after its compile.
class Module {
public:
  static std::unique_ptr<Module> parse(nb::handle source, bool verify) {
    llvm::StringRef text;
    if (PyBytes_Check(source.ptr())) {
      char *data = nullptr;
      Py_ssize_t size = 0;
      PyBytes_AsStringAndSize(source.ptr(), &data, &size);
      text = llvm::StringRef(data, size);
    } else if (PyUnicode_Check(source.ptr())) {
      Py_ssize_t size = 0;
      const char *data = PyUnicode_AsUTF8AndSize(source.ptr(), &size);
      if (!data)
        throw nb::python_error();
      text = llvm::StringRef(data, size);
    } else {
      throw nb::type_error("Module.parse expects str or bytes");
    }
    auto result = std::make_unique<Module>();
    Sink sink;
    {
      nb::gil_scoped_release release;
      DiagnosticCollector collector(result->context, sink);
      Watch watch(*result);
      ParserConfig config(&result->context, verify);
      result->module = parseSourceString<ModuleOp>(text, config);
    }
    if (!result->module)
      throw Failure{"the module does not parse", std::move(sink.diagnostics)};
    return result;
  }

  Module() : context(*new MLIRContext(registry(), MLIRContext::Threading::DISABLED)) {
    context.allowUnregisteredDialects();
    context.loadAllAvailableDialects();
  }
  ~Module() {
    if (lost) {
      (void)module.release();
      return;
    }
    module = {};
    delete &context;
  }
  Module(const Module &) = delete;
  Module &operator=(const Module &) = delete;

  nb::bytes print(bool generic, bool locations) {
    std::string text;
    {
      nb::gil_scoped_release release;
      text = toText(generic, locations);
    }
    return nb::bytes(text.data(), text.size());
  }

  std::unique_ptr<Module> clone() {
    auto result = std::make_unique<Module>();
    result->constants = constants;
    nb::gil_scoped_release release;
    // Another context: through the text, which is lossless.
    ParserConfig config(&result->context, /*verifyAfterParse=*/false);
    result->module = parseSourceString<ModuleOp>(toText(/*generic=*/true, /*locations=*/true), config);
    return result;
  }

  RunResult run(const std::string &pipeline, bool verifyEach, nb::object onPass,
                const std::optional<std::string> &reproducerDir) {
    ++revision;
    RunResult result;
    Sink sink;
    std::string error, reproducer;
    bool ok = false;
    // What the callback raised. It must not unwind through MLIR, which is built without exceptions.
    std::exception_ptr raised;
    Recorder::Callback callback;
    if (!onPass.is_none())
      callback = [&](const PassRecord &record) {
        nb::gil_scoped_acquire acquire;
        try {
          if (!raised)
            onPass(record);
        } catch (...) {
          raised = std::current_exception();
        }
      };
    {
      nb::gil_scoped_release release;
      std::string before = reproducerDir ? toText(/*generic=*/true, /*locations=*/true) : "";
      DiagnosticCollector collector(context, sink);
      remark::RemarkCategories categories{std::nullopt, ".*", ".*", ".*", ".*"};
      (void)remark::enableOptimizationRemarks(context, std::make_unique<RemarkCollector>(sink),
                                              std::make_unique<remark::RemarkEmittingPolicyAll>(),
                                              categories);
      PassManager manager(&context, ModuleOp::getOperationName());
      manager.enableVerifier(verifyEach);
      llvm::raw_string_ostream os(error);
      // "builtin.module(...)", as mlir-opt wants it, or the bare list of passes.
      bool parsed = false;
      if (llvm::StringRef(pipeline).ltrim().starts_with(ModuleOp::getOperationName())) {
        if (FailureOr<OpPassManager> anchored = parsePassPipeline(pipeline, os); succeeded(anchored)) {
          static_cast<OpPassManager &>(manager) = std::move(*anchored);
          parsed = true;
        }
      } else {
        parsed = succeeded(parsePassPipeline(pipeline, manager, os));
      }
      if (parsed) {
        manager.addInstrumentation(std::make_unique<Recorder>(result.passes, std::move(callback)));
        Watch watch(*this);
        ok = succeeded(manager.run(*module));
        // CSE may have let a reduction's region use a value from outside, which XLA refuses.
        if (ok)
          farrier::stablehlo::sinkCaptures(*module);
        else
          error = "the pass pipeline failed: " + pipeline;
      } else {
        error = "not a pass pipeline: " + pipeline + ": " + error;
      }
      context.setRemarkEngine(nullptr);
      if (!ok && reproducerDir)
        reproducer = saveReproducer(*reproducerDir, before, pipeline);
    }
    if (raised)
      std::rethrow_exception(raised);
    if (!ok)
      throw Failure{error, std::move(sink.diagnostics), reproducer};
    result.remarks = std::move(sink.remarks);
    result.diagnostics = std::move(sink.diagnostics);
    return result;
  }

  std::string query(const std::string &name, const std::string &options) {
    const farrier::Query *query = farrier::lookupQuery(name);
    if (!query)
      throw nb::key_error(name.c_str());
    Sink sink;
    std::string answer, error;
    {
      nb::gil_scoped_release release;
      DiagnosticCollector collector(context, sink);
      Watch watch(*this);
      llvm::Expected<llvm::json::Value> parsed = llvm::json::parse(options);
      if (!parsed)
        error = "options are not JSON: " + llvm::toString(parsed.takeError());
      else if (!parsed->getAsObject())
        error = "options are not a JSON object";
      else if (FailureOr<llvm::json::Value> value = (*query)(*module, *parsed->getAsObject());
               succeeded(value)) {
        llvm::raw_string_ostream os(answer);
        os << *value;
      } else {
        error = "the query '" + name + "' failed";
      }
    }
    if (!error.empty())
      throw Failure{error, std::move(sink.diagnostics)};
    return answer;
  }

  int64_t numOps() {
    int64_t count = 0;
    module->walk([&](Operation *) { ++count; });
    return count;
  }

  std::string fingerprint() {
    nb::gil_scoped_release release;
    llvm::SHA256 hash;
    hash.update(toText(/*generic=*/true, /*locations=*/false));
    std::array<uint8_t, 32> digest = hash.final();
    return llvm::toHex(digest, /*LowerCase=*/true);
  }

private:
  static DialectRegistry registry() {
    DialectRegistry result;
    farrier::registerDialects(result);
    return result;
  }

  std::string toText(bool generic, bool locations) {
    std::string text;
    llvm::raw_string_ostream os(text);
    OpPrintingFlags flags;
    flags.enableDebugInfo(locations);
    flags.printGenericOpForm(generic);
    (*module)->print(os, flags);
    return text;
  }

  /// Watches a call into MLIR. When memory runs out there an exception passes through frames that clean nothing
  /// up: what they worked on must not be touched again, not even to be destroyed.
  class Watch {
  public:
    explicit Watch(Module &module) : module(module) {}
    ~Watch() {
      if (std::uncaught_exceptions() <= before)
        return;
      module.lost = true;
      module.context.setRemarkEngine(nullptr); // it writes to this call's locals
    }

  private:
    Module &module;
    int before = std::uncaught_exceptions();
  };

  MLIRContext &context; ///< owned
  OwningOpRef<ModuleOp> module;
  bool lost = false;

public:
  /// What Python keeps beside the module: the data of constants that the text only names.
  nb::object constants = nb::none();
  /// How many pipelines ran: what was learnt about a module holds while this stays.
  int64_t revision = 0;
};

std::string describe(const Failure &failure) {
  std::string text = failure.what;
  for (const DiagnosticRecord &diagnostic : failure.diagnostics) {
    text += "\n  " + diagnostic.severity + ": " + diagnostic.message + "\n    at " + diagnostic.location;
    for (const DiagnosticRecord &note : diagnostic.notes)
      text += "\n    note: " + note.message + "\n      at " + note.location;
  }
  if (!failure.reproducer.empty())
    text += "\n  reproduce with: " + failure.reproducer;
  return text;
}

/// Operation name -> names of the attributes that ODS declares for it, read from the registered operations.
std::map<std::string, std::vector<std::string>> dialectOperations(const std::string &dialect) {
  DialectRegistry registry;
  farrier::registerDialects(registry);
  MLIRContext context(registry, MLIRContext::Threading::DISABLED);
  context.loadAllAvailableDialects();
  std::map<std::string, std::vector<std::string>> result;
  for (RegisteredOperationName name : context.getRegisteredOperationsByDialect(dialect)) {
    std::vector<std::string> &attributes = result[name.getStringRef().str()];
    for (StringAttr attribute : name.getAttributeNames())
      attributes.push_back(attribute.str());
  }
  return result;
}

} // namespace

/// LLVM's containers end the process where they can have no memory. Like `operator new`, which the rest of MLIR
/// uses, they shall throw instead: Python sees a MemoryError, and the program runs as it was written. What the
/// pass was working on is lost; it was a copy.
static void outOfMemory(void *, const char *, bool) { throw std::bad_alloc(); }

NB_MODULE(_core, m) {
  m.doc() = "farrier's MLIR: parse, run passes, print. Private; use the public modules.";
  llvm::install_bad_alloc_error_handler(outOfMemory);
  farrier::registerPasses();

  nb::class_<DiagnosticRecord>(m, "Diagnostic")
      .def_ro("severity", &DiagnosticRecord::severity)
      .def_ro("message", &DiagnosticRecord::message)
      .def_ro("location", &DiagnosticRecord::location)
      .def_ro("notes", &DiagnosticRecord::notes);
  nb::class_<RemarkRecord>(m, "Remark")
      .def_ro("kind", &RemarkRecord::kind)
      .def_ro("category", &RemarkRecord::category)
      .def_ro("name", &RemarkRecord::name)
      .def_ro("message", &RemarkRecord::message)
      .def_ro("location", &RemarkRecord::location)
      .def_ro("source", &RemarkRecord::source)
      .def_ro("args", &RemarkRecord::args);
  nb::class_<PassRecord>(m, "PassRecord")
      .def_ro("name", &PassRecord::name)
      .def_ro("operation", &PassRecord::operation)
      .def_ro("seconds", &PassRecord::seconds)
      .def_ro("counters", &PassRecord::counters);
  nb::class_<RunResult>(m, "RunResult")
      .def_ro("passes", &RunResult::passes)
      .def_ro("remarks", &RunResult::remarks)
      .def_ro("diagnostics", &RunResult::diagnostics);

  nb::object error =
      nb::steal(PyErr_NewException("farrier._core.DiagnosticError", PyExc_RuntimeError, nullptr));
  m.attr("DiagnosticError") = error;
  nb::register_exception_translator(
      [](const std::exception_ptr &pointer, void *payload) {
        try {
          std::rethrow_exception(pointer);
        } catch (const Failure &failure) {
          nb::handle type(static_cast<PyObject *>(payload));
          nb::object instance = type(describe(failure));
          nb::list diagnostics;
          for (const DiagnosticRecord &diagnostic : failure.diagnostics)
            diagnostics.append(diagnostic);
          instance.attr("diagnostics") = diagnostics;
          instance.attr("reproducer") =
              failure.reproducer.empty() ? nb::none() : nb::object(nb::str(failure.reproducer.c_str()));
          PyErr_SetObject(type.ptr(), instance.ptr());
        }
      },
      error.inc_ref().ptr());

  nb::class_<Module>(m, "Module", nb::is_weak_referenceable())
      .def_static("parse", &Module::parse, "text"_a, nb::kw_only(), "verify"_a = true)
      .def("print", &Module::print, nb::kw_only(), "generic"_a = true, "locations"_a = true)
      .def("clone", &Module::clone)
      .def("run", &Module::run, "pipeline"_a, nb::kw_only(), "verify_each"_a = true, "on_pass"_a = nb::none(),
           "reproducer_dir"_a = nb::none())
      .def("query", &Module::query, "name"_a, "options"_a = "{}")
      .def_rw("constants", &Module::constants)
      .def_ro("revision", &Module::revision)
      .def_prop_ro("num_ops", &Module::numOps)
      .def_prop_ro("fingerprint", &Module::fingerprint);
  m.def("query_names", &farrier::queryNames);
  m.def("dialect_operations", &dialectOperations, "dialect"_a);
  bindSchedule(m);
}
