"""A stand-in for the planner that changes a program so that the change shows in the values.

A real pass keeps the values, so a test could not tell whether the optimized module ran. Here every
``stablehlo.sine`` becomes a cosine: where the result has cosines, the optimized module was used, and
where it has sines, the original.
"""

import functools

import jax
from farrier._src import compat, primitive
from farrier._src.optimize import _stage

ir = primitive.ir


class EditingSite:
    """Replaces text in the program; counts how often it was asked."""

    options = None

    def __init__(self, old="stablehlo.sine", new="stablehlo.cosine"):
        self.old, self.new = old, new
        self.programs = []

    def say(self, text):
        raise AssertionError(text)

    def transform(self, program, enclosing):
        made = program()
        text = made.module.operation.get_asm(enable_debug_info=True)
        self.programs.append(made)
        return ir.Module.parse(text.replace(self.old, self.new), enclosing.context)


def edited(fun, **edit):
    """``fun`` (jitted or not) with its sines turned to cosines wherever its optimized module runs."""
    original = fun if compat.is_jitted(fun) else jax.jit(fun)
    inner = compat.inner_function(original)
    site = EditingSite(**edit)

    @functools.wraps(original)
    def staged(*args, **kwargs):
        return _stage(site, inner, original.__name__, args, kwargs)

    result = compat.jit_like(original, staged)
    result.site = site
    result.original = original
    return result
