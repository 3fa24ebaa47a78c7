"""What planning costs: processor time and memory of one plan, for loops and for long straight lines.

Each program is planned within 75 and 50 % of the temporaries that it is estimated to need as written, with and without
host memory, in a process of its own. No compile: that is XLA's time.

    python benchmarks/remat/planning.py --output benchmarks/results/remat/planning.jsonl --again
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import resource

from lines import Lines, main
from steps import Step

CASES = {
    "llm-1b-scan": Step("llm-1b-scan", options={"layers": 32}),
    "translator": Step("translator"),
    "lstm": Step("lstm"),
    "llm-1b, 32 layers": Step("llm-1b", options={"layers": 32}),
    "llm-1b, 126 layers": Step("llm-1b", options={"layers": 126}),
}
SHARES = (0.75, 0.5)
FIELDS = ("case", "share", "host")


def planned(step: Step, share: float, host: bool) -> dict:
    """Processor seconds of planning, and the process's resident bytes at the most; the program's operations."""
    import workloads
    from farrier import _core
    from farrier._src.drivers import remat

    module = workloads.build(step.workload, step.target, **step.options).lower().compiler_ir("stablehlo")
    text = module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
    program = _core.Module.parse(text)
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    need = json.loads(program.query("memory.estimate"))["temp"]
    request = {"budget": int(share * need), "offload": host, "machine": remat.machine(step.target)}
    before = resource.getrusage(resource.RUSAGE_SELF)
    plan = json.loads(program.query("remat.plan", json.dumps(request)))["predicted"]
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "operations": text.count(" = "),
        "fits": plan["fits"],
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "program_bytes": before_bytes,
        "resident_bytes": after.ru_maxrss * 1024,
    }


def run(args: argparse.Namespace, found: Lines) -> None:
    for name in args.only:
        for host in (False, True):
            for share in SHARES:

                def measure(step=CASES[name], share=share, host=host):
                    spawn = multiprocessing.get_context("spawn")
                    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                        return pool.submit(planned, step, share, host).result()

                found.once({"case": name, "share": share, "host": host}, measure, again=args.again)


def table(rows: list[dict]) -> str:
    """The rows as Markdown: seconds at each share, and the most memory of all."""
    shares = " | ".join(f"{share:.0%}".replace("%", " %") for share in SHARES)
    out = [f"| program | operations | host memory | {shares} | process |", "|---" * (4 + len(SHARES)) + "|"]
    for name in CASES:
        for host in (False, True):
            mine = {row["share"]: row for row in rows if row["case"] == name and row["host"] == host}
            if mine:
                any_row = next(iter(mine.values()))
                seconds = [
                    f"{mine[s]['processor_seconds']:.1f} s" + ("" if mine[s]["fits"] else " (out of reach)")
                    if s in mine
                    else ""
                    for s in SHARES
                ]
                most = max(row["resident_bytes"] for row in mine.values())
                cells = [name, f"{any_row['operations']:,}", "allowed" if host else "forbidden", *seconds]
                out.append("| " + " | ".join([*cells, f"{most / 1e9:.2f} GB"]) + " |")
    return "\n".join(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    main(parser, FIELDS, run, lambda rows: print(table(rows)))
