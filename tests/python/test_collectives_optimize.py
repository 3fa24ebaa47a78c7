"""Collective scheduling through `farrier.optimize`: decided, planned, saved, carried out by XLA's compile."""

import dataclasses
import json
import warnings

import farrier
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from farrier._src import hlo, in_compiles, interchange, pipeline
from farrier._src.collectives import drive, driver, hooks, parameters, rewrites, schedule
from jax import lax
from jax.sharding import PartitionSpec as P
from test_hooks import TARGET, lowered, order
from test_hooks import _step as scanned

ONLY = (farrier.Collectives(memory_growth=0.5),)
SPECS = (P("x"), P(None, "x"))


def _function(name="step"):
    mesh = TARGET.mesh(names=("x",))

    def step(x, weights):
        return jax.shard_map(scanned, mesh=mesh, in_specs=SPECS, out_specs=P("x"), check_vma=False)(
            x, weights
        )

    step.__name__ = name
    x = jax.ShapeDtypeStruct((8 * 2048, 2048), jnp.bfloat16, sharding=jax.NamedSharding(mesh, SPECS[0]))
    w = jax.ShapeDtypeStruct((4, 2048, 2048), jnp.bfloat16, sharding=jax.NamedSharding(mesh, SPECS[1]))
    return step, (x, w)


def _module(lowered):
    return hlo.Module.from_executable(lowered.compile().runtime_executable())


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    step, args = _function()
    folder = tmp_path_factory.mktemp("cache")
    return farrier.optimize(step, passes=ONLY, target=TARGET, cache_dir=folder).lower(*args)


def test_the_schedule_is_ours_and_the_text_is_the_users(planned):
    step, args = _function()
    original = jax.jit(step).lower(*args)
    tag = f"farrier_{planned.plan.fingerprint[:8]}"
    assert planned.decision.changed and planned.decision.compiles == 3
    assert planned.as_text() == original.as_text().replace("@jit_step", f"@jit_step_{tag}")
    module, plain = _module(planned), _module(original)
    assert module.name == f"jit_step_{tag}"
    assert order(module) != order(plain)


def test_remarks_name_what_was_gained_and_what_still_waits(planned):
    kinds = {r["kind"]: r for r in planned.decision.remarks}
    assert set(kinds) == {"applied", "missed"}
    assert kinds["applied"]["message"].startswith("1 gathers an iteration early")
    assert "an order of our own: step" in kinds["applied"]["message"]
    # In the loop the gathers are hidden; the first one, before it, has nothing beside it.
    assert "all-gather of 8,388,608 bytes over 8 devices, 1 runs" in kinds["missed"]["message"]
    assert "not enough to run beside it: 0.0" in kinds["missed"]["message"]
    assert "test_hooks.py:" in kinds["missed"]["location"] and kinds["missed"]["operation"]
    gained, waits = kinds["applied"]["args"], kinds["missed"]["args"]
    assert gained["ExposedSeconds"] < gained["ExposedSecondsBefore"]
    assert waits["Bytes"] == 8_388_608 and 0 < waits["ExposedSeconds"] <= waits["Seconds"]


def test_a_saved_plan_gives_the_same_order_without_a_search(planned, tmp_path):
    planned.plan.save(tmp_path / "plan.json")
    step, args = _function()
    again = farrier.optimize(step, passes=ONLY, target=TARGET, plan=tmp_path / "plan.json").lower(*args)
    assert again.decision.source == "plan" and again.decision.compiles == 0
    assert order(_module(again)) == order(_module(planned))


def test_under_an_outer_jit(planned, tmp_path):
    planned.plan.save(tmp_path / "plan.json")
    step, args = _function()
    inner = farrier.optimize(step, passes=ONLY, target=TARGET, plan=tmp_path / "plan.json")
    outer = jax.jit(lambda x, w: inner(x, w) * 2).lower(*args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = _module(outer)
    assert planned.plan.fingerprint[:8] in module.name
    assert order(module) != order(_module(jax.jit(lambda x, w: step(x, w) * 2).lower(*args)))


def test_a_failing_hook_costs_the_schedule_and_says_so(planned, monkeypatch):
    def broken(module, plan, **_):
        raise RuntimeError("on purpose")

    for hook in ("prepare", "reschedule"):
        monkeypatch.setattr(hooks, hook, broken)
    step, args = _function()
    again = farrier.optimize(step, passes=ONLY, target=TARGET, plan=planned.plan).lower(*args)
    with pytest.warns(UserWarning, match="on purpose"):
        module = _module(again)
    assert order(module) == order(_module(lowered()))


def test_damaged_and_foreign_plans_are_refused(planned):
    passes = dict(planned.plan.passes)
    step, args = _function()
    for damage, message in (({"version": 99}, "version 99"), ({"schedule": {"version": 99}}, "version 99")):
        wrong = dataclasses.replace(planned.plan, passes={"collectives": {**passes["collectives"], **damage}})
        with pytest.raises(farrier.PlanError, match=message):
            farrier.optimize(step, passes=ONLY, target=TARGET, plan=wrong).lower(*args)


def test_nothing_is_compiled_for_one_device():
    step = farrier.optimize(lambda x: jnp.tanh(x) @ x, target="h100", passes="collectives")
    lowered = step.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32))
    assert not lowered.decision.changed and lowered.decision.compiles == 0
    assert lowered.plan.passes == {}


def test_a_program_that_waits_for_nothing_is_untouched():
    mesh = TARGET.mesh(names=("x",))
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=jax.NamedSharding(mesh, P("x")))
    step = farrier.optimize(lambda x: jnp.tanh(x) * 2, target=TARGET, passes="collectives")
    lowered = step.lower(x)
    assert lowered.as_text() == step.original.lower(x).as_text()
    assert not lowered.decision.changed and lowered.decision.compiles == 1
    (remark,) = lowered.decision.remarks
    assert "no communication worth mentioning" in remark["message"]


def test_rewrites_keep_every_bit_on_cpu():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, w):
        y = jnp.tanh(x @ lax.all_gather(w, "x", axis=0, tiled=True).astype(jnp.bfloat16))
        return lax.psum(y.astype(jnp.float32), "x")

    def f(x, w):
        specs = (P("x"), P("x"))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(x, w)

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((64, 32)), jnp.bfloat16)
    w = jnp.asarray(rng.standard_normal((32, 32)), jnp.float32)
    step = farrier.optimize(f, passes=[farrier.Collectives(stress=True)])
    plan = step.lower(x, w).plan.passes["collectives"]
    assert plan["rewrite"]["sites"]["narrowed"] == 1
    np.testing.assert_array_equal(np.asarray(step(x, w)), np.asarray(jax.jit(f)(x, w)))


def test_a_reduction_of_which_each_device_reads_a_slice_is_scattered():
    mesh = TARGET.mesh(names=("x",))

    def local(w, gradient):
        mean = lax.psum(gradient, "x") / 8
        rows = w.shape[0] // 8
        start = lax.axis_index("x") * rows
        new = lax.dynamic_slice_in_dim(w, start, rows) - lax.dynamic_slice_in_dim(mean, start, rows)
        return lax.all_gather(new, "x", axis=0, tiled=True)

    def f(w, gradients):
        return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("x")), out_specs=P(), check_vma=False)(
            w, gradients
        )

    w = jax.ShapeDtypeStruct((4096, 1024), jnp.float32, sharding=jax.NamedSharding(mesh, P()))
    g = jax.ShapeDtypeStruct((8 * 4096, 1024), jnp.float32, sharding=jax.NamedSharding(mesh, P("x")))
    lowered = farrier.optimize(f, target=TARGET, passes="collectives").lower(w, g)
    decided = lowered.plan.passes["collectives"]
    assert decided["rewrite"]["name"] == "scatter"
    assert decided["rewrite"]["sites"] == {"scattered-reductions": 1}
    opcodes = {i.opcode for c in _module(lowered).computations for i in c.instructions}
    assert "reduce-scatter" in opcodes and not opcodes & {"all-reduce", "all-reduce-start"}
    before, after = decided["simulated"]["nv"]
    assert after < 0.9 * before


def test_a_small_reduction_that_xla_makes_a_kernel_of_is_a_collective():
    mesh = TARGET.mesh(names=("x",))
    f = jax.shard_map(lambda x: lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    x = jax.ShapeDtypeStruct((8 * 256, 1024), jnp.float32, sharding=jax.NamedSharding(mesh, P("x")))
    module = _module(jax.jit(f).lower(x))
    assert any(
        i.opcode == "fusion" and i.called[0].root.opcode == "all-reduce" for i in module.instructions()
    )
    (found,) = schedule.simulate(module, TARGET, parameters.for_target(TARGET)[:1])
    (wait,) = found.waits
    assert wait.kind == "all-reduce" and wait.bytes == 256 * 1024 * 4 and wait.group == 8
    assert found.exposed_seconds == wait.seconds > 0


def test_options_of_a_plan_reach_xla_for_its_modules_only():
    in_compiles.register("farrier_options_reach_xla", pipeline.Compiling({"xla_no_such_option": True}))

    def f(x):
        return x + 1

    assert jax.jit(f)(1.0) == 2.0
    f.__name__ = "f_farrier_options_reach_xla"
    named = jax.jit(f).lower(1.0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        named.compile()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewrites": ("chian",)}, "chain"),
        ({"rewrites": "chain"}, "sequence"),
        ({"parameters": "nv"}, "sequence"),
        ({"memory_growth": -1}, "0 or more"),
        ({"max_compiles": 0}, "1 or more"),
    ],
    ids=str,
)
def test_mistakes_are_named(options, message):
    with pytest.raises(farrier.OptionError, match=message):
        farrier.Collectives(**options)


def test_plans_are_json():
    text = json.dumps(driver._plan(rewrite=None, compiler_options={"a": 1}))
    assert driver.CollectivesDriver().compiling(json.loads(text)).options == {"a": 1}


@pytest.mark.parametrize("numerics", ["bitwise", "bounded"])
def test_layers_in_halves_compute_the_same(numerics):
    """Tensor parallelism on whole numbers, which add up exactly in any order and by any kernel."""
    mesh = jax.make_mesh((8,), ("t",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, weights):
        def loss(weights):
            y = x
            for up, down in weights:
                y = y + lax.psum(jax.nn.relu(y @ up) @ down, "t")
            return jnp.sum(y), y

        return jax.value_and_grad(loss, has_aux=True)(weights)

    weight = [(P(None, "t"), P("t"))] * 2

    def f(x, weights):
        return jax.shard_map(
            local, mesh=mesh, in_specs=(P(), weight), out_specs=((P(), P()), weight), check_vma=False
        )(x, weights)

    rng = np.random.default_rng(0)

    def whole(*shape):
        return jnp.asarray(rng.integers(-2, 3, shape), jnp.float64)

    with jax.enable_x64(True):
        x, weights = whole(4, 6, 16), [(whole(16, 32), whole(32, 16)) for _ in range(2)]
        halves = farrier.Collectives(stress=True, rewrites=("split-batch",), split_min_bytes=1)
        step = farrier.optimize(f, passes=[halves], numerics=numerics)
        lowered = step.lower(x, weights)
        sites = lowered.plan.passes["collectives"]["rewrite"]["sites"]
        assert sites["halved-collectives"] >= 3 and sites["regions"] == 1
        assert ("regrouped-sums" in sites) == (numerics == "bounded")
        assert 'combiner_key = "farrier_half_1"' in lowered.as_text()
        want, got = jax.jit(f)(x, weights), step(x, weights)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            assert np.any(np.asarray(a))
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("form, count", [("early", 2), ("unroll", 1)])
def test_the_program_as_it_is_can_be_a_form_by_options(form, count):
    step, args = _function()
    module = interchange.to_core(jax.jit(step).lower(*args).compiler_ir("stablehlo"))

    def made(given):
        found = rewrites.variants(module, (form,), numerics="bounded", min_bytes=1, given=given)
        return [
            (one.name, dict(one.compiler_options), rewrites.apply(module.clone(), one.plan)) for one in found
        ]

    ((name, options, missing),) = made({})
    assert (name, missing, len(options)) == (form, None, count)
    # Whoever sets one of them has decided.
    assert made({next(iter(options)): False}) == []


def test_a_form_is_compiled_only_where_it_can_help():
    form = drive.Variant(name="x", module=None, needs=frozenset({"while"}), unlike=frozenset({"all-gather"}))
    assert form.pointless({"while", "all-reduce"}) == ""
    assert form.pointless({"all-reduce"}) == "the program has no while"
    assert form.pointless({"while", "all-gather"}) == "the program has all-gather"
