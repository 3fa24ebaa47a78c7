"""Ways of writing a mixture of experts with one-hot dispatch and combine tensors."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def experts(rows, weights):
    """Each expert's rows, [E, C, D], through its two matrices."""
    hidden = jnp.tanh(jnp.einsum("ecd,edf->ecf", rows, weights["up"]))
    return jnp.einsum("ecf,efd->ecd", hidden, weights["down"])


def route(x, weights, chosen):
    top, index = lax.top_k(jnp.einsum("td,de->te", x, weights["router"]).astype(jnp.float32), chosen)
    return jax.nn.softmax(top, -1), index


def counted_over_choices(x, weights, chosen, capacity):
    """Slots by a running count over (token, choice); the choices of a token are summed at the end."""
    (tokens, _), count = x.shape, weights["up"].shape[0]
    share, index = route(x, weights, chosen)
    picked = jax.nn.one_hot(index, count, dtype=jnp.float32)
    order = jnp.cumsum(picked.reshape(-1, count), 0).reshape(tokens, chosen, count)
    slot = jnp.where(picked > 0, order - 1, capacity).astype(jnp.int32)
    place = jax.nn.one_hot(slot, capacity, dtype=x.dtype)
    dispatch = place.sum(1)
    combine = jnp.einsum("tkec,tk->tec", place, share.astype(x.dtype))
    out = experts(jnp.einsum("tec,td->ecd", dispatch, x), weights)
    return jnp.einsum("tec,ecd->td", combine, out)


def largest_priority(x, weights, chosen, capacity):
    """First choices of all tokens before second ones; a token's slot is the largest over its choices."""
    (tokens, _), count = x.shape, weights["up"].shape[0]
    probabilities = jax.nn.softmax(jnp.einsum("td,de->te", x, weights["router"]).astype(jnp.float32), -1)
    _, index = lax.top_k(probabilities, chosen)
    mask = jax.nn.one_hot(index.T.reshape(-1), count, dtype=jnp.int32)
    priority = jnp.cumsum(mask, 0) * mask - 1
    priority = priority.reshape(chosen, tokens, count).swapaxes(0, 1).max(1)
    dispatch = jax.nn.one_hot(priority, capacity, dtype=jnp.bool_)
    combine = jnp.einsum("te,tec->tec", probabilities, dispatch)
    rows = jnp.einsum("td,tec->ecd", x, dispatch.astype(x.dtype))
    return jnp.einsum("ecd,tec->td", experts(rows, weights), combine.astype(x.dtype))


def batched_with_slice(x, weights, chosen, capacity):
    """Groups of tokens, slots counted from one, slot zero cut off; dispatch is where combine is not zero."""
    count = weights["up"].shape[0]
    x = x.reshape(2, -1, x.shape[-1])
    batch, length, _ = x.shape
    probabilities = jax.nn.softmax(jnp.einsum("btd,de->bte", x, weights["router"]).astype(jnp.float32), -1)
    _, index = lax.top_k(probabilities, chosen)
    mask = jax.nn.one_hot(index, count, dtype=jnp.int32)
    fused = mask.reshape(batch, length * chosen, count)
    counts = jnp.cumsum(fused, 1)
    kept = (mask * (counts.reshape(mask.shape) <= capacity)).sum(2)
    probabilities = probabilities * kept
    position = (fused * counts).reshape(mask.shape).sum(2) * kept
    places = jax.nn.one_hot(position, capacity + 1, dtype=jnp.int32)
    combine = (probabilities[..., None] * places)[..., 1:]
    dispatch = combine.astype(bool)
    rows = jnp.einsum("btd,btec->ebcd", x, dispatch.astype(x.dtype))
    out = experts(rows.reshape(count, batch * capacity, -1), weights).reshape(rows.shape)
    return jnp.einsum("ebcd,btec->btd", out, combine.astype(x.dtype)).reshape(-1, x.shape[-1])


def one_expert(x, weights, chosen, capacity):
    """One expert a token; mask and slot are multiplied out of two one-hot vectors."""
    del chosen
    count = weights["up"].shape[0]
    probabilities = jax.nn.softmax(jnp.einsum("td,de->te", x, weights["router"]).astype(jnp.float32), -1)
    gate, index = probabilities.max(-1), probabilities.argmax(-1)
    mask = jax.nn.one_hot(index, count)
    position = ((jnp.cumsum(mask, 0) - mask) * mask).sum(-1)
    mask = mask * (position < capacity)[:, None]
    combine = (
        gate[:, None, None] * mask[..., None] * jax.nn.one_hot(position.astype(jnp.int32), capacity)[:, None]
    )
    dispatch = (combine > 0).astype(x.dtype)
    out = experts(jnp.einsum("tec,td->ecd", dispatch, x), weights)
    return jnp.einsum("tec,ecd->td", combine.astype(x.dtype), out)


def two_masks(x, weights, chosen, capacity):
    """Two choices, each with its own mask; the second's slots come after all of the first's."""
    del chosen
    count = weights["up"].shape[0]
    probabilities = jax.nn.softmax(jnp.einsum("td,de->te", x, weights["router"]).astype(jnp.float32), -1)
    first = jax.nn.one_hot(probabilities.argmax(-1), count)
    second = jax.nn.one_hot((probabilities * (1 - first)).argmax(-1), count)
    positions = [
        ((jnp.cumsum(first, 0) - first) * first).sum(-1),
        ((jnp.cumsum(second, 0) - second + first.sum(0)) * second).sum(-1),
    ]
    combine = sum(
        jnp.einsum(
            "t,te,tc->tec",
            (probabilities * mask).sum(-1),
            mask,
            jax.nn.one_hot(position.astype(jnp.int32), capacity),
        )
        for mask, position in zip((first, second), positions, strict=True)
    )
    dispatch = (combine != 0).astype(x.dtype)
    out = experts(jnp.einsum("tec,td->ecd", dispatch, x), weights)
    return jnp.einsum("tec,ecd->td", combine.astype(x.dtype), out)


MATCHED = {
    "counted over choices": counted_over_choices,
    "checkpoint": jax.checkpoint(counted_over_choices, static_argnums=(2, 3)),
    "largest priority": largest_priority,
    "batched with slice": batched_with_slice,
    "one expert": one_expert,
    "two masks": two_masks,
}

WITHOUT_MASKS = ("counted over choices", "checkpoint", "largest priority")
"""Of which not even the router's gradient keeps a tensor over tokens, experts and slots."""


def arguments(tokens=24, width=8, hidden=12, count=4, dtype=jnp.float32, seed=0):
    random = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(random.standard_normal(shape), dtype)

    return draw(tokens, width), {
        "router": draw(width, count),
        "up": draw(count, width, hidden),
        "down": draw(count, hidden, width),
    }


def with_gradients(layer, chosen=2, capacity=8):
    """(x, weights) -> (loss, output), gradients by both."""

    def loss(x, weights):
        out = layer(x, weights, chosen, capacity)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    return jax.value_and_grad(loss, (0, 1), has_aux=True)
