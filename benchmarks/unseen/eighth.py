"""Six more steps of large models, written and measured with the rules that the seventh part gave."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from unseen.parts import ADAMW, AVERAGED, accumulated, bf, cross_entropy, gated, layer_norm, rms, rope, tokens
from unseen.seventh import attended, listed, past, stacked
from unseen.steps import ADAM, Training, rnd


def qwen(D=1536, F=4096, H=12, K=4, T=2048, B=4, V=32768, L=3, parts=2):
    """Normed queries and keys, biases, layers in a scan with products kept, gradients summed over parts of the batch, bf16."""
    d = D // H
    shapes = dict(
        n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), c=(D,), e=(K * d,), x=(d,), y=(d,), o=(D, D), m=(D,), g=(D, F),
        u=(D, F), w=(F, D),
    )  # fmt: skip

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    def layer(x, p):
        h, rows = rms(x, p["n"]), x.shape[0]
        q = rope(rms((h @ bf(p["q"]) + bf(p["c"])).reshape(rows, T, H, d), p["x"]), 1e6)
        k = rope(rms((h @ bf(p["k"]) + bf(p["e"])).reshape(rows, T, K, d), p["y"]), 1e6)
        v = (h @ bf(p["v"])).reshape(rows, T, K, d)
        x = x + attended(q.reshape(rows, T, K, H // K, d), k, v, past(T)) @ bf(p["o"])
        h = rms(x, p["m"])
        return x + gated(h, p), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), Training(ADAMW.update, 2, accumulated(parts))


def olmoe(D=1024, F=1024, H=8, T=1024, B=4, E=16, top=4, V=32000, L=2):
    """Experts by sorted rows and grouped products in each layer, unrolled, balance and router losses, bf16."""
    d = D // H
    shapes = dict(n=(D,), qkv=(D, 3 * D), o=(D, D), m=(D,), r=(D, E), g=(E, D, 2 * F), w=(E, F, D))

    def experts(p, x):
        scores = x.astype(jnp.float32) @ p["r"]
        gates, index = lax.top_k(jax.nn.softmax(scores, -1), top)
        flat = index.reshape(-1)
        order = jnp.argsort(flat)
        sizes = jnp.bincount(flat, length=E)
        gate, up = jnp.split(lax.ragged_dot(x[order // top], bf(p["g"]), sizes), 2, -1)
        out = (
            lax.ragged_dot(jax.nn.silu(gate) * up, bf(p["w"]), sizes) * bf(gates.reshape(-1)[order])[:, None]
        )
        share = sizes / flat.size
        balance = E * jnp.sum(share * jax.nn.softmax(scores, -1).mean(0))
        return jnp.zeros_like(x).at[order // top].add(out), balance + 1e-3 * jnp.mean(
            jax.nn.logsumexp(scores, -1) ** 2
        )

    def loss(ps, b):
        t, extra = tokens(b["t"], V), 0.0
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            h = (rms(x, p["n"]) @ bf(p["qkv"])).reshape(B, T, 3, H, d)
            q, k, v = rope(h[:, :, 0]), rope(h[:, :, 1]), h[:, :, 2]
            x = x + attended(q[:, :, :, None], k, v, past(T)) @ bf(p["o"])
            out, more = experts(p, rms(x, p["m"]).reshape(B * T, D))
            x, extra = x + out.reshape(B, T, D), extra + more
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:]) + 1e-2 * extra

    def params():
        return dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAMW


def flux(D=1024, H=8, S=32, N=128, B=8, L=2):
    """Pictures and text in one attention with weights of their own, shifts and scales by time, averaged weights, bf16."""
    d, M = D // H, S * S
    one = dict(m=(D, 6 * D), qkv=(D, 3 * D), x=(d,), y=(d,), o=(D, D), a=(D, 4 * D), b=(4 * D, D))

    def norm(x, shift, scale):
        return layer_norm(x, 1.0, 0.0) * (1 + scale[:, None]) + shift[:, None]

    def loss(ps, b):
        f = jnp.exp(-jnp.arange(128) * 9.2 / 128) * b["t"][:, None]
        c = jax.nn.silu(bf(jnp.concatenate([jnp.cos(f), jnp.sin(f)], -1)) @ bf(ps["t"][0])) @ bf(ps["t"][1])
        c = jax.nn.silu(c)
        time = b["t"][:, None, None]
        x = bf((1 - time) * b["x"] + time * b["n"]) @ bf(ps["i"])
        y = bf(b["y"]) @ bf(ps["j"])
        for pair in zip(ps["x"], ps["y"], strict=True):
            both = []
            for p, h in zip(pair, (x, y), strict=True):
                m = jnp.split(c @ bf(p["m"]), 6, -1)
                g = (norm(h, m[0], m[1]) @ bf(p["qkv"])).reshape(B, -1, 3, H, d)
                both.append((m, rope(rms(g[:, :, 0], p["x"])), rope(rms(g[:, :, 1], p["y"])), g[:, :, 2]))
            q, k, v = (jnp.concatenate([e[i] for e in both], 1) for i in (1, 2, 3))
            s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * d**-0.5
            out = jnp.einsum("bhqk,bkhd->bqhd", bf(jax.nn.softmax(s, -1)), v).reshape(B, M + N, D)
            parts = []
            for p, h, (m, *_), a in zip(pair, (x, y), both, (out[:, :M], out[:, M:]), strict=True):
                h = h + m[2][:, None] * (a @ bf(p["o"]))
                up = jax.nn.gelu(norm(h, m[3], m[4]) @ bf(p["a"]))
                parts.append(h + m[5][:, None] * (up @ bf(p["b"])))
            x, y = parts
        out = (layer_norm(x, 1.0, 0.0) @ bf(ps["o"])).astype(jnp.float32)
        return jnp.mean((out - (b["n"] - b["x"])) ** 2)

    def params():
        return dict(
            t=[rnd(256, D), rnd(D, D)], i=rnd(64, D), j=rnd(1024, D), x=listed(L, one), y=listed(L, one), o=rnd(D, 64)
        )  # fmt: skip

    return loss, params, dict(x=(B, M, 64), n=(B, M, 64), y=(B, N, 1024), t=(B,)), AVERAGED


def bert(D=1024, F=4096, H=16, T=512, B=16, V=30522, L=4):
    """Norms after each part, biases, dropout of probabilities and sums, layers in a scan under jax.checkpoint, bf16."""
    d = D // H
    shapes = dict(
        qkv=(D, 3 * D), c=(3 * D,), o=(D, D), p=(D,), n=(2, D), a=(D, F), e=(F,), b=(F, D), f=(D,), m=(2, D)
    )  # fmt: skip

    def dropped(key, x, rate=0.1):
        return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)

    @jax.checkpoint
    def layer(x, now):
        p, key = now
        keys = jax.random.split(key, 3)
        q, k, v = (h.reshape(B, T, H, d) for h in jnp.split(x @ bf(p["qkv"]) + bf(p["c"]), 3, -1))
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * d**-0.5
        o = jnp.einsum("bhqk,bkhd->bqhd", dropped(keys[0], bf(jax.nn.softmax(s, -1))), v).reshape(B, T, D)
        x = layer_norm(x + dropped(keys[1], o @ bf(p["o"]) + bf(p["p"])), *p["n"])
        h = jax.nn.gelu(x @ bf(p["a"]) + bf(p["e"]), approximate=False)
        return layer_norm(x + dropped(keys[2], h @ bf(p["b"]) + bf(p["f"])), *p["m"]), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        keys = jax.random.split(jax.random.key(tokens(b["s"], 1 << 20)[0]), L)
        x = layer_norm(bf(ps["e"])[t] + bf(ps["p"]), *ps["n"])
        x, _ = lax.scan(layer, x, (ps["l"], keys))
        return cross_entropy(layer_norm(jax.nn.gelu(x @ bf(ps["h"])), *ps["m"]) @ bf(ps["e"]).T, t)

    def params():
        return dict(e=rnd(V, D), p=rnd(T, D), n=rnd(2, D), l=stacked(L, shapes), h=rnd(D, D), m=rnd(2, D))

    return loss, params, dict(t=(B, T), s=(1,)), ADAMW


def jamba(D=1024, H=8, K=2, N=16, T=1024, B=2, V=32000, F=2816):
    """Selective state spaces by an associative scan in f32, then attention with grouped keys, gated feed-forward parts,
    each block under jax.checkpoint, bf16.
    """
    d, inner = D // H, 2 * D
    space = dict(
        n=(D,), i=(D, 2 * inner), c=(4, inner), x=(inner, 2 * N + 64), t=(64, inner), b=(inner,), a=(inner, N), d=(inner,),
        o=(inner, D),
    )  # fmt: skip
    att = dict(n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D))
    ff = dict(n=(D,), g=(D, F), u=(D, F), w=(F, D))

    @jax.checkpoint
    def spaced(p, x):
        u, z = jnp.split(rms(x, p["n"]) @ bf(p["i"]), 2, -1)
        u = jax.nn.silu(
            sum(jnp.pad(u, ((0, 0), (3 - i, 0), (0, 0)))[:, :T] * bf(p["c"][i]) for i in range(4))
        )
        b, c, t = jnp.split((u @ bf(p["x"])).astype(jnp.float32), [N, 2 * N], -1)
        t = jax.nn.softplus(t @ p["t"] + p["b"])
        decay = jnp.exp(-t[..., None] * jnp.exp(p["a"]))
        put = (t * u)[..., None] * b[:, :, None]
        _, h = lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decay, put), axis=1)
        y = jnp.einsum("btin,btn->bti", h, c) + p["d"] * u
        return x + (bf(y) * jax.nn.silu(z)) @ bf(p["o"])

    @jax.checkpoint
    def attends(p, x):
        h = rms(x, p["n"])
        q = (h @ bf(p["q"])).reshape(B, T, K, H // K, d)
        k, v = (h @ bf(p["k"])).reshape(B, T, K, d), (h @ bf(p["v"])).reshape(B, T, K, d)
        return x + attended(q, k, v, past(T)) @ bf(p["o"])

    @jax.checkpoint
    def feeds(p, x):
        h = rms(x, p["n"])
        return x + gated(h, p)

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        x = feeds(ps["f"][0], spaced(ps["s"], x))
        x = feeds(ps["f"][1], attends(ps["a"], x))
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(
            e=rnd(V, D),
            s={k: rnd(*s) for k, s in space.items()},
            a={k: rnd(*s) for k, s in att.items()},
            f=listed(2, ff),
            n=rnd(D),
            h=rnd(D, V),
        )

    return loss, params, dict(t=(B, T)), ADAM


def siglip(D=768, H=12, S=256, P=16, T=64, B=64, V=32000, L=3):
    """Towers of pictures and texts compared pair by pair with sigmoids, pooled by attention, layers in scans, bf16."""
    d, M = D // H, (S // P) ** 2
    shapes = dict(n=(2, D), qkv=(D, 3 * D), o=(D, D), m=(2, D), a=(D, 4 * D), b=(4 * D, D))

    def layer(x, p):
        h = (layer_norm(x, *p["n"]) @ bf(p["qkv"])).reshape(*x.shape[:2], 3, H, d)
        x = x + attended(h[:, :, 0, :, None], h[:, :, 1], h[:, :, 2]) @ bf(p["o"])
        return x + jax.nn.gelu(layer_norm(x, *p["m"]) @ bf(p["a"])) @ bf(p["b"]), None

    def unit(x):
        return x * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)

    def loss(ps, b):
        x = b["x"].reshape(B, S // P, P, S // P, P, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, M, P * P * 3)
        x, _ = lax.scan(layer, bf(x) @ bf(ps["i"]) + bf(ps["p"]), ps["x"])
        k, v = (x @ bf(ps["k"])).reshape(B, M, H, d), (x @ bf(ps["v"])).reshape(B, M, H, d)
        asked = jnp.broadcast_to(bf(ps["q"]), (B, 1, D)).reshape(B, 1, H, 1, d)
        seen = attended(asked, k, v)[:, 0]
        y, _ = lax.scan(layer, bf(ps["e"])[tokens(b["t"], V)] + bf(ps["r"]), ps["y"])
        pairs = (
            unit(seen.astype(jnp.float32)) @ unit(y[:, -1].astype(jnp.float32)).T * jnp.exp(ps["s"]) + ps["c"]
        )
        return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(pairs * (2 * jnp.eye(B) - 1)), -1))

    def params():
        return dict(
            i=rnd(P * P * 3, D), p=rnd(M, D), x=stacked(L, shapes), q=rnd(D), k=rnd(D, D), v=rnd(D, D), e=rnd(V, D),
            r=rnd(T, D), y=stacked(L, shapes), s=rnd(), c=rnd(),
        )  # fmt: skip

    return loss, params, dict(x=(B, S, S, 3), t=(B, T)), ADAMW


ALL = dict(qwen=qwen, olmoe=olmoe, flux=flux, bert=bert, jamba=jamba, siglip=siglip)
