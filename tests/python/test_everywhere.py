"""``optimize_all``: every compile of the process goes through farrier, and nothing stays behind."""

import os
import subprocess
import sys

import farrier
import jax
import jax.numpy as jnp
import pytest
from farrier._src import everywhere, interchange


def step(w, x):
    def loss(w, x):
        x, _ = jax.lax.scan(lambda h, v: (jnp.tanh(h @ v) + h, None), x, w)
        return (x**2).mean()

    return jax.value_and_grad(loss)(w, x)


ARGUMENTS = (jnp.full((3, 4, 4), 0.1), jnp.ones((2, 4)))


def bits(tree):
    return [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


def test_stress_changes_programs_and_no_bit():
    expected = bits(jax.jit(step)(*ARGUMENTS))
    for seed in range(2):
        with farrier.optimize_all(stress=seed, strict=True) as seen:
            assert bits(jax.jit(step)(*ARGUMENTS)) == expected
        assert seen.changed >= 1
        assert seen.programs >= seen.changed
        assert not seen.refused


def test_what_was_compiled_before_goes_through_too_and_nothing_stays():
    jitted = jax.jit(step)
    jitted(*ARGUMENTS)
    with farrier.optimize_all() as seen:
        jitted(*ARGUMENTS)
        during = seen.programs
    jitted(*ARGUMENTS)
    jax.jit(lambda x: x * 3)(ARGUMENTS[1])
    assert during > 0
    assert seen.programs == during


def test_a_failure_is_one_warning_and_the_original(monkeypatch):
    def broken(module):
        raise RuntimeError("planted")

    monkeypatch.setattr(interchange, "to_core", broken)
    with (
        pytest.warns(farrier.OptimizeWarning, match="runs as it was written.*planted") as caught,
        farrier.optimize_all() as seen,
    ):
        assert jax.jit(lambda x: x + 1)(1.0) == 2
        assert jax.jit(lambda x: x + 2)(1.0) == 3
    assert len(caught) == 1
    assert len(seen.refused) == seen.programs >= 2
    with farrier.optimize_all(strict=True), pytest.raises(RuntimeError, match="planted"):
        jax.jit(lambda x: x + 3)(1.0)


@pytest.mark.parametrize("value", ["2", "stress:x", "yes"])
def test_a_value_that_means_nothing(monkeypatch, value):
    monkeypatch.setenv("FARRIER_OPTIMIZE_ALL", value)
    with pytest.raises(farrier.OptionError, match="use 1, stress or stress:SEED"):
        everywhere.from_environment()


def test_the_environment_variable():
    code = (
        "import farrier, jax; from farrier._src import everywhere; jax.jit(lambda x: x + 1)(1.0); "
        "print(everywhere._forever[0].programs > 0)"
    )
    environment = os.environ | {"FARRIER_OPTIMIZE_ALL": "stress:3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr
