"""Against every `jax.checkpoint` policy: what farrier recomputes within the policy's memory.

Of each step all policies are measured; farrier is asked for the total memory of each that no other policy beats in both
memory and FLOPs. Any other policy has the memory of one of those, or more, and no fewer FLOPs. Policies that use host
memory are a frontier of their own, rivals of the searches that may use it; those searches count FLOPs before time, because
a policy's transfers cost no FLOPs however long they take. So do those against a policy that has no more FLOPs than the
step as it is written: it keeps what takes longer to write and read than to compute again. A policy is beaten with a point of the step's
FLOPs less within its memory, or with 3 % less memory at its FLOPs by any of farrier's plans; farrier is asked for
that, too, where the policy computes nothing again.

    python benchmarks/remat/policies.py --output policies.jsonl             # goes on where it was interrupted
    python benchmarks/remat/policies.py --output policies.jsonl --again     # farrier's rows anew
    python benchmarks/remat/policies.py --output policies.jsonl --show      # only the table
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lines import Lines, main
from steps import Step
from workloads import remat_policies

# Few layers of full width, so that a compile takes seconds.
STEPS = {
    "naive, unrolled": Step("llm-1b-naive", options={"layers": 2}),
    "naive, scan": Step("llm-1b-scan", options={"layers": 4, "attention": "naive"}),
    "chunked, unrolled": Step("llm-1b-chunked", options={"layers": 2}),
    "chunked, scan": Step("llm-1b-scan", options={"layers": 4, "attention": "chunked"}),
    "FSDP on 8, unrolled": Step("fsdp", "1x1x8", {"layers": 4}),
    "FSDP on 8, scan": Step("fsdp-scan", "1x1x8", {"layers": 4}),
}
FIELDS = ("case", "step", "policy")
POINT = 0.01
SAME = 5e-4  # of the FLOPs: what no table shows
LESS_MEMORY = 0.97


def policies(case: str) -> list[str]:
    """Those that make a difference: attention that is written out has no residuals of its own to name."""
    names = [n for n in remat_policies.names() if n not in ("none", "everything", "names-qkv", "offload-qkv")]
    if case.startswith("FSDP"):
        return names
    return [n for n in names if not remat_policies.names_flash_residuals(n)]


def frontier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other one beats in total memory and FLOPs, largest first; of equals the first."""
    best: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["total_bytes"], r["flops"])):
        if not best or row["flops"] < best[-1]["flops"]:
            best.append(row)
    return best[::-1]


def rivals(found: Lines, case: str, *, host: bool) -> list[dict[str, Any]]:
    """The frontier of the measured policies that use host memory, or of those that do not."""
    mine = [r for r in found.rows() if r["case"] == case and r["step"] not in ("none", "farrier")]
    return frontier([r for r in mine if bool(r["host_bytes"]) == host])


def run(
    args: argparse.Namespace,
    found: Lines,
    steps: Mapping[str, Step] = STEPS,
    named: Callable[[str], Iterable[str]] = policies,
    objectives: Sequence[str] = (),
) -> None:
    """Measures what is missing of the cases `args.only` of `steps`, under the policies `named` for each.

    Args:
      objectives: what searches are made by, of which the one of the fewest FLOPs counts; without any FLOPs where a policy has no
        more than the step as written or sends values to the host, else time, and FLOPs where that loses.
    """
    for case in args.only:
        step = steps[case]
        for name in ("none", *named(case)):
            found.once({"case": case, "step": name, "policy": None}, lambda s=step, n=name: s.written(n))
        none = found.get({"case": case, "step": "none", "policy": None})["flops"]
        for host in (False, True):
            for rival in rivals(found, case, host=host):
                by = objectives or (("flops",) if host or rival["flops"] <= none else ("time",))
                ask = functools.partial(searched, args, found, step, case, host=host, objectives=by)
                plan = ask(rival["step"], rival["total_bytes"])
                # The table compares FLOPs, of which a plan of less time can have more.
                if (
                    by == ("time",)
                    and verdict(rival, plan, [plan], none) == "**wins**"
                    and "objective" not in plan
                ):
                    ask = functools.partial(ask, objectives=("time", "flops"), again=True)
                    plan = ask(rival["step"], rival["total_bytes"])
                # Who computes nothing again can only be beaten in memory.
                if rival["flops"] <= (1 + POINT) * none and "beaten" not in verdict(
                    rival, plan, [plan], none
                ):
                    ask(f"{rival['step']}, less memory", int(LESS_MEMORY * rival["total_bytes"]))


def searched(
    args: argparse.Namespace,
    found: Lines,
    step: Step,
    case: str,
    name: str,
    budget: int,
    *,
    host: bool,
    objectives: Sequence[str],
    again: bool = False,
) -> dict[str, Any]:
    """farrier's row of that name for the step of a case, searched within `budget` bytes in total if it is not there, or `again`."""
    return found.once(
        {"case": case, "step": "farrier", "policy": name, "budget_bytes": budget},
        lambda: fewest(
            {
                by: step.searched(budget, host=host, compiles=args.max_compiles, objective=by)
                for by in objectives
            }
        ),
        again=again or args.again,
    )


def fewest(rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Of searches by objectives the one of the fewest FLOPs, or that measured the least where all refuse. Its compiles are those of
    all: the step as it is written is compiled once.
    """
    by, best = min(
        rows.items(), key=lambda item: (item[1].get("flops", float("inf")), item[1].get("smallest_bytes", 0))
    )
    if len(rows) == 1 or "compiles" not in best:
        return best
    return best | {
        "objective": by,
        "compiles": 1 + sum(row["compiles"] - 1 for row in rows.values() if "compiles" in row),
    }


def verdict(rival: dict[str, Any], plan: dict[str, Any], plans: list[dict[str, Any]], none: float) -> str:
    """How the policy compares with the plan within its memory, and with all of farrier's plans of the step."""
    if "flops" in plan and plan["flops"] <= rival["flops"] - POINT * none:
        return "beaten"
    less = [
        p
        for p in plans
        if p["flops"] <= (1 + SAME) * rival["flops"]
        and p["total_bytes"] <= LESS_MEMORY * rival["total_bytes"]
    ]
    if less:
        return "beaten in memory"
    if "flops" not in plan or plan["flops"] > (1 + SAME) * rival["flops"]:
        return "**wins**"
    return "tie"


def table(found: Lines, steps: Iterable[str] = tuple(STEPS)) -> str:
    """The rows of these steps as Markdown: totals in GB, FLOPs above those of the step as written."""
    out = [
        "| step | policy | total | FLOPs | farrier within it | FLOPs | in host memory | compiles | the policy is |"
    ]
    out.append("|---|---|---|---|---|---|---|---|---|")
    for case in steps:
        mine = [r for r in found.rows() if r["case"] == case]
        none = next((r["flops"] for r in mine if r["step"] == "none"), None)
        if none is None:
            continue
        for host in (False, True):
            plans = [
                r for r in mine if r["step"] == "farrier" and "flops" in r and (host or not r["host_bytes"])
            ]
            for rival in rivals(found, case, host=host):
                plan = found.get({"case": case, "step": "farrier", "policy": rival["step"]})
                if plan is None:
                    continue

                def above(row: dict[str, Any], none=none) -> str:
                    return f"{100 * (row['flops'] / none - 1):+.1f} %"

                cells = [case, f"`{rival['step']}`", f"{rival['total_bytes'] / 1e9:.2f} GB", above(rival)]
                if "flops" in plan:
                    held = f"{plan['host_bytes'] / 1e9:.2f} GB" if plan["host_bytes"] else "0"
                    cells += [f"{plan['total_bytes'] / 1e9:.2f} GB", above(plan), held, str(plan["compiles"])]
                else:
                    cells += [f"refused: {plan['smallest_bytes'] / 1e9:.2f} GB", "", "", ""]
                out.append("| " + " | ".join([*cells, verdict(rival, plan, plans, none)]) + " |")
    return "\n".join(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--max-compiles", type=int, default=3)
    main(parser, FIELDS, run, lambda rows: print(table(Lines.of(rows, FIELDS))))
