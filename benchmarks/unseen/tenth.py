"""Eight more such steps, of how large models are trained, written before anyone looked at their estimates."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from unseen.ninth import block, block_shapes
from unseen.parts import (
    ADAMW,
    AVERAGED,
    LION,
    MOMENTUM,
    MUON,
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
from unseen.seventh import attended, past, stacked
from unseen.steps import ADAM, Devices, Training, adam, rnd


def decoder_shapes(D, F, K, d):
    """Shapes of the parameters of a gated decoder's layer with K heads of keys."""
    return dict(n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D))


def decoder(x, p, K, d, seen):
    """Layer of a gated decoder with rotary positions on x [batch, time, width]."""
    rows, T, D = x.shape
    h = rms(x, p["n"])
    q = rope((h @ bf(p["q"])).reshape(rows, T, D // d, d)).reshape(rows, T, K, -1, d)
    k, v = rope((h @ bf(p["k"])).reshape(rows, T, K, d)), (h @ bf(p["v"])).reshape(rows, T, K, d)
    x = x + checkpoint_name(attended(q, k, v, seen) @ bf(p["o"]), "attended")
    h = rms(x, p["m"])
    return x + gated(h, p)


def command(D=2048, F=5632, H=16, K=8, T=4096, B=2, V=32000, L=3, n=8):
    """A sequence over eight devices, heads exchanged for positions around attention, windows by layer, capped scores and
    logits, attention and feed-forward part side by side, layers in a scan under jax.checkpoint, Muon, bf16.
    """
    d, S = D // H, T // n
    shapes = dict(n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), g=(D, F), u=(D, F), w=(F, D))

    def exchange(x, split, join):
        return lax.all_to_all(x, "s", split, join, tiled=True)

    def loss(ps, b):
        t = tokens(b["t"], V).T
        away = jnp.arange(T)[:, None] - jnp.arange(T)

        @jax.checkpoint
        def layer(x, now):
            p, window = now
            h = layer_norm(x, p["n"], 0.0)
            q, k, v = (exchange((h @ bf(p[i])).reshape(B, S, -1, d), 2, 1) for i in "qkv")
            q, k = rope(q).reshape(B, T, K // n, H // K, d), rope(k)
            s = jnp.einsum("btkgd,bskd->bkgts", q, k).astype(jnp.float32) * d**-0.5
            s = jnp.where((away >= 0) & (away < window), 50.0 * jnp.tanh(s / 50.0), -1e30)
            y = jnp.einsum("bkgts,bskd->btkgd", bf(jax.nn.softmax(s, -1)), v).reshape(B, T, H // n, d)
            y = exchange(y, 1, 2).reshape(B, S, D) @ bf(p["o"])
            return x + y + gated(h, p), None

        x, _ = lax.scan(layer, bf(ps["e"])[t], (ps["l"], jnp.array([1024, 1024, T])))
        logits = (layer_norm(x, ps["n"], 0.0) @ bf(ps["e"]).T).astype(jnp.float32) * 0.0625
        first = lax.ppermute(t[:, 0], "s", [(i, (i - 1) % n) for i in range(n)])
        label = jnp.concatenate([t[:, 1:], first[:, None]], 1)
        return cross_entropy(30.0 * jnp.tanh(logits / 30.0), label) / n

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    devices = Devices((n,), ("s",), specs, PartitionSpec("s"))
    return loss, params, dict(t=(T, B)), Training(MUON.update, 1, summed("s")), devices


def grpo(D=1536, F=4096, H=12, K=2, T=768, P=256, G=8, B=8, V=65536, L=3):
    """Groups of answers to a question: clipped ratios to the probabilities they were drawn with, distance from a frozen
    model, entropies, log probabilities row by row under jax.checkpoint as the layers are, bf16.
    """
    d = D // H

    def chances(ps, t):
        """Log probability of each token but the first P, and the entropy before it."""

        @jax.checkpoint
        def layer(x, p):
            return decoder(x, p, K, d, past(T)), None

        @jax.checkpoint
        def row(now):
            x, label = now
            each = jax.nn.log_softmax((x @ bf(ps["h"])).astype(jnp.float32), -1)
            return jnp.take_along_axis(each, label[:, None], -1)[:, 0], -jnp.sum(jnp.exp(each) * each, -1)

        x, _ = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        return lax.map(row, (rms(x, ps["n"])[:, P - 1 : -1], t[:, P:]))

    def loss(ps, b):
        t = tokens(b["t"], V)
        now, entropy = chances(ps, t)
        reference = lax.stop_gradient(chances(b["frozen"], t)[0])
        r = b["r"].reshape(B // G, G)
        gain = ((r - r.mean(-1, keepdims=True)) / (r.std(-1, keepdims=True) + 1e-4)).reshape(B, 1)
        ratio = jnp.exp(now - b["old"])
        won = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.28) * gain)
        away = jnp.exp(reference - now) - (reference - now) - 1
        counted = jnp.arange(T - P) < tokens(b["n"], T - P)[:, None]
        each = jnp.where(counted, won - 0.04 * away + 1e-3 * entropy, 0.0)
        return -jnp.sum(each) / (jnp.sum(counted) + 1)

    def params():
        return dict(e=rnd(V, D), l=stacked(L, decoder_shapes(D, F, K, d)), n=rnd(D), h=rnd(D, V))

    frozen = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), jax.eval_shape(params))
    return loss, params, dict(t=(B, T), r=(B,), n=(B,), old=(B, T - P), frozen=frozen), ADAMW


def uvit(D=768, H=12, S=32, P=2, N=77, B=32, L=3):
    """Diffusion: time and text as tokens before patches, long skips from the layers of one scan to those of another in
    reverse, a convolution last, averaged weights, bf16.
    """
    M = (S // P) ** 2
    shapes = block_shapes(D)

    def loss(ps, b):
        f = jnp.exp(-jnp.arange(D // 2) * 18.4 / D) * b["t"][:, None] * 1000.0
        time = bf(jnp.concatenate([jnp.cos(f), jnp.sin(f)], -1))[:, None]
        alpha = jnp.cos(b["t"] * 1.57)[:, None, None, None]
        x = bf(alpha * b["x"] + jnp.sqrt(1 - alpha**2) * b["n"])
        x = conv(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 4))), ps["i"], P).reshape(B, M, D)
        x = jnp.concatenate([time, bf(b["y"]) @ bf(ps["y"]), x], 1) + bf(ps["p"])

        def down(x, p):
            x = block(x, p, H)
            return x, x

        def up(x, now):
            p, skip = now
            return block(jnp.concatenate([x, skip], -1) @ bf(p["s"]), p, H), None

        x, skips = lax.scan(down, x, ps["d"])
        x = block(x, ps["m"], H)
        x, _ = lax.scan(up, x, (ps["u"], skips), reverse=True)
        x = (layer_norm(x[:, 1 + N :], *ps["n"]) @ bf(ps["o"])).reshape(B, S // P, S // P, P, P, 4)
        x = conv(x.transpose(0, 1, 3, 2, 4, 5).reshape(B, S, S, 4), ps["c"])
        return jnp.mean((x.astype(jnp.float32) - b["n"]) ** 2)

    def params():
        return dict(
            i=rnd(P, P, 8, D), y=rnd(768, D), p=rnd(1 + N + M, D), d=stacked(L, shapes),
            m={k: rnd(*s) for k, s in shapes.items()}, u=stacked(L, shapes | dict(s=(2 * D, D))), n=rnd(2, D),
            o=rnd(D, P * P * 4), c=rnd(3, 3, 4, 4),
        )  # fmt: skip

    return loss, params, dict(x=(B, S, S, 4), n=(B, S, S, 4), y=(B, N, 768), t=(B,)), AVERAGED


def mtp(D=2048, F=5632, H=16, K=4, T=2048, B=16, V=32768, L=3, n=8):
    """Weights over eight devices gathered layer by layer, a module that foretells the token after the next beside the
    decoder, layers in a scan under jax.checkpoint that keeps what attention gave, bf16.
    """
    d = D // H
    shapes = decoder_shapes(D, F, K, d)
    kept = jax.checkpoint_policies.save_only_these_names("attended")

    def whole(a):
        return lax.all_gather(bf(a), "f", axis=0, tiled=True)

    def layer(x, p):
        return decoder(x, jax.tree.map(whole, p), K, d, past(x.shape[1])), None

    def loss(ps, b):
        t, e, h = tokens(b["t"], V), whole(ps["e"]), whole(ps["h"])
        x, _ = lax.scan(jax.checkpoint(layer, policy=kept), e[t], ps["l"])
        both = jnp.concatenate([rms(x[:, :-1], whole(ps["a"])), rms(e[t[:, 1:]], whole(ps["b"]))], -1)
        y, _ = jax.checkpoint(layer, policy=kept)(both @ whole(ps["j"]), ps["y"])
        one = cross_entropy((rms(x, whole(ps["n"])) @ h)[:, :-1], t[:, 1:], z=1e-4)
        two = cross_entropy((rms(y, whole(ps["m"])) @ h)[:, :-1], t[:, 2:])
        return (one + 0.3 * two) / n

    def params():
        y = {k: rnd(*s) for k, s in shapes.items()}
        norms = dict(a=rnd(D), b=rnd(D), m=rnd(D), n=rnd(D))
        return norms | dict(e=rnd(V, D), l=stacked(L, shapes), j=rnd(2 * D, D), y=y, h=rnd(D, V))

    over = {k: PartitionSpec("f") for k in "abmnejh"}
    specs = over | dict(
        l={k: PartitionSpec(None, "f") for k in shapes}, y={k: PartitionSpec("f") for k in shapes}
    )
    return loss, params, dict(t=(B, T)), ADAM, Devices((n,), ("f",), specs, PartitionSpec("f"))


def dino(D=768, H=12, P=16, B=32, small=6, K=32768, L=4):
    """A student that sees two large and six small views of a picture taught by its average, which sees the large ones;
    a centre of what the teacher says, layers in scans, the student's under jax.checkpoint, bf16.
    """
    shapes = block_shapes(D)

    def see(ps, x, layer=block):
        side = x.shape[1] // P
        x = conv(bf(x), ps["i"], P, "VALID").reshape(x.shape[0], -1, D)
        at = ps["p"] if side == 14 else jax.image.resize(ps["p"], (side, side, D), "bilinear")
        x = jnp.concatenate([jnp.broadcast_to(bf(ps["c"]), (x.shape[0], 1, D)), x + bf(at.reshape(-1, D))], 1)
        x, _ = lax.scan(lambda x, p: (layer(x, p, H), None), x, ps["l"])
        h = jax.nn.gelu(layer_norm(x[:, 0], *ps["n"]) @ bf(ps["a"])) @ bf(ps["b"])
        h = h.astype(jnp.float32)
        h = h * lax.rsqrt(jnp.sum(h * h, -1, keepdims=True) + 1e-6)
        last = ps["h"] * lax.rsqrt(jnp.sum(ps["h"] ** 2, 0, keepdims=True) + 1e-6)
        return (bf(h) @ bf(last)).astype(jnp.float32)

    def loss(student, teacher, centre, b):
        large = b["x"].reshape(2 * B, 224, 224, 3)
        said = see(teacher, large)
        taught = lax.stop_gradient(jax.nn.softmax((said - centre) / 0.04, -1)).reshape(2, B, K)
        again = jax.checkpoint(block, static_argnums=2)
        views = (see(student, x, again) for x in (large, b["y"].reshape(small * B, 96, 96, 3)))
        views = jnp.concatenate([x.reshape(-1, B, K) for x in views])
        found = jax.nn.log_softmax(views / 0.1, -1)
        each = -jnp.einsum("tbk,vbk->tv", taught, found) / B
        return jnp.sum(each * (1 - jnp.eye(2, 2 + small))) / (2 * (1 + small)), said.mean(0)

    def gradients(loss):
        def of(p, batch):
            (value, said), g = jax.value_and_grad(loss, has_aux=True)(p["s"], p["t"], p["c"], batch)
            return value, (g, said)

        return of

    def update(state, found):
        (p, m, v), (g, said) = state, found
        s, m, v = adam(p["s"], g, m, v, lr=5e-4)
        t = jax.tree.map(lambda a, b: 0.996 * a + 0.004 * b, p["t"], s)
        return dict(s=s, t=t, c=0.9 * p["c"] + 0.1 * said), m, v

    def params():
        def one():
            return dict(
                i=rnd(P, P, 3, D), p=rnd(14, 14, D), c=rnd(D), l=stacked(L, shapes),
                n=rnd(2, D), a=rnd(D, 2048), b=rnd(2048, 256), h=rnd(256, K),
            )  # fmt: skip

        return dict(s=one(), t=one(), c=rnd(K))

    def start(p):
        return (p, *(jax.tree.map(jnp.zeros_like, p["s"]) for _ in range(2)))

    return (
        loss,
        params,
        dict(x=(2, B, 224, 224, 3), y=(small, B, 96, 96, 3)),
        Training(update, 2, gradients, start),
    )


def blt(D=1024, F=2816, d=512, H=16, K=4, T=2048, P=512, B=6, N=50000, L=3):
    """Bytes in patches of lengths that the data gives: hashed n-grams, maxima of the bytes of a patch, attention from
    patches to their bytes and back, a decoder over patches in a scan under jax.checkpoint, Lion, bf16.
    """
    h, c = 8, D // H
    cross = dict(n=(2, d), q=(d, d), k=(d, d), v=(d, d), o=(d, d))

    def asked(p, x, y, seen):
        q = (layer_norm(x, *p["n"]) @ bf(p["q"])).reshape(B, -1, h, 1, d // h)
        k, v = ((y @ bf(p[i])).reshape(B, -1, h, d // h) for i in "kv")
        return x + attended(q, k, v, seen[:, None, None]) @ bf(p["o"])

    def loss(ps, b):
        t = tokens(b["t"], 256)
        # A byte that surprises starts a patch.
        patch = jnp.minimum(jnp.cumsum(b["u"] > 0.8, -1), P - 1)
        x, code = bf(ps["e"])[t], t
        for at, table in enumerate(ps["g"]):
            code = code * 257 + jnp.pad(t, ((0, 0), (at + 1, 0)))[:, :T]
            x = x + bf(table)[jnp.abs(code) % N]
        away = jnp.arange(T)[:, None] - jnp.arange(T)
        near = (away >= 0) & (away < 256)
        x = block(x, ps["i"], h, near)
        mine = patch[:, None] == jnp.arange(P)[:, None]
        y = jax.vmap(lambda a, i: jax.ops.segment_max(a, i, P, indices_are_sorted=True))(x, patch)
        y = asked(ps["c"], jnp.where(mine.any(-1)[..., None], y, 0), x, mine)

        @jax.checkpoint
        def layer(x, p):
            return decoder(x, p, K, c, past(P)), None

        y = rms(lax.scan(layer, y @ bf(ps["a"]), ps["l"])[0], ps["n"]) @ bf(ps["b"])
        # A byte asks the patches before its own, of which the first has none: itself.
        before = jnp.arange(P) == jnp.maximum(patch - 1, 0)[..., None]
        x = block(asked(ps["x"], x, y, before), ps["o"], h, near)
        return cross_entropy((layer_norm(x, *ps["m"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        def one(shapes):
            return {k: rnd(*s) for k, s in shapes.items()}

        return dict(
            e=rnd(256, d), g=[rnd(N, d) for _ in range(3)], i=one(block_shapes(d)), c=one(cross), a=rnd(d, D),
            l=stacked(L, decoder_shapes(D, F, K, c)), n=rnd(D), b=rnd(D, d), x=one(cross),
            o=one(block_shapes(d)), m=rnd(2, d), h=rnd(d, 256),
        )  # fmt: skip

    return loss, params, dict(t=(B, T), u=(B, T)), LION


def depths(D=1024, F=4096, H=16, T=2048, C=256, B=4, V=32000, L=2):
    """Every other layer for the tokens that its router picks, gathered and scattered, a second router taught to tell them
    without what is later, pairs of layers in a scan, the whole one's feed-forward part under jax.checkpoint, Muon, bf16.
    """
    d = D // H
    shapes = dict(n=(D,), qkv=(D, 3 * D), o=(D, D), m=(D,), g=(D, F), w=(F, D))

    def attend(p, x, at, seen):
        h = (rms(x, p["n"]) @ bf(p["qkv"])).reshape(*x.shape[:2], 3, H, d).astype(jnp.float32)
        f = at[..., None, None] * 1e-4 ** (jnp.arange(d // 2) / (d // 2))
        cos, sin = jnp.cos(f), jnp.sin(f)

        def turned(a):
            a, b = jnp.split(a, 2, -1)
            return bf(jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1))

        return attended(turned(h[:, :, 0])[:, :, :, None], turned(h[:, :, 1]), bf(h[:, :, 2]), seen) @ bf(
            p["o"]
        )

    def feed(p, x):
        return jnp.square(jax.nn.relu(rms(x, p["m"]) @ bf(p["g"]))) @ bf(p["w"])

    def pair(carry, p):
        x, extra = carry
        p, q, r = p
        x = x + attend(p, x, jnp.arange(T)[None], past(T))
        x = x + jax.checkpoint(feed)(p, x)
        score = (x.astype(jnp.float32) @ r[0][:, None])[..., 0]
        at = jnp.sort(lax.top_k(score, C)[1], -1)
        some = jnp.take_along_axis(x, at[..., None], 1)
        y = attend(q, some, at, past(C))
        y = (y + feed(q, some + y)) * bf(jax.nn.sigmoid(jnp.take_along_axis(score, at, 1)))[..., None]
        rows = jnp.arange(B)[:, None]
        told = lax.stop_gradient(x).astype(jnp.float32) @ r[1]
        picked = jnp.zeros((B, T)).at[rows, at].set(1.0)
        extra = extra + jnp.mean(jax.nn.softplus(told) - picked * told)
        return (x.at[rows, at].add(y), extra), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        (x, extra), _ = lax.scan(pair, (bf(ps["e"])[t], jnp.zeros(())), (ps["p"], ps["q"], ps["r"]))
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:]) + 0.01 * extra

    def params():
        return dict(
            e=rnd(V, D), p=stacked(L, shapes), q=stacked(L, shapes), r=rnd(L, 2, D), n=rnd(D), h=rnd(D, V)
        )

    return loss, params, dict(t=(B, T)), MUON


def unet3d(C=32, S=96, B=2, classes=4):
    """Volumes: convolutions in three dimensions with group norms, up by transposed ones, skips, the finest level under
    jax.checkpoint, losses of overlap and cross-entropy at two resolutions, SGD, bf16.
    """
    sizes = (C, 2 * C, 4 * C, 8 * C)

    def group_norm(x, p, groups=8):
        h = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
        h = h - h.mean((1, 3), keepdims=True)
        h = h * lax.rsqrt(jnp.square(h).mean((1, 3), keepdims=True) + 1e-5)
        return bf(h.reshape(x.shape) * p[0] + p[1])

    def twice(p, x):
        for w, n in p:
            x = jax.nn.leaky_relu(group_norm(conv(x, w), n), 0.01)
        return x

    def judged(logits, label):
        chance = jax.nn.softmax(logits.astype(jnp.float32), -1)
        truth = jax.nn.one_hot(label, classes)
        over = (2 * jnp.sum(chance * truth, (1, 2, 3)) + 1) / (jnp.sum(chance + truth, (1, 2, 3)) + 1)
        return cross_entropy(logits, label) + 1 - over[:, 1:].mean()

    def loss(ps, b):
        x, skips = bf(b["x"]), []
        for at, p in enumerate(ps["d"]):
            x = (jax.checkpoint(twice) if at == 0 else twice)(p, x)
            if at < 3:
                skips.append(x)
                x = conv(x, ps["s"][at], 2)
        label, said = tokens(b["y"], classes), []
        for at in (2, 1, 0):
            x = lax.conv_transpose(
                x, bf(ps["t"][at]), (2, 2, 2), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
            )
            x = (jax.checkpoint(twice) if at == 0 else twice)(
                ps["u"][at], jnp.concatenate([x, skips[at]], -1)
            )
            if at < 2:
                said.append(conv(x, ps["h"][at]))
        return judged(said[1], label) + 0.5 * judged(said[0], label[:, ::2, ::2, ::2])

    def params():
        def two(i, o):
            return [(rnd(3, 3, 3, i, o), rnd(2, o)), (rnd(3, 3, 3, o, o), rnd(2, o))]

        steps = list(itertools.pairwise(sizes))
        return dict(
            d=[two(4, C), *(two(o, o) for _, o in steps)], s=[rnd(2, 2, 2, i, o) for i, o in steps],
            t=[rnd(2, 2, 2, o, i) for i, o in steps], u=[two(2 * i, i) for i, _ in steps],
            h=[rnd(1, 1, 1, i, classes) for i in sizes[:2]],
        )  # fmt: skip

    return loss, params, dict(x=(B, S, S, S, 4), y=(B, S, S, S)), MOMENTUM


ALL = dict(
    command=command, grpo=grpo, uvit=uvit, mtp=mtp, dino=dino, blt=blt, depths=depths, unet3d=unet3d,
)  # fmt: skip
