"""One process of a job on loopback: ``python job.py RANK COUNT PORT PLAN SCENARIO...``.

Runs the scenarios one after another and prints one JSON line for each. PLAN is a saved plan, or "-".
"""

import importlib
import json
import os
import sys
import time
import warnings


def main(rank, count, port, plan, scenarios):
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    jax = importlib.import_module("jax")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, rank)
    job = importlib.import_module("job_scenarios")
    for scenario in scenarios:
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = job.run(scenario, rank, count, None if plan == "-" else plan)
        answer["seconds"] = time.monotonic() - start
        print("ANSWER " + json.dumps(answer), flush=True)
    # JAX aborts the processes that outlive the first one: that one leaves when it is told that the others are gone.
    job.compat.distributed_client()[0].wait_at_barrier("leave", 120_000)
    if rank == 0:
        sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
