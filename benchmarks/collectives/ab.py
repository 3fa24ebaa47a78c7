"""A/B on real devices: a step as it is and as farrier schedules it, in turns, on one process or a whole job.

    python benchmarks/collectives/ab.py MODULE:FUNCTION [--rounds 30] [--steps 10] [--output FILE]
    srun ... python benchmarks/collectives/ab.py MODULE:FUNCTION --distributed      # on every process of a job

``FUNCTION()`` in the importable ``MODULE`` returns ``(step, args)``: a function (jitted or not) and real, sharded
arguments. Arguments are not donated here, so that both can run on the same ones. Every tables' figure in
docs/collectives.md is simulated; this is how to see whether your cluster agrees. Process 0 reports medians of
rounds that take turns, their spread, what farrier's simulation said, and both memories as XLA counts them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import statistics
import sys
import time

import farrier
import jax


def seconds(step, args, steps: int) -> float:
    """Mean time of one call, all devices finished."""
    start = time.perf_counter()
    for _ in range(steps):
        result = step(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / steps


def compare(step, args, *, rounds: int, steps: int, passes=("collectives",)) -> dict:
    """Times both in turns.

    Returns:
      Medians in seconds, the median of the rounds' ratios with its interquartile range, bytes per device by XLA's
      `memory_analysis`, and what the plan expected.
    """
    optimized = farrier.optimize(step, passes=passes)
    lowered = optimized.lower(*args)
    runs = {"plain": optimized.original.lower(*args).compile(), "farrier": lowered.compile()}
    for run in runs.values():
        jax.block_until_ready(run(*args))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        # Whoever runs first in one round runs last in the next: clocks drift.
        for name in list(runs) if number % 2 else reversed(list(runs)):
            times[name].append(seconds(runs[name], args, steps))
    ratios = [b / a for a, b in zip(times["plain"], times["farrier"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    decision = lowered.decision
    return {
        "changed": decision.changed,
        "median_seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "bytes": {name: _bytes(run) for name, run in runs.items()},
        "expected": decision.plan.passes.get("collectives", {}).get("simulated", {}),
        "remarks": [remark["message"] for remark in decision.remarks],
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "rounds": rounds,
        "steps": steps,
    }


def _bytes(compiled) -> int:
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="calls timed together in one round")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--distributed", action="store_true", help="call jax.distributed.initialize() first")
    args = parser.parse_args(arguments)
    if args.rounds < 2:
        parser.error("a spread needs at least 2 rounds")
    if args.distributed:
        jax.distributed.initialize()
    module, _, function = args.function.partition(":")
    sys.path.insert(0, str(pathlib.Path.cwd()))
    step, values = getattr(importlib.import_module(module), function)()
    found = compare(step, values, rounds=args.rounds, steps=args.steps)
    if jax.process_index() == 0:
        text = json.dumps(found, indent=1) + "\n"
        print(text, end="")
        if args.output is not None:
            args.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
