#ifndef FARRIER_BINDINGS_SCHEDULE_H
#define FARRIER_BINDINGS_SCHEDULE_H

#include <nanobind/nanobind.h>

/// Adds the scheduler's entry point to the module.
void bindSchedule(nanobind::module_ &m);

#endif // FARRIER_BINDINGS_SCHEDULE_H
