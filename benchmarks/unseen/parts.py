"""What steps of large models share: norms, positions, losses, optimizers, how gradients are summed."""

import jax
import jax.numpy as jnp
from jax import lax

from unseen.steps import Training, adam


def bf(a):
    """Computed in bf16."""
    return a.astype(jnp.bfloat16)


def rms(x, g):
    """Root mean square norm, statistics in f32, the result in x's type."""
    h = x.astype(jnp.float32)
    h = h * lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)
    return (h * g).astype(x.dtype)


def layer_norm(x, g, b):
    """Layer norm with statistics in f32, the result in x's type."""
    h = x.astype(jnp.float32)
    m = h.mean(-1, keepdims=True)
    v = jnp.square(h - m).mean(-1, keepdims=True)
    return ((h - m) * lax.rsqrt(v + 1e-5) * g + b).astype(x.dtype)


def gated(h, p):
    """Feed-forward part of h whose one product gates the other, in h's type."""
    return (jax.nn.silu(h @ bf(p["g"])) * (h @ bf(p["u"]))) @ bf(p["w"])


def rope(x, base=10000.0):
    """Rotary positions of x [batch, time, heads, width]."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / base ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def turned(x, at, base=5e5):
    """Rotary positions of x [batch, time, heads, width] whose times are at the places `at`, bf16."""
    half = x.shape[-1] // 2
    angle = at[:, None] / base ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return bf(jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1))


def stretches(device, devices, half):
    """The places of the early and the late stretch of a sequence, of length `half` each, that a device has."""
    near = jnp.arange(half)
    return jnp.concatenate([device * half + near, (2 * devices - 1 - device) * half + near])


def conv(x, w, s=1, pad="SAME", groups=1):
    """Convolution of x [batch, extents, channels], one to three of them, in x's type."""
    over = "DHW"[5 - x.ndim :]
    return lax.conv_general_dilated(
        x, w.astype(x.dtype), (s,) * len(over), pad, dimension_numbers=(f"N{over}C", f"{over}IO", f"N{over}C"),
        feature_group_count=groups,
    )  # fmt: skip


def tokens(x, vocabulary):
    """Whole numbers below `vocabulary` of a float array."""
    return jnp.abs(x * 1e4).astype(jnp.int32) % vocabulary


def cross_entropy(logits, labels, smoothing=0.0, z=0.0):
    """Mean over all positions, in f32, with label smoothing and the square of the normaliser."""
    logits = logits.astype(jnp.float32)
    norm = jax.nn.logsumexp(logits, -1)
    found = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    loss = norm - (1 - smoothing) * found
    if smoothing:
        loss = loss - smoothing * logits.mean(-1)
    return jnp.mean(loss + z * norm**2)


def clipped(g, most=1.0, norm=None):
    """Gradients scaled down to a global norm, which over several devices is the caller's to say."""
    if norm is None:
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(g)))
    return jax.tree.map(lambda a: a * jnp.minimum(1.0, most / (norm + 1e-6)), g)


def _adamw(state, g, lr=1e-3):
    """AdamW behind a clipped global norm; state (parameters, two moments)."""
    p, m, v = state
    g = clipped(g)
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
    v = jax.tree.map(lambda a, b: 0.95 * a + 0.05 * b * b, v, g)
    p = jax.tree.map(lambda p, a, b: p - lr * (a / (jnp.sqrt(b) + 1e-8) + 0.1 * p), p, m, v)
    return p, m, v


def _lion(state, g, lr=1e-4):
    """Lion; state (parameters, momentum)."""
    p, m = state
    p = jax.tree.map(lambda p, a, b: p - lr * (jnp.sign(0.9 * a + 0.1 * b) + 0.1 * p), p, m, g)
    return p, jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, m, g)


def _momentum(state, g, lr=1e-2):
    """SGD with Nesterov's momentum; state (parameters, momentum)."""
    p, m = state
    m = jax.tree.map(lambda a, b: 0.9 * a + b, m, g)
    return jax.tree.map(lambda p, a, b: p - lr * (b + 0.9 * a), p, m, g), m


def _nadam(state, g, lr=1e-3):
    """NAdam; state (parameters, two moments)."""
    p, m, v = state
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
    v = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, v, g)
    p = jax.tree.map(lambda p, a, b, c: p - lr * (0.9 * a + 0.1 * c) / (jnp.sqrt(b) + 1e-8), p, m, v, g)
    return p, m, v


def _averaged(state, g, lr=1e-4):
    """Adam with averaged weights; state (parameters, two moments, average)."""
    *state, average = state
    state = adam(state[0], g, *state[1:], lr=lr)
    return *state, jax.tree.map(lambda a, p: 0.999 * a + 0.001 * p, average, state[0])


def _adafactor(state, g, lr=1e-3):
    """Second moments by rows and columns, computed anew; state (parameters, momentum)."""

    def scaled(g):
        if g.ndim < 2:
            return g * lax.rsqrt(g * g + 1e-30)
        square = g * g + 1e-30
        rows, columns = square.mean(-1, keepdims=True), square.mean(-2, keepdims=True)
        return g * lax.rsqrt(rows / rows.mean(-2, keepdims=True)) * lax.rsqrt(columns)

    p, m = state
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * scaled(b), m, g)
    return jax.tree.map(lambda p, a: p - lr * a, p, m), m


def _muon(state, g, lr=2e-2):
    """Muon for stacked matrices, signs for the rest; state (parameters, momentum)."""

    def direction(a):
        if a.ndim < 3:
            return 0.1 * jnp.sign(a)
        x = a if a.shape[-2] <= a.shape[-1] else a.swapaxes(-1, -2)
        x = bf(x * lax.rsqrt(jnp.sum(x * x, (-2, -1), keepdims=True) + 1e-14))
        for _ in range(5):
            s = x @ x.swapaxes(-1, -2)
            x = 3.4445 * x + (2.0315 * s @ s - 4.775 * s) @ x
        x = x if x.shape == a.shape else x.swapaxes(-1, -2)
        return x.astype(jnp.float32) * max(1.0, a.shape[-2] / a.shape[-1]) ** 0.5

    p, m = state
    m = jax.tree.map(lambda a, b: 0.95 * a + b, m, g)
    return jax.tree.map(lambda p, a, b: p - lr * (direction(b + 0.95 * a) + 0.1 * p), p, m, g), m


def accumulated(parts):
    """Gradients of a loss summed over so many parts of the batch in a scan."""

    def of(loss):
        def gradients(p, batch):
            def add(total, part):
                return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(p, part)), None

            start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, p))
            split = jax.tree.map(lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:]), batch)
            return jax.tree.map(lambda a: a / parts, lax.scan(add, start, split)[0])

        return gradients

    return of


def summed(axis):
    """Gradients of a device's part of a loss, summed over the devices of an axis."""

    def of(loss):
        def gradients(p, batch):
            value, g = jax.value_and_grad(loss)(p, batch)
            return value, lax.psum(g, axis)

        return gradients

    return of


ADAMW, NADAM = Training(_adamw), Training(_nadam)
AVERAGED, ADAFACTOR = Training(_averaged, 3), Training(_adafactor, 1)
MOMENTUM, LION, MUON = Training(_momentum, 1), Training(_lion, 1), Training(_muon, 1)
