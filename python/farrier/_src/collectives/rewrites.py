"""Forms of a program that states its collectives: which passes make them, and what XLA has to be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from farrier._src.collectives import drive

# By name: the pass pipeline that makes the form.
_PIPELINES = {
    "simplify": "farrier-simplify-collectives",
    "chain": "farrier-simplify-collectives,farrier-chain-collectives",
}
NAMES = tuple(_PIPELINES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form(drive.Variant):
    """A form, with what makes it again."""

    plan: Mapping[str, Any]
    """"name", "pipeline" and "sites": how much each of the passes' counters found."""


def variants(module: Any, names: Sequence[str], context: Any) -> list[Form]:
    """The forms that differ from the program, the most promising first.

    Args:
      module: a `farrier._core.Module`, left as it is.
      names: of `NAMES`, those to try.
      context: the `pipeline.Context`; remarks of the passes go there.
    """
    from farrier._src import interchange

    found, seen = [], {module.fingerprint}
    for name in NAMES:
        if name not in names:
            continue
        copy = module.clone()
        plan = _run(copy, name, _PIPELINES[name])
        if plan is None or copy.fingerprint in seen:
            continue
        seen.add(copy.fingerprint)
        found.append(Form(name=name, module=interchange.to_jaxlib(copy), plan=plan))
    return found


def stressed(module: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """The plan that applies all of `names`, one after the other; None when they find nothing."""
    pipeline = ",".join(_PIPELINES[name] for name in NAMES if name in names)
    return _run(module.clone(), "+".join(names), pipeline) if pipeline else None


def apply(module: Any, plan: Mapping[str, Any]) -> list[str] | None:
    """Makes the form of `module`, in place; what the program lacks of the plan."""
    found = _sites(module.run(f"builtin.module({plan['pipeline']})"))
    return [
        f"{what}: {count} sites in the plan, {found.get(what, 0)} in the program"
        for what, count in plan["sites"].items()
        if found.get(what, 0) != count
    ] or None


def _run(module: Any, name: str, pipeline: str) -> dict[str, Any] | None:
    sites = _sites(module.run(f"builtin.module({pipeline})"))
    return {"name": name, "pipeline": pipeline, "sites": sites} if sites else None


def _sites(result: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in result.passes:
        for counter, count in record.counters.items():
            if count:
                found[counter] = found.get(counter, 0) + count
    return dict(sorted(found.items()))
