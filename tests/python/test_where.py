"""The table "where it runs", row by row: what is planned for, measured and promised.

The rows that compile for a GPU do so without one. What only an attached GPU can show is marked.
"""

import dataclasses
import functools

import farrier
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import textual
from farrier._src import pipeline, targets, where
from farrier._src.options import Options
from farrier._src.primitive import Program
from jax.sharding import NamedSharding, PartitionSpec

X = jnp.linspace(0.1, 1.0, 8)
SPEC = jax.ShapeDtypeStruct((256, 256), jnp.float32)


def f(x):
    return jnp.sin(x) @ x


@pytest.fixture(autouse=True)
def search(monkeypatch):
    return textual.install(monkeypatch)


class Site:
    def __init__(self, **options):
        self.compiler_options = {}
        self.options = Options.make(passes="swap", **options)


def program(platform, devices=(), partitions=1):
    return Program(None, "f", (platform,), partitions, tuple(devices), True)


class Gpu:
    """An attached GPU as far as budgets are concerned."""

    class _Client:
        def process_index(self):
            return 0

    client = _Client()
    platform, process_index, id, device_kind = "gpu", 0, 0, "NVIDIA H100 80GB HBM3"

    def memory_stats(self):
        return {"bytes_limit": 60 * 10**9}


class TestNothingAttachedAbstractArguments:
    """A GPU is named, nothing is attached: the deviceless compile is the result, the budget is verified."""

    def test_lower_compile(self, search):
        step = farrier.optimize(f, passes="swap", target="h100", memory_budget="1MiB")
        compiled = step.lower(SPEC).compile()
        (context,) = search.contexts
        assert context.platform == "cuda"
        assert context.target == farrier.Target("h100")
        assert context.budget_binding
        assert context.budget_bytes == 2**20
        assert compiled.plan.platform == "cuda"
        before = compiled.plan.measured["before"]
        assert before["argument_bytes"] == 256 * 256 * 4
        assert before["target"] == "h100 1x1x1"
        memory = compiled.memory_analysis()
        assert memory.argument_size_in_bytes == 256 * 256 * 4
        assert not compiled.decision.run.attached

    def test_eight_devices_by_the_shardings(self, search):
        target = farrier.Target("h100", topology="1x1x8")
        spec = jax.ShapeDtypeStruct(
            (256, 256), jnp.float32, sharding=NamedSharding(target.mesh((8,), ("x",)), PartitionSpec("x"))
        )
        plan = farrier.optimize(f, passes="swap", target=target).lower(spec).plan
        assert plan.partitions == 8
        assert plan.measured["before"]["argument_bytes"] == 256 * 256 * 4 // 8

    def test_a_mesh_of_a_target_names_it(self, search):
        mesh = farrier.Target("h200", topology="1x1x2").mesh((2,), ("x",))
        spec = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))
        farrier.optimize(f, passes="swap", max_compiles=0).lower(spec)
        assert search.contexts[0].target == farrier.Target("h200", topology="1x1x2")

    def test_plan_and_explain_go_to_the_target_from_anywhere(self, search):
        step = farrier.optimize(f, passes="swap", target="h100", max_compiles=0)
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        x = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, PartitionSpec("x", "y")))
        plan = step.plan(x)
        assert (plan.platform, plan.partitions) == ("cuda", 8)
        assert search.contexts[0].target.device_count == 8
        assert "Target('h100'" in str(step.explain(jnp.ones((8, 8))))

    def test_a_topology_that_does_not_fit(self):
        target = farrier.Target("h100", topology="1x1x4")
        x = jax.device_put(jnp.ones((8, 8)), NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x")))
        with pytest.raises(farrier.TargetError, match="sharded over 8 devices"):
            farrier.optimize(f, passes="swap", target=target).plan(x)

    def test_host_memory_is_refused(self):
        device = jax.devices()[0]
        x = jax.device_put(X, jax.sharding.SingleDeviceSharding(device, memory_kind="unpinned_host"))
        if x.sharding.memory_kind == device.default_memory().kind:
            x = jax.ShapeDtypeStruct(
                (8,),
                jnp.float32,
                sharding=jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host"),
            )
        with pytest.raises(farrier.TargetError, match="memory kinds"):
            farrier.optimize(f, passes="swap", target="h100").plan(x)

    def test_static_arguments_stay(self):
        step = farrier.optimize(
            jax.jit(lambda x, n, *, mode: jnp.sin(x) * n, static_argnums=1, static_argnames="mode"),
            passes="swap",
            target="h100",
            max_compiles=0,
        )
        assert step.plan(X, 3, mode="a").passes

    def test_random_keys_and_scalars(self):
        step = farrier.optimize(
            lambda key, n: jnp.sin(jax.random.uniform(key, (3,))) * n,
            passes="swap",
            target="h100",
            max_compiles=0,
        )
        assert step.plan(jax.random.key(0), 2.0).passes

    def test_a_saved_plan_for_the_gpu_is_applied_there_and_planned_again_on_cpu(self, search):
        plan = farrier.optimize(f, passes="swap", target="h100", max_compiles=0).plan(SPEC)
        step = farrier.optimize(f, passes="swap", target="h100", plan=plan)
        assert step.lower(SPEC).decision.source == "plan"
        assert step.lower(jnp.ones((4, 4))).decision.source == "search"


class TestRunOnCpu:
    """A GPU is named, the arguments live on CPU: planned again there, the budget is not promised."""

    def test_said_once(self, search):
        step = farrier.optimize(f, passes="swap", target="h100", memory_budget="72GiB", max_compiles=0)
        with pytest.warns(farrier.OptimizeWarning, match="not promised") as caught:
            np.testing.assert_allclose(step(jnp.ones((4, 4))), jnp.cos(jnp.ones((4, 4))) @ jnp.ones((4, 4)))
            step(jnp.ones((5, 5)))
        assert len(caught) == 1
        assert [c.platform for c in search.contexts] == ["cpu", "cpu"]
        assert not any(c.budget_binding for c in search.contexts)
        assert search.contexts[0].target.name == "h100"

    def test_measured_on_cpu(self):
        step = farrier.optimize(f, passes="swap", target="h100")
        assert step.lower(jnp.ones((4, 4))).plan.measured["before"]["argument_bytes"] == 64


class TestNoTargetNoGpu:
    """The budget is about CPU's own memory analysis, and that is said."""

    def test_said(self, search):
        step = farrier.optimize(f, passes="swap", memory_budget="1MiB")
        with pytest.warns(farrier.OptimizeWarning, match="memory_analysis counts it there"):
            step(jnp.ones((4, 4)))
        assert search.contexts[0].budget_binding
        assert search.contexts[0].budget_bytes == 2**20

    def test_a_fraction_of_the_hosts_memory(self, search):
        with pytest.warns(farrier.OptimizeWarning):
            farrier.optimize(f, passes="swap", memory_budget=0.5, max_compiles=0)(jnp.ones((4, 4)))
        assert 2**28 < search.contexts[0].budget_bytes < 2**44


class TestPluginMissing:
    """A GPU is named and XLA:GPU is not installed."""

    @pytest.fixture(autouse=True)
    def _no_plugin(self, monkeypatch):
        def missing(self):
            raise farrier.MissingPluginError("no plugin", hint='pip install "farrier[cuda13]"')

        monkeypatch.setattr(targets.Target, "topology_desc", missing)

    def test_default_estimates_and_warns(self, search):
        step = farrier.optimize(f, passes="swap", target="h100", memory_budget="1GiB")
        with pytest.warns(farrier.OptimizeWarning, match=r"only estimated.*farrier\[cuda13\]"):
            plan = step.plan(SPEC)
        assert plan.platform == "cuda"
        (context,) = search.contexts
        assert context.measure is None
        assert not context.budget_binding
        assert context.target.name == "h100"

    def test_strict_names_the_extra(self):
        step = farrier.optimize(f, passes="swap", target="h100", strict=True)
        with pytest.raises(farrier.MissingPluginError, match=r"farrier\[cuda13\]"):
            step.plan(SPEC)


class TestGpuAttached:
    """Searched deviceless, verified once with the attached compiler, corrected once."""

    def test_the_target_is_the_attached_gpu(self, monkeypatch):
        monkeypatch.setattr(targets, "attached_target", lambda: farrier.Target("h100"))
        run = where.resolve(Site(memory_budget=0.5), program("cuda", [Gpu()]))
        assert run.attached
        assert run.target == farrier.Target("h100")
        assert run.budget_binding
        assert run.measure is not None
        assert run.verify is not None
        # A fraction is of what JAX's allocator hands out, not of the whole memory.
        assert run.budget_bytes == 30 * 10**9

    def test_a_budget_beyond_the_allocators_limit_is_noted(self, monkeypatch):
        monkeypatch.setattr(targets, "attached_target", lambda: farrier.Target("h100"))
        run = where.resolve(Site(memory_budget="70GB"), program("cuda", [Gpu()]))
        assert "exceeds" in run.notes[0]

    def test_a_gpu_that_farrier_does_not_know(self, monkeypatch):
        monkeypatch.setattr(targets, "attached_target", lambda: None)
        run = where.resolve(Site(), program("cuda", [Gpu()]))
        assert run.target is None
        assert run.verify is not None
        assert not run.budget_binding

    def test_one_correction(self, monkeypatch, search):
        budgets, totals = [], iter([1200, 990])

        def correcting(module, drivers, context):
            budgets.append(context.budget_bytes)
            return search(module, drivers, context)

        self.verify(monkeypatch, totals)
        monkeypatch.setattr(pipeline, "search", correcting)
        decision = farrier.optimize(f, passes="swap", memory_budget=1000, max_compiles=0).lower(X).decision
        assert budgets == [1000, 800]
        assert decision.compiles == 2
        assert decision.plan.measured["attached"] == {"total_bytes": 990}

    def test_not_reached_after_the_correction(self, monkeypatch):
        self.verify(monkeypatch, iter([1200, 1100]))
        with pytest.raises(farrier.BudgetError, match="1,100") as caught:
            farrier.optimize(f, passes="swap", memory_budget=1000, max_compiles=0).lower(X)
        assert caught.value.smallest_bytes == 1100

    @staticmethod
    def verify(monkeypatch, totals):
        @dataclasses.dataclass
        class Measured:
            total_bytes: int

            def to_json(self):
                return dataclasses.asdict(self)

        resolve = where.resolve

        def attached(site, made):
            run = resolve(site, made)
            return dataclasses.replace(run, verify=lambda module: Measured(next(totals)), warnings=())

        monkeypatch.setattr(where, "resolve", attached)

    @pytest.mark.gpu
    def test_on_a_gpu(self):
        step = farrier.optimize(functools.partial(f), passes="swap", memory_budget=0.9)
        x = jax.device_put(jnp.ones((256, 256)), jax.devices("cuda")[0])
        np.testing.assert_allclose(step(x), jnp.cos(x) @ x, rtol=1e-2)
        assert step.lower(x).plan.measured["attached"]["argument_bytes"] == 256 * 256 * 4


def test_more_devices_than_a_host():
    target = farrier.Target("h100")
    assert where.with_device_count(target, 16).topology == "1x2x8"
    with pytest.raises(farrier.TargetError, match="do not fill hosts"):
        where.with_device_count(target, 12)
