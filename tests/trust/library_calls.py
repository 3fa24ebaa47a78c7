"""Arguments for JAX's public functions: which functions there are, and what each is called with.

Most functions take a few arrays; those are found by trying the tuples of ``GENERIC`` with ``jax.eval_shape``. What
wants more than that has a line in ``special``.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MODULES = (
    "jax.numpy", "jax.numpy.linalg", "jax.numpy.fft", "jax.lax", "jax.lax.linalg", "jax.nn", "jax.nn.initializers",
    "jax.scipy.special", "jax.scipy.linalg", "jax.scipy.signal", "jax.scipy.ndimage", "jax.scipy.fft",
    "jax.scipy.integrate", "jax.scipy.cluster.vq", "jax.scipy.sparse.linalg", "jax.scipy.optimize", "jax.random",
    "jax.ops",
)  # fmt: skip
DISTRIBUTIONS = "jax.scipy.stats"
# The most argument tuples for one function.
MOST = 3


@dataclasses.dataclass(frozen=True)
class Call:
    """One function with arguments: arrays are the program's, everything else is part of it."""

    name: str
    function: Callable
    arguments: tuple
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)

    def split(self) -> tuple[Callable, list]:
        """A function of the arrays alone, and the arrays."""
        leaves, tree = jax.tree.flatten(self.arguments)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray | jax.Array)]

        def run(*arrays):
            given = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                given[place] = array
            return self.function(*jax.tree.unflatten(tree, given), **self.keywords)

        return run, [leaves[i] for i in places]


def _values() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    square = draw.uniform(-1, 1, (4, 4)).astype(np.float32)
    return {
        "x": draw.uniform(0.1, 0.9, (4, 6)).astype(np.float32),
        "y": draw.uniform(0.1, 0.9, (4, 6)).astype(np.float32),
        "z": draw.uniform(0.1, 0.9, (4, 6)).astype(np.float32),
        "signed": draw.uniform(-2, 2, (4, 6)).astype(np.float32),
        "half": draw.uniform(-2, 2, (4, 6)).astype(jnp.bfloat16),
        "complex": (draw.normal(size=(4, 6)) + 1j * draw.normal(size=(4, 6))).astype(np.complex64),
        "square": square,
        "positive": square @ square.T + 4 * np.eye(4, dtype=np.float32),
        "v": draw.uniform(0.1, 0.9, 6).astype(np.float32),
        "w": draw.uniform(0.1, 0.9, 4).astype(np.float32),
        "three": draw.uniform(0.1, 0.9, (2, 4, 3)).astype(np.float32),
        "integers": draw.integers(0, 5, (4, 6)).astype(np.int32),
        "others": draw.integers(1, 4, (4, 6)).astype(np.int32),
        "indices": draw.integers(0, 4, 6).astype(np.int32),
        "flags": draw.integers(0, 2, (4, 6)).astype(np.bool_),
        "bytes": draw.integers(0, 255, (4, 8)).astype(np.uint8),
        "scalar": np.float32(0.3) * np.ones((), np.float32),
    }


V = _values()
KEY = jax.random.key_data(jax.random.key(7))

# In order of preference; names of V, or values.
GENERIC: tuple[tuple, ...] = (
    ("x",), ("x", "y"), ("x", "y", "z"), ("positive",), ("integers",), ("flags",), ("complex",), ("half",), ("v",),
    ("integers", "others"), ("signed",), ("square", "square"), ("positive", "w"), ("positive", "square"), ("v", "v"),
    ("flags", "x", "y"), ("x", "v"), ("x", "indices"), ("integers", "x"), ("x", "integers"), ("x", 1), ("x", 0, 1),
    ("x", (6, 4)), ("x", 2, 1), (["x", "y"],), (("x", "y"),), ("v", "v", "v"), ("scalar",), ("scalar", "scalar"),
    ("w", "v"), ("square", "w"), ("three",), ("three", "three"), (3,), (3, 4), ((4, 6),), ((4, 6), jnp.float32),
    ("bytes",), ("x", "x", "x", "x"), ("integers", 5), (5, "x"), ("indices", "v"), ("v", "indices"),
    ("integers", "others", "x"), ("x", jnp.float16), (0.1, 0.9, 5),
)  # fmt: skip

# After a key: jax.random and initializers.
AFTER_KEY: tuple[tuple, ...] = (
    (), ((4, 6),), ("x",), ("v",), (3,), (2.0, (4, 6)), ((4, 6), 0, 9), (-1.0, 1.0, (4, 6)), (0.5, 0.9, (4, 6)),
    ("w", "positive"), ("x", (3, 4)), (4, (3,)), (2.0, 1.0, 0.5, (4,)), (5, 0.4, (4, 6)), (0.1, 0.5, 0.9, (4, 6)),
    (2.0, 3.0, (4, 6)), (2, (4, 6)), (5, "w"), (3, 2.0, (4,)),
)  # fmt: skip


def _fill(template: Any) -> Any:
    if isinstance(template, str):
        return V[template]
    if isinstance(template, list) and template and isinstance(template[0], str):
        return [V[name] for name in template]
    if isinstance(template, tuple) and template and isinstance(template[0], str):
        return tuple(V[name] for name in template)
    return template


def functions(module: str) -> Iterator[tuple[str, Callable]]:
    """Public functions of a module by name, without those that are another's alias in it."""
    holder = importlib.import_module(module)
    seen: set[int] = set()
    for name in sorted(dir(holder)):
        value = getattr(holder, name)
        if name.startswith("_") or not callable(value) or isinstance(value, type) or id(value) in seen:
            continue
        seen.add(id(value))
        yield name, value


def distributions() -> Iterator[tuple[str, Callable]]:
    """Functions of the distributions in jax.scipy.stats."""
    holder = importlib.import_module(DISTRIBUTIONS)
    for name in sorted(dir(holder)):
        if inspect.ismodule(inner := getattr(holder, name)) and not name.startswith("_"):
            for method, function in functions(inner.__name__):
                yield f"{name}.{method}", function


def special() -> dict[str, list[Call]]:
    """Calls that no generic tuple makes, by the function's name."""
    x, v, m, three = V["x"], V["v"], V["square"], V["three"]
    image, kernel = np.stack([x, x])[None], np.stack([m[:2, :3], m[2:, :3]])[:, None].repeat(2, 1)
    scatter = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    places = V["indices"][:3, None]
    indexed = ("scatter", "scatter_add", "scatter_max", "scatter_min", "scatter_mul", "scatter_sub")
    table: dict[str, list[tuple[Callable, tuple, dict]]] = {
        "lax.conv": [(lax.conv, (image, kernel, (1, 1), "SAME"), {})],
        "lax.conv_general_dilated": [
            (lax.conv_general_dilated, (image, kernel, (2, 1), "SAME"), {"rhs_dilation": (1, 2)}),
            (lax.conv_general_dilated, (image, kernel[:, :1], (1, 1), "VALID"), {"feature_group_count": 2}),
        ],
        "lax.conv_transpose": [
            (lax.conv_transpose, (image, kernel, (2, 2), "SAME"), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")})
        ],
        "lax.conv_general_dilated_patches": [
            (lax.conv_general_dilated_patches, (image, (2, 2), (1, 1), "SAME"), {})
        ],
        "lax.conv_with_general_padding": [
            (lax.conv_with_general_padding, (image, kernel, (1, 1), ((1, 1), (0, 2)), (1, 1), (1, 1)), {})
        ],
        "lax.dot_general": [(lax.dot_general, (x, x, (((1,), (1,)), ((0,), (0,)))), {})],
        "lax.ragged_dot": [
            (lax.ragged_dot, (x, np.stack([m[:, :3].repeat(2, 0)[:6]] * 2), np.array([1, 3], np.int32)), {})
        ],
        "lax.scan": [(lambda s, r: lax.scan(lambda c, a: (jnp.tanh(c + a), c * a), s, r), (v, x), {})],
        "lax.while_loop": [
            (lambda s: lax.while_loop(lambda c: c.sum() < 40, lambda c: c * 1.5 + 0.1, s), (v,), {})
        ],
        "lax.fori_loop": [(lambda s: lax.fori_loop(0, 4, lambda i, c: jnp.sin(c) + i, s), (x,), {})],
        "lax.cond": [(lambda s: lax.cond(s.sum() > 1, jnp.sin, jnp.cos, s), (x,), {})],
        "lax.switch": [(lambda i, s: lax.switch(i[0], [jnp.sin, jnp.cos, jnp.tanh], s), (V["indices"], x), {})],
        "lax.map": [(lambda s: lax.map(lambda r: r / r.sum(), s), (x,), {})],
        "lax.associative_scan": [(lambda s: lax.associative_scan(jnp.maximum, s, reverse=True), (x,), {})],
        "lax.reduce": [(lambda s: lax.reduce(s, np.float32(0), lax.add, (0,)), (x,), {})],
        "lax.reduce_window": [
            (lambda s: lax.reduce_window(s, -np.inf, lax.max, (2, 2), (1, 2), "SAME"), (x,), {}),
            (lambda s: lax.reduce_window(s, 0.0, lax.add, (3, 2), (1, 1), "VALID"), (x,), {}),
        ],
        "lax.pad": [(lax.pad, (x, np.float32(1), ((1, 2, 1), (0, -1, 2))), {})],
        "lax.gather": [
            (
                lax.gather,
                (x, places, lax.GatherDimensionNumbers((1,), (0,), (0,)), (1, 6)),
                {"mode": "clip"},
            )
        ],
        **{f"lax.{name}": [(getattr(lax, name), (x, places, x[:3], scatter), {})] for name in indexed},
        "lax.dynamic_slice": [(lax.dynamic_slice, (x, (V["indices"][0], V["indices"][1]), (2, 3)), {})],
        "lax.dynamic_update_slice": [
            (lax.dynamic_update_slice, (x, m[:2, :3], (V["indices"][0], V["indices"][1])), {})
        ],
        "lax.select_n": [(lax.select_n, (V["flags"], x, V["y"]), {})],
        "lax.clamp": [(lax.clamp, (np.float32(0.2), x, np.float32(0.7)), {})],
        "lax.slice": [(lax.slice, (x, (0, 1), (4, 5), (2, 1)), {})],
        "lax.broadcast_in_dim": [(lax.broadcast_in_dim, (x, (2, 4, 6), (1, 2)), {})],
        "lax.transpose": [(lax.transpose, (three, (2, 0, 1)), {})],
        "lax.reduce_precision": [(lax.reduce_precision, (x, 5, 4), {})],
        "lax.convert_element_type": [(lax.convert_element_type, (x, jnp.float16), {})],
        "lax.bitcast_convert_type": [(lax.bitcast_convert_type, (x, jnp.int32), {})],
        "lax.rng_bit_generator": [(lax.rng_bit_generator, (np.arange(4, dtype=np.uint32), (4, 6)), {})],
        "lax.custom_linear_solve": [
            (
                lambda a, b: lax.custom_linear_solve(
                    lambda u: a @ u, b, lambda _, r: jnp.linalg.solve(a, r), symmetric=True
                ),
                (V["positive"], V["w"]),
                {},
            )
        ],
        "numpy.einsum": [
            (jnp.einsum, ("ij,kj->ik", x, V["y"]), {}),
            (jnp.einsum, ("bij,bkj,lj->bikl", three, three, three[0]), {}),
        ],
        "numpy.where": [(jnp.where, (V["flags"], x, V["y"]), {})],
        "numpy.piecewise": [
            (lambda s: jnp.piecewise(s, [s < 0, s >= 1], [jnp.sin, jnp.cos, jnp.tanh]), (V["signed"],), {})
        ],
        "numpy.select": [(lambda s: jnp.select([s < 0, s > 1], [s, s * 2], 5.0), (V["signed"],), {})],
        "numpy.apply_along_axis": [(lambda s: jnp.apply_along_axis(jnp.sort, 1, s), (x,), {})],
        "numpy.vectorize": [(lambda a, b: jnp.vectorize(jnp.dot, signature="(n),(n)->()")(a, b), (x, v), {})],
        "numpy.fromfunction": [(lambda: jnp.fromfunction(lambda i, j: i * j, (3, 4)), (), {})],
        "numpy.interp": [(jnp.interp, (x, np.linspace(0, 1, 6, dtype=np.float32), v), {})],
        "nn.dot_product_attention": [
            (jax.nn.dot_product_attention, (three[:, :, None], three[:, :, None], three[:, :, None]), {}),
            (
                jax.nn.dot_product_attention,
                (three[:, :, None], three[:, :, None], three[:, :, None]),
                {"is_causal": True},
            ),
        ],
        "nn.one_hot": [(jax.nn.one_hot, (V["indices"], 5), {})],
        "special.logsumexp": [(jax.scipy.special.logsumexp, (x,), {"axis": 1})],
        "special.multigammaln": [(jax.scipy.special.multigammaln, (x + 3, 2), {})],
        "ndimage.map_coordinates": [
            (
                lambda a, c: jax.scipy.ndimage.map_coordinates(a, [c * 3, c * 4], order=1, mode="nearest"),
                (x, v),
                {},
            )
        ],
        "linalg.cho_solve": [
            (lambda a, b: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), b), (V["positive"], V["w"]), {})
        ],
        "linalg.lu_solve": [
            (lambda a, b: jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(a), b), (V["positive"], V["w"]), {})
        ],
    }  # fmt: skip
    return {name: [Call(name, *entry) for entry in entries] for name, entries in table.items()}


def _accepted(call: Call) -> bool:
    """Whether the function takes these arguments, under a trace, and gives arrays."""
    function, arrays = call.split()
    try:
        out = jax.eval_shape(function, *arrays)
    except Exception:
        return False
    return any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(out))


def _with_key(function: Callable, rest: tuple) -> tuple[Callable, tuple]:
    return lambda key, *more: function(jax.random.wrap_key_data(key), *more), (np.asarray(KEY), *rest)


def candidates(name: str, function: Callable) -> Iterator[Call]:
    """Calls to try."""
    if name.startswith("random."):
        for rest in AFTER_KEY:
            yield Call(name, *_with_key(function, tuple(_fill(part) for part in rest)))
        return
    if name.startswith("initializers."):
        # Most are functions that make an initializer.
        for arguments in ((), (0.5,), (1.0, "fan_in", "normal")):
            try:
                made = function(*arguments)
            except Exception:
                continue
            if callable(made):
                yield Call(name, *_with_key(made, ((4, 6),)))
        yield Call(name, *_with_key(function, ((4, 6),)))
        return
    for template in GENERIC:
        yield Call(name, function, tuple(_fill(part) for part in template))


def calls(only: str = "") -> tuple[list[Call], list[str]]:
    """Every call, and the functions for which none was found."""
    made = special()
    found: list[Call] = []
    without: list[str] = []
    listed = [
        (f"{module.rpartition('.')[2]}.{name}", f) for module in MODULES for name, f in functions(module)
    ]
    listed += [(f"stats.{name}", f) for name, f in distributions()]
    for name, function in listed:
        if not name.startswith(only):
            continue
        own = list(made.get(name, ()))
        for call in candidates(name, function):
            if len(own) >= MOST:
                break
            if _accepted(call):
                own.append(call)
        found += own
        if not own:
            without.append(name)
    return found, without
