"""Programs as other people write them, second part. Rules of the memory estimate were found on them."""

import jax
import jax.numpy as jnp
from jax import lax

from unseen.steps import rnd


def norm(x):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def dit(D=512, T=256, B=16, L=4, H=8):
    """DiT with adaLN."""

    def params():
        return [
            dict(c=rnd(D, 6 * D), qkv=rnd(D, 3 * D), o=rnd(D, D), a=rnd(D, 4 * D), b=rnd(4 * D, D))
            for _ in range(L)
        ]

    def ln(x):
        m = x.mean(-1, keepdims=True)
        return (x - m) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def loss(ps, b):
        x = b["x"]
        c = b["c"]
        for p in ps:
            s1, h1, g1, s2, h2, g2 = jnp.split((jax.nn.silu(c) @ p["c"])[:, None], 6, -1)
            y = ln(x) * (1 + s1) + h1
            q, k, v = jnp.split(y @ p["qkv"], 3, -1)

            def r(t):
                return t.reshape(B, T, H, D // H).transpose(0, 2, 1, 3)

            q, k, v = r(q), r(k), r(v)
            a = jax.nn.softmax(q @ k.swapaxes(-1, -2) / jnp.sqrt(D / H))
            x = x + g1 * ((a @ v).transpose(0, 2, 1, 3).reshape(B, T, D) @ p["o"])
            x = x + g2 * (jax.nn.gelu((ln(x) * (1 + s2) + h2) @ p["a"]) @ p["b"])
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, T, D), c=(B, D), y=(B, T, D))


def gnn(N=2048, E=16384, D=256, L=4):
    """Graph network with segment sums."""

    def params():
        return [dict(m1=rnd(2 * D, D), m2=rnd(D, D), u=rnd(2 * D, D)) for _ in range(L)]

    def loss(ps, b):
        x = b["x"]
        s = (jnp.abs(b["s"]) * 1e4).astype(jnp.int32) % N
        d = (jnp.abs(b["d"]) * 1e4).astype(jnp.int32) % N
        for p in ps:
            m = jax.nn.relu(jnp.concatenate([x[s], x[d]], -1) @ p["m1"]) @ p["m2"]
            agg = jax.ops.segment_sum(m, d, N)
            x = x + jax.nn.silu(jnp.concatenate([x, agg], -1) @ p["u"])
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(N, D), y=(N, D), s=(E,), d=(E,))


def hyena(D=256, T=1024, B=8, L=4):
    """Hyena-like FFT convolution."""

    def params():
        return [
            dict(i=rnd(D, 3 * D), f=rnd(T, D), o=rnd(D, D), a=rnd(D, 4 * D), b=rnd(4 * D, D))
            for _ in range(L)
        ]

    def loss(ps, b):
        x = b["x"]
        for p in ps:
            u, v, w = jnp.split(norm(x) @ p["i"], 3, -1)
            z = u * v
            y = jnp.fft.irfft(
                jnp.fft.rfft(z, 2 * T, axis=1) * jnp.fft.rfft(p["f"], 2 * T, axis=0)[None], 2 * T, axis=1
            )[:, :T]
            x = x + (y * w) @ p["o"]
            x = x + jax.nn.gelu(norm(x) @ p["a"]) @ p["b"]
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, T, D), y=(B, T, D))


def lora(D=512, T=256, B=16, L=6, r=8):
    """LoRA: frozen base weights, scan over layers."""

    def params():
        return dict(a=rnd(L, D, r), b=rnd(L, r, D), a2=rnd(L, D, r), b2=rnd(L, r, 4 * D))

    def loss(ps, b):
        w = (b["w1"], b["w2"], b["w3"])

        def layer(x, lp):
            p, (w1, w2, w3) = lp
            h = norm(x)
            x = x + jnp.tanh(h @ w1 + (h @ p["a"]) @ p["b"])
            h = norm(x)
            return x + jax.nn.gelu(h @ w2 + (h @ p["a2"]) @ p["b2"]) @ w3, None

        x, _ = lax.scan(layer, b["x"], (ps, w))
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, T, D), y=(B, T, D), w1=(L, D, D), w2=(L, D, 4 * D), w3=(L, 4 * D, D))


def swin(C=128, H=32, B=16, W=8, L=4):
    """Swin-like shifted windows."""

    def params():
        return [
            dict(qkv=rnd(C, 3 * C), o=rnd(C, C), a=rnd(C, 4 * C), b=rnd(4 * C, C), bias=rnd(4, W * W, W * W))
            for _ in range(L)
        ]

    def loss(ps, b):
        x = b["x"]
        for i, p in enumerate(ps):
            s = jnp.roll(x, (-(W // 2) * (i % 2),) * 2, (1, 2))
            w = s.reshape(B, H // W, W, H // W, W, C).transpose(0, 1, 3, 2, 4, 5).reshape(-1, W * W, C)
            q, k, v = jnp.split(norm(w) @ p["qkv"], 3, -1)

            def r(t):
                return t.reshape(-1, W * W, 4, C // 4)

            a = jnp.einsum("nqhd,nkhd->nhqk", r(q), r(k)) / (C // 4) ** 0.5 + p["bias"]
            a = jax.nn.softmax(a, -1)
            y = jnp.einsum("nhqk,nkhd->nqhd", a, r(v)).reshape(-1, W * W, C) @ p["o"]
            y = y.reshape(B, H // W, H // W, W, W, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, H, H, C)
            x = x + jnp.roll(y, ((W // 2) * (i % 2),) * 2, (1, 2))
            x = x + jax.nn.gelu(norm(x) @ p["a"]) @ p["b"]
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, H, H, C), y=(B, H, H, C))


def maml(D=256, N=512, K=8, inner=4):
    """MAML: gradient inside, over a batch of tasks by vmap, inner loop by scan."""

    def params():
        return dict(a=rnd(D, 2 * D), b=rnd(2 * D, 2 * D), c=rnd(2 * D, D))

    def f(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    def error(p, x, y):
        return jnp.mean((f(p, x) - y) ** 2)

    def loss(ps, b):
        def task(x, y):
            def one(p, _):
                g = jax.grad(error)(p, x, y)
                return jax.tree.map(lambda a, g: a - 0.1 * g, p, g), None

            p, _ = lax.scan(one, ps, None, length=inner)
            return error(p, x, y)

        return jnp.mean(jax.vmap(task)(b["x"], b["y"]))

    return loss, params, dict(x=(K, N, D), y=(K, N, D))


def sortmoe(D=256, N=4096, E=8, L=2, F=512):
    """MoE with sort-based dispatch, top-2, capacity."""

    C = 2 * N // E

    def params():
        return [dict(r=rnd(D, E), a=rnd(E, D, F), b=rnd(E, F, D)) for _ in range(L)]

    def loss(ps, b):
        x = b["x"]
        for p in ps:
            h = norm(x)
            pr = jax.nn.softmax(h @ p["r"])
            w, e = lax.top_k(pr, 2)
            fe = e.reshape(-1)
            order = jnp.argsort(fe, stable=True)
            tok = order // 2
            se = fe[order]
            start = jnp.searchsorted(se, jnp.arange(E))
            pos = jnp.arange(2 * N) - start[se]
            keep = pos < C
            slot = jnp.where(keep, se * C + pos, E * C)
            buf = jnp.zeros((E * C + 1, D)).at[slot].set(h[tok])[:-1].reshape(E, C, D)
            y = jnp.einsum(
                "ecf,efd->ecd", jax.nn.silu(jnp.einsum("ecd,edf->ecf", buf, p["a"])), p["b"]
            ).reshape(E * C, D)
            y = jnp.concatenate([y, jnp.zeros((1, D))])[slot] * (w.reshape(-1)[order] * keep)[:, None]
            x = x + jnp.zeros_like(x).at[tok].add(y)
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(N, D), y=(N, D))


def flashjax(D=256, T=512, B=8, L=3, H=4, C=128):
    """Flash attention in plain JAX: custom_vjp with inner scans, inside a scan of layers with checkpoint."""

    d = D // H

    @jax.custom_vjp
    def fa(q, k, v):
        return fwd(q, k, v)[0]

    def fwd(q, k, v):
        ks = k.reshape(*k.shape[:2], T // C, C, d).transpose(2, 0, 1, 3, 4)
        vs = v.reshape(*k.shape[:2], T // C, C, d).transpose(2, 0, 1, 3, 4)

        def step(c, kv):
            m, s, o = c
            k, v = kv
            z = q @ k.swapaxes(-1, -2) / d**0.5
            mn = jnp.maximum(m, z.max(-1))
            e = jnp.exp(z - mn[..., None])
            a = jnp.exp(m - mn)
            return (mn, s * a + e.sum(-1), o * a[..., None] + e @ v), None

        (m, s, o), _ = lax.scan(
            step, (jnp.full(q.shape[:-1], -1e30), jnp.zeros(q.shape[:-1]), jnp.zeros_like(q)), (ks, vs)
        )
        o = o / s[..., None]
        return o, (q, k, v, o, m + jnp.log(s))

    def bwd(r, do):
        q, k, v, o, logs = r
        D_ = (do * o).sum(-1)
        ks = k.reshape(*k.shape[:2], T // C, C, d).transpose(2, 0, 1, 3, 4)
        vs = v.reshape(*k.shape[:2], T // C, C, d).transpose(2, 0, 1, 3, 4)

        def step(dq, kv):
            k, v = kv
            p = jnp.exp(q @ k.swapaxes(-1, -2) / d**0.5 - logs[..., None])
            dv = p.swapaxes(-1, -2) @ do
            ds = p * (do @ v.swapaxes(-1, -2) - D_[..., None]) / d**0.5
            return dq + ds @ k, (ds.swapaxes(-1, -2) @ q, dv)

        dq, (dk, dv) = lax.scan(step, jnp.zeros_like(q), (ks, vs))

        def u(t):
            return t.transpose(1, 2, 0, 3, 4).reshape(k.shape)

        return dq, u(dk), u(dv)

    fa.defvjp(fwd, bwd)

    def params():
        return dict(qkv=rnd(L, D, 3 * D), o=rnd(L, D, D), a=rnd(L, D, 4 * D), b=rnd(L, 4 * D, D))

    def loss(ps, b):
        def layer(x, p):
            q, k, v = (
                t.reshape(B, T, H, d).transpose(0, 2, 1, 3) for t in jnp.split(norm(x) @ p["qkv"], 3, -1)
            )
            x = x + fa(q, k, v).transpose(0, 2, 1, 3).reshape(B, T, D) @ p["o"]
            return x + jax.nn.gelu(norm(x) @ p["a"]) @ p["b"], None

        x, _ = lax.scan(layer, b["x"], ps)
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, T, D), y=(B, T, D))


def gan(C=32, H=32, B=16):
    """GAN: generator and discriminator losses in one step."""

    def params():
        return dict(
            g=[
                rnd(64, H // 4 * H // 4 * 4 * C),
                rnd(3, 3, 4 * C, 2 * C),
                rnd(3, 3, 2 * C, C),
                rnd(3, 3, C, 3),
            ],
            d=[
                rnd(3, 3, 3, C),
                rnd(3, 3, C, 2 * C),
                rnd(3, 3, 2 * C, 4 * C),
                rnd(H // 8 * H // 8 * 4 * C, 1),
            ],
        )

    dn = ("NHWC", "HWIO", "NHWC")

    def G(p, z):
        x = (z @ p[0]).reshape(B, H // 4, H // 4, 4 * C)
        for w, s in zip(p[1:], (2, 2, 1), strict=False):
            if s == 2:
                x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = lax.conv_general_dilated(jax.nn.relu(x), w, (1, 1), "SAME", dimension_numbers=dn)
        return jnp.tanh(x)

    def Dm(p, x):
        for w in p[:-1]:
            x = jax.nn.leaky_relu(lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=dn), 0.2)
        return x.reshape(B, -1) @ p[-1]

    def loss(ps, b):
        f = G(ps["g"], b["z"])
        dl = jnp.mean(jax.nn.softplus(-Dm(ps["d"], b["x"]))) + jnp.mean(
            jax.nn.softplus(Dm(ps["d"], lax.stop_gradient(f)))
        )
        gl = jnp.mean(jax.nn.softplus(-Dm(lax.stop_gradient(ps["d"]), f)))
        return dl + gl

    return loss, params, dict(x=(B, H, H, 3), z=(B, 64))


def rwkv(D=256, T=128, B=16, L=3):
    """RWKV-like: recurrent over time in scan, unrolled layers, cond for layer dropout."""

    def params():
        return [
            dict(
                k=rnd(D, D), v=rnd(D, D), r=rnd(D, D), w=rnd(D), o=rnd(D, D), a=rnd(D, 4 * D), b=rnd(4 * D, D)
            )
            for _ in range(L)
        ]

    def loss(ps, b):
        x = b["x"]
        key = jax.random.key(3)
        for i, p in enumerate(ps):

            def mix(x, p=p):
                h = norm(x)
                xx = jnp.pad(h, ((0, 0), (1, 0), (0, 0)))[:, :-1]
                k, v, r = (h + xx) @ p["k"], xx @ p["v"], jax.nn.sigmoid(h @ p["r"])
                w = jnp.exp(-jnp.exp(p["w"]))

                def cell(c, kv):
                    n, d = c
                    k, v = kv
                    e = jnp.exp(jnp.minimum(k, 10.0))
                    return (n * w + e * v, d * w + e), (n + e * v) / (d + e + 1e-6)

                _, y = lax.scan(
                    cell, (jnp.zeros((B, D)), jnp.zeros((B, D))), (k.swapaxes(0, 1), v.swapaxes(0, 1))
                )
                return x + (r * y.swapaxes(0, 1)) @ p["o"]

            x = lax.cond(jax.random.bernoulli(jax.random.fold_in(key, i), 0.9), mix, lambda x: x, x)
            x = x + jnp.square(jax.nn.relu(norm(x) @ p["a"])) @ p["b"]
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, T, D), y=(B, T, D))


def ctc(D=256, T=128, B=32, V=256, U=32):
    """CTC-like dynamic program by scan with logsumexp."""

    def params():
        return dict(a=rnd(D, 4 * D), b=rnd(4 * D, D), v=rnd(D, V))

    def loss(ps, b):
        h = b["x"]
        for _ in range(3):
            h = h + jax.nn.gelu(norm(h) @ ps["a"]) @ ps["b"]
        lp = jax.nn.log_softmax(norm(h) @ ps["v"])
        lab = (jnp.abs(b["l"]) * 1e4).astype(jnp.int32) % (V - 1) + 1
        e = jnp.take_along_axis(lp, jnp.broadcast_to(lab[:, None], (B, T, U)), 2)
        bl = lp[..., :1]

        def step(a, eb):
            e, bl = eb
            s = jnp.pad(a, ((0, 0), (1, 0)), constant_values=-1e30)[:, :-1]
            return jnp.logaddexp(a + bl, s + e), None

        a0 = jnp.full((B, U), -1e30).at[:, 0].set(0.0)
        a, _ = lax.scan(step, a0, (e.swapaxes(0, 1), bl.swapaxes(0, 1)))
        return -jnp.mean(a[:, -1]) / T

    return loss, params, dict(x=(B, T, D), l=(B, U))


ALL = dict(
    dit=dit,
    gnn=gnn,
    hyena=hyena,
    lora=lora,
    swin=swin,
    maml=maml,
    sortmoe=sortmoe,
    flashjax=flashjax,
    gan=gan,
    rwkv=rwkv,
    ctc=ctc,
)
