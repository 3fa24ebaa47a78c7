#include "farrier/Schedule/Simulator.h"

#include <algorithm>

namespace farrier::schedule {

namespace {

/// The clocks while a step runs. Waits are collected only when asked for: a search wants the time alone.
class Machine {
public:
  Machine(const Program &program, const CommModel &model, bool detailed)
      : program(program), model(model), detailed(detailed), durations(program.collectives.size()) {
    for (size_t k = 0; k < durations.size(); ++k)
      durations[k] = model.cost(program.collectives[k]);
    if (!detailed)
      return;
    offsets.reserve(program.computations.size());
    size_t total = 0;
    for (const Computation &computation : program.computations) {
      offsets.push_back(total);
      total += computation.instructions.size();
    }
    waits.resize(total);
  }

  void run(int c) {
    const std::vector<Instruction> &instructions = program.computations[c].instructions;
    // Only starts and dones need a finish time, and a done is below its start in this activation.
    std::vector<double> finish(instructions.size(), 0);
    for (size_t i = 0; i < instructions.size(); ++i) {
      const Instruction &instruction = instructions[i];
      switch (instruction.role) {
      case Role::Free:
        break;
      case Role::Compute:
        now += instruction.cost;
        result.compute += instruction.cost;
        break;
      case Role::CommStart:
        finish[instruction.partner] = issue(c, i, instruction);
        break;
      case Role::CommDone:
        wait(c, instruction.partner, finish[i]);
        break;
      case Role::CommSync:
        ++result.synchronous;
        wait(c, i, issue(c, i, instruction));
        break;
      case Role::CopyStart:
        copyFree = std::max(now, copyFree) + instruction.cost;
        finish[instruction.partner] = copyFree;
        break;
      case Role::CopyDone:
        result.copyExposed += std::max(0.0, finish[i] - now);
        now = std::max(now, finish[i]);
        break;
      case Role::While:
        for (int64_t trip = 0; trip < instruction.trips; ++trip)
          run(instruction.body);
        break;
      case Role::Call:
        run(instruction.body);
        break;
      }
    }
  }

  Simulation finishUp() {
    result.time = now;
    result.criticalPath = criticalPath(program.entry);
    result.bound = std::max({result.compute, streamTotal[0], streamTotal[1], result.criticalPath});
    for (size_t c = 0; c < program.computations.size(); ++c)
      for (size_t i = 0; i < program.computations[c].instructions.size(); ++i) {
        Wait &w = waits[offsets[c] + i];
        if (!w.runs)
          continue;
        w.computation = static_cast<int>(c);
        w.instruction = static_cast<int>(i);
        result.waits.push_back(w);
      }
    return std::move(result);
  }

  double now = 0;

private:
  double issue(int c, size_t i, const Instruction &instruction) {
    const Collective &collective = program.collectives[instruction.collective];
    double duration = durations[instruction.collective];
    int stream = model.stream(collective);
    double queued = std::max(0.0, streamFree[stream] - now);
    streamFree[stream] = std::max(now, streamFree[stream]) + duration;
    result.comm += duration;
    streamTotal[stream] += duration;
    ++result.collectives;
    if (detailed) {
      Wait &w = waits[offsets[c] + i];
      w.total += duration;
      ++w.runs;
      if (queued > 0) {
        w.queued += queued;
        w.behindComputation = last[stream].first;
        w.behindInstruction = last[stream].second;
      }
      last[stream] = {c, static_cast<int>(i)};
    }
    return streamFree[stream];
  }

  void wait(int c, size_t start, double until) {
    double waited = std::max(0.0, until - now);
    result.exposed += waited;
    if (detailed)
      waits[offsets[c] + start].exposed += waited;
    now = std::max(now, until);
  }

  double criticalPath(int c) {
    if (paths.empty())
      paths.resize(program.computations.size(), -1);
    if (paths[c] >= 0)
      return paths[c];
    const std::vector<Instruction> &instructions = program.computations[c].instructions;
    std::vector<double> ready(instructions.size(), 0);
    double longest = 0;
    for (size_t i = 0; i < instructions.size(); ++i) {
      const Instruction &instruction = instructions[i];
      double at = 0;
      for (int pred : instruction.preds)
        at = std::max(at, ready[pred]);
      switch (instruction.role) {
      case Role::Compute:
      case Role::CopyStart:
        at += instruction.cost;
        break;
      case Role::CommStart:
      case Role::CommSync:
        at += durations[instruction.collective];
        break;
      case Role::While:
        at += static_cast<double>(instruction.trips) * criticalPath(instruction.body);
        break;
      case Role::Call:
        at += criticalPath(instruction.body);
        break;
      default:
        break;
      }
      ready[i] = at;
      longest = std::max(longest, at);
    }
    return paths[c] = longest;
  }

  const Program &program;
  const CommModel &model;
  bool detailed;
  std::vector<double> durations;
  double streamFree[2] = {0, 0}, streamTotal[2] = {0, 0};
  std::pair<int, int> last[2] = {{-1, -1}, {-1, -1}}; ///< what each stream was given last
  double copyFree = 0;
  Simulation result;
  std::vector<size_t> offsets;
  std::vector<Wait> waits;
  std::vector<double> paths;
};

} // namespace

Simulation simulate(const Program &program, const CommModel &model) {
  Machine machine(program, model, /*detailed=*/true);
  machine.run(program.entry);
  return machine.finishUp();
}

double stepTime(const Program &program, const CommModel &model) {
  Machine machine(program, model, /*detailed=*/false);
  machine.run(program.entry);
  return machine.now;
}

double hideable(const Program &program, const CommModel &model, int computation, int instruction) {
  const std::vector<Instruction> &instructions = program.computations[computation].instructions;
  std::vector<char> related(instructions.size(), 0);
  related[instruction] = 1;
  for (int i = instruction; i >= 0; --i) // ancestors: operands come before their users
    if (related[i])
      for (int pred : instructions[i].preds)
        related[pred] = 1;
  std::vector<char> after(instructions.size(), 0);
  after[instruction] = 1;
  for (size_t i = instruction + 1; i < instructions.size(); ++i)
    for (int pred : instructions[i].preds)
      if (after[pred])
        related[i] = after[i] = 1;
  double total = 0;
  Program inner = {}; // times of called bodies, without copying the program for plain kernels
  for (size_t i = 0; i < instructions.size(); ++i) {
    const Instruction &other = instructions[i];
    if (related[i])
      continue;
    if (other.role == Role::Compute)
      total += other.cost;
    if (other.body >= 0) {
      if (inner.computations.empty())
        inner = program;
      inner.entry = other.body;
      total += static_cast<double>(other.role == Role::While ? other.trips : 1) * stepTime(inner, model);
    }
  }
  return total;
}

} // namespace farrier::schedule
