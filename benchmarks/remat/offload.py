"""What host memory buys: one plan with it and one without, for each target and budget, as XLA:GPU measures them.

    python benchmarks/remat/offload.py mlp mlp-scan llm-1b-scan llm-1b --targets h100 gb200 --layers 4

"mlp" is a straight line of products with 64 MB activations, "mlp-scan" the same under `lax.scan`; the others are
workloads.
A budget is a share of what the program as written is estimated to take; plans are not corrected by a measurement.
"cost" is the plan's own figure, in milliseconds: what is computed again and what of the transfers shows.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

COLUMNS = (
    "workload",
    "target",
    "budget GB",
    "host",
    "predicted GB",
    "measured GB",
    "host GB",
    "cost ms",
    "FLOPs %",
)


def products(target, *, scanned: bool, layers: int = 8, rows: int = 8192, width: int = 2048):
    """A train step of `layers` products with a residual connection, lowered; f32[rows, width] activations."""
    import jax
    import jax.numpy as jnp

    def layer(x, w):
        return jnp.tanh(x @ w) + x, None

    def loss(weights, x):
        if scanned:
            x, _ = jax.lax.scan(layer, x, weights)
        else:
            for w in weights:
                x, _ = layer(x, w)
        return jnp.mean(x * x)

    def step(weights, x):
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights, x))

    sharding = jax.sharding.NamedSharding(target.mesh((1,), ("x",)), jax.sharding.PartitionSpec())

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=sharding)

    weights = shape(layers, width, width) if scanned else [shape(width, width)] * layers
    return jax.jit(step).lower(weights, shape(rows, width))


def lower(name: str, target, layers: int | None):
    """A program by name, lowered for the target."""
    import workloads

    if name in ("mlp", "mlp-scan"):
        return products(target, scanned=name == "mlp-scan")
    return workloads.build(name, target=target, **({} if layers is None else {"layers": layers})).lower()


def measure(name: str, target_name: str, layers: int | None, shares: list[float]) -> list[dict]:
    """One row for each share, with host memory and without; sizes in bytes, of temporaries."""
    import farrier
    from farrier._src import interchange, oracle
    from farrier._src.drivers import remat

    target = farrier.Target(target_name)
    lowered = lower(name, target, layers)
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
    before = oracle.measure(lowered, target)
    estimate = json.loads(module.query("memory.estimate", "{}"))["temp"]
    rows = []
    for share in shares:
        for host in (False, True):
            request = {"budget": int(share * estimate), "machine": remat.machine(target), "offload": host}
            plan = json.loads(module.query("remat.plan", json.dumps(request)))
            rewritten = module.clone()
            remat.RematDriver().apply(rewritten, plan)
            after = oracle.measure(interchange.to_jaxlib(rewritten), target)
            rows.append(
                {
                    "workload": name,
                    "target": target_name,
                    "layers": layers,
                    "before_bytes": before.temp_bytes,
                    "budget_bytes": request["budget"],
                    "host": host,
                    "fits": plan["predicted"]["fits"],
                    "predicted_bytes": plan["predicted"]["after"],
                    "measured_bytes": after.temp_bytes,
                    "host_bytes": after.host_temp_bytes,
                    "cost_seconds": plan["predicted"]["seconds"],
                    "extra_flops": after.flops / before.flops - 1,
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def show(rows: list[dict]) -> None:
    """The rows as a table."""
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(
            row["workload"],
            row["target"],
            f"{row['budget_bytes'] / 1e9:.2f}",
            "yes" if row["host"] else "no",
            f"{row['predicted_bytes'] / 1e9:.2f}",
            f"{row['measured_bytes'] / 1e9:.2f}",
            f"{row['host_bytes'] / 1e9:.2f}",
            f"{row['cost_seconds'] * 1e3:.1f}",
            f"{100 * row['extra_flops']:.1f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--targets", nargs="+", default=["h100", "gb200"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.4])
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the rows")
    options = parser.parse_args()
    rows = []
    for name in options.workloads:
        for target in options.targets:
            rows += measure(name, target, options.layers, options.shares)
            if options.output:
                options.output.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
