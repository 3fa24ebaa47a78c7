"""Programs that say themselves what is computed again: decided anew within a budget, bit by bit the same."""

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


ARGUMENTS = weights(3), normal(9, 2, 4, 8)
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
    afresh = RematDriver().afresh(written, CONTEXT)
    assert flops(plain) == flops(afresh) < flops(written)
    assert run(afresh, arguments) == run(written, arguments)


@pytest.mark.parametrize("name", ["layers", "loops in a scan"])
def test_a_plan_applies_to_the_program_as_it_is_written(name):
    function, options, arguments = PROGRAMS[name]
    written = module_of(functools.partial(function, **options), arguments)
    driver = RematDriver(Remat(small_bytes=64))
    afresh = driver.afresh(written, CONTEXT)
    need = json.loads(afresh.query("memory.estimate"))["temp"]
    decided = driver.plan(afresh, CONTEXT, temp_budget=int(0.8 * need), host=False)
    plan = driver.from_afresh(decided, decided["predicted"]["after"], afresh, CONTEXT)
    rewritten, said = written.clone(), []
    assert driver.apply(rewritten, plan, remark=said.append) is None
    assert said[0].message.startswith("what jax.checkpoint computes again is decided anew")
    alike = afresh.clone()
    driver.apply(alike, decided)
    assert alike.print() == rewritten.print()
    assert run(rewritten, arguments) == run(written, arguments)


def test_programs_without_recomputation_and_options_that_keep_it_are_left_alone():
    function, options, arguments = PROGRAMS["scan"]
    plain = module_of(functools.partial(function, **{**options, "around": lambda f: f}), arguments)
    assert RematDriver().afresh(plain, CONTEXT) is None
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
