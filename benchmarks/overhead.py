"""What optimizing a step costs beside compiling it as it was written: cold, with a saved plan, with a warm cache.

    overhead = (trace + lower + plan + all compiles) / one plain compile

``python benchmarks/overhead.py [--output FILE]``. Everything is compiled by XLA:GPU for the target; no GPU is
needed. Each figure comes from a process of its own, so that nothing of JAX's caches is warm; the cases take turns,
so that a busy machine disturbs all alike, and ratios are taken within a round. Processor time stands beside wall
time: it counts XLA's threads, and other work on the machine changes it less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

GOALS = {"cold": 2.2, "plan": 1.1, "cache": 1.1}
CASES = ("plain", *GOALS)


def stages(actions):
    """Runs the actions one after another; wall and processor seconds of each, and what the last one gave."""
    seconds, value = {}, None
    for name, action in actions.items():
        wall, processor = time.perf_counter(), time.process_time()
        value = action(value)
        seconds[name] = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    return seconds, value


def child(case, arguments):
    """One case in this process; prints its seconds as JSON."""
    import farrier
    from workloads import registry

    target = farrier.Target(arguments.target)
    # The compiler's own start-up is nobody's overhead.
    registry.build("llm-tiny", target).lower().compile()
    built = registry.build(arguments.workload, target, layers=arguments.layers)
    step = built.function
    if case != "plain":
        step = farrier.optimize(
            step,
            memory_budget=arguments.budget,
            target=target,
            passes=arguments.passes,
            plan=arguments.plan if case == "plan" else None,
        )
    seconds, compiled = stages(
        {
            "trace": lambda _: step.trace(*built.arguments),
            "lower": lambda traced: traced.lower(),
            "compile": lambda lowered: lowered.compile(),
        }
    )
    memory = compiled.runtime_executable().get_compiled_memory_stats()
    result = {
        "seconds": seconds,
        "total_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    }
    if case != "plain":
        decision = compiled.decision
        result |= {"source": decision.source, "compiles": decision.compiles, "changed": decision.changed}
        if case == "cold":
            decision.plan.save(arguments.plan)
    print("RESULT " + json.dumps(result))


def run_child(case, step, directory):
    environment = dict(os.environ)
    # A saved plan comes without a cache; the warm cache is the one that the cold run left.
    environment["FARRIER_CACHE_DIR"] = os.path.join(directory, "none" if case == "plan" else "cache")
    command = [sys.executable, __file__, "--child", case, "--plan", f"{directory}/step.plan.json"]
    for name, value in step.items():
        command += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case} of {step} failed:\n{done.stderr[-3000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line[7:])


def total(result, clock):
    return sum(stage[clock] for stage in result["seconds"].values())


def measure(step, rounds):
    """Medians over the rounds: seconds per stage, and the overheads by both clocks."""
    results = {case: [] for case in CASES}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            for case in CASES:
                results[case].append(run_child(case, step, directory))
                print(f"  {case}: {total(results[case][-1], 'wall'):.1f} s", file=sys.stderr, flush=True)
    report = {"step": step, "rounds": rounds, "cases": {}}
    for case, found in results.items():
        entry = {key: value for key, value in found[-1].items() if key != "seconds"}
        entry["seconds"] = {
            stage: {
                clock: round(statistics.median(each["seconds"][stage][clock] for each in found), 3)
                for clock in ("wall", "processor")
            }
            for stage in found[0]["seconds"]
        }
        if case != "plain":
            entry["overhead"] = {
                clock: round(
                    statistics.median(
                        total(mine, clock) / plain["seconds"]["compile"][clock]
                        for mine, plain in zip(found, results["plain"], strict=True)
                    ),
                    3,
                )
                for clock in ("wall", "processor")
            }
        report["cases"][case] = entry
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="llm-1b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--budget", default="14.8GB")
    parser.add_argument("--target", default="h100")
    parser.add_argument("--passes", nargs="+", default=["remat"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="append the result to this JSON file")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments)

    from farrier._src import fingerprint

    step = {name: getattr(arguments, name) for name in ("workload", "layers", "budget", "target", "passes")}
    report = measure(step, arguments.rounds) | {
        "goals": GOALS,
        "versions": fingerprint.versions(),
        "processors": os.cpu_count(),
        "load_average": round(os.getloadavg()[2], 1),
    }
    print(json.dumps(report, indent=1))
    if arguments.output:
        reports = []
        if os.path.exists(arguments.output):
            with open(arguments.output, encoding="utf-8") as file:
                reports = json.load(file)
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump([*reports, report], file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
