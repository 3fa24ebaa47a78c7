"""Our schedule inside XLA's compile: applied where asked for, nowhere else, whatever the compile cache
holds."""

import dataclasses
import itertools
import threading

import jax
import jax.numpy as jnp
import pytest
from farrier import Target
from farrier._src import errors, hlo
from farrier._src.collectives import drive, hooks, parameters, schedule, stage
from jax import lax
from jax.extend import xla
from jax.sharding import PartitionSpec as P

TARGET = Target("h100", topology="1x1x8")


def _step(x, weights):
    def body(x, w):
        gathered = lax.all_gather(w, "x", axis=0, tiled=True)
        return jnp.tanh(x @ gathered), None

    return lax.scan(body, x, weights)[0]


def lowered(name="step"):
    """Four layers in a scan, weights sharded over eight devices and gathered in the body."""
    mesh = TARGET.mesh(names=("x",))
    specs = (P("x"), P(None, "x"))

    def step(x, weights):
        return jax.shard_map(_step, mesh=mesh, in_specs=specs, out_specs=P("x"), check_vma=False)(x, weights)

    step.__name__ = name
    x = jax.ShapeDtypeStruct((8 * 2048, 2048), jnp.bfloat16, sharding=jax.NamedSharding(mesh, specs[0]))
    w = jax.ShapeDtypeStruct((4, 2048, 2048), jnp.bfloat16, sharding=jax.NamedSharding(mesh, specs[1]))
    return jax.jit(step).lower(x, w)


def compiled_module(name="step"):
    executable = lowered(name).compile(drive.STATISTICS).runtime_executable()
    return hlo.Module.from_executable(executable)


def order(module):
    """The names of all instructions in schedule order; what a schedule changes."""
    from farrier._src.collectives.program import scheduled_instructions

    sequences = scheduled_instructions(module)
    return [[i.name for i in sequences[c.id]] for c in module.computations if not c.is_fusion]


@pytest.fixture(scope="module")
def plain():
    return compiled_module()


@pytest.fixture(scope="module")
def plan(plain):
    return schedule.plan(plain, TARGET, parameters.for_target(TARGET), memory_growth_bytes=1 << 24)


def test_applied_and_better(plain, plan):
    with hooks.applying(plan) as record:
        module = compiled_module(hooks.tagged_name("step", plan))
    assert record.calls == 1 and record.error is None and record.outcome.changed
    assert order(module) != order(plain)
    costs = dict(plan.costs)
    before = schedule.simulate(plain, TARGET, plan.parameters, frozen=costs)
    after = schedule.simulate(module, TARGET, plan.parameters, frozen=costs)
    # What the search promised is what XLA's final program shows.
    assert [s.seconds for s in after] == pytest.approx(record.outcome.after)
    assert all(a.seconds < b.seconds for a, b in zip(after, before, strict=True))
    assert before[0].waits[0].kind == "all-gather" and before[0].waits[0].runs == 4
    assert before[0].waits[0].source.split(":")[0].endswith("test_hooks.py")


def test_untagged_modules_and_other_threads_are_left_alone(plain, plan):
    with hooks.applying(plan) as record:
        assert order(compiled_module()) == order(plain)
        found = []
        other = threading.Thread(
            target=lambda: found.append(compiled_module(hooks.tagged_name("step", plan)))
        )
        other.start()
        other.join()
    assert record.calls == 0 and record.outcome is None
    assert order(found[0]) == order(plain)


def test_a_failing_hook_does_not_fail_the_compile(plain, plan, monkeypatch):
    def broken(module, plan, **_):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(hooks, "reschedule", broken)
    with hooks.applying(plan) as record:
        module = compiled_module(hooks.tagged_name("step", plan))
    assert order(module) == order(plain)
    assert "on purpose" in record.error


def test_other_transformations_stay(plan):
    seen = []

    def other(data):
        seen.append(hlo.Module(data).name)

    stage = xla.PipelineStage.POST_SCHEDULER
    TARGET.topology_desc()
    xla.register_hlo_module_transformation(other, name="other", stage=stage, platforms=["cuda"])
    try:
        with hooks.applying(plan) as record:
            compiled_module(hooks.tagged_name("step", plan))
        assert record.calls == 1
        assert any(plan.tag in name for name in seen)
    finally:
        assert xla.clear_hlo_module_transformation("other", stage=stage, platforms=["cuda"])


@pytest.fixture
def compile_cache(tmp_path):
    """A persistent compile cache of this test's own."""
    from jax._src import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    old = {k: getattr(jax.config, k) for k in settings}
    for k, v in settings.items():
        jax.config.update(k, v)
    compilation_cache.reset_cache()
    yield
    for k, v in old.items():
        jax.config.update(k, v)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("first", ["plain", "one", "before"])
def test_one_cache_folder_never_mixes_plans(compile_cache, plan, first):
    """Plain then hooked, hooked then plain, and two plans, each twice: every executable is its own.

    On CPU, whose executables JAX can read back: the hook and the cache are the same code for every platform.
    """
    other = schedule.SchedulePlan.from_json({**plan.to_json(), "memory_growth_bytes": 0})
    assert other.tag != plan.tag
    before = dataclasses.replace(plan, pipeline=True, buckets=True)
    assert before.tag not in (plan.tag, other.tag)
    plans = {"plain": None, "one": plan, "two": other, "before": before}
    sequence = [first, *[k for k in plans if k != first]]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def compile_for(p):
        def step(x):
            return jax.shard_map(lambda x: lax.psum(x, "x"), mesh=mesh, in_specs=P("x"), out_specs=P())(x)

        step.__name__ = "step" if p is None else hooks.tagged_name("step", p)
        compiled = jax.jit(step).lower(jnp.ones(8)).compile()
        return compiled.runtime_executable().hlo_modules()[0].name

    for again, name in itertools.product((False, True), sequence):
        jax.clear_caches()
        p = plans[name]
        if p is None:
            assert "farrier" not in compile_for(p)
            continue
        with hooks.applying(p, platform="cpu") as record:
            assert p.tag in compile_for(p)
        # From the cache, XLA does not run at all; the first time it meets this plan, and no other.
        assert record.calls == (0 if again else 1) and record.error is None
        assert (record.prepared is not None) == (p is before and not again)


def test_nothing_exposed_is_left_untouched():
    mesh = TARGET.mesh(names=("x",))
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=jax.NamedSharding(mesh, P("x")))
    local = jax.jit(lambda x: jnp.tanh(x) * 2).lower(x)
    found = drive.improve(str(local.compiler_ir("stablehlo")), TARGET)
    assert not found.changed and found.plan is None
    assert found.reason == "no communication worth mentioning is exposed"
    alone = drive.improve(str(local.compiler_ir("stablehlo")), TARGET, parameters=["nv"])
    assert [s.parameters for s in alone.simulated_before] == ["nv", "nv/2"]


def test_improve_keeps_what_is_better_and_within_memory():
    module = str(lowered().compiler_ir("stablehlo"))
    found = drive.improve(module, TARGET, memory_growth=0.5, judges=["gb"])
    assert found.changed, found.reason
    assert found.after.measurement.total_bytes <= 1.5 * found.before.measurement.total_bytes
    assert [s.parameters for s in found.simulated_after] == ["nv", "slow", "gb"]
    for before, after in zip(found.simulated_before[:2], found.simulated_after[:2], strict=True):
        assert after.seconds < before.seconds and after.seconds >= after.bound_seconds * (1 - 1e-9)


def test_scheduled_stage_reorders_a_dump():
    dump = []

    def take(data):
        if b"jit_step" in data[:200]:
            dump.append(data)

    TARGET.topology_desc()
    where = xla.PipelineStage.POST_SCHEDULER
    xla.register_hlo_module_transformation(take, name="dump", stage=where, platforms=["cuda"])
    try:
        compiled_module()
    finally:
        xla.clear_hlo_module_transformation("dump", stage=where, platforms=["cuda"])
    new, table = stage.reschedule(dump[0], "h100", memory_growth_bytes=1 << 24)
    assert order(hlo.Module(new)) != order(hlo.Module(dump[0]))
    assert "nv: " in table and "slow: " in table and "waits" in table
    again, _ = stage.reschedule(new, "h100", memory_growth_bytes=1 << 24)
    assert again == new


def test_plan_round_trip(plan):
    again = schedule.SchedulePlan.from_json(plan.to_json())
    assert again == plan and again.fingerprint == plan.fingerprint
    with pytest.raises(errors.PlanError, match="version 99"):
        schedule.SchedulePlan.from_json({**plan.to_json(), "version": 99})
    with pytest.raises(errors.PlanError, match="not a schedule plan"):
        schedule.SchedulePlan.from_json({"version": 1, "costs": {}})
