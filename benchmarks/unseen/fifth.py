"""Steps as users of large models write them, 0.3 to 10 GB of temporaries, measured before anyone looked at them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from unseen.parts import (
    ADAMW,
    LION,
    MOMENTUM,
    NADAM,
    accumulated,
    bf,
    cross_entropy,
    gated,
    layer_norm,
    rms,
    rope,
    tokens,
)
from unseen.steps import ADAM, rnd


def causal(scores):
    """Scores [..., queries, keys] in f32 with later keys masked."""
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.where(seen, scores.astype(jnp.float32), -1e30)


def llama(D=2048, F=5632, H=16, K=4, T=1024, B=8, V=32000, L=2):
    """Decoder with grouped keys, rotary positions and a gated feed-forward part, unrolled, attention written out, bf16."""
    d = D // H

    def params():
        layer = dict(
            n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D)
        )
        return dict(
            e=rnd(V, D),
            l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)],
            n=rnd(D),
            h=rnd(D, V),
        )

    def attention(p, x):
        q = rope((x @ bf(p["q"])).reshape(B, T, H, d)).reshape(B, T, K, H // K, d)
        k = rope((x @ bf(p["k"])).reshape(B, T, K, d))
        v = (x @ bf(p["v"])).reshape(B, T, K, d)
        s = jnp.einsum("btkgd,bskd->bkgts", q, k) / d**0.5
        a = bf(jax.nn.softmax(causal(s), -1))
        return jnp.einsum("bkgts,bskd->btkgd", a, v).reshape(B, T, D) @ bf(p["o"])

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = x + attention(p, rms(x, p["n"]))
            h = rms(x, p["m"])
            x = x + gated(h, p)
        logits = rms(x, ps["n"]) @ bf(ps["h"])
        return cross_entropy(logits[:, :-1], t[:, 1:])

    return loss, params, dict(t=(B, T)), ADAMW


def t5(D=768, F=2048, H=12, T=512, U=256, B=16, V=32128, L=2, N=32):
    """Encoder and decoder with relative biases, tied embedding, label smoothing, bf16."""
    d = D // H

    def params():
        def att():
            return dict(n=rnd(D), q=rnd(D, D), k=rnd(D, D), v=rnd(D, D), o=rnd(D, D))

        def ff():
            return dict(n=rnd(D), a=rnd(D, F), b=rnd(D, F), c=rnd(F, D))

        return dict(
            e=rnd(V, D),
            r=rnd(N, H),
            s=rnd(N, H),
            enc=[dict(a=att(), f=ff()) for _ in range(L)],
            dec=[dict(a=att(), c=att(), f=ff()) for _ in range(L)],
            n=rnd(D),
            m=rnd(D),
        )

    def heads(x, w):
        return (x @ bf(w)).reshape(*x.shape[:2], H, d)

    def attend(p, x, y, bias):
        s = jnp.einsum("bqhd,bkhd->bhqk", heads(x, p["q"]), heads(y, p["k"]))
        a = bf(jax.nn.softmax(s.astype(jnp.float32) + bias, -1))
        o = jnp.einsum("bhqk,bkhd->bqhd", a, heads(y, p["v"]))
        return o.reshape(x.shape) @ bf(p["o"])

    def ff(p, x):
        h = rms(x, p["n"])
        return x + (jax.nn.gelu(h @ bf(p["a"])) * (h @ bf(p["b"]))) @ bf(p["c"])

    def bias(table, n, two_sided):
        away = jnp.arange(n)[None, :] - jnp.arange(n)[:, None]
        bucket = jnp.clip(away + (N // 2 if two_sided else N - 1), 0, N - 1)
        return table[bucket].transpose(2, 0, 1)[None]

    def loss(ps, b):
        src, dst = tokens(b["x"], V), tokens(b["y"], V)
        x, e = bf(ps["e"])[src], bias(ps["r"], T, True)
        for p in ps["enc"]:
            h = rms(x, p["a"]["n"])
            x = ff(p["f"], x + attend(p["a"], h, h, e))
        x = rms(x, ps["n"])
        y, e = bf(ps["e"])[dst], causal(bias(ps["s"], U, False))
        for p in ps["dec"]:
            h = rms(y, p["a"]["n"])
            y = y + attend(p["a"], h, h, e)
            y = ff(p["f"], y + attend(p["c"], rms(y, p["c"]["n"]), x, 0.0))
        logits = rms(y, ps["m"]) @ bf(ps["e"]).T / D**0.5
        return cross_entropy(logits[:, :-1], dst[:, 1:], smoothing=0.1, z=1e-4)

    return loss, params, dict(x=(B, T), y=(B, U)), ADAM


def mla(D=1536, F=4096, H=12, T=1024, B=4, V=32000, L=2, R=512, Q=768, d=128, r=64):
    """Attention by latents (keys and values from one low-rank product, positions apart), layers under
    jax.checkpoint that keeps products, bf16.
    """

    def params():
        layer = dict(
            n=(D,), qa=(D, Q), qn=(Q,), qb=(Q, H * (d + r)), ka=(D, R + r), kn=(R,), kb=(R, H * 2 * d), o=(H * d, D),
            m=(D,), g=(D, F), u=(D, F), w=(F, D),
        )  # fmt: skip
        return dict(
            e=rnd(V, D), l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)], n=rnd(D), h=rnd(D, V)
        )

    def attention(p, x):
        q = (rms(x @ bf(p["qa"]), p["qn"]) @ bf(p["qb"])).reshape(B, T, H, d + r)
        low = x @ bf(p["ka"])
        kv = (rms(low[..., :R], p["kn"]) @ bf(p["kb"])).reshape(B, T, H, 2 * d)
        turn = jnp.broadcast_to(rope(low[..., R:].reshape(B, T, 1, r)), (B, T, H, r))
        q = jnp.concatenate([q[..., :d], rope(q[..., d:])], -1)
        k = jnp.concatenate([kv[..., :d], turn], -1)
        s = jnp.einsum("bthd,bshd->bhts", q, k) * (d + r) ** -0.5
        a = bf(jax.nn.softmax(causal(s), -1))
        return jnp.einsum("bhts,bshd->bthd", a, kv[..., d:]).reshape(B, T, H * d) @ bf(p["o"])

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    def layer(p, x):
        x = x + attention(p, rms(x, p["n"]))
        h = rms(x, p["m"])
        return x + gated(h, p)

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = layer(p, x)
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    return loss, params, dict(t=(B, T)), ADAMW


def window(D=1024, F=4096, H=16, T=2048, B=4, V=16384, L=4, W=256):
    """Sliding windows: each block of queries sees its own keys and the block's before; scanned, f32."""
    d, n = D // H, T // W

    def params():
        shapes = dict(n=(D,), qkv=(D, 3 * D), o=(D, D), m=(D,), a=(D, F), b=(F, D))
        return dict(e=rnd(V, D), l={k: rnd(L, *s) for k, s in shapes.items()}, h=rnd(D, V))

    def layer(x, p):
        q, k, v = (t.reshape(B, n, W, H, d) for t in jnp.split(rms(x, p["n"]) @ p["qkv"], 3, -1))
        q = rope(q.reshape(B, T, H, d)).reshape(q.shape)
        k = rope(k.reshape(B, T, H, d)).reshape(k.shape)

        def pair(t):
            return jnp.concatenate([jnp.pad(t, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))[:, :-1], t], 2)

        s = jnp.einsum("bnqhd,bnkhd->bnhqk", q, pair(k)) / d**0.5
        away = jnp.arange(W)[:, None] + W - jnp.arange(2 * W)
        s = jnp.where((away >= 0) & (away < W), s, -1e30)
        o = jnp.einsum("bnhqk,bnkhd->bnqhd", jax.nn.softmax(s, -1), pair(v))
        x = x + o.reshape(B, T, D) @ p["o"]
        return x + jax.nn.gelu(rms(x, p["m"]) @ p["a"]) @ p["b"], None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, ps["e"][t], ps["l"])
        return cross_entropy((x @ ps["h"])[:, :-1], t[:, 1:])

    return loss, params, dict(t=(B, T)), ADAM


def switch(D=1024, F=2048, H=8, T=512, B=8, E=8, V=32000, L=2):
    """Mixture of experts of a capacity, two a token, dispatched and combined by one-hot products, bf16."""
    d, G = D // H, B
    C = 2 * T // E * 5 // 4

    def params():
        layer = dict(
            n=(D,), qkv=(D, 3 * D), o=(D, D), m=(D,), r=(D, E), a=(E, D, F), g=(E, D, F), b=(E, F, D)
        )
        return dict(e=rnd(V, D), l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)], n=rnd(D))

    def route(p, x):
        gates = jax.nn.softmax(x.astype(jnp.float32) @ p["r"], -1)
        weight, index = lax.top_k(gates, 2)
        chosen = jax.nn.one_hot(index, E)
        place = jnp.cumsum(chosen.reshape(G, T * 2, E), 1).reshape(G, T, 2, E) - 1
        chosen = chosen * (place < C)
        slot = jax.nn.one_hot((place * chosen).sum(-1).astype(jnp.int32), C)
        weight = weight / weight.sum(-1, keepdims=True)
        combine = jnp.einsum("gtk,gtke,gtkc->gtec", weight, chosen, slot)
        balance = E * jnp.mean(chosen.sum(2).mean(1) * gates.mean(1))
        return bf(combine), bf(combine > 0), balance

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, extra = bf(ps["e"])[t], 0.0
        for p in ps["l"]:
            q, k, v = (h.reshape(B, T, H, d) for h in jnp.split(rms(x, p["n"]) @ bf(p["qkv"]), 3, -1))
            s = jnp.einsum("bthd,bshd->bhts", rope(q), rope(k)) / d**0.5
            o = jnp.einsum("bhts,bshd->bthd", bf(jax.nn.softmax(causal(s), -1)), v)
            x = x + o.reshape(B, T, D) @ bf(p["o"])
            h = rms(x, p["m"])
            combine, dispatch, balance = route(p, h)
            i = jnp.einsum("gtec,gtd->egcd", dispatch, h)
            up = jnp.einsum("egcd,edf->egcf", i, bf(p["a"]))
            gate = jnp.einsum("egcd,edf->egcf", i, bf(p["g"]))
            out = jnp.einsum("egcf,efd->egcd", jax.nn.silu(gate) * up, bf(p["b"]))
            x = x + jnp.einsum("gtec,egcd->gtd", combine, out)
            extra = extra + balance
        logits = rms(x, ps["n"]) @ bf(ps["e"]).T
        return cross_entropy(logits[:, :-1], t[:, 1:], z=1e-4) + 1e-2 * extra

    return loss, params, dict(t=(B, T)), ADAMW


def ssd(D=1024, H=32, P=64, N=64, Q=128, T=2048, B=4, V=32000, L=2):
    """State spaces by chunks (Mamba 2): products inside of a chunk, states carried between them, bf16."""
    inner, n = H * P, T // Q

    def params():
        layer = dict(
            n=(D,),
            i=(D, 2 * inner + 2 * N + H),
            c=(4, inner + 2 * N),
            a=(H,),
            d=(H,),
            t=(H,),
            m=(inner,),
            o=(inner, D),
        )
        return dict(e=rnd(V, D), l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)], n=rnd(D))

    def mix(x, decay, b, c):
        """x [B, T, H, P], decay [B, T, H], b and c [B, T, N]."""
        x, b, c = x.reshape(B, n, Q, H, P), b.reshape(B, n, Q, N), c.reshape(B, n, Q, N)
        a = jnp.cumsum(decay.reshape(B, n, Q, H).transpose(0, 3, 1, 2), -1)
        away = a[..., :, None] - a[..., None, :]
        inside = bf(jnp.exp(jnp.where(jnp.tril(jnp.ones((Q, Q), bool)), away, -jnp.inf)))
        y = jnp.einsum("bnqs,bnks,bhnqk,bnkhp->bnqhp", c, b, inside, x)
        left = bf(jnp.exp(a[..., -1:] - a))
        states = jnp.einsum("bnks,bhnk,bnkhp->bnhps", b, left, x).astype(jnp.float32)

        def carry(h, s):
            state, end = s
            return h * jnp.exp(end)[..., None, None] + state, h

        ends = a[..., -1].transpose(2, 0, 1)
        _, before = lax.scan(carry, jnp.zeros((B, H, P, N)), (states.swapaxes(0, 1), ends))
        y = y + jnp.einsum("bnqs,nbhps,bhnq->bnqhp", c, bf(before), bf(jnp.exp(a)))
        return y.reshape(B, T, H, P)

    def block(p, x):
        z, u, t = jnp.split(rms(x, p["n"]) @ bf(p["i"]), [inner, 2 * inner + 2 * N], -1)
        w = bf(p["c"])
        u = jax.nn.silu(sum(jnp.pad(u, ((0, 0), (i, 0), (0, 0)))[:, :T] * w[i] for i in range(4)))
        v, b, c = jnp.split(u, [inner, inner + N], -1)
        t = jax.nn.softplus(t.astype(jnp.float32) + p["t"])
        v = v.reshape(B, T, H, P)
        y = mix(v * bf(t)[..., None], -t * jnp.exp(p["a"]), b, c) + bf(p["d"])[:, None] * v
        return x + rms(y.reshape(B, T, inner) * jax.nn.silu(z), p["m"]) @ bf(p["o"])

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = block(p, x)
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["e"]).T)[:, :-1], t[:, 1:])

    return loss, params, dict(t=(B, T)), ADAMW


def convnext(C=96, S=128, B=64, depths=(2, 2, 2)):
    """Depthwise convolutions, layer norms, pointwise parts with a scale, three resolutions, bf16, SGD."""

    def conv(x, w, s=1, groups=1, pad="SAME"):
        return lax.conv_general_dilated(
            x, bf(w), (s, s), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    def params():
        def block(c):
            return dict(
                d=rnd(7, 7, 1, c),
                g=rnd(c),
                h=rnd(c),
                a=rnd(c, 4 * c),
                b=rnd(4 * c),
                c=rnd(4 * c, c),
                s=rnd(c),
            )

        stages = []
        for i, depth in enumerate(depths):
            c = C * 2**i
            down = dict(w=rnd(4, 4, 3, c) if i == 0 else rnd(2, 2, c // 2, c), g=rnd(c), h=rnd(c))
            stages.append(dict(down=down, l=[block(c) for _ in range(depth)]))
        return dict(s=stages, h=rnd(C * 2 ** (len(depths) - 1), 1000))

    def loss(ps, b):
        x = bf(b["x"])
        for i, stage in enumerate(ps["s"]):
            down = stage["down"]
            x = conv(x, down["w"], 4 if i == 0 else 2, pad="VALID")
            x = layer_norm(x, down["g"], down["h"])
            for p in stage["l"]:
                h = layer_norm(conv(x, p["d"], groups=x.shape[-1]), p["g"], p["h"])
                h = jax.nn.gelu(h @ bf(p["a"]) + bf(p["b"])) @ bf(p["c"])
                x = x + bf(p["s"]) * h
        logits = x.astype(jnp.float32).mean((1, 2)) @ ps["h"]
        return cross_entropy(logits, tokens(b["y"], 1000), smoothing=0.1)

    return loss, params, dict(x=(B, S, S, 3), y=(B,)), MOMENTUM


def diffusion(C=128, S=64, B=16, H=4):
    """U-Net of a diffusion model: time embedding, group norms in f32, attention at half the resolution, bf16."""

    def conv(x, w, s=1):
        return lax.conv_general_dilated(x, bf(w), (s, s), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def group_norm(x, p, groups=32):
        n, h, w, c = x.shape
        y = x.astype(jnp.float32).reshape(n, h * w, groups, c // groups)
        m = y.mean((1, 3), keepdims=True)
        v = y.var((1, 3), keepdims=True)
        y = ((y - m) * lax.rsqrt(v + 1e-5)).reshape(x.shape)
        return bf(y * p["g"] + p["b"])

    def params():
        def gn(c):
            return dict(g=rnd(c), b=rnd(c))

        def res(i, o):
            r = dict(n=gn(i), a=rnd(3, 3, i, o), t=rnd(4 * C, o), m=gn(o), b=rnd(3, 3, o, o))
            return r if i == o else r | dict(s=rnd(1, 1, i, o))

        def att(c):
            return dict(n=gn(c), qkv=rnd(c, 3 * c), o=rnd(c, c))

        return dict(
            t=[rnd(C, 4 * C), rnd(4 * C, 4 * C)],
            i=rnd(3, 3, 4, C),
            d=[res(C, C), res(C, 2 * C)],
            s=rnd(3, 3, C, C),
            m=[res(2 * C, 2 * C), att(2 * C), res(2 * C, 2 * C)],
            u=[res(4 * C, 2 * C), res(3 * C, C)],
            k=rnd(3, 3, 2 * C, 2 * C),
            n=gn(C),
            o=rnd(3, 3, C, 4),
        )

    def res(p, x, t):
        h = conv(jax.nn.silu(group_norm(x, p["n"])), p["a"])
        h = h + (jax.nn.silu(t) @ bf(p["t"]))[:, None, None]
        h = conv(jax.nn.silu(group_norm(h, p["m"])), p["b"])
        return h + (conv(x, p["s"]) if "s" in p else x)

    def att(p, x):
        n, h, w, c = x.shape
        y = group_norm(x, p["n"]).reshape(n, h * w, c)
        q, k, v = (a.reshape(n, h * w, H, c // H) for a in jnp.split(y @ bf(p["qkv"]), 3, -1))
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * (c // H) ** -0.5
        o = jnp.einsum("bhqk,bkhd->bqhd", bf(jax.nn.softmax(s, -1)), v).reshape(n, h * w, c)
        return x + (o @ bf(p["o"])).reshape(x.shape)

    def loss(ps, b):
        f = jnp.exp(-jnp.arange(C // 2) * 9.2 / (C // 2))
        e = b["t"][:, None] * f
        t = bf(jnp.concatenate([jnp.sin(e), jnp.cos(e)], -1))
        t = jax.nn.silu(t @ bf(ps["t"][0])) @ bf(ps["t"][1])
        noise = jnp.cos(b["t"])[:, None, None, None]
        x = conv(bf(b["x"] * noise + b["e"] * jnp.sqrt(1 - noise**2)), ps["i"])
        first = res(ps["d"][0], x, t)
        second = res(ps["d"][1], conv(first, ps["s"], 2), t)
        x = res(ps["m"][0], second, t)
        x = res(ps["m"][2], att(ps["m"][1], x), t)
        x = res(ps["u"][0], jnp.concatenate([x, second], -1), t)
        x = jax.image.resize(x, (B, S, S, 2 * C), "nearest")
        x = res(ps["u"][1], jnp.concatenate([conv(x, ps["k"]), first], -1), t)
        out = conv(jax.nn.silu(group_norm(x, ps["n"])), ps["o"])
        return jnp.mean((out.astype(jnp.float32) - b["e"]) ** 2)

    return loss, params, dict(x=(B, S, S, 4), e=(B, S, S, 4), t=(B,)), ADAMW


def griffin(D=1024, F=3072, T=2048, B=4, V=32000, L=2):
    """Gated linear recurrences by an associative scan in f32, gated feed-forward parts, bf16."""

    def params():
        layer = dict(
            n=(D,),
            x=(D, D),
            y=(D, D),
            c=(4, D),
            a=(D, D),
            i=(D, D),
            l=(D,),
            o=(D, D),
            m=(D,),
            g=(D, F),
            u=(D, F),
            w=(F, D),
        )
        return dict(e=rnd(V, D), l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)], n=rnd(D))

    def recurrence(p, x):
        gate, inp = (
            jax.nn.sigmoid((x @ bf(p["a"])).astype(jnp.float32)),
            jax.nn.sigmoid((x @ bf(p["i"])).astype(jnp.float32)),
        )
        log = -8.0 * gate * jax.nn.softplus(p["l"])
        a = jnp.exp(log)
        b = jnp.sqrt(1 - jnp.exp(2 * log) + 1e-6) * inp * x.astype(jnp.float32)

        def after(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        return bf(lax.associative_scan(after, (a, b), axis=1)[1])

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t] * D**0.5
        for p in ps["l"]:
            h = rms(x, p["n"])
            y = h @ bf(p["x"])
            y = sum(jnp.pad(y, ((0, 0), (i, 0), (0, 0)))[:, :T] * bf(p["c"])[i] for i in range(4))
            x = x + (recurrence(p, y) * jax.nn.gelu(h @ bf(p["y"]))) @ bf(p["o"])
            h = rms(x, p["m"])
            x = x + (jax.nn.gelu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["w"])
        logits = 30.0 * jnp.tanh((rms(x, ps["n"]) @ bf(ps["e"]).T).astype(jnp.float32) / 30.0)
        return cross_entropy(logits[:, :-1], t[:, 1:])

    return loss, params, dict(t=(B, T)), ADAM


def clip(D=768, E=512, S=224, P=16, T=77, B=64, V=49408, L=4):
    """Contrastive towers of images and texts, the layers of each in a scan, two at a time, f32."""
    N = (S // P) ** 2

    def params():
        def tower(d, n):
            shapes = dict(
                n=(d,), b=(d,), qkv=(d, 3 * d), o=(d, d), m=(d,), c=(d,), u=(d, 4 * d), w=(4 * d, d)
            )
            return dict(p=rnd(n, d), l={k: rnd(L, *s) for k, s in shapes.items()})

        return dict(
            i=tower(D, N), t=tower(E, T), e=rnd(V, E), w=rnd(P, P, 3, D), a=rnd(D, E), c=rnd(E, E), s=rnd(1)
        )

    def tower(ps, x, masked):
        n, t, d = x.shape

        def layer(x, p):
            h = layer_norm(x, p["n"], p["b"]) @ p["qkv"]
            q, k, v = (a.reshape(n, t, d // 64, 64) for a in jnp.split(h, 3, -1))
            s = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8.0
            a = jax.nn.softmax(causal(s) if masked else s, -1)
            x = x + jnp.einsum("bhqk,bkhd->bqhd", a, v).reshape(x.shape) @ p["o"]
            h = layer_norm(x, p["m"], p["c"]) @ p["u"]
            return x + (h * jax.nn.sigmoid(1.702 * h)) @ p["w"], None

        return lax.scan(layer, x + ps["p"], ps["l"], unroll=2)[0]

    def loss(ps, b):
        x = lax.conv_general_dilated(
            b["x"], ps["w"], (P, P), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        image = tower(ps["i"], x.reshape(B, N, D), False).mean(1) @ ps["a"]
        text = tower(ps["t"], ps["e"][tokens(b["t"], V)], True)[:, -1] @ ps["c"]
        image, text = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (image, text))
        logits = image @ text.T * jnp.exp(ps["s"])
        own = jnp.arange(B)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    return loss, params, dict(x=(B, S, S, 3), t=(B, T)), ADAMW


def albert(D=1024, E=128, H=16, T=512, B=16, V=30000, L=3, M=80):
    """One layer used several times, norms after, masked words gathered before the head, bf16, NAdam."""
    d = D // H

    def params():
        return dict(
            e=rnd(V, E), p=rnd(T, E), i=rnd(E, D), o=rnd(D, E), h=rnd(V),
            q=rnd(D, D), k=rnd(D, D), v=rnd(D, D), w=rnd(D, D), a=rnd(D, 4 * D), b=rnd(4 * D, D),
            c=[rnd(D) for _ in range(3)], x=rnd(4 * D), y=rnd(D), n=[(rnd(D), rnd(D)) for _ in range(2)],
        )  # fmt: skip

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"][t] + ps["p"]) @ bf(ps["i"])
        bias = jnp.where(b["m"] > -2.0, 0.0, -1e9)[:, None, None]
        for _ in range(L):
            q, k, v = (
                (x @ bf(ps[n]) + bf(c)).reshape(B, T, H, d) for n, c in zip("qkv", ps["c"], strict=True)
            )
            s = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) / d**0.5 + bias
            o = jnp.einsum("bhqk,bkhd->bqhd", bf(jax.nn.softmax(s, -1)), v).reshape(B, T, D) @ bf(ps["w"])
            x = layer_norm(x + o, *ps["n"][0])
            h = jax.nn.gelu(x @ bf(ps["a"]) + bf(ps["x"])) @ bf(ps["b"]) + bf(ps["y"])
            x = layer_norm(x + h, *ps["n"][1])
        at = tokens(b["i"], T)
        h = jax.nn.gelu(jnp.take_along_axis(x, at[..., None], 1) @ bf(ps["o"]))
        logits = (h @ bf(ps["e"]).T).astype(jnp.float32) + ps["h"]
        return cross_entropy(logits, jnp.take_along_axis(t, at, 1))

    return loss, params, dict(t=(B, T), m=(B, T), i=(B, M)), NADAM


def wav2vec(C=512, D=768, H=12, S=32000, B=16, L=2, K=20):
    """Speech: strided convolutions of a waveform, a convolution of positions, a transformer, contrast with sampled
    negatives, f32.
    """
    strides, widths, d = (5, 2, 2, 2, 2, 2), (10, 3, 3, 3, 3, 2), D // H

    def conv(x, w, s, groups=1, pad="VALID"):
        return lax.conv_general_dilated(
            x, w, (s,), pad, dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
        )

    def params():
        def block():
            shapes = dict(qkv=(D, 3 * D), o=(D, D), a=(D, 4 * D), b=(4 * D, D))
            return {k: rnd(*s) for k, s in shapes.items()} | dict(n=(rnd(D), rnd(D)), m=(rnd(D), rnd(D)))

        front = [dict(w=rnd(w, 1 if i == 0 else C, C), g=rnd(C), b=rnd(C)) for i, w in enumerate(widths)]
        return dict(
            f=front,
            i=rnd(C, D),
            p=rnd(32, D // 16, D),
            l=[block() for _ in range(L)],
            o=rnd(D, 256),
            q=rnd(C, 256),
        )

    def loss(ps, b):
        x = b["x"][..., None]
        for p, s in zip(ps["f"], strides, strict=True):
            x = jax.nn.gelu(layer_norm(conv(x, p["w"], s), p["g"], p["b"]))
        T = x.shape[1]
        wanted = x @ ps["q"]
        x = jnp.where((jnp.arange(T) % 7 < 3)[None, :, None], 0.0, x @ ps["i"])
        x = x + jax.nn.gelu(conv(x, ps["p"], 1, 16, "SAME"))
        for p in ps["l"]:
            q, k, v = (a.reshape(B, T, H, d) for a in jnp.split(x @ p["qkv"], 3, -1))
            s = jnp.einsum("bqhd,bkhd->bhqk", q, k) / d**0.5
            o = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s, -1), v).reshape(B, T, D)
            x = layer_norm(x + o @ p["o"], *p["n"])
            x = layer_norm(x + jax.nn.gelu(x @ p["a"]) @ p["b"], *p["m"])
        made = x @ ps["o"]
        others = jax.random.randint(jax.random.key(0), (B, T * K), 0, T)
        negative = jnp.take_along_axis(wanted, others[..., None], 1).reshape(B, T, K, 256)
        every = jnp.concatenate([wanted[:, :, None], negative], 2)
        every = every * lax.rsqrt(jnp.sum(every**2, -1, keepdims=True) + 1e-6)
        made = made * lax.rsqrt(jnp.sum(made**2, -1, keepdims=True) + 1e-6)
        logits = jnp.einsum("btd,btkd->btk", made, every) / 0.1
        return cross_entropy(logits, jnp.zeros((B, T), jnp.int32))

    return loss, params, dict(x=(B, S)), ADAM


def palm(D=2048, H=16, T=1024, B=8, V=32768, L=2, micro=4):
    """Attention of one head of keys and the feed-forward part side by side, names that jax.checkpoint keeps, gradients
    summed over micro-batches in a scan, z-loss, bf16, Lion.
    """
    d, F = D // H, 4 * D

    def params():
        layer = dict(n=(D,), i=(D, D + 2 * d + 2 * F), o=(D, D), w=(F, D))
        return dict(e=rnd(V, D), l=[{k: rnd(*s) for k, s in layer.items()} for _ in range(L)], n=rnd(D))

    kept = jax.checkpoint_policies.save_only_these_names("in", "mixed")

    @functools.partial(jax.checkpoint, policy=kept)
    def layer(p, x):
        b = x.shape[0]
        h = checkpoint_name(rms(x, p["n"]) @ bf(p["i"]), "in")
        q, k, v, g, u = jnp.split(h, [D, D + d, D + 2 * d, D + 2 * d + F], -1)
        q, k = rope(q.reshape(b, T, H, d)), rope(k.reshape(b, T, 1, d))[:, :, 0]
        s = jnp.einsum("bthd,bsd->bhts", q, k) / d**0.5
        o = jnp.einsum("bhts,bsd->bthd", bf(jax.nn.softmax(causal(s), -1)), v).reshape(b, T, D)
        o = checkpoint_name(o, "mixed")
        return x + o @ bf(p["o"]) + (jax.nn.silu(g) * u) @ bf(p["w"])

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = layer(p, x)
        logits = rms(x, ps["n"]) @ bf(ps["e"]).T / D**0.5
        return cross_entropy(logits[:, :-1], t[:, 1:], z=1e-4)

    return loss, params, dict(t=(B, T)), LION._replace(gradients=accumulated(micro))


ALL = dict(
    llama=llama,
    t5=t5,
    mla=mla,
    window=window,
    switch=switch,
    ssd=ssd,
    convnext=convnext,
    diffusion=diffusion,
    griffin=griffin,
    clip=clip,
    albert=albert,
    wav2vec=wav2vec,
    palm=palm,
)
