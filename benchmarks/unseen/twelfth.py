"""Six more such steps, over several devices of a host, written before anyone looked at their estimates."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from unseen.ninth import block, block_shapes
from unseen.parts import (
    ADAMW,
    bf,
    clipped,
    conv,
    cross_entropy,
    gated,
    layer_norm,
    rms,
    rope,
    stretches,
    summed,
    tokens,
    turned,
)
from unseen.seventh import attended, listed, past, stacked
from unseen.steps import Devices, Training, adam, rnd
from unseen.tenth import decoder_shapes


def looked_up(table, t, axis):
    """Rows of a table whose rows are over the devices of an axis, zeros for those that other devices have."""
    here = t - lax.axis_index(axis) * len(table)
    mine = (here >= 0) & (here < len(table))
    return jnp.where(mine[..., None], table[jnp.clip(here, 0, len(table) - 1)], 0)


def split_entropy(logits, labels, axis):
    """Mean cross-entropy in f32 of logits whose classes are over the devices of an axis."""
    logits = logits.astype(jnp.float32)
    size = logits.shape[-1]
    top = lax.pmax(lax.stop_gradient(logits.max(-1)), axis)
    norm = jnp.log(lax.psum(jnp.exp(logits - top[..., None]).sum(-1), axis)) + top
    here = labels - lax.axis_index(axis) * size
    mine = (here >= 0) & (here < size)
    found = jnp.take_along_axis(logits, jnp.clip(here, 0, size - 1)[..., None], -1)[..., 0]
    return jnp.mean(norm - lax.psum(jnp.where(mine, found, 0.0), axis))


def partitioned(specs, split, batch):
    """Gradients of a device's part of a loss, summed over the batch's axes and, where their parameter is not split
    over it, the axis `split`, then clipped by the norm of all; the loss summed over `split` if the batch is not.
    """
    others = tuple(axis for axis in tuple(batch) if axis != split)

    def of(loss):
        def gradients(p, given):
            value, g = jax.value_and_grad(loss)(p, given)
            own = jax.tree.map(lambda _, spec: split in tuple(spec), g, specs)
            g = jax.tree.map(lambda a, own: lax.psum(a, others if own else (*others, split)), g, own)
            each = list(zip(jax.tree.leaves(g), jax.tree.leaves(own), strict=True))
            part = sum(jnp.vdot(a, a) for a, own in each if own)
            rest = sum(jnp.vdot(a, a) for a, own in each if not own)
            norm = jnp.sqrt(lax.psum(part, split) + rest)
            value = value if split in tuple(batch) else lax.psum(value, split)
            return value, clipped(g, norm=norm)

        return gradients

    return of


def sequence(D=2048, F=8192, H=16, T=2048, B=4, V=51200, L=4, n=4):
    """Heads, hidden units and vocabulary over four devices and, between products, the sequence: gathered before each,
    scattered as it is summed after; biases, attention alone under jax.checkpoint, layers unrolled, bf16.
    """
    d = D // H
    shapes = dict(
        n=(2, D), qkv=(D, 3, H, d), c=(3, H, d), o=(D, D), ob=(D,), m=(2, D), a=(D, F), ab=(F,), w=(F, D), wb=(D,)
    )  # fmt: skip
    attend = jax.checkpoint(attended)

    def gather(x):
        return lax.all_gather(x, "t", axis=1, tiled=True)

    def scatter(x):
        return lax.psum_scatter(x, "t", scatter_dimension=1, tiled=True)

    def layer(x, p):
        h = gather(layer_norm(x, *p["n"]))
        q, k, v = jnp.einsum("btd,dchk->cbthk", h, bf(p["qkv"])) + bf(p["c"])[:, None, None]
        x = x + scatter(attend(q[:, :, :, None], k, v, past(T)) @ bf(p["o"])) + bf(p["ob"])
        h = jax.nn.gelu(gather(layer_norm(x, *p["m"])) @ bf(p["a"]) + bf(p["ab"]))
        return x + scatter(h @ bf(p["w"])) + bf(p["wb"])

    def loss(ps, b):
        t, e = tokens(b["t"], V), bf(ps["e"])
        x = scatter(looked_up(e, t, "t")) + bf(ps["p"])
        for p in ps["l"]:
            x = layer(x, p)
        logits = gather(layer_norm(x, *ps["n"])) @ e.T
        return split_entropy(logits[:, :-1], t[:, 1:], "t") / n

    def params():
        return dict(e=rnd(V, D), p=rnd(T, D), l=listed(L, shapes), n=rnd(2, D))

    rows, columns = PartitionSpec("t"), PartitionSpec(None, "t")
    cut = dict(qkv=PartitionSpec(None, None, "t"), c=columns, o=rows, a=columns, ab=rows, w=rows)
    each = {k: cut.get(k, PartitionSpec()) for k in shapes}
    specs = dict(e=rows, p=rows, l=[each] * L, n=PartitionSpec())
    devices = Devices((n,), ("t",), specs, PartitionSpec())
    return loss, params, dict(t=(B, T)), Training(gradients=partitioned(specs, "t", devices.batch)), devices


def resnet(S=224, B=512, C=64, depths=(2, 2, 2, 2), classes=1000, n=8):
    """Pictures of bytes over eight devices: bottlenecks, batch norms of a device's own pictures, smoothed labels,
    gradients summed leaf by leaf, bf16.
    """

    def norm(x, p):
        h = x.astype(jnp.float32)
        m = h.mean((0, 1, 2))
        v = jnp.square(h).mean((0, 1, 2)) - m * m
        return bf((h - m) * lax.rsqrt(v + 1e-5) * p[0] + p[1])

    def bottleneck(x, p, s):
        y = jax.nn.relu(norm(conv(x, p["a"]), p["x"]))
        y = jax.nn.relu(norm(conv(y, p["b"], s), p["y"]))
        y = norm(conv(y, p["c"]), p["z"])
        return jax.nn.relu(y + (norm(conv(x, p["s"], s), p["w"]) if "s" in p else x))

    def loss(ps, b):
        x = bf((b["x"].astype(jnp.float32) / 255.0 - 0.45) / 0.225)
        x = jax.nn.relu(norm(conv(x, ps["i"], 2), ps["n"]))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for at, stage in enumerate(ps["l"]):
            for j, p in enumerate(stage):
                x = bottleneck(x, p, 2 if at and not j else 1)
        x = x.astype(jnp.float32).mean((1, 2))
        return cross_entropy(x @ ps["h"] + ps["c"], tokens(b["y"], classes), smoothing=0.1) / n

    def params():
        def one(i, c):
            p = dict(
                a=rnd(1, 1, i, c), b=rnd(3, 3, c, c), c=rnd(1, 1, c, 4 * c), x=rnd(2, c), y=rnd(2, c), z=rnd(2, 4 * c)
            )  # fmt: skip
            return p if i == 4 * c else p | dict(s=rnd(1, 1, i, 4 * c), w=rnd(2, 4 * c))

        stages, i = [], C
        for at, blocks in enumerate(depths):
            c = C << at
            stages.append([one(4 * c if j else i, c) for j in range(blocks)])
            i = 4 * c
        return dict(i=rnd(7, 7, 3, C), n=rnd(2, C), l=stages, h=rnd(i, classes), c=rnd(classes))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    devices = Devices((n,), ("d",), specs, PartitionSpec("d"))
    batch = dict(x=jax.ShapeDtypeStruct((B, S, S, 3), jnp.uint8), y=(B,))
    return loss, params, batch, Training(ADAMW.update, 2, summed("d")), devices


def scout(D=1536, F=3072, H=12, K=4, E=16, T=2048, B=16, V=32768, L=3, n=4):
    """Experts over four devices, one a token beside a shared one, rows of a capacity made by one-hot products and
    scaled before they are exchanged, router in f32 with its normaliser's loss, layers in a scan under jax.checkpoint,
    bf16.
    """
    d, C = D // H, T // E * 5 // 4
    dense = dict(n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), m=(D,), r=(D, E))
    shared, split = dict(g=(D, F), u=(D, F), w=(F, D)), dict(eg=(E, D, F), eu=(E, D, F), ew=(E, F, D))

    def experts(p, x):
        score = x.astype(jnp.float32) @ p["r"]
        hot = jax.nn.one_hot(jnp.argmax(score, -1), E)
        place = (jnp.cumsum(hot, 1) * hot - 1).astype(jnp.int32)
        mask = jax.nn.one_hot(place, C, dtype=x.dtype)
        scaled = x * bf(jax.nn.sigmoid(score.max(-1, keepdims=True)))
        sent = jnp.einsum("btec,btd->ebcd", mask, scaled)
        mine = lax.all_to_all(sent, "e", 0, 1, tiled=True)
        h = jax.nn.silu(jnp.einsum("ebcd,edf->ebcf", mine, bf(p["eg"])))
        h = h * jnp.einsum("ebcd,edf->ebcf", mine, bf(p["eu"]))
        out = lax.all_to_all(jnp.einsum("ebcf,efd->ebcd", h, bf(p["ew"])), "e", 1, 0, tiled=True)
        balance = E * jnp.sum(hot.mean((0, 1)) * jax.nn.softmax(score, -1).mean((0, 1)))
        extra = 0.01 * balance + 1e-3 * jnp.mean(jax.nn.logsumexp(score, -1) ** 2)
        return jnp.einsum("btec,ebcd->btd", mask, out), extra

    @jax.checkpoint
    def layer(x, p):
        h = rms(x, p["n"])
        q = rope((h @ bf(p["q"])).reshape(*x.shape[:2], H, d), 5e5).reshape(*x.shape[:2], K, H // K, d)
        k, v = ((h @ bf(p[i])).reshape(*x.shape[:2], K, d) for i in "kv")
        x = x + attended(q, rope(k, 5e5), v, past(T)) @ bf(p["o"])
        h = rms(x, p["m"])
        y, extra = experts(p, h)
        return x + gated(h, p) + y, extra

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, extra = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        return (cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:]) + extra.sum()) / n

    def params():
        return dict(e=rnd(V, D), l=stacked(L, dense | shared | split), n=rnd(D), h=rnd(D, V))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    specs["l"] |= {k: PartitionSpec(None, "e") for k in split}
    devices = Devices((n,), ("e",), specs, PartitionSpec("e"))
    return loss, params, dict(t=(B, T)), Training(gradients=partitioned(specs, "e", devices.batch)), devices


def vocabulary(D=2048, F=8192, H=8, K=4, d=256, T=2048, B=8, V=256000, C=256, L=3, shape=(2, 4)):
    """Two by four devices: the batch over one axis, heads, hidden units and a large tied vocabulary over the other,
    capped logits and their loss by chunks of time in a scan, each layer and chunk under jax.checkpoint, bf16.
    """
    shapes = decoder_shapes(D, F, K, d) | dict(q=(D, H * d), o=(H * d, D))

    @jax.checkpoint
    def layer(x, p):
        h = rms(x, 1 + p["n"])
        q, k, v = ((h @ bf(p[i])).reshape(*x.shape[:2], -1, d) for i in "qkv")
        q = rope(q).reshape(*x.shape[:2], K // shape[1], H // K, d)
        x = x + lax.psum(attended(q, rope(k), v, past(T)) @ bf(p["o"]), "t")
        return x + lax.psum(gated(rms(x, 1 + p["m"]), p), "t")

    def loss(ps, b):
        t, e = tokens(b["t"], V), bf(ps["e"])
        x = lax.psum(looked_up(e, t[:, :-1], "t"), "t") * D**0.5
        for p in ps["l"]:
            x = layer(x, p)

        @jax.checkpoint
        def chunk(total, now):
            x, label = now
            logits = (x @ e.T).astype(jnp.float32)
            return total + split_entropy(30.0 * jnp.tanh(logits / 30.0), label, "t"), None

        def cut(a):
            return a.reshape(a.shape[0], T // C, C, *a.shape[2:]).swapaxes(0, 1)

        total, _ = lax.scan(chunk, jnp.zeros(()), (cut(rms(x, 1 + ps["n"])), cut(t[:, 1:])))
        return total / (T // C) / (shape[0] * shape[1])

    def params():
        return dict(e=rnd(V, D), l=listed(L, shapes), n=rnd(D))

    rows, columns = PartitionSpec("t"), PartitionSpec(None, "t")
    over = dict(q=columns, k=columns, v=columns, o=rows, g=columns, u=columns, w=rows)
    each = {k: over.get(k, PartitionSpec()) for k in shapes}
    specs = dict(e=rows, l=[each] * L, n=PartitionSpec())
    devices = Devices(shape, ("d", "t"), specs, PartitionSpec("d"))
    training = Training(gradients=partitioned(specs, "t", devices.batch))
    return loss, params, dict(t=(B, T + 1)), training, devices


def context(D=2048, F=5632, H=16, K=4, T=8192, B=1, V=32000, L=4, n=4):
    """A sequence of several documents over four devices, each with an early and a late stretch of it, keys and values
    of all gathered, and kept, by layers under jax.checkpoint, masks by place and document, unrolled, bf16.
    """
    d, S, half = D // H, T // n, T // (2 * n)

    def whole(x):
        return checkpoint_name(lax.all_gather(x, "s", axis=1, tiled=True), "gathered")

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("gathered"))
    def layer(x, p, at, seen):
        h = rms(x, p["n"])
        q = turned((h @ bf(p["q"])).reshape(B, S, H, d), at).reshape(B, S, K, H // K, d)
        k, v = ((h @ bf(p[i])).reshape(B, S, K, d) for i in "kv")
        x = x + attended(q, whole(turned(k, at)), whole(v), seen) @ bf(p["o"])
        return x + gated(rms(x, p["m"]), p)

    def loss(ps, b):
        at = stretches(lax.axis_index("s"), n, half)
        document = tokens(b["d"], 8).T
        places, documents = (lax.all_gather(a, "s", axis=a.ndim - 1, tiled=True) for a in (at, document))
        seen = (at[:, None] >= places) & (document[..., None] == documents[:, None])
        x = bf(ps["e"])[tokens(b["t"], V).T]
        for p in ps["l"]:
            x = layer(x, p, at, seen[:, None, None])
        return cross_entropy(rms(x, ps["n"]) @ bf(ps["h"]), tokens(b["y"], V).T, z=1e-4) / n

    def params():
        return dict(e=rnd(V, D), l=listed(L, decoder_shapes(D, F, K, d)), n=rnd(D), h=rnd(D, V))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    devices = Devices((n,), ("s",), specs, PartitionSpec("s"))
    batch = dict(t=(T, B), y=(T, B), d=(T, B))
    return loss, params, batch, Training(ADAMW.update, 2, summed("s")), devices


def zero2(D=1536, H=12, T=1024, B=8, V=50304, L=4, n=2):
    """Weights in bf16 on both devices, gradients in one flat array that is scattered as it is summed, moments and
    weights in f32 of a device's half of it, whose update is gathered, layers unrolled without jax.checkpoint, bf16.
    """

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = ps["e"][t] + ps["p"]
        for p in ps["l"]:
            x = block(x, p, H, past(T))
        return cross_entropy((layer_norm(x, *ps["n"]) @ ps["e"].T)[:, :-1], t[:, 1:]) / n

    def gradients(loss):
        def of(p, batch):
            value, g = jax.value_and_grad(loss)(p["w"], batch)
            g = lax.psum_scatter(ravel_pytree(g)[0], "z", tiled=True).astype(jnp.float32)
            return value, clipped(g, norm=jnp.sqrt(lax.psum(jnp.vdot(g, g), "z")))

        return of

    def update(state, g):
        (held,) = state
        p, m, v = adam(held["p"], g, held["m"], held["v"], lr=3e-4)
        back = ravel_pytree(held["w"])[1]
        return (dict(w=back(lax.all_gather(bf(p), "z", tiled=True)), p=p, m=m, v=v),)

    def params():
        w = dict(e=rnd(V, D), p=rnd(T, D), l=listed(L, block_shapes(D)), n=rnd(2, D))
        flat = ravel_pytree(w)[0]
        return dict(w=jax.tree.map(bf, w), p=flat, m=jnp.zeros_like(flat), v=jnp.zeros_like(flat))

    shapes, split = jax.eval_shape(params), PartitionSpec("z")
    specs = dict(w=jax.tree.map(lambda _: PartitionSpec(), shapes["w"]), p=split, m=split, v=split)
    devices = Devices((n,), ("z",), specs, split)
    return loss, params, dict(t=(B, T)), Training(update, 0, gradients, lambda p: (p,)), devices


ALL = dict(
    sequence=sequence, resnet=resnet, scout=scout, vocabulary=vocabulary, context=context, zero2=zero2,
)  # fmt: skip
