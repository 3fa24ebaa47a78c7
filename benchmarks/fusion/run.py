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

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farrier import Target  # noqa: E402
from farrier._src import interchange, oracle  # noqa: E402
from farrier._src.fusion.split import attention_splits  # noqa: E402
from jax.interpreters import mlir  # noqa: E402
from workloads import decoder, moe  # noqa: E402

LARGE_VOCABULARY = "1b-128k"
decoder.SIZES[LARGE_VOCABULARY] = dataclasses.replace(decoder.SIZES["1b"], vocabulary=131072)

EXPERTS = 8
TOKENS, WIDTH, HIDDEN, CHOSEN = 8192, 1024, 2816, 2


def step(**options):
    """The decoder workload's training step."""
    return lambda target, layers: decoder.build(target, layers=layers, **options).lower()


def experts(kind: str):
    """One expert layer of this kind (`moe.KINDS`), forward and every gradient; bf16."""

    def lower(target: Target, layers: int):
        del layers

        def loss(x, weights):
            return jnp.sum(moe.feed_forward(kind, x, weights, CHOSEN).astype(jnp.float32) ** 2)

        def array(*shape):
            return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=target.sharding())

        weights = {
            "router": array(WIDTH, EXPERTS),
            "gate": array(EXPERTS, WIDTH, HIDDEN),
            "up": array(EXPERTS, WIDTH, HIDDEN),
            "down": array(EXPERTS, HIDDEN, WIDTH),
        }
        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(array(TOKENS, WIDTH), weights)

    return lower


IDEAL_EXPERTS = 3 * 3 * 2 * TOKENS * CHOSEN * WIDTH * HIDDEN
"""Of the experts' three products and their gradients, FLOPs: each token once for each of its experts."""

SCANNED = {"attention": "cudnn", "style": "scanned"}


def masked(kind: str, cudnn: bool):
    """Attention alone, forward and every gradient, with a mask or a bias: batch 4, 2,048 positions, 16 heads."""
    batch, length, heads, groups, width = 4, 2048, 16, 4, 128

    def lower(target: Target, layers: int):
        del layers

        def plain(q, k, v, added):
            grouped = q.reshape(batch, length, groups, -1, width)
            scores = jnp.einsum("bskgd,btkd->bkgst", grouped, k, preferred_element_type=jnp.float32)
            scores = scores * width**-0.5
            if kind == "padding":
                seen = jnp.arange(length)[None] < added[:, None]
                scores = jnp.where(seen[:, None, None, None], scores, -1e30)
            else:
                scores += added.reshape(1, groups, -1, length, length).astype(jnp.float32)
            return jnp.einsum("bkgst,btkd->bskgd", jax.nn.softmax(scores, -1).astype(q.dtype), v).reshape(
                q.shape
            )

        def library(q, k, v, added):
            if kind == "padding":
                seen = (jnp.arange(length)[None] < added[:, None])[:, None, None]
                more = {"mask": jnp.broadcast_to(seen, (batch, 1, length, length))}
            else:
                more = {"bias": added}
            return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **more)

        def loss(*arguments):
            out = (library if cudnn else plain)(*arguments)
            return jnp.sum(jnp.sin(out.astype(jnp.float32)))

        def array(*shape, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=target.sharding())

        added = array(batch, dtype=jnp.int32) if kind == "padding" else array(1, heads, length, length)
        keys = array(batch, length, groups, width)
        differentiated = (0, 1, 2) if kind == "padding" else (0, 1, 2, 3)
        step = jax.jit(jax.value_and_grad(loss, differentiated))
        return step.lower(array(batch, length, heads, width), keys, keys, added)

    return lower


def micro_batches(target: Target, layers: int):
    """Gradients of four micro-batches one after another, added up: four layers of 1,024 to 4,096, 2,048 tokens each."""
    del layers

    def loss(weights, x):
        for up, down in weights:
            x = x + jax.nn.gelu(x @ up) @ down
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(weights, batches):
        total = None
        for x in batches:
            gradients = jax.grad(loss)(weights, x)
            total = gradients if total is None else jax.tree.map(jnp.add, total, gradients)
        return total

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=target.sharding())

    return jax.jit(step).lower([(array(1024, 4096), array(4096, 1024))] * 4, [array(2048, 1024)] * 4)


def carried_mask(target: Target, layers: int):
    """A mask of packed segments, of batch and heads, made once and read by four scanned layers, forward."""
    del layers
    batch, length, heads, width = 4, 2048, 8, 512

    def step(weights, x, segments):
        same = segments[:, None, :, None] == segments[:, None, None]
        mask = jnp.where(same, 0.0, -1e9) * jnp.ones((1, heads, 1, 1))

        def layer(x, w):
            q = (x @ w).reshape(batch, length, heads, -1)
            scores = jnp.einsum("bshd,bthd->bhst", q, q, preferred_element_type=jnp.float32) + mask
            mixed = jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores, -1).astype(x.dtype), q)
            return x + mixed.reshape(x.shape), None

        return jax.lax.scan(layer, x, weights)[0]

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=target.sharding())

    return jax.jit(step).lower(
        array(4, width, width), array(batch, length, width), array(batch, length, dtype=jnp.int32)
    )


EIGHT = Target("h100", topology="1x1x8")


def over_eight(**options):
    """The decoder's step on eight GPUs, under automatic sharding: FSDP over all, or over four with heads over two."""
    return lambda target, layers: decoder.build(EIGHT, layers=layers, batch=8, **options).lower()


def over_eight_cases() -> dict:
    cases = {}
    for style in ("unrolled", "scanned"):
        for name, tensor in (("FSDP 8", 1), ("FSDP 4, heads 2", 2)):
            here = f"attention over 8 devices, {style}, {name}"
            options = {"style": style, "tensor": tensor}
            cases[f"{here}, naive rewritten"] = (
                over_eight(attention="naive", **options),
                "rewrites=attention",
            )
            cases[f"{here}, written with cuDNN"] = (over_eight(attention="cudnn", **options), None)
    return cases


# name -> (program, pass options or None for "as written")
CASES = {
    "cross-entropy 128k, as written": (step(size=LARGE_VOCABULARY), None),
    # Chunks as `optimize` chooses them for this memory; see farrier._src.fusion.driver.
    "cross-entropy 128k, rewritten": (
        step(size=LARGE_VOCABULARY),
        f"rewrites=cross-entropy chunk-bytes={Target('h100').memory_bytes // 64}",
    ),
    "cross-entropy 128k, rewritten in 16 chunks": (
        step(size=LARGE_VOCABULARY),
        "rewrites=cross-entropy chunks=16",
    ),
    "attention, naive": (step(attention="naive"), None),
    "attention, naive rewritten": (step(attention="naive"), "rewrites=attention"),
    "attention, written with cuDNN": (step(attention="cudnn"), None),
    "attention in a scan, naive": (step(attention="naive", style="scanned"), None),
    "attention in a scan, naive rewritten": (
        step(attention="naive", style="scanned"),
        "rewrites=attention",
    ),
    "attention in a scan, written with cuDNN": (step(**SCANNED), None),
    "stacks of a scan without a first value": (step(**SCANNED), "rewrites=stacks"),
    "attention with padding, as written": (masked("padding", False), None),
    "attention with padding, rewritten": (masked("padding", False), "rewrites=attention"),
    "attention with padding, written with cuDNN": (masked("padding", True), None),
    "attention with a bias and its gradient, as written": (masked("bias", False), None),
    "attention with a bias and its gradient, rewritten": (masked("bias", False), "rewrites=attention"),
    "attention with a bias and its gradient, written with cuDNN": (masked("bias", True), None),
    **over_eight_cases(),
    "experts with ragged_dot, as written": (experts("ragged"), None),
    "experts with ragged_dot, rewritten": (experts("ragged"), "rewrites=ragged-dot"),
    "experts with one-hot tensors, as written": (experts("onehot"), None),
    "experts with one-hot tensors, rewritten": (experts("onehot"), "rewrites=one-hot"),
    "experts with gathers by hand": (experts("gather"), None),
    "micro-batches one after another, as written": (micro_batches, None),
    "micro-batches one after another, rewritten": (micro_batches, "rewrites=fence fence-bytes=16777216"),
    "mask carried by a scan, as written": (carried_mask, None),
    "mask carried by a scan, rewritten": (carried_mask, "rewrites=sink"),
}


def measure(program, layers: int, rewrite: str | None, target: Target):
    lowered = program(target, layers)
    if rewrite is None:
        return oracle.measure(lowered, target), None
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
    operations = module.num_ops
    if target.device_count > 1:
        rewrite += f" attention-split={','.join(attention_splits(module))}"
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
    for name, (program, rewrite) in CASES.items():
        if arguments.only not in name:
            continue
        here = EIGHT if "8 devices" in name else target
        measured, run = measure(program, arguments.layers, rewrite, here)
        alone = name.startswith(("experts", "attention with ", "micro-batches", "mask "))
        row = name if alone else f"{name}, {arguments.layers} layers"
        stored["rows"][row] = {
            "temp_bytes": measured.temp_bytes,
            "total_bytes": measured.total_bytes,
            "flops": measured.flops,
            "bytes_moved": measured.bytes_moved,
            "kernels": measured.kernels,
            **({"ideal_flops": IDEAL_EXPERTS} if name.startswith("experts with ragged_dot") else {}),
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
