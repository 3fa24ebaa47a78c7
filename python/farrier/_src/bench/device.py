"""Step time on the attached device: all option sets of a case interleaved, so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from farrier._src.bench.measure import build
from farrier._src.bench.suite import OptionSet, Unsupported, load_suite

WARMUP = 2


def _make(leaf: Any, seed: int) -> Any:
    """Makes an array like ``leaf``: small random floats, zeros for the rest."""
    import jax
    import jax.numpy as jnp

    sharding = getattr(leaf, "sharding", None)
    on_device = None
    if sharding is not None and all(d in jax.devices() for d in sharding.device_set):
        on_device = sharding

    def value() -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return (0.02 * jax.random.normal(jax.random.key(seed), leaf.shape)).astype(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(seed), leaf.shape) if leaf.shape else jax.random.key(seed)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.jit(value, out_shardings=on_device)()


class Step:
    """A jitted step with arguments of its own.

    Args:
      fn: jitted function.
      args, kwargs: arrays or ``jax.ShapeDtypeStruct``. What the step donates is made
        anew before each call, outside of the timing.
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        import jax

        self._fn = fn
        leaves, self._tree = jax.tree.flatten((args, dict(kwargs)))
        info = jax.tree.leaves(fn.lower(*args, **kwargs).args_info)
        self._donated = [bool(getattr(i, "donated", False)) for i in info]
        # Without one entry a leaf (an argument that jit keeps out of the program) all are made anew.
        if len(self._donated) != len(leaves):
            self._donated = [True] * len(leaves)
        self._makers: list[Callable[[], Any]] = []
        for n, leaf in enumerate(leaves):
            if isinstance(leaf, jax.Array):
                import numpy as np

                host = np.asarray(leaf)
                self._makers.append(lambda host=host, s=leaf.sharding: jax.device_put(host, s))
            elif hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
                self._makers.append(lambda leaf=leaf, n=n: _make(leaf, n))
            else:
                self._makers.append(lambda leaf=leaf: leaf)
        self._leaves: list[Any] = [None] * len(leaves)

    def __call__(self) -> float:
        """Runs the step once and returns its elapsed seconds until its results are ready."""
        import jax

        for n, maker in enumerate(self._makers):
            if self._leaves[n] is None or self._donated[n]:
                self._leaves[n] = maker()
        args, kwargs = jax.tree.unflatten(self._tree, self._leaves)
        jax.block_until_ready((args, kwargs))
        start = time.perf_counter()
        jax.block_until_ready(self._fn(*args, **kwargs))
        return time.perf_counter() - start


def interleaved(steps: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs the steps in turn, ``rounds`` times, each round in the opposite order of the one before.

    Returns the seconds of each step's rounds, after :data:`WARMUP` that do not count.
    """
    out: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for n in range(WARMUP + rounds):
        for name in order:
            seconds = steps[name]()
            if n >= WARMUP:
                out[name].append(seconds)
        order.reverse()
    return out


def measure_job(job: Mapping[str, Any], phase: Callable[[str], None]) -> dict[str, Any]:
    """Times all option sets of one case; returns ``{"samples": {name: seconds}, "device": kind}``."""
    import jax

    from farrier._src.targets.target import attached_target

    phase("loading the suite")
    case = load_suite(job["suite"]).case(job["case"])
    target = attached_target()
    steps: dict[str, Step] = {}
    for data in job["option_sets"]:
        options = OptionSet.from_json(data)
        phase(f"compiling {options.name} for the attached device")
        try:
            fn, args, kwargs = build(case, options, target)
        except Unsupported:
            continue
        if not hasattr(fn, "lower"):
            fn = jax.jit(fn)
        if options.compiler_options:
            fn = jax.jit(fn, compiler_options=dict(options.compiler_options))
        if options.optimize is not None:
            import farrier

            # Where it runs decides, not what it would be planned for elsewhere.
            given = {k: v for k, v in options.optimize.items() if k != "target"}
            fn = farrier.optimize(fn, **given)
        steps[options.name] = Step(fn, args, kwargs)
    phase("timing steps")
    return {"samples": interleaved(steps, job["rounds"]), "device": jax.devices()[0].device_kind}
