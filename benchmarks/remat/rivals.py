"""Against `jax.checkpoint` around the layers of programs that are none of the project's workloads (`benchmarks/unseen/annotated.py`):
what farrier computes again within a policy's memory, by rematerialization on the device alone, asked once for the least time and once
for the fewest FLOPs, which is what the table compares.

    python benchmarks/remat/rivals.py --output rivals.jsonl             # goes on where it was interrupted
    python benchmarks/remat/rivals.py --output rivals.jsonl --again     # farrier's rows anew
    python benchmarks/remat/rivals.py --output rivals.jsonl --show      # only the table
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from typing import Any

import farrier
import policies
import workloads
from lines import Lines, main
from programs import laid_out
from steps import Step
from unseen import annotated
from workloads import remat_policies

POLICIES = ("nothing", "dots-no-batch", "dots")


@dataclasses.dataclass(frozen=True)
class Program(Step):
    """A program of `unseen.annotated` by its name, on as many H100s as it is written for."""

    @functools.cached_property
    def target(self) -> farrier.Target:
        """What it is compiled for."""
        return self.built().target

    def built(self, remat: str = "none") -> workloads.Built:
        """The step, its layers under a policy."""
        program = annotated.ALL[self.workload]
        function, arguments, target = laid_out(
            *program(lambda layer, scanned=False: remat_policies.wrap(layer, remat, scanned=scanned))
        )
        return workloads.Built(self.workload, function, arguments, target)


STEPS: dict[str, Step] = {name: Program(name) for name in annotated.ALL}


def run(args: argparse.Namespace, found: Lines) -> None:
    policies.run(args, found, STEPS, lambda case: POLICIES, objectives=("time", "flops"))


def show(rows: list[dict[str, Any]]) -> None:
    print(policies.table(Lines.of(rows, policies.FIELDS), STEPS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--max-compiles", type=int, default=3)
    main(parser, policies.FIELDS, run, show)
