"""From a program to a decision: search, cache, plan, fallback, strict mode, what the caller is told."""

import io
import json
import warnings

import farrier
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import textual
from farrier._src import interchange, pipeline
from jax.sharding import NamedSharding, PartitionSpec

X = jnp.linspace(0.1, 1.0, 8)


def f(x):
    return jnp.sin(x) * 2


@pytest.fixture(autouse=True)
def search(monkeypatch):
    return textual.install(monkeypatch)


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


class TestDeciding:
    def test_a_found_plan_is_applied(self, search):
        step = farrier.optimize(f, passes="swap")
        assert_close(step(X), 2 * jnp.cos(X))
        lowered = step.lower(X)
        assert lowered.decision.source == "search"
        assert lowered.decision.changed
        assert lowered.decision.compiles == 1
        assert lowered.plan.passes == {"swap": {"sines": ["sine 0"]}}
        assert lowered.plan.measured["before"]["argument_bytes"] == 32
        assert len(search.contexts) == 1

    def test_the_plan_is_in_the_modules_name(self):
        lowered = farrier.optimize(f, passes="swap").lower(X)
        name = f"jit_f_farrier_{lowered.plan.fingerprint[:8]}"
        assert f"module @{name}" in lowered.as_text()
        assert name in lowered.compile().as_text()

    def test_nothing_to_do_compiles_the_original(self):
        step = farrier.optimize(f, passes="idle")
        lowered = step.lower(X)
        assert lowered.as_text() == step.original.lower(X).as_text()
        assert lowered.decision.source == "nothing to do"
        assert not lowered.decision.changed

    def test_no_passes_at_all(self):
        step = farrier.optimize(f, passes=())
        lowered = step.lower(X)
        assert lowered.decision is None
        assert lowered.plan is None
        assert lowered.as_text() == step.original.lower(X).as_text()

    def test_what_the_search_is_told(self, search):
        farrier.optimize(f, passes="swap", objective="flops", numerics="bitwise", max_compiles=0).lower(X)
        (context,) = search.contexts
        assert (context.function, context.platform, context.partitions) == ("f", "cpu", 1)
        assert (context.objective, context.numerics, context.max_compiles) == ("flops", "bitwise", 0)
        assert context.budget_bytes is None
        assert context.target is None

    def test_the_whole_program_is_measured_with_its_shardings_and_donation(self, search):
        mesh = jax.make_mesh((8,), ("x",))
        x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("x")))
        step = farrier.optimize(jax.jit(f, donate_argnums=0), passes="swap")
        plan = step.lower(x).plan
        assert plan.partitions == 8
        assert plan.measured["before"]["argument_bytes"] == 16
        assert plan.measured["before"]["alias_bytes"] == 16
        assert_close(step(x), 2 * jnp.cos(jnp.ones((8, 4))))

    def test_planned_again_for_other_shapes_only(self, search):
        step = farrier.optimize(f, passes="swap")
        for n in (8, 8, 4):
            step(jnp.ones(n))
        assert len(search.contexts) == 2


class TestCache:
    def test_a_second_function_recalls(self, search):
        farrier.optimize(f, passes="swap")(X)
        step = farrier.optimize(f, passes="swap")
        assert_close(step(X), 2 * jnp.cos(X))
        decision = step.lower(X).decision
        assert decision.source == "cache"
        assert decision.compiles == 0
        assert len(search.contexts) == 1

    def test_remarks_are_recalled(self, search):
        search.remarks = [type("R", (), {"pass_name": "swap", "kind": "applied", "message": "one sine"})()]
        for _ in range(2):
            decision = farrier.optimize(f, passes="swap").lower(X).decision
            assert [r["message"] for r in decision.remarks] == ["one sine"]

    @pytest.mark.parametrize(
        "change",
        [
            {"numerics": "bitwise"},
            {"objective": "flops"},
            {"max_compiles": 2},
            {"passes": ("idle", "swap")},
        ],
        ids=str,
    )
    def test_other_options_are_another_key(self, search, change):
        farrier.optimize(f, passes="swap").lower(X)
        farrier.optimize(f, **{"passes": "swap", **change}).lower(X)
        assert len(search.contexts) == 2

    def test_compiler_options_environment_and_config_are_in_the_key(self, search, monkeypatch):
        def lower(**options):
            farrier.optimize(jax.jit(f, **options), passes="swap").lower(X)

        lower()
        lower(compiler_options={"xla_embed_ir_in_executable": True})
        monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_dump_hlo_as_text")
        lower()
        with jax.default_matmul_precision("highest"):
            lower()
        assert len(search.contexts) == 4

    def test_constants_are_in_the_key(self, search):
        for value in (1.0, 2.0):
            big = jnp.full(8, value)
            farrier.optimize(lambda x, c=big: jnp.sin(x) * c, passes="swap").lower(X)
        assert len(search.contexts) == 2

    def test_a_directory_of_its_own(self, search, tmp_path):
        farrier.optimize(f, passes="swap", cache_dir=tmp_path / "here").lower(X)
        assert list((tmp_path / "here" / "plans").glob("*/*.json"))


class TestFailures:
    @pytest.mark.parametrize(("name", "reason"), [("broken", "cannot decide"), ("harmful", "jaxlib refuses")])
    def test_default_runs_the_original_and_warns_once(self, name, reason):
        step = farrier.optimize(f, passes=name)
        with pytest.warns(farrier.OptimizeWarning, match=reason) as caught:
            assert_close(step(X), f(X))
        assert len(caught) == 1
        step(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(jnp.ones(8))
        lowered = step.lower(X)
        assert lowered.decision.source == "fallback"
        assert reason in lowered.plan.fallback
        assert lowered.as_text() == step.original.lower(X).as_text()

    def test_a_failure_is_not_remembered(self, monkeypatch):
        with pytest.warns(farrier.OptimizeWarning):
            farrier.optimize(f, passes="broken").lower(X)
        monkeypatch.setattr(textual.BrokenDriver, "plan", textual.SwapDriver.plan)
        assert farrier.optimize(f, passes="broken").lower(X).decision.source == "search"

    def test_strict_raises(self):
        with pytest.raises(RuntimeError, match="cannot decide"):
            farrier.optimize(f, passes="broken", strict=True)(X)
        with pytest.raises(farrier.InternalError, match="jaxlib refuses"):
            farrier.optimize(f, passes="harmful", strict=True)(X)

    def test_a_repro_command_is_shown(self, monkeypatch):
        def fail(self, module, context):
            raise farrier.PassError("no", repro="hlo-opt --broken x.mlir")

        monkeypatch.setattr(textual.BrokenDriver, "plan", fail)
        with pytest.warns(farrier.OptimizeWarning, match=r"reproduce with: hlo-opt --broken x\.mlir"):
            farrier.optimize(f, passes="broken")(X)

    def test_a_program_that_farrier_cannot_read(self, monkeypatch):
        def refuse(module):
            raise farrier.InputError("what is this")

        monkeypatch.setattr(interchange, "to_core", refuse)
        with pytest.warns(farrier.OptimizeWarning, match="what is this"):
            assert_close(farrier.optimize(f, passes="swap")(X), f(X))
        with pytest.raises(farrier.InputError):
            farrier.optimize(f, passes="swap", strict=True)(X)

    def test_a_budget_that_cannot_be_met_always_raises(self, monkeypatch):
        def too_much(module, drivers, context):
            raise farrier.BudgetError("no", budget_bytes=context.budget_bytes, smallest_bytes=99)

        monkeypatch.setattr(pipeline, "search", too_much)
        with (
            pytest.warns(farrier.OptimizeWarning, match="no target and no GPU"),
            pytest.raises(farrier.BudgetError) as caught,
        ):
            farrier.optimize(f, passes="swap", memory_budget=10)(X)
        assert caught.value.smallest_bytes == 99

    def test_the_program_is_saved(self, tmp_path):
        step = farrier.optimize(f, passes="broken", cache_dir=tmp_path)
        with pytest.warns(farrier.OptimizeWarning, match="the program is saved in"):
            step(X)
        (saved,) = (tmp_path / "failures").iterdir()
        assert "stablehlo.sine" in saved.read_text()

    @pytest.mark.parametrize(("budget", "fits"), [(1 << 20, True), (10, False)])
    def test_falling_back_does_not_break_a_budget(self, budget, fits):
        step = farrier.optimize(f, passes="broken", target="h100", memory_budget=budget)
        spec = jax.ShapeDtypeStruct((8,), jnp.float32)
        if fits:
            with pytest.warns(farrier.OptimizeWarning, match="cannot decide"):
                assert step.lower(spec).plan.fallback
        else:
            with pytest.raises(farrier.BudgetError, match="as it was written it needs") as caught:
                step.lower(spec)
            assert caught.value.smallest_bytes >= 64

    def test_a_callback_is_named_when_optimizing_fails(self):
        def g(x):
            jax.debug.print("{}", x[0])
            return jnp.sin(x)

        with pytest.warns(farrier.OptimizeWarning, match=r"calls back to the host at .*test_stages\.py:\d+"):
            farrier.optimize(g, passes="broken")(X)
        with (
            pytest.warns(farrier.OptimizeWarning, match="no target"),
            pytest.raises(farrier.CallbackError, match=r"test_stages\.py:\d+"),
        ):
            farrier.optimize(g, passes="broken", memory_budget=10)(X)

    def test_a_callback_has_no_deviceless_lowering(self):
        def g(x):
            return jax.lax.cond(True, lambda x: jax.pure_callback(lambda v: v, x, x), lambda x: x, x)

        with pytest.raises(farrier.CallbackError, match=r"test_stages\.py:\d+"):
            farrier.optimize(g, passes="swap", target="h100").plan(X)


class TestPlans:
    def test_a_saved_plan_is_applied_without_a_search(self, search, tmp_path):
        path = tmp_path / "step.plan.json"
        plan = farrier.optimize(f, passes="swap").plan(X)
        plan.save(path)
        assert farrier.Plan.load(path) == plan
        for given in (path, str(path), plan):
            step = farrier.optimize(f, passes="swap", plan=given, cache_dir=tmp_path / "empty")
            assert_close(step(X), 2 * jnp.cos(X))
            assert step.lower(X).decision.source == "plan"
        assert len(search.contexts) == 1

    def test_same_plan_same_module(self, tmp_path):
        first = farrier.optimize(f, passes="swap")
        second = farrier.optimize(f, passes="swap", plan=first.plan(X))
        assert first.lower(X).as_text() == second.lower(X).as_text()

    def test_a_plan_survives_an_unrelated_edit(self):
        plan = farrier.optimize(f, passes="swap").plan(X)

        def edited(x):
            return jnp.sin(x) * 3 + 1

        assert_close(farrier.optimize(edited, passes="swap", plan=plan)(X), 3 * jnp.cos(X) + 1)

    def test_a_stale_plan_names_what_is_missing(self):
        plan = farrier.optimize(lambda x: jnp.sin(jnp.sin(x)), passes="swap").plan(X)
        with pytest.raises(farrier.StalePlanError, match="sine 1") as caught:
            farrier.optimize(f, passes="swap", plan=plan)(X)
        assert caught.value.missing_keys == ("sine 1",)

    def test_other_passes(self):
        plan = farrier.optimize(f, passes="swap").plan(X)
        with pytest.raises(farrier.StalePlanError, match="'swap' is in the plan"):
            farrier.optimize(f, passes="idle", plan=plan)(X)

    def test_stricter_numerics(self):
        plan = farrier.optimize(f, passes="swap", numerics="relaxed").plan(X)
        with pytest.raises(farrier.StalePlanError, match="'relaxed' in the plan, 'bounded' allowed now"):
            farrier.optimize(f, passes="swap", plan=plan)(X)
        assert_close(farrier.optimize(f, passes="swap", numerics="relaxed", plan=plan)(X), 2 * jnp.cos(X))

    def test_a_smaller_budget_than_the_plan_gives(self):
        plan = farrier.optimize(f, passes="swap", target="h100").plan(X)
        measured = {"after": plan.measured["before"]}
        plan = farrier.Plan.from_json(plan.to_json() | {"measured": measured})
        step = farrier.optimize(f, passes="swap", target="h100", plan=plan, memory_budget=10)
        with pytest.raises(farrier.StalePlanError, match="budget: the plan gives"):
            step.plan(X)

    def test_another_target(self):
        plan = farrier.optimize(f, passes="swap", target="h100").plan(X)
        with pytest.raises(farrier.StalePlanError, match="target: h100 in the plan, h200 now"):
            farrier.optimize(f, passes="swap", target="h200", plan=plan).plan(X)

    def test_another_number_of_devices(self):
        plan = farrier.optimize(f, passes="swap").plan(X)
        x = jax.device_put(jnp.ones(8), NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x")))
        with pytest.raises(farrier.StalePlanError, match="devices: 1 in the plan, 8 now"):
            farrier.optimize(f, passes="swap", plan=plan)(x)

    def test_a_plan_that_gives_another_program_than_it_says(self):
        plan = farrier.optimize(f, passes="swap").plan(X)
        forged = farrier.Plan.from_json(plan.to_json() | {"output_fingerprint": "0" * 64})
        with pytest.raises(farrier.StalePlanError, match="did not give the program"):
            farrier.optimize(f, passes="swap", plan=forged)(X)

    def test_a_plan_for_another_platform_is_planned_again(self, search):
        plan = farrier.optimize(f, passes="swap").plan(X)
        for_gpu = farrier.Plan.from_json(plan.to_json() | {"platform": "cuda"})
        step = farrier.optimize(f, passes="swap", plan=for_gpu, max_compiles=1)
        assert_close(step(X), 2 * jnp.cos(X))
        assert step.lower(X).decision.source == "search"

    def test_a_fallback_is_part_of_the_plan(self, search):
        with pytest.warns(farrier.OptimizeWarning):
            plan = farrier.optimize(f, passes="broken").plan(X)
        step = farrier.optimize(f, passes="swap", plan=plan)
        with pytest.warns(farrier.OptimizeWarning, match="cannot decide"):
            assert_close(step(X), f(X))
        assert len(search.contexts) == 1


class TestExplain:
    def test_text_html_and_json(self, search):
        search.remarks = [
            type(
                "R", (), {"pass_name": "swap", "kind": "applied", "message": "a <sine>", "location": "f.py:3"}
            )()
        ]
        report = farrier.optimize(f, passes="swap").explain(X)
        assert "changed by swap" in str(report)
        assert "a <sine> [f.py:3]" in str(report)
        assert "a &lt;sine&gt;" in report._repr_html_()
        console = rich.console.Console(width=120, record=True, file=io.StringIO())
        console.print(report)
        drawn = console.export_text()
        assert "changed by swap" in drawn and "a <sine>" in drawn and "f.py:3" in drawn
        data = json.loads(json.dumps(report.to_json()))
        assert data["changed"] is True
        assert data["remarks"][0]["location"] == "f.py:3"
        assert data["plan"]["passes"] == {"swap": {"sines": ["sine 0"]}}

    def test_nothing_decided(self):
        report = farrier.optimize(f, passes=()).explain(X)
        assert "runs as it was written" in str(report)
        assert report.to_json() == {"function": "f", "decided": False}
