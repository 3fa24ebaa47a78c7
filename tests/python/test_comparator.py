"""The comparator itself: it sees a changed bit, and it sees whether a recomputation survived XLA."""

from functools import partial

import farrier
import jax
import jax.numpy as jnp
import pytest
import textual
from comparator import compare, operations

X = jnp.linspace(0.1, 1.0, 1000)


def recompute(text, barrier):
    """The second use of the sine takes a sine of its own, behind a barrier or not."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "stablehlo.sine" in line)
    name, _, rest = lines[at].strip().partition(" = ")
    operand, kind = rest.removeprefix("stablehlo.sine ").split(" : ", 1)
    kind = kind.split(" loc")[0]
    last = max(i for i, line in enumerate(lines) if name in line.split(" : ")[0].partition(" = ")[2])
    lines[last] = lines[last][::-1].replace(name[::-1], "%again"[::-1], 1)[::-1]
    source = "%held" if barrier else operand
    new = [f"%again = stablehlo.sine {source} : {kind}"]
    if barrier:
        new.insert(0, f"%held = stablehlo.optimization_barrier {operand} : {kind}")
    return "\n".join([*lines[: at + 1], *new, *lines[at + 1 :]])


@pytest.fixture(autouse=True)
def _textual(monkeypatch):
    textual.install(monkeypatch)


def f(x):
    y = jnp.sin(x)
    return jnp.exp(y * 2) * y


@pytest.fixture
def rewritten(monkeypatch):
    def make(barrier):
        def apply(self, module, plan, *, remark=None):
            module.text = recompute(module.text, barrier)

        monkeypatch.setattr(textual.SwapDriver, "apply", apply)
        return farrier.optimize(f, passes="swap")

    return make


def test_a_recomputation_behind_a_barrier_is_bitwise_equal_and_there(rewritten):
    comparison = compare(rewritten(barrier=True), X)
    assert comparison.equal
    assert comparison.added["sine"] == 1


def test_a_recomputation_that_xla_undoes_is_not_there(rewritten):
    comparison = compare(rewritten(barrier=False), X)
    assert comparison.equal
    assert comparison.added["sine"] == 0


def test_other_values_are_seen():
    comparison = compare(farrier.optimize(f, passes="swap"), X)
    assert not comparison.equal
    assert comparison.differences[""] > 900


def test_one_bit_is_seen(monkeypatch):
    def nudge(self, module, plan, *, remark=None):
        module.text = module.text.replace("2.000000e+00", "2.00000023")

    monkeypatch.setattr(textual.SwapDriver, "apply", nudge)
    assert not compare(farrier.optimize(f, passes="swap"), X).equal


def test_a_bare_barrier_changes_nothing_under_the_exact_flags():
    def chain(x, y, z, barrier):
        t = x * y
        return (jax.lax.optimization_barrier(t) if barrier else t) + z

    x, y, z = (jax.random.normal(jax.random.key(k), (1000,)) for k in range(3))
    plain, held = (
        jax.jit(partial(chain, barrier=b)).lower(x, y, z).compile()(x, y, z) for b in (False, True)
    )
    assert (plain == held).all()


def test_several_steps_and_donation():
    def step(state, x):
        return {"w": state["w"] * 0.9 + jnp.sin(x), "n": state["n"] + 1}, x.sum()

    state = {"w": jnp.zeros(1000), "n": 0}
    same = compare(farrier.optimize(jax.jit(step, donate_argnums=0), passes="idle"), state, X, steps=5)
    assert same.equal
    assert not same.added
    other = compare(farrier.optimize(jax.jit(step, donate_argnums=0), passes="swap"), state, X, steps=5)
    assert set(other.differences) == {"[0]['w']"}


def test_counting_operations():
    text = """
fused {
  %p = f32[4]{0} parameter(0)
  ROOT %sine.1 = f32[4]{0} sine(%p), metadata={op_name="jit(f)/cosine(x)"}
}
ENTRY main {
  %t = (f32[4]{0}, f32[]) tuple(%a, %b)
  ROOT dot.2 = f32[2,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}
}"""
    assert operations(text) == {"parameter": 1, "sine": 1, "tuple": 1, "dot": 1}
