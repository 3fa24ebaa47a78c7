"""Our changes inside XLA's compile, before and after its scheduler, through `jax.extend.xla`.

The hooks are registered once per process and do nothing unless this thread is inside `applying(plan)`
*and* the module's name carries the tag that goes with it. The name matters twice: XLA also compiles small modules
of its own on the way (autotuning), and JAX's persistent compile cache keys on the module and its name
but not on registered hooks, so without the tag in the name a cached executable of one plan would be
handed out for another, or for none.

A hook that raises would fail the user's compile, so nothing leaves it but bytes or None; what went wrong
is in the record. Transformations that others registered are never touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from farrier._src.collectives.prepare import Prepared, prepare
from farrier._src.collectives.schedule import Outcome, SchedulePlan, reschedule
from farrier._src.hlo import Module

_PREPARE_NAME = "farrier-prepare"
_SCHEDULE_NAME = "farrier-schedule"


@dataclasses.dataclass
class Record:
    """What the hook did during one compile."""

    plan: SchedulePlan
    tag: str
    """What the name of a module must contain to be this plan's."""
    calls: int = 0
    """Scheduled modules of this plan that came by; 0 means the executable came from a cache or hooks are not
    supported."""
    prepared: Prepared | None = None
    """What was changed before the scheduler; None: that was not asked for, or did not happen."""
    outcome: Outcome | None = None
    error: str | None = None
    """The traceback when the hook failed; the module was then left alone."""


class _Active(threading.local):
    def __init__(self) -> None:
        self.records: list[Record] = []


_active = _Active()
_lock = threading.Lock()
_registered: set[str] = set()


def tagged_name(name: str, plan: SchedulePlan) -> str:
    """The name to give a function or module that `plan` is to be applied to."""
    return f"{name}__{plan.tag}"


def ensure_registered(platform: str = "cuda") -> bool:
    """Registers the hooks with a platform's compiler, once per process; False where the platform is not
    here."""
    from jax.extend import xla

    with _lock:
        if platform in _registered:
            return True
        try:
            for hook, name, stage in (
                (_pre_scheduler, _PREPARE_NAME, xla.PipelineStage.PRE_SCHEDULER),
                (_post_scheduler, _SCHEDULE_NAME, xla.PipelineStage.POST_SCHEDULER),
            ):
                xla.register_hlo_module_transformation(hook, name=name, stage=stage, platforms=[platform])
        except (RuntimeError, ValueError, KeyError):
            return False
        _registered.add(platform)
        return True


@contextlib.contextmanager
def applying(plan: SchedulePlan, platform: str = "cuda", *, tag: str | None = None) -> Iterator[Record]:
    """Applies `plan` to modules with its tag that this thread compiles in the block.

    Args:
      plan: how to schedule.
      platform: whose compiles.
      tag: what marks the modules' names; None: the plan's own tag.

    Yields:
      A record that says what happened, complete once the block's compile has returned.
    """
    record = Record(plan, tag or plan.tag)
    ensure_registered(platform)
    _active.records.append(record)
    try:
        yield record
    finally:
        _active.records.pop()


def _current(data: bytes) -> tuple[Record, Module] | None:
    if not _active.records:
        return None
    record = _active.records[-1]
    # A cheap look before parsing: XLA's own small modules do not carry the tag.
    if record.tag.encode() not in data[:4096]:
        return None
    module = Module(data)
    return (record, module) if record.tag in module.name else None


def _pre_scheduler(data: bytes) -> bytes | None:
    try:
        found = _current(data)
        if found is None or not (found[0].plan.pipeline or found[0].plan.buckets):
            return None
        record, module = found
        new, record.prepared = prepare(module, record.plan)
        return new
    except Exception:
        _note(traceback.format_exc())
        return None


def _post_scheduler(data: bytes) -> bytes | None:
    try:
        found = _current(data)
        if found is None:
            return None
        record, module = found
        record.calls += 1
        if not record.plan.order:
            return None
        spent = record.prepared.carried_bytes if record.prepared is not None else 0
        new, record.outcome = reschedule(module, record.plan, spent_bytes=spent)
        return new
    except Exception:
        _note(traceback.format_exc())
        return None


def _note(error: str) -> None:
    if _active.records:
        _active.records[-1].error = error


def rename(module: Any, plan: SchedulePlan) -> None:
    """Puts the plan's tag into a jaxlib module's name, in place; give it a module of your own, not one
    JAX keeps."""
    from jaxlib.mlir import ir

    with module.context:
        name = ir.StringAttr(module.operation.attributes["sym_name"]).value
        module.operation.attributes["sym_name"] = ir.StringAttr.get(tagged_name(name, plan))
