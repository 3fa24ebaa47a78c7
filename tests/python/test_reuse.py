"""What a search compiled is not compiled once more by JAX, and nothing else is handed out in its place."""

import farrier
import jax
import jax.numpy as jnp
import pytest
from farrier._src import compat, oracle, reuse
from jax._src import compiler

pytestmark = pytest.mark.filterwarnings("ignore:farrier.optimize")  # the budget is about CPU's memory

WEIGHTS = [jnp.full((64, 64), 0.01) for _ in range(4)]
X = jnp.linspace(0.0, 1.0, 256 * 64).reshape(256, 64)


def loss(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w) + jnp.sin(x)
    return jnp.mean(x * x)


def optimized(**options):
    # A function of its own each time: nothing of JAX's caches is warm.
    def step(weights, x):
        return jax.value_and_grad(loss)(weights, x)

    memory = jax.jit(step).lower(WEIGHTS, X).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    budget = total - memory.temp_size_in_bytes // 4
    return farrier.optimize(
        step, memory_budget=budget, passes=[farrier.Remat(small_bytes=0)], strict=True, **options
    )


@pytest.fixture
def asked(monkeypatch):
    """The names of the modules that XLA compiled for JAX."""
    names = []

    def compile_and_load(backend, module, *rest):
        names.append(str(module.operation.attributes["sym_name"]).strip('"'))
        return compat.compile_and_load(backend, module, *rest)

    # Below what answers instead of compiles, which the first search puts in place.
    monkeypatch.setattr(compat, "_instead_of_compiles", [])
    monkeypatch.setattr(compiler, "backend_compile_and_load", compile_and_load)
    reuse.forget()
    return names


def of_step(names):
    return [name for name in names if name.startswith("jit_step_farrier_")]


def test_the_chosen_program_is_compiled_once(asked):
    step = optimized()
    lowered = step.lower(WEIGHTS, X)
    assert lowered.decision.source == "search" and lowered.decision.changed
    compiled = lowered.compile()
    assert of_step(asked) == []
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert total == lowered.plan.measured["after"]["total_bytes"]
    value, gradients = compiled(WEIGHTS, X)
    want, expected = step.original(WEIGHTS, X)
    assert jnp.allclose(value, want, rtol=1e-5)
    assert all(jnp.allclose(a, b, rtol=1e-4) for a, b in zip(gradients, expected, strict=True))


def test_a_call_takes_it_too(asked):
    step = optimized()
    step(WEIGHTS, X)
    assert of_step(asked) == []


def test_other_options_are_another_compile(asked):
    lowered = optimized().lower(WEIGHTS, X)
    lowered.compile(compiler_options={"xla_cpu_enable_fast_min_max": True})
    assert len(of_step(asked)) == 1


def test_a_plan_alone_keeps_nothing(asked):
    step = optimized()
    step.plan(WEIGHTS, X)
    step.lower(WEIGHTS, X).compile()  # the plan comes from memory, the program has to be compiled
    assert len(of_step(asked)) == 1


def test_few_are_kept(asked):
    module = jax.jit(loss).lower(WEIGHTS, X).compiler_ir("stablehlo")
    for _ in range(4):
        oracle.compile_module(module, devices=jax.devices()[:1], reusable=True)
    assert len(reuse._executables) == 1
    for size in (2, 3, 4):
        module = jax.jit(jnp.sin).lower(jnp.ones(size)).compiler_ir("stablehlo")
        oracle.compile_module(module, devices=jax.devices()[:1], reusable=True)
    assert len(reuse._executables) == 2


def test_settings_around_a_compile_are_another_compile(asked, monkeypatch):
    lowered = optimized().lower(WEIGHTS, X)
    monkeypatch.setattr(compat, "_around_compiles", [lambda name: "something"])
    (answer,) = compat._instead_of_compiles
    wrapped = compat._compile_unless_answered(lambda *_: "compiled")
    module = lowered.compiler_ir("stablehlo")
    assert wrapped(None, module, jax.devices()[:1], None, []) == "compiled"
    assert answer is reuse._take and len(reuse._executables) > 0
