"""Further steps of large models and of how they are trained, written and measured with the rules that the sixth part gave."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from unseen.parts import (
    ADAMW,
    AVERAGED,
    LION,
    accumulated,
    bf,
    clipped,
    cross_entropy,
    gated,
    layer_norm,
    rms,
    rope,
    tokens,
)
from unseen.steps import ADAM, Devices, Training, rnd


def attended(q, k, v, seen=None):
    """Attention written out, softmax in f32: q [B, T, K, G, d] over k, v [B, S, K, d], `seen` broadcast to [T, S]."""
    s = jnp.einsum("btkgd,bskd->bkgts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if seen is not None:
        s = jnp.where(seen, s, -1e30)
    return jnp.einsum("bkgts,bskd->btkgd", bf(jax.nn.softmax(s, -1)), v).reshape(*q.shape[:2], -1)


def past(T):
    """[T, T], true where a key is not later than its query."""
    return jnp.tril(jnp.ones((T, T), bool))


def stacked(layers, shapes):
    """Random parameters of that many layers, each stacked."""
    return {k: rnd(layers, *s) for k, s in shapes.items()}


def listed(layers, shapes):
    """Random parameters of each of the layers."""
    return [{k: rnd(*s) for k, s in shapes.items()} for _ in range(layers)]


def mixtral(D=1024, F=1792, H=8, K=2, T=1024, B=4, E=8, V=32000, L=2):
    """Experts by sorted rows and grouped products, two a token, grouped keys, layers in a scan under jax.checkpoint, bf16."""
    d = D // H
    shapes = dict(
        n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), m=(D,), r=(D, E), g=(E, D, F), u=(E, D, F), w=(E, F, D)
    )  # fmt: skip

    def experts(p, x):
        gates, index = lax.top_k(x.astype(jnp.float32) @ p["r"], 2)
        index = index.reshape(-1)
        order = jnp.argsort(index)
        sizes = jnp.bincount(index, length=E)
        rows = x[order // 2]
        h = jax.nn.silu(lax.ragged_dot(rows, bf(p["g"]), sizes)) * lax.ragged_dot(rows, bf(p["u"]), sizes)
        out = lax.ragged_dot(h, bf(p["w"]), sizes)[jnp.argsort(order)].reshape(-1, 2, D)
        return jnp.einsum("tkd,tk->td", out, bf(jax.nn.softmax(gates, -1)))

    @jax.checkpoint
    def layer(x, p):
        h = rms(x, p["n"])
        q = rope((h @ bf(p["q"])).reshape(B, T, H, d)).reshape(B, T, K, H // K, d)
        k, v = rope((h @ bf(p["k"])).reshape(B, T, K, d)), (h @ bf(p["v"])).reshape(B, T, K, d)
        x = x + attended(q, k, v, past(T)) @ bf(p["o"])
        return x + experts(p, rms(x, p["m"]).reshape(B * T, D)).reshape(B, T, D), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAMW


def gemma3(D=1280, F=5120, H=4, K=1, d=256, T=1280, B=4, V=49152, L=3, W=512):
    """One head of keys, normed queries and keys, norms on both sides of a block, windows in all layers but the last, tied
    embedding, unrolled, averaged weights, bf16.
    """
    shapes = dict(
        n=(D,), q=(D, H * d), k=(D, K * d), v=(D, K * d), o=(H * d, D), x=(d,), y=(d,), m=(D,), p=(D,), g=(D, F),
        u=(D, F), w=(F, D), r=(D,),
    )  # fmt: skip

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t] * D**0.5
        away = jnp.arange(T)[:, None] - jnp.arange(T)
        for at, p in enumerate(ps["l"]):
            last = at == L - 1
            h = rms(x, 1 + p["n"])
            q = rope(rms((h @ bf(p["q"])).reshape(B, T, H, d), 1 + p["x"]), 1e6 if last else 1e4)
            k = rope(rms((h @ bf(p["k"])).reshape(B, T, K, d), 1 + p["y"]), 1e6 if last else 1e4)
            v = (h @ bf(p["v"])).reshape(B, T, K, d)
            seen = (away >= 0) if last else (away >= 0) & (away < W)
            x = x + rms(attended(q.reshape(B, T, K, H // K, d), k, v, seen) @ bf(p["o"]), 1 + p["m"])
            h = rms(x, 1 + p["p"])
            x = x + rms((jax.nn.gelu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["w"]), 1 + p["r"])
        return cross_entropy((rms(x, 1 + ps["n"]) @ bf(ps["e"]).T)[:, :-1], t[:, 1:], z=1e-4)

    return loss, lambda: dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(D)), dict(t=(B, T)), AVERAGED


def ul2(D=768, F=2048, H=12, T=512, U=128, B=16, V=32128, L=3, parts=2):
    """Encoder and decoder, the layers of each in a scan under jax.checkpoint, gated feed-forward parts, gradients summed
    over parts of the batch, bf16.
    """
    d, one = D // H, B // parts
    att = dict(n=(D,), q=(D, D), k=(D, D), v=(D, D), o=(D, D))
    ff = dict(n=(D,), g=(D, F), u=(D, F), w=(F, D))

    def attend(p, x, y, seen=None):
        q = (rms(x, p["n"]) @ bf(p["q"])).reshape(*x.shape[:2], H, 1, d)
        k, v = ((y @ bf(p[i])).reshape(*y.shape[:2], H, d) for i in "kv")
        return x + attended(q, k, v, seen) @ bf(p["o"])

    def feed(p, x):
        h = rms(x, p["n"])
        return x + (jax.nn.gelu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["w"])

    def loss(ps, b):
        x, y = bf(ps["e"])[tokens(b["x"], V)], tokens(b["y"], V)

        @jax.checkpoint
        def encode(x, p):
            return feed(p["f"], attend(p["a"], x, rms(x, p["a"]["n"]))), None

        x = rms(lax.scan(encode, x, ps["enc"])[0], ps["n"])

        @jax.checkpoint
        def decode(z, p):
            z = attend(p["a"], z, rms(z, p["a"]["n"]), past(U))
            return feed(p["f"], attend(p["c"], z, x)), None

        z = rms(lax.scan(decode, bf(ps["e"])[y], ps["dec"])[0], ps["m"])
        return cross_entropy((z @ bf(ps["e"]).T)[:, :-1], y[:, 1:], smoothing=0.1)

    def params():
        return dict(
            e=rnd(V, D),
            enc=dict(a=stacked(L, att), f=stacked(L, ff)),
            dec=dict(a=stacked(L, att), c=stacked(L, att), f=stacked(L, ff)),
            n=rnd(D),
            m=rnd(D),
        )

    assert one * parts == B
    return loss, params, dict(x=(B, T), y=(B, U)), Training(ADAMW.update, 2, accumulated(parts))


def pixart(D=1152, H=16, S=32, P=2, B=24, N=120, C=2048, L=2):
    """Diffusion of pictures from text: shifts and scales by the time, shared and adjusted in each layer, attention to
    the text, layers in a scan, averaged weights, bf16.
    """
    d, M = D // H, (S // P) ** 2
    shapes = dict(
        s=(6, D), qkv=(D, 3 * D), c=(D,), o=(D, D), p=(D,), q=(D, D), k=(D, D), v=(D, D), x=(D, D), y=(D,), a=(D, 4 * D),
        e=(4 * D,), b=(4 * D, D), f=(D,),
    )  # fmt: skip

    def norm(x, shift, scale):
        return layer_norm(x, 1.0, 0.0) * (1 + scale) + shift

    def loss(ps, b):
        f = jnp.exp(-jnp.arange(128) * 9.2 / 128) * b["t"][:, None]
        c = jax.nn.silu(bf(jnp.concatenate([jnp.cos(f), jnp.sin(f)], -1)) @ bf(ps["t"][0])) @ bf(ps["t"][1])
        m = (jax.nn.silu(c) @ bf(ps["m"])).reshape(B, 6, 1, D)
        y = jax.nn.gelu(bf(b["y"]) @ bf(ps["y"][0])) @ bf(ps["y"][1])
        alpha = jnp.cos(b["t"] * 1.57)[:, None, None, None]
        x = bf(alpha * b["x"] + jnp.sqrt(1 - alpha**2) * b["n"])
        x = x.reshape(B, S // P, P, S // P, P, 4).transpose(0, 1, 3, 2, 4, 5).reshape(B, M, P * P * 4)

        def layer(x, p):
            a = [m[:, i] + bf(p["s"][i]) for i in range(6)]
            h = (norm(x, a[0], a[1]) @ bf(p["qkv"])).reshape(B, M, 3, H, 1, d)
            x = x + a[2] * (
                attended(h[:, :, 0], h[:, :, 1, :, 0], h[:, :, 2, :, 0]) @ bf(p["o"]) + bf(p["p"])
            )
            k, v = ((y @ bf(p[i])).reshape(B, N, H, d) for i in "kv")
            x = x + attended((x @ bf(p["q"])).reshape(B, M, H, 1, d), k, v) @ bf(p["x"]) + bf(p["y"])
            h = jax.nn.gelu(norm(x, a[3], a[4]) @ bf(p["a"]) + bf(p["e"]))
            return x + a[5] * (h @ bf(p["b"]) + bf(p["f"])), None

        x, _ = lax.scan(layer, x @ bf(ps["i"]) + bf(ps["p"]), ps["l"])
        out = (layer_norm(x, 1.0, 0.0) @ bf(ps["o"])).astype(jnp.float32)
        out = out.reshape(B, S // P, S // P, P, P, 4).transpose(0, 1, 3, 2, 4, 5).reshape(B, S, S, 4)
        return jnp.mean((out - b["n"]) ** 2)

    def params():
        return dict(
            i=rnd(P * P * 4, D),
            p=rnd(M, D),
            t=[rnd(256, D), rnd(D, D)],
            m=rnd(D, 6 * D),
            y=[rnd(C, D), rnd(D, D)],
            l=stacked(L, shapes),
            o=rnd(D, P * P * 4),
        )

    shapes_of = dict(x=(B, S, S, 4), n=(B, S, S, 4), y=(B, N, C), t=(B,))
    return loss, params, shapes_of, AVERAGED


def mamba2(D=1024, H=32, P=64, N=128, Q=256, T=2048, B=4, V=32768, L=3):
    """State spaces by chunks, scanned over layers under jax.checkpoint that keeps products, norms behind the gate, f32
    residuals, bf16 products.
    """
    inner, n = H * P, T // Q
    shapes = dict(
        n=(D,), z=(D, inner), x=(D, inner + 2 * N), t=(D, H), c=(inner + 2 * N, 4), a=(H,), d=(H,), b=(H,), m=(inner,),
        o=(inner, D),
    )  # fmt: skip

    def mix(x, a, b, c):
        """x [B, n, Q, H, P], a [B, n, Q, H], b and c [B, n, Q, N]."""
        total = jnp.cumsum(a, 2)
        away = total[:, :, :, None] - total[:, :, None]
        inside = jnp.where(past(Q)[:, :, None], jnp.exp(away), 0.0)
        scores = jnp.einsum("bnqs,bnks->bnqk", c, b)[..., None] * bf(inside)
        y = jnp.einsum("bnqkh,bnkhp->bnqhp", scores, x)
        kept = jnp.einsum("bnks,bnkhp->bnhps", b, x * bf(jnp.exp(total[:, :, -1:] - total))[..., None])

        def step(h, now):
            state, end = now
            return h * jnp.exp(end)[..., None, None] + state, bf(h)

        state = jnp.zeros((B, H, P, N))
        chunks = kept.astype(jnp.float32).swapaxes(0, 1), total[:, :, -1].swapaxes(0, 1)
        _, before = lax.scan(step, state, chunks)
        return y + jnp.einsum("bnqs,nbhps->bnqhp", c, before) * bf(jnp.exp(total))[..., None]

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def layer(r, p):
        h = rms(bf(r), p["n"])
        u = h @ bf(p["x"])
        u = lax.conv_general_dilated(
            u, bf(p["c"]).T[:, None], (1,), ((3, 0),), dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=u.shape[-1],
        )  # fmt: skip
        x, b, c = jnp.split(jax.nn.silu(u).reshape(B, n, Q, -1), [inner, inner + N], -1)
        t = jax.nn.softplus((h @ bf(p["t"])).astype(jnp.float32) + p["b"]).reshape(B, n, Q, H)
        x = x.reshape(B, n, Q, H, P)
        y = mix(x * bf(t)[..., None], -t * jnp.exp(p["a"]), b, c) + bf(p["d"])[:, None] * x
        y = rms(y.reshape(B, T, inner) * jax.nn.silu(h @ bf(p["z"])), p["m"])
        return r + (y @ bf(p["o"])).astype(jnp.float32), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, ps["e"][t], ps["l"])
        return cross_entropy((rms(bf(x), ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    return loss, lambda: dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V)), dict(t=(B, T)), ADAMW


def rwkv6(D=1024, H=16, T=1024, C=64, B=8, V=32768, L=2, R=64):
    """Linear attention with decays that depend on the data, by chunks in a scan with an f32 state, shifted tokens mixed
    by low-rank products, squared ReLU, bf16.
    """
    d, n = D // H, T // C
    shapes = dict(
        n=(D,), s=(5, D), a=(D, 5 * R), b=(5, R, D), r=(D, D), k=(D, D), v=(D, D), g=(D, D), w=(D,), x=(D, R), y=(R, D),
        u=(H, d), o=(D, D), m=(D,), t=(2, D), p=(D, 4 * D), q=(4 * D, D), z=(D, D),
    )  # fmt: skip

    def shifted(x):
        return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def recur(r, k, v, w, u):
        """r, k, v [B, T, H, d] and log decays w in f32 -> [B, T, H, d]."""

        def step(state, now):
            r, k, v, w = now
            total = jnp.cumsum(w, 1)
            before = total - w
            q = r.astype(jnp.float32) * jnp.exp(before)
            inner = jnp.einsum("bqhd,bkhd->bhqk", q, k.astype(jnp.float32) * jnp.exp(-total))
            inner = jnp.where(jnp.tril(jnp.ones((C, C), bool), -1), inner, 0.0)
            y = jnp.einsum("bhqk,bkhd->bqhd", bf(inner), v) + bf(jnp.einsum("bqhd,bhde->bqhe", q, state))
            y = y + (r * k * bf(u)).sum(-1, keepdims=True) * v
            left = k.astype(jnp.float32) * jnp.exp(total[:, -1:] - total)
            state = state * jnp.exp(total[:, -1])[..., None] + jnp.einsum("bkhd,bkhe->bhde", bf(left), v)
            return state.astype(jnp.float32), y

        def split(x):
            return x.reshape(B, n, C, H, d).swapaxes(0, 1)

        _, y = lax.scan(step, jnp.zeros((B, H, d, d)), tuple(map(split, (r, k, v, w))))
        return y.swapaxes(0, 1).reshape(B, T, H, d)

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = layer_norm(bf(ps["e"])[t], 1.0, 0.0)
        for p in ps["l"]:
            h = layer_norm(x, p["n"], 0.0)
            delta = shifted(h) - h
            low = jnp.tanh((h + delta * bf(p["s"][0])) @ bf(p["a"])).reshape(B, T, 5, R)
            low = jnp.einsum("btir,ird->ibtd", low, bf(p["b"]))
            r, k, v, g, w = (h + delta * (bf(p["s"][i]) + low[i]) for i in range(5))
            r, k, v = ((i @ bf(p[j])).reshape(B, T, H, d) for i, j in ((r, "r"), (k, "k"), (v, "v")))
            w = p["w"] + (jnp.tanh(w @ bf(p["x"])) @ bf(p["y"])).astype(jnp.float32)
            y = recur(r, k, v, -jnp.exp(w).reshape(B, T, H, d), p["u"])
            y = layer_norm(y, 1.0, 0.0).reshape(B, T, D) * jax.nn.silu(g @ bf(p["g"]))
            x = x + y @ bf(p["o"])
            h = layer_norm(x, p["m"], 0.0)
            delta = shifted(h) - h
            k = jnp.square(jax.nn.relu((h + delta * bf(p["t"][0])) @ bf(p["p"])))
            x = x + jax.nn.sigmoid((h + delta * bf(p["t"][1])) @ bf(p["z"])) * (k @ bf(p["q"]))
        return cross_entropy((layer_norm(x, ps["n"], 0.0) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    return loss, lambda: dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(D), h=rnd(D, V)), dict(t=(B, T)), ADAM


def _half_moments(state, g, lr=1e-3):
    """AdamW whose moments are in bf16; state (parameters, two moments)."""
    p, m, v = state
    g = clipped(g)
    m = jax.tree.map(lambda a, b: 0.9 * a.astype(jnp.float32) + 0.1 * b, m, g)
    v = jax.tree.map(lambda a, b: 0.95 * a.astype(jnp.float32) + 0.05 * b * b, v, g)
    p = jax.tree.map(lambda p, a, b: p - lr * (a / (jnp.sqrt(b) + 1e-8) + 0.1 * p), p, m, v)
    return p, jax.tree.map(bf, m), jax.tree.map(bf, v)


def _in_half(p):
    return (p, *(jax.tree.map(lambda a: jnp.zeros_like(a, jnp.bfloat16), p) for _ in range(2)))


def deepseek(D=1024, F=512, H=8, T=1024, B=4, V=32000, E=16, top=4, L=2, R=256, d=128, r=64):
    """Attention by latents, many small experts of a capacity whose rows are scattered and gathered, a shared one,
    sigmoid gates, moments in bf16, bf16.
    """
    n = B * T
    C = top * n // E * 5 // 4
    shapes = dict(
        n=(D,), q=(D, H * (d + r)), ka=(D, R + r), kn=(R,), kb=(R, H * 2 * d), o=(H * d, D), m=(D,), r=(D, E), g=(E, D, F),
        u=(E, D, F), w=(E, F, D), sg=(D, 2 * F), su=(D, 2 * F), sw=(2 * F, D),
    )  # fmt: skip

    def attention(p, x):
        q = (x @ bf(p["q"])).reshape(B, T, H, d + r)
        low = x @ bf(p["ka"])
        kv = (rms(low[..., :R], p["kn"]) @ bf(p["kb"])).reshape(B, T, H, 2 * d)
        turn = jnp.broadcast_to(rope(low[..., R:].reshape(B, T, 1, r)), (B, T, H, r))
        q = jnp.concatenate([q[..., :d], rope(q[..., d:])], -1)
        k = jnp.concatenate([kv[..., :d], turn], -1)
        return attended(q[:, :, :, None], k, kv[..., d:], past(T)) @ bf(p["o"])

    def experts(p, x):
        scores = jax.nn.sigmoid(x.astype(jnp.float32) @ p["r"])
        gates, index = lax.top_k(scores, top)
        gates = gates / gates.sum(-1, keepdims=True)
        flat = index.reshape(-1)
        place = jnp.cumsum(jax.nn.one_hot(flat, E, dtype=jnp.int32), 0)[jnp.arange(n * top), flat] - 1
        at = jnp.where(place < C, flat * C + place, E * C)
        rows = jnp.zeros((E * C, D), x.dtype).at[at].set(jnp.repeat(x, top, 0), mode="drop").reshape(E, C, D)
        h = jax.nn.silu(jnp.einsum("ecd,edf->ecf", rows, bf(p["g"]))) * jnp.einsum(
            "ecd,edf->ecf", rows, bf(p["u"])
        )
        out = jnp.einsum("ecf,efd->ecd", h, bf(p["w"])).reshape(E * C, D)
        out = out.at[at].get(mode="fill", fill_value=0).reshape(n, top, D)
        return jnp.einsum("tkd,tk->td", out, bf(gates))

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = x + attention(p, rms(x, p["n"]))
            h = rms(x, p["m"])
            shared = (jax.nn.silu(h @ bf(p["sg"])) * (h @ bf(p["su"]))) @ bf(p["sw"])
            x = x + shared + experts(p, h.reshape(n, D)).reshape(B, T, D)
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), Training(_half_moments, start=_in_half)


def megatron(D=2048, F=5632, H=16, K=4, T=2048, B=4, V=32000, L=2):
    """Decoder on two by two devices by hand: weights gathered over one axis layer by layer, heads and hidden units over
    the other, layers in a scan under jax.checkpoint, bf16.
    """
    d, t, f = D // H, 2, 2
    # Each weight's dimension over the heads' axis, and the one that is gathered.
    cut = dict(q=(1, 0), k=(1, 0), v=(1, 0), o=(0, 1), g=(1, 0), u=(1, 0), w=(0, 1), n=(None, 0), m=(None, 0))
    shapes = dict(
        n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D)
    )  # fmt: skip

    @jax.custom_vjp
    def enter(x):
        return x

    enter.defvjp(lambda x: (x, None), lambda _, g: (lax.psum(g, "t"),))

    @jax.custom_vjp
    def leave(x):
        return lax.psum(x, "t")

    leave.defvjp(lambda x: (lax.psum(x, "t"), None), lambda _, g: (g,))

    def whole(a, axis):
        return lax.all_gather(bf(a), "f", axis=axis, tiled=True)

    @jax.checkpoint
    def layer(x, p):
        p = {k: whole(a, cut[k][1]) for k, a in p.items()}
        h = enter(rms(x, p["n"]))
        rows = x.shape[0]
        q = rope((h @ p["q"]).reshape(rows, T, H // t, d)).reshape(rows, T, K // t, H // K, d)
        k, v = rope((h @ p["k"]).reshape(rows, T, K // t, d)), (h @ p["v"]).reshape(rows, T, K // t, d)
        x = x + leave(attended(q, k, v, past(T)) @ p["o"])
        h = enter(rms(x, p["m"]))
        return x + leave((jax.nn.silu(h @ p["g"]) * (h @ p["u"])) @ p["w"]), None

    def loss(ps, b):
        at = tokens(b["t"], V)
        x, _ = lax.scan(layer, whole(ps["e"], 0)[at], ps["l"])
        logits = (enter(rms(x, whole(ps["n"], 0))) @ whole(ps["h"], 0))[:, :-1].astype(jnp.float32)
        top = lax.pmax(lax.stop_gradient(logits.max(-1)), "t")
        norm = jnp.log(leave(jnp.exp(logits - top[..., None]).sum(-1))) + top
        here = at[:, 1:] - lax.axis_index("t") * (V // t)
        mine = (here >= 0) & (here < V // t)
        found = jnp.take_along_axis(logits, jnp.clip(here, 0, V // t - 1)[..., None], -1)[..., 0]
        return jnp.mean(norm - leave(jnp.where(mine, found, 0.0))) / f

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V))

    def spec(of, gathered, rank):
        return PartitionSpec(*("t" if k == of else "f" if k == gathered else None for k in range(rank)))

    specs = dict(
        e=PartitionSpec("f"),
        l={k: spec(*(None if i is None else i + 1 for i in cut[k]), len(s) + 1) for k, s in shapes.items()},
        n=PartitionSpec("f"),
        h=PartitionSpec("f", "t"),
    )
    return loss, params, dict(t=(B, T)), ADAM, Devices((f, t), ("f", "t"), specs, PartitionSpec("f"))


def qlora(D=2048, F=5632, H=16, K=4, T=1024, B=8, V=32000, L=3, R=16, parts=2):
    """Low-rank factors beside frozen weights of eight bits that are scaled by blocks, layers in a scan under
    jax.checkpoint, gradients summed over parts of the batch, bf16, Lion.
    """
    d, block = D // H, 64
    widths = dict(q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), g=(D, F), u=(D, F), w=(F, D))

    def loss(ps, b):
        t, frozen = tokens(b["t"], V), b["frozen"]
        rows = t.shape[0]

        @jax.checkpoint
        def layer(x, p):
            p, w = p

            def apply(h, name):
                whole = bf(w[name]).reshape(-1, block, w[name].shape[-1]) * bf(w[name + "_scale"])[:, None]
                return h @ whole.reshape(w[name].shape) + 2.0 * ((h @ bf(p[name][0])) @ bf(p[name][1]))

            h = rms(x, w["n"])
            q = rope(apply(h, "q").reshape(rows, T, H, d)).reshape(rows, T, K, H // K, d)
            k, v = rope(apply(h, "k").reshape(rows, T, K, d)), apply(h, "v").reshape(rows, T, K, d)
            x = x + apply(attended(q, k, v, past(T)), "o")
            h = rms(x, w["m"])
            return x + apply(jax.nn.silu(apply(h, "g")) * apply(h, "u"), "w"), None

        x, _ = lax.scan(layer, frozen["e"][t], (ps, frozen["l"]))
        return cross_entropy((rms(x, frozen["n"]) @ frozen["h"])[:, :-1], t[:, 1:])

    def gradients(loss):
        def of(p, batch):
            def one(p, part):
                return loss(p, {"t": part["t"], "frozen": batch["frozen"]})

            return accumulated(parts)(one)(p, {"t": batch["t"]})

        return of

    def params():
        return {k: (rnd(L, i, R), rnd(L, R, o)) for k, (i, o) in widths.items()}

    def array(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    frozen = dict(
        e=array((V, D)),
        h=array((D, V)),
        n=array((D,)),
        l=dict(n=array((L, D)), m=array((L, D)))
        | {k: array((L, *s), jnp.int8) for k, s in widths.items()}
        | {k + "_scale": array((L, s[0] // block, s[1])) for k, s in widths.items()},
    )
    return loss, params, dict(t=(B, T), frozen=frozen), Training(LION.update, 1, gradients)


def llava(D=1536, F=4096, H=12, K=4, T=512, B=8, V=32000, L=2, C=1024, S=336, P=14, G=16, N=2):
    """Pictures before text: a vision transformer with biases, projected into a gated decoder, loss on the text alone,
    unrolled, bf16.
    """
    d, c, M = D // H, C // G, (S // P) ** 2
    see = dict(
        n=(2, C),
        qkv=(C, 3 * C),
        c=(3 * C,),
        o=(C, C),
        p=(C,),
        m=(2, C),
        a=(C, 4 * C),
        e=(4 * C,),
        b=(4 * C, C),
        f=(C,),
    )
    say = dict(n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D))

    def loss(ps, b):
        y = lax.conv_general_dilated(
            bf(b["x"]), bf(ps["i"]), (P, P), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = layer_norm(y.reshape(B, M, C) + bf(ps["p"]), *ps["s"])
        for p in ps["see"]:
            h = (layer_norm(y, *p["n"]) @ bf(p["qkv"]) + bf(p["c"])).reshape(B, M, 3, G, c)
            y = y + attended(h[:, :, 0, :, None], h[:, :, 1], h[:, :, 2]) @ bf(p["o"]) + bf(p["p"])
            h = jax.nn.gelu(layer_norm(y, *p["m"]) @ bf(p["a"]) + bf(p["e"]))
            y = y + h @ bf(p["b"]) + bf(p["f"])
        y = jax.nn.gelu(y @ bf(ps["j"][0])) @ bf(ps["j"][1])
        t = tokens(b["t"], V)
        x = jnp.concatenate([y, bf(ps["e"])[t]], 1)
        for p in ps["say"]:
            h = rms(x, p["n"])
            q = rope((h @ bf(p["q"])).reshape(B, M + T, H, d)).reshape(B, M + T, K, H // K, d)
            k, v = rope((h @ bf(p["k"])).reshape(B, M + T, K, d)), (h @ bf(p["v"])).reshape(B, M + T, K, d)
            x = x + attended(q, k, v, past(M + T)) @ bf(p["o"])
            h = rms(x, p["m"])
            x = x + gated(h, p)
        return cross_entropy(rms(x, ps["n"])[:, M - 1 : -1] @ bf(ps["h"]), t)

    def params():
        return dict(
            i=rnd(P, P, 3, C),
            p=rnd(M, C),
            s=rnd(2, C),
            see=listed(N, see),
            j=[rnd(C, D), rnd(D, D)],
            e=rnd(V, D),
            say=listed(L, say),
            n=rnd(D),
            h=rnd(D, V),
        )

    return loss, params, dict(x=(B, S, S, 3), t=(B, T)), ADAMW


ALL = dict(
    mixtral=mixtral, gemma3=gemma3, ul2=ul2, pixart=pixart, mamba2=mamba2, rwkv6=rwkv6, deepseek=deepseek,
    megatron=megatron, qlora=qlora, llava=llava,
)  # fmt: skip
