"""Training steps as an expert would annotate them: each is given `under`, which wraps the layers that `jax.checkpoint` would be
put around. Written before anyone looked at what farrier makes of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from unseen.ninth import block, block_shapes
from unseen.parts import (
    ADAMW,
    LION,
    MOMENTUM,
    accumulated,
    bf,
    conv,
    cross_entropy,
    gated,
    layer_norm,
    rms,
    rope,
    tokens,
)
from unseen.seventh import attended, listed, past, stacked
from unseen.steps import ADAM, Devices, Training, rnd
from unseen.tenth import decoder, decoder_shapes

Under = Callable[..., Callable[..., Any]]


def phi(under: Under, D=1280, F=5120, H=20, T=1024, B=8, V=51200, L=4):
    """Attention by a kernel and a GELU side by side behind one layer norm, biases, half of each head rotated, unrolled, bf16."""
    d = D // H
    shapes = dict(n=(2, D), qkv=(D, 3 * D), o=(D, D), a=(D, F), c=(F,), b=(F, D))

    def turned(x):
        return jnp.concatenate([rope(x[..., : d // 2]), x[..., d // 2 :]], -1)

    @under
    def layer(x, p):
        h = layer_norm(x, *p["n"])
        q, k, v = jnp.moveaxis((h @ bf(p["qkv"])).reshape(B, T, 3, H, d), 2, 0)
        y = jax.nn.dot_product_attention(turned(q), turned(k), v, is_causal=True, implementation="cudnn")
        return x + y.reshape(B, T, D) @ bf(p["o"]) + jax.nn.gelu(h @ bf(p["a"]) + bf(p["c"])) @ bf(p["b"])

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = layer(x, p)
        return cross_entropy((layer_norm(x, *ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(2, D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAMW


def olmo2(under: Under, D=1536, F=4096, H=12, K=12, T=1024, B=4, V=50304, L=5):
    """Norms of queries, keys and what each part gives, attention written out, squares of normalisers, layers in a scan, bf16."""
    d = D // H
    shapes = dict(q=(D, D), k=(D, D), v=(D, D), s=(2, d), o=(D, D), n=(2, D), g=(D, F), u=(D, F), w=(F, D))

    def layer(x, p):
        q, k, v = ((x @ bf(p[i])).reshape(B, T, K, d) for i in "qkv")
        q, k = rope(rms(q, p["s"][0])), rope(rms(k, p["s"][1]))
        x = x + rms(attended(q[:, :, :, None], k, v, past(T)) @ bf(p["o"]), p["n"][0])
        return x + rms((jax.nn.silu(x @ bf(p["g"])) * (x @ bf(p["u"]))) @ bf(p["w"]), p["n"][1]), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(under(layer, scanned=True), bf(ps["e"])[t], ps["l"])
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:], z=1e-4)

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAMW


def gshard(under: Under, D=1024, F=2048, H=16, E=8, C=320, S=1024, B=8, V=32000, L=3):
    """Two experts a token by capacity, dispatched and combined by one-hot products for each row of the batch, a balance of loads,
    every second layer dense, pairs of layers in a scan, bf16.
    """
    shapes = {"d" + k: v for k, v in block_shapes(D).items()} | {
        "e" + k: v for k, v in block_shapes(D, F).items()
    }
    shapes |= dict(ea=(E, D, F), ec=(E, F), eb=(E, F, D), r=(D, E))

    def experts(p, x):
        gate = jax.nn.softmax((x @ bf(p["r"])).astype(jnp.float32), -1)
        first = jax.nn.one_hot(jnp.argmax(gate, -1), E)
        second = jax.nn.one_hot(jnp.argmax(gate * (1 - first), -1), E)
        balance = E * jnp.mean(gate.mean(1) * first.mean(1))
        both = jnp.stack([first, second], 1)
        place = (jnp.cumsum(both.reshape(B, 2 * S, E), 1) - 1).reshape(both.shape) * both
        kept = both * (place < C)
        slot = jax.nn.one_hot((place * kept).sum(-1).astype(jnp.int32), C)
        combine = jnp.einsum("bks,bkse,bksc->bsec", (gate[:, None] * kept).sum(-1), kept, slot)
        h = jnp.einsum("bsec,bsd->ebcd", bf(combine > 0), x)
        h = jax.nn.gelu(jnp.einsum("ebcd,edf->ebcf", h, bf(p["ea"])) + bf(p["ec"])[:, None, None])
        y = jnp.einsum("ebcf,efd->ebcd", h, bf(p["eb"]))
        return jnp.einsum("bsec,ebcd->bsd", bf(combine), y), balance

    def layer(x, p):
        x = block(x, {k[1:]: v for k, v in p.items() if k[0] == "d"}, H, past(S))
        h = (layer_norm(x, *p["en"]) @ bf(p["eqkv"])).reshape(B, S, 3, H, -1)
        x = x + attended(h[:, :, 0, :, None], h[:, :, 1], h[:, :, 2], past(S)) @ bf(p["eo"])
        y, balance = experts(p, layer_norm(x, *p["em"]))
        return x + y, balance

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, balance = lax.scan(under(layer, scanned=True), bf(ps["e"])[t] + bf(ps["p"]), ps["l"])
        return (
            cross_entropy((layer_norm(x, *ps["n"]) @ bf(ps["e"]).T)[:, :-1], t[:, 1:]) + 0.01 * balance.sum()
        )

    def params():
        return dict(e=rnd(V, D), p=rnd(S, D), l=stacked(L, shapes), n=rnd(2, D))

    return loss, params, dict(t=(B, S)), ADAMW


def deeplab(under: Under, C=256, S=64, B=16, K=21, rates=(1, 2, 4, 8)):
    """Pictures to classes of pixels: bottlenecks with group norms and dilated filters, features of several rates joined, and
    enlarged by interpolation, SGD with momentum, bf16.
    """

    def norm(x, p, groups=32):
        h = x.astype(jnp.float32).reshape(*x.shape[:3], groups, -1)
        h = (h - h.mean((1, 2, 4), keepdims=True)) * lax.rsqrt(h.var((1, 2, 4), keepdims=True) + 1e-5)
        return bf(h.reshape(x.shape) * p[0] + p[1])

    def dilated(x, w, rate):
        return lax.conv_general_dilated(
            x, bf(w), (1, 1), "SAME", rhs_dilation=(rate, rate), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def bottleneck(x, p, rate):
        h = jax.nn.relu(norm(conv(x, p["a"]), p["n"][:, : C // 2]))
        h = jax.nn.relu(norm(dilated(h, p["b"], rate), p["m"][:, : C // 2]))
        return jax.nn.relu(x + norm(conv(h, p["c"]), p["o"]))

    def loss(ps, b):
        x = jax.nn.relu(norm(conv(bf(b["x"]), ps["s"], 2), ps["n"]))
        for p, rate in zip(ps["l"], rates * 2, strict=True):
            x = under(lambda x, p, rate=rate: bottleneck(x, p, rate))(x, p)
        x = jnp.concatenate([dilated(x, w, rate) for w, rate in zip(ps["r"], rates, strict=True)], -1)
        x = conv(jax.nn.relu(norm(x, ps["m"])), ps["h"]).astype(jnp.float32)
        x = jax.image.resize(x, (B, 2 * S, 2 * S, K), "bilinear")
        return cross_entropy(x, tokens(b["y"], K))

    def params():
        one = dict(
            a=(1, 1, C, C // 2), n=(2, C), b=(3, 3, C // 2, C // 2), m=(2, C), c=(1, 1, C // 2, C), o=(2, C)
        )
        return dict(
            s=rnd(7, 7, 3, C), n=rnd(2, C), l=listed(2 * len(rates), one), r=[rnd(3, 3, C, C // 4) for _ in rates],
            m=rnd(2, C), h=rnd(1, 1, C, K),
        )  # fmt: skip

    return loss, params, dict(x=(B, 2 * S, 2 * S, 3), y=(B, 2 * S, 2 * S)), MOMENTUM


def latte(under: Under, D=1024, H=16, F=16, S=256, B=4, C=16, L=3):
    """Video diffusion: attention within frames, then along time, each block shifted and scaled by the noise level, pairs of blocks
    in a scan, bf16.
    """
    shapes = {"s" + k: v for k, v in block_shapes(D).items()} | {
        "t" + k: v for k, v in block_shapes(D).items()
    }
    shapes |= dict(ada=(D, 12 * D))

    def part(x, p, shifts):
        a, b, c, d, e, f = shifts
        h = layer_norm(x, *p["n"]) * (1 + b) + a
        h = (h @ bf(p["qkv"])).reshape(*x.shape[:2], 3, H, -1)
        x = x + c * (attended(h[:, :, 0, :, None], h[:, :, 1], h[:, :, 2]) @ bf(p["o"]))
        h = layer_norm(x, *p["m"]) * (1 + e) + d
        return x + f * (jax.nn.gelu(h @ bf(p["a"]) + bf(p["c"])) @ bf(p["b"]))

    def loss(ps, b):
        f = jnp.exp(-jnp.arange(D // 2) * 18.4 / D) * b["t"][:, None] * 1000.0
        level = jax.nn.silu(bf(jnp.concatenate([jnp.cos(f), jnp.sin(f)], -1)) @ bf(ps["c"]))
        alpha = jnp.cos(b["t"] * 1.57)[:, None, None, None]
        x = bf(alpha * b["x"] + jnp.sqrt(1 - alpha**2) * b["n"]) @ bf(ps["i"]) + bf(ps["p"])

        def layer(x, p):
            shifts = (level @ bf(p["ada"])).reshape(B, 1, 12, D)
            within, along = (jnp.repeat(shifts, n, 1).reshape(-1, 1, 12, D) for n in (F, S))
            x = part(
                x.reshape(B * F, S, D),
                {k[1:]: v for k, v in p.items() if k[0] == "s"},
                jnp.moveaxis(within[:, :, :6], 2, 0),
            )
            x = x.reshape(B, F, S, D).swapaxes(1, 2).reshape(B * S, F, D)
            x = part(x, {k[1:]: v for k, v in p.items() if k[0] == "t"}, jnp.moveaxis(along[:, :, 6:], 2, 0))
            return x.reshape(B, S, F, D).swapaxes(1, 2), None

        x, _ = lax.scan(under(layer, scanned=True), x, ps["l"])
        return jnp.mean((layer_norm(x, *ps["m"]) @ bf(ps["o"]) - b["n"]).astype(jnp.float32) ** 2)

    def params():
        return dict(i=rnd(C, D), p=rnd(S, D), c=rnd(D, D), l=stacked(L, shapes), m=rnd(2, D), o=rnd(D, C))

    return loss, params, dict(x=(B, F, S, C), n=(B, F, S, C), t=(B,)), ADAMW


def deltanet(under: Under, D=1024, F=2816, H=8, T=2048, C=64, B=4, V=32000, L=3):
    """Delta rule by chunks of time: keys made orthogonal within a chunk by a triangular solve, states handed on in a scan, a gated
    feed-forward part, unrolled, bf16.
    """
    d, N = D // H, T // C
    shapes = dict(
        n=(D,), q=(D, D), k=(D, D), v=(D, D), b=(D, H), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D)
    )

    def mixed(q, k, v, beta):
        def chunks(x):
            return jnp.moveaxis(x.reshape(B, N, C, H, -1), (1, 3), (0, 2))

        q, k, v, beta = map(chunks, (q, k, v, beta[..., None]))
        k = k * lax.rsqrt(jnp.sum(k.astype(jnp.float32) ** 2, -1, keepdims=True) + 1e-6)
        k, scaled = bf(k), bf(k * beta)
        low = jnp.tril(jnp.einsum("nbhid,nbhjd->nbhij", scaled, k).astype(jnp.float32), -1) + jnp.eye(C)
        both = jnp.concatenate([scaled, bf(v * beta)], -1).astype(jnp.float32)
        w, u = jnp.split(bf(lax.linalg.triangular_solve(low, both, left_side=True, lower=True)), 2, -1)

        def step(state, now):
            q, k, w, u = now
            u = u - w @ bf(state)
            y = q @ bf(state) + bf(jnp.tril(jnp.einsum("bhid,bhjd->bhij", q, k))) @ u
            return state + jnp.einsum("bhid,bhie->bhde", k, u).astype(jnp.float32), y

        _, y = lax.scan(step, jnp.zeros((B, H, d, d)), (q, k, w, u))
        return jnp.moveaxis(y, (0, 2), (1, 3)).reshape(B, T, D)

    @under
    def layer(x, p):
        h = rms(x, p["n"])
        q, k, v = (jax.nn.silu(h @ bf(p[i])) for i in "qkv")
        x = x + mixed(q, k, v, jax.nn.sigmoid(h @ bf(p["b"]))) @ bf(p["o"])
        h = rms(x, p["m"])
        return x + gated(h, p)

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = layer(x, p)
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["e"]).T)[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(D))

    return loss, params, dict(t=(B, T)), ADAMW


def gpipe(under: Under, D=1536, F=4096, H=12, K=4, T=1024, B=8, V=32000, L=2, stages=4):
    """A pipeline of four devices, each with two layers: activations are handed on by `ppermute` in a scan over micro-batches and the
    ticks that fill and drain it, the head on all, bf16.
    """
    d = D // H

    def layer(x, p):
        return decoder(x, p, K, d, past(T)), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        here = lax.axis_index("p")
        rows = bf(ps["e"])[t].reshape(B, 1, T, D)

        def tick(x, now):
            x = jnp.where(here == 0, now, x)
            x, _ = lax.scan(under(layer, scanned=True), x, ps["l"])
            return lax.ppermute(x, "p", [(i, (i + 1) % stages) for i in range(stages)]), x

        feed = jnp.concatenate([rows, jnp.zeros((stages - 1, 1, T, D), rows.dtype)])
        _, y = lax.scan(tick, jnp.zeros((1, T, D), rows.dtype), feed)
        y = jnp.where(here == stages - 1, y[stages - 1 :, 0], 0)
        each = cross_entropy((rms(y, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])
        return jnp.where(here == stages - 1, each, 0.0)

    def params():
        return dict(e=rnd(V, D), l=stacked(stages * L, decoder_shapes(D, F, K, d)), n=rnd(D), h=rnd(D, V))

    shapes = jax.eval_shape(params)
    specs = jax.tree.map(lambda _: PartitionSpec(), shapes) | {
        "l": jax.tree.map(lambda _: PartitionSpec("p"), shapes["l"])
    }

    def gradients(loss):
        def of(p, batch):
            value, g = jax.value_and_grad(loss)(p, batch)
            shared = {k: lax.psum(v, "p") for k, v in g.items() if k != "l"}
            return lax.psum(value, "p"), g | shared

        return of

    return (
        loss,
        params,
        dict(t=(B, T)),
        Training(gradients=gradients),
        Devices((stages,), ("p",), specs, PartitionSpec()),
    )


def accumulate(under: Under, D=1536, F=4096, H=12, K=4, T=1024, B=16, V=32000, L=3, parts=4):
    """A gated decoder, layers unrolled, whose gradients are summed over four parts of the batch in a scan, bf16, Lion."""
    d = D // H

    @under
    def layer(x, p):
        return decoder(x, p, K, d, past(T))

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = layer(x, p)
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=listed(L, decoder_shapes(D, F, K, d)), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), Training(LION.update, 1, accumulated(parts))


def marian(under: Under, D=1024, F=4096, H=16, S=256, T=256, B=32, V=32000, L=3):
    """Translation: norms behind each part, dropout of probabilities and sums, tied embeddings, smoothed labels, both stacks unrolled,
    bf16.
    """
    shapes = dict(q=(D, D), k=(D, D), v=(D, D), o=(D, D), n=(2, D))
    feed = dict(a=(D, F), b=(F, D), m=(2, D))
    cross = {"c" + k: v for k, v in shapes.items()}

    def dropped(key, x, rate=0.1):
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)

    def attend(p, x, y, key, seen=None):
        q, k, v = ((h @ bf(p[i])).reshape(*h.shape[:2], H, -1) for h, i in zip((x, y, y), "qkv", strict=True))
        s = jnp.einsum("bthd,bshd->bhts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        if seen is not None:
            s = jnp.where(seen, s, -1e9)
        keys = jax.random.split(key)
        a = dropped(keys[0], bf(jax.nn.softmax(s, -1)))
        y = jnp.einsum("bhts,bshd->bthd", a, v).reshape(x.shape) @ bf(p["o"])
        return layer_norm(x + dropped(keys[1], y), *p["n"])

    def feeds(p, x, key):
        return layer_norm(x + dropped(key, jax.nn.relu(x @ bf(p["a"])) @ bf(p["b"])), *p["m"])

    @under
    def encode(x, p, key):
        keys = jax.random.split(key)
        return feeds(p, attend(p, x, x, keys[0]), keys[1])

    @under
    def decode(x, y, p, key):
        keys = jax.random.split(key, 3)
        x = attend(p, x, x, keys[0], past(T))
        x = attend({k[1:]: v for k, v in p.items() if k[0] == "c"}, x, y, keys[1])
        return feeds(p, x, keys[2])

    def loss(ps, b):
        s, t = tokens(b["s"], V), tokens(b["t"], V)
        keys = jax.random.split(jax.random.key(7), 2 * L)
        x, y = bf(ps["e"])[s], bf(ps["e"])[t]
        for p, key in zip(ps["x"], keys[:L], strict=True):
            x = encode(x, p, key)
        for p, key in zip(ps["y"], keys[L:], strict=True):
            y = decode(y, x, p, key)
        return cross_entropy((y @ bf(ps["e"]).T)[:, :-1], t[:, 1:], smoothing=0.1)

    def params():
        return dict(e=rnd(V, D), x=listed(L, shapes | feed), y=listed(L, shapes | cross | feed))

    return loss, params, dict(s=(B, S), t=(B, T)), ADAM


def lstms(under: Under, D=1024, T=128, B=64, V=16384, L=3):
    """Language model of three layers of memory cells with norms inside, a scan over time for each, f32."""

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = ps["e"][t].swapaxes(0, 1)
        for p in ps["l"]:

            def cell(carry, x, p=p):
                h, c = carry
                gates = rms(x @ p["x"] + h @ p["h"], p["n"]) + p["b"]
                i, f, g, o = jnp.split(gates, 4, -1)
                c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(rms(c, p["m"]))
                return (h, c), h

            zeros = jnp.zeros((B, D))
            x = x + lax.scan(under(cell, scanned=True), (zeros, zeros), x)[1]
        return cross_entropy((x @ ps["h"])[:-1], t.T[1:])

    def params():
        one = dict(x=(D, 4 * D), h=(D, 4 * D), n=(4 * D,), b=(4 * D,), m=(D,))
        return dict(e=rnd(V, D), l=listed(L, one), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAM


ALL = {
    each.__name__: each
    for each in (phi, olmo2, gshard, deeplab, latte, deltanet, gpipe, accumulate, marian, lstms)
}
