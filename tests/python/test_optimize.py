"""``farrier.optimize`` as a user meets it: jit's semantics are kept, whatever the function uses."""

import gc
import warnings
import weakref
from functools import partial

import farrier
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import textual
from farrier._src import pipeline
from jax.sharding import NamedSharding, PartitionSpec

X = jnp.linspace(0.1, 1.0, 8)


@pytest.fixture(autouse=True)
def search(monkeypatch):
    return textual.install(monkeypatch)


# What a decorated function computes: "swap" turns the sine into a cosine where it is optimized.
opt = partial(farrier.optimize, passes="swap")


def assert_close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), a, b)


class TestForms:
    def test_bare_over_jit(self, monkeypatch):
        monkeypatch.setattr(pipeline, "DRIVERS", {"swap": pipeline.DRIVERS["swap"]})

        @farrier.optimize
        @jax.jit
        def f(x):
            return jnp.sin(x)

        assert_close(f(X), jnp.cos(X))
        assert f.__name__ == "f"
        assert isinstance(f, type(f.original))

    def test_with_options_over_partial_jit(self):
        @farrier.optimize(passes="swap", numerics="bitwise")
        @partial(jax.jit, donate_argnums=0)
        def f(x):
            return jnp.sin(x)

        assert_close(f(jnp.ones(3)), jnp.cos(jnp.ones(3)))

    def test_not_jitted(self):
        @farrier.optimize(passes="swap")
        def f(x):
            """Doc."""
            return jnp.sin(x)

        assert_close(f(X), jnp.cos(X))
        assert f.__doc__ == "Doc."

    def test_partial_and_callable_objects(self):
        def f(a, x):
            return jnp.sin(x) * a

        assert_close(opt(partial(f, 3))(X), 3 * jnp.cos(X))
        assert_close(opt(jax.jit(partial(f, a=3)))(x=X), 3 * jnp.cos(X))

        class Model:
            def __call__(self, x):
                return jnp.sin(x)

        assert_close(opt(jax.jit(Model()))(X), jnp.cos(X))

    def test_methods(self):
        class Model:
            def __init__(self, scale):
                self.scale = scale

            @farrier.optimize(passes="swap")
            @partial(jax.jit, static_argnums=0)
            def step(self, x):
                return jnp.sin(x) * self.scale

        model = Model(3)
        assert_close(model.step(X), 3 * jnp.cos(X))
        assert_close(Model(4).step(X), 4 * jnp.cos(X))
        assert Model.step.plan(model, X).passes

    def test_twice_is_a_mistake(self):
        with pytest.raises(farrier.OptionError, match="optimized already"):
            opt(opt(lambda x: x))

    def test_signature_is_kept(self):
        import inspect

        assert str(inspect.signature(opt(lambda x, *, scale=2: x))) == "(x, *, scale=2)"

    def test_functions_are_collected(self, search):
        f = opt(lambda x: jnp.sin(x))
        f(X)
        watch = weakref.ref(f.farrier_site)
        del f
        search.contexts.clear()
        jax.clear_caches()
        gc.collect()
        assert watch() is None


class TestArguments:
    def test_pytrees_and_keywords(self):
        @opt
        @jax.jit
        def f(tree, *rest, scale, **more):
            return {"a": jnp.sin(tree["a"]) * scale, "rest": rest, "more": more["b"][0], "none": tree["n"]}

        out = f({"a": X, "n": None}, 1.0, X, scale=2, b=(X, "text")[:1])
        assert_close(out["a"], 2 * jnp.cos(X))
        assert_close((out["rest"], out["more"]), ((1.0, X), X))
        assert out["none"] is None

    def test_static_arguments(self, search):
        @opt
        @partial(jax.jit, static_argnums=(1,), static_argnames=("mode", "shape"))
        def f(x, n, *, mode="a", shape=(2, 4)):
            return jnp.sin(x).reshape(shape) * (n if mode == "a" else -n)

        assert_close(f(X, 3), 3 * jnp.cos(X).reshape(2, 4))
        assert_close(f(X, 3, mode="b", shape=(4, 2)), -3 * jnp.cos(X).reshape(4, 2))
        f(X, 3)
        assert len(search.contexts) == 2

    def test_donation_by_number_and_name(self):
        @opt
        @partial(jax.jit, donate_argnums=0, donate_argnames="extra")
        def f(state, x, *, extra):
            return state + jnp.sin(x), extra * 2

        state, extra = jnp.ones(8), jnp.ones(3)
        f(state, X, extra=extra)
        assert state.is_deleted()
        assert extra.is_deleted()

    def test_weak_types_and_scalars(self):
        f = opt(lambda x, n: jnp.sin(x) * n)
        assert f(jnp.bfloat16(1), 2.0).dtype == jnp.bfloat16
        assert f(1.0, 2).weak_type

    def test_layouts(self):
        from jax.experimental.layout import Format, Layout

        wanted = Format(Layout((1, 0)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        f = jax.jit(lambda x: jnp.sin(x) + 1, in_shardings=wanted, out_shardings=wanted)
        x = jax.device_put(jnp.arange(6.0).reshape(2, 3), wanted)
        got = opt(f)(x)
        assert got.format.layout.major_to_minor == (1, 0)
        assert_close(got, jnp.cos(x) + 1)

    def test_keep_unused(self):
        f = opt(jax.jit(lambda x, unused: jnp.sin(x), keep_unused=True))
        assert "%arg1" in f.lower(X, X).as_text()
        assert_close(f(X, X), jnp.cos(X))

    def test_compiler_options(self):
        f = opt(jax.jit(lambda x: jnp.sin(x), compiler_options={"xla_embed_ir_in_executable": True}))
        assert_close(f(X), jnp.cos(X))
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            farrier.optimize(jax.jit(lambda x: x + 1, compiler_options={"xla_no_such_option": 1}), passes=())(
                X
            )

    def test_mutable_references_run_as_written(self):
        def f(ref, x):
            ref[...] = jnp.sin(x)
            return x + 1

        ref = jax.new_ref(jnp.zeros(8))
        step = opt(f)
        with pytest.warns(farrier.OptimizeWarning, match="mutable array references"):
            assert_close(step(ref, X), X + 1)
        assert_close(ref[...], jnp.sin(X))

    def test_references_of_its_own_are_fine(self):
        def f(x):
            ref = jax.new_ref(jnp.sin(x))
            ref[0] = 5.0
            return jax.freeze(ref)

        assert_close(opt(f)(X), jnp.cos(X).at[0].set(5.0))

    def test_host_memory_on_arguments(self):
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="unpinned_host")
        x = jax.device_put(X, sharding)
        assert_close(opt(lambda x: jnp.sin(x))(x), jnp.cos(X))


class TestModes:
    def test_disable_jit_runs_python(self):
        seen = []

        @opt
        def f(x):
            seen.append(x)
            return jnp.sin(x)

        with jax.disable_jit():
            assert_close(f(X), jnp.sin(X))
            assert_close(jax.grad(lambda x: f(x).sum())(X), jnp.cos(X))
        assert isinstance(seen[0], jax.Array)
        assert not isinstance(seen[0], jax.core.Tracer)

    def test_debug_nans_names_the_operation(self):
        @opt
        def f(x):
            return jnp.log(jnp.sin(x) - 2)

        with jax.debug_nans(True), pytest.raises(FloatingPointError):
            f(X)

    def test_checkify(self):
        from jax.experimental import checkify

        @opt
        def f(x):
            checkify.check(x[0] > 0, "first must be positive")
            return jnp.sin(x)

        error, _ = checkify.checkify(f)(-X)
        with pytest.raises(checkify.JaxRuntimeError, match="first must be positive"):
            error.throw()

    def test_checking_leaks(self):
        with jax.checking_leaks():
            assert_close(opt(lambda x: jnp.sin(x))(X), jnp.cos(X))

    def test_enable_checks(self):
        with jax.enable_checks(True):
            assert_close(jax.jit(opt(lambda x: jnp.sin(x)))(X), jnp.cos(X))
            assert_close(jax.grad(lambda x: opt(lambda x: jnp.sin(x))(x).sum())(X), jnp.cos(X))

    def test_an_error_in_the_function_is_the_users(self):
        @opt
        def f(x):
            raise ValueError("my mistake")

        with pytest.raises(ValueError, match="my mistake"):
            f(X)

    def test_errors_under_tracing_name_the_users_argument(self):
        @opt
        def f(x):
            return x if x[0] > 0 else -x

        with pytest.raises(jax.errors.TracerBoolConversionError):
            f(X)


class TestHostCallbacks:
    def test_all_kinds_are_carried(self, capfd):
        seen = []

        @opt
        def f(x):
            jax.debug.print("x0 = {}", x[0])
            jax.debug.callback(lambda v: seen.append(float(v)), x[1], ordered=True)
            y = jax.pure_callback(lambda v: np.asarray(v) * 2, x, x, vmap_method="sequential")
            return jnp.sin(x) + y

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_close(f(X), jnp.cos(X) + 2 * X)
        jax.effects_barrier()
        assert "x0 = 0.1" in capfd.readouterr().out
        assert seen == [pytest.approx(float(X[1]))]
        assert f.lower(X).plan.passes


class TestStages:
    def test_trace_lower_compile(self):
        f = opt(jax.jit(lambda x, *, n: {"y": jnp.sin(x) * n}, static_argnames="n"))
        traced = f.trace(X, n=2)
        assert traced.out_info["y"].shape == (8,)
        lowered = traced.lower()
        compiled = lowered.compile()
        assert_close(compiled(X)["y"], 2 * jnp.cos(X))
        assert compiled.plan == lowered.plan == f.plan(X, n=2)
        assert compiled.memory_analysis().argument_size_in_bytes == 32
        assert compiled.cost_analysis() is not None
        assert compiled.decision.changed

    def test_abstract_arguments(self):
        f = opt(lambda x: jnp.sin(x))
        spec = jax.ShapeDtypeStruct((8,), jnp.float32)
        assert_close(f.lower(spec).compile()(X), jnp.cos(X))
        assert jax.eval_shape(f, spec).shape == (8,)

    def test_a_call_and_its_lowering_decide_once(self, search):
        f = opt(lambda x: jnp.sin(x))
        f(X)
        f.lower(X).compile()
        f.plan(X)
        f.explain(X)
        assert len(search.contexts) == 1

    def test_clear_cache_plans_again(self):
        f = opt(lambda x: jnp.sin(x))
        f(X)
        f.clear_cache()
        assert_close(f(X), jnp.cos(X))

    def test_nothing_to_plan(self):
        with pytest.raises(farrier.PlanError, match="nothing to plan"):
            farrier.optimize(lambda x: x, passes=()).plan(X)


class TestScopesAndLocations:
    def test_the_original_text_with_its_locations(self):
        def f(x):
            with jax.named_scope("layer"):
                return jax.nn.relu(jnp.sin(x)) * 2

        optimized = farrier.optimize(f, passes="idle")
        both = [g.lower(X).as_text(debug_info=True) for g in (optimized, optimized.original)]
        assert both[0] == both[1]

    def test_scopes_and_lines_reach_xla(self):
        def f(x):
            with jax.named_scope("layer"):
                return jnp.sin(x) * 2

        text = opt(f).lower(X).compile().as_text()
        assert 'op_name="jit(f)/layer/' in text
        assert "test_optimize.py" in text
        assert "farrier/_src" not in text


class TestShardings:
    def test_shardings_of_arguments_and_results(self):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        rows, columns = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("x",), (None, "y")))

        @opt
        @partial(jax.jit, donate_argnums=0, out_shardings=(rows, None))
        def step(w, x):
            return w + jnp.sin(w), (x @ w).sum()

        w, x = jax.device_put(jnp.ones((8, 4)), rows), jax.device_put(jnp.ones((16, 8)), columns)
        new, loss = step(w, x)
        assert_close(new, 1 + jnp.cos(jnp.ones((8, 4))))
        assert new.sharding.is_equivalent_to(rows, 2)
        assert_close(loss, 16 * 8 * 4.0)
        assert w.is_deleted()

    def test_other_shardings_plan_again(self, search):
        f = opt(lambda x: jnp.sin(x))
        mesh = jax.make_mesh((8,), ("x",))
        for spec in (PartitionSpec(), PartitionSpec("x")):
            f(jax.device_put(X, NamedSharding(mesh, spec)))
        assert len(search.contexts) == 2

    def test_two_meshes_in_one_program(self):
        a = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        b = jax.make_mesh((4, 2), ("y", "z"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

        def f(x):
            y = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(b, PartitionSpec("y")))
            return y * 2

        x = jax.device_put(X, NamedSharding(a, PartitionSpec("x")))
        assert_close(opt(f)(x), 2 * jnp.cos(X))


def test_five_training_steps():
    def loss(params, x):
        for w in params:
            x = jnp.sin(x @ w)
        return (x**2).mean()

    def step(state, x):
        params, count = state
        value, grads = jax.value_and_grad(loss)(params, x)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), count + 1), value

    def train(step):
        state = ([jnp.eye(8) * (k + 1) / 3 for k in range(3)], 0)
        losses = []
        for k in range(5):
            state, value = step(state, jnp.sin(jnp.arange(32.0).reshape(4, 8) + k))
            losses.append(value)
        return state, losses

    plain = jax.jit(step, donate_argnums=0)
    jax.tree.map(np.testing.assert_array_equal, train(farrier.optimize(plain, passes="idle")), train(plain))
