"""Every program that runs on CPU, through farrier's own MLIR and back inside the primitive: same bits.

The module is always taken apart and spliced in again, also where no pass would change it, so this is
about what JAX emits and not about what passes do.
"""

import contextlib
import functools

import edited
import jax
import numpy as np
import programs
import pytest
from farrier._src import compat, interchange

RUN = [p.name for p in programs.programs(platform="cpu", runs=True, symbolic=False)]
# Two calls draw different numbers: only shapes can be compared.
RANDOM = {"hidden_random_state"}


class CoreSite(edited.EditingSite):
    """Reads the program into farrier's MLIR and gives it back."""

    def transform(self, program, enclosing):
        made = program()
        self.programs.append(made)
        return interchange.to_jaxlib(interchange.to_core(made.module), enclosing.context)


def through_core(function):
    original = function if compat.is_jitted(function) else jax.jit(function)
    site = CoreSite()

    @functools.wraps(original)
    def staged(*args, **kwargs):
        return edited._stage(site, compat.inner_function(original), original.__name__, args, kwargs)

    result = compat.jit_like(original, staged)
    result.site = site
    return original, result


def bits(value):
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tobytes()


@pytest.mark.parametrize("name", RUN)
def test_same_bits(name):
    program = programs.get(name)
    function, arguments = program.build()
    original, optimized = through_core(function)
    with contextlib.ExitStack() as stack:
        stack.enter_context(program.device_context())
        # Donated arguments are gone after a call.
        results = [
            f(*jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, arguments))
            for f in (original, optimized)
        ]
    assert optimized.site.programs
    want, got = map(jax.tree.leaves, results)
    assert [(np.shape(a), a.dtype) for a in got] == [(np.shape(a), a.dtype) for a in want]
    if name not in RANDOM:
        assert [bits(a) for a in got] == [bits(a) for a in want]


@pytest.mark.parametrize(
    "name", [p.name for p in programs.programs(platform="cpu", runs=True, has_gradient=True)]
)
def test_same_derivatives(name):
    function, arguments = programs.get(name).build()
    original, optimized = through_core(function)

    def loss(f, first):
        leaves = jax.tree.leaves(f(first, *arguments[1:]))
        return sum(
            leaf.astype("float32").sum() for leaf in leaves if jax.dtypes.issubdtype(leaf.dtype, np.floating)
        )

    want, got = (
        jax.tree.leaves(jax.grad(functools.partial(loss, f), allow_int=True)(arguments[0]))
        for f in (original, optimized)
    )
    assert [bits(a) for a in got] == [bits(a) for a in want]
