"""The whole job on tiny shapes: a decoder's train step under a budget that forces recomputation, several steps on
CPU, and the plan of one process applied in another one."""

import json
import os
import pathlib
import subprocess
import sys

import farrier
from workloads import registry

HERE = pathlib.Path(__file__).parent


def build():
    """The walking skeleton's step, with JAX's own attention so that it runs on CPU, and long enough for activations
    to outweigh the state."""
    return registry.build("llm-tiny", attention="xla", layers=4, length=128)


def tight_budget(built, arguments):
    """Bytes: what the step needs as it was written, less two fifths of its temporaries."""
    memory = built.function.lower(*arguments).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return total + memory.temp_size_in_bytes * 3 // 5


def optimized(built, budget, **options):
    # At these shapes every value is smaller than what is kept by default.
    return farrier.optimize(
        built.function,
        memory_budget=budget,
        passes=[farrier.Remat(small_bytes=0)],
        max_compiles=4,
        strict=True,
        **options,
    )


def test_five_training_steps_are_bitwise_equal(tmp_path):
    answer = asked([HERE / "train_in_a_process.py"], cache=tmp_path / "cache")
    assert answer["source"] == "search" and answer["changed"] and "remat" in answer["passes"]
    before, after = answer["bytes"]
    assert after < before
    assert not answer["differences"], answer["differences"]
    # What is computed again is still there after XLA's own optimizations.
    assert answer["added"].get("dot", 0) + answer["added"].get("exponential", 0) > 0, answer["added"]


def in_a_process(path, *words, cache):
    """What ``plan_in_a_process.py`` answers."""
    return asked([HERE / "plan_in_a_process.py", path, *words], cache=cache)


def asked(command, *, cache):
    """The last line that a Python process prints, which is JSON."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={
            **os.environ,
            "FARRIER_CACHE_DIR": str(cache),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_plan_of_one_process_in_another(tmp_path):
    built = build()
    budget = tight_budget(built, built.real_arguments())
    path = tmp_path / "step.plan.json"
    first = in_a_process(path, "save", budget, cache=tmp_path / "first")
    second = in_a_process(path, "apply", budget, cache=tmp_path / "second")
    assert (first["searches"], first["source"]) == (1, "search")
    assert (second["searches"], second["source"]) == (0, "plan")
    assert first["passes"] == second["passes"] == ["remat"]
    assert second["module"] == first["module"]
    assert second["loss"] == first["loss"]
