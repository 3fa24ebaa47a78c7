"""`checkpoint_name` in the program that is planned.

The primitive behind it leaves no trace when a program is lowered: it is the identity, for `jax.checkpoint` alone. Here
its text joins the name stack of whatever made the value, so that options which pick operations by fragments of their
name stack (`Remat(keep=...)`) take such names as well.
"""

from __future__ import annotations

from typing import Any

from jax._src.ad_checkpoint import name_p
from jax.extend import core


def in_name_stacks(jaxpr: Any) -> Any:
    """A `ClosedJaxpr` or `Jaxpr` like this one, with checkpoint names in the name stacks; itself if it has none."""
    return _renamed(jaxpr, {})


def _renamed(jaxpr: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    # Once for each: what is shared is lowered once. The original is held, so that its id stays its own.
    if id(jaxpr) not in known:
        known[id(jaxpr)] = jaxpr, _fresh(jaxpr, known)
    return known[id(jaxpr)][1]


def _fresh(jaxpr: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    # From jax 0.12 on both are one class.
    if isinstance(jaxpr, core.ClosedJaxpr) and jaxpr.jaxpr is not jaxpr:
        inner = _renamed(jaxpr.jaxpr, known)
        return jaxpr if inner is jaxpr.jaxpr else jaxpr.replace(jaxpr=inner)
    names: dict[Any, str] = {}
    # From the end, so that a name given to a named value reaches what made it.
    for equation in reversed(jaxpr.eqns):
        if equation.primitive is name_p:
            for value in equation.invars:
                if isinstance(value, core.Var):
                    later = [names[v] for v in equation.outvars if v in names]
                    names[value] = "/".join([equation.params["name"], *later])
    changed, equations = False, []
    for equation in jaxpr.eqns:
        new = _with_renamed_parts(equation, known)
        scope = "/".join(dict.fromkeys(names[v] for v in equation.outvars if v in names))
        if scope:
            source = new.source_info
            new = new.replace(source_info=source.replace(name_stack=source.name_stack.extend(scope)))
        changed |= new is not equation
        equations.append(new)
    return jaxpr.replace(eqns=equations) if changed else jaxpr


def _with_renamed_parts(equation: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    """The equation with what it calls renamed."""

    def part(value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            return _renamed(value, known)
        if type(value) in (tuple, list):
            parts = type(value)(part(one) for one in value)
            return parts if any(a is not b for a, b in zip(parts, value, strict=True)) else value
        return value

    params = {name: part(value) for name, value in equation.params.items()}
    if all(params[name] is value for name, value in equation.params.items()):
        return equation
    return equation.replace(params=params)
