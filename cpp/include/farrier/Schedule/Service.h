//===- Service.h - simulate and reorder, JSON in and JSON out -------------===//

#ifndef FARRIER_SCHEDULE_SERVICE_H
#define FARRIER_SCHEDULE_SERVICE_H

#include "llvm/Support/Error.h"

#include <string>

namespace farrier::schedule {

/// Answers one request (docs/collectives.md gives the fields). "action" is "simulate" or "optimize".
llvm::Expected<std::string> answer(llvm::StringRef request);

} // namespace farrier::schedule

#endif // FARRIER_SCHEDULE_SERVICE_H
