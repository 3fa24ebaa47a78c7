"""The primitive: the value comes from the optimized module, every transformation from the original."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edited import edited
from farrier._src import primitive
from jax.sharding import NamedSharding, PartitionSpec

X = jnp.linspace(0.1, 1.0, 8)
W = jnp.arange(8.0) / 8


def plain(x, w):
    return jnp.sin(x) * w


def swapped(x, w):
    return jnp.cos(x) * w


@pytest.fixture
def opt():
    return edited(plain)


def assert_close(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), a, b)


def scalar(f):
    return lambda x, w: f(x, w).sum()


class TestValues:
    def test_call_uses_the_optimized_module(self, opt):
        assert_close(opt(X, W), swapped(X, W))

    def test_under_an_outer_jit(self, opt):
        assert_close(jax.jit(lambda x, w: opt(x, w) + opt(2 * x, w))(X, W), swapped(X, W) + swapped(2 * X, W))

    def test_in_a_scan(self, opt):
        def loop(f):
            return jax.lax.scan(lambda c, w: (f(c, w), c), X, jnp.stack([W, W + 1, W + 2]))

        assert_close(loop(opt), loop(swapped))

    def test_in_cond_and_while(self, opt):
        def both(f):
            y = jax.lax.cond(True, f, lambda x, w: x, X, W)
            return jax.lax.fori_loop(0, 3, lambda i, c: f(c, W), y)

        assert_close(both(opt), both(swapped))

    def test_jaxpr_evaluated_by_equation(self, opt):
        closed = jax.make_jaxpr(opt)(X, W)
        assert_close(jax.extend.core.jaxpr_as_fun(closed)(X, W)[0], swapped(X, W))
        inner = closed.eqns[0].params["jaxpr"]
        assert inner.eqns[0].primitive is primitive.optimize_p
        assert_close(jax.extend.core.jaxpr_as_fun(inner)(X, W)[0], swapped(X, W))


# Each takes a function of (x, w) and gives a pytree; the optimized function must give what the
# original gives, although its own module computes something else.
TRANSFORMS = {
    "grad": lambda f: jax.grad(scalar(f), argnums=(0, 1))(X, W),
    "grad of jit": lambda f: jax.grad(jax.jit(scalar(f)))(X, W),
    "value_and_grad of jit": lambda f: jax.value_and_grad(jax.jit(scalar(f)))(X, W),
    "jit of grad": lambda f: jax.jit(jax.grad(scalar(f)))(X, W),
    "vjp": lambda f: jax.vjp(f, X, W)[1](jnp.ones(8)),
    "jvp": lambda f: jax.jvp(f, (X, W), (jnp.ones(8), W)),
    "jvp of jit": lambda f: jax.jvp(jax.jit(f), (X, W), (jnp.ones(8), W)),
    "linearize": lambda f: jax.linearize(f, X, W)[1](jnp.ones(8), W),
    "linearize of jit": lambda f: jax.linearize(jax.jit(f), X, W)[1](jnp.ones(8), W),
    "linear_transpose": lambda f: jax.linear_transpose(lambda w: f(X, w), W)(jnp.ones(8)),
    "vmap": lambda f: jax.vmap(f, in_axes=(0, None))(jnp.stack([X, 2 * X]), W),
    "vmap of jit": lambda f: jax.vmap(jax.jit(f), in_axes=(None, 1))(X, jnp.stack([W, W + 1], axis=1)),
    "jit of vmap": lambda f: jax.jit(jax.vmap(f))(jnp.stack([X, X]), jnp.stack([W, W])),
    "vmap of grad": lambda f: jax.vmap(jax.grad(scalar(f)), in_axes=(0, None))(jnp.stack([X, 2 * X]), W),
    "hessian": lambda f: jax.hessian(scalar(f))(X, W),
    "jacfwd of jacrev": lambda f: jax.jacfwd(jax.jacrev(f, argnums=1))(X, W),
    "checkpoint": lambda f: jax.grad(lambda x, w: jax.checkpoint(f)(x, w).sum())(X, W),
    "checkpoint with a policy": lambda f: jax.grad(
        lambda x, w: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable)(x, w).sum()
    )(X, W),
    "checkpoint in jit": lambda f: jax.jit(
        jax.value_and_grad(lambda x, w: jax.checkpoint(jax.checkpoint(f))(x, w).sum())
    )(X, W),
    "grad of scan": lambda f: jax.grad(
        lambda x, w: jax.lax.scan(lambda c, v: (f(c, v), None), x, jnp.stack([w, w]))[0].sum()
    )(X, W),
    "custom_vjp inside": lambda f: jax.grad(lambda x, w: f(clipped(x), w).sum())(X, W),
}


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transformations_are_those_of_the_original(opt, transform):
    assert_close(transform(opt), transform(jax.jit(plain)))


def test_custom_rules_of_the_function_are_kept():
    def f(x, w):
        return jnp.sin(clipped(x)) * w

    assert_close(jax.grad(scalar(edited(f)))(X, W), jax.grad(scalar(f))(X, W))
    assert abs(jax.grad(scalar(edited(f)))(X, W)).max() < 0.11


def test_axis_names_reach_the_function():
    def f(x):
        return jax.lax.psum(jnp.sin(x), "i") + jax.lax.axis_index("i")

    batched = jnp.stack([X, 2 * X])
    assert_close(jax.vmap(edited(f), axis_name="i")(batched), jax.vmap(f, axis_name="i")(batched))


def test_symbolic_zeros_and_integers():
    def f(x, n):
        return jnp.sin(x) * n, n + 1

    opt = edited(f)
    value, tangent = jax.jvp(lambda x: opt(x, jnp.int32(3))[0], (X,), (jnp.ones(8),))
    assert_close((value, tangent), (3 * jnp.sin(X), 3 * jnp.cos(X)))


def test_unused_arguments_are_dropped_as_jit_drops_them():
    def f(x, unused):
        return jnp.sin(x)

    opt = edited(f)
    assert "%arg1" not in opt.lower(X, W).as_text()
    assert_close(opt(X, W), jnp.cos(X))


def test_dead_results_are_pruned():
    def f(x, w):
        return jnp.sin(x), jnp.tan(w)

    opt = edited(f)
    outer = jax.jit(lambda x, w: opt(x, w)[0])
    assert_close(outer(X, W), jnp.cos(X))
    assert "tan" not in outer.lower(X, W).as_text()


class TestPlumbing:
    def test_closed_over_values(self):
        big = jnp.arange(8.0)
        assert_close(
            edited(lambda x: jnp.sin(x) * big + np.arange(8.0) + 2)(X), jnp.cos(X) * big + np.arange(8.0) + 2
        )

    def test_closed_over_tracers(self):
        def outer(f):
            def run(x, w):
                return f(lambda y: jnp.sin(y) * w)(x)

            return jax.jit(run)(X, W)

        assert_close(outer(edited), swapped(X, W))
        assert_close(jax.grad(lambda w: edited(lambda y: jnp.sin(y) * w)(X).sum())(W), jnp.sin(X))

    def test_results_that_are_arguments(self):
        opt = edited(lambda x, w: {"x": x, "w": (w, w), "none": None, "sin": jnp.sin(x), "one": 1.0})
        got = opt(X, W)
        assert_close(got["sin"], jnp.cos(X))
        assert_close((got["x"], got["w"], got["one"]), (X, (W, W), 1.0))
        assert got["none"] is None
        assert_close(edited(lambda x: x)(X), X)

    def test_no_arguments(self):
        assert_close(edited(lambda: jnp.sin(jnp.float32(1)))(), jnp.cos(jnp.float32(1)))

    def test_private_functions_are_renamed(self):
        def f(x):
            return jax.nn.relu(jnp.sin(x)) + jax.jit(lambda y: jnp.sin(y) * 2)(x)

        opt = edited(f)
        outer = jax.jit(lambda x: opt(x) + jax.nn.relu(x - 1) + opt(x + 1))
        want = jax.nn.relu(jnp.cos(X)) + 2 * jnp.cos(X)
        want = want + jax.nn.relu(X - 1) + jax.nn.relu(jnp.cos(X + 1)) + 2 * jnp.cos(X + 1)
        assert_close(outer(X), want)

    def test_random_keys(self):
        def f(key, x):
            a, b = jax.random.split(key)
            return b, jnp.sin(x) + jax.random.normal(a, x.shape)

        def g(key, x):
            a, b = jax.random.split(key)
            return b, jnp.cos(x) + jax.random.normal(a, x.shape)

        for key in (jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")):
            got, want = edited(f)(key, X), g(key, X)
            assert_close(got[1], want[1])
            assert got[0].dtype == want[0].dtype
        keys = jax.random.split(jax.random.key(0), 3)
        assert_close(
            jax.vmap(edited(f), in_axes=(0, None))(keys, X)[1], jax.vmap(f, in_axes=(0, None))(keys, X)[1]
        )

    def test_weak_types(self):
        opt = edited(lambda x, n: jnp.sin(x) * n)
        assert opt(jnp.bfloat16(1), 2.0).dtype == jnp.bfloat16
        assert jax.jit(lambda n: edited(lambda n: n * 2)(n))(3).weak_type
        assert jax.eval_shape(opt, jnp.bfloat16(1), 2.0).dtype == jnp.bfloat16

    def test_linear_algebra_custom_calls(self):
        a = jnp.eye(3) * 2 + 0.1
        assert_close(edited(lambda a: jnp.sin(jnp.linalg.inv(a)))(a), jnp.cos(jnp.linalg.inv(a)))

    def test_x64_and_matmul_precision_lower_again(self):
        opt = edited(lambda x: jnp.sin(x) @ x)
        opt(np.ones((2, 2)))
        assert len(opt.site.programs) == 1
        with jax.enable_x64(True):
            assert opt(np.ones((2, 2))).dtype == np.float64
        with jax.default_matmul_precision("highest"):
            opt(np.ones((2, 2)))
        opt(np.ones((2, 2)))
        assert len(opt.site.programs) == 3

    def test_donation_is_the_outer_jits(self):
        opt = edited(jax.jit(lambda s, b: (s + jnp.sin(b), b.sum()), donate_argnums=0))
        state = jnp.ones(8)
        new, _ = opt(state, X)
        assert_close(new, 1 + jnp.cos(X))
        assert state.is_deleted()
        text = opt.site.programs[0].module.operation.get_asm()
        assert "tf.aliasing_output = 0" in text
        assert opt.lower(jnp.ones(8), X).compile().memory_analysis().alias_size_in_bytes == 32

    def test_forward_mode_of_nested_optimized_functions(self):
        inner = edited(plain)
        outer = edited(lambda x, w: jnp.sin(inner(x, w)))
        assert_close(outer(X, W), jnp.cos(swapped(X, W)))
        assert_close(jax.grad(scalar(outer))(X, W), jax.grad(scalar(lambda x, w: jnp.sin(plain(x, w))))(X, W))


class TestEffects:
    @pytest.mark.parametrize("ordered", [False, True])
    def test_debug_print(self, capfd, ordered):
        def f(x):
            jax.debug.print("first {}", x[0], ordered=ordered)
            jax.debug.print("second {}", x[1], ordered=ordered)
            return jnp.sin(x)

        opt = edited(f)
        assert_close(opt(X), jnp.cos(X))
        jax.effects_barrier()
        assert capfd.readouterr().out.splitlines()[:1][0].startswith("first" if ordered else "")
        assert_close(jax.jit(lambda x: opt(opt(x)))(X), jnp.cos(jnp.cos(X)))
        jax.effects_barrier()
        lines = capfd.readouterr().out.split()[::2]
        assert (
            (lines == ["first", "second"] * 2) if ordered else sorted(lines) == ["first"] * 2 + ["second"] * 2
        )

    def test_pure_callback(self):
        def f(x):
            return jnp.sin(x) + jax.pure_callback(lambda v: np.asarray(v) * 2, x, x)

        assert_close(edited(f)(X), jnp.cos(X) + 2 * X)

    def test_ordered_io_callback_in_a_loop(self):
        seen = []

        def f(n):
            def body(i, c):
                return c + jax.experimental.io_callback(
                    lambda i: (seen.append(int(i)), np.float32(i))[1],
                    jax.ShapeDtypeStruct((), jnp.float32),
                    i,
                    ordered=True,
                )

            return jax.lax.fori_loop(0, 3, body, jnp.sin(n))

        opt = edited(f)
        assert_close(opt(1.0), jnp.cos(1.0) + 3)
        jax.effects_barrier()
        assert seen == [0, 1, 2]

    def test_callback_outlives_the_lowering(self):
        import gc

        opt = edited(lambda x: jnp.sin(x) + jax.pure_callback(lambda v: np.asarray(v), x, x))
        compiled = opt.lower(X).compile()
        gc.collect()
        assert_close(compiled(X), jnp.cos(X) + X)


class TestShardings:
    @pytest.fixture
    def mesh(self):
        return jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def test_automatic(self, mesh):
        def f(w, x):
            w = jax.lax.with_sharding_constraint(jnp.sin(w), NamedSharding(mesh, PartitionSpec(None, "y")))
            return x @ w

        opt = edited(f)
        w = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("y", None)))
        x = jax.device_put(jnp.ones((16, 8)), NamedSharding(mesh, PartitionSpec("x", None)))
        got = opt(w, x)
        want = jax.jit(lambda w, x: x @ jnp.cos(w))(w, x)
        assert_close(got, want)
        assert got.sharding.is_equivalent_to(jax.jit(f)(w, x).sharding, 2)
        text = opt.site.programs[0].module.operation.get_asm()
        assert 'sdy.mesh @mesh = <["x"=4, "y"=2]>' in text
        assert text.count("sdy.sharding = #sdy.sharding<@mesh") >= 2
        assert opt.site.programs[0].num_partitions == 8
        nested = jax.jit(lambda w, x: opt(w, x) * 2)
        assert_close(nested(w, x), 2 * want)
        assert_close(jax.grad(lambda w: opt(w, x).sum())(w), jax.grad(lambda w: f(w, x).sum())(w))

    def test_in_and_out_shardings(self, mesh):
        rows, columns = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("x",), (None, "y")))
        opt = edited(jax.jit(jnp.sin, in_shardings=rows, out_shardings=columns))
        got = opt(jnp.ones((8, 4)))
        assert_close(got, jnp.cos(jnp.ones((8, 4))))
        assert got.sharding.is_equivalent_to(columns, 2)

    def test_shard_map_inside(self, mesh):
        def f(x):
            local = partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec())
            return local(lambda s: jax.lax.psum(jnp.sin(s).sum(0), "x"))(x)

        x = jnp.arange(16.0).reshape(8, 2) / 10
        opt = edited(f)
        assert_close(opt(x), jnp.cos(x).sum(0))
        assert_close(jax.jit(lambda x: opt(x) + jnp.sin(x).sum(0))(x), jnp.cos(x).sum(0) + jnp.sin(x).sum(0))
        assert_close(jax.grad(lambda x: opt(x).sum())(x), jnp.cos(x))

    def test_inside_a_shard_map(self, mesh):
        opt = edited(lambda s: jax.lax.psum(jnp.sin(s).sum(0), "x"))
        x = jnp.arange(16.0).reshape(8, 2) / 10
        whole = jax.shard_map(opt, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec())
        assert_close(jax.jit(whole)(x), jnp.cos(x).sum(0))

    def test_mesh_context_lowers_again(self, mesh):
        opt = edited(lambda x: jnp.sin(x))
        opt(X)
        with jax.set_mesh(mesh):
            opt(X)
        assert len(opt.site.programs) == 2

    def test_explicit_axes(self):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
        with jax.set_mesh(mesh):
            x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("x")))
            opt = edited(lambda x: jnp.sin(x) * 2)
            assert jax.typeof(opt(x)).sharding.spec == PartitionSpec("x", None)
            assert_close(opt(x), 2 * jnp.cos(x))


def test_symbolic_shapes_are_lowered_as_written():
    opt = edited(plain)
    (n,) = jax.export.symbolic_shape("n")
    spec = jax.ShapeDtypeStruct((n,), jnp.float32)
    exported = jax.export.export(opt)(spec, spec)
    assert_close(exported.call(X, W), plain(X, W))
    assert not opt.site.programs


def test_export_of_an_optimized_function():
    opt = edited(plain)
    exported = jax.export.deserialize(jax.export.export(opt)(X, W).serialize())
    assert_close(exported.call(X, W), swapped(X, W))
