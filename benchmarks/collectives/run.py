"""Exposed communication before and after farrier's schedule, for the workloads of `workloads.COLLECTIVES`.

    python benchmarks/collectives/run.py [WORKLOAD ...] [--target h100] [--out benchmarks/results/collectives]
    python benchmarks/collectives/run.py --target gb200 --topology 1x18x4      # an NVL72; 8x18x4: eight of them

Each workload is compiled by the real XLA:GPU, as it is, with our order, and in every form that `optimize` would
try; nothing is executed, and the step is simulated under
the target's two parameter sets and, for programs on more than one host, under the first one with two
communication streams. One JSON file a workload, and `table.md` over all of them. Figures are simulated:
see docs/collectives.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import workloads
from farrier import Collectives, Target
from farrier._src import errors, interchange, oracle
from farrier._src.collectives import drive, parameters, rewrites


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table."""

    letter: str
    """As the published table names it, or a short name."""
    growth: float
    """By how much its memory may grow."""
    workload: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rack: str | None = None
    """The size of the model that 72 devices divide; None: the workload does not go there."""

    def target(self, name: str, topology: str | None = None) -> Target:
        """The GPU `name` in the topology that the workload is meant for, or in another one."""
        return Target(name, topology=topology or workloads.topology(self.workload))

    def lowered(self, target: Target, **more: Any) -> Any:
        """The workload's `jax.stages.Lowered` for a target: on racks of 72, in a size that they divide."""
        options = dict(self.options) | more
        if target.device_count % RACK == 0:
            options["size"] = self.rack
            tensor = workloads.options(self.workload).get("tensor", 1)
            # One sequence a device, two for a group of tensor parallelism; a ring has one in all.
            options["batch"] = target.device_count // tensor * (2 if tensor > 1 else 1)
            if self.workload.startswith("ring"):
                options |= {"batch": 1, "length": 1024 * target.device_count}
        return workloads.build(self.workload, target, **options).lower()


# Devices of a GB200 NVL72.
RACK = 72


CASES = {
    "fsdp": Case("a", 0.0, "fsdp"),
    "fsdp-scan": Case("b", 0.10, "fsdp-scan", rack="1b-72"),
    "fsdp-manual": Case("cU", 0.0, "fsdp-manual"),
    "fsdp-manual-scan-keep": Case("cS", 0.01, "fsdp-manual-scan", {"reshard": False}, rack="1b-72"),
    "fsdp-manual-scan": Case("cS3", 0.01, "fsdp-manual-scan", rack="1b-72"),
    "tensor-manual": Case("d", 0.02, "tensor-manual"),
    "tensor-manual-scan": Case("dS", 0.02, "tensor-manual-scan"),
    "data": Case("e", 0.0, "data"),
    "two-axes": Case("f", 0.03, "two-axes"),
    "two-axes-scan": Case("fS", 0.03, "two-axes-scan", rack="wide-72"),
    "experts": Case("x", 0.02, "experts"),
    "experts-scan": Case("xS", 0.02, "experts-scan", rack="moe-72"),
    "pipeline": Case("p", 0.02, "pipeline"),
    "ring": Case("r", 0.02, "ring", rack="1b-72"),
    "ring-unrolled": Case("rU", 0.02, "ring-unrolled"),
}


# Without a GPU XLA compiles candidates for every kernel and can measure none: two thirds of a compile's time. Programs,
# memory and simulated steps are the same without.
UNTUNED = {"xla_gpu_experimental_enable_fusion_autotuner": False}


def tuned_if_needed[T](compile: Callable[[Mapping[str, Any]], T], options: Mapping[str, Any]) -> T:
    """`compile(options)`; where XLA refuses, once more with the autotuner, without which some products have no kernel
    (seen: those of experts).
    """
    try:
        return compile(options)
    except errors.CompileError:
        return compile({k: v for k, v in options.items() if k not in UNTUNED})


class Workload:
    """A workload lowered for a target; its programs are compiled once each, whoever asks."""

    def __init__(
        self,
        name: str,
        target_name: str,
        topology: str | None = None,
        kernels: str | None = None,
        **options: Any,
    ):
        """`kernels` is a file from which XLA takes kernels that it compiled before; programs and their memory stay the
        same. `options` replace the workload's own.
        """
        self.name, self.case = name, CASES[name]
        self.target = self.case.target(target_name, topology)
        self.sets = parameters.for_target(self.target)
        self._lowered = self.case.lowered(self.target, **options)  # keeps its partitioning callbacks alive
        self.module = self._lowered.compiler_ir("stablehlo")
        self.shared = UNTUNED | (drive.kernels_from(kernels) if kernels else {})
        self.compiles = 0
        self._known: dict[str, oracle.Compiled] = {}

    def compile(self, module: Any, options: Mapping[str, Any]) -> oracle.Compiled:
        """A program for the workload's target."""
        options = {**self.shared, **options}
        text = module.operation.get_asm(binary=True) + json.dumps(options, sort_keys=True).encode()
        key = hashlib.sha256(text).hexdigest()
        # A schedule is made in the compile: it must happen, and its result is of one plan.
        hooked = "__farrier_" in str(module.operation.attributes["sym_name"])
        if hooked or key not in self._known:
            self.compiles += 1
            compiled = tuned_if_needed(
                lambda given: oracle.compile_module(module, self.target, compiler_options=given), options
            )
            if hooked:
                return compiled
            self._known[key] = compiled
        return self._known[key]

    def improve(self, **limits: Any) -> drive.Improved:
        """What `optimize` makes of it, with other limits, parameter sets or judges for `drive.improve`."""
        forms = functools.partial(
            rewrites.variants,
            interchange.to_core(self.module),
            rewrites.NAMES,
            numerics="bounded",
            min_bytes=Collectives().split_min_bytes,
            given={},
        )
        usual = {
            "memory_growth": self.case.growth,
            "compiles": Collectives().max_compiles,
            "variants": forms,
            "compile": self.compile,
        }
        return drive.improve(self.module, self.target, **usual | limits)


def measure(workload: Workload) -> dict:
    """Runs one workload; the result as plain data."""
    case, target, sets = workload.case, workload.target, workload.sets
    judges = [sets[0].with_two_streams()] if target.device_count > sets[0].domain_devices else []
    start = time.perf_counter()
    found = workload.improve(judges=judges)
    alone = found
    if found.variant is not None or found.prepared is not None:
        alone = workload.improve(judges=judges, variants=(), pipeline=False)
    return {
        "workload": workload.name,
        "letter": case.letter,
        "target": f"{target.name} {target.topology}",
        "changed": found.changed,
        "reason": found.reason,
        "form": found.variant.name if found.variant else None,
        "prepared": dataclasses.asdict(found.prepared) if found.prepared else None,
        "rejected": dict(found.rejected),
        "memory_allowed": case.growth,
        "bytes_before": found.before.measurement.total_bytes,
        "bytes_after": found.after.measurement.total_bytes,
        "orders_tried": found.outcome.tried if found.outcome else 0,
        "before": [_figures(s) for s in found.simulated_before],
        "after": [_figures(s) for s in found.simulated_after],
        "order_alone": {
            "bytes": alone.after.measurement.total_bytes,
            "simulated": [_figures(s) for s in alone.simulated_after],
        },
        "still_exposed": [_wait(w) for w in found.simulated_after[0].waits[:5] if w.exposed_seconds > 0],
        "versions": {"jax": jax.__version__, "plan": found.plan.fingerprint if found.plan else None},
        "seconds": round(time.perf_counter() - start, 1),
    }


def _figures(s) -> dict:
    keys = ("seconds", "exposed_seconds", "compute_seconds", "comm_seconds", "bound_seconds")
    return {
        "parameters": s.parameters,
        **{k: round(getattr(s, k), 9) for k in keys},
        "collectives": s.collectives,
    }


def _wait(w) -> dict:
    return {
        "name": w.name, "kind": w.kind, "bytes": w.bytes, "runs": w.runs,
        "source": pathlib.Path(w.source).name,
        "exposed_seconds": round(w.exposed_seconds, 9),
        "hideable_seconds": round(w.hideable_seconds, 9),
    }  # fmt: skip


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""

    def line(cells: Sequence[str]) -> str:
        return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


def ms(seconds: float) -> str:
    """Milliseconds, as tables have them."""
    return f"{seconds * 1e3:.2f}"


def _share(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Exposed communication as a part of XLA's."""
    exposed = before["exposed_seconds"]
    return f"{after['exposed_seconds'] / exposed if exposed > 1e-6 else 1.0:.0%}"


def table(results: list[dict]) -> str:
    """The results as a Markdown table."""
    rows = []
    order = list(CASES)
    for r in sorted(results, key=lambda r: (order.index(r["workload"]), r["target"])):
        for b, a in zip(r["before"], r["after"], strict=True):
            change = a["seconds"] / b["seconds"] - 1
            growth = r["bytes_after"] / r["bytes_before"] - 1
            alone = next(
                (
                    o
                    for o in r.get("order_alone", {}).get("simulated", ())
                    if o["parameters"] == b["parameters"]
                ),
                a,
            )
            rows.append(
                (
                    r["letter"],
                    r["workload"],
                    r["target"],
                    b["parameters"],
                    ms(b["bound_seconds"]),
                    f"{ms(b['seconds'])} -> {ms(a['seconds'])} ({change:+.1%})",
                    f"{ms(b['exposed_seconds'])} -> {ms(a['exposed_seconds'])}",
                    _share(b, a),
                    f"{r['bytes_before'] / 1e9:.2f} GB ({growth:+.1%})",
                    r.get("form") or ("moved" if r.get("prepared") else ""),
                    "" if alone == a else f"{_share(b, alone)}, {alone['seconds'] / b['seconds'] - 1:+.1%}",
                )
            )
    versions = sorted({r["versions"]["jax"] for r in results})
    head = (
        "",
        "workload",
        "target",
        "parameters",
        "bound",
        "step",
        "exposed",
        "exposed, of XLA's",
        "memory",
        "form",
        "by the order alone",
    )
    lines = [
        "Simulated, milliseconds a step; kernels by XLA's own estimates, collectives by the parameter set.",
        "",
        *markdown(head, rows),
        "",
        f"jax {', '.join(versions)}. A row whose step does not change kept XLA's schedule. Form: of a program that",
        "states its collectives; moved: buckets, and collectives across the iterations of loops. By the order alone: exposed, of",
        "XLA's, and step, where more than the order was changed.",
    ]
    return "\n".join(lines) + "\n"


def arguments(
    description: str, *, child: bool = False, topology: bool = False, default: Sequence[str] = tuple(CASES)
) -> argparse.Namespace:
    """The command line of this folder's benchmarks: ``names`` of workloads, ``target``, and ``out``, which exists.

    `default` are the names where none are given; with `topology` also another one than the workloads are meant for; with
    `child` also the option by which a benchmark calls itself: the path of a file for the child to read.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(CASES)}")
    parser.add_argument("--target", default="h100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/collectives"))
    if topology:
        parser.add_argument("--topology", help="of racks of 72: 1x18x4, 8x18x4")
    if child:
        parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.names = args.names or list(default)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> int:
    """Runs the command line."""
    args = arguments(__doc__.splitlines()[0], topology=True)
    where = args.target if args.topology is None else f"{args.target}-{args.topology}"
    folder = tempfile.TemporaryDirectory()
    for name in args.names:
        if args.topology is not None and CASES[name].rack is None:
            continue
        result = measure(Workload(name, args.target, args.topology, os.path.join(folder.name, "kernels")))
        path = args.out / f"{where}-{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        for kind, file in (("h100", "table.md"), ("gb200", "gb200.md")):
            paths = [p for p in sorted(args.out.glob(f"{kind}-*.json")) if p.stem.endswith(tuple(CASES))]
            done = [json.loads(p.read_text("utf-8")) for p in paths]
            if done:
                (args.out / file).write_text(table(done), encoding="utf-8")
        print(name, result["reason"], result["seconds"], "s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
