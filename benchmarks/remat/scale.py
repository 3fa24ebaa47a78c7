"""Large models on many devices: farrier's plan against the policies that training frameworks offer.

Published sizes with all their layers (scanned, so that a compile takes seconds), sharded over the devices by automatic
FSDP, compiled by XLA:GPU without a GPU. The rivals are MaxText's `remat_policy` values, in `workloads.remat_policies`:

    full                nothing             nothing is saved
    minimal             dots-no-batch       the results of products with weights are saved
    save_qkv_proj       names-qkv           queries, keys and values are saved
    qkv_proj_offloaded  offload-qkv         they wait in host memory
    minimal_offloaded   offload-dots-no-batch   minimal's wait in host memory

For each case the step is measured as written and under each policy; then farrier is asked for the memory of those
policies that no other beats, from the un-annotated step.

    python benchmarks/remat/scale.py                                # every case
    python benchmarks/remat/scale.py --only llama3-8b --output scale.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator

# XLA's one-shot all-reduce ends the process where 64 devices take part and none is attached (jax 0.12.0.1), and the
# option of one compile does not reach it.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_unsupported_use_all_reduce_one_shot_kernel=false"
)

import farrier
import jax
from farrier._src import oracle
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import workloads

# case: (workload, target, topology, options, passes)
CASES = {
    "llama3-8b": ("llama3-8b-scan", "h100", "1x8x8", {"batch": 64}),
    "llama3-70b": ("llama3-70b-scan", "h100", "1x8x8", {"batch": 64}),
    "moe-8x7b": ("moe-8x7b-scan", "h100", "1x8x8", {"batch": 64}),
    "llama3-8b-gb200": ("llama3-8b-scan", "gb200", "1x1x4", {"batch": 16}),
}
POLICIES = {
    "full": "nothing",
    "minimal": "dots-no-batch",
    "save_qkv_proj": "names-qkv",
    "qkv_proj_offloaded": "offload-qkv",
    "minimal_offloaded": "offload-dots-no-batch",
}


def row(case: str, name: str, measurement, **more) -> dict:
    """One line of the results; sizes in bytes per device."""
    return {
        "case": case,
        "step": name,
        "total_bytes": measurement["total_bytes"],
        "temp_bytes": measurement["temp_bytes"],
        "host_bytes": measurement["host_temp_bytes"],
        "flops": measurement["flops"],
        **more,
    }


def unbeaten(found: list[dict]) -> list[dict]:
    """The policies that no other beats in both memory and FLOPs, without those that use the host."""
    return [
        one
        for one in found
        if not one["host_bytes"]
        and not any(
            other["total_bytes"] < one["total_bytes"] and other["flops"] <= one["flops"] for other in found
        )
    ]


def rows(case: str, labels: list[str]) -> Iterator[dict]:
    name, device, topology, options = CASES[case]
    target = farrier.Target(device, topology=topology)

    def measured(policy: str) -> dict:
        built = workloads.build(name, target, remat=policy, **options)
        measurement = oracle.measure(built.lower(), target)
        return {"total_bytes": measurement.total_bytes, **measurement.to_json()}

    written = row(case, "as written", measured("none"))
    yield written
    policies = []
    for label in labels:
        try:
            policies.append(row(case, label, measured(POLICIES[label])))
        except farrier.CompileError as error:
            yield {"case": case, "step": label, "error": str(error).splitlines()[0]}
            continue
        yield policies[-1]
    built = workloads.build(name, target, **options)
    for rival in unbeaten(policies):
        budget = rival["total_bytes"]
        label = f"farrier within {rival['step']}'s"
        if budget >= written["total_bytes"]:
            continue
        step = farrier.optimize(built.function, memory_budget=budget, target=target, passes=["remat"])
        try:
            plan = step.plan(*built.arguments)
        except farrier.BudgetError as error:
            yield {"case": case, "step": label, "budget": budget, "smallest_bytes": error.smallest_bytes}
            continue
        predicted = plan.passes["remat"]["predicted"]
        yield row(
            case,
            label,
            plan.measured["after"],
            budget=budget,
            planned_bytes=plan.measured["planned_bytes"],
            plan_seconds=predicted["seconds"],
            compiles=1 + len(plan.measured["attempts"]),
            estimate=plan.measured["estimate"],
        )


def table(found: list[dict]) -> Table:
    out = Table("case", "step", "total GB", "host GB", "FLOPs", "planned GB", "compiles", title="per device")
    written = {one["case"]: one["flops"] for one in found if one["step"] == "as written"}
    for one in found:
        if "flops" not in one:
            why = one.get("error") or f"not kept: {one['smallest_bytes'] / 1e9:.2f}"
            out.add_row(one["case"], one["step"], why)
            continue
        out.add_row(
            one["case"],
            one["step"],
            f"{one['total_bytes'] / 1e9:.2f}",
            f"{one['host_bytes'] / 1e9:.2f}",
            f"{100 * (one['flops'] / written[one['case']] - 1):+.1f} %",
            f"{one['planned_bytes'] / 1e9:.2f}" if "planned_bytes" in one else "",
            str(one.get("compiles", "")),
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines, appended as they come")
    parser.add_argument("--show", type=pathlib.Path, help="only print the table of such a file")
    args = parser.parse_args()
    console = Console()
    if args.show:
        console.print(table([json.loads(line) for line in args.show.read_text().splitlines()]))
        return
    warnings.simplefilter("ignore", farrier.OptimizeWarning)
    found = []
    for case in args.only:
        for one in rows(case, args.policies):
            found.append(one)
            console.print_json(json.dumps(one), indent=None)
            if args.output:
                with args.output.open("a") as file:
                    file.write(json.dumps(one) + "\n")
        jax.clear_caches()
    console.print(table(found))


if __name__ == "__main__":
    main()
