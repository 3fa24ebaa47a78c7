"""Which programs the fusion pass changes, and what looking at each costs: `python benchmarks/fusion/programs.py`.

Every workload of the registry, for the devices that it is meant for, every program of tests/programs, and random
programs. Nothing is compiled. A row says what the pass put in the program's place, or why nothing, and whether a
program in which nothing applied came out byte for byte as it went in; rows go to
benchmarks/results/fusion-programs.json.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import os
import pathlib
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Some of tests/programs are for eight devices.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT.parent / "tests")]

import farrier  # noqa: E402
from farrier._src import interchange  # noqa: E402
from farrier._src.fusion.driver import FusionDriver  # noqa: E402
from farrier._src.pipeline import Context  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

RANDOM = {"stablehlo": 40, "jax": 20, "bounded": 20}
"""How many random programs of each kind (tests/trust/fuzz.py)."""


def row(module: Any, target: farrier.Target, times: int = 3) -> dict[str, Any]:
    """What the pass does to a `farrier._core.Module`, as `optimize` runs it for the target; the best time of some."""
    remarks: list[Any] = []
    context = Context(
        function="step",
        platform="cuda",
        partitions=target.device_count,
        target=target,
        budget_bytes=None,
        budget_binding=False,
        objective="time",
        numerics="bounded",
        max_compiles=0,
        measure=None,
        remark=remarks.append,
    )
    driver = FusionDriver()
    before, operations = module.print(), module.num_ops
    plan = driver.plan(module, context)
    # The plan is None where nothing applies; the pass itself is run all the same, on copies.
    seconds, after = [], b""
    text = driver.with_shardings(driver.pipeline(module, context), module)
    for _ in range(times):
        copy = module.clone()
        start = time.process_time()
        result = copy.run(text)
        seconds.append(time.process_time() - start)
        after = copy.print()
    why = collections.Counter(
        re.sub(r" \([^()]*:\d+\)$", "", said.message) for said in result.remarks if said.kind == "missed"
    )
    return {
        "operations": operations,
        "sites": dict(plan["sites"]) if plan else {},
        "identical": after == before,
        "left_alone": dict(why),
        "seconds": round(min(seconds), 4),
    }


def workloads(only: str) -> Iterator[tuple[str, Callable[[], tuple[Any, farrier.Target]]]]:
    from workloads import registry

    for name in registry.names():
        if only in name:
            target = farrier.Target("h100", topology=registry.topology(name))
            yield name, lambda name=name, target=target: (registry.build(name, target).lower(), target)


def core(lowered: Any) -> Any:
    return interchange.to_core(lowered.compiler_ir("stablehlo"))


def test_programs() -> Iterator[tuple[str, Any, farrier.Target]]:
    from programs import programs

    for program in programs():
        topology = f"1x1x{program.devices}"
        yield program.name, interchange.to_core(program.module()), farrier.Target("h100", topology=topology)


def random_programs() -> Iterator[tuple[str, Any, farrier.Target]]:
    from farrier import _core
    from trust import check, fuzz

    for kind, count in RANDOM.items():
        for seed in range(count):
            text = fuzz.program(kind)(random.Random(seed))
            devices = check.partitions(text)
            yield (
                f"{kind} {seed}",
                _core.Module.parse(text),
                farrier.Target("h100", topology=f"1x1x{devices}"),
            )


def summary(rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Of many small programs: how many, which of them changed, and which changed for nothing."""
    rows = list(rows)
    operations = sum(found["operations"] for _, found in rows)
    seconds = sum(found["seconds"] for _, found in rows)
    return {
        "programs": len(rows),
        "operations": operations,
        "changed": {name: found["sites"] for name, found in rows if found["sites"]},
        "changed_for_nothing": [
            name for name, found in rows if not found["sites"] and not found["identical"]
        ],
        "seconds": round(seconds, 4),
        "seconds_per_10k": round(seconds / operations * 1e4, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the workloads and groups whose name contains this")
    arguments = parser.parse_args()
    path = ROOT / "results" / "fusion-programs.json"
    stored = json.loads(path.read_text()) if path.exists() else {"workloads": {}}
    stored["versions"] = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}

    def write():
        path.write_text(json.dumps(stored, indent=1) + "\n")

    for name, build in workloads(arguments.only):
        lowered, target = build()
        found = row(core(lowered), target)
        found["seconds_per_10k"] = round(found["seconds"] / found["operations"] * 1e4, 4)
        stored["workloads"][name] = {"devices": target.device_count, **found}
        write()
    for name, group in {"tests/programs": test_programs, "random": random_programs}.items():
        if arguments.only in name:
            stored[name] = summary((each, row(module, target)) for each, module, target in group())
            write()
    table = Table("program", "operations", "sites", "why not", "s per 10k operations")
    for name, found in stored["workloads"].items():
        sites = ", ".join(f"{rewrite} {count}" for rewrite, count in found["sites"].items())
        if not found["sites"]:
            sites = "none: identical bytes" if found["identical"] else "none, BUT CHANGED"
        table.add_row(
            name,
            str(found["operations"]),
            sites,
            "; ".join(found["left_alone"]),
            str(found["seconds_per_10k"]),
        )
    Console(width=160).print(table)
    for name in ("tests/programs", "random"):
        if name in stored:
            Console(width=160).print(name, stored[name])
    groups = [stored[name]["changed_for_nothing"] for name in ("tests/programs", "random") if name in stored]
    wrong = [n for n, found in stored["workloads"].items() if not found["sites"] and not found["identical"]]
    return 1 if any(groups) or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
