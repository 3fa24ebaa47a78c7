"""Programs that say themselves what is computed again: decided anew within a budget, bit by bit the same."""

import dataclasses
import functools
import json

import farrier
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier import _core
from farrier._src import oracle
from farrier._src.drivers.remat import Remat, RematDriver
from farrier._src.pipeline import Context
from jax import lax
from jax.ad_checkpoint import checkpoint_policies
from test_remat_loops import OPTIONS, attend, attend_chunked, layer, normal, weights

CONTEXT = Context(
    function="step",
    platform="cuda",
    partitions=1,
    target=farrier.Target("h100"),
    budget_bytes=None,
    budget_binding=True,
    objective="flops",
    numerics="bitwise",
    max_compiles=3,
    measure=None,
    remark=lambda remark: None,
)


def step(w, x, *, around, scanned=False, attention=attend, key=None):
    """The value and gradient of three layers, each under `around`."""

    def loss(w, x):
        one = around(lambda x, w: layer(x, w, attention=attention, key=key))
        if scanned:
            return (lax.scan(lambda x, w: (one(x, w), None), x, w)[0] ** 2).mean()
        for i in range(3):
            x = one(x, {name: value[i] for name, value in w.items()})
        return (x**2).mean()

    return jax.value_and_grad(loss)(w, x)


def outermost_scan(w, x, *, around, **kwargs):
    """A recurrence in each layer, which jax.checkpoint runs again for its residuals."""

    def one(x, w):
        def cell(state, each):
            state = jnp.tanh(each + state @ w["in"])
            return state, state

        return x + lax.scan(cell, jnp.zeros(x.shape[1:]), x)[1] @ w["out"]

    def loss(w, x):
        for each in w:
            x = around(one)(x, each)
        return (x**2).mean()

    return jax.value_and_grad(loss)(w, x)


def chunks(w, x, *, around, scanned=False, reverse=False, carry=False):
    """Attention in chunks of queries, each under `around`: no stack goes from the loop of chunks to its derivative."""

    def in_chunks(q, k, v):
        def chunk(sum_, part):
            out = around(attend)(part, k, v)
            return sum_ + carry * (out**2).sum(), out

        parts = q.reshape(q.shape[0], 4, -1, *q.shape[2:]).swapaxes(0, 1)
        sum_, out = lax.scan(chunk, jnp.float32(0), parts, reverse=reverse)
        return out.swapaxes(0, 1).reshape(q.shape) + sum_

    return step(w, x, around=lambda f: f, scanned=scanned, attention=in_chunks)


ARGUMENTS = weights(3), normal(9, 2, 4, 8)
IN_CHUNKS = weights(3), normal(9, 2, 8, 8)
RECURRENT = [{"in": normal(i, 8, 8), "out": normal(5 + i, 8, 8)} for i in range(2)], normal(9, 6, 2, 8)
nothing = jax.checkpoint
dots = functools.partial(jax.checkpoint, policy=checkpoint_policies.dots_with_no_batch_dims_saveable)
PROGRAMS = {
    "layers": (step, {"around": nothing}, ARGUMENTS),
    "layers, products saved": (step, {"around": dots}, ARGUMENTS),
    "dropout": (step, {"around": nothing, "key": jax.random.key(3)}, ARGUMENTS),
    "loops in layers": (step, {"around": nothing, "attention": attend_chunked}, ARGUMENTS),
    "scan": (step, {"around": nothing, "scanned": True}, ARGUMENTS),
    "loops in a scan": (step, {"around": nothing, "scanned": True, "attention": attend_chunked}, ARGUMENTS),
    "loops run again for more": (outermost_scan, {"around": nothing}, RECURRENT),
    "chunks": (chunks, {"around": nothing}, IN_CHUNKS),
    "chunks from the last": (chunks, {"around": nothing, "reverse": True}, IN_CHUNKS),
    "chunks that hand on": (chunks, {"around": nothing, "carry": True}, IN_CHUNKS),
    "chunks in a scan": (chunks, {"around": nothing, "scanned": True}, IN_CHUNKS),
    "chunks from the last in a scan": (
        chunks,
        {"around": nothing, "scanned": True, "reverse": True},
        IN_CHUNKS,
    ),
    "chunks that hand on in a scan": (chunks, {"around": nothing, "scanned": True, "carry": True}, IN_CHUNKS),
}


def module_of(function, arguments):
    module = jax.jit(function).lower(*arguments).compiler_ir("stablehlo")
    return _core.Module.parse(module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True))


def run(module, arguments):
    device = jax.devices()[0]
    text = bytes(module.print()).decode()
    compiled = oracle.compile_module(text, devices=[device], compiler_options=OPTIONS)
    inputs = [jax.device_put(a, device) for a in jax.tree.leaves(arguments)]
    results = compiled.executable.execute_sharded(inputs).disassemble_into_single_device_arrays()
    return [np.asarray(shards[0]).tobytes() for shards in results]


def flops(module):
    return RematDriver().cost(module, CONTEXT)["flops"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_computed_again_and_means_the_same(name):
    function, options, arguments = PROGRAMS[name]
    written = module_of(functools.partial(function, **options), arguments)
    plain = module_of(functools.partial(function, **{**options, "around": lambda f: f}), arguments)
    assert (RematDriver().afresh(written, CONTEXT) is None) == (function is chunks)
    afresh = RematDriver().afresh(written, CONTEXT, shared=function is chunks)
    assert flops(plain) == flops(afresh) < flops(written)
    assert run(afresh, arguments) == run(written, arguments)


@pytest.mark.parametrize("name", ["layers", "loops in a scan", "chunks", "chunks in a scan"])
def test_a_plan_applies_to_the_program_as_it_is_written(name):
    function, options, arguments = PROGRAMS[name]
    written = module_of(functools.partial(function, **options), arguments)
    driver, shared = RematDriver(Remat(small_bytes=64)), function is chunks
    afresh = driver.afresh(written, CONTEXT, shared=shared)
    need = json.loads(afresh.query("memory.estimate"))["temp"]
    decided = driver.plan(afresh, CONTEXT, temp_budget=int(0.8 * need), host=False)
    plan = driver.from_afresh(decided, decided["predicted"]["after"], afresh, CONTEXT, shared=shared)
    rewritten, said = written.clone(), []
    assert driver.apply(rewritten, plan, remark=said.append) is None
    assert said[0].message.startswith("what jax.checkpoint computes again is decided anew")
    alike = afresh.clone()
    driver.apply(alike, decided)
    assert alike.print() == rewritten.print()
    assert run(rewritten, arguments) == run(written, arguments)


def twice(w, x, *, index=lambda i: i, times=4, given=lambda x: x, drawn=lambda x: x):
    """Two loops over the rows of `x`, neither of which reads what the other writes."""
    rows, out = given(x), jnp.zeros((*x.shape[:-1], w.shape[1]))
    once = lax.fori_loop(0, 4, lambda i, y: y.at[i].set(jnp.tanh(drawn(x[i]) @ w)), out)
    again = lax.fori_loop(0, times, lambda i, s: s + i * jnp.sin(drawn(rows[index(i)]) @ w), out[0])
    return once, again


@pytest.mark.parametrize(
    ("options", "is_same"),
    [
        ({}, True),
        ({"index": lambda i: 3 - i}, True),
        ({"index": lambda i: (i + 1) % 4}, False),
        ({"times": 3}, False),
        ({"given": lambda x: 2 * x}, False),
        ({"drawn": lambda x: x + lax.rng_uniform(0.0, 1.0, x.shape)}, False),
    ],
    ids=["in order", "mirrored", "other rows", "fewer rows", "other values", "drawn anew"],
)
def test_loops_that_are_given_the_same_compute_it_once(options, is_same):
    arguments = normal(1, 8, 8), normal(2, 4, 8, 8)
    written = module_of(functools.partial(twice, **options), arguments)
    afresh = RematDriver().afresh(written, CONTEXT, shared=True)
    assert (afresh is not None) == is_same
    if is_same:
        assert flops(afresh) == flops(written) / 2
        assert run(afresh, arguments) == run(written, arguments)


def test_what_is_shared_is_apart_from_what_is_computed_again_already():
    function, options, arguments = PROGRAMS["loops in layers"]
    written = module_of(functools.partial(function, **options), arguments)
    assert RematDriver().afresh(written, CONTEXT) is not None
    assert RematDriver().afresh(written, CONTEXT, shared=True) is None


def test_a_product_is_kept_only_where_a_stack_is_faster():
    """Scores of short rows take longer to write and read than to compute again; where FLOPs count they are kept."""

    def kept(width, objective):
        arguments = normal(1, width, 512), normal(2, 4, 4096, width)
        written = module_of(twice, arguments)
        context = dataclasses.replace(CONTEXT, objective=objective)
        return RematDriver().afresh(written, context, shared=True) is not None

    assert [kept(64, "time"), kept(64, "flops"), kept(8192, "time")] == [False, True, True]


def test_programs_without_recomputation_and_options_that_keep_it_are_left_alone():
    function, options, arguments = PROGRAMS["scan"]
    plain = module_of(functools.partial(function, **{**options, "around": lambda f: f}), arguments)
    assert RematDriver().afresh(plain, CONTEXT) is None
    assert RematDriver().afresh(plain, CONTEXT, shared=True) is None
    written = module_of(functools.partial(function, **options), arguments)
    assert RematDriver(Remat(checkpoint="keep")).afresh(written, CONTEXT) is None


def test_the_gpu_compiler_confirms_that_the_room_is_used():
    """A budget above what the annotated step needs: XLA:GPU counts the FLOPs of the step without annotations."""
    target = farrier.Target("h100")
    place = jax.sharding.NamedSharding(target.mesh((1,), ("x",)), jax.sharding.PartitionSpec())
    w = [jax.ShapeDtypeStruct((1024, 1024), np.float32, sharding=place)] * 4
    x = jax.ShapeDtypeStruct((4096, 1024), np.float32, sharding=place)

    def loss(around, w, x):
        def pair(x, one, two):
            return x + jnp.tanh(jnp.tanh(x @ one) @ two)

        for one, two in zip(w[::2], w[1::2], strict=True):
            x = around(pair)(x, one, two)
        return (x**2).mean()

    annotated, plain = (jax.jit(jax.grad(functools.partial(loss, a))) for a in (jax.checkpoint, lambda f: f))
    needs = oracle.measure(plain.lower(w, x), target)
    plan = farrier.optimize(annotated, memory_budget=needs.total_bytes, target=target, passes=["remat"]).plan(
        w, x
    )
    assert plan.measured["before"]["flops"] > 1.1 * needs.flops
    assert plan.measured["after"]["flops"] == needs.flops
    assert plan.measured["after"]["total_bytes"] <= needs.total_bytes


def test_the_gpu_compiler_confirms_that_logits_in_chunks_are_computed_once():
    """The chunks' own jax.checkpoint leaves nothing between the loops; above its need, a budget has room for the logits."""
    target = farrier.Target("h100")
    place = jax.sharding.NamedSharding(target.mesh((1,), ("x",)), jax.sharding.PartitionSpec())
    w, x = (jax.ShapeDtypeStruct(shape, np.float32, sharding=place) for shape in ((1024, 8192), (4096, 1024)))

    def loss(around, w, x):
        def one(sum_, rows):
            return sum_ + around(lambda rows: jax.nn.logsumexp(rows @ w, -1).sum())(rows), None

        return lax.scan(one, jnp.float32(0), x.reshape(4, -1, x.shape[1]))[0]

    chunked, plain = (
        jax.jit(jax.value_and_grad(functools.partial(loss, around), argnums=(0, 1)))
        for around in (jax.checkpoint, lambda f: f)
    )
    needs = oracle.measure(plain.lower(w, x), target)
    plan = farrier.optimize(
        chunked, memory_budget=needs.total_bytes, target=target, passes=[Remat(offload=False)]
    ).plan(w, x)
    assert plan.measured["before"]["flops"] > 1.2 * needs.flops
    assert plan.measured["after"]["flops"] == needs.flops
    assert plan.passes["remat"]["shared"]
