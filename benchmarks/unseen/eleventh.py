"""Eleven more such steps, most of how large models are trained, four of them over eight devices and one over four,
written before anyone looked at their estimates.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from unseen.ninth import block, block_shapes
from unseen.parts import (
    ADAMW,
    AVERAGED,
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
from unseen.seventh import listed, past, stacked
from unseen.steps import Devices, Training, lstm_cell, rnd


def ring(D=2048, F=5632, H=16, K=4, T=16384, B=1, V=32000, L=3, n=8):
    """A sequence over eight devices, each with an early and a late stretch of it, keys and values handed around a ring
    in scans of a custom gradient's own, layers in a scan under jax.checkpoint that keeps what the ring gave, bf16.
    """
    d, S, half = D // H, T // n, T // (2 * n)
    G = H // K
    hops = [(i, (i + 1) % n) for i in range(n)]
    shapes = dict(
        n=(D,), q=(D, D), k=(D, K * d), v=(D, K * d), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D)
    )

    def places(device):
        return stretches(device, n, half)

    def product(spec, a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)

    def scores(q, k, hop):
        me = lax.axis_index("s")
        s = product("btkgd,bskd->bkgts", q, k) * d**-0.5
        return jnp.where(places(me)[:, None] >= places((me - hop) % n), s, -1e30)

    def forward(q, k, v):
        def step(carry, hop):
            o, top, total, k, v = carry
            s = scores(q, k, hop)
            new = jnp.maximum(top, s.max(-1))
            p, keep = jnp.exp(s - new[..., None]), jnp.exp(top - new)
            o = o * keep[..., None] + product("bkgts,bskd->bkgtd", bf(p), v)
            return (o, new, total * keep + p.sum(-1), *lax.ppermute((k, v), "s", hops)), None

        rows = jnp.zeros((B, K, G, S))
        start = (jnp.zeros((B, K, G, S, d)), rows - 1e30, rows, k, v)
        (o, top, total, *_), _ = lax.scan(step, start, jnp.arange(n))
        o = checkpoint_name(bf(o / total[..., None]), "ring")
        norm = checkpoint_name(top + jnp.log(total), "ring")
        return o, (q, k, v, o, norm)

    def backward(kept, g):
        q, k, v, o, norm = kept
        inner = jnp.sum(g.astype(jnp.float32) * o, -1, keepdims=True)

        def step(carry, hop):
            dq, k, v, dk, dv = carry
            p = jnp.exp(scores(q, k, hop) - norm[..., None])
            ds = bf(p * (product("bkgtd,bskd->bkgts", g, v) - inner) * d**-0.5)
            dq = dq + product("bkgts,bskd->btkgd", ds, k)
            dk = dk + product("bkgts,btkgd->bskd", ds, q)
            dv = dv + product("bkgts,bkgtd->bskd", bf(p), g)
            return (dq, *lax.ppermute((k, v, dk, dv), "s", hops)), None

        start = (jnp.zeros(q.shape), k, v, jnp.zeros(k.shape), jnp.zeros(v.shape))
        (dq, _, _, dk, dv), _ = lax.scan(step, start, jnp.arange(n))
        return bf(dq), bf(dk), bf(dv)

    attend = jax.custom_vjp(lambda q, k, v: forward(q, k, v)[0])
    attend.defvjp(forward, backward)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("ring"))
    def layer(x, p):
        at = places(lax.axis_index("s"))
        h = rms(x, p["n"])
        q = turned((h @ bf(p["q"])).reshape(B, S, H, d), at).reshape(B, S, K, G, d)
        k, v = turned((h @ bf(p["k"])).reshape(B, S, K, d), at), (h @ bf(p["v"])).reshape(B, S, K, d)
        x = x + jnp.moveaxis(attend(q, k, v), 3, 1).reshape(B, S, D) @ bf(p["o"])
        h = rms(x, p["m"])
        return x + gated(h, p), None

    def loss(ps, b):
        x, _ = lax.scan(layer, bf(ps["e"])[tokens(b["t"], V).T], ps["l"])
        return cross_entropy(rms(x, ps["n"]) @ bf(ps["h"]), tokens(b["y"], V).T) / n

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    devices = Devices((n,), ("s",), specs, PartitionSpec("s"))
    return loss, params, dict(t=(T, B), y=(T, B)), Training(ADAMW.update, 2, summed("s")), devices


def dbrx(D=2048, F=3584, H=16, K=4, E=16, top=4, T=2048, B=16, V=32768, L=3, n=8):
    """Experts over eight devices, four a token, sorted rows of a capacity exchanged for those of a device's own experts
    and back, clipped queries and keys, layers unrolled under jax.checkpoint that keeps products, all cast at once,
    bf16.
    """
    d, rows = D // H, B // n * T
    C = top * rows // E * 5 // 4
    dense = dict(n=(D,), qkv=(D, (H + 2 * K) * d), o=(D, D), m=(D,), r=(D, E))
    split = dict(g=(E, D, F), u=(E, D, F), w=(E, F, D))

    def experts(p, router, x):
        chance = jax.nn.softmax(x.astype(jnp.float32) @ router, -1)
        gates, index = lax.top_k(chance, top)
        gates = gates / gates.sum(-1, keepdims=True)
        flat = index.reshape(-1)
        order = jnp.argsort(flat)
        expert, token = flat[order], order // top
        place = jnp.arange(flat.size) - jnp.searchsorted(expert, jnp.arange(E))[expert]
        slot = jnp.where(place < C, expert * C + place, E * C)
        sent = jnp.zeros((E * C, D), x.dtype).at[slot].set(x[token], mode="drop")
        mine = lax.all_to_all(sent.reshape(n, E // n, C, D), "e", 0, 0)
        mine = mine.swapaxes(0, 1).reshape(E // n, n * C, D)
        h = jax.nn.silu(jnp.einsum("ecd,edf->ecf", mine, p["g"])) * jnp.einsum("ecd,edf->ecf", mine, p["u"])
        out = jnp.einsum("ecf,efd->ecd", h, p["w"]).reshape(E // n, n, C, D).swapaxes(0, 1)
        out = lax.all_to_all(out, "e", 0, 0).reshape(E * C, D)
        out = out.at[slot].get(mode="fill", fill_value=0) * bf(gates.reshape(-1)[order])[:, None]
        share = jnp.bincount(flat, length=E) / flat.size
        return jnp.zeros_like(x).at[token].add(out), E * jnp.sum(share * chance.mean(0))

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    def layer(x, p, router):
        h = jnp.clip(layer_norm(x, p["n"], 0.0) @ p["qkv"], -8.0, 8.0)
        q, k, v = jnp.split(h.reshape(*x.shape[:2], H + 2 * K, d), [H, H + K], 2)
        y = jax.nn.dot_product_attention(rope(q, 5e5), rope(k, 5e5), v, is_causal=True)
        x = x + y.reshape(x.shape) @ p["o"]
        y, balance = experts(p, router, layer_norm(x, p["m"], 0.0).reshape(rows, D))
        return x + y.reshape(x.shape), balance

    def loss(ps, b):
        t, half, extra = tokens(b["t"], V), jax.tree.map(bf, ps), 0.0
        x = half["e"][t]
        for p, whole in zip(half["l"], ps["l"], strict=True):
            x, more = layer(x, p, whole["r"])
            extra = extra + more
        logits = layer_norm(x, half["n"], 0.0) @ half["h"]
        return (cross_entropy(logits[:, :-1], t[:, 1:]) + 0.01 * extra) / n

    def params():
        return dict(e=rnd(V, D), l=listed(L, dense | split), n=rnd(D), h=rnd(D, V))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    for each in specs["l"]:
        each |= {k: PartitionSpec("e") for k in split}

    def gradients(loss):
        def of(p, batch):
            value, g = jax.value_and_grad(loss)(p, batch)
            g = jax.tree.map(lambda a, spec: a if spec == PartitionSpec("e") else lax.psum(a, "e"), g, specs)
            own = sum(jnp.sum(jnp.square(each[k])) for each in g["l"] for k in split)
            all_ = sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(g))
            norm = jnp.sqrt(all_ - own + lax.psum(own, "e"))
            return value, clipped(g, norm=norm)

        return of

    devices = Devices((n,), ("e",), specs, PartitionSpec("e"))
    return loss, params, dict(t=(B, T)), Training(gradients=gradients), devices


def zero(D=2048, F=8192, H=16, T=2048, B=64, V=50304, L=3, micro=4, n=8):
    """Weights in f32 and their moments over eight devices, all gathered once in bf16, gradients of micro-batches
    scattered and summed in a scan, attention by a kernel, layers unrolled under jax.checkpoint that keeps products,
    bf16.
    """
    shapes = dict(
        n=(D,), nb=(D,), qkv=(D, 3 * D), c=(3 * D,), o=(D, D), ob=(D,), m=(D,), mb=(D,), a=(D, F), ab=(F,), w=(F, D),
        wb=(D,),
    )  # fmt: skip

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    def layer(x, p):
        h = layer_norm(x, p["n"], p["nb"]) @ p["qkv"] + p["c"]
        q, k, v = (a.reshape(*x.shape[:2], H, D // H) for a in jnp.split(h, 3, -1))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        x = x + y.reshape(x.shape) @ p["o"] + p["ob"]
        h = jax.nn.gelu(layer_norm(x, p["m"], p["mb"]) @ p["a"] + p["ab"])
        return x + h @ p["w"] + p["wb"]

    def loss(ps, b):
        t = tokens(b["t"], V)
        x = ps["e"][t] + ps["p"]
        for p in ps["l"]:
            x = layer(x, p)
        logits = layer_norm(x, ps["n"], ps["nb"]) @ ps["e"].T
        return cross_entropy(logits[:, :-1], t[:, 1:], z=1e-4) / (n * micro)

    def gradients(loss):
        def of(p, batch):
            whole = jax.tree.map(lambda a: lax.all_gather(bf(a), "z", tiled=True), p)

            def scattered(a):
                return lax.psum_scatter(a.astype(jnp.float32), "z", tiled=True)

            def add(carry, part):
                total, sums = carry
                value, g = jax.value_and_grad(loss)(whole, part)
                return (total + value, jax.tree.map(lambda s, a: s + scattered(a), sums, g)), None

            parts = jax.tree.map(lambda a: a.reshape(micro, -1, *a.shape[1:]), batch)
            (value, g), _ = lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, p)), parts)
            norm = jnp.sqrt(lax.psum(sum(jnp.vdot(a, a) for a in jax.tree.leaves(g)), "z"))
            return value, clipped(g, norm=norm)

        return of

    def params():
        return dict(e=rnd(V, D), p=rnd(T, D), l=listed(L, shapes), n=rnd(D), nb=rnd(D))

    specs = jax.tree.map(lambda _: PartitionSpec("z"), jax.eval_shape(params))
    devices = Devices((n,), ("z",), specs, PartitionSpec("z"))
    return loss, params, dict(t=(B, T)), Training(gradients=gradients), devices


def nsa(D=2048, F=5632, H=16, K=2, T=4096, B=2, V=32768, L=3, short=32, long=64, top=8, W=512, Q=256):
    """Attention to means of short blocks, to the long blocks that those point at, gathered for each token, and to a
    window, gated, chunks of queries by lax.map under jax.checkpoint, layers in a scan without it, bf16.
    """
    d, G = D // H, H // K
    shapes = dict(
        n=(D,), q=(D, D), k=(3, D, K * d), v=(3, D, K * d), e=(short, d), ck=(short, d, d), cv=(short, d, d),
        s=(D, 3 * H), o=(D, D), m=(D,), g=(D, F), u=(D, F), w=(F, D),
    )  # fmt: skip

    def chance(s, seen):
        return bf(jax.nn.softmax(jnp.where(seen, s.astype(jnp.float32) * d**-0.5, -1e30), -1))

    def pointed(p, q, k, v):
        """What the blocks' means give, and which blocks each token asks further: [B, K, T, top]."""

        def squeezed(a, w):
            a = a.reshape(B, T // short, short, K, d) + bf(p["e"])[:, None]
            return jnp.einsum("bnlkd,lde->bnke", a, bf(w))

        k, v, at = squeezed(k, p["ck"]), squeezed(v, p["cv"]), jnp.arange(T)
        seen = (jnp.arange(T // short) + 1) * short <= at[:, None] + 1
        a = jnp.where(seen, chance(jnp.einsum("btkgd,bnkd->bkgtn", q, k), seen), 0)
        weight = lax.stop_gradient(a).astype(jnp.float32).sum(2).reshape(B, K, T, T // long, -1).sum(-1)
        block = jnp.arange(T // long)
        weight = jnp.where(block * long <= at[:, None], weight, -1.0)
        weight = jnp.where((block == 0) | (block == at[:, None] // long), 1e3, weight)
        return jnp.einsum("bkgtn,bnkd->btkgd", a, v), lax.top_k(weight, top)[1]

    def attention(p, h):
        q = (h @ bf(p["q"])).reshape(B, T, H, d)
        turn = rope(q).reshape(B, T, K, G, d)
        k, v = (jnp.einsum("btd,cde->cbte", h, bf(p[i])).reshape(3, B, T, K, d) for i in "kv")
        y, index = pointed(p, q.reshape(B, T, K, G, d), k[0], v[0])
        gates = jax.nn.sigmoid(h @ bf(p["s"])).reshape(B, T, K, G, 3)
        kb, vb = (jnp.moveaxis(a, 2, 1).reshape(B, K, T // long, long, d) for a in (rope(k[1]), v[1]))
        kw, vw = (jnp.pad(a, ((0, 0), (W, 0), (0, 0), (0, 0))) for a in (rope(k[2]), v[2]))

        @jax.checkpoint
        def chunk(now):
            c, q, index, gates = now
            at = c * Q + jnp.arange(Q)
            take = jax.vmap(jax.vmap(lambda a, i: a[i].reshape(Q, top * long, d)))
            far = (index[..., None] * long + jnp.arange(long)).reshape(B, K, 1, Q, top * long)
            a = chance(jnp.einsum("bqkgd,bkqsd->bkgqs", q, take(kb, index)), far <= at[:, None])
            picked = jnp.einsum("bkgqs,bkqsd->bqkgd", a, take(vb, index))
            near = c * Q - W + jnp.arange(Q + W)
            away = at[:, None] - near
            k, v = (lax.dynamic_slice_in_dim(x, c * Q, Q + W, 1) for x in (kw, vw))
            a = chance(jnp.einsum("bqkgd,bskd->bkgqs", q, k), (away >= 0) & (away < W) & (near >= 0))
            return picked * gates[..., 1:2] + jnp.einsum("bkgqs,bskd->bqkgd", a, v) * gates[..., 2:]

        def cut(a, axis):
            return jnp.moveaxis(a.reshape(*a.shape[:axis], T // Q, Q, *a.shape[axis + 1 :]), axis, 0)

        z = lax.map(chunk, (jnp.arange(T // Q), cut(turn, 1), cut(index, 2), cut(gates, 1)))
        z = jnp.moveaxis(z, 0, 1).reshape(B, T, K, G, d)
        return (y * gates[..., :1] + z).reshape(B, T, D) @ bf(p["o"])

    def layer(x, p):
        x = x + attention(p, rms(x, p["n"]))
        h = rms(x, p["m"])
        return x + gated(h, p), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAMW


def lact(D=1536, F=4096, H=12, N=4, T=4096, C=1024, W=512, B=2, V=32000, L=3):
    """Weights of a small gated network as the memory of each head, fitted to keys and values chunk by chunk by
    gradients made orthogonal, in a scan under vmap, windowed attention beside it, layers in a scan under
    jax.checkpoint, bf16.
    """
    d, w = D // H, D // N
    shapes = dict(
        n=(D,), qkv=(D, 3 * D), s=(2, D), r=(D, N), a=(N, w, 2 * w), c=(N, w, 2 * w), b=(N, 2 * w, w), y=(w,), o=(D, D),
        m=(D,), g=(D, F), u=(D, F), z=(F, D),
    )  # fmt: skip

    def orthogonal(g):
        x = g if g.shape[0] <= g.shape[1] else g.T
        x = bf(x / (jnp.linalg.norm(x) + 1e-7))
        for _ in range(3):
            s = x @ x.T
            x = 3.4445 * x + (2.0315 * s @ s - 4.775 * s) @ x
        return (x if g.shape[0] <= g.shape[1] else x.T).astype(jnp.float32)

    def remember(start, q, k, v, rate):
        """One head of one row: q, k, v [T / C, C, w], rates [T / C, C]."""

        def apply(m, x):
            return (jax.nn.silu(x @ bf(m["a"])) * (x @ bf(m["c"]))) @ bf(m["b"])

        def sized(new, old):
            return new * (jnp.linalg.norm(old, axis=0) / (jnp.linalg.norm(new, axis=0) + 1e-5))

        def step(m, now):
            q, k, v, rate = now
            y = apply(m, q)
            g = jax.grad(lambda m: -jnp.sum(jnp.sum((apply(m, k) * v).astype(jnp.float32), -1) * rate))(m)
            m = jax.tree.map(lambda a, b, s: sized(a - orthogonal(b), s), m, g, start)
            return m, y

        return lax.scan(step, start, (q, k, v, rate))[1]

    def near(q, k, v):
        q, k, v = (a.reshape(B, T // W, W, H, d) for a in (q, k, v))
        k, v = (
            jnp.concatenate([jnp.pad(a, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))[:, :-1], a], 2)
            for a in (k, v)
        )
        away = W + jnp.arange(W)[:, None] - jnp.arange(2 * W)
        seen = (away >= 0) & (away < W) & ((jnp.arange(T // W) > 0)[:, None, None] | (jnp.arange(2 * W) >= W))
        s = jnp.einsum("bnqhd,bnkhd->bnhqk", q, k).astype(jnp.float32) * d**-0.5
        a = jax.nn.softmax(jnp.where(seen[:, None], s, -1e30), -1)
        return jnp.einsum("bnhqk,bnkhd->bnqhd", bf(a), v).reshape(B, T, D)

    @jax.checkpoint
    def layer(x, p):
        h = rms(x, p["n"])
        q, k, v = jnp.split(h @ bf(p["qkv"]), 3, -1)
        y = near(*(rope(a.reshape(B, T, H, d)) for a in (q, k)), v)

        def chunks(a):
            return a.reshape(B, T // C, C, N, -1).transpose(0, 3, 1, 2, 4)

        fast = (chunks(jax.nn.silu(a * bf(p["s"][i]))) for i, a in enumerate((q, k)))
        fast = [bf(a / (jnp.linalg.norm(a.astype(jnp.float32), axis=-1, keepdims=True) + 1e-5)) for a in fast]
        rate = chunks(jax.nn.softplus((h @ bf(p["r"])).astype(jnp.float32)))[..., 0]
        start = {i: p[i] for i in "acb"}
        z = jax.vmap(jax.vmap(remember), (None, 0, 0, 0, 0))(start, *fast, chunks(jax.nn.silu(v)), rate)
        z = rms(z.transpose(0, 2, 3, 1, 4), p["y"]).reshape(B, T, D)
        x = x + (y + z) @ bf(p["o"])
        h = rms(x, p["m"])
        return x + (jax.nn.silu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["z"]), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"])[t], ps["l"])
        return cross_entropy((rms(x, ps["n"]) @ bf(ps["h"]))[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), l=stacked(L, shapes), n=rnd(D), h=rnd(D, V))

    return loss, params, dict(t=(B, T)), ADAMW


def _half_weights(state, g, lr=3e-4):
    """AdamW on weights in f32 of which those in bf16 are a copy; state (copy, weights, two moments)."""
    _, p, m, v = state
    g = clipped(jax.tree.map(lambda a: a.astype(jnp.float32), g))
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
    v = jax.tree.map(lambda a, b: 0.95 * a + 0.05 * b * b, v, g)
    p = jax.tree.map(lambda p, a, b: p - lr * (a / (jnp.sqrt(b) + 1e-8) + 0.1 * p), p, m, v)
    return jax.tree.map(bf, p), p, m, v


def llada(D=2048, F=5632, H=16, T=2048, B=4, V=32768, L=3):
    """Text by masked diffusion: each row masked at a rate of its own, attention both ways by a kernel, losses of what
    is masked over the rate, weights in bf16 beside those in f32, layers unrolled.
    """
    d = D // H
    shapes = dict(n=(D,), qkv=(3, D, H, d), o=(H, d, D), m=(D,), g=(2, D, F), w=(F, D))

    def loss(ps, b):
        t = tokens(b["t"], V)
        rate = 1e-3 + (1 - 1e-3) * b["r"][:, None]
        hidden = b["u"] < rate
        x = ps["e"][jnp.where(hidden, V, t)]
        for p in ps["l"]:
            q, k, v = jnp.einsum("btd,cdhk->cbthk", rms(x, p["n"]), p["qkv"])
            y = jax.nn.dot_product_attention(rope(q), rope(k), v, implementation="cudnn")
            x = x + jnp.einsum("bthk,hkd->btd", y, p["o"])
            gate, up = jnp.einsum("btd,cdf->cbtf", rms(x, p["m"]), p["g"])
            x = x + jnp.einsum("btf,fd->btd", jax.nn.silu(gate) * up, p["w"])
        logits = jnp.einsum("btd,dv->btv", rms(x, ps["n"]), ps["h"], preferred_element_type=jnp.float32)
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), t[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(hidden, found / rate, 0.0)) / (B * T)

    def params():
        return dict(e=rnd(V + 1, D), l=listed(L, shapes), n=rnd(D), h=rnd(D, V))

    def start(p):
        return jax.tree.map(bf, p), p, *(jax.tree.map(jnp.zeros_like, p) for _ in range(2))

    training = Training(_half_weights, 3, start=start)
    return loss, params, dict(t=(B, T), u=(B, T), r=(B,)), training


def gradcache(D=1024, H=16, T=32, S=128, B=512, G=2, V=30522, L=4, C=32, n=4):
    """Retrieval over four devices: questions against the passages of all, embedded in chunks without gradients first,
    and again with those of the embeddings, chunk by chunk in a scan, layers in a scan, bf16.
    """

    def encode(ps, t):
        seen = (t > 0)[:, None, None, None]
        x = layer_norm(bf(ps["e"])[t] + bf(ps["p"])[: t.shape[1]], *ps["n"])
        x, _ = lax.scan(lambda x, p: (block(x, p, H, seen), None), x, ps["l"])
        weight = bf(t > 0)[..., None]
        x = (jnp.sum(layer_norm(x, *ps["m"]) * weight, 1) / (jnp.sum(weight, 1) + 1)).astype(jnp.float32)
        return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)

    def contrast(questions, passages):
        both = lax.all_gather(passages, "d", tiled=True)
        label = lax.axis_index("d") * len(passages) + G * jnp.arange(len(questions))
        return cross_entropy(questions @ both.T / 0.02, label) / n

    def gradients(loss):
        def of(p, batch):
            parts = [tokens(batch[k], V) for k in "qp"]
            parts = [a.reshape(-1, C, a.shape[-1]) for a in parts]
            found = [lax.map(lambda t: encode(p, t), a).reshape(-1, D) for a in parts]
            value, slopes = jax.value_and_grad(loss, (0, 1))(*found)

            def add(total, now):
                t, slope = now
                _, back = jax.vjp(lambda p: encode(p, t), p)
                return jax.tree.map(jnp.add, total, back(slope)[0]), None

            total = jax.tree.map(jnp.zeros_like, p)
            for t, slope in zip(parts, slopes, strict=True):
                total, _ = lax.scan(add, total, (t, slope.reshape(-1, C, D)))
            return value, lax.psum(total, "d")

        return of

    def params():
        return dict(e=rnd(V, D), p=rnd(S, D), n=rnd(2, D), l=stacked(L, block_shapes(D)), m=rnd(2, D))

    specs = jax.tree.map(lambda _: PartitionSpec(), jax.eval_shape(params))
    devices = Devices((n,), ("d",), specs, PartitionSpec("d"))
    batch = dict(q=(B, T), p=(G * B, S))
    return contrast, params, batch, Training(ADAMW.update, 2, gradients), devices


def evoformer(N=256, S=128, M=256, Z=128, L=3):
    """Proteins: sequences aligned and pairs of residues, gated attention along rows with biases of pairs and along
    columns, outer products, triangles multiplied and attended, rows dropped, blocks in a scan under jax.checkpoint,
    averaged weights, bf16.
    """
    h, c = 32, 128

    def gated(C, heads, bias=0):
        return dict(n=(2, C), qkv=(3, C, heads, h), g=(C, heads, h), o=(heads, h, C)) | (
            dict(e=(2, bias), b=(bias, heads)) if bias else {}
        )

    triangle = dict(n=(2, Z), a=(Z, c), p=(Z, c), b=(Z, c), q=(Z, c), m=(2, c), o=(c, Z), g=(Z, Z))
    shapes = dict(
        row=gated(M, 8, Z), column=gated(M, 8), up=dict(n=(2, M), a=(M, 4 * M), b=(4 * M, M)),
        outer=dict(n=(2, M), a=(M, h), b=(M, h), o=(h, h, Z)), out=triangle, back=triangle, start=gated(Z, 4, Z),
        end=gated(Z, 4, Z), pair=dict(n=(2, Z), a=(Z, 4 * Z), b=(4 * Z, Z)),
    )  # fmt: skip

    def attend(p, x, z=None):
        x = layer_norm(x, *p["n"])
        q, k, v = jnp.einsum("rnc,schd->srnhd", x, bf(p["qkv"]))
        s = jnp.einsum("rqhd,rkhd->rhqk", q * h**-0.5, k)
        if z is not None:
            s = s + jnp.einsum("qkc,ch->hqk", layer_norm(z, *p["e"]), bf(p["b"]))
        y = jnp.einsum("rhqk,rkhd->rqhd", bf(jax.nn.softmax(s.astype(jnp.float32), -1)), v)
        y = y * jax.nn.sigmoid(jnp.einsum("rnc,chd->rnhd", x, bf(p["g"])))
        return jnp.einsum("rnhd,hdc->rnc", y, bf(p["o"]))

    def multiply(p, z, spec):
        z = layer_norm(z, *p["n"])
        a = jax.nn.sigmoid(z @ bf(p["p"])) * (z @ bf(p["a"]))
        b = jax.nn.sigmoid(z @ bf(p["q"])) * (z @ bf(p["b"]))
        y = layer_norm(jnp.einsum(spec, a, b), *p["m"])
        return jax.nn.sigmoid(z @ bf(p["g"])) * (y @ bf(p["o"]))

    def feed(p, x):
        return jax.nn.relu(layer_norm(x, *p["n"]) @ bf(p["a"])) @ bf(p["b"])

    def dropped(key, x, rate, axis=0):
        """The same for all along an axis."""
        shape = [1 if i == axis else extent for i, extent in enumerate(x.shape)]
        return x * bf(jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate))

    @jax.checkpoint
    def layer(carry, now):
        m, z = carry
        p, key = now
        keys = jax.random.split(key, 5)
        m = m + dropped(keys[0], attend(p["row"], m, z), 0.15)
        m = m + attend(p["column"], m.swapaxes(0, 1)).swapaxes(0, 1)
        m = m + feed(p["up"], m)
        x = layer_norm(m, *p["outer"]["n"])
        a, b = x @ bf(p["outer"]["a"]), x @ bf(p["outer"]["b"])
        z = z + jnp.einsum("sic,sjd,cde->ije", a, b, bf(p["outer"]["o"])) / S
        z = z + dropped(keys[1], multiply(p["out"], z, "ikc,jkc->ijc"), 0.25)
        z = z + dropped(keys[2], multiply(p["back"], z, "kic,kjc->ijc"), 0.25)
        z = z + dropped(keys[3], attend(p["start"], z, z), 0.25)
        y = z.swapaxes(0, 1)
        z = z + dropped(keys[4], attend(p["end"], y, y).swapaxes(0, 1), 0.25, 1)
        return (m, z + feed(p["pair"], z)), None

    def loss(ps, b):
        t, hidden = tokens(b["t"], 22), b["u"] < 0.15
        m = bf(ps["e"])[jnp.where(hidden, 22, t)]
        left, right = bf(ps["i"])[:, t[0]]
        away = jnp.clip(jnp.arange(N)[:, None] - jnp.arange(N), -32, 32) + 32
        z = left[:, None] + right + bf(ps["r"])[away]
        keys = jax.random.split(jax.random.key(tokens(b["s"], 1 << 20)[0]), L)
        (m, z), _ = lax.scan(layer, (m, z), (ps["l"], keys))
        found = jax.nn.log_softmax((layer_norm(m, *ps["n"]) @ bf(ps["m"])).astype(jnp.float32))
        found = jnp.take_along_axis(found, t[..., None], -1)[..., 0]
        told = -jnp.sum(found * hidden) / (jnp.sum(hidden) + 1)
        far = jnp.sqrt(jnp.sum((b["x"][:, None] - b["x"]) ** 2, -1) + 1e-6)
        bins = jnp.searchsorted(jnp.linspace(2.3, 21.7, 63), far)
        return 2.0 * told + 0.3 * cross_entropy((z + z.swapaxes(0, 1)) @ bf(ps["z"]), bins)

    def params():
        layers = {k: stacked(L, s) for k, s in shapes.items()}
        return dict(
            e=rnd(23, M), i=rnd(2, 22, Z), r=rnd(65, Z), l=layers, n=rnd(2, M), m=rnd(M, 22), z=rnd(Z, 64)
        )

    return loss, params, dict(t=(S, N), u=(S, N), x=(N, 3), s=(1,)), AVERAGED


def _rmsprop(state, g, lr=6e-4):
    """RMSProp behind a clipped global norm; state (parameters, mean of squares)."""
    p, v = state
    g = clipped(g, 40.0)
    v = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b * b, v, g)
    return jax.tree.map(lambda p, a, b: p - lr * a * lax.rsqrt(b + 1e-2), p, g, v), v


def impala(T=32, B=40, A=18, U=256, S=84, sizes=(16, 32, 32)):
    """Games: frames of bytes through residual convolutions and maxima, memory cells reset by a scan over time, targets
    corrected for an older policy by a scan in reverse, entropies, RMSProp, f32.
    """

    def see(ps, x):
        x = x.astype(jnp.float32) / 255.0
        for p in ps["c"]:
            x = conv(x, p["i"]) + p["b"]
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
            for one, two in p["r"]:
                x = x + conv(jax.nn.relu(conv(jax.nn.relu(x), one)), two)
        return jax.nn.relu(jax.nn.relu(x).reshape(x.shape[0], -1) @ ps["f"])

    def loss(ps, b):
        x = see(ps, b["x"].reshape(-1, S, S, 4)).reshape(T + 1, B, U)
        action, reward, done = tokens(b["a"], A), jnp.clip(b["r"], -1.0, 1.0), b["d"] > 0.99
        x = jnp.concatenate([x, jax.nn.one_hot(action, A), reward[..., None]], -1)

        def cell(carry, now):
            x, done = now
            carry = jax.tree.map(lambda a: jnp.where(done[:, None], 0.0, a), carry)
            return lstm_cell(ps["w"], carry, x)

        _, h = lax.scan(cell, (b["h"][0], b["h"][1]), (x, done))
        policy, value = jax.nn.log_softmax(h @ ps["p"]), (h @ ps["v"])[..., 0]
        # What was done at a step is seen, and paid, at the next.
        found = jnp.take_along_axis(policy[:-1], action[1:, :, None], -1)[..., 0]
        old = jnp.take_along_axis(jax.nn.log_softmax(b["o"]), action[1:, :, None], -1)[..., 0]
        stop, keep = lax.stop_gradient(value), 0.99 * (1.0 - done[1:])
        rho = jnp.minimum(1.0, jnp.exp(lax.stop_gradient(found) - old))
        delta = rho * (reward[1:] + keep * stop[1:] - stop[:-1])

        def back(later, now):
            delta, keep, rho = now
            later = delta + keep * rho * later
            return later, later

        _, extra = lax.scan(back, jnp.zeros(B), (delta, keep, rho), reverse=True)
        target = stop[:-1] + extra
        gain = rho * (reward[1:] + keep * jnp.concatenate([target[1:], stop[-1:]]) - stop[:-1])
        entropy = -jnp.sum(jnp.exp(policy) * policy, -1)[:-1]
        return jnp.mean(0.5 * (target - value[:-1]) ** 2 - found * gain - 0.01 * entropy)

    def params():
        inputs, side = (4, *sizes[:-1]), S
        for _ in sizes:
            side = (side + 1) // 2
        return dict(
            c=[
                dict(i=rnd(3, 3, i, o), b=rnd(o), r=[(rnd(3, 3, o, o), rnd(3, 3, o, o)) for _ in range(2)])
                for i, o in zip(inputs, sizes, strict=True)
            ],
            f=rnd(side * side * sizes[-1], U), w=rnd(2 * U + A + 1, 4 * U), p=rnd(U, A), v=rnd(U, 1),
        )  # fmt: skip

    frames = jax.ShapeDtypeStruct((T + 1, B, S, S, 4), jnp.uint8)
    batch = dict(x=frames, a=(T + 1, B), r=(T + 1, B), d=(T + 1, B), o=(T, B, A), h=(2, B, U))
    return loss, params, batch, Training(_rmsprop, 1)


def meanflow(D=1024, H=16, S=32, P=2, B=40, L=3):
    """Pictures in one step: mean velocities told from their derivative along the path, forward through the transformer
    by jax.jvp, shifts and scales by two times and the class, classes dropped, layers unrolled, averaged weights, bf16.
    """
    M = (S // P) ** 2
    shapes = dict(
        ada=(D, 6 * D), e=(6 * D,), qkv=(D, 3 * D), o=(D, D), a=(D, 4 * D), c=(4 * D,), b=(4 * D, D)
    )

    def level(p, t):
        f = jnp.exp(-jnp.arange(128) * 9.2 / 128) * t[:, None] * 1000.0
        return jax.nn.silu(bf(jnp.concatenate([jnp.cos(f), jnp.sin(f)], -1)) @ bf(p[0])) @ bf(p[1])

    def norm(x, shift, scale):
        return layer_norm(x, 1.0, 0.0) * (1 + scale[:, None]) + shift[:, None]

    def velocity(ps, z, r, t, y):
        c = jax.nn.silu(level(ps["t"], t) + level(ps["r"], t - r) + bf(ps["y"])[y])
        x = conv(bf(z), ps["i"], P, "VALID").reshape(B, M, D) + bf(ps["p"])
        for p in ps["l"]:
            m = jnp.split(c @ bf(p["ada"]) + bf(p["e"]), 6, -1)
            q, k, v = jnp.moveaxis((norm(x, m[0], m[1]) @ bf(p["qkv"])).reshape(B, M, 3, H, D // H), 2, 0)
            x = x + m[2][:, None] * (jax.nn.dot_product_attention(q, k, v).reshape(B, M, D) @ bf(p["o"]))
            x = x + m[5][:, None] * (jax.nn.gelu(norm(x, m[3], m[4]) @ bf(p["a"]) + bf(p["c"])) @ bf(p["b"]))
        x = (norm(x, *jnp.split(c @ bf(ps["m"]), 2, -1)) @ bf(ps["o"])).astype(jnp.float32)
        return x.reshape(B, S // P, S // P, P, P, 4).transpose(0, 1, 3, 2, 4, 5).reshape(z.shape)

    def loss(ps, b):
        t, r = jnp.maximum(b["t"], b["r"]), jnp.minimum(b["t"], b["r"])
        r = jnp.where(b["f"] < 0.75, t, r)
        y = jnp.where(b["d"] < 0.1, 1000, tokens(b["y"], 1000))
        along = t[:, None, None, None]
        z, v = (1 - along) * b["x"] + along * b["n"], b["n"] - b["x"]
        u, slope = jax.jvp(
            lambda z, r, t: velocity(ps, z, r, t, y), (z, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t))
        )
        away = jnp.sum((u - lax.stop_gradient(v - (t - r)[:, None, None, None] * slope)) ** 2, (1, 2, 3))
        return jnp.mean(away / lax.stop_gradient(away + 1e-2))

    def params():
        return dict(
            i=rnd(P, P, 4, D), p=rnd(M, D), t=[rnd(256, D), rnd(D, D)], r=[rnd(256, D), rnd(D, D)], y=rnd(1001, D),
            l=listed(L, shapes), m=rnd(D, 2 * D), o=rnd(D, P * P * 4),
        )  # fmt: skip

    each = (B, S, S, 4)
    return loss, params, dict(x=each, n=each, t=(B,), r=(B,), f=(B,), d=(B,), y=(B,)), AVERAGED


def fsdp(D=2048, F=8192, H=16, T=2048, B=32, V=50304, L=4, n=8):
    """Weights and batch over eight devices by automatic sharding, biases, learned positions, tied embeddings, layers in a
    scan under jax.checkpoint that keeps products, bf16.
    """
    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    cut = dict(qkv=1, o=0, a=1, c=0, b=0)

    @functools.partial(jax.checkpoint, policy=kept)
    def layer(x, p):
        return block(x, p, H, past(T)), None

    def loss(ps, b):
        t = tokens(b["t"], V)
        x, _ = lax.scan(layer, bf(ps["e"])[t] + bf(ps["p"]), ps["l"])
        return cross_entropy((layer_norm(x, *ps["n"]) @ bf(ps["e"]).T)[:, :-1], t[:, 1:])

    def params():
        return dict(e=rnd(V, D), p=rnd(T, D), l=stacked(L, block_shapes(D, F)), n=rnd(2, D))

    def spec(rank, axis):
        return PartitionSpec(*("f" if i == axis else None for i in range(rank)))

    over = {k: spec(1 + len(s), 1 + cut.get(k, 1)) for k, s in block_shapes(D, F).items()}
    specs = dict(e=spec(2, 1), p=spec(2, 1), l=over, n=spec(2, 1))
    devices = Devices((n,), ("f",), specs, PartitionSpec("f"), automatic=True)
    return loss, params, dict(t=(B, T)), ADAMW, devices


ALL = dict(
    fsdp=fsdp, ring=ring, dbrx=dbrx, zero=zero, nsa=nsa, lact=lact, llada=llada, gradcache=gradcache, evoformer=evoformer,
    impala=impala, meanflow=meanflow,
)  # fmt: skip
