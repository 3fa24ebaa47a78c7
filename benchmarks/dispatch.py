"""What a call of an optimized function costs beside a plain ``jax.jit``, in microseconds.

``python benchmarks/dispatch.py [--output FILE]``: medians over rounds that take turns, so that a busy
machine disturbs both alike. A tiny function shows the fixed cost of a call, 600 leaves the cost per
argument. The goal is at most 1.1 times plain jit.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import farrier
import jax
import jax.numpy as jnp

GOAL = 1.1


def tiny(x):
    return x + 1


def many_leaves(tree):
    return {name: value + 1 for name, value in tree.items()}


def microseconds(function, argument, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function(argument)
    seconds = time.perf_counter() - start
    jax.block_until_ready(function(argument))
    return seconds / calls * 1e6


def compare(function, argument, *, calls, rounds):
    """Medians of plain and optimized, µs per call, and the median of the rounds' ratios."""
    plain, optimized = jax.jit(function), farrier.optimize(jax.jit(function))
    for each in (plain, optimized):
        jax.block_until_ready(each(argument))
    times = {"plain": [], "optimized": []}
    for number in range(rounds):
        order = [("plain", plain), ("optimized", optimized)]
        for name, each in order if number % 2 else reversed(order):
            times[name].append(microseconds(each, argument, calls))
    return {
        "plain_us": round(statistics.median(times["plain"]), 3),
        "optimized_us": round(statistics.median(times["optimized"]), 3),
        "ratio": round(
            statistics.median(b / a for a, b in zip(times["plain"], times["optimized"], strict=True)), 4
        ),
        "rounds": rounds,
        "calls_per_round": calls,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="write the result as JSON")
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    leaves = {f"leaf{k:03d}": jnp.float32(k) for k in range(600)}
    result = {
        "goal": GOAL,
        "jax": jax.__version__,
        "cases": {
            "tiny": compare(tiny, jnp.float32(1), calls=2000, rounds=options.rounds),
            "600 leaves": compare(many_leaves, leaves, calls=20, rounds=options.rounds),
        },
    }
    print(json.dumps(result, indent=1))
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    return 0 if all(case["ratio"] <= GOAL for case in result["cases"].values()) else 2


if __name__ == "__main__":
    raise SystemExit(main())
