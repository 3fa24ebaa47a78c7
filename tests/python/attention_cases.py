"""Attention with biases and with masks that are known only at run time, as public models write it.

Each function takes queries [B, S, H, D], keys and values [B, T, K, D], and more arguments.
"""

import dataclasses
from collections.abc import Callable

import fusion_cases as cases
import jax
import jax.numpy as jnp
import numpy as np

BIG = -0.7 * float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class Case:
    """attend(q, k, v, *more); more(random, sizes) makes the others; by_more: their gradients are asked for."""

    attend: Callable
    more: Callable
    by_more: bool = False
    kernel_masks: bool = False  # the kernel's own causal mask is used as well


def scores_of(q, k):
    """[B, K, G, S, T] in f32, scaled."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = jnp.einsum("bskgd,btkd->bkgst", grouped, k, preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5


def mix(scores, v, like):
    weights = jax.nn.softmax(scores, axis=-1).astype(like.dtype)
    return jnp.einsum("bkgst,btkd->bskgd", weights, v).reshape(like.shape)


def lengths(random, sizes):
    """Of the sequences, none of them empty."""
    return (jnp.asarray(random.integers(1, sizes.length + 1, sizes.batch), jnp.int32),)


def tokens_seen(random, sizes):
    seen = random.random((sizes.batch, sizes.length)) < 0.7
    seen[:, 0] = True
    return (jnp.asarray(seen),)


def segments(random, sizes):
    return (jnp.asarray(np.sort(random.integers(0, 4, (sizes.batch, sizes.length)), -1), jnp.int32),)


def padded(q, k, v, length):
    """Keys behind the end of each sequence are masked."""
    seen = jnp.arange(k.shape[1])[None] < length[:, None]
    return mix(jnp.where(seen[:, None, None, None], scores_of(q, k), -1e30), v, q)


def padded_and_causal(q, k, v, length):
    at = jnp.arange(k.shape[1])
    seen = (at[None, None] < length[:, None, None]) & (at[None] <= at[:, None])
    return mix(jnp.where(seen[:, None, None], scores_of(q, k), -1e9), v, q)


def bert(q, k, v, seen):
    """An additive mask made of a mask of tokens."""
    bias = jax.lax.select(seen, jnp.zeros(seen.shape), jnp.full(seen.shape, jnp.finfo(jnp.float32).min))
    return mix(scores_of(q, k) + bias[:, None, None, None], v, q)


def one_minus(q, k, v, seen):
    return mix(scores_of(q, k) + (1 - seen.astype(jnp.float32))[:, None, None, None] * -10000.0, v, q)


def packed(q, k, v, segment):
    """Sequences packed into one row: a token sees earlier ones of its own segment. Masks are added (MaxText)."""
    same = (segment[:, :, None] == segment[:, None])[:, None, None]
    causal = cases.tril(k.shape[1])
    return mix(scores_of(q, k) + jnp.where(same & causal, 0.0, BIG), v, q)


def two_masks(q, k, v, segment):
    """One selection inside the other."""
    scores = cases.causal(scores_of(q, k))
    same = (segment[:, :, None] == segment[:, None])[:, None, None]
    return mix(jnp.where(same, scores, BIG), v, q)


def any_mask(q, k, v, seen):
    """A mask of [B, 1, S, T] that somebody made (Haiku, Equinox)."""
    return mix(jnp.where(seen[:, None], scores_of(q, k), -1e30), v, q)


def whole_masks(random, sizes):
    seen = random.random((sizes.batch, 1, sizes.length, sizes.length)) < 0.5
    seen[..., 0] = True
    return (jnp.asarray(seen),)


def bucket(length):
    """Logarithmic buckets of relative positions, eight of them."""
    at = np.arange(length)
    distance = np.abs(at[:, None] - at)
    return np.minimum(np.floor(2 * np.log2(distance + 1)).astype(int), 7)


def t5(q, k, v, table):
    """Relative position biases by bucket and head, no scale, causal."""
    heads = q.shape[2]
    bias = jnp.take(table, bucket(q.shape[1]), axis=0).transpose(2, 0, 1)
    scores = scores_of(q, k) * q.shape[-1] ** 0.5
    bias = bias.reshape(1, k.shape[2], heads // k.shape[2], *bias.shape[1:])
    return mix(cases.causal(scores + bias.astype(jnp.float32)), v, q)


def t5_table(random, sizes):
    return (jnp.asarray(random.standard_normal((8, sizes.heads)), jnp.bfloat16),)


def learned(q, k, v, bias):
    """A bias for each head and pair of positions."""
    scores = scores_of(q, k)
    return mix(scores + bias.reshape(1, *scores.shape[1:]).astype(jnp.float32), v, q)


def shared(q, k, v, bias):
    """One bias for all heads."""
    return mix(scores_of(q, k) + bias.astype(jnp.float32), v, q)


def given(q, k, v, bias):
    return mix(scores_of(q, k) + bias.reshape(scores_of(q, k).shape).astype(jnp.float32), v, q)


def biases(*names):
    def make(random, sizes):
        extents = {"b": sizes.batch, "h": sizes.heads, "s": sizes.length}
        shape = [extents[name] for name in names]
        return (jnp.asarray(random.standard_normal(shape), jnp.bfloat16),)

    return make


def packed_but_for_one(q, k, v, segment):
    """Causal segments of which one query sees one later key: from a table, and by numbers."""
    same = (segment[:, :, None] == segment[:, None])[:, None, None]
    i, j = cases.positions(k.shape[1])
    table = np.tril(np.ones((k.shape[1],) * 2, bool))
    table[9, 30] = True
    return mix(jnp.where((same & jnp.asarray(table)) | ((i == 20) & (j == 25)), scores_of(q, k), BIG), v, q)


def prefix(q, k, v):
    """The first eight positions are seen by all."""
    return mix(cases.masked(lambda i, j: (j <= i) | (j < 8))(scores_of(q, k)), v, q)


def library(**options):
    def attend(q, k, v, *more):
        given = dict(zip(options["more"], more, strict=True)) if "more" in options else {}
        rest = {name: value for name, value in options.items() if name != "more"}
        return jax.nn.dot_product_attention(q, k, v, implementation="xla", **given, **rest)

    return attend


def layers_flag(q, k, v, flag):
    """A model in which some layers see a window only, told apart by a run-time flag (Gemma)."""
    near = cases.masked(lambda i, j: (j <= i) & (i - j < 6))
    scores = scores_of(q, k)
    return mix(jnp.where(flag, near(scores), cases.causal(scores)), v, q)


def mask_by_flag(q, k, v, flag):
    """The same by masks."""
    near = cases.positions(q.shape[1])[0] - cases.positions(q.shape[1])[1] < 6
    return mix(jnp.where((near | ~flag) & cases.tril(q.shape[1]), scores_of(q, k), BIG), v, q)


def chunked(q, k, v):
    """Queries in four chunks under a scan, each recomputed in the backward."""
    size = q.shape[1] // 4

    @jax.checkpoint
    def one(piece, start):
        rows = start + jax.lax.broadcasted_iota(jnp.int32, (size, k.shape[1]), 0)
        columns = jax.lax.broadcasted_iota(jnp.int32, (size, k.shape[1]), 1)
        return mix(jnp.where(rows >= columns, scores_of(piece, k), -1e30), v, piece)

    pieces = q.reshape(q.shape[0], 4, size, *q.shape[2:]).swapaxes(0, 1)
    _, out = jax.lax.scan(lambda _, x: (None, one(*x)), None, (pieces, size * jnp.arange(4)))
    return out.swapaxes(0, 1).reshape(q.shape)


def nothing(random, sizes):
    return ()


def flag(random, sizes):
    return (jnp.bool_(True),)


MATCHED = {
    "padding": Case(padded, lengths),
    "padding, causal": Case(padded_and_causal, lengths),
    "padding under checkpoint": Case(jax.checkpoint(padded), lengths),
    "BERT": Case(bert, tokens_seen),
    "BERT, one minus the mask": Case(one_minus, tokens_seen),
    "packed segments": Case(packed, segments, kernel_masks=True),
    "packed segments but for one": Case(packed_but_for_one, segments),
    "two masks": Case(two_masks, segments, kernel_masks=True),
    "any mask": Case(any_mask, whole_masks),
    "T5": Case(t5, t5_table, by_more=True, kernel_masks=True),
    "bias by head": Case(learned, biases("h", "s", "s"), by_more=True),
    "bias of all heads": Case(shared, biases("s", "s"), by_more=True),
    "bias by batch and head": Case(given, biases("b", "h", "s", "s")),
    "prefix": Case(prefix, nothing),
    "library, mask": Case(library(more=("mask",)), whole_masks),
    "library, causal and mask": Case(library(more=("mask",), is_causal=True), whole_masks),
    "library, lengths": Case(library(more=("key_value_seq_lengths",)), lengths),
    "window by a flag": Case(mask_by_flag, flag, kernel_masks=True),
    "chunks of queries": Case(chunked, nothing),
}


def f32_bias(q, k, v, bias):
    return mix(scores_of(q, k) + bias.reshape(scores_of(q, k).shape), v, q)


def soft_capped(q, k, v, seen):
    return mix(jnp.where(seen[:, None, None, None], 20 * jnp.tanh(scores_of(q, k) / 20), -1e30), v, q)


def capped_in_some_layers(q, k, v, layer):
    scores = scores_of(q, k)
    return mix(cases.causal(jnp.where(layer == 7, jnp.tanh(scores), scores)), v, q)


def infinite(q, k, v, seen):
    return mix(jnp.where(seen[:, None, None, None], scores_of(q, k), -jnp.inf), v, q)


def multiplied(q, k, v, seen):
    return mix(scores_of(q, k) * seen[:, None, None, None], v, q)


def layer_number(random, sizes):
    return (jnp.int32(3),)


REFUSED = {
    "soft-capped and padded": (Case(soft_capped, tokens_seen), "nonlinear function"),
    "capped in some layers": (Case(capped_in_some_layers, layer_number), "nonlinear|meet themselves"),
    "minus infinity": (Case(infinite, tokens_seen), "would be nan"),
    "multiplied by a mask": (Case(multiplied, tokens_seen), "multiplied by something known only at run time"),
    "by a flag": (Case(layers_flag, flag), "meet themselves"),
    "bias in f32": (
        Case(
            f32_bias,
            lambda random, sizes: (
                jnp.asarray(
                    random.standard_normal((sizes.batch, sizes.heads, sizes.length, sizes.length)),
                    jnp.float32,
                ),
            ),
        ),
        "more digits",
    ),
    "gradient of a bias by batch": (
        Case(given, biases("b", "h", "s", "s"), by_more=True),
        "also read by|returned or kept",
    ),
}


def flax(q, k, v, seen):
    """flax.linen and flax.nnx: scaled queries, a mask by the type's least number, everything in the inputs' type."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    weights = jnp.einsum("...qhd,...khd->...hqk", q / jnp.sqrt(q.shape[-1]).astype(q.dtype), k)
    weights = jnp.where(seen, weights, jnp.finfo(q.dtype).min)
    weights = jax.nn.softmax(weights).astype(q.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, v)


def flax_bias(q, k, v, seen):
    """The same with the mask as a bias in the inputs' type (Hugging Face's BERT)."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    bias = jax.lax.select(
        seen > 0,
        jnp.full(seen.shape, 0.0, q.dtype),
        jnp.full(seen.shape, jnp.finfo(q.dtype).min, q.dtype),
    )
    weights = jnp.einsum("...qhd,...khd->...hqk", q / jnp.sqrt(q.shape[-1]).astype(q.dtype), k) + bias
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(weights).astype(q.dtype), v)


def haiku(q, k, v, seen):
    """dm-haiku's MultiHeadAttention."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("...thd,...Thd->...htT", q, k) / np.sqrt(q.shape[-1]).astype(q.dtype)
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e30))
    return jnp.einsum("...htT,...Thd->...thd", weights, v)


def equinox(q, k, v, seen):
    """Equinox: one sequence and head at a time, mapped; f32 softmax."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))

    def one(q, k, v, seen):
        logits = jnp.einsum("sd,Sd->sS", q / np.sqrt(q.shape[-1]).astype(q.dtype), k)
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(logits.dtype)
        return jnp.einsum("sS,Sd->sd", weights, v)

    return jax.vmap(jax.vmap(one, (1, 1, 1, None), 1))(q, k, v, seen[:, 0])


def alibi(q, k, v):
    """Distances times a slope for each head."""
    slopes = 2.0 ** (-8 * np.arange(1, q.shape[2] + 1) / q.shape[2])
    at = jnp.arange(q.shape[1])
    bias = slopes.reshape(1, k.shape[2], -1, 1, 1) * (at - at[:, None]).astype(jnp.float32)
    return mix(cases.causal(scores_of(q, k) + bias), v, q)


RELAXED = {
    "Flax": Case(flax, whole_masks),
    "Flax, mask as a bias": Case(flax_bias, whole_masks),
    "Haiku": Case(haiku, whole_masks),
}
MATCHED["ALiBi"] = Case(alibi, nothing, kernel_masks=True)
MATCHED["Equinox"] = Case(equinox, whole_masks)
