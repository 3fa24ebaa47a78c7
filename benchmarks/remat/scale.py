"""Large models on many devices: farrier's plan against the policies that training frameworks offer.

Published sizes with all their layers (scanned, so that a compile takes seconds), sharded over the devices by automatic
FSDP, compiled by XLA:GPU without a GPU. The rivals are MaxText's `remat_policy` values, in `workloads.remat_policies`:

    full                nothing             nothing is saved
    minimal             dots-no-batch       the results of products with weights are saved
    save_qkv_proj       names-qkv           queries, keys and values are saved
    qkv_proj_offloaded  offload-qkv         they wait in host memory
    minimal_offloaded   offload-dots-no-batch   minimal's wait in host memory

For each case the step is measured as written and under each policy; then farrier is asked for the memory of those
policies that no other beats, from the un-annotated step, once with host memory and once without.

    python benchmarks/remat/scale.py                                # every case
    python benchmarks/remat/scale.py --only llama3-8b --output scale.jsonl   # goes on where it was interrupted
    python benchmarks/remat/scale.py --output scale.jsonl --again   # farrier's rows anew, the others as they are
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

# XLA's one-shot all-reduce ends the process where 64 devices take part and none is attached (jax 0.12.0.1), and the
# option of one compile does not reach it.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_unsupported_use_all_reduce_one_shot_kernel=false"
)

import farrier
from farrier._src import oracle
from lines import Lines, main
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


def run(args: argparse.Namespace, found: Lines) -> None:
    for case in args.only:
        add(case, args.policies, found, again=args.again)


def add(case: str, labels: list[str], found: Lines, *, again: bool) -> None:
    """Adds what is missing of a case: the step as written, under each policy, and farrier's within theirs."""
    name, device, topology, options = CASES[case]
    target = farrier.Target(device, topology=topology)

    def once(step: str, measure) -> dict:
        return found.once({"case": case, "step": step}, measure, again=again and step.startswith("farrier"))

    def measured(step: str, policy: str) -> dict:
        built = workloads.build(name, target, remat=policy, **options)
        try:
            measurement = oracle.measure(built.lower(), target)
        except farrier.CompileError as error:
            return {"case": case, "step": step, "error": str(error).splitlines()[0]}
        return row(case, step, {"total_bytes": measurement.total_bytes, **measurement.to_json()})

    def searched(step: str, budget: int, *, host: bool) -> dict:
        built = workloads.build(name, target, **options)
        optimized = farrier.optimize(
            built.function, memory_budget=budget, target=target, passes=[farrier.Remat(offload=host)]
        )
        try:
            plan = optimized.plan(*built.arguments)
        except farrier.BudgetError as error:
            return {"case": case, "step": step, "budget": budget, "smallest_bytes": error.smallest_bytes}
        return row(
            case,
            step,
            plan.measured["after"],
            budget=budget,
            planned_bytes=plan.measured["planned_bytes"],
            plan_seconds=plan.passes["remat"]["predicted"]["seconds"],
            compiles=1 + len(plan.measured["attempts"]),
            attempts=plan.measured["attempts"],
            estimate=plan.measured["estimate"],
        )

    written = once("as written", lambda: measured("as written", "none"))
    policies = [once(label, lambda label=label: measured(label, POLICIES[label])) for label in labels]
    for rival in unbeaten([one for one in policies if "flops" in one]):
        budget = rival["total_bytes"]
        if budget >= written["total_bytes"]:
            continue
        for end, host in (("", True), (", no host memory", False)):
            step = f"farrier within {rival['step']}'s{end}"
            once(step, lambda s=step, b=budget, h=host: searched(s, b, host=h))


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    main(parser, ("case", "step"), run, lambda rows: Console().print(table(rows)))
