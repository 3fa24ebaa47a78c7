#include "passes/sink_captures/Passes.h"

#include "farrier/Dialect/StableHLO/StableHLO.h"
#include "farrier/Support/Registry.h"

namespace farrier::sink_captures {
#define GEN_PASS_DEF_SINKCAPTURES
#define GEN_PASS_REGISTRATION
#include "passes/sink_captures/Passes.h.inc"

namespace {
struct SinkCaptures : impl::SinkCapturesBase<SinkCaptures>, CounterSet {
  SinkCaptures() = default;
  SinkCaptures(const SinkCaptures &other) : SinkCapturesBase(other), CounterSet(other) {}

  Counter cloned{this, "cloned"};

  void runOnOperation() override { cloned += stablehlo::sinkCaptures(getOperation()); }
};
} // namespace

void registerPasses() { registerFarrier_sink_capturesPasses(); }
} // namespace farrier::sink_captures
