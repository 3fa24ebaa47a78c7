"""``hlo-opt --stage=scheduled --platform=GPU``: a better order for an XLA dump, HLO to HLO."""

from __future__ import annotations

from farrier._src.collectives import parameters, schedule
from farrier._src.hlo import Module
from farrier._src.targets import Target


def reschedule(data: bytes, platform: str, *, memory_growth_bytes: int = 0) -> tuple[bytes, str]:
    """Reorders a scheduled module, given as a serialized HloModuleProto.

    Only collectives that are still a start and a done can move; XLA's last passes turn pairs with
    nothing between them into synchronous ones, so a dump taken after them shows less than the hook reaches.

    Args:
      data: the module.
      platform: a target's name; ``gpu`` and ``cuda`` mean ``h100``.
      memory_growth_bytes: what the new order may hold over the given one's at the worst instant.

    Returns:
      The module, in the new order where that is faster under both of the target's parameter sets, else
      `data`; and a table of step times and of the collectives still exposed.

    Raises:
      farrier.Error: unknown platform.
    """
    target = Target("h100" if platform in ("gpu", "cuda") else platform)
    module = Module(data)
    sets = parameters.for_target(target)
    plan = schedule.plan(module, target, sets, memory_growth_bytes=memory_growth_bytes)
    new, outcome = schedule.reschedule(module, plan)
    result = Module(new) if new is not None else module
    simulated = schedule.simulate(result, target, sets, frozen=dict(plan.costs))
    lines = ["simulated step, ms (nothing was run):"]
    for before, after in zip(outcome.before, simulated, strict=True):
        lines.append(
            f"  {after.parameters}: {before * 1e3:.3f} -> {after.seconds * 1e3:.3f}, exposed communication "
            f"{after.exposed_seconds * 1e3:.3f}, bound {after.bound_seconds * 1e3:.3f}"
        )
    for wait in simulated[0].waits[:10]:
        if wait.why:
            where = f" {wait.source}" if wait.source else ""
            lines.append(
                f"  waits {wait.exposed_seconds * 1e3:.3f} ms for {wait.kind} {wait.name} ({wait.runs} runs){where}: "
                f"{wait.why}"
            )
    return (new if new is not None else data), "\n".join(lines) + "\n"
