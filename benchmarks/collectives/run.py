"""Exposed communication before and after farrier's schedule, for the workloads of `workloads.COLLECTIVES`.

    python benchmarks/collectives/run.py [WORKLOAD ...] [--target h100] [--out benchmarks/results/collectives]

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
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import workloads
from farrier import Collectives, Target
from farrier._src import interchange
from farrier._src.collectives import drive, parameters, rewrites

# Letters of the published table, and by how much each workload may grow.
SET = {
    "fsdp": ("a", 0.0),
    "fsdp-scan": ("b", 0.10),
    "fsdp-manual": ("cU", 0.0),
    "fsdp-manual-scan": ("cS3", 0.01),
    "tensor-manual": ("d", 0.02),
    "tensor-manual-scan": ("dS", 0.02),
    "data": ("e", 0.0),
    "two-axes": ("f", 0.03),
    "two-axes-scan": ("fS", 0.03),
}
# The same programs with an option of the workload changed.
VARIANTS = {"fsdp-manual-scan-keep": ("cS", 0.01, "fsdp-manual-scan", {"reshard": False})}


def measure(name: str, target_name: str) -> dict:
    """Runs one workload; the result as plain data."""
    if name in VARIANTS:
        letter, growth, workload, options = VARIANTS[name]
    else:
        (letter, growth), workload, options = SET[name], name, {}
    target = Target(target_name, topology=workloads.topology(workload))
    sets = parameters.for_target(target)
    judges = [sets[0].with_two_streams()] if target.device_count > sets[0].domain_devices else []
    start = time.perf_counter()
    lowered = workloads.build(workload, target, **options).lower()  # keeps its partitioning callbacks alive
    module = lowered.compiler_ir("stablehlo")
    forms = functools.partial(
        rewrites.variants,
        interchange.to_core(module),
        rewrites.NAMES,
        numerics="bounded",
        min_bytes=Collectives().split_min_bytes,
        given={},
    )
    found = drive.improve(
        module,
        target,
        judges=judges,
        memory_growth=growth,
        variants=forms,
        compiles=Collectives().max_compiles,
    )
    return {
        "workload": name,
        "letter": letter,
        "target": f"{target.name} {target.topology}",
        "changed": found.changed,
        "reason": found.reason,
        "form": found.variant.name if found.variant else None,
        "prepared": dataclasses.asdict(found.prepared) if found.prepared else None,
        "rejected": dict(found.rejected),
        "memory_allowed": growth,
        "bytes_before": found.before.measurement.total_bytes,
        "bytes_after": found.after.measurement.total_bytes,
        "orders_tried": found.outcome.tried if found.outcome else 0,
        "before": [_figures(s) for s in found.simulated_before],
        "after": [_figures(s) for s in found.simulated_after],
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


def table(results: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = [
        "Simulated, milliseconds a step; kernels by XLA's own estimates, collectives by the parameter set.",
        "",
        "| | workload | target | parameters | bound | step | exposed | exposed, of XLA's | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = [*(v[0] for v in SET.values()), "cS"]
    for r in sorted(results, key=lambda r: (order.index(r["letter"]), r["target"])):
        for b, a in zip(r["before"], r["after"], strict=True):
            share = a["exposed_seconds"] / b["exposed_seconds"] if b["exposed_seconds"] > 1e-6 else 1.0
            change = a["seconds"] / b["seconds"] - 1
            step = f"{b['seconds'] * 1e3:.2f} -> {a['seconds'] * 1e3:.2f} ({change:+.1%})"
            growth = r["bytes_after"] / r["bytes_before"] - 1
            lines.append(
                f"| {r['letter']} | {r['workload']} | {r['target']} | {b['parameters']} "
                f"| {b['bound_seconds'] * 1e3:.2f} "
                f"| {step} "
                f"| {b['exposed_seconds'] * 1e3:.2f} -> {a['exposed_seconds'] * 1e3:.2f} | {share:.0%} "
                f"| {r['bytes_before'] / 1e9:.2f} GB ({growth:+.1%}) |"
            )
    versions = sorted({r["versions"]["jax"] for r in results})
    lines += ["", f"jax {', '.join(versions)}. A row whose step does not change kept XLA's schedule."]
    return "\n".join(lines) + "\n"


def arguments(description: str) -> argparse.Namespace:
    """The command line of this folder's benchmarks: ``names`` of workloads, ``target``, and ``out``, which exists."""
    parser = argparse.ArgumentParser(description=description)
    everything = [*SET, *VARIANTS]
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(everything)}")
    parser.add_argument("--target", default="h100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/collectives"))
    args = parser.parse_args()
    args.names = args.names or everything
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main() -> int:
    """Runs the command line."""
    args = arguments(__doc__.splitlines()[0])
    for name in args.names:
        result = measure(name, args.target)
        path = args.out / f"{args.target}-{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        done = [json.loads(p.read_text("utf-8")) for p in sorted(args.out.glob("*.json"))]
        (args.out / "table.md").write_text(table(done), encoding="utf-8")
        print(name, result["reason"], result["seconds"], "s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
