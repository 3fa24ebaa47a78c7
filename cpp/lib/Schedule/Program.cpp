#include "farrier/Schedule/CommModel.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>

namespace farrier::schedule {

template <typename... Args> static llvm::Error invalid(const char *format, Args... args) {
  return llvm::createStringError(llvm::inconvertibleErrorCode(), format, args...);
}

namespace {
/// The columns of one computation; every one as long as "role".
struct Columns {
  const llvm::json::Object &json;
  std::string name;
  size_t length = 0;

  llvm::Expected<const llvm::json::Array *> column(llvm::StringRef key, bool required,
                                                   bool perInstruction) const {
    const llvm::json::Array *array = json.getArray(key);
    if (!array) {
      if (required || json.get(key))
        return invalid("computation '%s': '%s' is not an array", name.c_str(), key.str().c_str());
      return nullptr;
    }
    if (perInstruction && array->size() != length)
      return invalid("computation '%s': '%s' has %zu entries for %zu instructions", name.c_str(),
                     key.str().c_str(), array->size(), length);
    return array;
  }
};
} // namespace

static llvm::Error readInt(const llvm::json::Value &value, int64_t low, int64_t high, llvm::StringRef what,
                           int64_t &out) {
  std::optional<int64_t> number = value.getAsInteger();
  if (!number || *number < low || *number >= high)
    return invalid("%s out of range", what.str().c_str());
  out = *number;
  return llvm::Error::success();
}

static llvm::Error readList(const llvm::json::Value &value, int64_t high, llvm::StringRef what,
                            std::vector<int> &out) {
  const llvm::json::Array *array = value.getAsArray();
  if (!array)
    return invalid("%s is not a list", what.str().c_str());
  out.reserve(array->size());
  for (const llvm::json::Value &item : *array) {
    int64_t number;
    if (llvm::Error error = readInt(item, 0, high, what, number))
      return error;
    out.push_back(static_cast<int>(number));
  }
  llvm::sort(out);
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return llvm::Error::success();
}

static llvm::Expected<Computation> readComputation(const llvm::json::Object &json, size_t computations,
                                                   size_t collectives) {
  Computation result;
  if (std::optional<llvm::StringRef> name = json.getString("name"))
    result.name = name->str();
  Columns columns{json, result.name};
  auto roles = columns.column("role", true, false);
  if (!roles)
    return roles.takeError();
  columns.length = (*roles)->size();
  const int64_t count = static_cast<int64_t>(columns.length);
  auto buffers = columns.column("buffers", false, false);
  if (!buffers)
    return buffers.takeError();
  if (*buffers)
    for (const llvm::json::Value &value : **buffers) {
      int64_t bytes;
      if (llvm::Error error = readInt(value, 0, INT64_MAX, "buffer size", bytes))
        return std::move(error);
      result.buffers.push_back({bytes, false, false});
    }
  const int64_t bufferCount = static_cast<int64_t>(result.buffers.size());
  for (bool in : {true, false}) {
    auto list = columns.column(in ? "live_in" : "live_out", false, false);
    if (!list)
      return list.takeError();
    if (*list)
      for (const llvm::json::Value &value : **list) {
        int64_t index;
        if (llvm::Error error = readInt(value, 0, bufferCount, "buffer index", index))
          return std::move(error);
        (in ? result.buffers[index].liveIn : result.buffers[index].liveOut) = true;
      }
  }
  result.instructions.resize(columns.length);
  for (int64_t i = 0; i < count; ++i) {
    int64_t role;
    if (llvm::Error error = readInt((**roles)[i], 0, 9, "role", role))
      return std::move(error);
    result.instructions[i].role = static_cast<Role>(role);
  }
  auto costs = columns.column("cost", true, true);
  if (!costs)
    return costs.takeError();
  for (int64_t i = 0; i < count; ++i) {
    std::optional<double> cost = (**costs)[i].getAsNumber();
    if (!cost || !(*cost >= 0) || !(*cost < 1e15))
      return invalid("computation '%s': a cost is not a time", result.name.c_str());
    result.instructions[i].cost = *cost;
  }
  auto preds = columns.column("preds", true, true);
  if (!preds)
    return preds.takeError();
  for (int64_t i = 0; i < count; ++i) // before its user: below i
    if (llvm::Error error = readList((**preds)[i], i, "predecessor", result.instructions[i].preds))
      return std::move(error);
  for (bool reads : {true, false}) {
    auto lists = columns.column(reads ? "reads" : "writes", false, true);
    if (!lists)
      return lists.takeError();
    if (*lists)
      for (int64_t i = 0; i < count; ++i) {
        Instruction &instruction = result.instructions[i];
        if (llvm::Error error =
                readList((**lists)[i], bufferCount, "buffer", reads ? instruction.reads : instruction.writes))
          return std::move(error);
      }
  }
  struct IntColumn {
    const char *key;
    int64_t low, high;
  };
  for (const IntColumn &c : {IntColumn{"partner", -1, count},
                             {"collective", -1, (int64_t)collectives},
                             {"body", -1, (int64_t)computations},
                             {"trips", 0, 1000000000}}) {
    auto array = columns.column(c.key, false, true);
    if (!array)
      return array.takeError();
    if (!*array)
      continue;
    for (int64_t i = 0; i < count; ++i) {
      int64_t value;
      if (llvm::Error error = readInt((**array)[i], c.low, c.high, c.key, value))
        return std::move(error);
      Instruction &instruction = result.instructions[i];
      switch (c.key[0]) {
      case 'p':
        instruction.partner = static_cast<int>(value);
        break;
      case 'c':
        instruction.collective = static_cast<int>(value);
        break;
      case 'b':
        instruction.body = static_cast<int>(value);
        break;
      default:
        instruction.trips = value;
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const Instruction &instruction = result.instructions[i];
    bool start = instruction.role == Role::CommStart || instruction.role == Role::CopyStart;
    bool done = instruction.role == Role::CommDone || instruction.role == Role::CopyDone;
    if ((start && instruction.partner <= i) ||
        (done && (instruction.partner < 0 || instruction.partner >= i)))
      return invalid("computation '%s': instruction %d has no partner", result.name.c_str(), (int)i);
    if ((start || done) && result.instructions[instruction.partner].partner != i)
      return invalid("computation '%s': the partner of instruction %d has another", result.name.c_str(),
                     (int)i);
    if (done && !llvm::is_contained(instruction.preds, instruction.partner))
      return invalid("computation '%s': done %d does not wait for its start", result.name.c_str(), (int)i);
    if ((instruction.role == Role::CommStart || instruction.role == Role::CommSync) &&
        instruction.collective < 0)
      return invalid("computation '%s': instruction %d names no collective", result.name.c_str(), (int)i);
    if ((instruction.role == Role::While || instruction.role == Role::Call) && instruction.body < 0)
      return invalid("computation '%s': instruction %d names no body", result.name.c_str(), (int)i);
  }
  return result;
}

/// Depth-first over bodies; a computation on the current path that is met again is a circle.
static bool callsInCircle(const Program &program, int at, std::vector<char> &state) {
  if (state[at])
    return state[at] == 1;
  state[at] = 1;
  for (const Instruction &instruction : program.computations[at].instructions)
    if (instruction.body >= 0 && callsInCircle(program, instruction.body, state))
      return true;
  state[at] = 2;
  return false;
}

llvm::Expected<Program> programFromJson(const llvm::json::Object &json) {
  Program result;
  const llvm::json::Array *computations = json.getArray("computations");
  const llvm::json::Array *collectives = json.getArray("collectives");
  if (!computations || computations->empty() || !collectives)
    return invalid("a program has 'computations' and 'collectives'");
  for (const llvm::json::Value &value : *collectives) {
    const llvm::json::Object *object = value.getAsObject();
    if (!object)
      return invalid("a collective is not an object");
    llvm::Expected<CollectiveKind> kind = collectiveKind(object->getString("kind").value_or(""));
    if (!kind)
      return kind.takeError();
    Collective collective;
    collective.kind = *kind;
    collective.bytes = object->getInteger("bytes").value_or(0);
    collective.group = object->getInteger("group").value_or(1);
    collective.domains = object->getInteger("domains").value_or(1);
    collective.perDomain = object->getInteger("per_domain").value_or(collective.group);
    collective.measured = object->getNumber("measured_us").value_or(-1);
    if (collective.bytes < 0 || collective.group < 1 || collective.domains < 1 || collective.perDomain < 1)
      return invalid("a collective has a size below its minimum");
    result.collectives.push_back(collective);
  }
  for (const llvm::json::Value &value : *computations) {
    const llvm::json::Object *object = value.getAsObject();
    if (!object)
      return invalid("a computation is not an object");
    llvm::Expected<Computation> computation =
        readComputation(*object, computations->size(), result.collectives.size());
    if (!computation)
      return computation.takeError();
    result.computations.push_back(std::move(*computation));
  }
  result.entry = static_cast<int>(json.getInteger("entry").value_or(0));
  if (result.entry < 0 || result.entry >= (int)result.computations.size())
    return invalid("the entry computation is out of range");
  std::vector<char> state(result.computations.size(), 0);
  for (int c = 0; c < (int)result.computations.size(); ++c)
    if (callsInCircle(result, c, state))
      return invalid("computations call each other in a circle");
  return result;
}

bool isValidOrder(const Computation &computation, const std::vector<int> &order) {
  if (order.size() != computation.instructions.size())
    return false;
  std::vector<int> position(order.size(), -1);
  for (size_t k = 0; k < order.size(); ++k) {
    if (order[k] < 0 || order[k] >= (int)order.size() || position[order[k]] >= 0)
      return false;
    position[order[k]] = static_cast<int>(k);
  }
  for (size_t i = 0; i < order.size(); ++i)
    for (int pred : computation.instructions[i].preds)
      if (position[pred] > position[i])
        return false;
  return true;
}

Computation reorder(const Computation &computation, const std::vector<int> &order) {
  Computation result;
  result.name = computation.name;
  result.buffers = computation.buffers;
  std::vector<int> position(order.size());
  for (size_t k = 0; k < order.size(); ++k)
    position[order[k]] = static_cast<int>(k);
  result.instructions.reserve(order.size());
  for (int i : order) {
    result.instructions.push_back(computation.instructions[i]);
    Instruction &instruction = result.instructions.back();
    for (int &pred : instruction.preds)
      pred = position[pred];
    if (instruction.partner >= 0)
      instruction.partner = position[instruction.partner];
  }
  return result;
}

Program reorder(const Program &program, const Orders &orders) {
  Program result = program;
  for (size_t c = 0; c < orders.size(); ++c)
    if (!orders[c].empty())
      result.computations[c] = reorder(program.computations[c], orders[c]);
  return result;
}

static int64_t peakOf(const Program &program, int c, std::vector<int64_t> &peaks) {
  if (peaks[c] >= 0)
    return peaks[c];
  const Computation &computation = program.computations[c];
  std::vector<int> last(computation.buffers.size(), -1);
  const int count = static_cast<int>(computation.instructions.size());
  for (int i = 0; i < count; ++i) {
    for (int b : computation.instructions[i].reads)
      last[b] = i;
    for (int b : computation.instructions[i].writes)
      last[b] = i;
  }
  int64_t held = 0, peak = 0;
  std::vector<char> alive(computation.buffers.size(), 0);
  for (size_t b = 0; b < computation.buffers.size(); ++b) {
    if (computation.buffers[b].liveOut)
      last[b] = count;
    if (computation.buffers[b].liveIn) {
      alive[b] = 1;
      held += computation.buffers[b].bytes;
    }
  }
  peak = held;
  for (int i = 0; i < count; ++i) {
    const Instruction &instruction = computation.instructions[i];
    for (int b : instruction.writes)
      if (!alive[b]) {
        alive[b] = 1;
        held += computation.buffers[b].bytes;
      }
    int64_t inside = instruction.body >= 0 ? peakOf(program, instruction.body, peaks) : 0;
    peak = std::max(peak, held + inside);
    auto release = [&](int b) {
      if (alive[b] == 1 && last[b] == i) {
        alive[b] = 2;
        held -= computation.buffers[b].bytes;
      }
    };
    llvm::for_each(instruction.reads, release);
    llvm::for_each(instruction.writes, release);
  }
  return peaks[c] = peak;
}

std::vector<int64_t> peakBytes(const Program &program) {
  std::vector<int64_t> peaks(program.computations.size(), -1);
  for (int c = 0; c < (int)program.computations.size(); ++c)
    peakOf(program, c, peaks);
  return peaks;
}

} // namespace farrier::schedule
