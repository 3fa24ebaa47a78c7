"""Nine more such steps, written before anyone looked at their estimates: networks side by side, whose parts XLA may run in
many orders.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from unseen.parts import ADAMW, bf, conv, layer_norm, rms, tokens
from unseen.seventh import attended, listed, stacked
from unseen.steps import ADAM, rnd


def _deep(ps, x, act=jax.nn.relu):
    """Dense layers with biases in x's type, the last one without what follows it."""
    for i, (w, c) in enumerate(ps):
        x = x @ w.astype(x.dtype) + c.astype(x.dtype)
        x = act(x) if i + 1 < len(ps) else x
    return x


def _widths(*widths):
    return [(rnd(a, b), rnd(b)) for a, b in itertools.pairwise(widths)]


def critics(S=376, A=17, D=2048, B=16384):
    """Control: two critics, their slow copies, a policy of normals, a temperature, four losses in one step, f32."""

    def policy(ps, s, key):
        m, d = jnp.split(_deep(ps["pi"], s), 2, -1)
        d = jnp.clip(d, -20, 2)
        e = jax.random.normal(jax.random.key(key), m.shape)
        a = jnp.tanh(m + jnp.exp(d) * e)
        return a, (-0.5 * e * e - d - jnp.log(1 - a * a + 1e-6)).sum(-1)

    def values(qs, s, a):
        return [_deep(q, jnp.concatenate([s, a], -1))[:, 0] for q in qs]

    def loss(ps, b):
        a, logs = policy(ps, b["n"], 0)
        slow = jnp.minimum(*values(ps["slow"], b["n"], a)) - jnp.exp(ps["t"]) * logs
        wanted = lax.stop_gradient(b["r"] + 0.99 * (1 - b["d"]) * slow)
        fit = sum(jnp.square(q - wanted).mean() for q in values(ps["q"], b["s"], b["a"]))
        a, logs = policy(ps, b["s"], 1)
        best = jnp.minimum(*values(lax.stop_gradient(ps["q"]), b["s"], a))
        act = (jnp.exp(lax.stop_gradient(ps["t"])) * logs - best).mean()
        return fit + act - (ps["t"] * lax.stop_gradient(logs - A)).mean()

    def params():
        q = lambda: [_widths(S + A, D, D, D, 1) for _ in range(2)]  # noqa: E731
        return dict(pi=_widths(S, D, D, 2 * A), q=q(), slow=q(), t=rnd())

    return loss, params, dict(s=(B, S), n=(B, S), a=(B, A), r=(B,), d=(B,)), ADAM


def ensemble(D=1024, F=4096, B=8192, M=5, L=4, classes=1000):
    """Five networks of residual layers with their own losses, and one for how far they are apart, bf16."""

    def network(ps, x):
        x = x @ bf(ps["i"])
        for p in ps["l"]:
            x = x + jax.nn.gelu(layer_norm(x, *p["n"]) @ bf(p["a"])) @ bf(p["b"])
        return (x @ bf(ps["o"])).astype(jnp.float32)

    def loss(ps, b):
        y = tokens(b["y"], classes)
        logs = [jax.nn.log_softmax(network(p, bf(b["x"]))) for p in ps]
        mean = jax.nn.logsumexp(jnp.stack(logs), 0) - jnp.log(len(ps))
        apart = sum((jnp.exp(a) * (a - mean)).sum(-1).mean() for a in logs)
        return sum(-jnp.take_along_axis(a, y[:, None], -1).mean() for a in logs) - 0.1 * apart

    def params():
        shapes = dict(n=(2, D), a=(D, F), b=(F, D))
        return [dict(i=rnd(D, D), l=listed(L, shapes), o=rnd(D, classes)) for _ in range(M)]

    return loss, params, dict(x=(B, D), y=(B,)), ADAMW


def tasks(S=224, P=16, D=768, H=12, B=48, L=6, classes=1000):
    """A trunk for pictures in patches with three heads: classes, depth of every point, pairs of views; unrolled, bf16."""

    def layer(p, x):
        h = layer_norm(x, *p["n"])
        q, k, v = (a.reshape(*x.shape[:2], H, 1, -1) for a in jnp.split(h @ bf(p["qkv"]), 3, -1))
        x = x + attended(q, k[:, :, :, 0], v[:, :, :, 0]) @ bf(p["o"])
        return x + jax.nn.gelu(layer_norm(x, *p["m"]) @ bf(p["a"])) @ bf(p["b"])

    def trunk(ps, x):
        x = conv(bf(x), ps["c"], P, "VALID").reshape(B, -1, D) + bf(ps["p"])
        for p in ps["l"]:
            x = layer(p, x)
        return x

    def loss(ps, b):
        x, other = trunk(ps, b["x"]), trunk(ps, b["z"])
        logs = jax.nn.log_softmax((x.mean(1) @ bf(ps["h"])).astype(jnp.float32))
        named = -jnp.take_along_axis(logs, tokens(b["y"], classes)[:, None], -1).mean()
        depth = (jax.nn.gelu(x @ bf(ps["u"])) @ bf(ps["w"])).astype(jnp.float32)
        far = jnp.abs(depth - b["d"].reshape(depth.shape)).mean()
        u, v = (jnp.tanh((t.mean(1) @ bf(ps["s"])).astype(jnp.float32)) for t in (x, other))
        same = jax.nn.log_softmax(u @ v.T / 8)
        return named + far - jnp.diagonal(same).mean()

    def params():
        shapes = dict(n=(2, D), qkv=(D, 3 * D), o=(D, D), m=(2, D), a=(D, 4 * D), b=(4 * D, D))
        heads = dict(h=rnd(D, classes), u=rnd(D, 2048), w=rnd(2048, P * P), s=rnd(D, 256))
        return dict(c=rnd(P, P, 3, D), p=rnd((S // P) ** 2, D), l=listed(L, shapes), **heads)

    return loss, params, dict(x=(B, S, S, 3), z=(B, S, S, 3), y=(B,), d=(B, S, S)), ADAMW


def triplets(S=112, B=64, widths=(64, 128, 256, 512), D=256):
    """Faces: one network of residual convolutions over three pictures, distances with a margin, f32."""

    def embedded(ps, x):
        for p in ps["c"]:
            x = conv(x, p["i"], 2)
            h = conv(jax.nn.relu(x * p["s"] + p["t"]), p["u"])
            x = x + conv(jax.nn.relu(h), p["v"])
        e = x.mean((1, 2)) @ ps["o"]
        return e * lax.rsqrt((e * e).sum(-1, keepdims=True) + 1e-6)

    def loss(ps, b):
        a, p, n = (embedded(ps, b[k]) for k in "apn")
        return jax.nn.relu(jnp.square(a - p).sum(-1) - jnp.square(a - n).sum(-1) + 0.2).mean()

    def params():
        return dict(
            c=[
                dict(i=rnd(3, 3, a, c), s=rnd(c), t=rnd(c), u=rnd(3, 3, c, c), v=rnd(3, 3, c, c))
                for a, c in zip((3, *widths), widths, strict=False)
            ],
            o=rnd(widths[-1], D),
        )

    return loss, params, dict(a=(B, S, S, 3), p=(B, S, S, 3), n=(B, S, S, 3)), ADAM


def universal(D=1024, F=4096, H=16, T=512, B=16, V=16384, steps=5):
    """One layer of attention run five times, with a chance to stop after each, weighted losses, bf16."""

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, left, total = bf(ps["e"])[t], jnp.ones((B, T)), 0.0
        seen = jnp.tril(jnp.ones((T, T), bool))
        for i in range(steps):
            h = rms(x, ps["n"]) + bf(ps["w"][i])
            q, k, v = (a.reshape(B, T, H, 1, -1) for a in jnp.split(h @ bf(ps["qkv"]), 3, -1))
            x = x + attended(q, k[:, :, :, 0], v[:, :, :, 0], seen) @ bf(ps["o"])
            x = x + jax.nn.gelu(rms(x, ps["m"]) @ bf(ps["a"])) @ bf(ps["b"])
            stop = left * (jax.nn.sigmoid((x @ bf(ps["s"])).astype(jnp.float32)) if i + 1 < steps else 1.0)
            logs = jax.nn.log_softmax((x @ bf(ps["h"])).astype(jnp.float32))
            total += (stop[:, :-1] * -jnp.take_along_axis(logs[:, :-1], t[:, 1:, None], -1)[..., 0]).mean()
            left = left - stop
        return total

    def params():
        layer = dict(n=rnd(D), qkv=rnd(D, 3 * D), o=rnd(D, D), m=rnd(D), a=rnd(D, F), b=rnd(F, D), s=rnd(D))
        return dict(e=rnd(V, D), w=rnd(steps, D), h=rnd(D, V), **layer)

    return loss, params, dict(t=(B, T)), ADAMW


def points(N=2048, B=64, classes=40, parts=50):
    """Clouds of points: dense layers for each, the largest over all, turned by what another such network says, two losses."""

    def over(ps, x):
        return jnp.max(_deep(ps, x), 1)

    def turn(ps, x, n):
        t = _deep(ps["d"], over(ps["p"], x)).reshape(-1, n, n) + jnp.eye(n)
        return x @ t, jnp.square(t @ t.transpose(0, 2, 1) - jnp.eye(n)).mean()

    def loss(ps, b):
        x, far = turn(ps["t"], b["x"], 3)
        x, off = turn(ps["f"], jax.nn.relu(_deep(ps["i"], x)), 64)
        g = over(ps["g"], x)
        named = jax.nn.log_softmax(_deep(ps["h"], g))
        each = _deep(ps["s"], jnp.concatenate([x, jnp.broadcast_to(g[:, None], (B, N, g.shape[-1]))], -1))
        cut = jax.nn.log_softmax(each)
        y, z = tokens(b["y"], classes), tokens(b["z"], parts)
        found = (
            jnp.take_along_axis(named, y[:, None], -1).mean()
            + jnp.take_along_axis(cut, z[..., None], -1).mean()
        )
        return 0.001 * (far + off) - found

    def params():
        turns = lambda n: dict(p=_widths(n, 64, 128, 1024), d=_widths(1024, 512, 256, n * n))  # noqa: E731
        return dict(
            t=turns(3), i=_widths(3, 64, 64), f=turns(64), g=_widths(64, 64, 128, 1024),
            h=_widths(1024, 512, 256, classes), s=_widths(1088, 512, 256, 128, parts),
        )  # fmt: skip

    return loss, params, dict(x=(B, N, 3), y=(B,), z=(B, N)), ADAM


def speakers(T=400, F=80, B=128, D=1024, voices=7205):
    """Voices: convolutions over time, ever further apart, mean and spread of frames that a score weighs, angles with a margin."""

    def loss(ps, b):
        x, layers = bf(b["x"]), []
        for i, (w, s, c) in enumerate(ps["c"]):
            h = lax.conv_general_dilated(
                x, bf(w), (1,), "SAME", rhs_dilation=(i + 1,), dimension_numbers=("NWC", "WIO", "NWC")
            )
            h = jax.nn.relu(h) * bf(s) + bf(c)
            x = x + h if i else h
            layers.append(x)
        h = jax.nn.relu(jnp.concatenate(layers, -1) @ bf(ps["m"]))
        a = jax.nn.softmax((jnp.tanh(h @ bf(ps["a"])) @ bf(ps["v"])).astype(jnp.float32), 1)
        f = h.astype(jnp.float32)
        mean = (a * f).sum(1)
        spread = jnp.sqrt(jnp.maximum((a * f * f).sum(1) - mean * mean, 1e-6))
        e = jnp.concatenate([mean, spread], -1) @ ps["e"]
        e, w = (z * lax.rsqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (e, ps["w"]))
        y = jax.nn.one_hot(tokens(b["y"], voices), voices)
        logits = 30 * (e @ w.T - 0.2 * y)
        return -(y * jax.nn.log_softmax(logits)).sum(-1).mean()

    def params():
        c = [(rnd(5, F, D), rnd(D), rnd(D)), *((rnd(3, D, D), rnd(D), rnd(D)) for _ in range(3))]
        return dict(
            c=c, m=rnd(4 * D, 1536), a=rnd(1536, 128), v=rnd(128, 1536), e=rnd(3072, 192), w=rnd(voices, 192)
        )

    return loss, params, dict(x=(B, T, F), y=(B,)), ADAMW


def towers(users=500000, items=200000, E=64, B=8192, D=1024, history=50):
    """What is offered to whom: tables, a network each for users and items, all other items of the batch as wrong answers."""

    def loss(ps, b):
        u, i, h = tokens(b["u"], users), tokens(b["i"], items), tokens(b["h"], items)
        seen = ps["it"][h]
        weight = jax.nn.softmax((seen * (ps["ut"][u] @ ps["q"])[:, None]).sum(-1))
        x = _deep(ps["un"], bf(jnp.concatenate([ps["ut"][u], (weight[..., None] * seen).sum(1), b["x"]], -1)))
        y = _deep(ps["in"], bf(jnp.concatenate([ps["it"][i], b["z"]], -1)))
        logits = (x @ y.T).astype(jnp.float32) * 0.05
        return (jax.nn.logsumexp(logits, -1) - jnp.diagonal(logits)).mean()

    def params():
        return dict(
            ut=rnd(users, E), it=rnd(items, E), q=rnd(E, E),
            un=_widths(2 * E + 32, D, D, 256), **{"in": _widths(E + 32, D, D, 256)},
        )  # fmt: skip

    return loss, params, dict(u=(B,), i=(B,), h=(B, history), x=(B, 32), z=(B, 32)), ADAM


def forecasts(T=336, A=96, D=1024, B=32768, blocks=6):
    """Series: blocks of dense layers that explain what is left of the past and add to what is to come, layers in a scan, f32."""

    def loss(ps, b):
        def block(carry, p):
            left, ahead = carry
            h = left @ p["i"]
            for k in "abc":
                h = jax.nn.relu(h @ p[k])
            return (left - h @ p["l"], ahead + h @ p["o"]), None

        x = b["x"]
        m = jnp.abs(x).mean(-1, keepdims=True) + 1e-3
        (_, y), _ = lax.scan(block, (x / m, jnp.zeros((B, A))), ps)
        return (jnp.abs(y * m - b["y"]) / (jnp.abs(b["y"]) + jnp.abs(y * m) + 1e-3)).mean()

    def params():
        return stacked(blocks, dict(i=(T, D), a=(D, D), b=(D, D), c=(D, D), l=(D, T), o=(D, A)))

    return loss, params, dict(x=(B, T), y=(B, A)), ADAM


ALL = dict(
    critics=critics, ensemble=ensemble, tasks=tasks, triplets=triplets, universal=universal, points=points,
    speakers=speakers, towers=towers, forecasts=forecasts,
)  # fmt: skip
