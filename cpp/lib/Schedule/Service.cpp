#include "farrier/Schedule/Service.h"

#include "farrier/Schedule/ListScheduler.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/raw_ostream.h"

namespace farrier::schedule {

static llvm::Expected<std::vector<CommModel>> readModels(const llvm::json::Object &request) {
  const llvm::json::Array *array = request.getArray("models");
  if (!array || array->empty())
    return llvm::createStringError(llvm::inconvertibleErrorCode(), "'models' lists no parameter set");
  std::vector<CommModel> models;
  for (const llvm::json::Value &value : *array) {
    const llvm::json::Object *object = value.getAsObject();
    if (!object)
      return llvm::createStringError(llvm::inconvertibleErrorCode(), "a parameter set is not an object");
    llvm::Expected<CommModel> model = commModelFromJson(*object);
    if (!model)
      return model.takeError();
    models.push_back(std::move(*model));
  }
  return models;
}

static llvm::json::Array peaks(const Program &program) {
  llvm::json::Array result;
  for (int64_t peak : peakBytes(program))
    result.push_back(peak);
  return result;
}

static llvm::json::Object describe(const Program &program, const CommModel &model, bool withHideable) {
  Simulation simulation = simulate(program, model);
  llvm::json::Array waits;
  for (const Wait &wait : simulation.waits) {
    llvm::json::Array row{wait.computation, wait.instruction, wait.total, wait.exposed, wait.runs};
    if (withHideable) {
      row.push_back(hideable(program, model, wait.computation, wait.instruction));
      row.push_back(wait.queued);
      row.push_back(wait.behindComputation);
      row.push_back(wait.behindInstruction);
    }
    waits.push_back(std::move(row));
  }
  return llvm::json::Object{{"model", model.name},
                            {"time", simulation.time},
                            {"compute", simulation.compute},
                            {"comm", simulation.comm},
                            {"exposed", simulation.exposed},
                            {"copy_exposed", simulation.copyExposed},
                            {"critical_path", simulation.criticalPath},
                            {"bound", simulation.bound},
                            {"collectives", simulation.collectives},
                            {"synchronous", simulation.synchronous},
                            {"waits", std::move(waits)}};
}

static llvm::json::Array numbers(const std::vector<double> &values) {
  llvm::json::Array result;
  for (double value : values)
    result.push_back(value);
  return result;
}

static llvm::json::Object run(const Program &program, OptimizeOptions &options) {
  OptimizeResult result = optimize(program, options);
  llvm::json::Array orders;
  for (const std::vector<int> &order : result.orders) {
    llvm::json::Array row;
    for (int i : order)
      row.push_back(i);
    orders.push_back(std::move(row));
  }
  return llvm::json::Object{{"orders", std::move(orders)},    {"before", numbers(result.before)},
                            {"after", numbers(result.after)}, {"peak_before", result.peakBefore},
                            {"peak_after", result.peakAfter}, {"tried", result.tried},
                            {"over_cap", result.overCap}};
}

/// Absent fields keep their defaults.
static Setting readSetting(const llvm::json::Object &json) {
  Setting setting;
  setting.prefetchBytes = json.getInteger("prefetch_bytes").value_or(setting.prefetchBytes);
  setting.backlog = json.getNumber("backlog_us").value_or(setting.backlog);
  setting.lookAhead = static_cast<int>(json.getInteger("look_ahead").value_or(setting.lookAhead));
  setting.hoistCost = json.getNumber("hoist_us").value_or(setting.hoistCost);
  setting.yield = json.getBoolean("yield").value_or(setting.yield);
  setting.aheadBytes = json.getInteger("ahead_bytes").value_or(setting.aheadBytes);
  setting.aheadWithinRoom = json.getBoolean("ahead_within_room").value_or(setting.aheadWithinRoom);
  setting.tolerance = json.getNumber("tolerance_us").value_or(setting.tolerance);
  setting.window = static_cast<int>(json.getInteger("window").value_or(setting.window));
  setting.eagerCopies = json.getBoolean("eager_copies").value_or(setting.eagerCopies);
  setting.leadFirst = json.getBoolean("lead_first").value_or(setting.leadFirst);
  setting.heldBytes = json.getInteger("held_bytes").value_or(setting.heldBytes);
  return setting;
}

llvm::Expected<std::string> answer(llvm::StringRef request) {
  llvm::Expected<llvm::json::Value> parsed = llvm::json::parse(request);
  if (!parsed)
    return parsed.takeError();
  const llvm::json::Object *object = parsed->getAsObject();
  const llvm::json::Object *json = object ? object->getObject("program") : nullptr;
  if (!json)
    return llvm::createStringError(llvm::inconvertibleErrorCode(), "the request has no 'program'");
  llvm::Expected<Program> program = programFromJson(*json);
  if (!program)
    return program.takeError();
  llvm::Expected<std::vector<CommModel>> models = readModels(*object);
  if (!models)
    return models.takeError();

  std::string text;
  llvm::raw_string_ostream os(text);
  llvm::StringRef action = object->getString("action").value_or("");
  if (action == "simulate") {
    llvm::json::Array results;
    for (const CommModel &model : *models)
      results.push_back(describe(*program, model, object->getBoolean("hideable").value_or(false)));
    os << llvm::json::Value(llvm::json::Object{{"results", std::move(results)}, {"peaks", peaks(*program)}});
    return text;
  }
  if (action == "list") { // one computation, one setting
    int64_t c = object->getInteger("computation").value_or(program->entry);
    if (c < 0 || c >= (int64_t)program->computations.size())
      return llvm::createStringError(llvm::inconvertibleErrorCode(), "'computation' is out of range");
    const llvm::json::Object empty;
    const llvm::json::Object *setting = object->getObject("setting");
    Orders orders(program->computations.size());
    orders[c] =
        listSchedule(*program, static_cast<int>(c), models->front(), readSetting(setting ? *setting : empty));
    Program ordered = reorder(*program, orders);
    llvm::json::Array times, order;
    for (const CommModel &model : *models)
      times.push_back(stepTime(ordered, model));
    for (int i : orders[c])
      order.push_back(i);
    os << llvm::json::Value(llvm::json::Object{
        {"order", std::move(order)}, {"times", std::move(times)}, {"peaks", peaks(ordered)}});
    return text;
  }
  if (action == "optimize") {
    OptimizeOptions options;
    options.models = std::move(*models);
    options.cap.bytes = object->getInteger("cap_bytes").value_or(options.cap.bytes);
    options.minimumGain = object->getNumber("minimum_gain").value_or(options.minimumGain);
    options.work = object->getInteger("work").value_or(options.work);
    os << llvm::json::Value(run(*program, options));
    return text;
  }
  return llvm::createStringError(llvm::inconvertibleErrorCode(), "unknown action '%s'", action.str().c_str());
}

} // namespace farrier::schedule
