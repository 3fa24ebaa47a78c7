"""Programs that were written and measured before anyone looked at them."""

import jax
import jax.numpy as jnp
from jax import lax

from unseen.steps import rnd
from unseen.third import ln


def wavenet(C=64, T=4096, B=8, L=6):
    """WaveNet: dilated causal convolutions, gated, with skips."""

    def cv(x, w, d):
        return lax.conv_general_dilated(
            x,
            w,
            (1,),
            [(d * (w.shape[0] - 1), 0)],
            rhs_dilation=(d,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def params():
        return dict(
            i=rnd(1, 1, C),
            l=[dict(f=rnd(2, C, C), g=rnd(2, C, C), o=rnd(1, C, C), s=rnd(1, C, C)) for _ in range(L)],
            o=rnd(1, C, 256),
        )

    def loss(ps, b):
        x = cv(b["x"][..., None], ps["i"], 1)
        skip = 0.0
        for i, p in enumerate(ps["l"]):
            h = jnp.tanh(cv(x, p["f"], 2**i)) * jax.nn.sigmoid(cv(x, p["g"], 2**i))
            skip = skip + cv(h, p["s"], 1)
            x = x + cv(h, p["o"], 1)
        lp = jax.nn.log_softmax(cv(jax.nn.relu(skip), ps["o"], 1))
        t = (jnp.abs(b["x"]) * 1e3).astype(jnp.int32) % 256
        return -jnp.mean(jnp.take_along_axis(lp[:, :-1], t[:, 1:, None], -1))

    return loss, params, dict(x=(B, T))


def nerf(R=512, S=64, D=256, L=6):
    """NeRF: positional encoding, a deep MLP with a skip, volume rendering by cumulative products."""

    def params():
        return dict(
            l=[
                rnd(60 + (0 if i == 0 else D - 60) if i == 0 else (D + 60 if i == 3 else D), D)
                for i in range(L)
            ],
            s=rnd(D, 1),
            c=rnd(D, 3),
        )

    def loss(ps, b):
        t = jnp.linspace(0.0, 1.0, S)
        p = b["o"][:, None] + b["d"][:, None] * t[None, :, None]
        f = 2.0 ** jnp.arange(10)
        e = (p[..., None] * f).reshape(R, S, 30)
        e = jnp.concatenate([jnp.sin(e), jnp.cos(e)], -1)
        h = e
        for i, w in enumerate(ps["l"]):
            if i == 3:
                h = jnp.concatenate([h, e], -1)
            h = jax.nn.relu(h @ w)
        s = jax.nn.softplus((h @ ps["s"])[..., 0])
        c = jax.nn.sigmoid(h @ ps["c"])
        a = 1 - jnp.exp(-s / S)
        w = a * jnp.concatenate([jnp.ones((R, 1)), jnp.cumprod(1 - a + 1e-10, -1)[:, :-1]], -1)
        return jnp.mean(((w[..., None] * c).sum(1) - b["y"]) ** 2)

    return loss, params, dict(o=(R, 3), d=(R, 3), y=(R, 3))


def simclr(C=32, H=32, B=64):
    """Contrastive learning: batch normalised residual convolutions, two views, cosine similarities of all pairs."""

    def cv(x, w, s=1):
        return lax.conv_general_dilated(x, w, (s, s), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def bn(x):
        m = x.mean((0, 1, 2))
        v = x.var((0, 1, 2))
        return (x - m) * lax.rsqrt(v + 1e-5)

    def params():
        return dict(
            i=rnd(3, 3, 3, C),
            b=[
                (rnd(3, 3, c, d), rnd(3, 3, d, d), rnd(1, 1, c, d))
                for c, d in ((C, C), (C, 2 * C), (2 * C, 4 * C))
            ],
            h=rnd(4 * C, 128),
        )

    def net(ps, x):
        x = jax.nn.relu(bn(cv(x, ps["i"])))
        for i, (a, b, s) in enumerate(ps["b"]):
            st = 1 if i == 0 else 2
            x = jax.nn.relu(bn(cv(jax.nn.relu(bn(cv(x, a, st))), b)) + cv(x, s, st))
        z = x.mean((1, 2)) @ ps["h"]
        return z / jnp.sqrt((z * z).sum(-1, keepdims=True) + 1e-6)

    def loss(ps, b):
        z = jnp.concatenate([net(ps, b["x"]), net(ps, b["y"])])
        s = z @ z.T / 0.1 - 1e9 * jnp.eye(2 * B)
        i = jnp.arange(2 * B)
        return jnp.mean(jax.nn.logsumexp(s, -1) - s[i, (i + B) % (2 * B)])

    return loss, params, dict(x=(B, H, H, 3), y=(B, H, H, 3))


def mixer(D=384, T=256, B=16, L=6):
    """MLP mixer, layers in a scan under jax.checkpoint, bf16."""

    def params():
        return dict(a=rnd(L, T, 4 * T), b=rnd(L, 4 * T, T), c=rnd(L, D, 4 * D), d=rnd(L, 4 * D, D))

    def bf(a):
        return a.astype(jnp.bfloat16)

    def loss(ps, b):
        def layer(x, p):
            h = bf(ln(x)).swapaxes(1, 2)
            x = x + (jax.nn.gelu(h @ bf(p["a"])) @ bf(p["b"])).swapaxes(1, 2).astype(jnp.float32)
            return x + (jax.nn.gelu(bf(ln(x)) @ bf(p["c"])) @ bf(p["d"])).astype(jnp.float32), None

        x, _ = lax.scan(jax.checkpoint(layer), b["x"], ps)
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, T, D), y=(B, T, D))


def perceiver(D=256, N=4096, M=256, B=4, L=3, H=4):
    """Perceiver: latents attend to a long input, then to themselves."""

    d = D // H

    def params():
        return dict(
            z=rnd(M, D),
            c=[dict(q=rnd(D, D), kv=rnd(D, 2 * D), o=rnd(D, D)) for _ in range(2)],
            l=[dict(qkv=rnd(D, 3 * D), o=rnd(D, D), a=rnd(D, 4 * D), b=rnd(4 * D, D)) for _ in range(L)],
        )

    def sp(t):
        return t.reshape(*t.shape[:2], H, d)

    def att(q, k, v):
        a = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", sp(q), sp(k)) / d**0.5, -1)
        return jnp.einsum("bhqk,bkhd->bqhd", a, sp(v)).reshape(q.shape)

    def loss(ps, b):
        z = jnp.broadcast_to(ps["z"], (B, M, D))
        for c in ps["c"]:
            k, v = jnp.split(ln(b["x"]) @ c["kv"], 2, -1)
            z = z + att(ln(z) @ c["q"], k, v) @ c["o"]
            for p in ps["l"]:
                q, k, v = jnp.split(ln(z) @ p["qkv"], 3, -1)
                z = z + att(q, k, v) @ p["o"]
                z = z + jax.nn.gelu(ln(z) @ p["a"]) @ p["b"]
        return jnp.mean((z.mean(1) - b["y"]) ** 2)

    return loss, params, dict(x=(B, N, D), y=(B, D))


def dlrm(V=20000, D=64, F=16, B=4096):
    """Recommendation: embedding bags of many tables, pairwise products, towers."""

    def params():
        return dict(
            e=rnd(F, V, D),
            b=[rnd(16, 512), rnd(512, D)],
            t=[rnd((F + 1) * F // 2 + D, 512), rnd(512, 256), rnd(256, 1)],
        )

    def loss(ps, b):
        i = jnp.abs(b["i"] * 1e5).astype(jnp.int32) % V
        e = jax.vmap(lambda t, i: t[i].mean(1), (0, 1), 1)(ps["e"], i)
        h = b["x"]
        for w in ps["b"]:
            h = jax.nn.relu(h @ w)
        z = jnp.concatenate([h[:, None], e], 1)
        g = jnp.einsum("bid,bjd->bij", z, z)
        r, c = jnp.triu_indices(F + 1, 1)
        h = jnp.concatenate([h, g[:, r, c]], -1)
        for w in ps["t"][:-1]:
            h = jax.nn.relu(h @ w)
        logit = (h @ ps["t"][-1])[:, 0]
        return jnp.mean(jax.nn.softplus(logit) - logit * b["y"])

    return loss, params, dict(i=(B, F, 4), x=(B, 16), y=(B,))


ALL = dict(wavenet=wavenet, nerf=nerf, simclr=simclr, mixer=mixer, perceiver=perceiver, dlrm=dlrm)
