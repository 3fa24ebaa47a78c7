#ifndef FARRIER_PASSES_REMAT_REMATERIALIZATION_H
#define FARRIER_PASSES_REMAT_REMATERIALIZATION_H

namespace farrier::remat {

/// Registers farrier-remat and its queries: remat.plan, remat.loops, remat.blocks, memory.estimate,
/// cost.total.
void registerPasses();

} // namespace farrier::remat

#endif // FARRIER_PASSES_REMAT_REMATERIALIZATION_H
