//===- schedule.cpp - farrier._core.schedule ------------------------------===//

#include "cpp/bindings/schedule.h"

#include "farrier/Schedule/Service.h"

#include <nanobind/stl/string.h>

#include <stdexcept>

namespace nb = nanobind;
using namespace nb::literals;

static std::string schedule(const std::string &request) {
  std::string text, error;
  {
    nb::gil_scoped_release release;
    llvm::Expected<std::string> result = farrier::schedule::answer(request);
    if (result)
      text = std::move(*result);
    else
      error = llvm::toString(result.takeError());
  }
  if (!error.empty())
    throw std::invalid_argument(error); // ValueError
  return text;
}

void bindSchedule(nb::module_ &m) {
  m.def("schedule", &schedule, "request"_a,
        "Simulates or reorders a scheduled program: JSON in, JSON out. Raises ValueError on a malformed "
        "request.");
}
