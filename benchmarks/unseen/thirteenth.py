"""Twelve more such steps, written before anyone looked at their estimates: pictures that are pooled, what is sampled up by
transposed convolutions, losses of logarithmic softmaxes.
"""

import jax
import jax.numpy as jnp
from jax import lax

from unseen.parts import ADAMW, bf, conv, layer_norm, tokens
from unseen.seventh import attended, listed, past, stacked
from unseen.steps import ADAM, Training, rnd

MOMENTUM = Training(lambda state, g: _momentum(*state, g), 1)


def _momentum(p, m, g, lr=1e-2):
    m = jax.tree.map(lambda a, b: 0.9 * a + b, m, g)
    return jax.tree.map(lambda p, a: p - lr * (a + 5e-4 * p), p, m), m


def _pooled(x, window=2, stride=2, padding="VALID"):
    ones, strides = (1, *(window,) * (x.ndim - 2), 1), (1, *(stride,) * (x.ndim - 2), 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, ones, strides, padding)


def _normed(x, p, over):
    """Normalised over some dimensions in f32, scaled and moved, in x's type."""
    h = x.astype(jnp.float32)
    m = h.mean(over, keepdims=True)
    h = (h - m) * lax.rsqrt(jnp.square(h - m).mean(over, keepdims=True) + 1e-5)
    return (h * p[0] + p[1]).astype(x.dtype)


def _up(x, w):
    """Transposed convolution of pictures or volumes by two."""
    over = "DHW"[5 - x.ndim :]
    return lax.conv_transpose(
        x,
        w.astype(x.dtype),
        (2,) * len(over),
        "SAME",
        dimension_numbers=(f"N{over}C", f"{over}IO", f"N{over}C"),
    )


def _named(logits, labels):
    """Cross-entropy by a logarithmic softmax in f32, looked up."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(logs, labels[..., None], -1).mean()


def _hot(logits, labels):
    """The same by one-hot labels."""
    return (
        -(jax.nn.one_hot(labels, logits.shape[-1]) * jax.nn.log_softmax(logits.astype(jnp.float32)))
        .sum(-1)
        .mean()
    )


def vgg(S=224, B=32, widths=(64, 128, 256, 512, 512), classes=1000):
    """Pictures: pairs of convolutions, maxima, wide products with dropout, momentum, f32."""

    def loss(ps, b):
        x = b["x"]
        for pair in ps["c"]:
            for w, c in pair:
                x = jax.nn.relu(conv(x, w) + c)
            x = _pooled(x)
        x = x.reshape(len(x), -1)
        for i, (w, c) in enumerate(ps["d"]):
            x = jax.nn.relu(x @ w + c)
            x = jnp.where(jax.random.bernoulli(jax.random.key(i), 0.5, x.shape), x / 0.5, 0)
        return _hot(x @ ps["o"], tokens(b["y"], classes))

    def params():
        ins = (3, *widths[:-1])
        pairs = [
            [(rnd(3, 3, i, c), rnd(c)), (rnd(3, 3, c, c), rnd(c))] for i, c in zip(ins, widths, strict=True)
        ]
        flat = widths[-1] * (S >> len(widths)) ** 2
        return dict(
            c=pairs, d=[(rnd(flat, 2048), rnd(2048)), (rnd(2048, 2048), rnd(2048))], o=rnd(2048, classes)
        )

    return loss, params, dict(x=(B, S, S, 3), y=(B,)), MOMENTUM


def densenet(S=128, B=64, growth=32, depths=(4, 6, 6), classes=100):
    """Pictures: layers that read all before them, batch norms, maxima of overlapping windows, averages between, bf16."""

    def unit(x, p):
        h = conv(jax.nn.relu(_normed(x, p["n"], (0, 1, 2))), p["a"])
        return jnp.concatenate([x, conv(jax.nn.relu(_normed(h, p["m"], (0, 1, 2))), p["b"])], -1)

    def loss(ps, b):
        x = _pooled(jax.nn.relu(_normed(conv(bf(b["x"]), ps["i"], 2), ps["n"], (0, 1, 2))), 3, 2, "SAME")
        for units, w in ps["l"]:
            for p in units:
                x = unit(x, p)
            x = lax.reduce_window(conv(x, w), 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return _named(x.astype(jnp.float32).mean((1, 2)) @ ps["o"], tokens(b["y"], classes))

    def params():
        blocks, c = [], 64
        for depth in depths:
            units = []
            for _ in range(depth):
                units.append(
                    dict(
                        n=rnd(2, c),
                        a=rnd(1, 1, c, 4 * growth),
                        m=rnd(2, 4 * growth),
                        b=rnd(3, 3, 4 * growth, growth),
                    )
                )
                c += growth
            blocks.append((units, rnd(1, 1, c, c // 2)))
            c //= 2
        return dict(i=rnd(7, 7, 3, 64), n=rnd(2, 64), l=blocks, o=rnd(c, classes))

    return loss, params, dict(x=(B, S, S, 3), y=(B,)), MOMENTUM


def segments(S=256, B=16, widths=(32, 64, 128, 256), classes=21):
    """Pictures to maps: maxima down, transposed convolutions up, what was there before beside it, features before the
    image, group norms, overlap of classes as a loss, bf16.
    """
    order = ("NCHW", "OIHW", "NCHW")

    def twice(x, ps):
        for w, n in ps:
            x = lax.conv_general_dilated(x, bf(w), (1, 1), "SAME", dimension_numbers=order)
            parts = x.astype(jnp.float32).reshape(len(x), 8, -1, *x.shape[2:])
            parts = (parts - parts.mean((2, 3, 4), keepdims=True)) * lax.rsqrt(
                parts.var((2, 3, 4), keepdims=True) + 1e-5
            )
            x = jax.nn.relu(bf(parts.reshape(x.shape) * n[0][:, None, None] + n[1][:, None, None]))
        return x

    def loss(ps, b):
        x, kept = bf(b["x"]), []
        for down in ps["d"]:
            x = twice(x, down)
            kept.append(x)
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        x = twice(x, ps["m"])
        for w, up in ps["u"]:
            x = lax.conv_transpose(x, bf(w), (2, 2), "SAME", dimension_numbers=order)
            x = twice(jnp.concatenate([kept.pop(), x], 1), up)
        scores = jax.nn.softmax(jnp.einsum("bchw,ck->bkhw", x, bf(ps["o"])).astype(jnp.float32), 1)
        hot = jax.nn.one_hot(tokens(b["y"], classes), classes, axis=1)
        both, each = (scores * hot).sum((0, 2, 3)), (scores + hot).sum((0, 2, 3))
        return 1 - (2 * both / (each + 1)).mean()

    def params():
        def pair(i, c):
            return [(rnd(c, i, 3, 3), rnd(2, c)), (rnd(c, c, 3, 3), rnd(2, c))]

        down = [pair(i, c) for i, c in zip((3, *widths[:-1]), widths, strict=True)]
        up = [(rnd(c, 2 * c, 2, 2), pair(2 * c, c)) for c in reversed(widths)]
        return dict(d=down, m=pair(widths[-1], 2 * widths[-1]), u=up, o=rnd(widths[0], classes))

    return loss, params, dict(x=(B, 3, S, S), y=(B, S, S)), ADAM


def autoencoder(S=128, B=64, widths=(64, 128, 256), Z=256):
    """Pictures through a normal of latents: strided convolutions down, transposed ones up, f32."""

    def loss(ps, b):
        x = b["x"]
        for w, c in ps["d"]:
            x = jax.nn.gelu(conv(x, w, 2) + c)
        shape = x.shape
        m, s = jnp.split(x.reshape(len(x), -1) @ ps["z"], 2, -1)
        z = m + jnp.exp(s) * jax.random.normal(jax.random.key(0), m.shape)
        x = jax.nn.gelu(z @ ps["y"]).reshape(shape)
        for w, c in ps["u"]:
            x = _up(jax.nn.gelu(x), w) + c
        prior = 0.5 * (m * m + jnp.exp(2 * s) - 2 * s - 1).sum(-1).mean()
        return jnp.square(jnp.tanh(x) - b["x"]).sum((1, 2, 3)).mean() + prior

    def params():
        ins, flat = (3, *widths[:-1]), widths[-1] * (S >> len(widths)) ** 2
        down = [(rnd(4, 4, i, c), rnd(c)) for i, c in zip(ins, widths, strict=True)]
        up = [(rnd(4, 4, c, i), rnd(i)) for i, c in reversed(list(zip(ins, widths, strict=True)))]
        return dict(d=down, u=up, z=rnd(flat, 2 * Z), y=rnd(Z, flat))

    return loss, params, dict(x=(B, S, S, 3)), ADAM


def volumes(S=64, T=16, B=8, D=384, H=6, L=4, classes=400):
    """Video: convolutions and maxima in three dimensions, then attention over what is left, layers in a scan, bf16."""

    def layer(x, p):
        h = layer_norm(x, *p["n"])
        q, k, v = (a.reshape(*x.shape[:2], H, 1, -1) for a in jnp.split(h @ bf(p["qkv"]), 3, -1))
        x = x + attended(q, k[..., 0, :], v[..., 0, :], None) @ bf(p["o"])
        return x + jax.nn.gelu(layer_norm(x, *p["m"]) @ bf(p["a"])) @ bf(p["b"]), None

    def loss(ps, b):
        x = bf(b["x"])
        for w, n in ps["c"]:
            x = _pooled(jax.nn.relu(_normed(conv(x, w), n, (0, 1, 2, 3))))
        x = x.reshape(B, -1, x.shape[-1]) @ bf(ps["e"]) + bf(ps["p"])
        x, _ = lax.scan(layer, x, ps["l"])
        return _hot(x.mean(1) @ bf(ps["h"]), tokens(b["y"], classes))

    def params():
        stem = [
            (rnd(3, 3, 3, 3, 32), rnd(2, 32)),
            (rnd(3, 3, 3, 32, 64), rnd(2, 64)),
            (rnd(3, 3, 3, 64, 128), rnd(2, 128)),
        ]
        shapes = dict(n=(2, D), qkv=(D, 3 * D), o=(D, D), m=(2, D), a=(D, 4 * D), b=(4 * D, D))
        places = (T // 8) * (S // 8) ** 2
        return dict(c=stem, e=rnd(128, D), p=rnd(places, D), l=stacked(L, shapes), h=rnd(D, classes))

    return loss, params, dict(x=(B, T, S, S, 3), y=(B,)), ADAMW


def masked(D=768, F=3072, H=12, T=512, B=16, V=8192, L=6):
    """Words left out: norms behind the sums, dropout, one table in and out, one-hot labels of some places, f32 weights,
    bf16, unrolled.
    """

    def dropped(x, seed):
        keep = jax.random.bernoulli(jax.random.key(seed), 0.9, x.shape)
        return jnp.where(keep, x / 0.9, 0).astype(x.dtype)

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = layer_norm(bf(ps["e"])[t] + bf(ps["p"]), *ps["n"])
        for i, p in enumerate(ps["l"]):
            q, k, v = (
                (x @ bf(p[n]) + bf(p["b" + n])).reshape(B, T, H, -1).transpose(0, 2, 1, 3)
                for n in ("q", "k", "v")
            )
            s = (q @ k.swapaxes(-1, -2)).astype(jnp.float32) * (D // H) ** -0.5
            y = bf(jax.nn.softmax(s)) @ v
            x = layer_norm(x + dropped(y.transpose(0, 2, 1, 3).reshape(B, T, D) @ bf(p["o"]), 2 * i), *p["n"])
            h = jax.nn.gelu(x @ bf(p["a"]) + bf(p["c"]), approximate=False) @ bf(p["w"])
            x = layer_norm(x + dropped(h, 2 * i + 1), *p["m"])
        asked = (jnp.abs(b["m"]) > 1.4).astype(jnp.float32)
        logs = jax.nn.log_softmax((x @ bf(ps["e"]).T).astype(jnp.float32))
        return -((jax.nn.one_hot(t, V) * logs).sum(-1) * asked).sum() / (asked.sum() + 1)

    def params():
        shapes = {n: (D, D) for n in "qkvo"} | {"b" + n: (D,) for n in "qkv"}
        shapes |= dict(n=(2, D), m=(2, D), a=(D, F), c=(F,), w=(F, D))
        return dict(e=rnd(V, D), p=rnd(T, D), n=rnd(2, D), l=listed(L, shapes))

    return loss, params, dict(t=(B, T), m=(B, T)), ADAMW


def characters(D=1024, H=16, T=1024, B=16, V=512, L=8):
    """Characters: heads before the sequence, a mask in f32, squared rectifiers, each layer under jax.checkpoint in a
    scan, labels looked up, bf16.
    """

    @jax.checkpoint
    def layer(x, p):
        h = layer_norm(x, *p["n"])
        q, k, v = (a.reshape(B, T, H, -1).swapaxes(1, 2) for a in jnp.split(h @ bf(p["qkv"]), 3, -1))
        s = jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(jnp.float32) / jnp.sqrt(D / H)
        s = s + jnp.where(jnp.tril(jnp.ones((T, T), bool)), 0.0, -1e9)
        y = jnp.einsum("bhqk,bhkd->bhqd", bf(jax.nn.softmax(s)), v)
        x = x + y.swapaxes(1, 2).reshape(x.shape) @ bf(p["o"])
        return x + jnp.square(jax.nn.relu(layer_norm(x, *p["m"]) @ bf(p["a"]))) @ bf(p["b"]), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        return _named((layer_norm(x, *ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        shapes = dict(n=(2, D), qkv=(D, 3 * D), o=(D, D), m=(2, D), a=(D, 4 * D), b=(4 * D, D))
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(2, D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAMW


def distilled(D=1024, F=4096, H=8, T=512, B=16, V=16384, L=4, K=2):
    """A small decoder that follows a large one: divergence of softened scores and labels, the large one only run, bf16."""

    def run(ps, t):
        x = bf(ps["e"])[t]
        for p in ps["l"]:
            h = layer_norm(x, *p["n"])
            q, k, v = ((h @ bf(p[i])).reshape(B, T, H, -1) for i in "qkv")
            x = x + attended(q[:, :, :, None], k, v, past(T)) @ bf(p["o"])
            x = x + jax.nn.silu(layer_norm(x, *p["m"]) @ bf(p["a"])) @ bf(p["b"])
        return (x @ bf(ps["h"])).astype(jnp.float32)

    def loss(ps, b):
        t = tokens(b["t"], V)
        student, teacher = run(ps["s"], t), lax.stop_gradient(run(lax.stop_gradient(ps["t"]), t))
        soft = jax.nn.softmax(teacher / K)
        return -(soft * jax.nn.log_softmax(student / K)).sum(-1).mean() + _named(student[:, :-1], t[:, 1:])

    def params():
        shapes = {n: (D, D) for n in "qkvo"} | dict(n=(2, D), m=(2, D), a=(D, F), b=(F, D))
        return {
            name: dict(e=rnd(V, D), l=listed(layers, shapes), h=rnd(D, V))
            for name, layers in dict(s=L // 2, t=L).items()
        }

    return loss, params, dict(t=(B, T)), ADAM


def gates(D=1024, T=2048, B=8, V=32000, L=6):
    """Minimal gated recurrences by associative scans over time, a convolution before each, unrolled, f32."""

    def mixed(x, p):
        h = lax.conv_general_dilated(
            x, p["c"], (1,), [(3, 0)], dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=D
        )
        z, y = jnp.split(h @ p["g"], 2, -1)
        keep, new = jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * jnp.where(y >= 0, y + 0.5, jax.nn.sigmoid(y))
        _, h = lax.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (keep, new), axis=1)
        return h @ p["o"]

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = ps["e"][t]
        for p in ps["l"]:
            x = x + mixed(_normed(x, p["n"], -1), p)
            x = x + jax.nn.gelu(_normed(x, p["m"], -1) @ p["a"]) @ p["b"]
        logits = (_normed(x, ps["n"], -1) @ ps["e"].T)[:, :-1]
        norm = jax.nn.logsumexp(logits, -1)
        return (norm - jnp.take_along_axis(logits, t[:, 1:, None], -1)[..., 0]).mean()

    def params():
        shapes = dict(n=(2, D), c=(4, 1, D), g=(D, 2 * D), o=(D, D), m=(2, D), a=(D, 2 * D), b=(2 * D, D))
        return dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(2, D))

    return loss, params, dict(t=(B, T)), ADAMW


def softmoe(D=768, F=3072, H=12, S=224, P=16, E=32, B=64, L=4, classes=1000):
    """Pictures in patches: slots that mix all patches in place of experts that choose, attention, layers in a scan, bf16."""

    def experts(p, x):
        score = jnp.einsum("bnd,des->bnes", x, bf(p["r"])).astype(jnp.float32)
        given, taken = (
            jax.nn.softmax(score, 1),
            jax.nn.softmax(score.reshape(*x.shape[:2], -1)).reshape(score.shape),
        )
        h = jnp.einsum("bnes,bnd->besd", bf(given), x)
        h = jnp.einsum("besf,efd->besd", jax.nn.gelu(jnp.einsum("besd,edf->besf", h, bf(p["a"]))), bf(p["b"]))
        return jnp.einsum("bnes,besd->bnd", bf(taken), h)

    def layer(x, p):
        h = layer_norm(x, *p["n"])
        q, k, v = (a.reshape(*x.shape[:2], H, -1) for a in jnp.split(h @ bf(p["qkv"]), 3, -1))
        x = x + attended(q[:, :, :, None], k, v, None) @ bf(p["o"])
        return x + experts(p, layer_norm(x, *p["m"])), None

    def loss(ps, b):
        x = conv(bf(b["x"]), ps["c"], P, "VALID").reshape(B, -1, D) + bf(ps["p"])
        x, _ = lax.scan(layer, x, ps["l"])
        return _named(x.mean(1) @ bf(ps["h"]), tokens(b["y"], classes))

    def params():
        shapes = dict(
            n=(2, D), qkv=(D, 3 * D), o=(D, D), m=(2, D), r=(D, E, 8), a=(E, D, F // 4), b=(E, F // 4, D)
        )
        return dict(c=rnd(P, P, 3, D), p=rnd((S // P) ** 2, D), l=stacked(L, shapes), h=rnd(D, classes))

    return loss, params, dict(x=(B, S, S, 3), y=(B,)), ADAMW


def penalty(S=64, B=64, Z=128, widths=(512, 256, 128, 64)):
    """Two networks against each other by distances: transposed convolutions make pictures, and the gradient of what judges
    them is held to a norm, differentiated twice, f32.
    """

    def make(ps, z):
        x = jax.nn.relu(z @ ps["i"]).reshape(len(z), 4, 4, -1)
        for at, w in enumerate(ps["u"]):
            x = _up(x, w)
            x = jnp.tanh(x) if at == len(ps["u"]) - 1 else jax.nn.relu(_normed(x, (1.0, 0.0), (0, 1, 2)))
        return x

    def judge(ps, x):
        for w in ps["d"]:
            x = jax.nn.leaky_relu(conv(x, w, 2), 0.2)
        return x.reshape(len(x), -1) @ ps["o"]

    def loss(ps, b):
        made = make(ps["g"], jax.random.normal(jax.random.key(1), (B, Z)))
        held = lax.stop_gradient(made)
        between = b["x"] + jax.random.uniform(jax.random.key(2), (B, 1, 1, 1)) * (held - b["x"])
        slope = jax.grad(lambda x: judge(ps["j"], x).sum())(between)
        norm = jnp.sqrt(jnp.square(slope).sum((1, 2, 3)) + 1e-8)
        apart = judge(ps["j"], held).mean() - judge(ps["j"], b["x"]).mean() + 10 * jnp.square(norm - 1).mean()
        return apart - judge(lax.stop_gradient(ps["j"]), made).mean()

    def params():
        outs = (*widths[1:], 3)
        up = [rnd(4, 4, i, c) for i, c in zip(widths, outs, strict=True)]
        down = [rnd(4, 4, i, c) for i, c in zip((3, *widths[:0:-1]), widths[::-1], strict=True)]
        return dict(g=dict(i=rnd(Z, 16 * widths[0]), u=up), j=dict(d=down, o=rnd(16 * widths[0], 1)))

    return loss, params, dict(x=(B, S, S, 3)), ADAM


def kernels(D=1024, H=16, T=4096, B=4, M=128, V=32000, L=4):
    """Attention by positive random features: sums over time in chunks by a scan, gated by what is read, each layer under
    jax.checkpoint, gradients of two parts of a batch summed, bf16.
    """

    def features(x, w):
        h = jnp.einsum("bthd,dm->bthm", x.astype(jnp.float32), w) - 0.5 * jnp.square(
            x.astype(jnp.float32)
        ).sum(-1, keepdims=True)
        return bf(jnp.exp(h - lax.stop_gradient(h.max(-1, keepdims=True))) + 1e-4)

    @jax.checkpoint
    def layer(x, p):
        h = layer_norm(x, *p["n"])
        q, k, v, g = (a.reshape(len(x), T, H, -1) for a in jnp.split(h @ bf(p["qkvg"]), 4, -1))
        q, k = (features(a, p["w"]).reshape(len(x), 8, T // 8, H, M).swapaxes(0, 1) for a in (q, k))
        v = v.reshape(len(x), 8, T // 8, H, -1).swapaxes(0, 1)

        def chunk(state, now):
            q, k, v = now
            inside = jnp.tril(jnp.einsum("bqhm,bkhm->bhqk", q, k).astype(jnp.float32))
            y = jnp.einsum("bhqk,bkhd->bqhd", bf(inside), v) + jnp.einsum("bqhm,bhmd->bqhd", q, bf(state))
            return state + jnp.einsum("bkhm,bkhd->bhmd", k, v).astype(jnp.float32), y

        _, y = lax.scan(chunk, jnp.zeros((len(x), H, M, D // H)), (q, k, v))
        y = y.swapaxes(0, 1).reshape(g.shape) * jax.nn.sigmoid(g)
        x = x + y.reshape(x.shape) @ bf(p["o"])
        return x + jax.nn.gelu(layer_norm(x, *p["m"]) @ bf(p["a"])) @ bf(p["b"]), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        logits = (layer_norm(x, *ps["n"]) @ bf(ps["h"])).astype(jnp.float32)[:, :-1]
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, t[:, 1:, None], -1)[..., 0]).mean()

    def gradients(loss):
        def of(p, b):
            def one(total, part):
                return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(p, part)), None

            parts = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), b)
            start = jax.tree.map(lambda a: jnp.zeros(a.shape), jax.eval_shape(jax.value_and_grad(loss), p, b))
            return lax.scan(one, start, parts)[0]

        return of

    def params():
        shapes = dict(
            n=(2, D), qkvg=(D, 4 * D), w=(D // H, M), o=(D, D), m=(2, D), a=(D, 4 * D), b=(4 * D, D)
        )
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(2, D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), Training(ADAMW.update, 2, gradients)


ALL = dict(
    vgg=vgg, densenet=densenet, segments=segments, autoencoder=autoencoder, volumes=volumes, masked=masked,
    characters=characters, distilled=distilled, gates=gates, softmoe=softmoe, penalty=penalty, kernels=kernels,
)  # fmt: skip
