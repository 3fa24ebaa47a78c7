"""More steps of large models, other ones, written and measured with the rules that the fifth part gave."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from unseen.parts import (
    ADAFACTOR,
    ADAMW,
    AVERAGED,
    MOMENTUM,
    bf,
    cross_entropy,
    gated,
    layer_norm,
    rms,
    rope,
    tokens,
)
from unseen.steps import ADAM, rnd


def causal(scores, window=None):
    """Scores [..., queries, keys] in f32, later keys and those before a window masked."""
    away = jnp.arange(scores.shape[-2])[:, None] - jnp.arange(scores.shape[-1])
    seen = (away >= 0) if window is None else (away >= 0) & (away < window)
    return jnp.where(seen, scores.astype(jnp.float32), -2e38)


def gemma(D=1536, F=6144, H=8, K=4, d=192, T=1024, B=4, V=65536, P=2):
    """Local and global attention by turns, capped scores and logits, norms on both sides of a block, pairs of layers in a
    scan under jax.checkpoint, bf16.
    """

    def params():
        layer = dict(
            n=(D,),
            q=(D, H * d),
            k=(D, K * d),
            v=(D, K * d),
            o=(H * d, D),
            m=(D,),
            p=(D,),
            g=(D, F),
            u=(D, F),
            w=(F, D),
            r=(D,),
        )
        return dict(e=rnd(V, D), l=[{k: rnd(P, *s) for k, s in layer.items()} for _ in range(2)], n=rnd(D))

    def layer(x, p, window):
        h = rms(x, p["n"])
        q = rope((h @ bf(p["q"])).reshape(B, T, H, d)).reshape(B, T, K, H // K, d)
        k, v = rope((h @ bf(p["k"])).reshape(B, T, K, d)), (h @ bf(p["v"])).reshape(B, T, K, d)
        s = jnp.einsum("btkgd,bskd->bkgts", q, k) * d**-0.5
        s = 50.0 * jnp.tanh(s.astype(jnp.float32) / 50.0)
        o = jnp.einsum("bkgts,bskd->btkgd", bf(jax.nn.softmax(causal(s, window), -1)), v)
        x = x + rms(o.reshape(B, T, H * d) @ bf(p["o"]), p["m"])
        h = rms(x, p["p"])
        return x + rms((jax.nn.gelu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["w"]), p["r"])

    def loss(ps, b):
        t = tokens(b["t"], V)

        @jax.checkpoint
        def pair(x, p):
            return layer(layer(x, p[0], 256), p[1], None), None

        x, _ = lax.scan(pair, bf(ps["e"][t] * D**0.5), ps["l"])
        logits = (rms(x, ps["n"]) @ bf(ps["e"]).T).astype(jnp.float32)
        return cross_entropy((30.0 * jnp.tanh(logits / 30.0))[:, :-1], t[:, 1:])

    return loss, params, dict(t=(B, T)), ADAMW


def retnet(D=1024, H=8, T=2048, C=256, B=4, V=32000, L=3):
    """Retention: decaying linear attention, products within chunks and a state between them in a scan, gated, bf16."""
    d, n = D // H, T // C

    def params():
        layer = dict(
            n=(D,),
            q=(D, D),
            k=(D, D),
            v=(D, 2 * D),
            g=(D, 2 * D),
            o=(2 * D, D),
            m=(D,),
            a=(D, 2 * D),
            b=(2 * D, D),
        )
        return dict(
            e=rnd(V, D), l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)], n=rnd(D), h=rnd(D, V)
        )

    decay = jnp.log(1 - 2.0 ** (-5.0 - jnp.arange(H)))
    at = jnp.arange(C)
    inside = jnp.where(at[:, None] >= at, jnp.exp((at[:, None] - at) * decay[:, None, None]), 0.0)
    carried, left = jnp.exp((at + 1) * decay[:, None]), jnp.exp((C - 1 - at) * decay[:, None])

    def retain(q, k, v):
        def step(state, chunk):
            q, k, v = chunk
            y = jnp.einsum("bqhd,bkhd->bhqk", q, k) * bf(inside)
            y = jnp.einsum("bhqk,bkhe->bqhe", y, v)
            y = y + jnp.einsum("bqhd,bhde,hq->bqhe", q, bf(state), bf(carried))
            state = state * jnp.exp(C * decay)[:, None, None] + jnp.einsum(
                "bkhd,bkhe,hk->bhde", k, v, bf(left)
            )
            return state.astype(jnp.float32), y

        def split(t):
            return t.reshape(B, n, C, *t.shape[2:]).swapaxes(0, 1)

        _, y = lax.scan(step, jnp.zeros((B, H, d, 2 * d)), (split(q), split(k), split(v)))
        return y.swapaxes(0, 1).reshape(B, T, H, 2 * d)

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            h = rms(x, p["n"])
            q, k = rope((h @ bf(p["q"])).reshape(B, T, H, d)), rope((h @ bf(p["k"])).reshape(B, T, H, d))
            y = retain(q, k * d**-0.5, (h @ bf(p["v"])).reshape(B, T, H, 2 * d))
            y = rms(y, 1.0).reshape(B, T, 2 * D) * jax.nn.silu(h @ bf(p["g"]))
            x = x + y @ bf(p["o"])
            x = x + jax.nn.gelu(rms(x, p["m"]) @ bf(p["a"])) @ bf(p["b"])
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    return loss, params, dict(t=(B, T)), ADAM


def whisper(D=768, H=12, S=1500, T=224, B=8, V=51865, L=2):
    """Speech to text: a convolutional stem over spectrograms, encoder, decoder with attention to it, layer norms with
    biases, bf16.
    """
    d = D // H

    def params():
        def att():
            return dict(n=(rnd(D), rnd(D)), q=rnd(D, D), k=rnd(D, D), v=rnd(D, D), o=rnd(D, D), b=rnd(3, D))

        def ff():
            return dict(n=(rnd(D), rnd(D)), a=rnd(D, 4 * D), c=rnd(4 * D), b=rnd(4 * D, D), d=rnd(D))

        return dict(
            c=[rnd(3, 80, D), rnd(3, D, D)],
            s=rnd(S, D),
            enc=[dict(a=att(), f=ff()) for _ in range(L)],
            dec=[dict(a=att(), c=att(), f=ff()) for _ in range(L)],
            e=rnd(V, D),
            t=rnd(T, D),
            n=(rnd(D), rnd(D)),
            m=(rnd(D), rnd(D)),
        )

    def conv(x, w, s):
        return lax.conv_general_dilated(x, bf(w), (s,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC"))

    def attend(p, x, y, masked=False):
        def heads(t):
            return t.reshape(*t.shape[:2], H, d)

        q = heads(x @ bf(p["q"]) + bf(p["b"][0]))
        k, v = heads(y @ bf(p["k"])), heads(y @ bf(p["v"]) + bf(p["b"][1]))
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * d**-0.5
        o = jnp.einsum("bhqk,bkhd->bqhd", bf(jax.nn.softmax(causal(s) if masked else s, -1)), v)
        return o.reshape(x.shape) @ bf(p["o"]) + bf(p["b"][2])

    def ff(p, x):
        return x + jax.nn.gelu(layer_norm(x, *p["n"]) @ bf(p["a"]) + bf(p["c"])) @ bf(p["b"]) + bf(p["d"])

    def loss(ps, b):
        x = jax.nn.gelu(conv(bf(b["x"]), ps["c"][0], 1))
        x = jax.nn.gelu(conv(x, ps["c"][1], 2)) + bf(ps["s"])
        for p in ps["enc"]:
            h = layer_norm(x, *p["a"]["n"])
            x = ff(p["f"], x + attend(p["a"], h, h))
        x = layer_norm(x, *ps["n"])
        t = tokens(b["t"], V)
        y = bf(ps["e"][t] + ps["t"])
        for p in ps["dec"]:
            h = layer_norm(y, *p["a"]["n"])
            y = y + attend(p["a"], h, h, masked=True)
            y = ff(p["f"], y + attend(p["c"], layer_norm(y, *p["c"]["n"]), x))
        return cross_entropy((layer_norm(y, *ps["m"]) @ bf(ps["e"]).T)[:, :-1], t[:, 1:], smoothing=0.1)

    return loss, params, dict(x=(B, 2 * S, 80), t=(B, T)), ADAMW


def sit(D=1024, H=16, S=32, P=2, B=32, L=3):
    """Diffusion transformer: patches of latents, norms shifted and scaled by the time and class, weights averaged, bf16."""
    d, N = D // H, (S // P) ** 2

    def params():
        layer = dict(qkv=(D, 3 * D), o=(D, D), a=(D, 4 * D), b=(4 * D, D), m=(D, 6 * D))
        return dict(
            i=rnd(P * P * 4, D), p=rnd(N, D), t=[rnd(256, D), rnd(D, D)], c=rnd(1001, D),
            l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)], m=rnd(D, 2 * D), o=rnd(D, P * P * 8),
        )  # fmt: skip

    def norm(x, shift, scale):
        return layer_norm(x, 1.0, 0.0) * (1 + scale[:, None]) + shift[:, None]

    def loss(ps, b):
        f = jnp.exp(-jnp.arange(128) * 9.2 / 128) * b["t"][:, None]
        c = bf(jnp.concatenate([jnp.cos(f), jnp.sin(f)], -1)) @ bf(ps["t"][0])
        c = jax.nn.silu(jax.nn.silu(c) @ bf(ps["t"][1]) + bf(ps["c"])[tokens(b["y"], 1001)])
        time = b["t"][:, None, None, None]
        x = bf((1 - time) * b["x"] + time * b["e"])
        x = x.reshape(B, S // P, P, S // P, P, 4).transpose(0, 1, 3, 2, 4, 5).reshape(B, N, P * P * 4)
        x = x @ bf(ps["i"]) + bf(ps["p"])
        for p in ps["l"]:
            m = jnp.split(c @ bf(p["m"]), 6, -1)
            q, k, v = (a.reshape(B, N, H, d) for a in jnp.split(norm(x, m[0], m[1]) @ bf(p["qkv"]), 3, -1))
            s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * d**-0.5
            o = jnp.einsum("bhqk,bkhd->bqhd", bf(jax.nn.softmax(s, -1)), v).reshape(B, N, D)
            x = x + m[2][:, None] * (o @ bf(p["o"]))
            x = x + m[5][:, None] * (jax.nn.gelu(norm(x, m[3], m[4]) @ bf(p["a"])) @ bf(p["b"]))
        out = norm(x, *jnp.split(c @ bf(ps["m"]), 2, -1)) @ bf(ps["o"])
        out = out.reshape(B, S // P, S // P, P, P, 8).transpose(0, 1, 3, 2, 4, 5).reshape(B, S, S, 8)
        return jnp.mean((out[..., :4].astype(jnp.float32) - (b["e"] - b["x"])) ** 2)

    return loss, params, dict(x=(B, S, S, 4), e=(B, S, S, 4), t=(B,), y=(B,)), AVERAGED


def effnet(
    S=128, B=64, blocks=((32, 32, 1, 1), (32, 64, 4, 2), (64, 64, 4, 1), (64, 128, 4, 2), (128, 128, 4, 1))
):
    """Inverted bottlenecks with batch norms, depthwise convolutions, squeezed channels, bf16, SGD."""

    def conv(x, w, s=1, groups=1):
        return lax.conv_general_dilated(
            x, bf(w), (s, s), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    def batch_norm(x, p):
        h = x.astype(jnp.float32)
        m, v = h.mean((0, 1, 2)), h.var((0, 1, 2))
        return bf((h - m) * lax.rsqrt(v + 1e-3) * p[0] + p[1])

    def params():
        def block(i, o, e):
            c = i * e
            return dict(
                e=rnd(1, 1, i, c), d=rnd(3, 3, 1, c), s=rnd(c, i // 4), t=rnd(i // 4, c), p=rnd(1, 1, c, o),
                n=[(rnd(c), rnd(c)), (rnd(c), rnd(c)), (rnd(o), rnd(o))],
            )  # fmt: skip

        return dict(
            i=rnd(3, 3, 3, 32),
            n=(rnd(32), rnd(32)),
            l=[block(i, o, e) for i, o, e, _ in blocks],
            h=rnd(1, 1, blocks[-1][1], 512),
            m=(rnd(512), rnd(512)),
            o=rnd(512, 1000),
        )

    def loss(ps, b):
        x = jax.nn.silu(batch_norm(conv(bf(b["x"]), ps["i"], 2), ps["n"]))
        for p, (i, o, _, s) in zip(ps["l"], blocks, strict=True):
            h = jax.nn.silu(batch_norm(conv(x, p["e"]), p["n"][0]))
            h = jax.nn.silu(batch_norm(conv(h, p["d"], s, h.shape[-1]), p["n"][1]))
            g = jax.nn.silu(h.mean((1, 2)) @ bf(p["s"]))
            h = h * jax.nn.sigmoid(g @ bf(p["t"]))[:, None, None]
            h = batch_norm(conv(h, p["p"]), p["n"][2])
            x = x + h if i == o and s == 1 else h
        x = jax.nn.silu(batch_norm(conv(x, ps["h"]), ps["m"])).astype(jnp.float32).mean((1, 2))
        return cross_entropy(x @ ps["o"], tokens(b["y"], 1000), smoothing=0.1)

    return loss, params, dict(x=(B, S, S, 3), y=(B,)), MOMENTUM


def dpo(D=1280, F=3456, H=10, T=768, B=4, V=50304, L=2):
    """Preferences: log probabilities of chosen and rejected answers under the model and a frozen copy, bf16."""
    d = D // H

    def params():
        layer = dict(n=(D,), qkv=(D, 3 * D), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D))

        def model():
            return dict(
                e=rnd(V, D),
                l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)],
                n=rnd(D),
                h=rnd(D, V),
            )

        return dict(p=model(), f=model())

    def log_probability(ps, t, mask):
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            q, k, v = (a.reshape(*t.shape, H, d) for a in jnp.split(rms(x, p["n"]) @ bf(p["qkv"]), 3, -1))
            s = jnp.einsum("bthd,bshd->bhts", rope(q), rope(k)) * d**-0.5
            o = jnp.einsum("bhts,bshd->bthd", bf(jax.nn.softmax(causal(s), -1)), v)
            x = x + o.reshape(x.shape) @ bf(p["o"])
            h = rms(x, p["m"])
            x = x + gated(h, p)
        lp = jax.nn.log_softmax((rms(x, ps["n"]) @ bf(ps["h"])).astype(jnp.float32)[:, :-1])
        return (jnp.take_along_axis(lp, t[:, 1:, None], -1)[..., 0] * mask[:, 1:]).sum(-1)

    def loss(ps, b):
        t, mask = tokens(b["t"], V), b["t"] > 0
        frozen = jax.lax.stop_gradient(log_probability(ps["f"], t, mask))
        better, worse = jnp.split(log_probability(ps["p"], t, mask) - frozen, 2)
        return -jax.nn.log_sigmoid(0.1 * (better - worse)).mean()

    return loss, params, dict(t=(B, T)), ADAM


def nemotron(D=1536, F=6144, H=12, K=2, T=1024, B=8, V=64000, L=3, C=4):
    """Squared ReLU, normed queries and keys, layers scanned with products kept, the cross-entropy by chunks under
    jax.checkpoint, factored second moments, bf16.
    """
    d = D // H

    def params():
        layer = dict(
            n=(D,),
            b=(D,),
            q=(D, D),
            k=(D, K * d),
            v=(D, K * d),
            o=(D, D),
            x=(d,),
            y=(d,),
            m=(D,),
            c=(D,),
            u=(D, F),
            w=(F, D),
        )
        return dict(e=rnd(V, D), l={k: rnd(L, *s) for k, s in layer.items()}, n=rnd(D), h=rnd(D, V))

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    def layer(x, p):
        h = layer_norm(x, 1 + p["n"], p["b"])
        q = rope(rms((h @ bf(p["q"])).reshape(B, T, H, d), p["x"])).reshape(B, T, K, H // K, d)
        k, v = rope(rms((h @ bf(p["k"])).reshape(B, T, K, d), p["y"])), (h @ bf(p["v"])).reshape(B, T, K, d)
        s = jnp.einsum("btkgd,bskd->bkgts", q, k)
        o = jnp.einsum("bkgts,bskd->btkgd", bf(jax.nn.softmax(causal(s * d**-0.5), -1)), v)
        x = x + o.reshape(B, T, D) @ bf(p["o"])
        h = layer_norm(x, 1 + p["m"], p["c"])
        return x + jnp.square(jax.nn.relu(h @ bf(p["u"]))) @ bf(p["w"]), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"][t]), ps["l"])
        x = layer_norm(x, 1 + ps["n"], 0.0)

        @jax.checkpoint
        def part(total, chunk):
            x, labels = chunk
            return total + cross_entropy(x @ bf(ps["h"]), labels), None

        chunks = x.reshape(C, -1, D), jnp.roll(t, -1, 1).reshape(C, -1)
        return lax.scan(part, 0.0, chunks)[0] / C

    return loss, params, dict(t=(B, T)), ADAFACTOR


ALL = dict(
    gemma=gemma, retnet=retnet, whisper=whisper, sit=sit, effnet=effnet, dpo=dpo, nemotron=nemotron
)  # fmt: skip
