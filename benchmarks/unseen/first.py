"""Programs as other people write them, first part. Rules of the memory estimate were found on them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from unseen.steps import lstm_cell, rnd


def s5(D=512, N=256, L=1024, B=8, layers=2):
    """S5 / linear recurrence with associative_scan."""

    def params():
        return [
            dict(A=rnd(N), Bm=rnd(D, N), C=rnd(N, D), w1=rnd(D, 4 * D), w2=rnd(4 * D, D))
            for _ in range(layers)
        ]

    def loss(ps, batch):
        x = batch["x"]
        for p in ps:
            u = x @ p["Bm"]
            a = jnp.broadcast_to(jax.nn.sigmoid(p["A"]), u.shape)

            def comb(left, right):
                return left[0] * right[0], right[0] * left[1] + right[1]

            _, h = lax.associative_scan(comb, (a, u), axis=1)
            x = x + h @ p["C"]
            x = x + jax.nn.gelu(x @ p["w1"]) @ p["w2"]
            x = x / (1e-5 + jnp.sqrt(jnp.mean(x * x, -1, keepdims=True)))
        return jnp.mean((x - batch["y"]) ** 2)

    return loss, params, dict(x=(B, L, D), y=(B, L, D))


def mamba(D=512, N=16, L=512, B=8, layers=4):
    """Mamba-like selective scan in lax.scan over time inside a scan over layers."""

    def params():
        return dict(
            wi=rnd(layers, D, 2 * D),
            wd=rnd(layers, D, D),
            wB=rnd(layers, D, N),
            wC=rnd(layers, D, N),
            A=rnd(layers, D, N),
            wo=rnd(layers, D, D),
        )

    def layer(x, p):
        u, z = jnp.split(x @ p["wi"], 2, -1)
        dt = jax.nn.softplus(u @ p["wd"])
        Bm = u @ p["wB"]
        C = u @ p["wC"]

        def cell(h, t):
            dt_t, B_t, C_t, u_t = t
            h = h * jnp.exp(-dt_t[..., None] * jnp.exp(p["A"])) + (dt_t * u_t)[..., None] * B_t[:, None, :]
            return h, jnp.einsum("bdn,bn->bd", h, C_t)

        def mv(a):
            return jnp.moveaxis(a, 1, 0)

        _, y = lax.scan(cell, jnp.zeros((x.shape[0], D, N)), (mv(dt), mv(Bm), mv(C), mv(u)))
        y = jnp.moveaxis(y, 0, 1) * jax.nn.silu(z)
        return x + y @ p["wo"], None

    def loss(ps, batch):
        x, _ = lax.scan(layer, batch["x"], ps)
        return jnp.mean((x - batch["y"]) ** 2)

    return loss, params, dict(x=(B, L, D), y=(B, L, D))


def unet(C=64, H=64, B=16, ck=False):
    """UNet-like diffusion with group norm and skip connections, remat-free."""

    chans = [C, 2 * C, 4 * C]

    def params():
        ps = {"in": rnd(3, 3, 3, C), "out": rnd(3, 3, C, 3)}
        c = C
        for i, n in enumerate(chans):
            ps[f"d{i}a"] = rnd(3, 3, c, n)
            ps[f"d{i}b"] = rnd(3, 3, n, n)
            c = n
        for i, n in reversed(list(enumerate(chans))):
            ps[f"u{i}a"] = rnd(3, 3, c + n, n)
            ps[f"u{i}b"] = rnd(3, 3, n, n)
            c = n
        return ps

    def conv(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gn(x, g=8):
        b, h, w, c = x.shape
        y = x.reshape(b, h, w, g, c // g)
        m = y.mean((1, 2, 4), keepdims=True)
        v = y.var((1, 2, 4), keepdims=True)
        return ((y - m) * lax.rsqrt(v + 1e-5)).reshape(x.shape)

    def act(x):
        return jax.nn.silu(gn(x))

    def net(ps, x):
        x = conv(x, ps["in"])
        skips = []
        for i in range(len(chans)):

            def bl(x, a, b):
                x = conv(act(x), a)
                return x + conv(act(x), b)

            x = (jax.checkpoint(bl) if ck else bl)(x, ps[f"d{i}a"], ps[f"d{i}b"])
            skips.append(x)
            x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        for i in reversed(range(len(chans))):
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = jnp.concatenate([x, skips[i]], -1)
            x = (jax.checkpoint(bl) if ck else bl)(x, ps[f"u{i}a"], ps[f"u{i}b"])
        return conv(act(x), ps["out"])

    def loss(ps, b):
        t = b["t"][:, None, None, None]
        xt = jnp.cos(t) * b["x"] + jnp.sin(t) * b["y"]
        return jnp.mean((net(ps, xt) - b["y"]) ** 2)

    return loss, params, dict(x=(B, H, H, 3), y=(B, H, H, 3), t=(B,))


def gpt_accum_ck():
    """GPT with MQA, dropout, microbatch accumulation written as fori_loop."""

    return gpt_accum(ck=True)


def unet_ck():
    return unet(ck=True)


def gpt_accum(D=512, T=512, B=16, layers=2, V=8192, micro=2, ck=False):
    def params():
        return dict(
            e=rnd(V, D),
            l=[
                dict(q=rnd(D, D), k=rnd(D, 64), v=rnd(D, 64), o=rnd(D, D), a=rnd(D, 4 * D), b=rnd(4 * D, D))
                for _ in range(layers)
            ],
        )

    def fwd(ps, tok, key):
        x = ps["e"][tok]

        def block(p, x, i):
            q = (x @ p["q"]).reshape(*x.shape[:2], D // 64, 64)
            k = x @ p["k"]
            v = x @ p["v"]
            s = jnp.einsum("bthd,bsd->bhts", q, k) / 8
            s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -1e30)
            a = jax.nn.softmax(s, -1)
            x = x + jnp.einsum("bhts,bsd->bthd", a, v).reshape(x.shape) @ p["o"]
            h = jax.nn.gelu(x @ p["a"])
            h = h * jax.random.bernoulli(jax.random.fold_in(key, i), 0.9, h.shape)
            return x + h @ p["b"]

        for i, p in enumerate(ps["l"]):
            x = (jax.checkpoint(block, static_argnums=2) if ck else block)(p, x, i)
        return x

    def loss(ps, batch):
        toks = jnp.abs(batch["tok"].astype(jnp.int32)) % V
        mb = toks.reshape(micro, B // micro, T)

        def one(ps, t, i):
            x = fwd(ps, t, jax.random.fold_in(jax.random.key(0), i))
            lg = x @ ps["e"].T
            return jnp.mean(jax.nn.logsumexp(lg, -1) - jnp.take_along_axis(lg, t[..., None], -1)[..., 0])

        return mb, one

    def full(ps, batch):
        mb, one = loss(ps, batch)
        return sum(one(ps, mb[i], i) for i in range(micro)) / micro

    def step_loss(ps, batch):
        return full(ps, batch)

    return step_loss, params, dict(tok=(B, T))


def lstm(D=512, T=256, B=64):
    """LSTM seq2seq two scans."""

    def params():
        return dict(w=rnd(2 * D, 4 * D), w2=rnd(2 * D, 4 * D), o=rnd(D, D))

    def loss(ps, b):
        z = jnp.zeros((B, D))
        (c, ys) = lax.scan(functools.partial(lstm_cell, ps["w"]), (z, z), b["x"])
        (_, ys) = lax.scan(functools.partial(lstm_cell, ps["w2"]), c, ys, reverse=True)
        return jnp.mean((ys @ ps["o"] - b["y"]) ** 2)

    return loss, params, dict(x=(T, B, D), y=(T, B, D))


def neural_ode(D=1024, B=4096, steps=16):
    """Deep equilibrium / while_loop + custom_vjp."""

    def params():
        return dict(a=rnd(D, 2 * D), b=rnd(2 * D, D))

    def f(ps, x):
        return jnp.tanh(x @ ps["a"]) @ ps["b"]

    def loss(ps, b):
        def rk(x, _):
            h = 1 / steps
            k1 = f(ps, x)
            k2 = f(ps, x + h / 2 * k1)
            k3 = f(ps, x + h / 2 * k2)
            k4 = f(ps, x + h * k3)
            return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        x, _ = lax.scan(rk, b["x"], None, length=steps)
        return jnp.mean((x - b["y"]) ** 2)

    return loss, params, dict(x=(B, D), y=(B, D))


ALL = dict(
    gpt_accum_ck=gpt_accum_ck,
    unet_ck=unet_ck,
    s5=s5,
    mamba=mamba,
    unet=unet,
    gpt_accum=gpt_accum,
    lstm=lstm,
    neural_ode=neural_ode,
)
