//===- Program.h - a scheduled program as plain data ----------------------===//
//
// What the simulator and the list scheduler work on: instructions in order, who waits for whom, which buffers
// they touch, what the collectives carry. Nothing here knows HLO or MLIR; a front converts (the Python one
// reads XLA's scheduled HloModuleProto) and maps the new order back.
//
//===----------------------------------------------------------------------===//

#ifndef FARRIER_SCHEDULE_PROGRAM_H
#define FARRIER_SCHEDULE_PROGRAM_H

#include "llvm/Support/Error.h"
#include "llvm/Support/JSON.h"

#include <cstdint>
#include <string>
#include <vector>

namespace farrier::schedule {

/// How an instruction takes part in the schedule. The numbers are the exchange format's.
enum class Role : uint8_t {
  Free = 0,      ///< takes no time: tuples, views, parameters
  Compute = 1,   ///< a kernel on the compute stream
  CommStart = 2, ///< issues a collective and returns
  CommDone = 3,  ///< waits for it
  CommSync = 4,  ///< issues a collective and waits
  CopyStart = 5, ///< issues a copy on the copy engine and returns
  CopyDone = 6,  ///< waits for it
  While = 7,     ///< runs `body` `trips` times
  Call = 8,      ///< runs `body` once
};

enum class CollectiveKind : uint8_t {
  AllGather,
  AllReduce,
  ReduceScatter,
  AllToAll,
  Permute,
  Broadcast,
};

/// Payload and span of one collective.
struct Collective {
  CollectiveKind kind = CollectiveKind::AllReduce;
  /// Bytes of the result on one device.
  int64_t bytes = 0;
  /// Devices that take part in one group.
  int64_t group = 1;
  /// NVLink domains that one group spans.
  int64_t domains = 1;
  /// Members of one group within one NVLink domain, at most.
  int64_t perDomain = 1;
  /// Microseconds measured for exactly this collective, or negative.
  double measured = -1;
};

struct Instruction {
  Role role = Role::Free;
  /// Microseconds on the compute stream, or on the copy engine for CopyStart.
  double cost = 0;
  /// Data and control predecessors, by position in the computation.
  std::vector<int> preds;
  /// Start of a done, done of a start; -1 otherwise.
  int partner = -1;
  /// Index into Program::collectives; -1 otherwise.
  int collective = -1;
  /// Computation that While and Call run; -1 otherwise.
  int body = -1;
  int64_t trips = 1;
  /// Buffers that must exist when this runs, and those it brings into being.
  std::vector<int> reads, writes;
};

struct Buffer {
  int64_t bytes = 0;
  /// Exists before the computation starts / must exist when it ends.
  bool liveIn = false, liveOut = false;
};

struct Computation {
  std::string name;
  /// In schedule order.
  std::vector<Instruction> instructions;
  std::vector<Buffer> buffers;
};

struct Program {
  std::vector<Computation> computations;
  std::vector<Collective> collectives;
  int entry = 0;
};

/// Reads a program from its JSON form (columns; see docs/collectives.md) and checks every index, that
/// operands come before their users and that computations do not call each other in a circle.
llvm::Expected<Program> programFromJson(const llvm::json::Object &json);

/// One order per computation: `order[c][k]` is the position, in the program as given, of the k-th instruction
/// to run. An empty vector keeps the computation as it is.
using Orders = std::vector<std::vector<int>>;

/// The computation in the given order; indices are renumbered.
Computation reorder(const Computation &computation, const std::vector<int> &order);

/// The program with its computations in the given orders. Indices are renumbered.
Program reorder(const Program &program, const Orders &orders);

/// Whether `order` is a permutation that keeps every predecessor before its successor.
bool isValidOrder(const Computation &computation, const std::vector<int> &order);

/// Bytes held at the worst instant of each computation, its own buffers and what it calls, in the program's
/// order.
std::vector<int64_t> peakBytes(const Program &program);

} // namespace farrier::schedule

#endif // FARRIER_SCHEDULE_PROGRAM_H
