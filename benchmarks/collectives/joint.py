"""One budget for rematerialization and the schedule: is the joint search as good as the best split by hand?

    python benchmarks/collectives/joint.py [WORKLOAD ...] [--target h100] [--out benchmarks/results/collectives]

For each workload and budget (parts of what the program needs as written): the joint search of `optimize`; its two
halves alone (rematerialization with XLA's schedule; our schedule of the program as written, where that fits); and
splits by hand, rematerialization to the budget less a fixed reserve and our schedule within the budget. Every
program is compiled by the real XLA:GPU, memory is XLA's, and all steps are simulated at the same prices of kernels.
A cell is kept as soon as it is known and not measured again. Simulated figures, see docs/collectives.md.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
from farrier import Collectives, Remat
from farrier._src import errors, interchange, oracle, pipeline, search
from farrier._src.collectives import drive, schedule
from farrier._src.collectives.driver import CollectivesDriver
from run import CASES, Workload, arguments, markdown, ms

WORKLOADS = ("fsdp-scan", "fsdp-manual-scan-keep", "two-axes-scan")
# Parts of what the program as written needs: a little room, and two that have to be paid for.
BUDGETS = (1.02, 0.85, 0.70)
# Parts of the budget that a split by hand keeps from rematerialization.
RESERVES = (0.05,)


class Bench(Workload):
    """One workload, with kernels priced as the program as written has them."""

    def __init__(self, name: str, target_name: str):
        self.folder = tempfile.TemporaryDirectory()
        super().__init__(name, target_name, kernels=os.path.join(self.folder.name, "kernels"))
        self.written = interchange.to_core(self.module)
        self.prices: dict[str, float] = {}

    def compile(self, module: Any, options: Any) -> oracle.Compiled:
        """What `pipeline.Context.compile` asks for; always with XLA's estimates."""
        module = module if hasattr(module, "operation") else interchange.to_jaxlib(module)
        return super().compile(module, drive.STATISTICS | dict(options))

    def context(self, budget: int, remarks: list[str]) -> pipeline.Context:
        """A search's context, as `optimize` makes it."""
        return pipeline.Context(
            function=self.name,
            platform="cuda",
            partitions=self.target.device_count,
            target=self.target,
            budget_bytes=budget,
            budget_binding=True,
            objective="time",
            numerics="bounded",
            max_compiles=3,
            measure=lambda module, held=False: self.compile(module, {}).measurement,
            remark=lambda remark: remarks.append(remark.message),
            compile=self.compile,
        )

    def figures(self, compiled: oracle.Compiled, remat: Any) -> dict[str, Any]:
        """Bytes and simulated seconds of a program."""
        found = schedule.simulate(compiled.hlo(), self.target, self.sets, frozen=dict(self.prices))
        return {
            "bytes": compiled.measurement.total_bytes,
            "recomputed_ms": round(1e3 * remat["predicted"]["seconds"], 3) if remat else 0.0,
            "seconds": {s.parameters: round(s.seconds, 9) for s in found},
            "exposed_seconds": {s.parameters: round(s.exposed_seconds, 9) for s in found},
        }

    def plain(self) -> oracle.Compiled:
        """The program as written; its kernels' prices hold for all others."""
        compiled = self.compile(self.module, {})
        self.prices = dict(schedule.plan(compiled.hlo(), self.target, self.sets).costs)
        return compiled

    def cell(self, part: float) -> dict[str, Any]:
        """One budget."""
        plain = self.plain()
        budget = int(part * plain.measurement.total_bytes)
        before = self.compiles
        rows: dict[str, Any] = {}
        remarks: list[str] = []
        joint, found = self.scheduled(self.written, budget, [Remat()], remarks)
        paid = found.passes.get("remat")
        rows["joint"] = self.figures(joint.final, paid)
        rows["without exchange"] = self.figures(joint.first.after, None)
        rows["remat alone"] = self.figures(joint.first.before, None)
        for reserve in RESERVES:
            kept = self.context(int(budget * (1 - reserve)), [])
            try:
                plan = search.plan_step(self.written, pipeline.drivers_for([Remat()]), kept).passes
            except errors.BudgetError as refused:
                rows[f"reserve {reserve:.0%}"] = {"refused": refused.what}
                continue
            version = self.written.clone()
            pipeline.apply(version, pipeline.drivers_for([Remat()]), plan)
            split, _ = self.scheduled(version, budget, [])
            rows[f"reserve {reserve:.0%}"] = self.figures(split.final, plan.get("remat"))
        others = {k: v for k, v in rows.items() if k not in ("joint", "without exchange")}
        fitting = [v for v in others.values() if v.get("bytes", budget + 1) <= budget]
        return {
            "budget": budget,
            "part": part,
            "rows": rows,
            "best_separate": {s.name: min(v["seconds"][s.name] for v in fitting) for s in self.sets},
            "remarks": [r for r in remarks if "memory" in r or "bytes more" in r],
            "compiles": self.compiles - before,
            "jax": jax.__version__,
        }

    def scheduled(
        self, module: Any, budget: int, passes: list[Any], remarks: list[str] | None = None
    ) -> tuple[_Watched, Any]:
        """The search with `passes` and the schedule; the schedule's driver knows what was found."""
        late = _Watched(Collectives(max_compiles=3, rewrites=()))
        drivers = [*pipeline.drivers_for(passes), late]
        found = search.plan_step(module, drivers, self.context(budget, [] if remarks is None else remarks))
        return late, found


class _Watched(CollectivesDriver):
    """Remembers what it found before an exchange."""

    @property
    def final(self) -> oracle.Compiled:
        """The program that was decided for."""
        return self._found.after

    @property
    def first(self) -> drive.Improved:
        """What was found before memory was exchanged."""
        return self._first or self._found

    _first = None

    def exchange(self, module, wish, context):
        """As the driver's, watched."""
        self._first = self._found
        return super().exchange(module, wish, context)


def table(known: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    rows = []
    for name, cells in known.items():
        for _, cell in sorted(cells.items(), reverse=True):
            for which, best in cell["best_separate"].items():
                step = {k: v["seconds"][which] for k, v in cell["rows"].items() if "seconds" in v}
                rows.append(
                    (
                        CASES[name].letter,
                        f"{cell['part']:.0%}",
                        f"{cell['budget'] / 1e9:.3f}",
                        which,
                        ms(step["remat alone"]),
                        ms(step["without exchange"]),
                        ms(best),
                        ms(step["joint"]),
                        f"{step['joint'] / best - 1:+.2%}",
                        f"{cell['rows']['joint']['bytes'] / 1e9:.3f}",
                        "; ".join(r for r in cell["remarks"] if r.startswith("memory")),
                    )
                )
    head = (
        "", "budget", "GB", "set", "remat alone", "no exchange", "best separate", "joint", "against it", "joint, GB",
        "exchange",
    )  # fmt: skip
    lines = [
        "Simulated, milliseconds a step. Budgets as parts of what the program as written needs (total memory a device).",
        f"Separate: the fastest of rematerialization alone and of splits by hand ({', '.join(f'{r:.0%}' for r in RESERVES)} of the",
        "budget kept from rematerialization, our schedule within the whole), each within the budget.",
        "",
        *markdown(head, rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the command line; 1 when a joint step is over its budget, or slower than the best split under the first set."""
    args = arguments(__doc__.splitlines()[0], default=WORKLOADS)
    path = args.out / f"{args.target}-joint.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name in args.names:
        cells = known.setdefault(name, {})
        missing = [part for part in BUDGETS if f"{part:.2f}" not in cells]
        bench = Bench(name, args.target) if missing else None
        for part in missing:
            start = time.perf_counter()
            cells[f"{part:.2f}"] = bench.cell(part)
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            (args.out / f"{args.target}-joint.md").write_text(table(known), encoding="utf-8")
            print(name, part, f"{time.perf_counter() - start:.0f} s", flush=True)
    bad = [
        name
        for name, cells in known.items()
        for cell in cells.values()
        if cell["rows"]["joint"]["bytes"] > cell["budget"]
        or next(iter(cell["rows"]["joint"]["seconds"].values()))
        > 1.0005 * next(iter(cell["best_separate"].values()))
    ]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
