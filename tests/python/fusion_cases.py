"""Ways of writing attention and cross-entropy, and how to run what the fusion pass makes of them."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from farrier._src import interchange
from farrier._src.fusion import reference
from jax import lax
from jax._src import compiler
from jax.interpreters import mlir
from jaxlib import _jax


def rewrite(lowered, options: str = ""):
    """(module, result) after farrier-fusion on what `jax.jit(f).lower(...)` gave."""
    module = interchange.to_core(lowered.compiler_ir("stablehlo"))
    result = module.run(f"builtin.module(farrier-fusion{{{options}}})")
    return module, result


def reasons(result) -> list[str]:
    return [remark.message for remark in result.remarks if remark.kind == "missed"]


def applied(result) -> dict[str, int]:
    return {name: n for name, n in result.passes[0].counters.items() if n}


def execute(module, *arguments):
    """Runs a jaxlib module on this machine's first device."""
    device = jax.devices()[0]
    options = compiler.get_compile_options(
        num_replicas=1,
        num_partitions=1,
        device_assignment=np.array([[device]], dtype=object),
        # Without these XLA:CPU contracts multiplications and additions differently when fusions change.
        env_options_overrides={"xla_allow_excess_precision": False, "xla_cpu_max_isa": "AVX"},
        detailed_logging=False,
        backend=device.client,
    )
    with module.context:
        copy = mlir.ir.Module.parse(module.operation.get_asm(binary=True, print_generic_op_form=True))
        executable = compiler.backend_compile_and_load(
            device.client, copy, _jax.DeviceList((device,)), options, []
        )
    leaves = [jax.device_put(leaf, device) for leaf in jax.tree.leaves(arguments)]
    results = executable.execute_sharded(leaves).disassemble_into_single_device_arrays()
    return [np.asarray(shards[0]) for shards in results]


def run_original(lowered, *arguments):
    return execute(lowered.compiler_ir("stablehlo"), *arguments)


def run_rewritten(module, *arguments, exact=False):
    """Runs farrier's module with every kernel replaced by its reference."""
    context = mlir.make_ir_context()
    return execute(reference.with_references(interchange.to_jaxlib(module, context), exact=exact), *arguments)


def error(got, truth) -> float:
    """Relative error in the 2-norm."""
    got, truth = np.asarray(got, np.float64), np.asarray(truth, np.float64)
    return float(np.linalg.norm(got - truth) / max(np.linalg.norm(truth), 1e-30))


# --- attention --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sizes:
    batch: int = 2
    length: int = 48
    heads: int = 4
    key_heads: int = 2
    width: int = 16

    def arguments(self, dtype=jnp.bfloat16, seed: int = 0):
        random = np.random.default_rng(seed)
        shape = (self.batch, self.length)
        return [
            jnp.asarray(random.standard_normal((*shape, heads, self.width)), dtype)
            for heads in (self.heads, self.key_heads, self.key_heads)
        ]


def positions(length):
    return lax.broadcasted_iota(jnp.int32, (length, length), 0), lax.broadcasted_iota(
        jnp.int32, (length, length), 1
    )


def tril(length):
    return jnp.tril(jnp.ones((length, length), bool))


def grouped(
    mask: Callable | None = None, *, scale_queries: bool = False, softmax=jnp.float32, cap: float = 0
):
    """einsum attention over grouped heads; `mask` maps scores to masked scores."""

    def attend(q, k, v):
        batch, length, heads, width = q.shape
        groups = k.shape[2]
        queries = q.reshape(batch, length, groups, heads // groups, width)
        if scale_queries:
            queries = queries * jnp.asarray(width**-0.5, q.dtype)
        scores = jnp.einsum("bskgd,btkd->bkgst", queries, k, preferred_element_type=jnp.float32)
        if not scale_queries:
            scores = scores * width**-0.5
        if cap:
            scores = cap * jnp.tanh(scores / cap)
        if mask is not None:
            scores = mask(scores)
        weights = jax.nn.softmax(scores.astype(softmax), axis=-1).astype(q.dtype)
        return jnp.einsum("bkgst,btkd->bskgd", weights, v).reshape(q.shape)

    return attend


def masked(see: Callable, fill=-1e30):
    return lambda scores: jnp.where(see(*positions(scores.shape[-1])), scores, fill)


causal = masked(lambda i, j: i >= j)


def window(size: int):
    return masked(lambda i, j: (i >= j) & (i - j < size))


def repeated_heads(q, k, v):
    """Keys and values repeated to as many heads as queries; divides by the root of the width."""
    length, heads = q.shape[1:3]
    k, v = (jnp.repeat(x, heads // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    scores = jnp.where(tril(length)[None, None], scores, -1e30).astype(jnp.float32)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1).astype(q.dtype), v)


def head_major(q, k, v):
    """[B, H, S, D] with the matmul operator and a hand-written softmax."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = (q @ k.swapaxes(-1, -2)).astype(jnp.float32) * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return (weights.astype(q.dtype) @ v).transpose(0, 2, 1, 3)


def multi_query(q, k, v):
    scores = jnp.einsum("bshd,btd->bhst", q, k[:, :, 0], preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(causal(scores * q.shape[-1] ** -0.5), -1).astype(q.dtype)
    return jnp.einsum("bhst,btd->bshd", weights, v[:, :, 0])


def mapped(q, k, v):
    """One head, mapped over heads and batch."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))

    def one(q, k, v):
        at = jnp.arange(q.shape[0])
        scores = (q @ k.T).astype(jnp.float32) * q.shape[-1] ** -0.5
        return jax.nn.softmax(jnp.where(at[:, None] >= at, scores, -jnp.inf), -1).astype(q.dtype) @ v

    return jax.vmap(jax.vmap(one, (1, 1, 1), 1))(q, k, v)


def with_logsumexp(q, k, v):
    scores = _scores(q, k)
    weights = jnp.exp(scores - jax.nn.logsumexp(scores, -1, keepdims=True)).astype(q.dtype)
    return jnp.einsum("bkgst,btkd->bskgd", weights, v).reshape(q.shape)


def _scores(q, k):
    queries = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    return (
        jnp.einsum("bskgd,btkd->bkgst", queries, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    )


def normalised_late(q, k, v):
    scores = _scores(q, k)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    mixed = jnp.einsum("bkgst,btkd->bskgd", weights.astype(q.dtype), v)
    return (mixed / weights.sum(-1).transpose(0, 3, 1, 2)[..., None]).astype(q.dtype).reshape(q.shape)


def library(**options):
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="xla", **options)


def with_dropout(q, k, v):
    weights = jax.nn.softmax(causal(_scores(q, k)), -1)
    keep = jax.random.bernoulli(jax.random.key(0), 0.9, weights.shape)
    return jnp.einsum("bkgst,btkd->bskgd", jnp.where(keep, weights / 0.9, 0).astype(q.dtype), v).reshape(
        q.shape
    )


def probabilities_kept(q, k, v):
    weights = jax.nn.softmax(causal(_scores(q, k)), -1).astype(q.dtype)
    return jnp.einsum("bkgst,btkd->bskgd", weights, v).reshape(q.shape) + weights.sum().astype(q.dtype)


def wide_probabilities(q, k, v):
    """Probabilities meet the values in f32."""
    weights = jax.nn.softmax(causal(_scores(q, k)), -1)
    return jnp.einsum("bkgst,btkd->bskgd", weights, v).reshape(q.shape).astype(q.dtype)


MATCHED = {
    "causal": grouped(causal),
    "no mask": grouped(),
    "tril mask": grouped(lambda s: jnp.where(tril(s.shape[-1]), s, jnp.finfo(jnp.float32).min)),
    "additive mask": grouped(lambda s: s + jnp.where(tril(s.shape[-1]), 0.0, -1e9)),
    "sliding window": grouped(window(8)),
    "scale on queries": grouped(causal, scale_queries=True),
    "library": library(is_causal=True),
    "library window": library(is_causal=True, local_window_size=(7, 0)),
    "library no mask": library(),
    "checkpoint": jax.checkpoint(grouped(causal)),
    "repeated heads": repeated_heads,
    "head major": head_major,
    "multi query": multi_query,
    "vmap": mapped,
    "logsumexp": with_logsumexp,
    "checkered mask": grouped(masked(lambda i, j: (i >= j) & ((i + j) % 2 == 0))),
    "anticausal": grouped(masked(lambda i, j: i <= j)),
    "one key off": grouped(masked(lambda i, j: (i >= j) & ((i != 40) | (j != 3)))),
}

REFUSED = {
    "normalised after the product": (normalised_late, "scores or probabilities are"),
    "ALiBi": (grouped(lambda s: s - 0.1 * jnp.abs(jnp.subtract(*positions(s.shape[-1])))), "more digits"),
    "probabilities in f32": (wide_probabilities, "numerics=relaxed allows it"),
    "soft-capping": (grouped(causal, cap=20.0), "nonlinear function"),
    "softmax in bf16": (grouped(causal, softmax=jnp.bfloat16), "numerics=relaxed allows it"),
    "dropout": (with_dropout, "scores or probabilities|only at run time"),
    "probabilities kept": (probabilities_kept, "also read by"),
}


def with_gradients(attend):
    """(loss, output), gradients by q, k and v."""

    def loss(*arguments):
        out = attend(*arguments)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)


def calls(module) -> list[str]:
    """Targets of the custom calls of a module, in program order."""
    return re.findall(rb'call_target_name = "([^"]*)"', module.print())


# --- cross-entropy ----------------------------------------------------------------------------------------


def _logits(x, w):
    return jnp.einsum("bsd,dv->bsv", x, w, preferred_element_type=jnp.float32)


def negative_log_likelihood(x, w, labels):
    return negative_log_likelihood_of(_logits(x, w), labels)


def negative_log_likelihood_of(logits, labels):
    top = lax.stop_gradient(logits.max(-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - top), -1)) + top[..., 0]
    return jnp.mean(log_sum - jnp.take_along_axis(logits, labels[..., None], -1)[..., 0])


def one_hot(x, w, labels):
    logits = jnp.einsum("bsd,dv->bsv", x, w).astype(jnp.float32)
    chosen = jax.nn.one_hot(labels, w.shape[1]) * jax.nn.log_softmax(logits, -1)
    return -jnp.mean(jnp.sum(chosen, -1))


def everything(x, w, labels):
    """Soft-capping, label smoothing, z-loss, masked tokens."""
    logits = 30 * jnp.tanh(_logits(x, w) / 30)
    targets = jax.nn.one_hot(labels, w.shape[1]) * 0.9 + 0.1 / w.shape[1]
    log_sum = jax.nn.logsumexp(logits, -1, keepdims=True)
    loss = -jnp.sum(targets * (logits - log_sum), -1) + 1e-4 * log_sum[..., 0] ** 2
    mask = (labels != 3).astype(jnp.float32)
    return jnp.sum(loss * mask) / jnp.sum(mask)


def flattened(x, w, labels):
    logits = (x @ w).astype(jnp.float32).reshape(-1, w.shape[1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels.reshape(-1, 1), -1)
    return -chosen.mean()


def tied(x, w, labels):
    """Weights shared with an embedding, [vocabulary, width]."""
    return negative_log_likelihood(x, w.T, labels)


def by_row_number(x, w, labels):
    """Labels picked with advanced indexing, from logarithms and from logits."""
    flat = _logits(x, w).reshape(-1, w.shape[1])
    rows, chosen = jnp.arange(flat.shape[0]), labels.reshape(-1)
    likelihood = jax.nn.log_softmax(flat)[rows, chosen]
    return -jnp.mean(likelihood) + 1e-3 * jnp.mean(flat[rows, chosen] ** 2)


def by_two_row_numbers(x, w, labels):
    logits = jax.nn.log_softmax(_logits(x, w))
    batch, length = labels.shape
    return -logits[jnp.arange(batch)[:, None], jnp.arange(length), labels].mean()


def shifted(x, w, labels):
    """The next token's likelihood: the last logits are cut off."""
    return negative_log_likelihood_of(_logits(x, w)[:, :-1], labels[:, 1:])


def focal(x, w, labels):
    """Each token's loss weighed by a function of itself."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(_logits(x, w)), labels[..., None], -1)[..., 0]
    return jnp.mean(-((1 - jnp.exp(chosen)) ** 2) * chosen)


def summed(x, w, labels):
    """Sums over all tokens that no product makes: of squared logits, and of a bias's gradient."""
    logits = _logits(x, w) + 0.1 * w.astype(jnp.float32).sum(0)
    return negative_log_likelihood_of(logits, labels) + 1e-3 * jnp.mean(logits**2)


CROSS_ENTROPY = {
    "plain": negative_log_likelihood,
    "one-hot": one_hot,
    "everything": everything,
    "flattened": flattened,
    "checkpoint": jax.checkpoint(everything),
    "row number": by_row_number,
    "two row numbers": by_two_row_numbers,
    "focal": focal,
    "summed": summed,
}


def cross_entropy_arguments(batch=2, length=32, width=16, vocabulary=128, dtype=jnp.float32, seed=0):
    random = np.random.default_rng(seed)
    return (
        jnp.asarray(random.standard_normal((batch, length, width)), dtype),
        jnp.asarray(random.standard_normal((width, vocabulary)) * 0.3, dtype),
        jnp.asarray(random.integers(0, vocabulary, (batch, length)), jnp.int32),
    )
