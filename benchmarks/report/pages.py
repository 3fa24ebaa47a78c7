"""Reports of the benchmark workloads: compiles each without a GPU, writes its page, prints its figures.

python benchmarks/report/pages.py OUT [WORKLOAD[@TOPOLOGY] ...]
"""

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from farrier._src import report
from farrier._src.targets import Target
from workloads import registry

DEFAULT = ("llm-1b@1x1x1", "llama3-8b-scan@1x1x8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path, help="folder for the pages")
    parser.add_argument("workload", nargs="*", default=DEFAULT)
    parser.add_argument("--target", default="h100")
    parser.add_argument(
        "--form", action="append", default=[], help="further suffixes, like .json.gz or .pftrace"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.workload:
        name, _, topology = name.partition("@")
        target = Target(args.target, topology=topology or registry.topology(name))
        lowered = registry.build(name, target).lower()
        start = time.perf_counter()
        compiled, artifact = report.compile_with_dump(lowered)
        compile_seconds = time.perf_counter() - start
        start = time.perf_counter()
        made = report.from_artifact(
            artifact,
            target=target,
            budget_bytes=target.usable_bytes,
            title=f"{name} on {target.device_count} {target.name}",
        )
        build_seconds = time.perf_counter() - start
        start = time.perf_counter()
        pages = [made.save(args.out / f"{name}{suffix}") for suffix in (".html", *args.form)]
        stats = compiled.memory_analysis()
        print(
            json.dumps(
                {
                    "workload": name,
                    "devices": target.device_count,
                    "positions": len(made.data["program"]["names"]),
                    "peak_bytes": made.peak_bytes,
                    "xla_peak_bytes": stats.peak_memory_in_bytes,
                    "total_bytes": made.total_bytes,
                    "step_ns": made.step_ns,
                    "exposed_ns": made.exposed_ns,
                    "compile_seconds": round(compile_seconds, 1),
                    "report_seconds": round(build_seconds, 2),
                    "write_seconds": round(time.perf_counter() - start, 2),
                    "page_bytes": pages[0].stat().st_size,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
