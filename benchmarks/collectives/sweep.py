"""Is farrier's schedule as good as the best of 40 settings of XLA's flags?

    python benchmarks/collectives/sweep.py [WORKLOAD ...] [--target h100] [--out benchmarks/results/collectives]

Every point of the sweep is the workload as XLA schedules it with options that a function can be given, simulated at
the prices of the default program. A point's compile ends after XLA's scheduler, which saves four fifths of it; the
fastest are then compiled to the end, until one is known to need no more memory than farrier may use. A point that
cannot act (thresholds for collectives that the program does not have, settings of loops without a loop) is not compiled.
farrier's row is what `run.py` measures, on the same program. Unrolled programs have two layers here (the published
table has four to sixteen), scanned ones all: a scan's body is compiled once.

The settings that XLA takes from the environment only are compiled in child processes and stand in a column of their
own: no library can set them for one function. Each workload has a process: a setting that ends it counts as refused.
Each point is kept as soon as it is known: an interrupted sweep goes on where it was. Programs that come out identical
count once. Simulated figures.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import workloads
from farrier._src import errors, hlo, oracle
from farrier._src.collectives import costs, drive, parameters, program, schedule
from jax.extend import xla
from run import CASES, UNTUNED, Workload, arguments, markdown, ms, tuned_if_needed

LAYERS = 2
# Points that are compiled to the end, at most.
MOST_WHOLE = 3
_THRESHOLDS = tuple(
    f"xla_gpu_{kind}_combine_threshold_bytes" for kind in ("all_gather", "reduce_scatter", "all_reduce")
)
_MB = 1 << 20


def points() -> dict[str, dict[str, Any]]:
    """The sweep: names and XLA options, the default first."""
    found: dict[str, dict[str, Any]] = {"default": {}}
    for megabytes in (0, 1, 4, 16, 64, 256, 1024):
        found[f"combine-{megabytes}M"] = dict.fromkeys(_THRESHOLDS, megabytes * _MB)
    for option in _THRESHOLDS:
        kind = option.removeprefix("xla_gpu_").removesuffix("_combine_threshold_bytes")
        for megabytes in (1, 16, 256):
            found[f"{kind}-{megabytes}M"] = {option: megabytes * _MB}
    for count in (2, 4):
        found[f"combine-{count}-at-once"] = {"xla_gpu_collective_combine_threshold_count": count}
        found[f"overlap-{count}"] = {"xla_gpu_experimental_parallel_collective_overlap_limit": count}
    no_merging = {"xla_disable_hlo_passes": "dot-merger,multi_output_fusion"}
    loops = "xla_gpu_enable_while_loop_unrolling"
    single = {
        "by-dimension": dict.fromkeys(
            ("xla_gpu_enable_all_gather_combine_by_dim", "xla_gpu_enable_reduce_scatter_combine_by_dim"), True
        ),
        "no-latency-hiding": {"xla_gpu_enable_latency_hiding_scheduler": False},
        "analytical": {"xla_gpu_enable_analytical_latency_estimator": True},
        "speed-of-light": {"xla_gpu_enable_analytical_sol_latency_estimator": True},
        "costly": {"xla_gpu_enable_approx_costly_collectives": True},
        "inflated": {"xla_gpu_collective_inflation_factor": 4},
        "heuristic": {"xla_gpu_experimental_enable_heuristic_collective_combining": True},
        "early": {"xla_gpu_experimental_collective_start_as_early_as_possible": True},
        "slop-80": {"xla_gpu_memory_limit_slop_factor": 80},
        "double-buffer": {"xla_gpu_enable_while_loop_double_buffering": True},
        "unroll-auto": {loops: "WHILE_LOOP_UNROLLING_AUTO_UNROLL"},
        "unroll-full": {loops: "WHILE_LOOP_UNROLLING_FULL_UNROLL"},
        "loop-reduce-scatter": {"xla_gpu_enable_while_loop_reduce_scatter_code_motion": True},
        "windowed-einsum": {"xla_gpu_threshold_for_windowed_einsum_mib": 0},
        "no-merging": no_merging,
        "effort": {"optimization_level": 39},
    }
    together = {
        "early+overlap-4": single["early"] | found["overlap-4"],
        "combine-4M+overlap-4": found["combine-4M"] | found["overlap-4"],
        "combine-16M+double-buffer": found["combine-16M"] | single["double-buffer"],
    }
    return found | single | together


def environment() -> dict[str, str]:
    """Settings that only XLA_FLAGS takes, and only for a whole process."""
    kinds = ("all_gather", "reduce_scatter", "all_reduce")
    return {"pipelined": " ".join(f"--xla_gpu_enable_pipelined_{kind}=true" for kind in kinds)}


def acts(options: Mapping[str, Any], default: hlo.Module) -> bool:
    """Whether any of the options can change a program whose final form by default is `default`."""
    opcodes = {i.opcode.removesuffix("-start") for c in default.computations for i in c.instructions}
    for option in options:
        kind = option.removeprefix("xla_gpu_").removesuffix("_combine_threshold_bytes")
        if option in _THRESHOLDS:
            needed = kind.replace("_", "-")
        else:
            needed = "while" if "while_loop" in option else None
        if needed is None or needed in opcodes:
            return True
    return not options


def figures(module: hlo.Module, target: Any, frozen: Mapping[str, float]) -> dict[str, Any]:
    """What is kept of one program: what tells programs apart, step and exposed seconds by set."""
    sets = parameters.for_target(target)
    priced = costs.CostModel(target, sets[0], dict(frozen))
    seen = program.build(module, priced, sets[0].domain_devices).json
    for one in seen["computations"]:
        del one["name"]
    found = schedule.simulate(module, target, sets, frozen=dict(frozen))
    text = json.dumps(seen, sort_keys=True)
    return {"program": hashlib.sha256(text.encode()).hexdigest()[:12]} | _simulated(found)


def _simulated(found: Any) -> dict[str, dict[str, float]]:
    return {
        "seconds": {s.parameters: round(s.seconds, 9) for s in found},
        "exposed_seconds": {s.parameters: round(s.exposed_seconds, 9) for s in found},
    }


class _Enough(Exception):
    """Ends a compile whose schedule is known."""


def scheduled(module: Any, target: Any, options: Mapping[str, Any]) -> hlo.Module:
    """The program as XLA's scheduler leaves it; the rest of the compile does not happen.

    Raises:
      farrier.Error: XLA refuses the program or an option.
    """
    caught: list[bytes] = []

    def catch(data: bytes) -> None:
        # XLA also compiles small modules of its own on the way.
        if hlo.Module(data).name.startswith("jit_train_step"):
            caught.append(data)
            raise _Enough

    target.topology_desc()  # loads the compiler that the hook registers with
    stage = xla.PipelineStage.POST_SCHEDULER
    xla.register_hlo_module_transformation(catch, name="enough", stage=stage, platforms=["cuda"])

    def compile(given: Mapping[str, Any]) -> None:
        try:
            oracle.compile_module(module, target, compiler_options=given)
        except errors.Error:
            if not caught:
                raise

    try:
        tuned_if_needed(compile, {**UNTUNED, **drive.STATISTICS, **options})
    finally:
        xla.clear_hlo_module_transformation("enough", stage=stage, platforms=["cuda"])
    return hlo.Module(caught[0])


class Sweep:
    """One workload on one target; what is known lies in a file that all workloads of the target share."""

    def __init__(self, name: str, target_name: str, store: pathlib.Path):
        self.name, self.case, self.store = name, CASES[name], store
        self.target = self.case.target(target_name)
        known = json.loads(store.read_text("utf-8")) if store.exists() else {}
        self.row: dict[str, Any] = known.get(name, {})
        if self.row.get("jax") != jax.__version__:
            self.row = {"jax": jax.__version__, "target": f"{self.target.name} {self.target.topology}"}
        self.row.setdefault("points", {})
        self._folder = tempfile.TemporaryDirectory()
        self.kernels = os.path.join(self._folder.name, "kernels")

    @functools.cached_property
    def workload(self) -> Workload:
        """The workload, lowered."""
        few = workloads.options(self.case.workload).get("style") == "unrolled"
        options = {"layers": LAYERS} if few else {}
        return Workload(self.name, self.target.name, kernels=self.kernels, **options)

    @functools.cached_property
    def default(self) -> oracle.Compiled:
        """The program with no option of ours."""
        return self.compile({})

    @functools.cached_property
    def prices(self) -> dict[str, float]:
        """Of the default program's kernels, microseconds by fingerprint."""
        sets = parameters.for_target(self.target)
        return dict(schedule.plan(self.default.hlo(), self.target, sets).costs)

    def compile(self, options: Mapping[str, Any]) -> oracle.Compiled:
        """One compile of the workload to its end."""
        return self.workload.compile(self.workload.module, drive.STATISTICS | dict(options))

    def whole(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of a point's final program, with its memory."""
        compiled = self.compile(options) if options else self.default
        found = figures(compiled.hlo(), self.target, self.prices)
        return {"bytes": compiled.measurement.total_bytes} | found

    def point(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of one point; what XLA says where it refuses."""
        if not acts(options, self.default.hlo()):
            return {"same_as": "default"}
        try:
            return figures(scheduled(self.workload.module, self.target, options), self.target, self.prices)
        except errors.Error as refused:
            return {"refused": str(refused).splitlines()[0][:160]}

    def winner(self) -> dict[str, Any]:
        """The fastest point within the memory that farrier may use, compiled to its end."""
        first = parameters.for_target(self.target)[0].name
        allowed = self.default.measurement.total_bytes * (1 + self.case.growth)
        taken = {k: v for k, v in self.row["points"].items() if "seconds" in v}
        known = self.row.setdefault("whole", {})
        seen: set[str] = set()
        for name in sorted(taken, key=lambda k: taken[k]["seconds"][first]):
            if taken[name]["program"] in seen:
                continue
            seen.add(taken[name]["program"])
            if name not in known:
                self.trying("whole", name)
                known[name] = self.whole(points()[name])
                self.save()
            fitting = [v for v in known.values() if v.get("bytes", allowed + 1) <= allowed]
            best = min((v["seconds"][first] for v in fitting), default=None)
            left = [v["seconds"][first] for v in taken.values() if v["program"] not in seen]
            if len(known) >= MOST_WHOLE or (best is not None and (not left or best <= min(left))):
                break
        known.setdefault("default", self.whole({}))
        fitting = {k: v for k, v in known.items() if v.get("bytes", allowed + 1) <= allowed}
        name = min(fitting, key=lambda k: fitting[k]["seconds"][first])
        return {"name": name} | fitting[name]

    def child(self, flags: str) -> dict[str, Any]:
        """The figures of a point that needs a process of its own."""
        with tempfile.TemporaryDirectory() as folder:
            prices = pathlib.Path(folder) / "prices.json"
            prices.write_text(json.dumps(self.prices), encoding="utf-8")
            ran = subprocess.run(
                [sys.executable, __file__, self.name, "--target", self.target.name, "--child", str(prices)],
                env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
        return json.loads(ran.stdout.splitlines()[-1])

    def ours(self) -> dict[str, Any]:
        """What `optimize` makes of the program."""
        found = self.workload.improve()
        return {
            "bytes": found.after.measurement.total_bytes,
            "form": found.variant.name if found.variant else None,
            "own_order": found.plan is not None,
            "bound_seconds": round(found.simulated_after[0].bound_seconds, 9),
        } | _simulated(found.simulated_after)

    def trying(self, kind: str, name: str) -> None:
        """Notes what is compiled next: some settings end XLA's process (`died`)."""
        assert self.prices  # the default program compiles
        self.row["trying"] = [kind, name]
        self.save()
        del self.row["trying"]

    def died(self) -> None:
        """The process ended in the compile that was noted last."""
        kind, name = self.row.pop("trying")
        self.row.setdefault(kind, {})[name] = {"refused": "XLA ends the process"}
        self.save()

    def save(self) -> None:
        """Writes the row; the file is whole at every moment."""
        known = json.loads(self.store.read_text("utf-8")) if self.store.exists() else {}
        known[self.name] = self.row
        part = self.store.with_suffix(".part")
        part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(self.store)

    def run(self) -> None:
        """All that is not known yet."""
        for name, options in points().items():
            if name not in self.row["points"]:
                self.trying("points", name)
                self.row["points"][name] = self.point(options)
                self.save()
        if "best" not in self.row:
            self.row["best"] = self.winner()
            self.save()
        if "farrier" not in self.row:
            self.row["farrier"] = self.ours()
            self.save()
        known = self.row.setdefault("environment", {})
        if "loops" not in self.row:
            instructions = (i for c in self.default.hlo().computations for i in c.instructions)
            self.row["loops"] = any(i.opcode == "while" for i in instructions)
            self.save()
        for name, flags in environment().items() if self.row["loops"] else ():
            if name not in known:
                known[name] = self.child(flags)
                self.save()


def table(known: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    rows = []
    for name, case in CASES.items():
        row = known.get(name)
        if not row or "farrier" not in row:
            continue
        programs = {v["program"] for v in row["points"].values() if "program" in v}
        default, best, ours = row["whole"]["default"], row["best"], row["farrier"]
        pipelined = row.get("environment", {}).get("pipelined", {}).get("seconds", {})
        for which, plain in default["seconds"].items():
            rows.append(
                (
                    case.letter,
                    name,
                    str(len(programs)),
                    which,
                    ms(plain),
                    best["name"],
                    ms(best["seconds"][which]),
                    ms(ours["seconds"][which]),
                    f"{ours['seconds'][which] / best['seconds'][which] - 1:+.1%}",
                    ms(pipelined[which]) if which in pipelined else "",
                )
            )
    head = (
        "", "workload", "distinct programs", "set", "default", "best flag", "", "farrier", "against it", "pipelined",
    )  # fmt: skip
    lines = [
        f"Simulated, milliseconds a step, under the target's two parameter sets. {len(points())} settings of XLA's flags as",
        f"compiler options of the function; unrolled programs with {LAYERS} layers, so steps differ from those of table.md.",
        "Best flag: the fastest under the first set that needs no more memory than farrier may use. Pipelined: XLA's",
        "pipelined collectives, which only XLA_FLAGS switches on, for a whole process.",
        "",
        *markdown(head, rows),
    ]
    return "\n".join(lines) + "\n"


def _run(name: str, target: str, store: pathlib.Path) -> None:
    Sweep(name, target, store).run()


def main() -> int:
    """Runs the command line."""
    args = arguments(__doc__.splitlines()[0], child=True)
    store = args.out / f"{args.target}-sweep.json"
    if args.child is not None:
        sweep = Sweep(args.names[0], args.target, store)
        sweep.prices = json.loads(args.child.read_text("utf-8"))
        print(json.dumps(sweep.whole({})))
        return 0
    for name in args.names:
        start = time.perf_counter()
        while True:
            worker = multiprocessing.get_context("spawn").Process(
                target=_run, args=(name, args.target, store)
            )
            worker.start()
            worker.join()
            if worker.exitcode != -signal.SIGABRT:
                break
            Sweep(name, args.target, store).died()
        if worker.exitcode:
            return 1
        known = json.loads(store.read_text("utf-8"))
        (args.out / f"{args.target}-sweep.md").write_text(table(known), encoding="utf-8")
        print(name, f"{time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
