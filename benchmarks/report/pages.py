"""Reports of the benchmark workloads: compiles each without a GPU, writes its page, prints its figures.

python benchmarks/report/pages.py OUT [WORKLOAD[@TOPOLOGY] ...]

With --optimize BUDGET the step is brought under that budget, and its page has the step as it was written beside it.
"""

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import farrier
from farrier._src import report
from farrier._src.targets import Target
from workloads import registry

DEFAULT = ("llm-1b@1x1x1", "llama3-8b-scan@1x1x8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path, help="folder for the pages")
    parser.add_argument("workload", nargs="*", default=DEFAULT)
    parser.add_argument("--target", default="h100")
    parser.add_argument("--optimize", metavar="BUDGET", help='memory budget, like "14.8GB"')
    parser.add_argument("--passes", nargs="*", default=["remat"], help="of --optimize")
    parser.add_argument(
        "--form", action="append", default=[], help="further suffixes, like .json.gz or .pftrace"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.workload:
        name, _, topology = name.partition("@")
        target = Target(args.target, topology=topology or registry.topology(name))
        built = registry.build(name, target)
        start = time.perf_counter()
        title = f"{name} on {target.device_count} {target.name}"
        if args.optimize:
            step = farrier.optimize(
                built.function, target=target, memory_budget=args.optimize, passes=args.passes
            )
            explanation = step.explain(*built.arguments)
            plan_seconds = time.perf_counter() - start
            start = time.perf_counter()
            made = explanation.report(title=title)
        else:
            plan_seconds = None
            made = report.explain(built.lower(), target=target, budget_bytes=target.usable_bytes, title=title)
        report_seconds = time.perf_counter() - start
        start = time.perf_counter()
        pages = [made.save(args.out / f"{name}{suffix}") for suffix in (".html", *args.form)]
        figures, planned = made.data["memory"]["figures"], made.data["memory"]["estimate"]
        print(
            json.dumps(
                {
                    "workload": name,
                    "devices": target.device_count,
                    "positions": len(made.data["program"]["names"]),
                    "peak_bytes": made.peak_bytes,
                    "xla_peak_bytes": figures["peak"],
                    "estimated_peak_bytes": planned["peak"] if planned else None,
                    "before_peak_bytes": made.before.peak_bytes if made.before else None,
                    "remarks": len(made.remarks),
                    "total_bytes": made.total_bytes,
                    "step_ns": made.step_ns,
                    "exposed_ns": made.exposed_ns,
                    "plan_seconds": round(plan_seconds, 1) if plan_seconds else None,
                    "compile_and_report_seconds": round(report_seconds, 1),
                    "write_seconds": round(time.perf_counter() - start, 2),
                    "page_bytes": pages[0].stat().st_size,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
