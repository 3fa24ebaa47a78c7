"""Eight steps of large models of other kinds, written before anyone looked at their estimates."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from unseen.parts import (
    ADAFACTOR,
    ADAMW,
    LION,
    MOMENTUM,
    NADAM,
    accumulated,
    bf,
    conv,
    cross_entropy,
    gated,
    layer_norm,
    rms,
    rope,
    summed,
    tokens,
)
from unseen.seventh import attended, listed, past, stacked
from unseen.steps import ADAM, Devices, Training, rnd


def block_shapes(D, F=None):
    """Shapes of a `block`'s parameters."""
    F = F or 4 * D
    return dict(n=(2, D), qkv=(D, 3 * D), o=(D, D), m=(2, D), a=(D, F), c=(F,), b=(F, D))


def block(x, p, heads, seen=None):
    """Transformer layer of x [batch, time, width], layer norms before, GELU."""
    h = (layer_norm(x, *p["n"]) @ bf(p["qkv"])).reshape(*x.shape[:2], 3, heads, -1)
    x = x + attended(h[:, :, 0, :, None], h[:, :, 1], h[:, :, 2], seen) @ bf(p["o"])
    return x + jax.nn.gelu(layer_norm(x, *p["m"]) @ bf(p["a"]) + bf(p["c"])) @ bf(p["b"])


def maskgit(D=768, H=12, M=256, N=160, B=40, V=1024, L=6):
    """Codes of a picture behind its class, masked in random order by a cosine, those masked gathered for the head,
    layers in a scan without jax.checkpoint, bf16.
    """

    def loss(ps, b):
        t = tokens(b["t"], V)
        order = jnp.argsort(b["u"], -1)
        count = jnp.cos(b["r"] * 1.57)[:, None] * M
        x = bf(ps["e"])[jnp.where(jnp.argsort(order, -1) < count, V, t)]
        x = jnp.concatenate([bf(ps["c"])[tokens(b["c"], 1000)][:, None], x], 1) + bf(ps["p"])
        x, _ = lax.scan(lambda x, p: (block(x, p, H), None), layer_norm(x, *ps["n"]), ps["l"])
        at = order[:, :N]
        x = jnp.take_along_axis(x[:, 1:], at[..., None], 1)
        x = layer_norm(jax.nn.gelu(x @ bf(ps["h"])), *ps["m"])
        logits = (x @ bf(ps["e"][:V]).T).astype(jnp.float32) + ps["b"]
        found = jax.nn.log_softmax(logits, -1) * (
            0.9 * jax.nn.one_hot(jnp.take_along_axis(t, at, 1), V) + 0.1 / V
        )
        weight = jnp.arange(N) < count
        return -jnp.sum(found.sum(-1) * weight) / jnp.sum(weight)

    def params():
        return dict(
            e=rnd(V + 1, D), c=rnd(1000, D), p=rnd(M + 1, D), n=rnd(2, D), l=stacked(L, block_shapes(D)), h=rnd(D, D),
            m=rnd(2, D), b=rnd(V),
        )  # fmt: skip

    return loss, params, dict(t=(B, M), u=(B, M), r=(B,), c=(B,)), ADAMW


def hymba(D=1024, F=2816, H=16, K=4, N=16, T=1024, M=128, C=64, W=512, B=4, V=32000, L=3):
    """Windowed heads and selective state spaces side by side in each layer, their norms averaged, learned tokens in front
    that all see, states by an associative scan within chunks of a scan, layers in a scan under jax.checkpoint, bf16.
    """
    d, S = D // H, T + M
    shapes = dict(
        n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), i=(D, 2 * D), c=(3, 1, D), x=(D, 2 * N + 64), t=(64, D), r=(D,), a=(D, N),
        s=(D,), y=(2, D), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D),
    )  # fmt: skip

    @jax.checkpoint
    def chunk(h, now):
        decay, put, read = now
        a, b = lax.associative_scan(
            lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (jnp.exp(decay), put), axis=1
        )
        h = a * h[:, None] + b
        return h[:, -1], jnp.einsum("btdn,btn->btd", h, read)

    def spaced(p, h):
        u, z = jnp.split(h @ bf(p["i"]), 2, -1)
        u = jax.nn.silu(conv(u, p["c"], pad=[(2, 0)], groups=D))
        put, read, t = jnp.split((u @ bf(p["x"])).astype(jnp.float32), [N, 2 * N], -1)
        t = jax.nn.softplus(t @ p["t"] + p["r"])
        each = (-t[..., None] * jnp.exp(p["a"]), (t * u)[..., None] * put[:, :, None], read)
        each = jax.tree.map(lambda a: a.reshape(B, S // C, C, *a.shape[2:]).swapaxes(0, 1), each)
        _, y = lax.scan(chunk, jnp.zeros((B, D, N)), each)
        return bf(y.swapaxes(0, 1).reshape(B, S, D) + p["s"] * u) * jax.nn.silu(z)

    def loss(ps, b):
        t, at = tokens(b["t"], V), jnp.arange(S)
        away = at[:, None] - at
        seen = (away >= 0) & ((away < W) | (at < M))

        @jax.checkpoint
        def layer(x, p):
            h = rms(x, p["n"])
            q = rope((h @ bf(p["q"])).reshape(B, S, H, d)).reshape(B, S, K, H // K, d)
            k, v = rope((h @ bf(p["k"])).reshape(B, S, K, d)), (h @ bf(p["v"])).reshape(B, S, K, d)
            both = rms(attended(q, k, v, seen), p["y"][0]) + rms(spaced(p, h), p["y"][1])
            x = x + 0.5 * both @ bf(p["o"])
            h = rms(x, p["m"])
            return x + gated(h, p), None

        x = jnp.concatenate([jnp.broadcast_to(bf(ps["s"]), (B, M, D)), bf(ps["e"])[t]], 1)
        x, _ = lax.scan(layer, x, ps["l"])
        return cross_entropy(rms(x[:, M:-1], ps["n"]) @ bf(ps["e"]).T, t[:, 1:])

    def params():
        return dict(e=rnd(V, D), s=rnd(M, D), l=stacked(L, shapes), n=rnd(D))

    return loss, params, dict(t=(B, T)), ADAMW


def xlstm(D=1024, H=4, T=2048, C=128, B=4, V=50304, F=2752):
    """Matrix memories with exponential gates, stabilised, by chunks in a scan under jax.checkpoint, then a scalar memory
    by a scan over time with a recurrent block for each head, unrolled, bf16.
    """
    I, d, s = 2 * D, 2 * D // H, D // H  # noqa: E741
    matrix = dict(
        n=(2, D), u=(D, 2 * I), c=(4, 1, I), q=(I, I), k=(I, I), v=(I, I), g=(I, 2 * H), f=(2 * H,), m=(I,), s=(I,), o=(I, D)
    )  # fmt: skip
    scalar = dict(
        n=(2, D), c=(4, 1, D), w=(D, 4 * D), r=(H, s, 4 * s), m=(D,), y=(D,), g=(D, F), u=(D, F), o=(F, D)
    )

    @jax.checkpoint
    def chunk(state, now):
        memory, norm, top = state
        q, k, v, i, f = now
        total = jnp.cumsum(jax.nn.log_sigmoid(f), 1).swapaxes(1, 2)
        i = i.swapaxes(1, 2)
        log = jnp.where(past(C), total[..., :, None] - total[..., None, :] + i[..., None, :], -jnp.inf)
        most = jnp.maximum(log.max(-1), total + top[..., None])
        inner = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * jnp.exp(log - most[..., None])
        carried = jnp.exp(total + top[..., None] - most)
        y = jnp.einsum("bhqk,bkhd->bhqd", bf(inner), v)
        y = y + jnp.einsum("bqhd,bhde->bhqe", q, bf(memory)) * bf(carried)[..., None]
        under = inner.sum(-1) + jnp.einsum("bqhd,bhd->bhq", q.astype(jnp.float32), norm) * carried
        y = y / bf(jnp.maximum(jnp.abs(under), jnp.exp(-most)))[..., None]
        left = total[..., -1:] - total + i
        new = jnp.maximum(total[..., -1] + top, left.max(-1))
        keep, k = (
            jnp.exp(total[..., -1] + top - new),
            k * bf(jnp.exp(left - new[..., None])).swapaxes(1, 2)[..., None],
        )
        memory = memory * keep[..., None, None] + jnp.einsum("bkhd,bkhe->bhde", k, v)
        return (memory, norm * keep[..., None] + k.sum(1), new), y.swapaxes(1, 2)

    def remember(p, x):
        u, z = jnp.split(layer_norm(x, *p["n"]) @ bf(p["u"]), 2, -1)
        h = jax.nn.silu(conv(u, p["c"], pad=[(3, 0)], groups=I))
        q, k, v = ((a @ bf(p[j])).reshape(B, T, H, d) for a, j in ((h, "q"), (h, "k"), (u, "v")))
        i, f = jnp.split((h @ bf(p["g"])).astype(jnp.float32) + p["f"], 2, -1)
        each = jax.tree.map(
            lambda a: a.reshape(B, T // C, C, *a.shape[2:]).swapaxes(0, 1), (q, k * d**-0.5, v, i, f)
        )
        start = (jnp.zeros((B, H, d, d)), jnp.zeros((B, H, d)), jnp.full((B, H), -1e30))
        y = lax.scan(chunk, start, each)[1].swapaxes(0, 1).reshape(B, T, H, d)
        y = layer_norm(y, 1.0, 0.0).reshape(B, T, I) * bf(p["m"]) + h * bf(p["s"])
        return x + (y * jax.nn.silu(z)) @ bf(p["o"])

    def recur(p, x):
        h = layer_norm(x, *p["n"])
        gates = jnp.concatenate([jax.nn.silu(conv(h, p["c"], pad=[(3, 0)], groups=D)), h], -1)
        w = bf(p["w"])
        gates = jnp.concatenate([gates[..., :D] @ w[:, : 2 * D], gates[..., D:] @ w[:, 2 * D :]], -1)
        gates = gates.reshape(B, T, 4, H, s).transpose(1, 0, 3, 2, 4).reshape(T, B, H, 4 * s)

        def step(state, now):
            y, c, n, m = state
            i, f, z, o = jnp.split(
                (now + jnp.einsum("bhd,hde->bhe", bf(y), bf(p["r"]))).astype(jnp.float32), 4, -1
            )
            new = jnp.maximum(jax.nn.log_sigmoid(f) + m, i)
            i, f = jnp.exp(i - new), jnp.exp(jax.nn.log_sigmoid(f) + m - new)
            c, n = f * c + i * jnp.tanh(z), f * n + i
            y = jax.nn.sigmoid(o) * c / jnp.maximum(n, 1e-6)
            return (y, c, n, new), bf(y)

        _, y = lax.scan(step, (jnp.zeros((B, H, s)),) * 4, gates)
        x = x + (layer_norm(y.swapaxes(0, 1), 1.0, 0.0).reshape(B, T, D) * bf(p["m"]))
        h = rms(x, p["y"])
        return x + (jax.nn.gelu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["o"])

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            x = remember(p, x)
        x = recur(ps["s"], x)
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(
            e=rnd(V, D), l=listed(2, matrix), s={k: rnd(*v) for k, v in scalar.items()}, n=rnd(D), h=rnd(D, V)
        )

    return loss, params, dict(t=(B, T)), ADAM


def vivit(D=768, H=12, S=224, P=16, N=16, B=12, L=3):
    """Video: tubelets by a convolution in three dimensions, attention over the times of a place and then over the places
    of a time, unrolled, feed-forward parts under jax.checkpoint, bf16, SGD.
    """
    M, U = (S // P) ** 2, N // 2
    att = dict(n=(2, D), qkv=(D, 3 * D), c=(3 * D,), o=(D, D), p=(D,))
    shapes = dict(m=(2, D), a=(D, 4 * D), e=(4 * D,), b=(4 * D, D), f=(D,))

    def attend(p, x):
        h = (layer_norm(x, *p["n"]) @ bf(p["qkv"]) + bf(p["c"])).reshape(*x.shape[:2], 3, H, D // H)
        return x + attended(h[:, :, 0, :, None], h[:, :, 1], h[:, :, 2]) @ bf(p["o"]) + bf(p["p"])

    @jax.checkpoint
    def feed(p, x):
        h = jax.nn.gelu(layer_norm(x, *p["m"]) @ bf(p["a"]) + bf(p["e"]))
        return x + h @ bf(p["b"]) + bf(p["f"])

    def loss(ps, b):
        x = lax.conv_general_dilated(
            bf(b["x"]), bf(ps["i"]), (2, P, P), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        x = x.reshape(B, U, M, D) + bf(ps["p"]) + bf(ps["t"])[:, None]
        for time, place, ff in zip(ps["time"], ps["place"], ps["ff"], strict=True):
            x = attend(time, x.swapaxes(1, 2).reshape(B * M, U, D)).reshape(B, M, U, D).swapaxes(1, 2)
            x = attend(place, x.reshape(B * U, M, D))
            x = feed(ff, x).reshape(B, U, M, D)
        x = layer_norm(x.mean((1, 2)), *ps["n"])
        return cross_entropy(x @ bf(ps["h"]), tokens(b["y"], 400), smoothing=0.1)

    def params():
        return dict(
            i=rnd(2, P, P, 3, D), p=rnd(M, D), t=rnd(U, D), time=listed(L, att), place=listed(L, att), ff=listed(L, shapes),
            n=rnd(2, D), h=rnd(D, 400),
        )  # fmt: skip

    return loss, params, dict(x=(B, N, S, S, 3), y=(B,)), MOMENTUM


def painn(N=2048, E=32768, D=192, R=20, G=64, L=3):
    """Atoms with scalars and vectors, messages over edges by radial filters and segment sums, energies of molecules and
    forces by a gradient within the loss, f32.
    """
    message = dict(a=(D, D), b=(D, 3 * D), f=(R, 3 * D))
    update = dict(u=(D, 2 * D), a=(2 * D, D), b=(D, 3 * D))

    def energies(ps, place, kind, src, dst, of):
        away = place[dst] - place[src]
        far = jnp.sqrt(jnp.sum(away**2, -1, keepdims=True) + 1e-6)
        unit = (away / far)[..., None]
        rbf = jnp.sin(jnp.arange(1, R + 1) * 3.14 / 5.0 * far) / far
        near = 0.5 * (jnp.cos(3.14 * jnp.minimum(far / 5.0, 1.0)) + 1)
        s, v = ps["e"][kind], jnp.zeros((N, 3, D))
        for m, p in zip(ps["m"], ps["u"], strict=True):
            h = (jax.nn.silu(s @ m["a"]) @ m["b"])[src] * (rbf @ m["f"]) * near
            a, b, c = jnp.split(h, 3, -1)
            s = s + jax.ops.segment_sum(a, dst, N)
            v = v + jax.ops.segment_sum(v[src] * b[:, None] + unit * c[:, None], dst, N)
            x, y = jnp.split(v @ p["u"], 2, -1)
            h = jnp.concatenate([s, jnp.sqrt(jnp.sum(y**2, 1) + 1e-6)], -1)
            a, b, c = jnp.split(jax.nn.silu(h @ p["a"]) @ p["b"], 3, -1)
            s, v = s + a + b * jnp.sum(x * y, 1), v + c[:, None] * x
        each = jax.nn.silu(s @ ps["o"][0]) @ ps["o"][1]
        return jax.ops.segment_sum(each[:, 0], of, G)

    def loss(ps, b):
        src, dst = tokens(b["s"], N), tokens(b["d"], N)
        kind, of = tokens(b["k"], 100), jnp.sort(tokens(b["g"], G))

        def total(place):
            found = energies(ps, place, kind, src, dst, of)
            return found.sum(), found

        slope, found = jax.grad(total, has_aux=True)(b["x"])
        return jnp.mean((found - b["e"]) ** 2) + 10.0 * jnp.mean((slope + b["f"]) ** 2)

    def params():
        return dict(e=rnd(100, D), m=listed(L, message), u=listed(L, update), o=[rnd(D, D), rnd(D, 1)])

    return loss, params, dict(s=(E,), d=(E,), k=(N,), g=(N,), x=(N, 3), e=(G,), f=(N, 3)), ADAM


def conformer(D=512, H=8, S=1600, B=96, C=31, V=4096, L=4):
    """Speech over eight devices: halves of feed-forward parts around attention with relative positions and a depthwise
    convolution, batch norm over all devices, masked frames told from random codes, layers in a scan, bf16, NAdam.
    """
    d, T, n = D // H, S // 4, B // 8
    half = dict(n=(2, D), a=(D, 4 * D), b=(4 * D, D))
    shapes = dict(
        f=half, g=half, n=(2, D), qkv=(D, 3 * D), r=(D, D), u=(H, d), v=(H, d), o=(D, D), m=(2, D), p=(D, 2 * D), c=(C, 1, D),
        y=(2, D), z=(D, D), e=(2, D),
    )  # fmt: skip

    def feed(p, x):
        return x + 0.5 * (jax.nn.silu(layer_norm(x, *p["n"]) @ bf(p["a"])) @ bf(p["b"]))

    def attend(p, x, at):
        q, k, v = jnp.split((layer_norm(x, *p["n"]) @ bf(p["qkv"])).reshape(n, T, 3 * H, d), 3, 2)
        r = (at @ bf(p["r"])).reshape(2 * T - 1, H, d)
        near = jnp.einsum("bqhd,rhd->bhqr", q + bf(p["v"]), r)
        # Row q starts at the distance that its first key has: shifted by padding and reshaping.
        near = jnp.pad(near, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(n, H, 2 * T, T)
        near = near[:, :, 1:].reshape(n, H, T, 2 * T - 1)[..., :T]
        s = (jnp.einsum("bqhd,bkhd->bhqk", q + bf(p["u"]), k) + near).astype(jnp.float32) * d**-0.5
        y = jnp.einsum("bhqk,bkhd->bqhd", bf(jax.nn.softmax(s, -1)), v).reshape(n, T, D)
        return x + y @ bf(p["o"])

    def convolve(p, x):
        a, b = jnp.split(layer_norm(x, *p["m"]) @ bf(p["p"]), 2, -1)
        h = conv(a * jax.nn.sigmoid(b), p["c"], groups=D).astype(jnp.float32)
        mean, square = lax.pmean((h.mean((0, 1)), jnp.square(h).mean((0, 1))), "d")
        h = (h - mean) * lax.rsqrt(square - mean**2 + 1e-5) * p["y"][0] + p["y"][1]
        return x + bf(jax.nn.silu(h)) @ bf(p["z"])

    def loss(ps, b):
        codes = b["x"].reshape(n, T, -1) @ jax.random.normal(jax.random.key(0), (4 * 80, 16))
        book = jax.random.normal(jax.random.key(1), (V, 16))
        label = jnp.argmax(codes @ book.T - 0.5 * jnp.sum(book**2, -1), -1)
        hidden = b["m"] > 0.5
        x = jnp.where(jnp.repeat(hidden, 4, 1)[..., None], 0.0, b["x"])[..., None]
        for w in ps["i"]:
            x = jax.nn.relu(conv(bf(x), w, 2))
        x = x.reshape(n, T, -1) @ bf(ps["j"])
        f = jnp.arange(T - 1, -T, -1)[:, None] * jnp.exp(-jnp.arange(D // 2) * 18.4 / D)
        at = bf(jnp.concatenate([jnp.sin(f), jnp.cos(f)], -1))

        def layer(x, p):
            x = feed(p["g"], convolve(p, attend(p, feed(p["f"], x), at)))
            return layer_norm(x, *p["e"]), None

        x, _ = lax.scan(layer, x, ps["l"])
        logits = (x @ bf(ps["h"])).astype(jnp.float32)
        found = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), label[..., None], -1)[..., 0]
        return -jnp.sum(found * hidden) / (n * T * 4)

    def params():
        layers = {k: stacked(L, s) if isinstance(s, dict) else rnd(L, *s) for k, s in shapes.items()}
        return dict(i=[rnd(3, 3, 1, 128), rnd(3, 3, 128, 32)], j=rnd(20 * 32, D), l=layers, h=rnd(D, V))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    devices = Devices((8,), ("d",), specs, PartitionSpec("d"))
    return loss, params, dict(x=(B, S, 80), m=(B, T)), Training(NADAM.update, 2, summed("d")), devices


def megabyte(D=1280, d=512, P=8, T=8192, B=4, H=10, L=4, parts=2):
    """Bytes by patches: a decoder over patches in a scan under jax.checkpoint, a small one over the bytes of each in a
    scan, gradients summed over parts of the batch, factored second moments, bf16.
    """
    N, each = T // P, D // P

    def loss(ps, b):
        t = tokens(b["t"], 256)
        rows = t.shape[0]
        x = (bf(ps["e"])[t] + bf(ps["q"])[None]).reshape(rows, N, D)
        x = jnp.concatenate([jnp.broadcast_to(bf(ps["s"]), (rows, 1, D)), x[:, :-1]], 1)

        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        def layer(x, p):
            return block(x, p, H, past(N)), None

        x, _ = lax.scan(layer, x, ps["l"])
        y = x.reshape(rows * N, P, each) @ bf(ps["w"])
        inner = jnp.pad(bf(ps["f"])[t].reshape(rows * N, P, d), ((0, 0), (1, 0), (0, 0)))[:, :-1]
        y, _ = lax.scan(lambda y, p: (block(y, p, d // 64, past(P)), None), y + inner, ps["i"])
        return cross_entropy(layer_norm(y, *ps["n"]) @ bf(ps["h"]), t.reshape(rows * N, P))

    def params():
        return dict(
            e=rnd(256, each), q=rnd(T, each), s=rnd(D), l=stacked(L, block_shapes(D)), w=rnd(each, d), f=rnd(256, d),
            i=stacked(2, block_shapes(d)), n=rnd(2, d), h=rnd(d, 256),
        )  # fmt: skip

    return loss, params, dict(t=(B, T)), Training(ADAFACTOR.update, 1, accumulated(parts))


def dreamer(B=16, T=64, C=48, D=1024, K=32, U=512, A=6, horizon=15):
    """World model: pictures encoded, a GRU with classes drawn straight through by a scan over time, pictures and rewards
    decoded, then steps dreamed by an actor from all states, a critic of their returns, bf16 convolutions, Lion.
    """
    Z, n = K * K, B * T

    def gru(w, x, h):
        r, c, u = jnp.split(
            (layer_norm(bf(jnp.concatenate([x, h], -1)) @ bf(w), 1.0, 0.0)).astype(h.dtype), 3, -1
        )
        u = jax.nn.sigmoid(u - 1)
        return u * jnp.tanh(jax.nn.sigmoid(r) * c) + (1 - u) * h

    def logits(p, x):
        y = jax.nn.silu(layer_norm(bf(x) @ bf(p[0]), 1.0, 0.0)) @ bf(p[1])
        y = y.astype(jnp.float32).reshape(*y.shape[:-1], K, K)
        return jnp.log(0.99 * jax.nn.softmax(y, -1) + 0.01 / K)

    def drawn(logits, noise):
        hard = jax.nn.one_hot(jnp.argmax(logits + noise, -1), K)
        soft = jnp.exp(logits)
        z = hard + soft - lax.stop_gradient(soft)
        return z.reshape(*z.shape[:-2], Z)

    def mlp(p, x):
        x = bf(x)
        for w in p[:-1]:
            x = jax.nn.silu(layer_norm(x @ bf(w), 1.0, 0.0))
        return (x @ bf(p[-1])).astype(jnp.float32)

    def noise(key, *shape):
        return jax.random.gumbel(key, shape)

    def divergence(p, q):
        return jnp.maximum(jnp.sum(jnp.exp(p) * (p - q), (-2, -1)), 1.0).mean()

    def loss(ps, b):
        keys = jax.random.split(jax.random.key(tokens(b["s"], 1 << 20)[0]), 3)
        x = bf(b["x"].reshape(n, 64, 64, 3))
        for w in ps["enc"]:
            x = jax.nn.silu(layer_norm(conv(x, w, 2), 1.0, 0.0))
        seen = x.reshape(B, T, -1)

        def observe(state, now):
            h, z = state
            seen, action, drop = now
            h = gru(ps["gru"], mlp(ps["in"], jnp.concatenate([z, action], -1)), h)
            after = logits(ps["post"], jnp.concatenate([bf(h), seen], -1))
            z = drawn(after, drop)
            return (h, z), (h, z, after)

        start = (jnp.zeros((B, D)), jnp.zeros((B, Z)))
        each = (seen.swapaxes(0, 1), b["a"].swapaxes(0, 1), noise(keys[0], T, B, K, K))
        _, (h, z, after) = lax.scan(observe, start, each)
        before = logits(ps["prior"], h)
        stop = lax.stop_gradient
        kl = 0.5 * divergence(stop(after), before) + 0.1 * divergence(after, stop(before))
        state = jnp.concatenate([h, z], -1).reshape(n, D + Z)

        y = (bf(state) @ bf(ps["out"])).reshape(n, 4, 4, 8 * C)
        for at, w in enumerate(ps["dec"]):
            y = lax.conv_transpose(y, bf(w), (2, 2), "SAME")
            y = y if at == 3 else jax.nn.silu(layer_norm(y, 1.0, 0.0))
        target = b["x"].swapaxes(0, 1).reshape(n, 64, 64, 3)
        picture = jnp.sum((y.astype(jnp.float32) - target) ** 2, (1, 2, 3)).mean()
        reward = jnp.mean((mlp(ps["reward"], state)[:, 0] - b["r"].swapaxes(0, 1).reshape(n)) ** 2)

        world = stop({k: ps[k] for k in ("gru", "in", "prior", "reward")})

        def dream(state, key):
            h, z = state
            one, two = jax.random.split(key)
            now = jnp.concatenate([h, z], -1)
            policy = jax.nn.log_softmax(mlp(ps["actor"], stop(now)), -1)
            action = jax.nn.one_hot(jnp.argmax(policy + noise(one, n, A), -1), A)
            h = gru(world["gru"], mlp(world["in"], jnp.concatenate([z, action], -1)), h)
            z = drawn(logits(world["prior"], h), noise(two, n, K, K))
            return stop((h, z)), (stop(now), policy, action)

        first = stop((h.reshape(n, D), z.reshape(n, Z)))
        _, (states, policy, action) = lax.scan(dream, first, jax.random.split(keys[1], horizon))
        value = mlp(ps["critic"], states)[..., 0]
        paid = mlp(world["reward"], states)[..., 0]

        def back(later, now):
            paid, value = now
            later = paid + 0.99 * (0.05 * value + 0.95 * later)
            return later, later

        _, returns = lax.scan(back, stop(value[-1]), stop((paid[:-1], value[1:])), reverse=True)
        gain = (returns - stop(value[:-1])) / jnp.maximum(1.0, returns.std())
        entropy = -jnp.sum(jnp.exp(policy) * policy, -1)
        actor = -jnp.mean(jnp.sum(policy * action, -1)[:-1] * gain + 3e-4 * entropy[:-1])
        critic = 0.5 * jnp.mean((value[:-1] - returns) ** 2)
        return picture + reward + kl + actor + critic

    def params():
        wide, sizes = D + Z, (3, C, 2 * C, 4 * C, 8 * C)
        return dict(
            enc=[rnd(4, 4, i, o) for i, o in itertools.pairwise(sizes)],
            dec=[rnd(4, 4, i, o) for i, o in itertools.pairwise(sizes[::-1])],
            out=rnd(wide, 16 * 8 * C),
            gru=rnd(U + D, 3 * D),
            prior=[rnd(D, U), rnd(U, Z)],
            post=[rnd(D + 16 * 8 * C, U), rnd(U, Z)],
            reward=[rnd(wide, U), rnd(U, U), rnd(U, 1)],
            actor=[rnd(wide, U), rnd(U, U), rnd(U, A)],
            critic=[rnd(wide, U), rnd(U, U), rnd(U, 1)],
        ) | {"in": [rnd(Z + A, U), rnd(U, U)]}

    return loss, params, dict(x=(B, T, 64, 64, 3), a=(B, T, A), r=(B, T), s=(1,)), LION


ALL = dict(
    maskgit=maskgit, hymba=hymba, xlstm=xlstm, vivit=vivit, painn=painn, conformer=conformer, megabyte=megabyte,
    dreamer=dreamer,
)  # fmt: skip
