"""Programs that were written and measured before the rules found on the first two parts, and looked at after them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from unseen.steps import lstm_cell, rnd


def norm(x):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def ln(x):
    m = x.mean(-1, keepdims=True)
    return (x - m) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


DN = ("NHWC", "HWIO", "NHWC")


def conv(x, w, s=1):
    return lax.conv_general_dilated(x, w, (s, s), "SAME", dimension_numbers=DN)


def vqvae(C=64, H=64, B=16, K=512, E=64):
    """VQ-VAE: strided convolutions, nearest code by distances, straight-through, codebook and commitment losses."""

    def params():
        return dict(
            e=[rnd(4, 4, 3, C), rnd(4, 4, C, C), rnd(3, 3, C, E)],
            d=[rnd(3, 3, E, C), rnd(3, 3, C, C), rnd(3, 3, C, 3)],
            c=rnd(K, E),
        )

    def loss(ps, b):
        x = b["x"]
        h = jax.nn.relu(conv(x, ps["e"][0], 2))
        h = jax.nn.relu(conv(h, ps["e"][1], 2))
        z = conv(h, ps["e"][2])
        f = z.reshape(-1, E)
        d = (f**2).sum(-1, keepdims=True) - 2 * f @ ps["c"].T + (ps["c"] ** 2).sum(-1)
        q = ps["c"][jnp.argmin(d, -1)].reshape(z.shape)
        commitment = jnp.mean((lax.stop_gradient(z) - q) ** 2) + 0.25 * jnp.mean(
            (z - lax.stop_gradient(q)) ** 2
        )
        h = z + lax.stop_gradient(q - z)

        def up(t):
            return jnp.repeat(jnp.repeat(t, 2, 1), 2, 2)

        h = jax.nn.relu(conv(up(h), ps["d"][0]))
        h = jax.nn.relu(conv(up(h), ps["d"][1]))
        return jnp.mean((conv(h, ps["d"][2]) - x) ** 2) + commitment

    return loss, params, dict(x=(B, H, H, 3))


def alibi(D=512, T=512, B=8, L=3, H=8, K=2, V=8192, C=4):
    """Decoder with grouped heads, ALiBi, bf16 products, loss in chunks over the sequence by a checkpointed scan."""

    d = D // H

    def params():
        return dict(
            e=rnd(V, D),
            l=[
                dict(
                    q=rnd(D, D),
                    kv=rnd(D, 2 * K * d),
                    o=rnd(D, D),
                    g=rnd(D, 2 * D),
                    u=rnd(D, 2 * D),
                    w=rnd(2 * D, D),
                )
                for _ in range(L)
            ],
        )

    def bf(a):
        return a.astype(jnp.bfloat16)

    def loss(ps, b):
        tok = jnp.abs(b["tok"] * 1e4).astype(jnp.int32) % V
        x = bf(ps["e"])[tok]
        dist = (jnp.arange(T)[:, None] - jnp.arange(T)[None]).astype(jnp.float32)
        for p in ps["l"]:
            h = bf(norm(x.astype(jnp.float32)))
            q = (h @ bf(p["q"])).reshape(B, T, K, H // K, d)
            k, v = jnp.split((h @ bf(p["kv"])).reshape(B, T, K, 2 * d), 2, -1)
            s = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32) / d**0.5
            m = 2.0 ** -(1 + jnp.arange(H, dtype=jnp.float32)).reshape(K, H // K)
            s = jnp.where(dist >= 0, s - m[None, :, :, None, None] * dist, -1e30)
            a = bf(jax.nn.softmax(s, -1))
            x = x + jnp.einsum("bkgts,bskd->btkgd", a, v).reshape(B, T, D) @ bf(p["o"])
            h = bf(norm(x.astype(jnp.float32)))
            x = x + (jax.nn.silu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["w"])
        x = norm(x.astype(jnp.float32))

        @jax.checkpoint
        def chunk(c, xt):
            x, t = xt
            lg = jnp.dot(bf(x), bf(ps["e"]).T, preferred_element_type=jnp.float32)
            return c + jnp.sum(
                jax.nn.logsumexp(lg, -1) - jnp.take_along_axis(lg, t[..., None], -1)[..., 0]
            ), None

        def sp(t):
            return jnp.moveaxis(t.reshape(B, C, T // C, *t.shape[2:]), 1, 0)

        return lax.scan(chunk, 0.0, (sp(x), sp(tok)))[0] / (B * T)

    return loss, params, dict(tok=(B, T))


def attlstm(D=256, T=64, S=96, B=64, V=2048):
    """Recurrent encoder, decoder with additive attention over all encoder states in each step."""

    def params():
        return dict(
            e=rnd(V, D),
            w=rnd(2 * D, 4 * D),
            w2=rnd(3 * D, 4 * D),
            k=rnd(D, D),
            q=rnd(D, D),
            v=rnd(D),
            o=rnd(2 * D, V),
        )

    def loss(ps, b):
        def ix(t):
            return jnp.abs(t * 1e4).astype(jnp.int32) % V

        src, tgt = ix(b["src"]), ix(b["tgt"])
        z = jnp.zeros((B, D))
        c, enc = lax.scan(functools.partial(lstm_cell, ps["w"]), (z, z), ps["e"][src].swapaxes(0, 1))
        keys = enc @ ps["k"]

        def step(c, x):
            a = jax.nn.softmax(jnp.tanh(keys + (c[0] @ ps["q"])[None]) @ ps["v"], 0)
            ctx = jnp.einsum("sb,sbd->bd", a, enc)
            c, h = lstm_cell(ps["w2"], c, jnp.concatenate([x, ctx], -1))
            return c, jnp.concatenate([h, ctx], -1)

        _, hs = lax.scan(step, c, ps["e"][tgt].swapaxes(0, 1))
        lp = jax.nn.log_softmax(hs @ ps["o"])
        return -jnp.mean(jnp.take_along_axis(lp, tgt.T[..., None], -1))

    return loss, params, dict(src=(B, S), tgt=(B, T))


def mae(D=384, P=8, H=64, B=16, L=3):
    """Masked autoencoder: patches shuffled by argsort, encoder on a quarter, decoder on all, vmapped attention."""

    N = (H // P) ** 2
    K = N // 4
    Hd = 6
    pd = P * P * 3

    def params():
        def blk():
            return dict(qkv=rnd(D, 3 * D), o=rnd(D, D), a=rnd(D, 4 * D), b=rnd(4 * D, D))

        return dict(
            p=rnd(pd, D),
            pos=rnd(N, D),
            m=rnd(D),
            en=[blk() for _ in range(L)],
            de=[blk() for _ in range(2)],
            o=rnd(D, pd),
        )

    def att(x, p):
        q, k, v = (x @ p["qkv"]).reshape(x.shape[0], 3, Hd, D // Hd).transpose(1, 2, 0, 3)
        return (jax.nn.softmax(q @ k.swapaxes(-1, -2) / (D // Hd) ** 0.5) @ v).transpose(1, 0, 2).reshape(
            x.shape
        ) @ p["o"]

    def block(x, p):
        x = x + jax.vmap(att, (0, None))(ln(x), p)
        return x + jax.nn.gelu(ln(x) @ p["a"]) @ p["b"]

    def loss(ps, b):
        x = b["x"].reshape(B, H // P, P, H // P, P, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, N, pd)
        perm = jnp.argsort(b["r"], -1)
        keep = perm[:, :K]
        back = jnp.argsort(perm, -1)
        h = x @ ps["p"] + ps["pos"]
        h = jnp.take_along_axis(h, keep[..., None], 1)
        for p in ps["en"]:
            h = block(h, p)
        h = jnp.concatenate([h, jnp.broadcast_to(ps["m"], (B, N - K, D))], 1)
        h = jnp.take_along_axis(h, back[..., None], 1) + ps["pos"]
        for p in ps["de"]:
            h = block(h, p)
        m = jnp.take_along_axis((jnp.arange(N) >= K).astype(h.dtype)[None].repeat(B, 0), back, 1)
        return jnp.sum(jnp.mean((h @ ps["o"] - x) ** 2, -1) * m) / m.sum()

    return loss, params, dict(x=(B, H, H, 3), r=(B, N))


def gat(N=4096, E=32768, D=128, H=4, L=3):
    """Graph attention: softmax over the edges of each node by segment max and sum."""

    def params():
        return [dict(w=rnd(D, D), s=rnd(H, D // H), d=rnd(H, D // H)) for _ in range(L)]

    def loss(ps, b):
        def ix(t):
            return jnp.abs(t * 1e4).astype(jnp.int32) % N

        x = b["x"]
        s, d = ix(b["s"]), ix(b["d"])
        for p in ps:
            h = (x @ p["w"]).reshape(N, H, D // H)
            e = jax.nn.leaky_relu((h * p["s"]).sum(-1)[s] + (h * p["d"]).sum(-1)[d], 0.2)
            m = jax.ops.segment_max(e, d, N)
            w = jnp.exp(e - lax.stop_gradient(m)[d])
            y = jax.ops.segment_sum(w[..., None] * h[s], d, N) / (
                jax.ops.segment_sum(w, d, N)[..., None] + 1e-9
            )
            x = x + jax.nn.elu(y.reshape(N, D))
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(N, D), y=(N, D), s=(E,), d=(E,))


def ppo(T=64, B=32, H=32, A=8, M=4):
    """PPO update: convolutional actor and critic, advantages by reversed scan, clipped loss over minibatches in a scan."""

    def params():
        return dict(
            c=[rnd(5, 5, 4, 32), rnd(3, 3, 32, 64), rnd(3, 3, 64, 64)],
            f=rnd(H // 8 * H // 8 * 64, 512),
            p=rnd(512, A),
            v=rnd(512, 1),
        )

    def net(ps, o):
        h = o
        for w in ps["c"]:
            h = jax.nn.relu(conv(h, w, 2))
        h = jax.nn.relu(h.reshape(h.shape[0], -1) @ ps["f"])
        return h @ ps["p"], (h @ ps["v"])[:, 0]

    def loss(ps, b):
        o = b["o"].reshape(T * B, H, H, 4)

        def back(g, x):
            r, v, n = x
            g = r + 0.99 * n - v + 0.95 * 0.99 * g
            return g, g

        _, adv = lax.scan(back, jnp.zeros(B), (b["r"], b["v"][:-1], b["v"][1:]), reverse=True)
        ret = (adv + b["v"][:-1]).reshape(M, -1)
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        act = (jnp.abs(b["a"] * 1e4).astype(jnp.int32) % A).reshape(M, -1)

        def mini(c, x):
            o, a, ad, rt, lp = x
            lg, v = net(ps, o)
            q = jax.nn.log_softmax(lg)
            r = jnp.exp(jnp.take_along_axis(q, a[:, None], 1)[:, 0] - lp)
            return c - jnp.mean(jnp.minimum(r * ad, jnp.clip(r, 0.8, 1.2) * ad)) + 0.5 * jnp.mean(
                (v - rt) ** 2
            ) + 0.01 * jnp.mean((jnp.exp(q) * q).sum(-1)), None

        return (
            lax.scan(
                mini, 0.0, (o.reshape(M, -1, H, H, 4), act, adv.reshape(M, -1), ret, b["l"].reshape(M, -1))
            )[0]
            / M
        )

    return loss, params, dict(o=(T, B, H, H, 4), a=(T, B), r=(T, B), v=(T + 1, B), l=(T, B))


def detector(C=64, H=128, B=8, A=3, K=20):
    """Detector: pyramid with lateral connections, shared heads over three scales, focal and smooth L1 losses."""

    def params():
        return dict(
            s=rnd(3, 3, 3, C),
            d=[rnd(3, 3, C, C), rnd(3, 3, C, 2 * C), rnd(3, 3, 2 * C, 4 * C)],
            l=[rnd(1, 1, c * C, C) for c in (1, 2, 4)],
            h=[rnd(3, 3, C, C) for _ in range(2)],
            k=rnd(3, 3, C, A * K),
            r=rnd(3, 3, C, A * 4),
        )

    def loss(ps, b):
        x = jax.nn.relu(conv(b["x"], ps["s"], 2))
        fs = []
        for w in ps["d"]:
            x = jax.nn.relu(conv(x, w, 2))
            x = x - x.mean((1, 2), keepdims=True)
            fs.append(x)
        p = None
        tot = 0.0
        for f, w in zip(reversed(fs), reversed(ps["l"]), strict=False):
            q = conv(f, w)
            p = q if p is None else q + jax.image.resize(p, q.shape, "nearest")
            h = p
            for w2 in ps["h"]:
                h = jax.nn.relu(conv(h, w2))
            lg = conv(h, ps["k"]).reshape(B, -1, K)
            bx = conv(h, ps["r"]).reshape(B, -1, 4)
            n = lg.shape[1]
            t = jnp.abs(b["t"][:, :n] * 1e4).astype(jnp.int32) % (K + 1)
            o = jax.nn.one_hot(t, K)
            pr = jax.nn.sigmoid(lg)
            ce = jnp.maximum(lg, 0) - lg * o + jnp.log1p(jnp.exp(-jnp.abs(lg)))
            tot += jnp.mean((pr * (1 - o) + (1 - pr) * o) ** 2 * ce)
            dd = jnp.abs(bx - b["g"][:, :n])
            tot += jnp.mean(jnp.where(dd < 1, 0.5 * dd * dd, dd - 0.5) * (t < K)[..., None])
        return tot

    n = (H // 4) ** 2 * A
    return loss, params, dict(x=(B, H, H, 3), t=(B, n), g=(B, n, 4))


def gla(D=384, T=512, B=8, L=4, H=6, C=64):
    """Gated linear attention in chunks, layers in a scan, dropout."""

    d = D // H

    def params():
        return dict(
            qkv=rnd(L, D, 3 * D), g=rnd(L, D, H), o=rnd(L, D, D), a=rnd(L, D, 2 * D), b=rnd(L, 2 * D, D)
        )

    def loss(ps, b):
        def layer(c, p):
            x, key = c
            key, sub = jax.random.split(key)
            h = norm(x)
            q, k, v = (
                t.reshape(B, T // C, C, H, d).transpose(1, 0, 3, 2, 4) for t in jnp.split(h @ p["qkv"], 3, -1)
            )
            g = jnp.cumsum(jax.nn.log_sigmoid(h @ p["g"]).reshape(B, T // C, C, H), 2).transpose(1, 0, 3, 2)

            def chunk(S, qkvg):
                q, k, v, g = qkvg
                D_ = jnp.where(
                    jnp.tril(jnp.ones((C, C), bool)), jnp.exp(g[..., :, None] - g[..., None, :]), 0.0
                )
                o = ((q @ k.swapaxes(-1, -2)) * D_) @ v + jnp.exp(g)[..., None] * (q @ S)
                S = (
                    S * jnp.exp(g[..., -1])[..., None, None]
                    + (k * jnp.exp(g[..., -1:] - g)[..., None]).swapaxes(-1, -2) @ v
                )
                return S, o

            _, o = lax.scan(chunk, jnp.zeros((B, H, d, d)), (q, k, v, g))
            x = x + o.transpose(1, 0, 3, 2, 4).reshape(B, T, D) @ p["o"]
            h = jax.nn.silu(norm(x) @ p["a"])
            h = h * jax.random.bernoulli(sub, 0.9, h.shape)
            return (x + h @ p["b"], key), None

        (x, _), _ = lax.scan(layer, (b["x"], jax.random.key(0)), ps)
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, T, D), y=(B, T, D))


ALL = dict(vqvae=vqvae, alibi=alibi, attlstm=attlstm, mae=mae, gat=gat, ppo=ppo, detector=detector, gla=gla)
