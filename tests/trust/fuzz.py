"""Random programs through random pipelines, in numbers: ``python -m trust.fuzz --kind stablehlo --programs 5000``.

Kinds: ``stablehlo`` and ``jax`` must keep every bit; ``bounded`` are train steps with parts that kernels and other sums
may replace, and must stay within ``check.Checked.bounds``.

Children do the work, one batch each, so that a compiler that aborts costs one batch and is reported with the
program that it was reading. Hypothesis draws the programs from the batch's seed and shrinks what fails; the
smallest failing module becomes a test in ``tests/lit/trust``. Prints one JSON object of counts.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from trust import flags

TESTS = pathlib.Path(__file__).parents[1]
KINDS = ("stablehlo", "jax", "bounded")
FLAGS = " ".join((flags.DEVICES, *flags.EXACT))


def program(kind: str) -> Callable[[Any], str]:
    """The generator of one kind: a source of random choices in, a module's text out."""
    if kind == "stablehlo":
        from trust.stablehlo_programs import module
    elif kind == "bounded":
        from trust.jax_programs import substitutable as module
    else:
        from trust.jax_programs import module
    return module


def examine(
    kind: str, seed: int, count: int, pipelines: int, note: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Runs ``count`` random programs; returns counts, raises the smallest failure.

    Args:
      note: told of each module's text before anything is done to it.
    """
    import hypothesis
    from hypothesis import strategies

    from trust import check
    from trust import pipelines as passes

    counts: collections.Counter[str] = collections.Counter()
    failure: dict[str, Any] = {}
    make = program(kind)
    numerics = "bounded" if kind == "bounded" else "bitwise"

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategies.randoms(use_true_random=False))
    def property_(random):
        text = make(random)
        note(text)
        checked = check.Checked(text)
        counts["programs"] += 1
        for _ in range(pipelines):
            pipeline = passes.pipeline(random, numerics=numerics)
            try:
                outcome = checked.against(pipeline)
            except check.Broken as error:
                failure.update(text=text, pipeline=pipeline, error=error)
                raise
            counts["pipelines"] += 1
            counts["changed"] += outcome.changed
            counts["bytes"] += len(text)
            # How many pipelines a pass did each of its things in.
            counts.update(outcome.counters.keys())

    try:
        property_()
    except check.Broken:
        path = check.save_regression(failure["text"], failure["pipeline"], failure["error"])
        return {**counts, "failed": str(path.name), "why": str(failure["error"])[:2000]}
    return dict(counts)


def _child(arguments: argparse.Namespace) -> None:
    current = pathlib.Path(arguments.current)
    print(
        json.dumps(
            examine(
                arguments.kind, arguments.seed, arguments.programs, arguments.pipelines, current.write_text
            )
        )
    )


def _batch(arguments: argparse.Namespace, seed: int, count: int) -> dict[str, Any]:
    """One batch in a process of its own: its counts, and what failed under "failure"."""
    python = [str(TESTS), str(TESTS.parent / "python"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,
        "PYTHONPATH": os.pathsep.join(python),
    }
    with tempfile.TemporaryDirectory() as folder:
        current = pathlib.Path(folder) / "current.mlir"
        command = [sys.executable, "-m", "trust.fuzz", "--kind", arguments.kind, "--programs", str(count)]
        command += ["--pipelines", str(arguments.pipelines), "--seed", str(seed), "--current", str(current)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            kept = pathlib.Path.cwd() / f"crash-{arguments.kind}-{seed}.mlir"
            kept.write_text(current.read_text() if current.exists() else "")
            failure = {
                "seed": seed,
                "crash": done.returncode,
                "program": kept.name,
                "said": done.stderr[-1500:],
            }
            return {"failure": failure}
    result = json.loads(done.stdout.splitlines()[-1])
    if "failed" in result:
        result["failure"] = {"seed": seed, "test": result.pop("failed"), "why": result.pop("why")}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="stablehlo")
    parser.add_argument("--programs", type=int, default=5000)
    parser.add_argument("--pipelines", type=int, default=2, help="pipelines per program")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch; each batch takes the next")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument(
        "-o", dest="output", type=pathlib.Path, help="one line a batch; those in it are not run again"
    )
    parser.add_argument("--current", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.current:
        _child(arguments)
        return 0
    output = arguments.output
    lines = (
        [json.loads(line) for line in output.read_text().splitlines()] if output and output.exists() else []
    )
    done = {line["batch seed"]: line for line in lines}
    start = time.monotonic()
    for number in range(-(-arguments.programs // arguments.batch)):
        seed = arguments.seed + number
        if seed in done:
            continue
        count = min(arguments.batch, arguments.programs - number * arguments.batch)
        done[seed] = {"batch seed": seed, **_batch(arguments, seed, count)}
        if output:
            with output.open("a") as file:
                file.write(json.dumps(done[seed]) + "\n")
        print(
            f"batch {seed}: {done[seed].get('programs')}, {done[seed].get('failure')}",
            file=sys.stderr,
            flush=True,
        )
    total: collections.Counter[str] = collections.Counter()
    for result in done.values():
        total.update({k: v for k, v in result.items() if k not in ("batch seed", "failure")})
    failures = [result["failure"] for result in done.values() if "failure" in result]
    report = {"kind": arguments.kind, "first_seed": arguments.seed, "batch": arguments.batch, **total}
    report |= {"seconds": round(time.monotonic() - start), "failures": failures}
    print(json.dumps(report, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
