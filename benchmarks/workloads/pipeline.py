"""A pipeline of stages over microbatches (Huang et al. 2019, GPipe): activations travel in permutes.

Each device has one stage of stacked layers. A scan runs one tick an iteration: every stage works on the
microbatch it has and hands it to the next stage; differentiating the scan gives the backward pipeline.
Embedding and head are sharded over the same devices and gathered; after the pipeline every device computes the
loss of its share of the microbatches.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from workloads import decoder, training
from workloads.decoder_manual import finish_manual, gather, opened
from workloads.registry import Built


def build(
    target: Any = None,
    *,
    size: str = "1b",
    attention: str = "cudnn",
    microbatches: int = 16,
    recompute: bool = False,
    layers: int | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Built:
    """The training step with as many stages as the target has devices.

    Args:
      target: as many devices as divide the layers and the microbatches.
      size, attention, layers, batch, length: as `decoder.build`.
      microbatches: pieces that the batch is cut into.
      recompute: keep only each stage's input for the backward.
    """
    stages, s, plan = opened(target, size, "scanned", layers, batch, length, attention=attention)
    if s.layers % stages or microbatches % stages or s.batch % microbatches:
        raise ValueError(
            f"{stages} stages, {s.layers} layers, batch {s.batch} in {microbatches} microbatches"
        )
    mesh = target.mesh(names=("p",))
    onward = [(i, i + 1) for i in range(stages - 1)]

    def loss(weights, tokens, labels):
        positions = jnp.arange(tokens.shape[1])
        stage = lax.axis_index("p")
        own = training.half(weights["layers"])
        embedded = gather(weights["embedding"], 0, "p")[tokens]
        inputs = embedded.reshape(microbatches, -1, *embedded.shape[1:])

        def run(x):
            for n in range(s.layers // stages):
                w = jax.tree.map(lambda stacked, n=n: stacked[n], own)
                x = decoder.decoder_layer(s, plan, x, w, positions)
            return x

        if recompute:
            run = jax.checkpoint(run, prevent_cse=False)

        def tick(arrived, t):
            first = lax.dynamic_index_in_dim(inputs, jnp.minimum(t, microbatches - 1), keepdims=False)
            y = run(jnp.where(stage == 0, first, arrived))
            return lax.ppermute(y, "p", onward), y

        ticks = jnp.arange(microbatches + stages - 1)
        _, out = lax.scan(tick, jnp.zeros_like(inputs[0]), ticks)
        # What the last stage finished, a share of the microbatches for each device.
        finished = jnp.where(stage == stages - 1, out[stages - 1 :], 0)
        x = lax.psum_scatter(finished, "p", scatter_dimension=0, tiled=True)
        x = decoder.rms_norm(x.reshape(-1, *x.shape[2:]), gather(weights["final_norm"], 0, "p"))
        head = gather(weights["head"], 1, "p")
        logits = jnp.einsum("bsd,dv->bsv", x, head, preferred_element_type=jnp.float32)
        share = labels.shape[0] // stages
        mine = lax.dynamic_slice_in_dim(labels, stage * share, share)
        return training.cross_entropy(logits, mine) / stages

    def spec(path, shape):
        return P(None, "p") if path[-1].key == "head" else P("p", *[None] * (len(shape) - 1))

    return finish_manual(target, mesh, s, "scanned", loss, spec, P(), axis="p")
