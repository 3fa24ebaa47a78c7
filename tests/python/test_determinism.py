"""Same bytes in every process, whatever its hash seed, its number of threads and the order of its memory."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent

# Prints hashes of what every pass makes of two programs, and of what planning decides.
SCRIPT = """
import hashlib, json, random
import programs
from farrier._src import interchange
from trust import pipelines

for name in ("decoder_step_scanned", "branches"):
    text = interchange.print_module(programs.get(name).module(), locations=True)
    draw = random.Random(5)
    for pipeline in sorted({pipelines.pipeline(draw) for _ in range(40)}):
        module = interchange._core.Module.parse(text)
        module.run(pipeline)
        print(hashlib.sha256(module.print()).hexdigest())
    module = interchange._core.Module.parse(text)
    for query, options in (("remat.plan", {"budget": 1, "small_bytes": 1}), ("memory.estimate", {"top": 5})):
        print(hashlib.sha256(module.query(query, json.dumps(options)).encode()).hexdigest())
"""


def hashes(**variables):
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)} | variables
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_same_bytes_whatever_the_process():
    first = hashes(PYTHONHASHSEED="0")
    assert len(set(first)) > 20
    flags = f"{os.environ['XLA_FLAGS']} --xla_cpu_multi_thread_eigen=false"
    others = [
        {"PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags},
        # Another layout of the heap: containers of pointers come in another order.
        {"PYTHONHASHSEED": "random", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "4096"},
    ]
    for variables in others:
        assert hashes(**variables) == first, variables
