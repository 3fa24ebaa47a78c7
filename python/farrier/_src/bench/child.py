"""Measures one job. Runs as a process of its own: ``python -m farrier._src.bench.child JOB OUT``.

A compiler that aborts, runs out of memory or never ends takes only this process
with it. The file ``OUT.phase`` says what it was doing.
"""

from __future__ import annotations

import json
import pathlib
import resource
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from farrier._src.bench import environment
from farrier._src.bench.metric import Metric, exact, sampled
from farrier._src.bench.result import Result, write_text
from farrier._src.bench.suite import OptionSet, SuiteError, Unsupported, load_suite


def _list(job: Mapping[str, Any]) -> dict[str, Any]:
    suite = load_suite(job["suite"])
    return {
        "path": suite.path,
        "digest": suite.digest,
        "reference": suite.reference,
        "targets": list(suite.targets),
        "option_sets": [o.to_json() for o in suite.option_sets],
        "jobs": [
            {
                "case": case.name,
                "target": target,
                "options": options.to_json(),
                "timeout_s": case.timeout_s,
                "memory_bytes": case.memory_bytes,
            }
            for case, target, options in suite.pairs()
        ],
    }


def _measure(job: Mapping[str, Any], phase: Any) -> Result:
    phase("loading the suite")
    suite = load_suite(job["suite"])
    case = suite.case(job["case"])
    options = OptionSet.from_json(job["options"])
    identity = {"case": case.name, "target": job["target"], "options": options.name}
    env = environment.versions()
    try:
        if case.measure is not None:
            phase("measuring")
            metrics = dict(case.measure(job["target"], options, job["repeats"]))
            for name, m in metrics.items():
                if not isinstance(m, Metric):
                    raise SuiteError(
                        f"measure of case {case.name!r} gives {type(m).__name__} for {name!r}: "
                        "use farrier.bench.exact or farrier.bench.sampled"
                    )
            result = Result(**identity, metrics=metrics, environment=env)
        else:
            from farrier._src.bench import measure

            result = measure.measure(
                case,
                options,
                job["target"],
                suite_path=suite.path,
                repeats=job["repeats"],
                repeat_budget_s=job["repeat_budget_s"],
                cache_dir=job["cache_dir"],
                device=job["device"],
                phase=phase,
                environment=env,
            )
    except Unsupported as e:
        return Result(**identity, status="unsupported", message=str(e), environment=env)
    if not result.cached:
        # Kilobytes on Linux, bytes on macOS (getrusage(2)).
        scale = 1 if sys.platform == "darwin" else 1024
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        extra = sampled("peak_rss_bytes", [float(rss)])
        result = _with_metric(result, "peak_rss_bytes", extra)
    if options.budget is not None and "budget_bytes" not in result.metrics:
        from farrier._src.bench.measure import budget_bytes

        result = _with_metric(result, "budget_bytes", exact("budget_bytes", budget_bytes(options.budget)))
    return result


def _with_metric(result: Result, name: str, metric: Metric) -> Result:
    import dataclasses

    return dataclasses.replace(result, metrics={**result.metrics, name: metric})


def main(argv: list[str]) -> int:
    """Runs the job in file ``argv[0]`` and writes its outcome to file ``argv[1]``."""
    job_path, out_path = argv
    job = json.loads(pathlib.Path(job_path).read_text(encoding="utf-8"))

    def phase(name: str) -> None:
        pathlib.Path(f"{out_path}.phase").write_text(name, encoding="utf-8")

    phase("starting")
    try:
        if job["kind"] == "list":
            out: dict[str, Any] = {"list": _list(job)}
        elif job["kind"] == "report":
            from farrier._src.bench import reports

            out = {"report": reports.report_job(job, phase)}
        elif job["kind"] == "steps":
            from farrier._src.bench import device

            out = {"steps": device.measure_job(job, phase)}
        else:
            out = {"result": _measure(job, phase).to_json()}
    except SuiteError as e:
        out = {"error": str(e)}
    except Exception as e:
        out = {"error": f"{type(e).__name__}: {e}", "traceback": traceback.format_exc()}
    write_text(out_path, json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
