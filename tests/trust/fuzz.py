"""Random programs through random pipelines, in numbers: ``python -m trust.fuzz --kind stablehlo --programs 5000``.

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
KINDS = ("stablehlo", "jax")
FLAGS = " ".join((flags.DEVICES, *flags.EXACT))


def program(kind: str) -> Callable[[Any], str]:
    """The generator of one kind: a source of random choices in, a module's text out."""
    if kind == "stablehlo":
        from trust.stablehlo_programs import module
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
            pipeline = passes.pipeline(random)
            try:
                outcome = checked.against(pipeline)
            except check.Broken as error:
                failure.update(text=text, pipeline=pipeline, error=error)
                raise
            counts["pipelines"] += 1
            counts["changed"] += outcome.changed
            counts["bytes"] += len(text)

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="stablehlo")
    parser.add_argument("--programs", type=int, default=5000)
    parser.add_argument("--pipelines", type=int, default=2, help="pipelines per program")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch; each batch takes the next")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--current", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.current:
        _child(arguments)
        return 0
    total: collections.Counter[str] = collections.Counter()
    failures = []
    start = time.monotonic()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "PYTHONPATH": str(TESTS)}
    with tempfile.TemporaryDirectory() as folder:
        current = pathlib.Path(folder) / "current.mlir"
        for number in range(-(-arguments.programs // arguments.batch)):
            seed = arguments.seed + number
            count = min(arguments.batch, arguments.programs - number * arguments.batch)
            command = [sys.executable, "-m", "trust.fuzz", "--kind", arguments.kind, "--programs", str(count)]
            command += [
                "--pipelines",
                str(arguments.pipelines),
                "--seed",
                str(seed),
                "--current",
                str(current),
            ]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                kept = pathlib.Path.cwd() / f"crash-{arguments.kind}-{seed}.mlir"
                kept.write_text(current.read_text() if current.exists() else "")
                failures.append({"seed": seed, "crash": done.returncode, "program": kept.name})
                failures[-1]["said"] = done.stderr[-1500:]
            else:
                result = json.loads(done.stdout.splitlines()[-1])
                if "failed" in result:
                    failures.append({"seed": seed, "test": result.pop("failed"), "why": result.pop("why")})
                total.update(result)
            print(f"batch {seed}: {dict(total)}, {len(failures)} failures", file=sys.stderr, flush=True)
    report = {"kind": arguments.kind, "first_seed": arguments.seed, "batch": arguments.batch, **total}
    report |= {"seconds": round(time.monotonic() - start), "failures": failures}
    print(json.dumps(report, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
