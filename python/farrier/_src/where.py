"""Where a program runs, what is planned for it there, and what is promised.

| case | what is measured | the budget |
|---|---|---|
| GPU attached | deviceless compiles for the same GPU | binding |
| GPU named, nothing attached, abstract arguments | deviceless compiles for it | binding |
| GPU named, arguments on CPU | the CPU program, planned with the same options | not promised, said once |
| no target, no GPU | CPU's own memory analysis | about that, said once |
| GPU named, XLA:GPU plugin missing | nothing: estimates only | strict: an error; else not promised |
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from farrier._src import compat, errors

__all__ = ["Run", "resolve"]


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a program is planned for.

    Attributes:
      platform: "cuda" or "cpu" (or whatever JAX lowered for).
      attached: whether the devices are this job's own, so that the program will run on them.
      target: the ``farrier.Target`` to plan for, or None.
      device_ids: ids of the devices in the order of the assignment.
      processes: the processes that own those devices, sorted; empty when none of them is attached.
      budget_bytes: total device memory per device, or None.
      budget_binding: whether missing the budget is an error.
      measure: compiles a ``farrier._core.Module`` and measures it, or None.
      verify: compiles one for the attached GPU and measures it, or None.
      compile: ``compile(module, options)``: as `measure`, with more XLA options, giving an
        ``oracle.Compiled``; nothing is remembered. None where `measure` is.
      warnings: what the user is told once.
      notes: what the report says.
    """

    platform: str
    attached: bool
    target: Any
    device_ids: tuple[int, ...]
    processes: tuple[int, ...]
    budget_bytes: int | None
    budget_binding: bool
    measure: Callable[[Any], Any] | None
    verify: Callable[[Any], Any] | None = None
    compile: Callable[[Any, Mapping[str, Any]], Any] | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_GPU = ("cuda", "rocm", "gpu")


def resolve(site: Any, program: Any) -> Run:
    """Sorts a program into a row of the table above.

    Raises:
      farrier.MissingPluginError: in strict mode, when the target's compiler is not installed.
      farrier.OptionError: a budget that is a fraction of an unknown memory.
      farrier.TargetError: the target has another number of devices than the program.
    """
    options = site.options
    platform = program.platforms[0]
    devices = program.devices or ()
    attached = bool(devices) and all(compat.is_attached(device) for device in devices)
    warnings: list[str] = []
    notes: list[str] = []
    target = options.target
    measure = verify = compile = None
    binding = True
    if platform in _GPU:
        target = _gpu_target(target, attached, program)
        if target is None:
            binding = False
            notes.append("no target: pass target= to have the budget verified by XLA:GPU")
        else:
            try:
                planned = devices if devices and not attached else target.devices()
                measure, compile = _measure(site, target, planned), _compile(site, target, planned)
            except errors.MissingPluginError as error:
                if options.strict:
                    raise
                binding = False
                warnings.append(
                    f"what {target.name} would need is only estimated, because JAX's XLA:GPU plugin is not "
                    f"installed ({error.hint or 'pip install farrier[cuda13]'})"
                )
        if attached and len({device.process_index for device in devices}) == 1:
            # Compiling for the GPUs of several processes is something that all of them do together.
            verify = _measure(site, None, devices)
    else:
        measure = _measure(site, None, devices) if devices else None
        if target is not None:
            binding = False
            if options.memory_budget is not None:
                warnings.append(
                    f"planned for {target.name} and run on {platform}: its lowering differs, so it is "
                    f"planned again here with the same options, and the memory budget is not promised"
                )
        elif options.memory_budget is not None:
            warnings.append(
                f"no target and no GPU: the memory budget is taken to be about {platform}'s memory, as XLA's "
                f"memory_analysis counts it there"
            )
    usable = _usable_bytes(platform, target, devices if attached else ())
    budget = _budget_bytes(options.memory_budget, usable)
    if budget is not None and usable is not None and binding and budget > usable:
        notes.append(
            f"the budget of {budget:,} bytes exceeds the {usable:,} bytes that a process can use of it"
        )
    return Run(
        platform="cuda" if platform == "gpu" else platform,
        attached=attached,
        target=target,
        device_ids=tuple(device.id for device in devices),
        processes=tuple(sorted({device.process_index for device in devices})) if attached else (),
        budget_bytes=budget,
        budget_binding=binding,
        measure=measure,
        verify=verify,
        compile=compile,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def _gpu_target(target: Any, attached: bool, program: Any) -> Any:
    from farrier._src import targets

    if target is None and attached:
        target = targets.attached_target()
    elif target is None and program.devices:
        # Lowered on some target's mesh without naming it: its devices say what they are.
        kind = program.devices[0].device_kind
        known = map(targets.load_facts, targets.builtin_names())
        target = next((targets.Target(facts) for facts in known if facts.description == kind), None)
    if target is None:
        return None
    if target.device_count != program.num_partitions:
        if target.device_count != 1 and not attached:
            raise errors.TargetError(
                f"{program.name} is partitioned over {program.num_partitions} devices and the target "
                f"{target!r} has {target.device_count}",
                hint="shard the arguments over target.mesh(...), or give a topology of that many devices",
            )
        # A named GPU without a topology says which model, the shardings say how many.
        target = with_device_count(target, program.num_partitions)
    return target


def with_device_count(target: Any, count: int) -> Any:
    """The same GPU in the plainest topology of ``count`` devices: hosts of eight beyond one host.

    Raises:
      farrier.TargetError: more than eight that do not fill hosts.
    """
    from farrier._src.targets import Target

    if count > 8 and count % 8:
        raise errors.TargetError(
            f"{count} devices do not fill hosts of eight",
            hint=f"name one: Target({target.name!r}, topology=...)",
        )
    topology = f"1x1x{count}" if count <= 8 else f"1x{count // 8}x8"
    return Target(target.facts, topology=topology)


def _measure(site: Any, target: Any, devices: Any) -> Callable[[Any], Any]:
    from farrier._src import interchange, metrics_cache, oracle

    cache = metrics_cache.MeasurementCache(site.options.cache_dir)

    def measure(module: Any, options: Mapping[str, Any] | None = None, *, held: bool = False) -> Any:
        return oracle.measure(
            interchange.to_jaxlib(module) if hasattr(module, "fingerprint") else module,
            target,
            devices=devices,
            compiler_options={**site.compiler_options, **(options or {})},
            cache=cache,
            # What is compiled with settings around it is not what its text says.
            reusable=options is None,
            held=held,
        )

    return measure


def _compile(site: Any, target: Any, devices: Any) -> Callable[[Any, Mapping[str, Any]], Any]:
    from farrier._src import interchange, oracle

    def compile(module: Any, options: Mapping[str, Any]) -> Any:
        return oracle.compile_module(
            interchange.to_jaxlib(module) if hasattr(module, "fingerprint") else module,
            target,
            devices=devices,
            compiler_options={**site.compiler_options, **options},
        )

    return compile


def _usable_bytes(platform: str, target: Any, devices: Any) -> int | None:
    """Device memory that a process can really use, bytes."""
    if platform in _GPU:
        if devices:
            local = [device for device in devices if device.process_index == device.client.process_index()]
            limits = [(device.memory_stats() or {}).get("bytes_limit") for device in local]
            known = [limit for limit in limits if limit]
            if known:
                return min(known)
        return None if target is None else target.usable_bytes
    if target is not None:
        return target.usable_bytes
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _budget_bytes(budget: int | float | None, usable: int | None) -> int | None:
    if not isinstance(budget, float):
        return budget
    if usable is None:
        raise errors.OptionError(
            f"memory_budget={budget}: a fraction of what? The device's memory is not known",
            hint="pass target=, or the budget in bytes",
        )
    return int(budget * usable)
