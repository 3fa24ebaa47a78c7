"""What the fusion pass does to a training step, by compiling: `python benchmarks/fusion/run.py [--layers N]`.

Each row is one program: as written, rewritten, and, for attention, the same model written with cuDNN
attention. Memory, kernels and bytes are XLA:GPU's own (nothing runs); rows go to
benchmarks/results/fusion.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import sys

from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farrier import Target  # noqa: E402
from farrier._src import interchange, oracle  # noqa: E402
from jax.interpreters import mlir  # noqa: E402
from workloads import decoder  # noqa: E402

LARGE_VOCABULARY = "1b-128k"
decoder.SIZES[LARGE_VOCABULARY] = dataclasses.replace(decoder.SIZES["1b"], vocabulary=131072)

# name -> (options of the decoder workload, pass options or None for "as written")
CASES = {
    "cross-entropy 128k, as written": ({"size": LARGE_VOCABULARY}, None),
    "cross-entropy 128k, rewritten": ({"size": LARGE_VOCABULARY}, "rewrites=cross-entropy"),
    "attention, naive": ({"attention": "naive"}, None),
    "attention, naive rewritten": ({"attention": "naive"}, "rewrites=attention"),
    "attention, written with cuDNN": ({"attention": "cudnn"}, None),
    "attention in a scan, naive": ({"attention": "naive", "style": "scanned"}, None),
    "attention in a scan, naive rewritten": (
        {"attention": "naive", "style": "scanned"},
        "rewrites=attention",
    ),
    "attention in a scan, written with cuDNN": ({"attention": "cudnn", "style": "scanned"}, None),
}


def measure(options: dict, rewrite: str | None, target: Target):
    lowered = decoder.build(target, **options).lower()
    if rewrite is None:
        return oracle.measure(lowered, target), None
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
    operations = module.num_ops
    result = module.run(f"builtin.module(farrier-fusion{{{rewrite}}})")
    record = next(r for r in result.passes if r.name == "farrier-fusion")
    return oracle.measure(interchange.to_jaxlib(module, mlir.make_ir_context()), target), {
        "operations": operations,
        "seconds": round(record.seconds, 3),
        "sites": {k: v for k, v in record.counters.items() if v},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    arguments = parser.parse_args()
    target = Target("h100")
    path = ROOT / "results" / "fusion.json"
    stored = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    for name, (options, rewrite) in CASES.items():
        if arguments.only not in name:
            continue
        measured, run = measure({**options, "layers": arguments.layers}, rewrite, target)
        stored["rows"][f"{name}, {arguments.layers} layers"] = {
            "temp_bytes": measured.temp_bytes,
            "total_bytes": measured.total_bytes,
            "flops": measured.flops,
            "bytes_moved": measured.bytes_moved,
            "kernels": measured.kernels,
            "pass": run,
        }
        packages = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13")
        stored["versions"] = {name: importlib.metadata.version(name) for name in packages}
        stored["target"] = f"{target.name}, deviceless: compiled for it and never run on one"
        path.write_text(json.dumps(stored, indent=1) + "\n")
    table = Table("program", "temp GB", "GEMM TFLOP", "GB moved", "kernels", "pass s")
    for name, row in stored["rows"].items():
        table.add_row(
            name,
            f"{row['temp_bytes'] / 1e9:.3f}",
            f"{row['flops'] / 1e12:.3f}",
            f"{row['bytes_moved'] / 1e9:.1f}",
            str(row["kernels"]),
            f"{row['pass']['seconds']}" if row["pass"] else "",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
